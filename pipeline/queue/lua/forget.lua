-- failed -> gone.
-- Called by JobQueue.remove_failed.
-- KEYS: those of place.lua, failed
-- ARGV: job ids...
-- Returns: how many of them were dead letters
local failed = KEYS[6]

local removed = 0
for _, id in ipairs(ARGV) do
  if redis.call('ZREM', failed, id) == 1 then
    -- A job that was enqueued again after its record was damaged has a new record, which stays.
    local texts = redis.call('MGET', record_key(id), state_key(id))
    if not texts[1] or decode(texts[2]).state == 'failed' then redis.call('DEL', record_key(id), state_key(id)) end
    removed = removed + 1
  end
end
return removed

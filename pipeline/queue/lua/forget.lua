-- failed -> gone.
-- Called by JobQueue.remove_failed.
-- KEYS: failed, prefix of the job hashes
-- ARGV: job ids...
-- Returns: how many of them were dead letters
local failed, prefix = KEYS[1], KEYS[2]
local LIVE = {waiting = true, delayed = true, active = true}

local removed = 0
for _, id in ipairs(ARGV) do
  if redis.call('ZREM', failed, id) == 1 then
    -- A job that was enqueued again after its record was damaged keeps the new one. pcall: the key may be of another type.
    if not LIVE[redis.pcall('HGET', prefix .. id, 'state')] then redis.call('DEL', prefix .. id) end
    removed = removed + 1
  end
end
return removed

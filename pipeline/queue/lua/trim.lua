-- completed or failed -> removed, once past retention.
-- Called by JobQueue.trim.
-- KEYS: those of place.lua, completed, failed
-- ARGV: clock offset (ms), keep completed (ms), keep failed (ms), at most so many of each
-- Returns: how many were removed
local completed, failed = KEYS[6], KEYS[7]
local offset, keep_completed, keep_failed, limit = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local now = now_ms(offset)
local removed = 0
for _, set in ipairs({{completed, keep_completed}, {failed, keep_failed}}) do
  local old = redis.call('ZRANGE', set[1], '-inf', now - set[2], 'BYSCORE', 'LIMIT', 0, limit)
  if #old > 0 then
    redis.call('ZREM', set[1], unpack(old))
    for _, id in ipairs(set[1] == failed and old or {}) do redis.call('DEL', record_key(id), state_key(id)) end
    removed = removed + #old
  end
end
return removed

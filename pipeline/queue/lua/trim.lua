-- completed or failed -> gone, once past retention.
-- Called by JobQueue.trim.
-- KEYS: completed, failed, prefix of the job hashes
-- ARGV: clock offset (ms), keep completed (ms), keep failed (ms), at most so many of each
-- Returns: how many were removed
local completed, failed, prefix = KEYS[1], KEYS[2], KEYS[3]
local offset, keep_completed, keep_failed, limit = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + offset
local removed = 0
for _, kept in ipairs({{completed, keep_completed}, {failed, keep_failed}}) do
  local old = redis.call('ZRANGE', kept[1], '-inf', now - kept[2], 'BYSCORE', 'LIMIT', 0, limit)
  if #old > 0 then
    redis.call('ZREM', kept[1], unpack(old))
    for _, id in ipairs(old) do redis.call('DEL', prefix .. id) end
    removed = removed + #old
  end
end
return removed

-- Adds to buckets the calls that a process has let through; nothing else moves.
-- Called by JobQueue.fill_buckets.
-- KEYS: one for each bucket
-- ARGV: clock offset (ms), then two for each bucket: amount to add (ms), size of the bucket (ms)
-- Returns: how full each bucket is (ms)
-- A bucket is the instant at which it will be empty (ms): it empties by a millisecond in a millisecond, and its key expires then.
-- It may be filled to twice its size, because processes count first and ask later: so their users wait longer. A bucket that seems
-- fuller is older than a change of the Redis clock backwards, and counts as empty.
local offset = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + offset

local full = {}
for i, empty_at in ipairs(redis.call('MGET', unpack(KEYS))) do
  local added, holds, left = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1]), math.max(0, (tonumber(empty_at) or 0) - now)
  full[i] = math.min((left > 2 * holds and 0 or left) + added, 2 * holds)
end
for i, key in ipairs(KEYS) do
  full[i] = math.ceil(full[i])
  if full[i] > 0 then redis.call('SET', key, string.format('%.0f', now + full[i]), 'PX', full[i]) end
end
return full

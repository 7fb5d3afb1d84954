-- Counts; nothing moves.
-- Called by JobQueue.stats.
-- KEYS: waiting, delayed, leases, completed, failed, paused, prefix of the job hashes
-- ARGV: clock offset (ms)
-- Returns: {waiting, delayed, active, completed, failed, paused (1|0), age of the oldest waiting job (ms) or -1}
local waiting, delayed, leases, completed, failed, paused, prefix =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local offset = ARGV[1]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + offset
local age = -1
local oldest = redis.call('LINDEX', waiting, -1)
if oldest then
  age = math.max(0, now - (tonumber(redis.call('HGET', prefix .. oldest, 'enqueuedAt')) or now))
end
return {redis.call('LLEN', waiting), redis.call('ZCARD', delayed), redis.call('ZCARD', leases), redis.call('ZCARD', completed),
  redis.call('ZCARD', failed), redis.call('EXISTS', paused), age}

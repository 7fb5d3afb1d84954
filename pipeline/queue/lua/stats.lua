-- Counts; nothing moves.
-- Called by JobQueue.stats.
-- KEYS: those of place.lua, delayed, leases, completed, failed, paused, hold
-- ARGV: clock offset (ms)
-- Returns: {waiting, delayed, active, completed, failed, paused (1|0), age of the oldest waiting job (ms) or -1, ms until the hold ends
--   or 0, breaker open (1|0)}
local delayed, leases, completed, failed, paused, hold = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local now = now_ms(ARGV[1])

local age = -1
-- With groups it is the oldest of the group whose turn is next: near enough, and the others need no search.
local oldest = redis.call('LINDEX', waiting, -1) or redis.call('LINDEX', list_of(redis.call('LINDEX', groups, -1) or ''), -1)
if oldest then
  age = math.max(0, now - (tonumber(redis.call('HGET', job_key(oldest), 'enqueuedAt')) or now))
end
local held = redis.call('HMGET', hold, 'until', 'probe')
return {count_waiting(), redis.call('ZCARD', delayed), redis.call('ZCARD', leases), redis.call('ZCARD', completed),
  redis.call('ZCARD', failed), redis.call('EXISTS', paused), age, math.max(0, (tonumber(held[1]) or 0) - now),
  (tonumber(held[2]) or 0) > 0 and 1 or 0}

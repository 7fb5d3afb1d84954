-- Counts; nothing moves.
-- Called by JobQueue.stats.
-- KEYS: those of place.lua, delayed, leases, completed, failed, paused, hold
-- ARGV: clock offset (ms)
-- Returns: {waiting, delayed, active, completed, failed, paused (1|0), how long the oldest waiting job could have started (ms) or -1, ms until the hold ends
--   or 0, breaker open (1|0)}
local delayed, leases, completed, failed, paused, hold = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local now = now_ms(ARGV[1])

local age, LOOK_AT_MOST = -1, 100
-- With groups it is the oldest of the group whose turn is next: near enough, and the others need no search.
local front = redis.call('EXISTS', waiting) == 1 and waiting or list_of(redis.call('LINDEX', groups, -1) or '')
-- Retries stand before the oldest job that has not been started yet; their backoff was no waiting.
for i = 1, LOOK_AT_MOST do
  local id = redis.call('LINDEX', front, -i)
  if not id then break end
  local since = redis.pcall('HMGET', job_key(id), 'readyAt', 'enqueuedAt')
  local ready_at = tonumber(since[1])
  age = math.max(age, 0, now - (ready_at or tonumber(since[2]) or now))
  if not ready_at then break end
end
local held = redis.call('HMGET', hold, 'until', 'probe')
return {count_waiting(), redis.call('ZCARD', delayed), redis.call('ZCARD', leases), redis.call('ZCARD', completed),
  redis.call('ZCARD', failed), redis.call('EXISTS', paused), age, math.max(0, (tonumber(held[1]) or 0) - now),
  (tonumber(held[2]) or 0) > 0 and 1 or 0}

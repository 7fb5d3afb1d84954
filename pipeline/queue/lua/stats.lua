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
  local kept = redis.call('MGET', record_key(id), state_key(id))
  local ready_at = tonumber(decode(kept[2]).readyAt)
  age = math.max(age, 0, now - (ready_at or tonumber(decode(kept[1]).enqueuedAt) or now))
  if not ready_at then break end
end
local held = redis.call('MGET', hold, paused)
local hold_now = decode(held[1])
local count = redis.call('LLEN', waiting) + (tonumber(redis.call('GET', grouped)) or 0)
return {count, redis.call('ZCARD', delayed), redis.call('ZCARD', leases), redis.call('ZCARD', completed),
  redis.call('ZCARD', failed), held[2] and 1 or 0, age, math.max(0, (tonumber(hold_now['until']) or 0) - now),
  (tonumber(hold_now.probe) or 0) > 0 and 1 or 0}

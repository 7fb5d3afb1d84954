-- Counts; nothing moves.
-- Called by JobQueue.stats.
-- KEYS: those of place.lua, delayed, leases, completed, failed, paused, holds, parked, owner
-- ARGV: clock offset (ms)
-- Returns: {waiting, delayed, active, completed, failed, paused (1|0), how long the oldest job that could start has waited (ms) or -1,
--   held providers (JSON, see reservations.lua) or '', now (ms), jobs that ended in the last minute, jobs in the background, which wait and are
--   not among waiting}
local delayed, leases, completed, failed, paused, holds, parked, owner =
  KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local MINUTE_MS = 60000
local now = now_ms(ARGV[1])

-- With groups it is the oldest of the front group: near enough, and needs no search of the others.
local front = redis.call('EXISTS', waiting) == 1 and waiting or list_of(redis.call('LINDEX', groups, -1) or '')
local age, id = -1, redis.call('LINDEX', front, -1)
if id then
  local texts = redis.call('MGET', record_key(id), state_key(id))
  -- A retry delay does not count as waiting.
  age = math.max(0, now - (tonumber(decode(texts[2]).readyAt) or tonumber(decode(texts[1]).enqueuedAt) or now))
end
local texts = redis.call('MGET', holds, paused, owner)
local count = redis.call('LLEN', waiting) + (tonumber(redis.call('GET', grouped)) or 0) + redis.call('ZCARD', parked)
local parked_behind = redis.call('ZLEXCOUNT', parked, '[' .. BACKGROUND, '+')
local background = redis.call('LLEN', list_of(BACKGROUND)) + parked_behind
local ended = redis.call('ZCOUNT', completed, now - MINUTE_MS, '+inf') + redis.call('ZCOUNT', failed, now - MINUTE_MS, '+inf')
return {count - parked_behind, redis.call('ZCARD', delayed) + redis.call('ZCARD', postponed), redis.call('ZCARD', leases),
  redis.call('ZCARD', completed), redis.call('ZCARD', failed), mode_of('', texts[3], texts[2]) == 'paused' and 1 or 0, age,
  shown_holds(decode(texts[1]), now), now, ended, background}

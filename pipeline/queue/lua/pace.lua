-- A running job reserves a call of a provider with limits, or gives a reserved call back.
-- Called by JobQueue.reserve_call and JobQueue.release_call.
-- KEYS: those of place.lua, leases, holds
-- ARGV: clock offset (ms), limits (JSON, see reservations.lua), provider, lease, how long it can wait (ms), how long ago a
--   reserved call could begin that was not made (ms, less than 0 when it has yet to begin) or '', whether the call has ended or none is made (1|0)
-- Returns: {1, ms until the call may begin}, or {0, ms until it may ask again}: then no call is reserved
local leases, holds = KEYS[6], KEYS[7]
local offset, limits, name, lease, wait, late, has_ended = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6] or ''), ARGV[7]
local now = now_ms(offset)

local before = redis.call('GET', holds)
local stored = before and decode(before) or {}
local reservations, reply = new_reservations(stored.turns, limits, leases, now), {1, 0}
if late then reservations.give_back(name, now - late) end
if has_ended == '1' then
  reservations.end_call(name, lease)
  if next(type(stored.parked) == 'table' and stored.parked or {}) then wake_one() end
else
  local opens_at = reservations.opens_at(name, wait, lease)
  reply = opens_at and {0, math.ceil(opens_at - now)} or {1, math.ceil(reservations.book(name, lease) - now)}
end
stored.turns = reservations.needed()
if next(stored.turns) or next(stored.parked or {}) or next(stored.providers or {}) then
  redis.call('SET', holds, cjson.encode(stored))
elseif before then
  redis.call('DEL', holds)
end
return reply

-- Prolongs those of the leases that are still held; no state changes.
-- Called by JobQueue.renew.
-- KEYS: those of place.lua, leases, watched
-- ARGV: clock offset (ms), lease length (ms), leases...
-- Returns: {leases that were lost, leases of jobs that were cancelled, whether snapshots are being asked for (1|0)}
local leases, watched = KEYS[6], KEYS[7]
local offset, lease_ms = ARGV[1], ARGV[2]

-- A full Redis refuses a script whose first write may need memory, and a ZADD counts as such even for a member that is there: running
-- jobs would be lost. So the first write is one that is never refused.
redis.call('ZREM', leases, '')
local until_ms = now_ms(offset) + lease_ms
local scores = redis.call('ZMSCORE', leases, unpack(ARGV, 3))
local lost, renewed, cancelled, states = {}, {}, {}, {}
for i = 3, #ARGV do states[i - 2] = state_key(string.match(ARGV[i], '^(.*)|')) end
states = redis.call('MGET', unpack(states))
for i, score in ipairs(scores) do
  if score then
    renewed[#renewed + 1] = until_ms
    renewed[#renewed + 1] = ARGV[i + 2]
    if decode(states[i]).cancelled then cancelled[#cancelled + 1] = ARGV[i + 2] end
  else
    lost[#lost + 1] = ARGV[i + 2]
  end
end
if #renewed > 0 then redis.call('ZADD', leases, 'XX', unpack(renewed)) end
return {lost, cancelled, redis.call('EXISTS', watched)}

-- Prolongs every lease named that is still held; no state changes.
-- Called by JobQueue.renew.
-- KEYS: leases, watched
-- ARGV: clock offset (ms), lease length (ms), leases...
-- Returns: {whether somebody asks how jobs go (1|0), the leases that were lost...}
local leases, watched = KEYS[1], KEYS[2]
local offset, lease_ms = ARGV[1], ARGV[2]

-- A full Redis refuses a script whose first write needs memory. ZADD of a member that is there needs none, but is refused all the
-- same, and running jobs would be lost; so a write comes first that is never refused.
redis.call('ZREM', leases, '')
local time = redis.call('TIME')
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + offset + lease_ms
local scores = redis.call('ZMSCORE', leases, unpack(ARGV, 3))
local lost, renewed = {redis.call('EXISTS', watched)}, {}
for i, score in ipairs(scores) do
  if score then
    renewed[#renewed + 1] = until_ms
    renewed[#renewed + 1] = ARGV[i + 2]
  else
    lost[#lost + 1] = ARGV[i + 2]
  end
end
if #renewed > 0 then redis.call('ZADD', leases, 'XX', unpack(renewed)) end
return lost

-- active -> the front of waiting, for leases that ran out (or all of them); the attempt is given back, the stall is counted.
-- Called by JobQueue.recover.
-- KEYS: those of place.lua, leases, delayed
-- ARGV: clock offset (ms), at most so many, all (1: no other process can hold a lease), lease length (ms), longest delay (ms)
-- Returns: ids of the recovered jobs
local leases, delayed = KEYS[6], KEYS[7]
local offset, limit, all, lease_ms, longest_delay = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now = now_ms(offset)

-- No lease and no delay reaches further than its own length: one that does was made before the clock was set back.
for _, late in ipairs({{leases, now + lease_ms}, {delayed, now + longest_delay}}) do
  for _, member in ipairs(redis.call('ZRANGE', late[1], '(' .. string.format('%.0f', late[2]), '+inf', 'BYSCORE', 'LIMIT', 0, limit)) do
    redis.call('ZREM', late[1], member)
    redis.call('ZADD', late[1], late[1] == leases and late[2] or now, member)
  end
end

local expired = redis.call('ZRANGE', leases, '-inf', all == '1' and '+inf' or now, 'BYSCORE', 'LIMIT', 0, limit)
if #expired == 0 then return {} end
local jobs = {}
for _, lease in ipairs(expired) do
  local id = string.match(lease, '^(.*)|')
  local fields = redis.call('HMGET', job_key(id), 'state', 'lease', 'enqueuedAt', 'group')
  if fields[1] == 'active' and fields[2] == lease then
    jobs[#jobs + 1] = {id, tonumber(fields[3]) or 0, fields[4] or ''}
  end
end
redis.call('ZREM', leases, unpack(expired))
-- The last one pushed is claimed first, so the newest goes in first.
table.sort(jobs, function(a, b) return a[2] > b[2] or (a[2] == b[2] and a[1] > b[1]) end)
local ids = {}
for i, job in ipairs(jobs) do
  ids[i] = job[1]
  redis.call('HSET', job_key(job[1]), 'state', 'waiting', 'readyAt', now)
  redis.call('HINCRBY', job_key(job[1]), 'attempt', -1)
  redis.call('HINCRBY', job_key(job[1]), 'stalls', 1)
  put_waiting('RPUSH', job[1], job[3])
end
if #ids > 0 then wake_one() end
return ids

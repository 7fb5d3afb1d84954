-- active -> the front of waiting, for leases that ran out (or all of them); the attempt is given back, the stall is counted.
-- Called by JobQueue.recover.
-- KEYS: waiting, leases, wake, prefix of the job hashes
-- ARGV: clock offset (ms), at most so many, all (1: no other process can hold a lease)
-- Returns: ids of the recovered jobs
local waiting, leases, wake, prefix = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local offset, limit, all = ARGV[1], ARGV[2], ARGV[3]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + offset
local expired = redis.call('ZRANGE', leases, '-inf', all == '1' and '+inf' or now, 'BYSCORE', 'LIMIT', 0, limit)
if #expired == 0 then return {} end

local jobs = {}
for _, lease in ipairs(expired) do
  local id = string.match(lease, '^(.*)|')
  if redis.call('HGET', prefix .. id, 'state') == 'active' then
    jobs[#jobs + 1] = {id, tonumber(redis.call('HGET', prefix .. id, 'enqueuedAt')) or 0}
  end
end
redis.call('ZREM', leases, unpack(expired))
-- The last one pushed is claimed first, so the newest goes in first.
table.sort(jobs, function(a, b) return a[2] > b[2] or (a[2] == b[2] and a[1] > b[1]) end)
local ids = {}
for i, job in ipairs(jobs) do
  ids[i] = job[1]
  redis.call('HSET', prefix .. job[1], 'state', 'waiting')
  redis.call('HINCRBY', prefix .. job[1], 'attempt', -1)
  redis.call('HINCRBY', prefix .. job[1], 'stalls', 1)
  redis.call('RPUSH', waiting, job[1])
end
if #ids > 0 and redis.call('LLEN', wake) == 0 then
  redis.call('LPUSH', wake, 1)
end
return ids

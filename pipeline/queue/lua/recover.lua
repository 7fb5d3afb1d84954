-- active -> the front of waiting, for leases that ran out (or all of them); the attempt is given back, the stall is counted.
-- Called by JobQueue.recover.
-- KEYS: those of place.lua, leases, delayed
-- ARGV: clock offset (ms), at most so many, all (1: no other process can hold a lease), lease length (ms) of leases that do not carry
--   their own, longest delay (ms), longest postponement (ms)
-- Returns: ids of the recovered jobs
local leases, delayed = KEYS[6], KEYS[7]
local offset, limit, all, lease_ms, longest_delay, longest_postponement = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local now = now_ms(offset)

-- A lease or a delay that reaches further than its own length was made before the clock was set back.
-- Processes may have different lease lengths; there is one lease for each busy slot, so looking at all of them is cheap.
local held = redis.call('ZRANGE', leases, 0, -1, 'WITHSCORES')
for i = 1, #held, 2 do
  local latest = now + (tonumber(string.match(held[i], ':%d+:(%d+)$')) or lease_ms)
  if tonumber(held[i + 1]) > latest then redis.call('ZADD', leases, 'XX', latest, held[i]) end
end
local late = redis.call('ZRANGE', delayed, '(' .. string.format('%.0f', now + longest_delay), '+inf', 'BYSCORE', 'LIMIT', 0, limit)
for _, id in ipairs(late) do redis.call('ZADD', delayed, 'XX', now, id) end
late = redis.call('ZRANGE', postponed, '(' .. string.format('%.0f', now + longest_postponement), '+inf', 'BYSCORE', 'LIMIT', 0, limit)
for _, id in ipairs(late) do redis.call('ZADD', postponed, 'XX', now, id) end

local expired = redis.call('ZRANGE', leases, '-inf', all == '1' and '+inf' or now, 'BYSCORE', 'LIMIT', 0, limit)
if #expired == 0 then return {} end
local jobs = {}
for _, lease in ipairs(expired) do
  local id = string.match(lease, '^(.*)|')
  local state = read_state(id)
  if state.state == 'active' and state.lease == lease then
    local record = decode(redis.call('MGET', record_key(id))[1])
    jobs[#jobs + 1] = {id = id, state = state, at = tonumber(record.enqueuedAt) or 0}
  end
end
redis.call('ZREM', leases, unpack(expired))
-- The last one pushed is claimed first, so the newest goes in first.
table.sort(jobs, function(a, b) return a.at > b.at or (a.at == b.at and a.id > b.id) end)
local ids = {}
for i, job in ipairs(jobs) do
  ids[i] = job.id
  local state = job.state
  state.state, state.lease, state.readyAt = 'waiting', nil, now
  state.attempt, state.stalls = math.max(0, (tonumber(state.attempt) or 0) - 1), (tonumber(state.stalls) or 0) + 1
  write_state(job.id, state)
  put_waiting('RPUSH', job.id, group_of(job.id))
end
if #ids > 0 then wake_one() end
return ids

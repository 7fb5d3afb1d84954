-- active -> completed, delayed, failed or waiting for every job that finished; then due delayed -> waiting -> active for every free slot.
-- Called by JobQueue.step.
-- KEYS: waiting, delayed, leases, completed, failed, wake, paused, prefix of the job hashes
-- ARGV: clock offset (ms), lease length (ms), claim mark (worker:number, new for each step), free slots, number of finishes, and for each
--   finish: lease, outcome (completed|retry|failed|released), delay (ms), gives back (1: the attempt does not count), error
-- Returns: {leases that were lost, claimed, jobs left waiting, ms until the next delayed job or -1, paused (1|0), now (ms)}
--   claimed: {id, data, attempt, stalls, lease, enqueuedAt, requestId, trace, error} each
-- A lease is the member 'job id|claim mark' of the leases set: who can name it owns the job, and a repeated finish finds it gone.
local waiting, delayed, leases, completed, failed = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local wake, paused, prefix = KEYS[6], KEYS[7], KEYS[8]
local offset, lease_ms, mark, free, finishes = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local FIRST, WIDTH, PROMOTE_AT_MOST = 6, 5, 100

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + offset

local lost = {}
for i = 0, finishes - 1 do
  local at = FIRST + i * WIDTH
  local lease, outcome, delay, gives_back, err = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  if redis.call('ZREM', leases, lease) == 0 then
    lost[#lost + 1] = lease
  else
    local id = string.match(lease, '^(.*)|')
    local job = prefix .. id
    if gives_back == '1' then redis.call('HINCRBY', job, 'attempt', -1) end
    if outcome == 'completed' then
      redis.call('ZADD', completed, now, id)
      redis.call('HSET', job, 'state', 'completed', 'finishedAt', now, 'error', '')
    elseif outcome == 'failed' then
      redis.call('ZADD', failed, now, id)
      redis.call('HSET', job, 'state', 'failed', 'finishedAt', now, 'error', err)
    elseif outcome == 'retry' then
      redis.call('ZADD', delayed, now + delay, id)
      redis.call('HSET', job, 'state', 'delayed', 'error', err)
    else
      redis.call('RPUSH', waiting, id)
      redis.call('HSET', job, 'state', 'waiting')
    end
  end
end

-- A retry was submitted before whatever waits now, so it goes to the front, the earliest due foremost.
local due = redis.call('ZRANGE', delayed, '-inf', now, 'BYSCORE', 'LIMIT', 0, PROMOTE_AT_MOST)
if #due > 0 then redis.call('ZREM', delayed, unpack(due)) end
for i = #due, 1, -1 do
  redis.call('HSET', prefix .. due[i], 'state', 'waiting')
  redis.call('RPUSH', waiting, due[i])
end

local claimed = {}
local is_paused = redis.call('EXISTS', paused)
if free > 0 and is_paused == 0 then
  for _, id in ipairs(redis.call('RPOP', waiting, free) or {}) do
    local job = prefix .. id
    -- pcall: a key of another type must not undo the claims beside it.
    local held = redis.pcall('HMGET', job, 'state', 'data', 'attempt', 'stalls', 'enqueuedAt', 'requestId', 'trace', 'error')
    if held[1] == 'waiting' then
      local lease, attempt = id .. '|' .. mark, (tonumber(held[3]) or 0) + 1
      redis.call('ZADD', leases, now + lease_ms, lease)
      redis.call('HSET', job, 'state', 'active', 'attempt', attempt)
      claimed[#claimed + 1] = {id, held[2] or '', attempt, tonumber(held[4]) or 0, lease, tonumber(held[5]) or now,
        held[6] or '', held[7] or '', held[8] or ''}
    end
  end
end

local left = redis.call('LLEN', waiting)
if left > 0 and is_paused == 0 and redis.call('LLEN', wake) == 0 then
  redis.call('LPUSH', wake, 1)
end
local next_due = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
return {lost, claimed, left, next_due and math.max(0, next_due - now) or -1, is_paused, now}

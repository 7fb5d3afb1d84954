-- active -> completed, delayed, failed or waiting for every job that finished; then due delayed -> waiting -> active for every free
-- slot, unless the queue is paused or held.
-- Called by JobQueue.step.
-- KEYS: those of place.lua, delayed, leases, completed, failed, paused, hold
-- ARGV: clock offset (ms), lease length (ms), claim mark (worker:number, new for each step), free slots, longest delay (ms), breaker:
--   failures that open it, first and longest wait for a probe (ms); number of finishes, and for each: lease, outcome
--   (completed|retry|failed|released), delay (ms), gives back (1: the attempt does not count), group, verdict on what all jobs lean
--   on (good|bad|''), hold (ms), error
-- Returns: {leases that were lost, claimed, jobs left waiting, ms until the next delayed job or -1, paused (1|0), ms until the hold
--   ends or 0, breaker open (1|0), now (ms)}
--   claimed: {id, data, attempt, stalls, lease, enqueuedAt, requestId, trace, error, group, probe (1|0)} each
-- A lease is the member 'job id|claim mark' of the leases set: who can name it owns the job, and a repeated finish finds it gone.
local delayed, leases, completed, failed, paused, hold = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local offset, lease_ms, mark, free, longest_delay = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local opens_at, first_probe, longest_probe = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local finishes, FIRST, WIDTH, PROMOTE_AT_MOST, POSTPONED_OFTEN = tonumber(ARGV[9]), 10, 8, 100, 3
local now = now_ms(offset)

-- The hold: nothing is claimed before until_ms. The breaker: `failures` in a row, each of another job than the one before, open it;
-- then `probe` is set, and one job at a time is let through at waits that double until one succeeds.
local held = redis.call('HMGET', hold, 'until', 'failures', 'job', 'probe')
local until_ms, failures, last_failed, probe = tonumber(held[1]) or 0, tonumber(held[2]) or 0, held[3] or '', tonumber(held[4]) or 0
local is_changed = false
local function judge(id, verdict, hold_ms)
  if verdict == 'good' and (failures > 0 or probe > 0) then
    if probe > 0 then until_ms = 0 end
    failures, last_failed, probe, is_changed = 0, '', 0, true
  elseif verdict == 'bad' and id ~= last_failed then
    failures, last_failed, is_changed = failures + 1, id, true
    if failures >= opens_at and probe == 0 then
      probe, until_ms = first_probe, math.max(until_ms, now + first_probe)
    end
  end
  if hold_ms > 0 then until_ms, is_changed = math.max(until_ms, now + math.min(hold_ms, longest_delay)), true end
end

local lost = {}
for i = 0, finishes - 1 do
  local at = FIRST + i * WIDTH
  local lease, outcome, delay, gives_back, group, verdict, hold_ms, err = unpack(ARGV, at, at + WIDTH - 1)
  if redis.call('ZREM', leases, lease) == 0 then
    lost[#lost + 1] = lease
  else
    local id = string.match(lease, '^(.*)|')
    local job = job_key(id)
    if gives_back == '1' then redis.call('HINCRBY', job, 'attempt', -1) end
    if outcome == 'completed' then
      redis.call('ZADD', completed, now, id)
      redis.call('HSET', job, 'state', 'completed', 'finishedAt', now, 'error', '')
    elseif outcome == 'failed' then
      redis.call('ZADD', failed, now, id)
      redis.call('HSET', job, 'state', 'failed', 'finishedAt', now, 'error', err)
    elseif outcome == 'retry' then
      if gives_back == '1' then redis.call('HINCRBY', job, 'postponed', 1) end
      redis.call('ZADD', delayed, now + math.min(delay, longest_delay), id)
      redis.call('HSET', job, 'state', 'delayed', 'error', err)
    else
      put_waiting('RPUSH', id, group)
      redis.call('HSET', job, 'state', 'waiting', 'readyAt', now)
    end
    judge(id, verdict, tonumber(hold_ms))
  end
end

-- A retry was submitted before whatever waits now, so it goes to the front, the earliest due foremost; but one that was postponed
-- again and again goes to the back, or it alone could keep the others from ever being tried.
local due = redis.call('ZRANGE', delayed, '-inf', now, 'BYSCORE', 'LIMIT', 0, PROMOTE_AT_MOST)
if #due > 0 then redis.call('ZREM', delayed, unpack(due)) end
for i = #due, 1, -1 do
  local job = job_key(due[i])
  local waits = redis.call('HMGET', job, 'group', 'postponed')
  redis.call('HSET', job, 'state', 'waiting', 'readyAt', now)
  put_waiting((tonumber(waits[2]) or 0) > POSTPONED_OFTEN and 'LPUSH' or 'RPUSH', due[i], waits[1] or '')
end

local is_paused = redis.call('EXISTS', paused)
-- A clock that was set back must not make a hold last for hours.
if until_ms > now + math.max(longest_delay, longest_probe) then until_ms, is_changed = now, true end
local claims = (is_paused == 1 or until_ms > now) and 0 or probe > 0 and math.min(free, 1) or free
local claimed = {}
for _, id in ipairs(claims > 0 and take_waiting(claims) or {}) do
  local job = job_key(id)
  -- pcall: a key of another type must not undo the claims beside it.
  local fields = redis.pcall('HMGET', job, 'state', 'data', 'attempt', 'stalls', 'enqueuedAt', 'requestId', 'trace', 'error', 'group')
  if fields[1] == 'waiting' then
    local lease, attempt = id .. '|' .. mark, (tonumber(fields[3]) or 0) + 1
    redis.call('ZADD', leases, now + lease_ms, lease)
    redis.call('HSET', job, 'state', 'active', 'attempt', attempt, 'lease', lease)
    claimed[#claimed + 1] = {id, fields[2] or '', attempt, tonumber(fields[4]) or 0, lease, tonumber(fields[5]) or now,
      fields[6] or '', fields[7] or '', fields[8] or '', fields[9] or '', probe > 0 and 1 or 0}
  elseif fields.err then
    redis.call('DEL', job)
    redis.call('HSET', job, 'state', 'failed', 'finishedAt', now, 'error', 'The record of the job is damaged')
    redis.call('ZADD', failed, now, id)
  end
end
if probe > 0 and #claimed > 0 then
  probe, is_changed = math.min(probe * 2, longest_probe), true
  until_ms = now + probe
end

if is_changed and failures == 0 and probe == 0 and until_ms <= now then
  redis.call('DEL', hold)
elseif is_changed then
  redis.call('HSET', hold, 'until', until_ms, 'failures', failures, 'job', last_failed, 'probe', probe)
end
local left, hold_left = count_waiting(), math.max(0, until_ms - now)
if left > 0 and is_paused == 0 and hold_left == 0 then wake_one() end
local next_due = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
return {lost, claimed, left, next_due and math.max(0, next_due - now) or -1, is_paused, hold_left, probe > 0 and 1 or 0, now}

-- active -> completed, delayed, failed or waiting for every job that finished; then due delayed -> waiting -> active for every free
-- slot, unless the queue is paused or held.
-- Called by JobQueue.step.
-- KEYS: those of place.lua, delayed, leases, completed, failed, paused, hold
-- ARGV: clock offset (ms), lease length (ms), claim mark (worker:number, new for each step), free slots, longest delay (ms), breaker:
--   failures that open it, first and longest wait for a probe (ms); number of completed jobs, and for each: lease, verdict on what all
--   jobs lean on (good|bad|''); then for each that ended otherwise: lease, verdict, outcome (retry|failed|released), delay (ms), gives
--   back (1: the attempt does not count), group, hold (ms), error
-- Returns: {leases that were lost, claimed, more are waiting (1|0), ms until the next delayed job or -1, paused (1|0), ms until the
--   hold ends or 0, breaker open (1|0), now (ms)}
--   claimed: {id, record, attempt, stalls, lease, error, probe (1|0)} each
-- A lease is the member 'job id|claim mark' of the leases set: who can name it owns the job, and a repeated finish finds it gone.
-- What concerns several jobs is done by one command for all of them: commands are what a step costs.
local delayed, leases, completed, failed, paused, hold = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local offset, lease_ms, mark, free, longest_delay = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local opens_at, first_probe, longest_probe = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local completions, FIRST, PROMOTE_AT_MOST, POSTPONED_OFTEN = tonumber(ARGV[9]), 10, 100, 3
local now = now_ms(offset)

-- The hold: nothing is claimed before until_ms. The breaker: `failures` in a row, each of another job than the one before, open it;
-- then `probe` is set, and one job at a time is let through at waits that double until one succeeds.
local kept = redis.call('MGET', hold, paused)
local held, is_paused = decode(kept[1]), kept[2] and 1 or 0
local until_ms, failures = tonumber(held['until']) or 0, tonumber(held.failures) or 0
local last_failed, probe = held.job or '', tonumber(held.probe) or 0
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

local lost, given_up, ours, places = {}, {}, {}, {}
local at = FIRST
while ARGV[at] do
  ours[#ours + 1], places[#places + 1] = ARGV[at], at
  at = at + (#ours <= completions and 2 or 8)
end
local scores = #ours > 0 and redis.call('ZMSCORE', leases, unpack(ours)) or {}
for i, lease in ipairs(ours) do
  local list = scores[i] and given_up or lost
  list[#list + 1] = lease
end
-- A full Redis refuses no ZREM, and nothing that follows it.
if #given_up > 0 then redis.call('ZREM', leases, unpack(given_up)) end
local done, gone = {}, {}
for i, lease in ipairs(ours) do
  if scores[i] then
    local id, verdict = string.match(lease, '^(.*)|'), ARGV[places[i] + 1]
    if i <= completions then
      done[#done + 1], done[#done + 2] = now, id
      gone[#gone + 1], gone[#gone + 2] = record_key(id), state_key(id)
      judge(id, verdict, 0)
    else
      local outcome, delay, gives_back, group, hold_ms, err = unpack(ARGV, places[i] + 2, places[i] + 7)
      local state = read_state(id)
      state.lease = nil
      if gives_back == '1' then state.attempt = math.max(0, (tonumber(state.attempt) or 0) - 1) end
      if outcome == 'failed' then
        redis.call('ZADD', failed, now, id)
        state.state, state.error = 'failed', err
      elseif outcome == 'retry' then
        redis.call('ZADD', delayed, now + math.min(delay, longest_delay), id)
        state.state, state.error = 'delayed', err
        if gives_back == '1' then state.postponed = (tonumber(state.postponed) or 0) + 1 end
      else
        put_waiting('RPUSH', id, group)
        state.state, state.readyAt = 'waiting', now
      end
      write_state(id, state)
      judge(id, verdict, tonumber(hold_ms))
    end
  end
end
if #done > 0 then
  redis.call('ZADD', completed, unpack(done))
  redis.call('DEL', unpack(gone))
end

-- A retry was submitted before whatever waits now, so it goes to the front, the earliest due foremost; but one that was postponed
-- again and again goes to the back, or it alone could keep the others from ever being tried.
local function first_due()
  return tonumber(redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2])
end
local next_due = first_due()
if next_due and next_due <= now then
  local due = redis.call('ZRANGE', delayed, '-inf', now, 'BYSCORE', 'LIMIT', 0, PROMOTE_AT_MOST)
  redis.call('ZREM', delayed, unpack(due))
  for i = #due, 1, -1 do
    local state = read_state(due[i])
    state.state, state.readyAt = 'waiting', now
    write_state(due[i], state)
    put_waiting((tonumber(state.postponed) or 0) > POSTPONED_OFTEN and 'LPUSH' or 'RPUSH', due[i], group_of(due[i]))
  end
  next_due = first_due()
end

-- A clock that was set back must not make a hold last for hours.
if until_ms > now + math.max(longest_delay, longest_probe) then until_ms, is_changed = now, true end
local claims = (is_paused == 1 or until_ms > now) and 0 or probe > 0 and math.min(free, 1) or free
local ids = claims > 0 and take_waiting(claims) or {}
local claimed, keys, states, taken, seen = {}, {}, {}, {}, {}
for i, id in ipairs(ids) do keys[2 * i - 1], keys[2 * i] = record_key(id), state_key(id) end
local found = #ids > 0 and redis.call('MGET', unpack(keys)) or {}
for i, id in ipairs(ids) do
  local record, state = found[2 * i - 1], decode(found[2 * i])
  -- An id may stand in a list twice, or without its job.
  if record and (state.state or 'waiting') == 'waiting' and not seen[id] then
    seen[id] = true
    local lease, attempt, stalls = id .. '|' .. mark, (tonumber(state.attempt) or 0) + 1, tonumber(state.stalls) or 0
    state.state, state.lease, state.attempt, state.stalls, state.readyAt = 'active', lease, attempt, stalls, nil
    states[#states + 1], states[#states + 2] = state_key(id), cjson.encode(state)
    taken[#taken + 1], taken[#taken + 2] = now + lease_ms, lease
    claimed[#claimed + 1] = {id, record, attempt, stalls, lease, type(state.error) == 'string' and state.error or '',
      probe > 0 and 1 or 0}
  end
end
if #claimed > 0 then
  redis.call('MSET', unpack(states))
  redis.call('ZADD', leases, unpack(taken))
end
if probe > 0 and #claimed > 0 then
  probe, is_changed = math.min(probe * 2, longest_probe), true
  until_ms = now + probe
end

if is_changed and failures == 0 and probe == 0 and until_ms <= now then
  redis.call('DEL', hold)
elseif is_changed then
  redis.call('SET', hold, cjson.encode({['until'] = until_ms, failures = failures, job = last_failed, probe = probe}))
end
-- Who got fewer than it asked for has emptied the lists.
local more = (claims == 0 or #ids == claims) and redis.call('EXISTS', waiting, groups) > 0
local hold_left = math.max(0, until_ms - now)
if more and is_paused == 0 and hold_left == 0 then wake_one() end
return {lost, claimed, more and 1 or 0, next_due and math.max(0, next_due - now) or -1, is_paused, hold_left, probe > 0 and 1 or 0, now}

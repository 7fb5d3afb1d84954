-- active -> completed, delayed, parked, failed or waiting, for jobs that finished. Not a script of its own: step.lua calls it.
-- done: leases of completed jobs. others: {lease, outcome (retry|parked|failed|released), delay (ms), refunds (1: the attempt does not
-- count), group, error} each. park: function(job id, record), false when the job's lane is open, or nil when all are: then its delay
-- must do. Returns the leases that were no longer held; nothing is done for those.
local OFTEN = 3

local function end_other(keys, now, longest_delay, finish, park)
  local lease, outcome, delay, refunds_attempt, group, err = unpack(finish)
  local id = string.match(lease, '^(.*)|')
  local state = read_state(id)
  state.lease, state.error = nil, err ~= '' and err or state.error
  state.givenBack = refunds_attempt == '1' or nil
  if state.givenBack then state.attempt = math.max(0, (tonumber(state.attempt) or 0) - 1) end
  if outcome == 'failed' then
    redis.call('ZADD', keys.failed, now, id)
    state.state = 'failed'
  elseif outcome == 'parked' and park and park(id, redis.call('MGET', record_key(id))[1]) then
    state.state, state.readyAt = 'waiting', now
  elseif outcome ~= 'released' then
    local postponed = tonumber(state.postponed) or 0
    -- A provider that is away for long is asked less and less often.
    if state.givenBack then delay, state.postponed = delay * 2 ^ math.min(postponed, OFTEN), postponed + 1 end
    redis.call('ZADD', keys.delayed, now + math.min(delay, longest_delay), id)
    state.state = 'delayed'
  else
    put_waiting('RPUSH', id, group)
    state.state, state.readyAt = 'waiting', now
  end
  write_state(id, state)
end

local function finish_jobs(keys, now, longest_delay, done, others, park)
  local leases = {unpack(done)}
  for _, finish in ipairs(others) do leases[#leases + 1] = finish[1] end
  if #leases == 0 then return {} end
  local scores, lost, ours = redis.call('ZMSCORE', keys.leases, unpack(leases)), {}, {}
  for i, lease in ipairs(leases) do
    local list = scores[i] and ours or lost
    list[#list + 1] = lease
  end
  -- A full Redis refuses no ZREM, and nothing that follows it.
  if #ours > 0 then redis.call('ZREM', keys.leases, unpack(ours)) end
  local completed, gone = {}, {}
  for i, lease in ipairs(done) do
    if scores[i] then
      local id = string.match(lease, '^(.*)|')
      completed[#completed + 1], completed[#completed + 2] = now, id
      gone[#gone + 1], gone[#gone + 2] = record_key(id), state_key(id)
    end
  end
  for i, finish in ipairs(others) do
    if scores[#done + i] then end_other(keys, now, longest_delay, finish, park) end
  end
  if #completed > 0 then
    redis.call('ZADD', keys.completed, unpack(completed))
    redis.call('DEL', unpack(gone))
  end
  return lost
end

-- waiting -> active, for the free slots of one step. Not a script of its own: step.lua calls it.
-- `write` writes all claimed jobs at the end, by one command of each kind.
local function new_claims(wanted, mark, now, leases, lease_ms)
  local self, states, members, seen = {list = {}, wanted = wanted}, {}, {}, {}

  -- to_try: the held provider that this job alone may ask, or nil.
  -- reserve_at: the provider of which `reservations` reserves a call for the job, or nil.
  function self.take(id, record, state, to_try, reservations, reserve_at)
    seen[id] = true
    local is_first = state.is_first and 1 or 0
    state.is_first = nil
    local lease, attempt, stalls = id .. '|' .. mark, (tonumber(state.attempt) or 0) + 1, tonumber(state.stalls) or 0
    state.state, state.lease, state.attempt, state.stalls, state.readyAt = 'active', lease, attempt, stalls, nil
    -- The mark concerned an earlier start; the worker that starts the job now checks whether it is still wanted.
    state.cancelled = nil
    states[#states + 1], states[#states + 2] = state_key(id), cjson.encode(state)
    members[#members + 1], members[#members + 2] = now + lease_ms, lease
    local err = type(state.error) == 'string' and state.error or ''
    local call_in = reserve_at and math.ceil(reservations.book(reserve_at, lease) - now) or 0
    self.list[#self.list + 1] = {id, record, attempt, stalls, lease, err, to_try or '', reserve_at or '', call_in, is_first}
  end

  function self.free()
    return self.wanted - #self.list
  end

  -- Calls choose(id, record, state) for each id of a waiting job.
  function self.consider(ids, choose)
    local keys = {}
    for i, id in ipairs(ids) do keys[2 * i - 1], keys[2 * i] = record_key(id), state_key(id) end
    local found = #ids > 0 and redis.call('MGET', unpack(keys)) or {}
    for i, id in ipairs(ids) do
      -- A job that was never claimed has no state.
      local record, state = found[2 * i - 1], found[2 * i] and decode(found[2 * i]) or {is_first = true}
      -- An id may stand in a list twice, or without its job.
      if record and (state.state or 'waiting') == 'waiting' and not seen[id] then choose(id, record, state) end
    end
  end

  function self.write()
    if #states == 0 then return end
    redis.call('MSET', unpack(states))
    redis.call('ZADD', leases, unpack(members))
  end

  return self
end

-- Jobs that become ready go behind those that are ready already, the earliest due first.
local function promote(ids, now)
  for _, id in ipairs(ids) do
    local state = read_state(id)
    state.state, state.readyAt, state.postponedUntil = 'waiting', now, nil
    write_state(id, state)
    put_waiting('LPUSH', id, group_of(id))
  end
end

-- delayed -> waiting, for jobs that are due. Returns when the next one is due (ms), or nil.
local function promote_due(delayed, now, at_most)
  local function first_due()
    return tonumber(redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2])
  end
  local next_due = first_due()
  if not next_due or next_due > now then return next_due end
  local due = redis.call('ZRANGE', delayed, '-inf', now, 'BYSCORE', 'LIMIT', 0, at_most)
  redis.call('ZREM', delayed, unpack(due))
  promote(due, now)
  return first_due()
end

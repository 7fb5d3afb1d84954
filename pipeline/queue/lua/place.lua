-- Where jobs are, and what Redis stores of them. Not a script of its own: it goes before each script that moves jobs, whose first five
-- KEYS it names.
-- KEYS: waiting, groups, grouped, wake, prefix of the queue's keys
-- A job without a group is in `waiting`. The others are in one list per group, and `groups` is the ring of the groups that have
-- jobs: each claim takes the oldest job of the front group and sends the group to the back, so that groups are served in rotation and
-- a move costs the same however many there are. `grouped` counts their jobs. The right end is the front.
-- Jobs of the group '~' are in the background: they are claimed only when no other job is ready, the oldest first. Their list is not in
-- the ring and `grouped` does not count them; their lanes begin with '~' as well, so that in `parked` no other job waits behind one of them.
-- Of a job there are two strings, both JSON. `record:` is written once: {enqueuedAt, submittedAt, requestId, trace, group, lane, data};
-- only a job that Redis had lost has a submittedAt: when it was first enqueued. `state:` is its state since then: {state, attempt, stalls, postponed,
-- readyAt, lease, error, givenBack, cancelled, postponedUntil}; a job that was never claimed has none and waits. givenBack: the last start
-- did not count. postponedUntil: an operator has postponed it (ms): its state is `delayed`, and it is in `postponed` instead of the queue's delayed.
-- `running:` is the report of the process that runs the job, see JobQueue.report; it expires.
-- They are strings because MGET and MSET move those of all slots in one command, and because MGET takes a key of another type for
-- a missing one. Of a completed job only the id stays.
local waiting, groups, grouped, wake, prefix = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local postponed = prefix .. 'postponed'
local BACKGROUND = '~'

local function record_key(id)
  return prefix .. 'record:' .. id
end

local function state_key(id)
  return prefix .. 'state:' .. id
end

-- A damaged text reads as an empty object.
local function decode(text)
  local is_json, value = pcall(cjson.decode, text or '{}')
  return is_json and type(value) == 'table' and value or {}
end

local function read_state(id)
  return decode(redis.call('MGET', state_key(id))[1])
end

local function write_state(id, state)
  redis.call('SET', state_key(id), cjson.encode(state))
end

local function group_of(id)
  local group = decode(redis.call('MGET', record_key(id))[1]).group
  return type(group) == 'string' and group or ''
end

local function list_of(group)
  return group == '' and waiting or prefix .. 'group:' .. group
end

local function now_ms(offset)
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000) + offset
end

-- Returns a job's lane, and the member as which it stands in `parked`, see lanes.lua.
local function place_in_lane(id, record)
  local known = decode(record)
  local lane = type(known.lane) == 'string' and known.lane or ''
  local submitted_at = tonumber(known.submittedAt) or tonumber(known.enqueuedAt) or 0
  return lane, lane .. '|' .. string.format('%013.0f', submitted_at) .. '|' .. id
end

-- Whether the group is in `groups` while jobs of it wait.
local function is_in_ring(group)
  return group ~= '' and group ~= BACKGROUND
end

-- push: RPUSH (to the front: the job was submitted before all that wait) or LPUSH (to the back)
local function put_waiting(push, id, group)
  local length = redis.call(push, list_of(group), id)
  if is_in_ring(group) then
    redis.call('INCR', grouped)
    if length == 1 then redis.call(push, groups, group) end
  end
end

-- RPOP comes first: a full Redis refuses LMOVE as the first write of a script, but not RPOP.
local function take_waiting(count)
  local ids = redis.call('RPOP', waiting, count) or {}
  local ungrouped = #ids
  while #ids < count do
    local group = redis.call('LMOVE', groups, groups, 'RIGHT', 'LEFT')
    if not group then break end
    ids[#ids + 1] = redis.call('RPOP', list_of(group)) or nil
    if redis.call('EXISTS', list_of(group)) == 0 then redis.call('LPOP', groups) end
  end
  if #ids > ungrouped then redis.call('DECRBY', grouped, #ids - ungrouped) end
  return ids
end

local function take_background(count)
  return redis.call('RPOP', list_of(BACKGROUND), count) or {}
end

-- Removes a waiting job from its list. So many ids are looked at from each end of the list: 2 ms of Redis. An id beyond that stays,
-- and is passed over when it gets to the front.
local LEAVE_LOOK_AT_MOST = 100000
local function leave_line(id)
  local group = group_of(id)
  local list, removed = list_of(group), 0
  if redis.call('LPOS', list, id, 'MAXLEN', LEAVE_LOOK_AT_MOST) then
    removed = redis.call('LREM', list, 1, id)
  elseif redis.call('LPOS', list, id, 'RANK', -1, 'MAXLEN', LEAVE_LOOK_AT_MOST) then
    removed = redis.call('LREM', list, -1, id)
  end
  if is_in_ring(group) and removed > 0 then
    redis.call('DECRBY', grouped, removed)
    if redis.call('EXISTS', list) == 0 then redis.call('LREM', groups, 0, group) end
  end
end

-- At most one marker, so that idle workers are woken one by one; pcall, because a full Redis must not undo the writes before it.
local function wake_one()
  if redis.call('LLEN', wake) == 0 then redis.pcall('LPUSH', wake, 1) end
end

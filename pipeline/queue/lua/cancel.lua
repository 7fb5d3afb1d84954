-- waiting, delayed or parked -> completed. An active job stays with its worker, which renew.lua tells of it.
-- Called by JobQueue.cancel.
-- KEYS: those of place.lua, completed, delayed, parked
-- ARGV: clock offset (ms), job id
-- Returns: the state it was in (waiting|delayed|active), or 'missing': not known, completed or a dead letter; then nothing has been done
local completed, delayed, parked = KEYS[6], KEYS[7], KEYS[8]
local offset, id = ARGV[1], ARGV[2]
-- From each end of the line: 2 ms of Redis. Beyond that an id is left where it stands and passed over when its turn comes.
local LOOK_AT_MOST = 100000

-- Returns how many of the id were taken out.
local function take_out(list)
  if redis.call('LPOS', list, id, 'MAXLEN', LOOK_AT_MOST) then return redis.call('LREM', list, 1, id) end
  if redis.call('LPOS', list, id, 'RANK', -1, 'MAXLEN', LOOK_AT_MOST) then return redis.call('LREM', list, -1, id) end
  return 0
end

local record, state = redis.call('MGET', record_key(id))[1], read_state(id)
local was = state.state or 'waiting'
if not record or was == 'failed' then return 'missing' end
if was == 'active' then
  state.cancelled = true
  write_state(id, state)
  return was
end

local group = group_of(id)
-- ZREM comes first: a full Redis refuses no ZREM, and nothing that follows it.
local is_elsewhere = redis.call('ZREM', delayed, id) + redis.call('ZREM', parked, select(2, place_in_lane(id, record))) > 0
if not is_elsewhere then
  local removed = take_out(list_of(group))
  if group ~= '' and removed > 0 then
    redis.call('DECRBY', grouped, removed)
    if redis.call('EXISTS', list_of(group)) == 0 then redis.call('LREM', groups, 0, group) end
  end
end
redis.call('DEL', record_key(id), state_key(id))
redis.call('ZADD', completed, now_ms(offset), id)
return was

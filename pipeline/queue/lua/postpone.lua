-- waiting or parked -> postponed, and back: postponed -> the front of waiting. A postponed job becomes ready by itself, see step.lua.
-- Called by JobQueue.postpone and JobQueue.unpostpone.
-- KEYS: those of place.lua, parked
-- ARGV: clock offset (ms), job id, for how long (ms); 0: put it back
-- Returns: 'ok', or the state it is in (waiting|delayed|active|failed), or 'missing': then nothing has changed
local parked = KEYS[6]
local offset, id, wait = ARGV[1], ARGV[2], tonumber(ARGV[3])

local record, state = redis.call('MGET', record_key(id))[1], read_state(id)
if not record then return 'missing' end
local was, now = state.state or 'waiting', now_ms(offset)
if wait == 0 then
  if not redis.call('ZSCORE', postponed, id) then return was end
  redis.call('ZREM', postponed, id)
  state.state, state.postponedUntil, state.readyAt = 'waiting', nil, now
  write_state(id, state)
  put_waiting('RPUSH', id, group_of(id))
  wake_one()
  return 'ok'
end
if was ~= 'waiting' then return was end
-- SET and ZADD come first: a full Redis refuses them before anything has changed.
state.state, state.postponedUntil, state.readyAt = 'delayed', now + wait, nil
write_state(id, state)
redis.call('ZADD', postponed, now + wait, id)
if redis.call('ZREM', parked, select(2, place_in_lane(id, record))) == 0 then leave_line(id) end
return 'ok'

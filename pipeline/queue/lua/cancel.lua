-- waiting, delayed or parked -> completed. An active job stays with its worker, which learns of it from renew.lua.
-- Called by JobQueue.cancel.
-- KEYS: those of place.lua, completed, delayed, parked
-- ARGV: clock offset (ms), job id
-- Returns: the state it was in (waiting|delayed|active), or 'missing': not known, completed or a dead letter; then nothing has changed
local completed, delayed, parked = KEYS[6], KEYS[7], KEYS[8]
local offset, id = ARGV[1], ARGV[2]

local record, state = redis.call('MGET', record_key(id))[1], read_state(id)
local was = state.state or 'waiting'
if not record or was == 'failed' then return 'missing' end
if was == 'active' then
  state.cancelled = true
  write_state(id, state)
  return was
end

-- ZREM comes first: a full Redis refuses no ZREM, and nothing that follows it.
local is_elsewhere = redis.call('ZREM', delayed, id) + redis.call('ZREM', postponed, id)
  + redis.call('ZREM', parked, select(2, place_in_lane(id, record))) > 0
if not is_elsewhere then leave_line(id) end
redis.call('DEL', record_key(id), state_key(id))
redis.call('ZADD', completed, now_ms(offset), id)
return was

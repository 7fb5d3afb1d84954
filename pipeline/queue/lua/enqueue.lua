-- A new job -> the back of waiting. A repetition with the same id changes nothing, but puts back a job that is not where its state
-- says, as after a failover, an eviction or a manual change.
-- Called by JobQueue.enqueue and JobQueue.restore.
-- KEYS: those of place.lua, completed, failed, delayed, leases, parked, owner, watched
-- ARGV: clock offset (ms), store id or '' (see owner.lua), job id, record (a JSON object without enqueuedAt), group or '', revive (1: a
--   finished job starts over)
-- Returns: 'ok', 'watched' (the same, and snapshots are being asked for), 'exists', 'restored' or 'foreign': then nothing has changed
local completed, failed, delayed, leases, parked, owner, watched = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local offset, store_id, id, new_record, group, revive = unpack(ARGV)
local LOOK_AT_MOST = 1000

local function enqueued_at(record)
  return tonumber(string.match(record or '', '^{"enqueuedAt":(%d+)')) or 0
end

local known = redis.call('MGET', record_key(id), state_key(id), owner, watched)
if mode_of(store_id, known[3]) == 'foreign' then return 'foreign' end
local record, state = known[1], decode(known[2])
local is_completed = not record and redis.call('ZSCORE', completed, id)
local is_finished = is_completed or record and state.state == 'failed'

if is_finished and revive == '1' or not record and not is_completed then
  -- SET comes first: in a full Redis it is refused before anything has changed.
  redis.call('SET', record_key(id), string.format('{"enqueuedAt":%.0f,', now_ms(offset)) .. string.sub(new_record, 2))
  if known[2] then redis.call('DEL', state_key(id)) end
  if is_completed then redis.call('ZREM', completed, id) end
  redis.call('ZREM', failed, id)
  put_waiting('LPUSH', id, group)
  wake_one()
  return known[4] and 'watched' or 'ok'
end

if is_finished then return 'exists' end
group = group_of(id)
local list = list_of(group)
local is_there = true
if state.state == 'active' then
  is_there = redis.call('ZSCORE', leases, state.lease or '')
elseif state.state == 'delayed' then
  is_there = redis.call('ZSCORE', delayed, id) or redis.call('ZSCORE', postponed, id)
elseif redis.call('ZSCORE', parked, select(2, place_in_lane(id, record))) then
  is_there = true
elseif state.readyAt then
  -- It has been started before and may be anywhere in the list.
  is_there = redis.call('LPOS', list, id)
else
  is_there = redis.call('LPOS', list, id, 'RANK', -1, 'MAXLEN', LOOK_AT_MOST)
  if not is_there and redis.call('LLEN', list) > LOOK_AT_MOST then
    -- The front is the oldest, so an older job is missing. A wrong guess only puts an id there twice, and an id whose job no longer
    -- waits is passed over.
    local oldest = redis.call('MGET', record_key(redis.call('LINDEX', list, -1)))[1]
    is_there = enqueued_at(record) >= enqueued_at(oldest)
  end
end
local is_waiting = state.state ~= 'active' and state.state ~= 'delayed'
if is_there and is_in_ring(group) and is_waiting and redis.call('EXISTS', list) == 1 and not redis.call('LPOS', groups, group) then
  redis.call('LPUSH', groups, group)
end
if is_there then return 'exists' end
if not is_waiting then
  if state.state == 'active' then state.attempt = math.max(0, (tonumber(state.attempt) or 0) - 1) end
  state.state, state.lease, state.postponedUntil = 'waiting', nil, nil
  write_state(id, state)
end
put_waiting('RPUSH', id, group)
wake_one()
return 'restored'

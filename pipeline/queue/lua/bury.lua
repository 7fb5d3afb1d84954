-- A dead letter that Redis has lost -> failed. A job that is known stays what it is.
-- Called by JobQueue.restore_failed.
-- KEYS: those of place.lua, completed, failed, owner
-- ARGV: clock offset (ms), store id or '' (see owner.lua), job id, record (JSON), state (JSON), when it failed (ms)
-- Returns: 'ok', 'exists' or 'foreign': then nothing has changed
local completed, failed, owner = KEYS[6], KEYS[7], KEYS[8]
local _, store_id, id, record, state, failed_at = unpack(ARGV)

local known = redis.call('MGET', record_key(id), owner)
if mode_of(store_id, known[2]) == 'foreign' then return 'foreign' end
if redis.call('ZSCORE', completed, id) then return 'exists' end
if known[1] then
  if decode(redis.call('MGET', state_key(id))[1]).state ~= 'failed' or redis.call('ZSCORE', failed, id) then return 'exists' end
  redis.call('ZADD', failed, failed_at, id)
  return 'ok'
end
redis.call('MSET', record_key(id), record, state_key(id), state)
redis.call('ZADD', failed, failed_at, id)
return 'ok'

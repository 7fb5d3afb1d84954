-- A new job -> the back of waiting. Repeating it with the same id changes nothing, but puts back a job that is not where its state
-- says: what a failover, an eviction or a careless hand can do.
-- Called by JobQueue.enqueue and JobQueue.restore.
-- KEYS: those of place.lua, completed, failed, delayed, leases
-- ARGV: clock offset (ms), job id, data (JSON), request id, trace context, group or '', revive (1: a finished job starts over)
-- Returns: 'ok', 'exists' or 'restored'
local completed, failed, delayed, leases = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local offset, id, data, request_id, trace, group, revive = unpack(ARGV)
local POSTPONED_OFTEN, LOOK_AT_MOST = 3, 1000

local job = job_key(id)
-- pcall: a key of another type is a job that got lost.
local known = redis.pcall('HMGET', job, 'state', 'lease', 'enqueuedAt', 'postponed')
if known.err then redis.call('DEL', job) end
local state, lease, enqueued_at, postponed = known[1], known[2], known[3], known[4]
local is_finished = state == 'completed' or state == 'failed'

if not state or (is_finished and revive == '1') then
  -- HSET comes first: in a full Redis it is refused before anything has changed.
  redis.call('HSET', job, 'data', data, 'state', 'waiting', 'attempt', 0, 'stalls', 0, 'enqueuedAt', now_ms(offset),
    'requestId', request_id, 'trace', trace, 'group', group, 'error', '')
  redis.call('ZREM', completed, id)
  redis.call('ZREM', failed, id)
  redis.call('HDEL', job, 'finishedAt', 'lease', 'postponed', 'readyAt')
  put_waiting('LPUSH', id, group)
  wake_one()
  return 'ok'
end

if is_finished then return 'exists' end
group = redis.call('HGET', job, 'group') or ''
local list = list_of(group)
local is_there = true
if state == 'active' then
  is_there = redis.call('ZSCORE', leases, lease or '')
elseif state == 'delayed' then
  is_there = redis.call('ZSCORE', delayed, id)
elseif (tonumber(postponed) or 0) > POSTPONED_OFTEN then
  is_there = redis.call('LPOS', list, id)
else
  is_there = redis.call('LPOS', list, id, 'RANK', -1, 'MAXLEN', LOOK_AT_MOST)
  if not is_there and redis.call('LLEN', list) > LOOK_AT_MOST then
    -- The front is the oldest, so whoever is older than that is missing. A wrong guess only makes an id stand there twice, and an id
    -- whose job no longer waits is passed over.
    local oldest = tonumber(redis.call('HGET', job_key(redis.call('LINDEX', list, -1)), 'enqueuedAt')) or 0
    is_there = (tonumber(enqueued_at) or 0) >= oldest
  end
end
if is_there and group ~= '' and state == 'waiting' and not redis.call('LPOS', groups, group) then
  redis.call('LPUSH', groups, group)
end
if is_there then return 'exists' end
if state == 'active' then redis.call('HINCRBY', job, 'attempt', -1) end
redis.call('HSET', job, 'state', 'waiting')
put_waiting('RPUSH', id, group)
wake_one()
return 'restored'

-- A new job -> the back of waiting. Repeating it with the same id changes nothing.
-- Called by JobQueue.enqueue.
-- KEYS: waiting, wake, completed, failed, job hash
-- ARGV: clock offset (ms), job id, data (JSON), request id, trace context, revive (1: a finished job starts over)
-- Returns: 'ok' or 'exists'
local waiting, wake, completed, failed, job = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local offset, id, data, request_id, trace, revive = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local state = redis.call('HGET', job, 'state')
local is_finished = state == 'completed' or state == 'failed'
if state and not (is_finished and revive == '1') then
  return 'exists'
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + offset

-- HSET comes first: in a full Redis it is refused before anything has changed.
redis.call('HSET', job, 'data', data, 'state', 'waiting', 'attempt', 0, 'stalls', 0, 'enqueuedAt', now,
  'requestId', request_id, 'trace', trace, 'error', '')
if is_finished then
  redis.call('ZREM', completed, id)
  redis.call('ZREM', failed, id)
  redis.call('HDEL', job, 'finishedAt')
end
redis.call('LPUSH', waiting, id)
if redis.call('LLEN', wake) == 0 then
  redis.call('LPUSH', wake, 1)
end
return 'ok'

-- Reads dead letters, newest first; nothing moves.
-- Called by JobQueue.failed_jobs and JobQueue.failed_job.
-- KEYS: those of place.lua, failed
-- ARGV: at most so many; failed at (ms) and id of the last one seen. Both '' for the first page, failed at '' for the job of that id itself
-- Returns: {how many follow, {id, failed at (ms), record, state}...}, '' for a text that is missing
local failed = KEYS[6]
local limit, at, id = tonumber(ARGV[1]), ARGV[2], ARGV[3]

local start = 0
if at ~= '' then
  -- That dead letter may be gone by now. Dead letters of one millisecond are in the order of their ids.
  start = redis.call('ZCOUNT', failed, '(' .. at, '+inf')
  local stop = start + redis.call('ZCOUNT', failed, at, at)
  while start < stop do
    local middle = math.floor((start + stop) / 2)
    if redis.call('ZRANGE', failed, middle, middle, 'REV')[1] >= id then start = middle + 1 else stop = middle end
  end
elseif id ~= '' then
  start = redis.call('ZREVRANK', failed, id)
  if not start then return {0} end
end

local page = redis.call('ZRANGE', failed, start, start + limit - 1, 'REV', 'WITHSCORES')
local reply = {redis.call('ZCARD', failed) - start - #page / 2}
for i = 1, #page, 2 do
  local texts = redis.call('MGET', record_key(page[i]), state_key(page[i]))
  reply[#reply + 1] = {page[i], page[i + 1], texts[1] or '', texts[2] or ''}
end
return reply

-- Stops (1) or resumes (0) claiming on every process; jobs stay where they are.
-- Called by JobQueue.pause and JobQueue.resume.
-- KEYS: paused, wake, owner
-- ARGV: 1 or 0
-- Returns: 'ok'
local paused, wake, owner = KEYS[1], KEYS[2], KEYS[3]

-- A full Redis refuses a script whose first write needs memory; this write needs none, and the writes after it are allowed.
redis.call('PERSIST', owner)
local id = string.match(redis.call('GET', owner) or '', '^%S+')
if ARGV[1] == '1' then
  redis.call('SET', paused, 1)
  if id then redis.call('SET', owner, id .. ' paused') end
else
  redis.call('DEL', paused)
  if id then redis.call('SET', owner, id) end
  if redis.call('LLEN', wake) == 0 then redis.call('LPUSH', wake, 1) end
end
return 'ok'

-- Stops (1) or resumes (0) claiming on every process; jobs stay where they are.
-- Called by JobQueue.pause and JobQueue.resume.
-- KEYS: paused, wake
-- ARGV: 1 or 0
local paused, wake = KEYS[1], KEYS[2]

if ARGV[1] == '1' then
  redis.call('SET', paused, 1)
else
  redis.call('DEL', paused)
  if redis.call('LLEN', wake) == 0 then redis.call('LPUSH', wake, 1) end
end
return 'ok'

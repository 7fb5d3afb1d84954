-- Where waiting jobs stand. Not a script of its own: it goes before each script that moves jobs to or from waiting, whose
-- first five KEYS it names.
-- KEYS: waiting, groups, grouped, wake, prefix of the queue's keys
-- A job without a group stands in `waiting`. The others stand in one list per group, and `groups` is the ring of the groups that
-- have one: each claim takes the oldest job of the front group and sends the group to the back, so that groups take turns and a
-- move costs the same however many there are. `grouped` counts their jobs. The right end is the front.
local waiting, groups, grouped, wake, prefix = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]

local function job_key(id)
  return prefix .. 'job:' .. id
end

local function list_of(group)
  return group == '' and waiting or prefix .. 'group:' .. group
end

local function now_ms(offset)
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000) + offset
end

-- push: RPUSH (to the front: it was submitted before whatever waits) or LPUSH (to the back)
local function put_waiting(push, id, group)
  local length = redis.call(push, list_of(group), id)
  if group ~= '' then
    redis.call('INCR', grouped)
    if length == 1 then redis.call(push, groups, group) end
  end
end

local function take_waiting(count)
  local ids = redis.call('RPOP', waiting, count) or {}
  while #ids < count do
    local group = redis.call('RPOP', groups)
    if not group then break end
    local id = redis.call('RPOP', list_of(group))
    if id then
      ids[#ids + 1] = id
      redis.call('DECR', grouped)
      if redis.call('EXISTS', list_of(group)) == 1 then redis.call('LPUSH', groups, group) end
    end
  end
  return ids
end

local function count_waiting()
  return redis.call('LLEN', waiting) + (tonumber(redis.call('GET', grouped)) or 0)
end

-- At most one marker, so that idle workers are woken one by one; pcall, because a full Redis must not stop what goes before.
local function wake_one()
  if redis.call('LLEN', wake) == 0 then redis.pcall('LPUSH', wake, 1) end
end

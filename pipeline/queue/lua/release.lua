-- active -> the front of waiting, for jobs claimed by this worker in a step whose reply never arrived; the attempt is given back.
-- Called by JobQueue.release_unknown.
-- KEYS: those of place.lua, leases
-- ARGV: worker id, leases that the worker knows...
-- Returns: how many were put back
local leases = KEYS[6]
local worker = ARGV[1]

local known = {}
for i = 2, #ARGV do known[ARGV[i]] = true end
local put_back = 0
-- One lease per busy slot of all processes, so reading them all is cheap; backwards, so that the oldest gets to the front.
local all = redis.call('ZRANGE', leases, 0, -1, 'REV')
for _, lease in ipairs(all) do
  local id, owner = string.match(lease, '^(.*)|([^:]*):')
  if owner == worker and not known[lease] then
    redis.call('ZREM', leases, lease)
    local state = read_state(id)
    state.state, state.lease, state.attempt = 'waiting', nil, math.max(0, (tonumber(state.attempt) or 0) - 1)
    write_state(id, state)
    put_waiting('RPUSH', id, group_of(id))
    put_back = put_back + 1
  end
end
return put_back

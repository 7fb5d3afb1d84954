-- active -> completed, delayed, parked, failed or waiting for every job that finished; then due delayed -> waiting -> active for every
-- free slot, unless the queue is paused.
-- Called by JobQueue.step.
-- KEYS: those of place.lua, delayed, leases, completed, failed, paused, holds, parked
-- ARGV: clock offset (ms), lease length (ms), claim mark (worker:number, new for each step), free slots, longest delay (ms), longest
--   age of a parked job (ms), lanes ({name: [provider...]} as JSON), findings (JSON, see lanes.lua), lanes that this worker leaves to
--   others (JSON); number of completed jobs, and the lease of each; then for each that ended otherwise: lease, outcome (retry|parked|failed|released), delay (ms), gives back (1: the
--   attempt does not count), group, error
-- Returns: {leases that were lost, claimed, more are waiting (1|0), ms until the next job is due or -1, paused (1|0), held providers (JSON)
--   or '', now (ms)}
--   claimed: {id, record, attempt, stalls, lease, error, provider that it alone tries or ''} each
-- A lease is the member 'job id|claim mark' of the leases set: who can name it owns the job, and a repeated finish finds it gone.
-- What concerns several jobs is done by one command for all of them: commands are what a step costs.
local delayed, leases, completed, failed, paused, holds, parked = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local offset, lease_ms, mark, free, longest_delay, longest_age = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local completions, FIRST, PROMOTE_AT_MOST, LOOK_AT_MOST, OFTEN = tonumber(ARGV[10]), 11, 100, 1000, 3
local now = now_ms(offset)

local kept = redis.call('MGET', holds, paused)
local book, is_paused = read_holds(kept[1]), kept[2] and 1 or 0
local providers = book.providers
if kept[1] or ARGV[8] ~= '[]' then note_findings(providers, decode(ARGV[8]), now, longest_delay) end

-- From when on a parked job is claimed in any case, to be given up.
local function old_at(member)
  return tonumber(string.match(member, '|(%d+)|[^|]*$')) + longest_age
end
local function is_old(member)
  return old_at(member) <= now
end
local to_park = {}
local function park(id, record)
  book.parked[lane_of(record)] = 1
  to_park[#to_park + 1], to_park[#to_park + 2] = 0, parked_member(id, record)
end

local lost, given_up, ours, places = {}, {}, {}, {}
local at = FIRST
while ARGV[at] do
  ours[#ours + 1], places[#places + 1] = ARGV[at], at
  at = at + (#ours <= completions and 1 or 6)
end
local scores = #ours > 0 and redis.call('ZMSCORE', leases, unpack(ours)) or {}
for i, lease in ipairs(ours) do
  local list = scores[i] and given_up or lost
  list[#list + 1] = lease
end
-- A full Redis refuses no ZREM, and nothing that follows it.
if #given_up > 0 then redis.call('ZREM', leases, unpack(given_up)) end
local done, gone = {}, {}
for i, lease in ipairs(ours) do
  local id = string.match(lease, '^(.*)|')
  if scores[i] and i <= completions then
    done[#done + 1], done[#done + 2] = now, id
    gone[#gone + 1], gone[#gone + 2] = record_key(id), state_key(id)
  elseif scores[i] then
    local outcome, delay, gives_back, group, err = unpack(ARGV, places[i] + 1, places[i] + 5)
    local state = read_state(id)
    state.lease, state.error = nil, err ~= '' and err or state.error
    if gives_back == '1' then state.attempt = math.max(0, (tonumber(state.attempt) or 0) - 1) end
    if outcome == 'failed' then
      redis.call('ZADD', failed, now, id)
      state.state = 'failed'
    elseif outcome == 'retry' then
      local postponed = tonumber(state.postponed) or 0
      -- What is away for long is asked less and less often.
      if gives_back == '1' then delay, state.postponed = delay * 2 ^ math.min(postponed, OFTEN), postponed + 1 end
      redis.call('ZADD', delayed, now + math.min(delay, longest_delay), id)
      state.state = 'delayed'
    elseif outcome == 'parked' then
      park(id, redis.call('MGET', record_key(id))[1])
      state.state, state.readyAt = 'waiting', now
    else
      put_waiting('RPUSH', id, group)
      state.state, state.readyAt = 'waiting', now
    end
    write_state(id, state)
  end
end
if #done > 0 then
  redis.call('ZADD', completed, unpack(done))
  redis.call('DEL', unpack(gone))
end

-- Whatever becomes ready goes behind what is ready already, the earliest due first.
local function promote(id)
  local state = read_state(id)
  state.state, state.readyAt = 'waiting', now
  write_state(id, state)
  put_waiting('LPUSH', id, group_of(id))
end
local function first_due()
  return tonumber(redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2])
end
local next_due = first_due()
if next_due and next_due <= now then
  local due = redis.call('ZRANGE', delayed, '-inf', now, 'BYSCORE', 'LIMIT', 0, PROMOTE_AT_MOST)
  redis.call('ZREM', delayed, unpack(due))
  for _, id in ipairs(due) do promote(id) end
  next_due = first_due()
end

local claims = is_paused == 1 and 0 or free
local claimed, states, taken, seen, looked = {}, {}, {}, {}, 0
local function claim(id, record, state, to_try)
  seen[id] = true
  local lease, attempt, stalls = id .. '|' .. mark, (tonumber(state.attempt) or 0) + 1, tonumber(state.stalls) or 0
  state.state, state.lease, state.attempt, state.stalls, state.readyAt = 'active', lease, attempt, stalls, nil
  states[#states + 1], states[#states + 2] = state_key(id), cjson.encode(state)
  taken[#taken + 1], taken[#taken + 2] = now + lease_ms, lease
  if to_try then providers[to_try]['until'] = now + providers[to_try].wait end
  claimed[#claimed + 1] = {id, record, attempt, stalls, lease, type(state.error) == 'string' and state.error or '', to_try or ''}
end

-- Claims the job, parks it while its lane is closed, or leaves it to other workers. `lanes` is nil while nobody is held or parked.
local lanes = (next(providers) or next(book.parked) or ARGV[9] ~= '[]') and decode(ARGV[7])
local function lane_state(lane)
  return look_at(lanes[lane] or lanes[''], providers, now)
end
local avoided, left = {}, {}
for _, lane in ipairs(decode(ARGV[9])) do avoided[lane] = true end
local function is_avoided(lane)
  return avoided[lanes[lane] and lane or '']
end
local function consider(id, record, state)
  if not lanes then return claim(id, record, state) end
  local lane = lane_of(record)
  local is_open, to_try = lane_state(lane)
  -- It is the oldest of a lane that tries a provider.
  if not is_open and (not to_try or book.parked[lane]) then return park(id, record) end
  if is_avoided(lane) and not to_try then left[#left + 1] = id return end
  claim(id, record, state, to_try)
end
local function consider_all(ids, choose)
  local keys = {}
  for i, id in ipairs(ids) do keys[2 * i - 1], keys[2 * i] = record_key(id), state_key(id) end
  local found = #ids > 0 and redis.call('MGET', unpack(keys)) or {}
  for i, id in ipairs(ids) do
    local record, state = found[2 * i - 1], decode(found[2 * i])
    -- An id may stand in a list twice, or without its job.
    if record and (state.state or 'waiting') == 'waiting' and not seen[id] then choose(id, record, state) end
  end
end

local function put_parked()
  if #to_park > 0 then redis.call('ZADD', parked, unpack(to_park)) end
  to_park = {}
end
put_parked()
-- Parked jobs come first, or the others could keep all slots from them.
for lane in pairs(book.parked) do
  local is_open, to_try = lane_state(lane)
  local members = first_parked(parked, lane, is_open and PROMOTE_AT_MOST or claims - #claimed)
  local ids, taken_out = {}, {}
  for _, member in ipairs(members) do
    if not is_open and not to_try and not is_old(member) then break end
    ids[#ids + 1], taken_out[#taken_out + 1] = string.match(member, '[^|]*$'), member
    to_try = nil
  end
  if #ids > 0 then redis.call('ZREM', parked, unpack(taken_out)) end
  if is_open then
    for _, id in ipairs(ids) do promote(id) end
  else
    consider_all(ids, function(id, record, state)
      local _, single = lane_state(lane)
      claim(id, record, state, single)
    end)
  end
end

local looked, is_empty = 0, false
while #claimed < claims and looked < LOOK_AT_MOST and not is_empty and #left == 0 do
  local wanted = claims - #claimed
  local ids = take_waiting(wanted)
  looked, is_empty = looked + wanted, #ids < wanted
  consider_all(ids, consider)
  if not lanes then break end
end
put_parked()
for i = #left, 1, -1 do put_waiting('RPUSH', left[i], group_of(left[i])) end
if #claimed > 0 then
  redis.call('MSET', unpack(states))
  redis.call('ZADD', leases, unpack(taken))
end
for lane in pairs(book.parked) do
  local member = first_parked(parked, lane, 1)[1]
  local is_open, _, opens_at = lane_state(lane)
  if not member then
    book.parked[lane] = nil
  elseif #claimed < claims then  -- else there is no use in coming back before a slot is free
    local due = is_open and now or math.min(opens_at or now, old_at(member))
    next_due = math.min(next_due or due, due)
  end
end

local is_held = next(providers) ~= nil
if is_held or next(book.parked) then
  local text = cjson.encode(book)
  if text ~= kept[1] then redis.pcall('SET', holds, text) end
elseif kept[1] then
  redis.call('DEL', holds)
end
-- Who got fewer than it asked for has emptied the lists.
local more = not is_empty and #left == 0 and redis.call('EXISTS', waiting, groups) > 0
if more and is_paused == 0 then wake_one() end
return {lost, claimed, more and 1 or 0, next_due and math.max(0, next_due - now) or -1, is_paused, is_held and cjson.encode(providers) or '', now}

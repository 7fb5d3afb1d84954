-- Which waiting jobs are not claimed now, because all providers that they could ask are held. Not a script of its own: step.lua calls it.
-- A job belongs to a lane, which its record names; a lane has providers, any of which will do. While a provider is
-- held, no process asks it. While all providers of a lane are held, the lane is closed and its jobs are parked: they keep their order,
-- cost nothing, and the jobs of other lanes pass them. An unknown lane counts as the lane ''.
-- A provider with limits that has no call free for now (reservations.lua) closes lanes as a held one does. A lane with a provider that has
-- limits is paced: a job claimed from it gets its reservation with the claim, and its parked jobs go before its waiting ones.
-- `holds` is one JSON string: {providers: {name: {until, wait, tries, reason, cause}}, parked: {lane: 1}, turns: see
-- reservations.lua}. It is missing while nothing is held, parked or booked.
--   until: when the hold ends (ms) or, where `wait` is not 0, when a single job may try the provider: it could not be asked, and each such
--     job moves `until` on by `wait` (ms) until one has an answer
--   tries: how many jobs did
-- `parked` is a sorted set of 'lane|submittedAt|job id', by name.
-- Each time a provider is tried it is by the next job of the line, in each lane in rotation: if one job is to blame, it must
-- not be the only one that tries.
local FIRST_WAIT_MS = 1000

-- All parked jobs of a lane as a range of names; '}' is the character after '|'.
local function range_of(lane)
  return '[' .. lane .. '|', '(' .. lane .. '}'
end

-- At most `count` parked jobs of a lane, in order of submission: {member, ...}. skipped: how many come before them.
local function parked_jobs(parked, lane, count, skipped)
  local first, last = range_of(lane)
  return redis.call('ZRANGEBYLEX', parked, first, last, 'LIMIT', skipped or 0, count)
end

-- Changes the holds by one report: {provider, state (away|tried|busy|answered), ms, reason, cause}, see ProviderReport in
-- pipeline/hold.py.
local function take_report(providers, report, now, longest)
  local name, state, ms, reason, cause = unpack(report)
  local hold = providers[name]
  local until_ms, wait
  if state == 'busy' then
    until_ms, wait = math.max(hold and hold.wait == 0 and hold['until'] or 0, now + math.min(ms, longest)), 0
  elseif state == 'answered' then
    if hold and hold.wait > 0 then providers[name] = nil end
  elseif not hold then
    until_ms, wait = now + FIRST_WAIT_MS, FIRST_WAIT_MS
  elseif state == 'tried' and hold.wait > 0 then
    wait = math.min(2 * hold.wait, ms)
    until_ms = now + wait
  end
  if not wait then return end
  providers[name] = {['until'] = until_ms, wait = wait, tries = hold and hold.tries or 0, reason = reason, cause = cause}
end

-- The holds and the parked jobs during one step. text: the value of `holds`. lanes, avoided, limits: see step.lua, as JSON.
local function new_book(text, parked, lanes, avoided, limits, leases, now, longest_age)
  local stored = text and decode(text) or {}
  local providers = type(stored.providers) == 'table' and stored.providers or {}
  local parked_lanes = type(stored.parked) == 'table' and stored.parked or {}
  local self, chains, avoids, left, to_park = {}, decode(lanes), {}, {}, {}
  local reservations = new_reservations(stored.turns, limits, leases, now)
  for _, lane in ipairs(decode(avoided)) do avoids[lane] = true end

  function self.note(reports, longest)
    for name, hold in pairs(providers) do
      -- A clock that was set back must not make a hold last for hours.
      if hold['until'] > now + longest then hold['until'] = now + longest end
      if hold['until'] <= now and hold.wait == 0 then providers[name] = nil end
    end
    for _, report in ipairs(reports) do take_report(providers, report, now, longest) end
  end

  local function is_avoided(lane)
    return avoids[chains[lane] and lane or '']
  end

  -- lane: its name, or a member of `parked`, which begins with it.
  local function is_behind(lane)
    return string.sub(lane, 1, 1) == BACKGROUND
  end

  local function chain_of(lane)
    return chains[lane] or chains[''] or {}
  end

  local function is_paced(lane)
    for _, name in ipairs(chain_of(lane)) do
      if reservations.is_limited(name) then return true end
    end
    return false
  end

  -- Returns whether jobs of a lane may be claimed, which provider a single job may try, when that changes (ms) for a closed lane, and
  -- for an open one the provider at which a claimed job gets a reserved call, or nil.
  local function look_at(lane)
    local behind = reservations.opens_behind(lane)
    if behind then return false, nil, behind end
    local to_try, opens_at
    for _, name in ipairs(chain_of(lane)) do
      local hold, booked = providers[name], reservations.opens_at(name)
      if not hold and not booked then return true, to_try, nil, reservations.is_limited(name) and name or nil end
      if hold and hold['until'] <= now then to_try = to_try or name end
      local at = math.max(hold and hold['until'] or 0, booked or 0)
      opens_at = math.min(opens_at or at, at)
    end
    return opens_at == nil, to_try, opens_at
  end

  local function take(claims, id, record, state, to_try, reserve_at)
    local hold = providers[to_try]
    if hold then hold['until'], hold.tries = now + hold.wait, hold.tries + 1 end
    claims.take(id, record, state, to_try, reservations, reserve_at)
  end

  -- The instant from which a parked job is claimed in any case, to be given up. A job in the background waits without a limit.
  local function old_at(member)
    if is_behind(member) then return now + longest_age end
    return tonumber(string.match(member, '|(%d+)|[^|]*$')) + longest_age
  end

  local function park(lane, member)
    parked_lanes[lane] = 1
    to_park[#to_park + 1], to_park[#to_park + 2] = 0, member
  end

  -- Parks the job and returns true, false when its lane is open.
  function self.park_if_closed(id, record)
    local lane, member = place_in_lane(id, record)
    if look_at(lane) then return false end
    park(lane, member)
    return true
  end

  local function write_parked()
    if #to_park > 0 then redis.call('ZADD', parked, unpack(to_park)) end
    to_park = {}
  end

  -- Claims a waiting job, parks it while its lane is closed, or leaves it to other workers.
  function self.choose(claims, id, record, state)
    local lane, member = place_in_lane(id, record)
    local is_open, to_try, _, reserve_at = look_at(lane)
    if is_open and reserve_at and parked_lanes[lane] then return park(lane, member) end
    -- Only the oldest job of a lane tries a provider.
    if not is_open and (not to_try or parked_lanes[lane] or is_avoided(lane)) then return park(lane, member) end
    if is_avoided(lane) then
      left[#left + 1] = id
    else
      take(claims, id, record, state, to_try, reserve_at)
    end
  end

  -- The parked job of open paced lanes that was submitted first: its lane and member, or nil. behind: true: of lanes in the background,
  -- false: of the others.
  local function next_in_order(behind)
    local first_lane, first, submitted_at
    for lane in pairs(parked_lanes) do
      if is_behind(lane) == behind and is_paced(lane) and not is_avoided(lane) and look_at(lane) then
        local member = parked_jobs(parked, lane, 1)[1]
        if not member then
          parked_lanes[lane] = nil
        elseif not first or string.match(member, '|(%d+|[^|]*)$') < submitted_at then
          first_lane, first, submitted_at = lane, member, string.match(member, '|(%d+|[^|]*)$')
        end
      end
    end
    return first_lane, first
  end

  -- A job that was put back to the front was submitted before those of its lane that are parked, and is to be claimed before them.
  local function park_front(at_most)
    for _ = 1, next(parked_lanes) and at_most or 0 do
      local id = redis.call('LINDEX', waiting, -1)
      local record = id and redis.call('MGET', record_key(id))[1]
      local lane, member = place_in_lane(id or '', record)
      if not record or not parked_lanes[lane] or not is_paced(lane) then return end
      redis.call('RPOP', waiting)
      if (read_state(id).state or 'waiting') == 'waiting' then park(lane, member) end
    end
  end

  -- parked -> active for paced lanes, one by one in order of submission while calls are free.
  local function claim_in_order(claims, behind, reserved)
    local lane, member = next_in_order(behind)
    while member and claims.free() > reserved do
      redis.call('ZREM', parked, member)
      claims.consider({string.match(member, '[^|]*$')}, function(id, record, state)
        local _, to_try, _, reserve_at = look_at(lane)
        take(claims, id, record, state, to_try, reserve_at)
      end)
      lane, member = next_in_order(behind)
    end
  end

  -- As claim_parked, for paced lanes in the background. reserved: so many slots are left free.
  function self.claim_parked_behind(claims, reserved)
    write_parked()
    claim_in_order(claims, true, reserved)
  end

  -- The lanes with parked jobs, {name, ...}, each time beginning with another lane, and how many tries there have been.
  local function rotated_lanes()
    local names, rotated, tries = {}, {}, 0
    for lane in pairs(parked_lanes) do names[#names + 1] = lane end
    for _, hold in pairs(providers) do tries = tries + hold.tries end
    table.sort(names)
    for i = 1, #names do rotated[i] = names[(tries + i - 1) % #names + 1] end
    return rotated, tries
  end

  -- The job of a lane that tries a provider. The job that found it away was in front, so the second job is the first to try.
  local function next_to_try(lane, tries)
    local count = redis.call('ZLEXCOUNT', parked, range_of(lane))
    return count > 0 and parked_jobs(parked, lane, 1, (tries + 1) % count)[1] or nil
  end

  -- parked -> waiting for open lanes; parked -> active for a job that tries a provider, and for jobs that are too old.
  function self.claim_parked(claims, promote_at_most)
    park_front(promote_at_most)
    write_parked()
    claim_in_order(claims, false, 0)
    local names, tries = rotated_lanes()
    for _, lane in ipairs(names) do
      local is_open, to_try = look_at(lane)
      local members = {}
      if is_open then
        members = is_paced(lane) and {} or parked_jobs(parked, lane, promote_at_most)
      elseif claims.free() > 0 then
        for _, member in ipairs(parked_jobs(parked, lane, claims.free())) do
          if old_at(member) <= now then members[#members + 1] = member end
        end
        if #members == 0 and to_try and not is_avoided(lane) then
          members[1] = next_to_try(lane, math.floor(tries / #names))
        end
      end
      local ids = {}
      for i, member in ipairs(members) do ids[i] = string.match(member, '[^|]*$') end
      if #ids > 0 then redis.call('ZREM', parked, unpack(members)) end
      if is_open then
        promote(ids, now)
      else
        claims.consider(ids, function(id, record, state)
          local _, provider = look_at(lane)
          take(claims, id, record, state, provider)
        end)
      end
    end
  end

  function self.has_left_any()
    return #left > 0
  end

  -- Puts back the jobs that were looked at and not claimed.
  function self.put_back()
    write_parked()
    for i = #left, 1, -1 do put_waiting('RPUSH', left[i], group_of(left[i])) end
  end

  -- The earlier of `due` and the instant when a parked job may be claimed (ms); removes lanes without parked jobs.
  -- claims_behind: there is a free slot for jobs in the background; otherwise the end of another job makes one free.
  function self.next_due(due, claims_behind)
    for lane in pairs(parked_lanes) do
      local member = parked_jobs(parked, lane, 1)[1]
      if member then
        local is_open, _, opens_at = look_at(lane)
        -- The worker itself knows when it will retry a provider that it alone could not reach.
        local at = is_avoided(lane) and old_at(member) or is_open and now or math.min(opens_at, old_at(member))
        if claims_behind or not (is_open and is_behind(lane) and is_paced(lane)) then due = math.min(due or at, at) end
      else
        parked_lanes[lane] = nil
      end
    end
    return due
  end

  -- Writes the changes; returns the held providers as JSON, '' when there are none.
  function self.save(holds, before)
    local is_held, booked = next(providers) ~= nil, reservations.needed()
    if is_held or next(parked_lanes) or next(booked) then
      local after = cjson.encode({providers = providers, parked = parked_lanes, turns = next(booked) and booked or nil})
      if after ~= before then redis.pcall('SET', holds, after) end
    elseif before then
      redis.call('DEL', holds)
    end
    return is_held and cjson.encode(providers) or ''
  end

  return self
end

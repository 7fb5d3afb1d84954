-- When providers with limits may be called. Not a script of its own: step.lua and pace.lua reserve calls, stats.lua and snapshot.lua
-- show which providers have no call free. A pace: the limits of one provider and its calls.
-- limits: {providers: {name: {every = between two calls (ms), 0: no limit; most = calls at once, 0: no limit}}, behind: {lane: [name...]}},
-- as JSON. behind: the providers that jobs of a lane ask after others have answered.
-- `holds` stores the paces as `turns`: {name: {next = when the next call may begin (ms), most, running = {lease: 1}, every, since}}, only
-- for providers with a call under way or reserved. every, since: the slowest pace of the last minute, and when a call was last reserved at it: processes
-- may differ, as when they are restarted one after another with another rate.
-- Each reserved call begins at an instant of its own, so that the calls of all processes are spread evenly.
-- A job gets its reservation so long before the call, so that it is ready by then.
local AHEAD_MS = 500
-- A lane whose jobs may ask a provider later on is closed while that provider is booked for longer.
local BEHIND_MS = 3000
-- No call is reserved longer before than this: pace.lua gives the earliest.
local LONGEST_AHEAD_MS = 10000
local LOOK_AGAIN_MS = 1000
local SLOWEST_FOR_MS = 60000
local NO_RESERVATION = 'Waiting for a turn at the AI service'

local function size_of(set)
  local count = 0
  for _ in pairs(set or {}) do count = count + 1 end
  return count
end

-- The held providers as JSON and, while jobs are parked, those that are booked out; '' when there are none.
local function shown_holds(stored, now)
  local shown = {}
  for name, pace in pairs(next(type(stored.parked) == 'table' and stored.parked or {}) and stored.turns or {}) do
    local is_full = pace.most > 0 and size_of(pace.running) >= pace.most
    local opens_at = pace['next'] > now + AHEAD_MS and pace['next'] or is_full and now + LOOK_AGAIN_MS
    if opens_at then
      shown[name] = {['until'] = opens_at, wait = 0, tries = 0, reason = NO_RESERVATION, cause = '', paced = 1}
    end
  end
  for name, hold in pairs(type(stored.providers) == 'table' and stored.providers or {}) do shown[name] = hold end
  return next(shown) and cjson.encode(shown) or ''
end

-- The reservations during one script. stored: those in `holds`. leases: see step.lua.
local function new_reservations(stored, limits, leases, now)
  local paces, known = type(stored) == 'table' and stored or {}, decode(limits)
  local of, behind, fresh, self = known.providers or {}, known.behind or {}, {}, {}
  for name, pace in pairs(paces) do
    -- A clock that was set back must not close a provider for hours.
    pace['next'] = math.min(pace['next'], now + LONGEST_AHEAD_MS + math.max(of[name] and of[name].every or 0, pace.every or 0))
  end

  -- Removes the calls of jobs that have ended, or whose process was lost.
  local function forget_ended(pace)
    local names = {}
    for lease in pairs(pace.running) do names[#names + 1] = lease end
    if #names == 0 then return end
    local scores = redis.call('ZMSCORE', leases, unpack(names))
    for i, lease in ipairs(names) do
      if not scores[i] and not fresh[lease] then pace.running[lease] = nil end
    end
  end

  local function is_full(name, lease)
    local limit, pace = of[name], paces[name]
    if limit.most == 0 or not pace or pace.running[lease or ''] or size_of(pace.running) < limit.most then return false end
    forget_ended(pace)
    return size_of(pace.running) >= limit.most
  end

  function self.is_limited(name)
    return of[name] ~= nil
  end

  -- Nil when a call of the provider may be reserved now, else when that may change (ms). ahead: how long before its instant (ms).
  function self.opens_at(name, ahead, lease)
    if not of[name] or not paces[name] then return nil end
    local first = paces[name]['next'] - (ahead or AHEAD_MS)
    return first > now and first or is_full(name, lease) and now + LOOK_AGAIN_MS or nil
  end

  -- When a lane opens that is closed because of a provider that its jobs ask later on, or nil.
  function self.opens_behind(lane)
    local opens_at
    for _, name in ipairs(behind[lane] or behind[''] or {}) do
      local at = paces[name] and paces[name]['next'] - BEHIND_MS or 0
      if at <= now then return nil end
      opens_at = math.min(opens_at or at, at)
    end
    return opens_at
  end

  -- Reserves the next call for the lease and returns when its call may begin (ms).
  function self.book(name, lease)
    local limit, pace = of[name], paces[name] or {['next'] = 0, running = {}}
    local at = math.max(now, pace['next'])
    pace.most = limit.most
    if limit.every >= (pace.every or 0) or math.abs(now - pace.since) > SLOWEST_FOR_MS then
      pace.every, pace.since = limit.every, now
    end
    if pace.every > 0 then pace['next'] = at + pace.every end
    if limit.most > 0 then pace.running[lease], fresh[lease] = 1, true end
    paces[name] = pace
    return at
  end

  -- Takes back a reservation that is not used, unless a later one was made.
  function self.give_back(name, at)
    local pace = paces[name]
    local every = pace and pace.every or 0
    -- `at` is only as exact as the clock of the process that had the reservation.
    if pace and every > 0 and math.abs(pace['next'] - at - every) < every / 2 then pace['next'] = at end
  end

  function self.end_call(name, lease)
    if paces[name] then paces[name].running[lease] = nil end
  end

  -- Returns the paces that are still needed.
  function self.needed()
    for name, pace in pairs(paces) do
      if pace['next'] <= now then
        forget_ended(pace)
        if not next(pace.running) then paces[name] = nil end
      end
    end
    return paces
  end

  return self
end

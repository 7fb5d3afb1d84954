-- Which waiting jobs are not claimed now, because no provider that they could ask is asked. Not a script of its own: it goes between
-- place.lua and step.lua.
-- A job belongs to a lane, which its record names; a lane has providers, any of which will do. A hold keeps everybody from asking one
-- provider. While all providers of a lane are held, its jobs are parked: they keep their order, cost nothing, and the jobs of other
-- lanes pass them. A lane that is not known is that of the name ''.
-- `holds` is one JSON string: {providers: {name: {until, wait, reason, cause}}, parked: {lane: 1}}. It is missing while nothing is held or
-- parked. until: when the hold ends (ms) or, where `wait` is not 0, when a single job may try the provider: it could not be asked, and
-- each such job moves `until` on by `wait` until one has an answer. `parked` is a sorted set of 'lane|submittedAt|job id', by name.
local DIGITS = '%013.0f'

local function read_holds(text)
  local book = decode(text)
  for _, part in ipairs({'providers', 'parked'}) do book[part] = type(book[part]) == 'table' and book[part] or {} end
  return book
end

local function lane_of(record)
  local lane = decode(record).lane
  return type(lane) == 'string' and lane or ''
end

local function parked_member(id, record)
  local known = decode(record)
  local submitted_at = tonumber(known.submittedAt) or tonumber(known.enqueuedAt) or 0
  return lane_of(record) .. '|' .. string.format(DIGITS, submitted_at) .. '|' .. id
end

-- The first parked jobs of a lane, in order of submission: {member, ...}
local function first_parked(parked, lane, count)
  -- '}' is the character after '|'.
  return redis.call('ZRANGEBYLEX', parked, '[' .. lane .. '|', '(' .. lane .. '}', 'LIMIT', 0, count)
end

-- changes: {name, ms that the hold lasts from now or 0 for its end, wait (ms), reason, cause}...
local function merge_holds(providers, changes, now, longest)
  for _, change in ipairs(changes) do
    local name, left, wait, reason, cause = unpack(change)
    local until_ms = providers[name] and providers[name]['until'] or 0
    until_ms = math.max(until_ms, now + left)
    providers[name] = left > 0 and {['until'] = until_ms, wait = wait, reason = reason, cause = cause} or nil
  end
  for name, hold in pairs(providers) do
    -- A clock that was set back must not make a hold last for hours.
    if hold['until'] > now + longest then hold['until'] = now + longest end
    if hold['until'] <= now and hold.wait == 0 then providers[name] = nil end
  end
end

-- Returns whether jobs of a lane may be claimed, else which provider a single one may try, else when that changes (ms)
local function look_at(chain, providers, now)
  local opens_at
  for _, name in ipairs(chain or {}) do
    local hold = providers[name]
    if not hold then return true end
    if hold['until'] <= now then return false, name end
    opens_at = math.min(opens_at or hold['until'], hold['until'])
  end
  return opens_at == nil, nil, opens_at
end

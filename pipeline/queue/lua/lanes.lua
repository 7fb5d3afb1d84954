-- Which waiting jobs are not claimed now, because no provider that they could ask is asked. Not a script of its own: it goes between
-- place.lua and those that need it.
-- A job belongs to a lane, which its record names; a lane has providers, any of which will do. A hold keeps everybody from asking one
-- provider. While all providers of a lane are held, its jobs are parked: they keep their order, cost nothing, and the jobs of other
-- lanes pass them. A lane that is not known is that of the name ''.
-- `holds` is one JSON string: {providers: {name: {until, wait, reason, cause}}, parked: {lane: 1}}. It is missing while nothing is held
-- or parked. until: when the hold ends (ms) or, where `wait` is not 0, when a single job may try the provider: it could not be asked, and
-- each such job moves `until` on by `wait` (ms) until one has an answer. `parked` is a sorted set of 'lane|submittedAt|job id', by name.
local FIRST_WAIT_MS = 1000

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
  return lane_of(record) .. '|' .. string.format('%013.0f', submitted_at) .. '|' .. id
end

-- The first parked jobs of a lane, in order of submission: {member, ...}
local function first_parked(parked, lane, count)
  -- '}' is the character after '|'.
  return redis.call('ZRANGEBYLEX', parked, '[' .. lane .. '|', '(' .. lane .. '}', 'LIMIT', 0, count)
end

-- findings: {provider, found (away|tried|busy|answered), ms, reason, cause}..., as pipeline/hold.py has them. longest: of any hold (ms)
local function note_findings(providers, findings, now, longest)
  for name, hold in pairs(providers) do
    -- A clock that was set back must not make a hold last for hours.
    if hold['until'] > now + longest then hold['until'] = now + longest end
    if hold['until'] <= now and hold.wait == 0 then providers[name] = nil end
  end
  for _, finding in ipairs(findings) do
    local name, found, ms, reason, cause = unpack(finding)
    local hold = providers[name]
    local until_ms, wait
    if found == 'busy' then
      until_ms, wait = math.max(hold and hold.wait == 0 and hold['until'] or 0, now + math.min(ms, longest)), 0
    elseif found == 'answered' then
      if hold and hold.wait > 0 then providers[name] = nil end
    elseif not hold then
      until_ms, wait = now + FIRST_WAIT_MS, FIRST_WAIT_MS
    elseif found == 'tried' and hold.wait > 0 then
      wait = math.min(2 * hold.wait, ms)
      until_ms = now + wait
    end
    if wait then providers[name] = {['until'] = until_ms, wait = wait, reason = reason, cause = cause} end
  end
end

-- Returns whether jobs of a lane may be claimed, which provider a single one may try, and else when that changes (ms)
local function look_at(chain, providers, now)
  local to_try, opens_at
  for _, name in ipairs(chain or {}) do
    local hold = providers[name]
    if not hold then return true, to_try end
    if hold['until'] <= now then to_try = to_try or name end
    opens_at = math.min(opens_at or hold['until'], hold['until'])
  end
  return opens_at == nil, to_try, opens_at
end

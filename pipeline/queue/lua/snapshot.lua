-- Reads where unfinished jobs are; nothing moves. Marks the queue as watched: workers then report the jobs that they run.
-- Called by JobQueue.snapshot.
-- KEYS: those of place.lua, delayed, leases, completed, failed, paused, holds, parked, owner, watched
-- ARGV: clock offset (ms), how long the mark lasts (ms), jobs of the line at most, jobs beside it at most, job ids that are asked for...
-- Returns: {mode (see owner.lua), ids of the line as one text, front first, parked jobs as one text (members, see lanes.lua), jobs beside
--   the line, held providers (JSON, see reservations.lua) or '', jobs that ended in the last minute, now (ms)}
--   jobs beside the line are those that run, those delayed and those asked for: {id, state (JSON) or '', report of the process that
--   runs it or '', due (ms) or '', its record is there (1|0), it is completed (1|0)} each
local delayed, leases, completed, failed = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local paused, holds, parked, owner, watched = KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local offset, mark_ms, line_at_most, others_at_most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local MINUTE_MS = 60000
local now = now_ms(offset)

-- pcall: a full Redis refuses it.
redis.pcall('SET', watched, 1, 'PX', mark_ms)

-- Adds the next jobs of each group, in rotation, and returns the groups that have more.
local function add_rounds(line, alive, from, rounds)
  local lists, left = {}, {}
  for i, group in ipairs(alive) do
    lists[i] = redis.call('LRANGE', list_of(group), -from - rounds, -from - 1)
    if #lists[i] == rounds then left[#left + 1] = group end
  end
  for round = 1, rounds do
    for _, ids in ipairs(lists) do
      if ids[#ids - round + 1] then line[#line + 1] = ids[#ids - round + 1] end
    end
  end
  return left
end

-- In the order in which take_waiting takes them.
local function read_line()
  local line, alive, from = {}, {}, 0
  local ungrouped = redis.call('LRANGE', waiting, -line_at_most, -1)
  for i = #ungrouped, 1, -1 do line[#line + 1] = ungrouped[i] end
  local ring = redis.call('LRANGE', groups, -line_at_most, -1)
  for i = #ring, 1, -1 do alive[#alive + 1] = ring[i] end
  while #line < line_at_most and #alive > 0 do
    local rounds = math.ceil((line_at_most - #line) / #alive)
    alive, from = add_rounds(line, alive, from, rounds), from + rounds
  end
  local behind = redis.call('LRANGE', list_of(BACKGROUND), -math.max(1, line_at_most - #line), -1)
  for i = #behind, 1, -1 do line[#line + 1] = behind[i] end
  return table.concat(line, '\n', 1, math.min(#line, line_at_most))
end

local ids = {}
for _, lease in ipairs(redis.call('ZRANGE', leases, 0, others_at_most - 1)) do
  ids[#ids + 1] = string.match(lease, '^(.*)|')
end
local due = redis.call('ZRANGE', delayed, 0, others_at_most - 1, 'WITHSCORES')
for i = 1, #due, 2 do ids[#ids + 1] = due[i] end
for i = 5, #ARGV do ids[#ids + 1] = ARGV[i] end
local others = {}
for first = 1, #ids, others_at_most do
  local part, keys = {unpack(ids, first, math.min(#ids, first + others_at_most - 1))}, {}
  for i, id in ipairs(part) do
    keys[3 * i - 2], keys[3 * i - 1], keys[3 * i] = record_key(id), state_key(id), prefix .. 'running:' .. id
  end
  local texts = redis.call('MGET', unpack(keys))
  local later = redis.call('ZMSCORE', postponed, unpack(part))
  local due_at, ended = redis.call('ZMSCORE', delayed, unpack(part)), redis.call('ZMSCORE', completed, unpack(part))
  for i, id in ipairs(part) do
    others[#others + 1] = {id, texts[3 * i - 1] or '', texts[3 * i] or '', due_at[i] or later[i] or '', texts[3 * i - 2] and 1 or 0, ended[i] and 1 or 0}
  end
end

local texts = redis.call('MGET', holds, paused, owner)
local held = shown_holds(decode(texts[1]), now)
local ended = redis.call('ZCOUNT', completed, now - MINUTE_MS, '+inf') + redis.call('ZCOUNT', failed, now - MINUTE_MS, '+inf')
return {mode_of('', texts[3], texts[2]), read_line(), table.concat(redis.call('ZRANGE', parked, 0, line_at_most - 1), '\n'), others, held, ended, now}

-- active -> completed, delayed, parked, failed or waiting for every job that finished; then due delayed -> waiting -> active for every
-- free slot, unless the queue is paused.
-- Called by JobQueue.step. Its parts: finish.lua, claims.lua, lanes.lua, reservations.lua, place.lua.
-- KEYS: those of place.lua, delayed, leases, completed, failed, paused, holds, parked, owner, watched
-- ARGV: clock offset (ms), store id or '' (see owner.lua), lease length (ms), claim mark (worker:number:lease length, new for each step),
--   free slots, longest delay (ms), longest age of a parked job (ms), lanes ({name: [provider...]} as JSON), reports (JSON, see
--   lanes.lua), lanes that this worker leaves to other workers (JSON), limits (JSON, see reservations.lua) or '{}', free slots that are
--   not for jobs in the background; number of completed jobs, and the lease of each; then six for each that ended otherwise, see finish.lua
-- Returns: {leases that were lost, claimed, more are waiting (1|0), ms until the next job is due or -1, mode (see owner.lua), held
--   providers (JSON) or '', now (ms), whether snapshots are being asked for (1|0)}
--   claimed: {id, record, attempt, stalls, lease, error, provider that it alone tries or '', provider of which it has reserved a call
--   or '', ms until that call, Redis knows of no earlier claim (1|0)} each
-- A lease is the member 'job id|claim mark' of the leases set: only the worker that claimed the job can name it, and a repeated finish
-- finds it gone.
local keys = {delayed = KEYS[6], leases = KEYS[7], completed = KEYS[8], failed = KEYS[9]}
local paused, holds, parked, owner, watched = KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local offset, store_id, lease_ms, mark, free, longest_delay, longest_age =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local lanes, reports, avoided, limits, reserved, completions =
  ARGV[8], ARGV[9], ARGV[10], ARGV[11], tonumber(ARGV[12]), tonumber(ARGV[13])
local FIRST, PROMOTE_AT_MOST, LOOK_AT_MOST = 14, 100, 1000
local now = now_ms(offset)

local texts = redis.call('MGET', holds, paused, owner, watched)
local mode = mode_of(store_id, texts[3], texts[2])
local is_running = mode == 'running'
-- nil while there are no holds, reports, avoided lanes and limits: then every lane is open.
local is_needed = texts[1] or reports ~= '[]' or avoided ~= '[]' or limits ~= '{}'
local book = is_needed and new_book(texts[1], parked, lanes, avoided, limits, keys.leases, now, longest_age)
if book then book.note(decode(reports), longest_delay) end

local done, others = {}, {}
for i = FIRST, FIRST + completions - 1 do done[#done + 1] = ARGV[i] end
for i = FIRST + completions, #ARGV, 6 do others[#others + 1] = {unpack(ARGV, i, i + 5)} end
local lost = finish_jobs(keys, now, longest_delay, done, others, book and book.park_if_closed)

local next_due = promote_due(keys.delayed, now, PROMOTE_AT_MOST)
local next_postponed = promote_due(postponed, now, PROMOTE_AT_MOST)
next_due = next_due and next_postponed and math.min(next_due, next_postponed) or next_due or next_postponed
local claims = new_claims(is_running and free or 0, mark, now, keys.leases, lease_ms)
-- Parked jobs come first, or other jobs could occupy all slots.
if book then book.claim_parked(claims, PROMOTE_AT_MOST) end
local choose = book and function(id, record, state) book.choose(claims, id, record, state) end or claims.take
local looked, is_empty, has_left_any = 0, false, false
while claims.free() > 0 and looked < LOOK_AT_MOST and not is_empty and not has_left_any do
  local wanted = claims.free()
  local ids = take_waiting(wanted)
  looked, is_empty = looked + wanted, #ids < wanted
  claims.consider(ids, choose)
  if not book then break end
  has_left_any = book.has_left_any()
end
-- Only when no other job is ready, and never for the last slots: the next other job finds a slot free.
local is_behind = is_empty and not has_left_any
if is_behind and book then book.claim_parked_behind(claims, reserved) end
while is_behind and claims.free() > reserved and looked < LOOK_AT_MOST do
  local wanted = claims.free() - reserved
  local ids = take_background(wanted)
  looked, is_behind = looked + wanted, #ids == wanted
  claims.consider(ids, choose)
  has_left_any = book and book.has_left_any() or false
  is_behind = is_behind and not has_left_any
end
claims.write()
local held = ''
if book then
  book.put_back()
  if claims.free() > 0 then next_due = book.next_due(next_due, claims.free() > reserved) end
  held = book.save(holds, texts[1])
end

-- A worker that got fewer jobs than it asked for has emptied the lists.
local more = not is_empty and not has_left_any and redis.call('EXISTS', waiting, groups) > 0
  or is_behind and claims.free() > reserved
if more and is_running then wake_one() end
return {lost, claims.list, more and 1 or 0, next_due and math.max(0, next_due - now) or -1, mode, held, now, texts[4] and 1 or 0}

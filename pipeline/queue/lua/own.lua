-- Claims the queue for a store, if no other store has it; no job moves.
-- Called by JobQueue.own.
-- KEYS: owner, paused, wake
-- ARGV: store id, 1 when the queue is to be paused if it has no owner, 1 to take it from another store
-- Returns: {mode before (see owner.lua), mode now, 1 when only a version that knows no owner has paused it}
local owner, paused, wake = KEYS[1], KEYS[2], KEYS[3]
local store_id, is_paused, takes_over = ARGV[1], ARGV[2] == '1', ARGV[3] == '1'

-- A full Redis refuses a script whose first write needs memory; this write needs none, and the writes after it are allowed.
redis.call('PERSIST', owner)
local texts = redis.call('MGET', owner, paused)
local before = mode_of(store_id, texts[1], texts[2])
if before == 'unowned' or before == 'foreign' and takes_over then
  redis.call('SET', owner, store_id .. (is_paused and ' paused' or ''))
  if is_paused then redis.call('SET', paused, 1) end
  if redis.call('LLEN', wake) == 0 then redis.pcall('LPUSH', wake, 1) end
  texts = redis.call('MGET', owner, paused)
end
local is_old = texts[2] and not string.find(texts[1] or '', ' paused', 1, true)
return {before, mode_of(store_id, texts[1], texts[2]), is_old and 1 or 0}

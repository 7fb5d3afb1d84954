-- The asset store that owns the queue. Not a script of its own: own.lua, pause.lua, step.lua, stats.lua and enqueue.lua use it.
-- `owner` is '<store id>' or '<store id> paused': the id of the asset store whose jobs these are. The pause is in the same key, so that
-- no wipe and no eviction can lose the pause and leave the queue running: without the key nothing is claimed until a process has asked
-- its store whether the queue is paused. `paused` says the same for versions that know no owner.
-- store_id: of the process that asks; '': any owner will do.
-- Returns 'running', 'paused', 'unowned' (no store has claimed it since a wipe) or 'foreign' (another store has).
local function mode_of(store_id, owner, paused)
  local id, mark = string.match(owner or '', '^(%S*) ?(.*)$')
  if store_id ~= '' then
    if id == '' then return 'unowned' end
    if id ~= store_id then return 'foreign' end
  end
  return (paused or mark == 'paused') and 'paused' or 'running'
end

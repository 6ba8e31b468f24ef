-- remove.lua: removes tasks, for delete and purge.

local highest = 0 -- version of the removed tasks

local function note_version(t) -- before the removal of another task changes it
  highest = math.max(highest, t[VERSION])
end

local function keep_highest() -- versions of new tasks begin above it
  if highest > tonumber(call("GET", root .. "deleted") or 0) then call("SET", root .. "deleted", highest) end
end

local function orphan(id) -- a deleted parent counts as cancelled for its children
  if not is_needed(id) then return end
  local waiting, needing = root .. "c:" .. id, root .. "u:" .. id
  call("SUNIONSTORE", waiting, waiting, needing)
  call("DEL", needing)
  call("HDEL", root .. "settle", id)
  settle(id, "deleted", 500)
end

local function remove(id, t)
  forget_parents(id)
  if not TERMINAL[t[STATUS]] then stop_needing_parents(id, t) end
  local _, _, _, key = fixed_of(t)
  if key ~= "" and call("HGET", root .. "k", key) == id then call("HDEL", root .. "k", key) end
  leave(id, t)
  set("open", id, false)
  call("SREM", root .. "kept", id)
  tasks[id] = false
  for _, hash in ipairs({"t", "b", "o"}) do call("HDEL", root .. hash, id) end
end

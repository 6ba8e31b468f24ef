-- remove.lua: tasks go, for delete and purge.

local highest = 0 -- version of those that go

local function note_version(t) -- of a task that is to go, before another one that goes changes it
  highest = math.max(highest, t[VERSION])
end

local function keep_highest() -- new tasks begin above it
  if highest > tonumber(call("GET", root .. "deleted") or 0) then call("SET", root .. "deleted", highest) end
end

local function orphan(id) -- it is deleted: for children that wait for anything it is as if cancelled
  if not is_needed(id) then return end
  local waiting, needing = root .. "c:" .. id, root .. "u:" .. id
  call("SUNIONSTORE", waiting, waiting, needing)
  call("DEL", needing)
  call("HDEL", root .. "settle", id)
  settle(id, "deleted", 500)
end

local function remove(id, t)
  wait_for_nobody(id)
  if not TERMINAL[t[STATUS]] then need_no_parent(id, t) end
  local _, _, _, key = fixed_of(t)
  if key ~= "" and call("HGET", root .. "k", key) == id then call("HDEL", root .. "k", key) end
  leave(id, t)
  set("open", id, false)
  call("SREM", root .. "kept", id)
  tasks[id] = false
  for _, hash in ipairs({"t", "b", "o"}) do call("HDEL", root .. hash, id) end
end

-- remove.lua: a task goes, for delete and purge.

local highest = 0 -- version of those that go

local function note_version(t) -- of a task that is to go, before another one that goes changes it
  highest = math.max(highest, t[VERSION])
end

local function keep_highest() -- new tasks begin above it
  if highest > tonumber(call("GET", root .. "deleted") or 0) then call("SET", root .. "deleted", highest) end
end

local function remove(id, t)
  settle(id, "cancelled", 500) -- for its waiting children it is as if cancelled
  wait_for_nobody(id)
  local _, _, _, key = fixed_of(t)
  if key ~= "" and call("HGET", root .. "k", key) == id then call("HDEL", root .. "k", key) end
  leave(id, t)
  set("open", id, false)
  tasks[id] = false
  for _, hash in ipairs({"t", "b", "o"}) do call("HDEL", root .. hash, id) end
end

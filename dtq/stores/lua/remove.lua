-- remove.lua: a task goes, for delete and purge.

local function remove(id, t)
  settle(id, "cancelled", 500) -- for its waiting children it is as if cancelled
  wait_for_nobody(id)
  if t.k ~= "" and call("HGET", root .. "k", t.k) == id then call("HDEL", root .. "k", t.k) end
  leave(id, t)
  set("open", id, false)
  tasks[id] = false
  call("UNLINK", root .. "t:" .. id, root .. "b:" .. id, root .. "o:" .. id)
end

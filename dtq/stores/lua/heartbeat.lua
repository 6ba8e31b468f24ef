-- heartbeat.lua: a node lives, and still has these tasks.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {node, its description (JSON), end of its lease or "" when it leaves, end of the tasks' lease, tasks}; a
--          task: {id, version, worker, progress, note}
-- reply    {the ids that it has lost, the server's time}

local node, description, until_, lease_until, held = unpack(input)
if until_ == "" then
  call("HDEL", root .. "nodes", node)
  call("ZREM", root .. "alive", node)
else
  call("HSET", root .. "nodes", node, description)
  call("ZADD", root .. "alive", until_, node)
end
local lost = {}
for _, task in ipairs(held) do
  local id, version, worker, progress, note = unpack(task)
  local key = root .. "t:" .. id
  local now = call("HMGET", key, "s", "v", "w")
  if now[1] == "processing" and tonumber(now[2]) == version and now[3] == worker then
    call("HSET", key, "lu", lease_until, "pr", progress, "no", note)
    set("lease", id, lease_until)
  else
    lost[#lost + 1] = id
  end
end
flush()
return cmsgpack.pack({lost, time()})

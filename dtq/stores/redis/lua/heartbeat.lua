-- heartbeat.lua: a node is alive and still has these tasks.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {node, its description (JSON), end of its lease or "" when it leaves, end of the tasks' lease, tasks}; a
--          task: {id, version, worker, its progress and note (the end of CLAIM)}
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
local ids = {}
for i, task in ipairs(held) do ids[i] = task[1] end
preload(ids)
for _, task in ipairs(held) do
  local id, version, worker, heard = unpack(task)
  local t = load(id)
  local holder, begin
  if t and t[STATUS] == "processing" and t[VERSION] == version then holder, begin = claim_of(t) end
  if holder == worker then
    t[CLAIM] = worker .. "\31" .. begin .. "\31" .. lease_until .. "\31" .. heard
    dirty[id] = true
    set("lease", id, lease_until)
  else
    lost[#lost + 1] = id
  end
end
flush()
return cmsgpack.pack({lost, time()})

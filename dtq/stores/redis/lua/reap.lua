-- reap.lua: takes over tasks whose lease has run out, and forgets nodes whose own has.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {worker, n, now, end of the new lease}
-- reply    the tasks as they are now (records of lib.lua)

local worker, n, now, lease_until = unpack(input)
local ids = {}
if n > 0 then ids = call("ZRANGEBYSCORE", root .. "lease", "-inf", now, "LIMIT", 0, n) end
preload(ids)
for _, id in ipairs(ids) do
  local t = load(id)
  local _, began, _, said = claim_of(t)
  t[VERSION] = t[VERSION] + 1
  t[CLAIM] = worker .. "\31" .. began .. "\31" .. lease_until .. "\31" .. said
  dirty[id] = true
  set("lease", id, lease_until)
end
flush()
for _, node in ipairs(call("ZRANGEBYSCORE", root .. "alive", "-inf", now)) do
  call("HDEL", root .. "nodes", node)
  call("ZREM", root .. "alive", node)
end
return records(ids)

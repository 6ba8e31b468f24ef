-- stats.lua: counters, the oldest waiting task, nodes and limits; the cost does not grow with the tasks.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  nothing
-- reply    {counters: "<queue> <type> <status>", how many, ...; the order of the first that is due, and, in lanes of
--          several priorities, of the first of each; the first due time to come, or ""; descriptions of the nodes;
--          selector, limit, ...}

local first = call("ZRANGE", root .. "due", 0, 0)[1]
local heads = {first and "0000" .. string.sub(first, 1, 16)}
for _, lane in ipairs(call("SMEMBERS", root .. "mixed")) do
  local from = "-"
  while from do -- once for each priority in the lane
    local head = call("ZRANGEBYLEX", root .. "r:" .. lane, from, "+", "LIMIT", 0, 1)[1]
    heads[#heads + 1] = head and string.sub(head, 1, 20)
    from = head and string.format("[%04d", tonumber(string.sub(head, 1, 4)) + 1)
  end
end
local later = call("ZRANGE", root .. "later", 0, 0, "WITHSCORES")
return cmsgpack.pack({call("HGETALL", root .. "n"), heads, later[2] or "", call("HVALS", root .. "nodes"),
                      call("HGETALL", root .. "limits")})

-- stats.lua: counters, the oldest waiting task, nodes and limits; the cost does not grow with the tasks.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  nothing
-- reply    {counters: "<lane> <status>", how many, ...; the order of the first of each priority that is due; the first
--          due time to come, or ""; descriptions of the nodes; selector, limit, ...}

local heads = {}
for _, lane in ipairs(call("ZRANGE", root .. "lanes", 0, -1)) do
  local from = "-"
  while from do -- once for each priority in the lane
    local first = call("ZRANGEBYLEX", root .. "r:" .. lane, from, "+", "LIMIT", 0, 1)[1]
    heads[#heads + 1] = first and string.sub(first, 1, 20)
    from = first and string.format("[%04d", tonumber(string.sub(first, 1, 4)) + 1)
  end
end
local later = call("ZRANGE", root .. "later", 0, 0, "WITHSCORES")
return cmsgpack.pack({call("HGETALL", root .. "n"), heads, later[2] or "", call("HVALS", root .. "nodes"),
                      call("HGETALL", root .. "limits")})

-- next_due.lua: when a claim may find something that it does not find now.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  now
-- reply    times, as text

local now = tonumber(input)
local times = {}
local later = call("ZRANGE", root .. "later", 0, 0, "WITHSCORES")
times[#times + 1] = later[2]
times[#times + 1] = call("ZRANGEBYSCORE", root .. "exp", "(" .. input, "+inf", "WITHSCORES", "LIMIT", 0, 1)[2]
local limits = call("HGETALL", root .. "limits")
for i = 1, #limits, 2 do
  local limit = cjson.decode(limits[i + 1])
  if limit.rate > 0 then
    local ahead = (limit.burst - 1) / limit.rate
    local first = call("ZRANGEBYSCORE", root .. "tat:" .. limits[i], "(" .. number(now + ahead), "+inf", "WITHSCORES",
      "LIMIT", 0, 1)[2]
    if first then times[#times + 1] = number(tonumber(first) - ahead) end
  end
end
return cmsgpack.pack(times)

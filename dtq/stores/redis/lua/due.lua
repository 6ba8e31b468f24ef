-- due.lua: when a later claim may find more.

local function times_to_come(now_text) -- as text
  local now, times = tonumber(now_text), {}
  times[#times + 1] = call("ZRANGE", root .. "later", 0, 0, "WITHSCORES")[2]
  times[#times + 1] = call("ZRANGEBYSCORE", root .. "exp", "(" .. now_text, "+inf", "WITHSCORES", "LIMIT", 0, 1)[2]
  times[#times + 1] = call("ZRANGEBYSCORE", root .. "shut", "-inf", now_text, "WITHSCORES", "LIMIT", 0, 1)[2]
  local limits = call("HGETALL", root .. "limits")
  for i = 1, #limits, 2 do
    local limit = limit_of(limits[i + 1])
    if limit and limit.rate > 0 then
      local ahead = (limit.burst - 1) / limit.rate
      local from = "(" .. number(now + ahead)
      local first = call("ZRANGEBYSCORE", root .. "tat:" .. limits[i], from, "+inf", "WITHSCORES", "LIMIT", 0, 1)[2]
      if first then times[#times + 1] = number(tonumber(first) - ahead) end
    end
  end
  return times
end

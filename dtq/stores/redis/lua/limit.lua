-- limit.lua: changes a limit, if it is still as the caller read it.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {selector (JSON), the limit as it was, or "", the limit as it is to be, or "" where it limits nothing,
--           whether the rate has changed, sender}
-- reply    1, or 0 where it was changed in the meantime

local selector, old, new, is_new_rate, sender = unpack(input)
if (call("HGET", root .. "limits", selector) or "") ~= old then return 0 end
if is_new_rate or new == "" then call("DEL", root .. "tat:" .. selector) end -- the buckets of the old rate no longer count
if new == "" then
  call("HDEL", root .. "limits", selector)
else
  call("HSET", root .. "limits", selector, new)
end
local queue, type_, key = unpack(cjson.decode(selector))
if key ~= cjson.null then -- the next claims check, a few lanes each, which are still closed
  local lanes = {}
  for _, lane in ipairs(call("ZRANGE", root .. "shut", 0, -1)) do
    if covers({queue = queue, type = type_, key = key}, split(lane)) then put(lanes, 1, lane) end
  end
  send("ZADD", "shut", lanes)
end
publish(sender)
return 1

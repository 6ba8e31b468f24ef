-- limit.lua: changes a limit, if it is still the one that was looked at.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {selector (JSON), the limit as it was, or "", the limit as it is to be, or "" where it limits nothing any
--           more, whether the rate is another one, sender}
-- reply    1, or 0 where somebody else has changed it meanwhile

local selector, old, new, is_new_rate, sender = unpack(input)
if (call("HGET", root .. "limits", selector) or "") ~= old then return 0 end
if is_new_rate or new == "" then call("DEL", root .. "tat:" .. selector) end -- what was owed to the old rate is forgiven
if new == "" then
  call("HDEL", root .. "limits", selector)
else
  call("HSET", root .. "limits", selector, new)
end
local queue, type_, key = unpack(cjson.decode(selector))
if key ~= cjson.null then -- the next claims find out, some lanes each, which are closed still
  local lanes = {}
  for _, lane in ipairs(call("ZRANGE", root .. "shut", 0, -1)) do
    if covers({queue = queue, type = type_, key = key}, split(lane)) then put(lanes, 1, lane) end
  end
  send("ZADD", "shut", lanes)
end
tell(sender)
return 1

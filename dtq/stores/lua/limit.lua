-- limit.lua: changes a limit, if it is still the one that was looked at.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {selector (JSON), the limit as it was, or "", the limit as it is to be, or "" where it limits nothing any
--           more, whether the rate is another one, sender}
-- reply    1, or 0 where somebody else has changed it meanwhile

local selector, old, new, is_new_rate, sender = unpack(input)
if (call("HGET", root .. "limits", selector) or "") ~= old then return 0 end
if is_new_rate then call("DEL", root .. "tat:" .. selector) end -- what was owed to the old rate is forgiven
if new == "" then
  call("HDEL", root .. "limits", selector)
else
  call("HSET", root .. "limits", selector, new)
end
tell(sender)
return 1

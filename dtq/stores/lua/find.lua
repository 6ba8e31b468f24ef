-- find.lua: tasks in the order of their ids, one stretch of the index a call.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {status, queue, type, time after which they must have ended ("" each where it does not matter), id to begin
--           behind, how many at most, how many to look at}
-- reply    {tasks (records of lib.lua), the id to go on behind, or "" at the end}

local status, queue, type_, ended_after, after, limit, stretch = unpack(input)
local index = root .. (status ~= "" and "s:" .. status or "ids")
local ids = call("ZRANGEBYLEX", index, after == "" and "-" or "(" .. after, "+", "LIMIT", 0, stretch)
local found, last, all_seen = {}, "", #ids < stretch
for i, id in ipairs(ids) do
  local values = call("HMGET", root .. "t:" .. id, "l", "fa")
  local its_queue, its_type = string.match(values[1], "^(.-)\31(.-)\31")
  local ended = tonumber(values[2] or "") or 0
  last = id
  if (queue == "" or queue == its_queue) and (type_ == "" or type_ == its_type)
    and (ended_after == "" or ended > tonumber(ended_after)) then
    found[#found + 1] = id
    if #found >= limit then
      all_seen = false
      break
    end
  end
end
return cmsgpack.pack({records(found), all_seen and "" or last})

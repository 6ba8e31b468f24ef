-- find.lua: tasks in the order of their ids, a part of the index in each call.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {status, or "open" for all that have not ended; queue, type, time after which they must have ended ("" for
--           any); the id after which to begin; how many at most; how many to look at; whether records are brief}
-- reply    {the id after which to continue, or "" at the end; tasks (records of lib.lua)}

local status, queue, type_, ended_after, after, limit, stretch, is_brief = unpack(input)
local index = root .. (TERMINAL[status] and "s:" .. status or "open")
local ids = call("ZRANGEBYLEX", index, after == "" and "-" or "(" .. after, "+", "LIMIT", 0, stretch)
preload(ids)
local found, last, all_seen = {}, "", #ids < stretch
for i, id in ipairs(ids) do
  local t = load(id)
  local its_queue, its_type = string.match(t[LANE], "^(.-)\31(.-)\31")
  local ended = tonumber((course_of(t))) or 0
  last = id
  if (status == "open" or status == t[STATUS]) and (queue == "" or queue == its_queue) and (type_ == "" or type_ == its_type)
    and (ended_after == "" or ended > tonumber(ended_after)) then
    found[#found + 1] = id
    if #found >= limit then
      all_seen = false
      break
    end
  end
end
return {all_seen and "" or last, records(found, is_brief)}

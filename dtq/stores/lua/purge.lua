-- purge.lua: removes some of what ended long ago.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {time before which they must have ended, terminal statuses, how many at most}
-- reply    how many were removed

local before, statuses, most = unpack(input)
local n = 0
for _, status in ipairs(statuses) do
  local old = call("ZRANGEBYSCORE", root .. "f:" .. status, "-inf", "(" .. before, "LIMIT", 0, most - n)
  preload(old)
  for _, id in ipairs(old) do note_version(load(id)) end
  for _, id in ipairs(old) do remove(id, load(id)) end
  n = n + #old
end
flush()
keep_highest()
return n

-- purge.lua: removes some tasks that ended long ago.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {time before which they must have ended, terminal statuses, how many at most}
-- reply    {how many were removed, how many were looked at}: tasks that an unfinished child needs are kept

local before, statuses, most = unpack(input)
local removed, looked_at = 0, 0
for _, status in ipairs(statuses) do
  local old = call("ZRANGEBYSCORE", root .. "f:" .. status, "-inf", "(" .. before, "LIMIT", 0, most - looked_at)
  looked_at = looked_at + #old
  preload(old)
  for _, id in ipairs(old) do
    if is_needed(id) then
      set("f:" .. status, id, false) -- not looked at again until its children have ended
      call("SADD", root .. "kept", id)
    else
      note_version(load(id))
      remove(id, load(id))
      removed = removed + 1
    end
  end
end
flush()
keep_highest()
return {removed, looked_at}

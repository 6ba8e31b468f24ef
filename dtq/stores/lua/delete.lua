-- delete.lua: removes tasks, but none that is processing.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {ids, each once; sender}
-- reply    {how many were removed, how many parents have children that are still to be settled}

local n = 0
for _, id in ipairs(input[1]) do
  local t = load(id)
  if t and t[STATUS] ~= "processing" then
    remove(id, t)
    n = n + 1
  end
end
flush()
tell(input[2])
return {n, call("HLEN", root .. "settle")}

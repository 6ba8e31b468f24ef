-- delete.lua: removes tasks, but none that is processing.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {ids, each once; sender}
-- reply    {how many were removed, how many parents have children that are left}

local gone = {}
preload(input[1])
for _, id in ipairs(input[1]) do
  local t = load(id)
  if t and t[STATUS] ~= "processing" then
    gone[#gone + 1] = id
    note_version(t)
  end
end
for _, id in ipairs(gone) do
  orphan(id)
  remove(id, load(id))
end
flush()
keep_highest()
publish(input[2])
return {#gone, call("HLEN", root .. "settle")}

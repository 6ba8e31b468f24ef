-- add.lua: stores new tasks.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {tasks (see plant.lua), sender}
-- reply    {ids, in order}, or {false, an unknown parent}: then nothing was stored

local tasks, sender = unpack(input)
local ids, fresh = survey(tasks)
local unknown = unknown_parent(tasks, fresh)
if unknown then return cmsgpack.pack({false, unknown}) end
plant(tasks, ids, fresh)
tell(sender)
return cmsgpack.pack({ids})

-- add.lua: stores new tasks.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {tasks (see plant.lua), sender}
-- reply    {the ids that stand for the tasks, in order; none where each stands for itself}, or {false, an unknown
--          parent}: then nothing was stored

local news, sender = unpack(input)
local ids, fresh = survey(news, {})
local unknown = unknown_parent(news, fresh)
if unknown then return cmsgpack.pack({false, unknown}) end
plant(news, ids, fresh)
publish(sender)
return cmsgpack.pack({#fresh < #news and ids or NONE})

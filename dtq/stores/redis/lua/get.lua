-- get.lua: tasks as they are.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {the ids, whether the tasks are to be brief}
-- reply    the tasks (records of lib.lua), in this order, unknown ones left out

return records(unpack(input))

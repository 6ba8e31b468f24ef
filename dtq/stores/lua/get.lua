-- get.lua: tasks as they are.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  the ids
-- reply    the tasks (records of lib.lua), in this order, unknown ones left out

return records(input)

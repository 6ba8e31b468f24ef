-- get.lua: reads tasks.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {the ids, whether the tasks are to be brief}
-- reply    the tasks (records of lib.lua), in this order, without unknown ones

return records(unpack(input))

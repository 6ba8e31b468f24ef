-- next_due.lua: when a later claim may find more.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  now
-- reply    times, as text

return times_to_come(input)

-- next_due.lua: when a claim may find something that it does not find now.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  now
-- reply    times, as text

return times_to_come(input)

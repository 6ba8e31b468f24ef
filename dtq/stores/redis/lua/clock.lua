-- clock.lua: the server's time.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  nothing
-- reply    seconds since 1970, as text

return time()

-- settle.lua: goes on unblocking the children of parents who have very many.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {sender}
-- reply    how many parents have children that are still to be settled

local left = settle_some(500)
tell(input[1])
return left

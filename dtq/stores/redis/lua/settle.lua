-- settle.lua: continues to unblock or doom the children of parents that have very many.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {sender}
-- reply    how many parents have children that are left

local left = settle_some(500)
publish(input[1])
return left

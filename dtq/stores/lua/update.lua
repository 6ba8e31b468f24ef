-- update.lua: replaces each task whose version is still the one that its outcome knows.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {outcomes, sender}; an outcome: {id, version, token, state by field, JSON of what the attempts left, or "",
--           successors (see plant.lua)}
-- reply    {accepted ids, how many parents have children that are still to be settled},
--          or {false, an unknown parent}: then nothing was changed
--
-- Who has missed the reply sends the same tokens again, and what they did the first time counts as accepted.

local CHILDREN = 500 -- settled in one script
local outcomes, sender = unpack(input)
local accepted, current, states, planted = {}, {}, {}, {}

local named = {}
for i, outcome in ipairs(outcomes) do named[i] = outcome[1] end
preload(named)
for _, outcome in ipairs(outcomes) do
  local id, version, token = outcome[1], outcome[2], outcome[3]
  local t = not states[id] and load(id)
  if t and tonumber(t.v) == version then
    states[id] = t
    current[#current + 1] = outcome
    accepted[#accepted + 1] = id
    for _, new in ipairs(outcome[6]) do planted[#planted + 1] = new end
  elseif t and tonumber(t.v) == version + 1 and t.u == token then
    states[id] = t
    accepted[#accepted + 1] = id
  end
end

local freed, disinherited = {}, {} -- keys that go over to a successor, and the tasks that had them
for _, outcome in ipairs(current) do
  local key = states[outcome[1]].k
  for _, new in ipairs(outcome[6]) do
    if key ~= "" and new[2] == key and not load(new[1]) then
      freed[key] = true
      disinherited[outcome[1]] = key
    end
  end
end

local ids, fresh = survey(planted, freed)
local unknown = unknown_parent(planted, fresh)
if unknown then return cmsgpack.pack({false, unknown}) end

local revived = {}
for _, outcome in ipairs(current) do
  local id, new, left = outcome[1], outcome[4], outcome[5]
  local t = states[id]
  if TERMINAL[t.s] and not TERMINAL[new.s] and t.a ~= "" then revived[#revived + 1] = id end
  new.v, new.u = next_version(t), outcome[3]
  if left ~= "" then
    strings[root .. "o:" .. id] = left
    new.o = "1"
  elseif t.o == "1" then
    call("DEL", root .. "o:" .. id)
    new.o = ""
  end
  move(id, t, new)
end
for _, id in ipairs(revived) do place_anew(id, states[id]) end
for id, key in pairs(disinherited) do
  change(id, {k = ""})
  call("HDEL", root .. "k", key)
end
flush()
plant(planted, ids, fresh)
local budget = CHILDREN
for _, outcome in ipairs(current) do
  local id = outcome[1]
  if TERMINAL[states[id].s] and states[id].c == "1" then
    budget = budget - settle(id, states[id].s, math.max(budget, 0))
  end
end
flush()
tell(sender)
return cmsgpack.pack({accepted, call("HLEN", root .. "settle")})

-- update.lua: replaces each task whose version is still the one that its outcome knows.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {outcomes, sender}; an outcome: {id, version, token, status, attempts, JSON of what the attempts left or "",
--           CLAIM, COURSE, successors if there are any (see plant.lua)}
-- reply    {refused ids, how many parents have children that are left},
--          or {false, an unknown parent}: then nothing was changed
--
-- A retry after a lost reply carries the same tokens; what it did the first time is not refused.

local CHILDREN_AT_ONCE = 500 -- unblocked or doomed in one script
local SUCCESSORS = 9
local outcomes, sender = unpack(input)
local current, accepted, planted = {}, {}, {} -- `accepted` by id
local freed, disinherited = {}, {} -- keys that pass to a successor, and the tasks that had them

local function hand_over_key(id, t, successors)
  local _, _, _, key = fixed_of(t)
  for _, new in ipairs(successors) do
    planted[#planted + 1] = new
    if key ~= "" and new[KEY] == key and not load(new[ID]) then freed[key], disinherited[id] = true, key end
  end
end

local function sort_out() -- finds the outcomes of the stored version
  local named = {}
  for i, outcome in ipairs(outcomes) do named[i] = outcome[1] end
  preload(named)
  for _, outcome in ipairs(outcomes) do
    local id, version, token = unpack(outcome, 1, 3)
    local t = not accepted[id] and load(id)
    if t and t[VERSION] == version then
      current[#current + 1] = outcome
      if outcome[SUCCESSORS] then hand_over_key(id, t, outcome[SUCCESSORS]) end
    end
    if t and (t[VERSION] == version or t[VERSION] == version + 1 and t[TOKEN] == token) then
      accepted[id] = true
    end
  end
end

local function refused()
  local ids = {}
  for _, outcome in ipairs(outcomes) do
    if not accepted[outcome[1]] then ids[#ids + 1] = outcome[1] end
  end
  return ids
end

local function replace(t, outcome) -- returns whether a terminal task waits again
  local id, version, token, status, attempts, left, claim, course = unpack(outcome, 1, 8)
  local is_back = TERMINAL[t[STATUS]] and not TERMINAL[status]
  local reason -- its parent was deleted while it ran
  if t[STATUS] == "processing" and not TERMINAL[status] and is_doomed(t) then reason = select(6, course_of(t)) end
  leave(id, t)
  if left ~= "" then
    put(lefts, id, left)
  elseif t[LEFT] then
    call("HDEL", root .. "o", id)
  end
  t[STATUS], t[VERSION], t[ATTEMPTS], t[TOKEN] = status, version + 1, attempts, token
  t[LEFT], t[CLAIM], t[COURSE] = left ~= "", claim, course
  if reason and not is_doomed(t) then doom(t, reason) end
  enter(id, t)
  if TERMINAL[status] then stop_needing_parents(id, t) end
  return is_back
end

sort_out()
local ids, fresh = survey(planted, freed)
local unknown = unknown_parent(planted, fresh)
if unknown then return cmsgpack.pack({false, unknown}) end

local revived, parents = {}, {}
for _, outcome in ipairs(current) do
  local id = outcome[1]
  local t = tasks[id]
  if replace(t, outcome) then revived[#revived + 1] = id end
  if t[CHILDREN] and TERMINAL[t[STATUS]] then parents[#parents + 1] = id end
end
for _, id in ipairs(revived) do place_anew(id, tasks[id]) end
for id, key in pairs(disinherited) do
  local t = tasks[id]
  t[FIXED] = string.sub(t[FIXED], 1, -#key - 1)
  call("HDEL", root .. "k", key)
end
flush()
plant(planted, ids, fresh)
local budget = CHILDREN_AT_ONCE
for _, id in ipairs(parents) do budget = budget - settle(id, tasks[id][STATUS], math.max(budget, 0)) end
flush()
publish(sender)
return cmsgpack.pack({refused(), call("HLEN", root .. "settle")})

-- plant.lua: new tasks, for add and for the successors of update.
--
-- A new task: {id, key, lane, place if it is ready now and does not expire, else "", packed state from ATTEMPTS
-- up to the number in FIXED, packed state after that number, body, parents if it has any}

local NONE = {}
local ID, KEY, PLACE, BODY, PARENTS = 1, 2, 4, 7, 8

-- Returns the id that each one has (that of the task with its key, if there is one), and those to store. Keys in
-- `freed` count as free.
local function survey(news, freed)
  local ids, fresh, mine, keys = {}, {}, {}, {}
  for i, new in ipairs(news) do ids[i] = new[ID] end
  preload(ids)
  for i, new in ipairs(news) do
    local id, key = new[ID], new[KEY]
    local holder = (mine[id] or tasks[id]) and id or nil
    if not holder and key ~= "" then holder = keys[key] or not freed[key] and call("HGET", root .. "k", key) or nil end
    if holder then
      ids[i] = holder
    else
      fresh[#fresh + 1] = new
      mine[id] = true
      if key ~= "" then keys[key] = id end
    end
  end
  return ids, fresh
end

local function unknown_parent(news, fresh) -- returns the first by name, or nil
  local named, worst = {}, nil
  for _, new in ipairs(news) do named[new[ID]] = true end
  for _, new in ipairs(fresh) do
    for _, parent in ipairs(new[PARENTS] or NONE) do
      if not named[parent] and not load(parent) then
        if not worst or parent < worst then worst = parent end
      end
    end
  end
  return worst
end

local function begin(strict, parents) -- returns status, doom, and the parents that it waits for
  if #parents == 0 then return "pending", "", parents end
  local waits = {}
  for _, parent in ipairs(parents) do
    local t = load(parent)
    if t and TERMINAL[t[STATUS]] then
      if strict == "1" and t[STATUS] ~= "completed" then
        return "blocked", "its parent " .. parent .. " is " .. t[STATUS], {}
      end
    else
      waits[#waits + 1] = parent
    end
  end
  return #waits > 0 and "blocked" or "pending", "", waits
end

local function hold(id, parents, waits) -- all its parents, and those that it waits for
  for _, parent in ipairs(waits) do
    call("SADD", root .. "p:" .. id, parent)
    call("SADD", root .. "c:" .. parent, id)
    load(parent)[CHILDREN] = true
    dirty[parent] = true
  end
  waits = among(waits)
  for _, parent in ipairs(parents) do
    if not waits[parent] then call("SADD", root .. "u:" .. parent, id) end
  end
end

local function place_anew(id, t) -- a task that was revived; deleted parents no longer count
  local _, strict, named = fixed_of(t)
  if named == "" then return end
  local all, parents = {}, {}
  for parent in string.gmatch(named, "[^,]+") do
    all[#all + 1] = parent
    if load(parent) then parents[#parents + 1] = parent end
  end
  local status, reason, waits = begin(strict, parents)
  leave(id, t)
  t[STATUS] = status
  doom(t, reason)
  enter(id, t)
  forget_parents(id)
  hold(id, all, waits)
end

local function store(new, front, number) -- stores a task without parents that is ready, as most are
  local id, _, lane, place, head, tail = unpack(new, 1, 6)
  put(states, id, front .. head .. number .. tail)
  tasks[id] = nil -- to be read again if needed
  count(lane, "pending", 1)
  ready(id, lane, place, number)
end

local function store_any(new, front, number, parents) -- stores any task; returns the parents that it waits for
  local id, _, _, _, head, tail = unpack(new, 1, 6)
  local t = {cmsgpack.unpack(front .. head .. number .. tail)}
  local _, strict, _, key = fixed_of(t)
  local status, reason, waits = begin(strict, parents)
  t[STATUS], t[FIXED] = status, number .. "\31" .. strict .. "\31" .. table.concat(parents, ",") .. "\31" .. key
  tasks[id] = t
  if reason ~= "" then doom(t, reason) end
  enter(id, t)
  return waits
end

local function parents_of(new, stands_for) -- parents of the same call may be replaced by tasks with their keys
  if not new[PARENTS] then return NONE end
  local parents = {}
  for _, parent in ipairs(new[PARENTS]) do
    parent = stands_for[parent] or parent
    if parent ~= new[ID] then parents[#parents + 1] = parent end
  end
  return parents
end

local function plant(news, ids, fresh)
  if #fresh == 0 then return end
  local stands_for, children, depends = {}, {}, false -- of a child: {its parents, those that it waits for}
  for i, new in ipairs(news) do
    stands_for[new[ID]] = ids[i]
    depends = depends or new[PARENTS] ~= nil
  end
  local last = call("INCRBY", root .. "seq", #fresh) - #fresh
  local front = cmsgpack.pack("pending", (call("GET", root .. "deleted") or 0) + 1) -- STATUS and VERSION
  for i, new in ipairs(fresh) do
    local id, key, number = new[ID], new[KEY], string.format("%014d", last + i)
    put(bodies, id, new[BODY])
    set("open", id, ZERO)
    if key ~= "" then call("HSET", root .. "k", key, id) end
    if depends or new[PLACE] == "" then
      local parents = parents_of(new, stands_for)
      children[id] = {parents, store_any(new, front, number, parents)}
    else
      store(new, front, number)
    end
  end
  for id, parents in pairs(children) do hold(id, parents[1], parents[2]) end
  flush()
end

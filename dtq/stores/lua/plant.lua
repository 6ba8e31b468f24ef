-- plant.lua: new tasks, for add and for the successors of update.
--
-- A new task: {id, key, lane, prefix, run_at, expires, parents, strict, is ready, body}

-- The id that now stands for each, and those that are to be stored; keys that are `freed` count as not taken.
local function survey(news, freed)
  local ids, fresh, mine, keys = {}, {}, {}, {}
  for i, new in ipairs(news) do ids[i] = new[1] end
  preload(ids)
  for i, new in ipairs(news) do
    local id, key = new[1], new[2]
    local holder = mine[id] and id or nil
    if not holder and load(id) then holder = id end
    if not holder and key ~= "" then holder = keys[key] or not freed[key] and call("HGET", root .. "k", key) or nil end
    if not holder then
      fresh[#fresh + 1] = new
      mine[id] = true
      if key ~= "" then keys[key] = id end
    end
    ids[i] = holder or id
  end
  return ids, fresh
end

local function unknown_parent(news, fresh) -- the first by name, or nil
  local named, worst = {}, nil
  for _, new in ipairs(news) do named[new[1]] = true end
  for _, new in ipairs(fresh) do
    for _, parent in ipairs(new[7]) do
      if not named[parent] and not load(parent) then
        if not worst or parent < worst then worst = parent end
      end
    end
  end
  return worst
end

local function begin(strict, parents) -- status, doom, and the parents that it waits for
  local waits = {}
  for _, parent in ipairs(parents) do
    local t = load(parent)
    if t and TERMINAL[t.s] then
      if strict and t.s ~= "completed" then return "blocked", "its parent " .. parent .. " is " .. t.s, {} end
    else
      waits[#waits + 1] = parent
    end
  end
  return #waits > 0 and "blocked" or "pending", "", waits
end

local function wait_for(id, parents)
  for _, parent in ipairs(parents) do
    call("SADD", root .. "p:" .. id, parent)
    call("SADD", root .. "c:" .. parent, id)
    change(parent, {c = "1"})
  end
end

local function place_anew(id, t) -- one that has come back from its end; parents that are gone count no more
  local parents = {}
  for parent in string.gmatch(t.a, "[^,]+") do
    if load(parent) then parents[#parents + 1] = parent end
  end
  local status, doom, waits = begin(t.f == "1", parents)
  move(id, t, {s = status, d = doom})
  wait_for_nobody(id)
  wait_for(id, waits)
end

local function store(new, number, parents) -- gives the parents that it waits for
  local id, key, lane, prefix, run_at, expires = unpack(new, 1, 6)
  local status, doom, waits = begin(new[8], parents)
  local t = setmetatable({}, ABSENT)
  tasks[id] = t
  change(id, {s = status, v = "1", l = lane, p = prefix, q = string.format("%014.0f", number), r = run_at, e = expires,
              d = doom, k = key, a = table.concat(parents, ","), f = new[8] and "1" or ""})
  strings[root .. "b:" .. id] = new[10]
  if key ~= "" then call("HSET", root .. "k", key, id) end
  set("open", id, 0)
  enter(id, t, new[9])
  return waits
end

local function plant(news, ids, fresh)
  local stands_for, children = {}, {}
  for i, new in ipairs(news) do stands_for[new[1]] = ids[i] end
  local last = #fresh > 0 and call("INCRBY", root .. "seq", #fresh) - #fresh or 0
  for i, new in ipairs(fresh) do
    local parents = {}
    for _, parent in ipairs(new[7]) do
      parent = stands_for[parent] or parent
      if parent ~= new[1] then parents[#parents + 1] = parent end
    end
    children[new[1]] = store(new, last + i, parents)
  end
  for id, waits in pairs(children) do wait_for(id, waits) end
  flush()
end

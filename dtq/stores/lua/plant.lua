-- plant.lua: new tasks, for add and for the successors of update.
--
-- A new task: {id, key, lane, prefix, run_at, expires, parents, strict, is ready, body}

local function survey(tasks) -- the id that now stands for each, and those that are to be stored
  local ids, fresh, mine, keys = {}, {}, {}, {}
  for i, new in ipairs(tasks) do
    local id, key = new[1], new[2]
    local holder = mine[id] and id or nil
    if not holder and call("EXISTS", root .. "t:" .. id) == 1 then holder = id end
    if not holder and key ~= "" then holder = keys[key] or call("HGET", root .. "k", key) or nil end
    if not holder then
      fresh[#fresh + 1] = new
      mine[id] = true
      if key ~= "" then keys[key] = id end
    end
    ids[i] = holder or id
  end
  return ids, fresh
end

local function unknown_parent(tasks, fresh) -- the first by name, or nil
  local named, worst = {}, nil
  for _, new in ipairs(tasks) do named[new[1]] = true end
  for _, new in ipairs(fresh) do
    for _, parent in ipairs(new[7]) do
      if not named[parent] and call("EXISTS", root .. "t:" .. parent) == 0 then
        if not worst or parent < worst then worst = parent end
      end
    end
  end
  return worst
end

local function begin(new, parents) -- status, doom, and the parents that it waits for
  local waits = {}
  for _, parent in ipairs(parents) do
    local status = call("HGET", root .. "t:" .. parent, "s")
    if status and TERMINAL[status] then
      if new[8] and status ~= "completed" then
        return "blocked", "its parent " .. parent .. " is " .. status, {}
      end
    else
      waits[#waits + 1] = parent
    end
  end
  return #waits > 0 and "blocked" or "pending", "", waits
end

local function plant(tasks, ids, fresh)
  local stands_for = {}
  for i, new in ipairs(tasks) do stands_for[new[1]] = ids[i] end
  local number_of_last = #fresh > 0 and call("INCRBY", root .. "seq", #fresh) - #fresh or 0
  for i, new in ipairs(fresh) do
    local id, key, lane, prefix, run_at, expires = unpack(new, 1, 6)
    local parents = {}
    for _, parent in ipairs(new[7]) do
      parent = stands_for[parent] or parent
      if parent ~= id then parents[#parents + 1] = parent end
    end
    local status, doom, waits = begin(new, parents)
    local t = {s = status, v = "1", l = lane, p = prefix, q = string.format("%014.0f", number_of_last + i), r = run_at,
               e = expires, d = doom, sa = "", fa = "", at = "0", ["in"] = "0", w = "", lu = "", pr = "0", no = "",
               k = key, a = table.concat(parents, ","), f = new[8] and "1" or "", u = ""}
    call("HSET", root .. "t:" .. id, "s", t.s, "v", "1", "l", lane, "p", prefix, "q", t.q, "r", run_at, "at", "0",
      "in", "0", "pr", "0")
    for _, field in ipairs({"e", "d", "k", "a", "f"}) do
      if t[field] ~= "" then call("HSET", root .. "t:" .. id, field, t[field]) end
    end
    call("SET", root .. "b:" .. id, new[10])
    if key ~= "" then call("HSET", root .. "k", key, id) end
    for _, parent in ipairs(waits) do
      call("SADD", root .. "p:" .. id, parent)
      call("SADD", root .. "c:" .. parent, id)
    end
    set("ids", id, 0)
    enter(id, t)
    if new[9] and status == "pending" then -- due already: it need not be moved by a claim
      set("later", id, false)
      ready(id, t)
    end
  end
  flush()
end

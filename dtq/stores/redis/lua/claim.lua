-- claim.lua: takes waiting tasks for a worker, the doomed first.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {worker, n, now, end of the lease, types, queues, lowest place of a priority, name of this call,
--           token, seconds to keep the reply}
-- reply    {the tasks as they are claimed (records of lib.lua), best first; where they are fewer than n: times at which
--          there may be more (due.lua)}
--
-- A retry after a lost reply carries the same token, and gets the same tasks.

local STEP = 1000 -- tasks that come due, or expire, in one script
local worker, n, now_text, lease_until, types, queues, lowest, kind, token, keep = unpack(input)
local now = tonumber(now_text)
types, queues = among(types), #queues > 0 and among(queues)
local last = root .. "last:" .. worker .. ":" .. kind

local function given_before()
  local ids = {}
  if call("HGET", last, "token") ~= token then return nil end
  for id in string.gmatch(call("HGET", last, "ids"), "[^,]+") do
    local t = load(id)
    if t and t[STATUS] == "processing" and t[TOKEN] == token and claim_of(t) == worker then ids[#ids + 1] = id end
  end
  return ids
end

local function move_due()
  local due = call("ZRANGEBYSCORE", root .. "later", "-inf", now_text, "LIMIT", 0, STEP)
  preload(due)
  for _, id in ipairs(due) do
    local t = load(id)
    local _, place = course_of(t)
    set("later", id, false)
    ready(id, t[LANE], place, fixed_of(t))
  end
end

local function doom_expired()
  for _, id in ipairs(call("ZRANGEBYSCORE", root .. "exp", "-inf", now_text, "LIMIT", 0, STEP)) do
    local t = load(id)
    leave(id, t)
    doom(t, "expired")
    enter(id, t)
  end
end

local function wanted(kinds) -- returns the kinds that the worker serves
  local found = {}
  for _, kind in ipairs(kinds) do
    local queue, type_ = string.match(kind, "^(.-)\31([^\31]*)")
    if types[type_] and (not queues or queues[queue]) then found[#found + 1] = kind end
  end
  return found
end

local function take_doomed()
  local ids = {}
  for _, kind in ipairs(wanted(call("ZRANGE", root .. "doomed", 0, -1))) do
    if #ids >= n then break end
    local found = call("ZRANGE", root .. "d:" .. kind, 0, n - #ids - 1)
    if #found == 0 then call("ZREM", root .. "doomed", kind) end
    send("ZREM", "d:" .. kind, found)
    for _, id in ipairs(found) do ids[#ids + 1] = id end
  end
  return ids
end

-- What is picked was removed from its r: already, and doomed tasks are in neither `later` nor `exp`.
local function take(ids, attempt)
  local claim = worker .. "\31" .. now_text .. "\31" .. lease_until .. "\31\31"
  preload(ids)
  for _, id in ipairs(ids) do
    local t = tasks[id]
    count(t[LANE], t[STATUS], -1)
    count(t[LANE], "processing", 1)
    t[STATUS], t[VERSION], t[ATTEMPTS], t[TOKEN] = "processing", t[VERSION] + 1, t[ATTEMPTS] + attempt, token
    t[CLAIM] = claim
    dirty[id] = true
    set("lease", id, lease_until)
  end
end

local function upgrade() -- converts what an earlier dtq stored: `lanes`, and `n` and d: by lane
  for _, lane in ipairs(call("ZRANGE", root .. "lanes", 0, -1)) do touched[lane] = true end
  local counters = call("HGETALL", root .. "n")
  for i = 1, #counters, 2 do
    local kind, status = string.match(counters[i], "^([^\31]*\31[^\31]*)\31[^\31]*\31([^\31]*)$")
    if kind then
      call("HDEL", root .. "n", counters[i])
      add_to("n", kind .. "\31" .. status, counters[i + 1])
    end
  end
  for _, lane in ipairs(call("ZRANGE", root .. "doomed", 0, -1)) do
    local kind = kind_of(lane)
    if kind then
      for _, id in ipairs(call("ZRANGE", root .. "d:" .. lane, 0, -1)) do set("d:" .. kind, id, ZERO) end
      set("doomed", kind, ZERO)
      set("doomed", lane, false)
      call("DEL", root .. "d:" .. lane)
    end
  end
  call("DEL", root .. "lanes")
  flush()
end

local again = given_before()
if again then return {records(again), {}} end
if call("EXISTS", root .. "lanes") == 1 then upgrade() end
settle_some(200)
move_due()
flush()
doom_expired()
flush()
local ids = take_doomed()
take(ids, 0)
if #ids < n then
  -- A place is hexadecimal, so "g" sorts behind every place of the lowest priority.
  local picked = pick(wanted(all_kinds()), n - #ids, now, lowest .. "g")
  send("ZREM", "exp", picked)
  take(picked, 1)
  for _, id in ipairs(picked) do ids[#ids + 1] = id end
end
if #ids > 0 then
  call("HSET", last, "token", token, "ids", table.concat(ids, ","))
  call("EXPIRE", last, keep)
end
flush()
return {records(ids), #ids < n and times_to_come(now_text) or {}}

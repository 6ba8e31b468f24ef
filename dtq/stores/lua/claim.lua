-- claim.lua: takes waiting tasks for a worker, the doomed first.
--
-- KEYS[1]  the prefix of the namespace
-- ARGV[1]  {worker, n, now, end of the lease, types, queues, lowest place of a priority, name of this kind of claim,
--           token, seconds to keep the reply}
-- reply    the tasks as they are claimed (records of lib.lua), best first
--
-- Who has missed the reply asks again with the same token, and is given the same tasks.

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
    if t and t.s == "processing" and t.w == worker and t.u == token then ids[#ids + 1] = id end
  end
  return ids
end

local function move_due()
  local due = call("ZRANGEBYSCORE", root .. "later", "-inf", now_text, "LIMIT", 0, STEP)
  preload(due)
  for _, id in ipairs(due) do
    set("later", id, false)
    ready(id, load(id))
  end
end

local function doom_expired()
  for _, id in ipairs(call("ZRANGEBYSCORE", root .. "exp", "-inf", now_text, "LIMIT", 0, STEP)) do
    move(id, load(id), {d = "expired"})
  end
end

local function wanted(key) -- the lanes under this key that the worker serves
  local lanes = {}
  for _, lane in ipairs(call("ZRANGE", root .. key, 0, -1)) do
    local queue, type_ = split(lane)
    if types[type_] and (not queues or queues[queue]) then lanes[#lanes + 1] = lane end
  end
  return lanes
end

local function doomed()
  local ids = {}
  for _, lane in ipairs(wanted("doomed")) do
    if #ids >= n then break end
    local found = call("ZRANGE", root .. "d:" .. lane, 0, n - #ids - 1)
    if #found == 0 then call("ZREM", root .. "doomed", lane) end
    for _, id in ipairs(found) do ids[#ids + 1] = id end
  end
  return ids
end

local function take(ids)
  preload(ids)
  for _, id in ipairs(ids) do
    local t = load(id)
    local attempts = (tonumber(t.at) or 0) + (t.d == "" and 1 or 0)
    move(id, t, {s = "processing", v = next_version(t), at = string.format("%d", attempts), w = worker, sa = now_text,
                 lu = lease_until, pr = "", no = "", u = token})
  end
  flush()
end

local again = given_before()
if again then return records(again) end
settle_some(200)
move_due()
flush()
doom_expired()
flush()
local ids = doomed()
if #ids < n then
  for _, id in ipairs(pick(wanted("lanes"), n - #ids, now, lowest)) do ids[#ids + 1] = id end
end
if #ids > 0 then
  call("HSET", last, "token", token, "ids", table.concat(ids, ","))
  call("EXPIRE", last, keep)
end
take(ids)
return records(ids)

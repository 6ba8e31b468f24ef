-- lib.lua: what every script of the Redis store begins with. Python puts it in front of each of them.
--
-- KEYS[1]  the prefix of the namespace, "dtq:{name}:". Every key begins with it, so that all lie in one cluster slot.
-- ARGV[1]  what the script asks for, one MessagePack value. Numbers that must stay as they are come as text.
--
-- b:<id> string   what a task is (JSON); written once       o:<id> string  what its attempts left behind (JSON)
-- t:<id> hash     how far it is; FIELDS below               k     hash     key -> id
-- ids, s:<status> sorted sets of ids, in their order        seq   string   the number of the task that came last
-- later           id by due time, until that has come       exp            id by the time at which it expires
-- r:<lane>        what may be claimed: priority, due time and number as text that sorts, then the id
-- lanes, doomed   lanes with an r:, with a d: (d:<lane> holds the doomed, to be ended whatever the limits are)
-- lease           id by the end of its lease                f:<status>     id by its end, terminal ones only
-- c:<id> set      blocked children                          p:<id> set     parents that are not at their end
-- n hash          "<lane> <status>" -> how many             run   hash     lane -> how many are processing
-- settle hash     ended parent -> status, of those who have too many children to be told in one script
-- limits hash, tat:<selector>, share, share:now             see pick.lua
-- nodes hash, alive (node by the end of its lease)          last:<worker>:... the last claim, for who missed its reply
-- A lane is "queue \31 type \31 limit key".

local root, call = KEYS[1], redis.call
local input = cmsgpack.unpack(ARGV[1])

local FIELDS = {"s", "v", "l", "p", "q", "r", "e", "d", "sa", "fa", "at", "in", "w", "lu", "pr", "no", "k", "a", "f",
                "u"}
local WAITING = {blocked = true, pending = true, retrying = true}
local TERMINAL = {completed = true, failed = true, cancelled = true}
local SLICE = 1000 -- arguments of one command: unpack has a limit

local function number(x) -- a float as text, exactly
  return string.format("%.17g", x)
end

-- Changes of sorted sets and counters are collected, and written by flush: one command for many tasks.
local changes, counts = {}, {}

local function set(key, member, score) -- score false: takes it out
  local members = changes[key]
  if not members then
    members = {}
    changes[key] = members
  end
  members[member] = score
end

local function count(lane, status, by)
  local field = lane .. "\31" .. status
  counts[field] = (counts[field] or 0) + by
end

local function send(command, key, args)
  for i = 1, #args, SLICE do
    call(command, key, unpack(args, i, math.min(i + SLICE - 1, #args)))
  end
end

local function add_to(hash, field, by)
  if call("HINCRBY", root .. hash, field, by) <= 0 then call("HDEL", root .. hash, field) end
end

local function flush()
  for key, members in pairs(changes) do
    local into, out = {}, {}
    for member, score in pairs(members) do
      if score then
        into[#into + 1] = score
        into[#into + 1] = member
      else
        out[#out + 1] = member
      end
    end
    send("ZREM", root .. key, out)
    send("ZADD", root .. key, into)
  end
  for field, by in pairs(counts) do
    if by ~= 0 then
      add_to("n", field, by)
      local lane = string.match(field, "^(.*)\31processing$")
      if lane then add_to("run", lane, by) end
    end
  end
  changes, counts = {}, {}
end

local function load(id) -- how far the task is, by field ("" where a field is not set); nil where there is none
  local values = call("HMGET", root .. "t:" .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local t = {}
  for i, field in ipairs(FIELDS) do t[field] = values[i] or "" end
  return t
end

local function ready(id, t)
  set("r:" .. t.l, t.p .. t.q .. id, 0)
  set("lanes", t.l, 0)
end

local function enter(id, t) -- into every index where a task like this may be looked for
  count(t.l, t.s, 1)
  set("s:" .. t.s, id, 0)
  if t.s == "processing" then
    set("lease", id, t.lu ~= "" and t.lu or 0)
  elseif TERMINAL[t.s] then
    set("f:" .. t.s, id, t.fa ~= "" and t.fa or 0)
  elseif t.d ~= "" then
    set("d:" .. t.l, id, 0)
    set("doomed", t.l, 0)
  else
    if t.e ~= "" then set("exp", id, t.e) end
    if t.s ~= "blocked" then set("later", id, t.r) end
  end
end

local function leave(id, t) -- out of them
  count(t.l, t.s, -1)
  set("s:" .. t.s, id, false)
  if t.s == "processing" then
    set("lease", id, false)
  elseif TERMINAL[t.s] then
    set("f:" .. t.s, id, false)
  elseif t.d ~= "" then
    set("d:" .. t.l, id, false)
  else
    if t.e ~= "" then set("exp", id, false) end
    if t.s ~= "blocked" then
      set("later", id, false)
      set("r:" .. t.l, t.p .. t.q .. id, false)
    end
  end
end

local function move(id, t, new) -- stores the new values of these fields
  leave(id, t)
  local args = {}
  for field, value in pairs(new) do
    t[field] = value
    args[#args + 1] = field
    args[#args + 1] = value
  end
  call("HSET", root .. "t:" .. id, unpack(args))
  enter(id, t)
end

local function next_version(t)
  return string.format("%d", tonumber(t.v) + 1)
end

local function among(list) -- a table of those in the list, to ask whether one is
  local found = {}
  for _, member in ipairs(list) do found[member] = true end
  return found
end

-- A parent has ended: up to `budget` of its children are unblocked or doomed; what is left is for settle.lua.
local function settle(parent, status, budget)
  status = call("HGET", root .. "settle", parent) or status
  local key = root .. "c:" .. parent
  local children = call("SPOP", key, budget)
  for _, id in ipairs(children) do
    call("SREM", root .. "p:" .. id, parent)
    local t = load(id)
    if t and t.s == "blocked" and t.d == "" then
      if t.f == "1" and status ~= "completed" then
        move(id, t, {d = "its parent " .. parent .. " is " .. status, v = next_version(t)})
      elseif call("EXISTS", root .. "p:" .. id) == 0 then
        move(id, t, {s = "pending", v = next_version(t)})
      end
    end
  end
  if call("EXISTS", key) == 1 then
    call("HSET", root .. "settle", parent, status)
  else
    call("HDEL", root .. "settle", parent)
  end
  return #children
end

local function settle_some(budget) -- goes on with what was left
  if call("EXISTS", root .. "settle") == 0 then return 0 end
  local left = call("HGETALL", root .. "settle")
  for i = 1, #left, 2 do
    if budget <= 0 then break end
    budget = budget - settle(left[i], left[i + 1], budget)
  end
  flush()
  return call("HLEN", root .. "settle")
end

-- The tasks of these ids as Python reads them (records.py), unknown ones left out. With `known`, as they are there.
local SHOWN = {"s", "v", "l", "p", "r", "e", "d", "sa", "fa", "at", "in", "w", "lu", "pr", "no", "a"}

local function records(ids, known)
  local found, keys = {}, {}
  for _, id in ipairs(ids) do
    local t = known and known[id] or load(id)
    if t then
      local record = {id}
      for i, field in ipairs(SHOWN) do record[i + 1] = t[field] end
      found[#found + 1] = record
      keys[#keys + 1] = root .. "b:" .. id
      keys[#keys + 1] = root .. "o:" .. id
    end
  end
  for i = 1, #keys, SLICE do
    local values = call("MGET", unpack(keys, i, math.min(i + SLICE - 1, #keys)))
    for j = 1, #values, 2 do
      local record = found[(i + j) / 2]
      record[#record + 1] = values[j] or "{}"
      record[#record + 1] = values[j + 1] or ""
    end
  end
  return found
end

local function time() -- the server's, in seconds, as text
  local now = call("TIME")
  return now[1] .. "." .. string.format("%06d", now[2])
end

local function tell(sender) -- those who wait; each knows his own messages
  call("PUBLISH", root .. "changed", sender)
end

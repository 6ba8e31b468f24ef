-- lib.lua: what every script of the Redis store begins with. Python puts it in front of each of them.
--
-- KEYS[1]  the prefix of the namespace, "dtq:{name}:". Every key begins with it, so that all lie in one cluster slot.
-- ARGV[1]  what the script asks for, one MessagePack value. Numbers that must stay as they are come as text.
--
-- b:<id> string   what a task is (JSON); written once       o:<id> string  what its attempts left behind (JSON)
-- t:<id> string   how far it is (MessagePack, see below)    k     hash     key -> id
-- open            ids that are not at their end, sorted     seq   string   the number of the task that came last
-- s:<status>      ids that are, sorted, by how they ended
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

-- How far a task is: a table of texts, without those that are "". It is one string a task, so that a whole batch is read
-- and written by one command each.
--   s status, v version, l lane, p place (priority and due time), q number, r due time, e expires, d doom, sa started,
--   fa finished, at attempts, in interruptions, w worker, lu end of the lease, pr progress, no note, k key, a parents,
--   f "1": a parent's failure is its own, c "1": has had children, o "1": has an o:, u token of the last change
local ABSENT = {__index = function() return "" end}
local TERMINAL = {completed = true, failed = true, cancelled = true}
local SLICE = 1000 -- arguments of one command: unpack has a limit

local function number(x) -- a float as text, exactly
  return string.format("%.17g", x)
end

-- All changes are collected, and written by flush: one command for many tasks.
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

local tasks, packed = {}, {} -- by id: how far it is, or false; the same, packed
local dirty, strings = {}, {} -- ids that are to be written; key -> text that is

local function preload(ids)
  local missing, keys = {}, {}
  for _, id in ipairs(ids) do
    if tasks[id] == nil then
      tasks[id] = false
      missing[#missing + 1] = id
      keys[#keys + 1] = root .. "t:" .. id
    end
  end
  for i = 1, #keys, SLICE do
    local values = call("MGET", unpack(keys, i, math.min(i + SLICE - 1, #keys)))
    for j, value in ipairs(values) do
      if value then
        local id = missing[i + j - 1]
        tasks[id], packed[id] = setmetatable(cmsgpack.unpack(value), ABSENT), value
      end
    end
  end
end

local function load(id) -- nil where there is none
  if tasks[id] == nil then preload({id}) end
  return tasks[id] or nil
end

local function change(id, new) -- these values, in no index
  local t = tasks[id]
  for field, value in pairs(new) do t[field] = value ~= "" and value or nil end
  dirty[id] = true
end

local function write_strings()
  for id in pairs(dirty) do
    if tasks[id] then
      packed[id] = cmsgpack.pack(tasks[id])
      strings[root .. "t:" .. id] = packed[id]
    end
  end
  local pairs_of_both = {}
  for key, text in pairs(strings) do
    pairs_of_both[#pairs_of_both + 1] = key
    pairs_of_both[#pairs_of_both + 1] = text
  end
  for i = 1, #pairs_of_both, SLICE do
    call("MSET", unpack(pairs_of_both, i, math.min(i + SLICE - 1, #pairs_of_both)))
  end
  dirty, strings = {}, {}
end

local function write_sets()
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
  changes = {}
end

local function flush() -- writes what has been collected
  write_strings()
  write_sets()
  for field, by in pairs(counts) do
    if by ~= 0 then
      add_to("n", field, by)
      local lane = string.match(field, "^(.*)\31processing$")
      if lane then add_to("run", lane, by) end
    end
  end
  counts = {}
end

local function ready(id, t)
  set("r:" .. t.l, t.p .. t.q .. id, 0)
  set("lanes", t.l, 0)
end

local function enter(id, t, is_due) -- into every index where a task like this may be looked for
  count(t.l, t.s, 1)
  if TERMINAL[t.s] then
    set("s:" .. t.s, id, 0)
    set("f:" .. t.s, id, t.fa ~= "" and t.fa or 0)
    return
  end
  if t.s == "processing" then
    set("lease", id, t.lu ~= "" and t.lu or 0)
  elseif t.d ~= "" then
    set("d:" .. t.l, id, 0)
    set("doomed", t.l, 0)
  else
    if t.e ~= "" then set("exp", id, t.e) end
    if t.s ~= "blocked" then
      if is_due then
        ready(id, t)
      else
        set("later", id, t.r)
      end
    end
  end
end

local function leave(id, t) -- out of them
  count(t.l, t.s, -1)
  if TERMINAL[t.s] then
    set("s:" .. t.s, id, false)
    set("f:" .. t.s, id, false)
  elseif t.s == "processing" then
    set("lease", id, false)
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

local function move(id, t, new) -- with these values, from index to index
  local had_ended = TERMINAL[t.s]
  leave(id, t)
  change(id, new)
  enter(id, t)
  if had_ended ~= TERMINAL[t.s] then set("open", id, had_ended and 0 or false) end
end

local function wait_for_nobody(id)
  for _, parent in ipairs(call("SMEMBERS", root .. "p:" .. id)) do call("SREM", root .. "c:" .. parent, id) end
  call("DEL", root .. "p:" .. id)
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
  preload(children)
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

local function records(ids) -- of each that is there: id, how far it is, what it is, what its attempts left behind
  preload(ids)
  local found, keys, places = {}, {}, {}
  local function ask(key)
    keys[#keys + 1] = key
    places[#keys] = #found + 1
    found[#found + 1] = ""
  end
  for _, id in ipairs(ids) do
    local t = tasks[id]
    if t then
      found[#found + 1] = id
      found[#found + 1] = packed[id]
      ask(root .. "b:" .. id)
      if t.o == "1" then ask(root .. "o:" .. id) else found[#found + 1] = "" end
    end
  end
  for i = 1, #keys, SLICE do
    local values = call("MGET", unpack(keys, i, math.min(i + SLICE - 1, #keys)))
    for j, value in ipairs(values) do found[places[i + j - 1]] = value or "" end
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

-- lib.lua: the beginning of every script of the Redis store. Python puts it before each one.
--
-- KEYS[1]  the prefix of the namespace, "dtq:{name}:". Every key begins with it, so that all lie in one cluster slot.
-- ARGV[1]  the request, one MessagePack value. Numbers that must keep all digits come as text.
--
-- t hash          id -> its state (see below)               b hash         id -> what the task is (JSON), written once
-- o hash          id -> what its attempts left (JSON)       k hash         key -> id
-- open            ids of tasks that have not ended, sorted  seq string     the number of the task that was added last
-- deleted string  the highest version that any deleted task had
-- s:<status>      ids of tasks that ended so, sorted
-- later           id by due time, while in the future       exp            id by the time at which it expires
-- r:<lane>        tasks that may be claimed: priority, due time and number as text that sorts, then the id
-- kinds, w:<kind>, at, shut, marked, due, mixed             the order of the lanes: see order.lua
-- doomed          queue and type of doomed tasks, which are ended whatever the limits; d:<queue and type> has their ids
-- lease           id by the end of its lease                f:<status>     id by its end, terminal ones only
-- c:<id> set      children that wait for it                 p:<id> set     parents that have not ended
-- u:<id> set      children that no longer wait for it and have not ended: they still need its result
-- kept set        tasks that ended and are not in f:, since purge found that a child that has not ended needs them
-- n hash          "<queue> <type> <status>" -> tasks        run   hash     lane -> tasks that are processing
-- settle hash     ended parent -> status, of parents with too many children for one script
-- limits hash, tat:<selector>, share, share:now             see pick.lua
-- nodes hash, alive (node by the end of its lease)          last:<worker>:... the last claim, to repeat a lost reply
-- A lane is "queue \31 type \31 limit key".

local root, call = KEYS[1], redis.call
local input = cmsgpack.unpack(ARGV[1])

-- The state of a task: these ten values, in MessagePack.
local STATUS, VERSION, ATTEMPTS = 1, 2, 3
local TOKEN = 4 -- of the last change
local LANE = 5
local LEFT, CHILDREN = 6, 7 -- whether it is in `o`; whether it ever had children
-- Three texts with \31 between their fields. Most scripts pass them on unchanged.
local CLAIM = 8 -- worker, start of the attempt, end of the lease, progress, note
local COURSE = 9 -- end, place (priority and due time as text that sorts), due time, expiry, interruptions, doom
local FIXED = 10 -- number, "1" if it fails with a parent, parents, key

local TERMINAL = {completed = true, failed = true, cancelled = true}
local ZERO = "0" -- the score of what is sorted by name
local SLICE = 1000 -- arguments of one command: unpack has a limit

local function claim_of(t) -- returns worker, start, end of the lease, progress and note
  return string.match(t[CLAIM], "^([^\31]*)\31([^\31]*)\31([^\31]*)\31(.*)$")
end

local function course_of(t) -- end, place, due time, expiry, interruptions, doom
  return string.match(t[COURSE], "^([^\31]*)\31([^\31]*)\31([^\31]*)\31([^\31]*)\31([^\31]*)\31(.*)$")
end

local function fixed_of(t) -- returns number, "1" if it fails with a parent, parents, key
  return string.match(t[FIXED], "^([^\31]*)\31([^\31]*)\31([^\31]*)\31(.*)$")
end

local function doom(t, reason)
  t[COURSE] = string.match(t[COURSE], "^.*\31") .. reason
end

local function is_doomed(t)
  return string.sub(t[COURSE], -1) ~= "\31"
end

local function number(x) -- returns a float as text, with all digits
  return string.format("%.17g", x)
end

-- Changes are collected, and written by flush: one command for many tasks.
local changes, counts = {}, {}

local function set(key, member, score) -- score false removes it
  local members = changes[key]
  if not members then
    members = {}
    changes[key] = members
  end
  members[member] = score
end

local function kind_of(lane) -- queue and type
  return string.match(lane, "^(.-\31.-)\31")
end

local function count(lane, status, by)
  local of_lane = counts[lane]
  if not of_lane then
    of_lane = {}
    counts[lane] = of_lane
  end
  of_lane[status] = (of_lane[status] or 0) + by
end

local function send(command, key, args)
  for i = 1, #args, SLICE do
    call(command, root .. key, unpack(args, i, math.min(i + SLICE - 1, #args)))
  end
end

local function add_to(hash, field, by)
  if call("HINCRBY", root .. hash, field, by) <= 0 then call("HDEL", root .. hash, field) end
end

local function limit_of(body) -- nil where it cannot be read: it then limits nothing
  local is_json, limit = pcall(cjson.decode, body)
  local function is_number(name) return type(limit[name]) == "number" end
  return is_json and type(limit) == "table" and is_number("rate") and is_number("burst") and is_number("max_running")
    and limit or nil
end

local tasks, packed = {}, {} -- by id: the state, or false; the same, packed
local dirty = {} -- ids of states to write
local states, bodies, lefts = {}, {}, {} -- new values of t, b and o: id, value, ...

local function read(hash, fields, use) -- use(position, value or false) for each
  for i = 1, #fields, SLICE do
    local values = call("HMGET", root .. hash, unpack(fields, i, math.min(i + SLICE - 1, #fields)))
    for j = 1, #values do use(i + j - 1, values[j]) end
  end
end

local function put(list, name, value)
  local n = #list
  list[n + 1], list[n + 2] = name, value
end

local function preload(ids)
  local missing = {}
  for _, id in ipairs(ids) do
    if tasks[id] == nil then
      tasks[id] = false
      missing[#missing + 1] = id
    end
  end
  read("t", missing, function(i, state)
    local id = missing[i]
    if state then tasks[id], packed[id] = {cmsgpack.unpack(state)}, state end
  end)
end

local function load(id) -- returns nil where there is none
  if tasks[id] == nil then preload({id}) end
  return tasks[id] or nil
end

local function write_hashes()
  for id in pairs(dirty) do
    if tasks[id] then
      packed[id] = cmsgpack.pack(unpack(tasks[id]))
      put(states, id, packed[id])
    end
  end
  send("HSET", "t", states)
  send("HSET", "b", bodies)
  send("HSET", "o", lefts)
  dirty, states, bodies, lefts = {}, {}, {}, {}
end

local function write_sets()
  for key, members in pairs(changes) do
    local into, out = {}, {}
    for member, score in pairs(members) do
      if score then
        put(into, score, member)
      else
        out[#out + 1] = member
      end
    end
    send("ZREM", key, out)
    send("ZADD", key, into)
  end
  changes = {}
end

local freed = {} -- limit keys whose tasks have ended

local function write_counts()
  local of_kinds = {}
  for lane, of_lane in pairs(counts) do
    local kind = kind_of(lane)
    for status, by in pairs(of_lane) do
      local name = kind .. "\31" .. status
      of_kinds[name] = (of_kinds[name] or 0) + by
    end
    local running = of_lane.processing or 0
    if running ~= 0 then add_to("run", lane, running) end
    if running < 0 then freed[string.match(lane, "^.-\31.-\31(.*)$")] = true end
  end
  for name, by in pairs(of_kinds) do
    if by ~= 0 then add_to("n", name, by) end
  end
  counts = {}
end

local touched = {} -- lanes whose first ready task may have changed
local place_lanes, open_full -- see order.lua

local function flush() -- writes the collected changes
  write_hashes()
  write_sets()
  write_counts()
  place_lanes()
  open_full()
end

local function ready(id, lane, place, number)
  set("r:" .. lane, place .. number .. id, ZERO)
  touched[lane] = true
end

local function enter_end(id, t) -- by the time at which it ended, for purge
  local ended = string.match(t[COURSE], "^[^\31]*")
  set("f:" .. t[STATUS], id, ended ~= "" and ended or ZERO)
end

local function enter(id, t, is_due) -- enters a task into its indexes; its state will be written
  local status = t[STATUS]
  dirty[id] = true
  count(t[LANE], status, 1)
  if TERMINAL[status] then
    set("s:" .. status, id, ZERO)
    enter_end(id, t)
    return set("open", id, false)
  elseif status == "processing" then
    local _, _, lease = claim_of(t)
    return set("lease", id, lease ~= "" and lease or ZERO)
  end
  local _, place, due, expiry, _, reason = course_of(t)
  if reason ~= "" then
    set("d:" .. kind_of(t[LANE]), id, ZERO)
    return set("doomed", kind_of(t[LANE]), ZERO)
  end
  if expiry ~= "" then set("exp", id, expiry) end
  if status == "blocked" then return end
  if is_due then
    ready(id, t[LANE], place, fixed_of(t))
  else
    set("later", id, due)
  end
end

local function leave(id, t) -- removes a task from its indexes
  local status = t[STATUS]
  count(t[LANE], status, -1)
  if TERMINAL[status] then
    set("s:" .. status, id, false)
    set("f:" .. status, id, false)
    return set("open", id, ZERO)
  elseif status == "processing" then
    return set("lease", id, false)
  end
  local _, place, _, expiry, _, reason = course_of(t)
  if reason ~= "" then return set("d:" .. kind_of(t[LANE]), id, false) end
  if expiry ~= "" then set("exp", id, false) end
  if status == "blocked" then return end
  set("later", id, false)
  set("r:" .. t[LANE], place .. fixed_of(t) .. id, false)
  touched[t[LANE]] = true
end

local function forget_parents(id)
  for _, parent in ipairs(call("SMEMBERS", root .. "p:" .. id)) do call("SREM", root .. "c:" .. parent, id) end
  call("DEL", root .. "p:" .. id)
end

local function is_needed(id)
  return call("EXISTS", root .. "c:" .. id, root .. "u:" .. id) > 0
end

local function free(id) -- lets purge remove a kept task that no child needs any more
  if is_needed(id) or call("SREM", root .. "kept", id) == 0 then return end
  local t = load(id)
  if t and TERMINAL[t[STATUS]] then enter_end(id, t) end
end

local function stop_needing_parents(id, t) -- the task has ended or is removed
  if string.byte(t[FIXED], string.byte(t[FIXED], 16) == 31 and 17 or 18) == 31 then return end -- it has none
  local _, _, parents = fixed_of(t)
  for parent in string.gmatch(parents, "[^,]+") do
    if call("SREM", root .. "u:" .. parent, id) == 1 then free(parent) end
  end
end

local function among(list) -- returns the members of a list as a set
  local found = {}
  for _, member in ipairs(list) do found[member] = true end
  return found
end

local function fall(id, t, reason)
  if t[STATUS] == "processing" then -- this attempt goes on, with its version, but is the last
    doom(t, reason)
    dirty[id] = true
    return
  end
  leave(id, t)
  t[VERSION] = t[VERSION] + 1
  doom(t, reason)
  enter(id, t)
end

local function unblock(id, t)
  leave(id, t)
  t[VERSION] = t[VERSION] + 1
  t[STATUS] = "pending"
  enter(id, t)
end

local function settle_child(id, t, parent, status) -- status "deleted" also applies to children that no longer wait
  local _, strict = fixed_of(t)
  local is_blocked = t[STATUS] == "blocked"
  if is_doomed(t) or not is_blocked and status ~= "deleted" then return end
  if strict == "1" and status ~= "completed" then
    fall(id, t, "its parent " .. parent .. " is " .. (status == "deleted" and "cancelled" or status))
  elseif is_blocked and call("EXISTS", root .. "p:" .. id) == 0 then
    unblock(id, t)
  end
end

-- A parent has ended: unblocks or dooms up to `budget` of its children. settle.lua does the others.
local function settle(parent, status, budget)
  status = call("HGET", root .. "settle", parent) or status
  local key = root .. "c:" .. parent
  local children, unfinished = call("SPOP", key, budget), {}
  preload(children)
  for _, id in ipairs(children) do
    call("SREM", root .. "p:" .. id, parent)
    local t = load(id)
    if t and not TERMINAL[t[STATUS]] then
      unfinished[#unfinished + 1] = id
      settle_child(id, t, parent, status)
    end
  end
  send("SADD", "u:" .. parent, unfinished)
  if call("EXISTS", key) == 1 then
    call("HSET", root .. "settle", parent, status)
  else
    call("HDEL", root .. "settle", parent)
    if #unfinished == 0 then free(parent) end
  end
  return #children
end

local function settle_some(budget) -- continues with children that were left
  if call("EXISTS", root .. "settle") == 0 then return 0 end
  local left = call("HGETALL", root .. "settle")
  for i = 1, #left, 2 do
    if budget <= 0 then break end
    budget = budget - settle(left[i], left[i + 1], budget)
  end
  flush()
  return call("HLEN", root .. "settle")
end

local function without_payload(body) -- the payload comes last (records.py)
  local at = string.find(body, ',"payload":', 1, true)
  return at and string.sub(body, 1, at - 1) .. "}" or body
end

local function error_alone(left) -- the error comes first (records.py), with quotes escaped
  if string.sub(left, 1, 9) ~= '{"error":' then return "" end
  local last = #left - 1
  for _, name in ipairs({"result", "history", "log"}) do
    local at = string.find(left, '},"' .. name .. '":', 1, true)
    if at and at < last then last = at end
  end
  return string.sub(left, 1, last) .. "}"
end

-- Returns, for each task that is stored: id, state, what it is, what its attempts left. A brief record has no payload,
-- result, history or log.
local function records(ids, is_brief)
  preload(ids)
  local there, left, found = {}, {}, {}
  for _, id in ipairs(ids) do
    local t = tasks[id]
    if t then
      there[#there + 1] = id
      if t[LEFT] then left[#left + 1] = id end
    end
  end
  local texts = {}
  read("o", left, function(i, text) texts[left[i]] = is_brief and error_alone(text) or text end)
  read("b", there, function(i, body)
    local n, id = #found, there[i]
    found[n + 1], found[n + 2], found[n + 4] = id, packed[id], texts[id] or ""
    found[n + 3] = is_brief and without_payload(body) or body
  end)
  return found
end

local function time() -- returns the server's time in seconds, as text
  local now = call("TIME")
  return now[1] .. "." .. string.format("%06d", now[2])
end

-- Publishes a change, unless the sender is the only subscriber. It subscribes to a second channel of its own, so that
-- it can be counted (not on a cluster, where others may subscribe on other nodes). Subscribers ignore what they sent.
local function publish(sender)
  local channel = root .. "changed"
  local n = redis.pcall("PUBSUB", "NUMSUB", channel, channel .. ":" .. sender)
  local is_alone = n[4] and n[4] > 0 and n[2] <= n[4]
  if not is_alone then call("PUBLISH", channel, sender) end
end

-- pick.lua: which waiting task is next; dtq/policy/limits.py does the same in Python, and names the sources.
--
-- limits hash        selector (JSON) -> limit (JSON)
-- tat:<selector>     sorted set: bucket by the time at which it is full again (GCRA), while that is in the future
-- share, share:now   sorted set: limit key by its mark, while that is ahead of the mark of the key that was served last

local ORDER = 34 -- characters of a member that say its place: priority 4, due time 16, number 14
local IN_LINE, ROUNDING = 1, 0.01 -- see dtq/limits.py

local function bucket_of(limit, key)
  return limit.key == "*" and key or ""
end

local function covers(limit, queue, type_, key)
  return (limit.queue == cjson.null or limit.queue == queue)
    and (limit.type == cjson.null or limit.type == type_)
    and (limit.key == cjson.null or limit.key == key or (limit.key == "*" and key ~= ""))
end

local function gates_of_limits()
  local gates, known = {}, call("HGETALL", root .. "limits")
  for i = 1, #known, 2 do
    local limit = limit_of(known[i + 1])
    if limit then gates[#gates + 1] = {selector = known[i], limit = limit, running = {}, next_at = {}} end
  end
  return gates
end

local function fits(limit, queue, type_)
  return (limit.queue == cjson.null or limit.queue == queue) and (limit.type == cjson.null or limit.type == type_)
end

local function holds_all_of(limit, kind) -- whether it counts all lanes of this kind together, or pauses all
  local queue, type_, key = split(kind)
  return fits(limit, queue, type_)
    and (limit.key == cjson.null or limit.paused and limit.key == "*" and key == "*")
end

local function running(gate, bucket)
  if not gate.running[bucket] then
    local n, seen, limit = 0, {}, gate.limit
    local key = limit.key == "*" and bucket or limit.key
    for _, kind in ipairs(all_kinds()) do
      local queue, type_ = split(kind)
      local name = queue .. "\31" .. type_ .. "\31"
      if fits(limit, queue, type_) and not seen[name] then
        seen[name] = true
        local found = key == cjson.null and call("HGET", root .. "n", name .. "processing")
          or key ~= cjson.null and call("HGET", root .. "run", name .. key)
        n = n + tonumber(found or 0)
      end
    end
    gate.running[bucket] = n
  end
  return gate.running[bucket]
end

local function next_at(gate, bucket)
  if not gate.next_at[bucket] then
    gate.next_at[bucket] = tonumber(call("ZSCORE", root .. "tat:" .. gate.selector, bucket) or 0)
  end
  return gate.next_at[bucket]
end

local function closed_until(gates) -- pairs of a gate and a bucket
  local latest = 0
  for _, pair in ipairs(gates) do
    local gate, bucket = pair[1], pair[2]
    local limit = gate.limit
    if limit.paused or limit.max_running > 0 and running(gate, bucket) >= limit.max_running then return math.huge end
    if limit.rate > 0 then
      latest = math.max(latest, next_at(gate, bucket) - (limit.burst - 1) / limit.rate - ROUNDING / limit.rate)
    end
  end
  return latest
end

local function own_gates(gates, kind, lane) -- the gates of this lane, without those of its whole kind
  local queue, type_, key = split(lane)
  local found = {}
  for _, gate in ipairs(gates) do
    if covers(gate.limit, queue, type_, key) and not holds_all_of(gate.limit, kind) then
      found[#found + 1] = {gate, bucket_of(gate.limit, key)}
    end
  end
  return found
end

local function byte(hex)
  return string.char(tonumber(hex, 16))
end

local function counts_from(member, now) -- the time at which the task starts, for the rate
  local run_at = struct.unpack(">d", (string.gsub(string.sub(member, 5, 20), "..", byte)))
  return now < run_at and run_at <= now + IN_LINE and run_at or now
end

local function enter_all(gates, at)
  for _, pair in ipairs(gates) do
    local gate, bucket = pair[1], pair[2]
    gate.running[bucket] = running(gate, bucket) + 1
    if gate.limit.rate > 0 then
      gate.next_at[bucket] = math.max(next_at(gate, bucket), at) + 1 / gate.limit.rate
      gate.changed = true
    end
  end
end

local function start(contender, now) -- counts its head in the gates; returns false where one is closed
  local way = contender.way
  if #contender.gates == 0 and #way.shared == 0 then return true end
  local at = counts_from(contender.head, now)
  if closed_until(way.shared) > at then
    way.is_closed = true
    return false
  end
  if closed_until(contender.gates) > at then return false end
  enter_all(contender.gates, at)
  enter_all(way.shared, at)
  return true
end

local function forget(key, upto, most) -- removes some entries that no longer matter
  send("ZREM", key, call("ZRANGEBYSCORE", root .. key, "-inf", number(upto), "LIMIT", 0, most))
end

local function keep_gates(gates, now, most)
  for _, gate in ipairs(gates) do
    if gate.changed then
      local key = "tat:" .. gate.selector
      for bucket, at in pairs(gate.next_at) do
        if at > now then call("ZADD", root .. key, number(at), bucket) end
      end
      forget(key, now, most)
    end
  end
end

-- A group: the open lanes of one kind with the same priority and mark. A few lanes are read at a time.
local function look_into(way, name)
  return {from = "[" .. name, to = "(" .. name .. "g", key = "w:" .. way.kind, lanes = {}, at = 0, step = way.step}
end

local function top_of(group)
  if not group.lanes[group.at] then
    group.lanes = call("ZRANGEBYLEX", root .. group.key, group.from, group.to, "LIMIT", 0, group.step)
    group.at, group.step = 1, math.min(group.step * 4, 512)
    if group.lanes[1] then group.from = "(" .. group.lanes[#group.lanes] end
  end
  return group.lanes[group.at]
end

local function next_group(way) -- returns the name of the group behind way.name: priority and mark
  local from = way.name and "(" .. way.name .. "g" or "-"
  local lane = call("ZRANGEBYLEX", root .. "w:" .. way.kind, from, "+", "LIMIT", 0, 1)[1]
  return lane and string.sub(lane, 1, 18)
end

local function open_groups(way, now, last) -- reads the groups that are served next, side by side
  way.groups = {}
  local name = next_group(way)
  if not name or name >= last then return end
  local priority = string.sub(name, 1, 4)
  while name and string.sub(name, 1, 4) == priority do
    way.mark = math.max(tonumber(string.sub(name, 5)), now)
    if way.mark > now and way.groups[1] then
      way.mark = now
      break
    end
    way.groups[#way.groups + 1], way.name = look_into(way, name), name
    if way.mark > now then break end
    name = next_group(way)
  end
end

local function few_lanes(way, now) -- returns all lanes of the kind in turn, if they are few, else nil
  local lanes, turn = call("ZRANGEBYLEX", root .. "w:" .. way.kind, "-", "+", "LIMIT", 0, way.step), {}
  if #lanes == way.step then return false end
  for _, lane in ipairs(lanes) do
    local mark = math.max(tonumber(string.sub(lane, 5, 18)), now)
    turn[lane] = string.sub(lane, 1, 4) .. string.format("%014d", mark) .. string.sub(lane, 19)
  end
  table.sort(lanes, function(a, b) return turn[a] < turn[b] end)
  return lanes
end

local function next_lane(way, now, last) -- returns the text of the lane of this kind that is served next
  if way.few == nil then way.few = few_lanes(way, now) end
  if way.few then
    local lane = not way.is_closed and table.remove(way.few, 1) or nil
    way.mark = lane and math.max(tonumber(string.sub(lane, 5, 18)), now)
    return lane and lane < last and lane or nil
  end
  while not way.is_closed do
    local best, best_at
    for _, group in ipairs(way.groups) do
      local lane = top_of(group)
      local order = lane and string.sub(lane, 19, 48)
      if order and (not best or order < best) then best, best_at = order, group end
    end
    if best then
      best_at.at = best_at.at + 1
      return best_at.lanes[best_at.at - 1]
    end
    open_groups(way, now, last)
    if not way.groups[1] then return nil end
  end
end

-- Tasks of a lane are read a few at a time, and more as it keeps being served. Those from `last` on are excluded.
local function advance(contender, last)
  contender.at = contender.at + 1
  if contender.at > #contender.heads then
    contender.heads = call("ZRANGE", root .. "r:" .. contender.lane, contender.read, contender.read + contender.step - 1)
    contender.read, contender.at = contender.read + #contender.heads, 1
    contender.step = math.min(contender.step * 4, 512)
  end
  local member = contender.heads[contender.at]
  contender.member = member and member < last and member or nil
  contender.head = contender.member and string.sub(contender.member, 1, ORDER)
  return contender.member
end

local function push(heap, item, before)
  local i = #heap + 1
  heap[i] = item
  while i > 1 do
    local above = math.floor(i / 2)
    if not before(heap[i], heap[above]) then break end
    heap[i], heap[above] = heap[above], heap[i]
    i = above
  end
end

local function pop(heap, before)
  local top, i = heap[1], 1
  heap[1] = heap[#heap]
  heap[#heap] = nil
  while true do
    local least = i
    for below = 2 * i, 2 * i + 1 do
      if heap[below] and before(heap[below], heap[least]) then least = below end
    end
    if least == i then return top end
    heap[i], heap[least] = heap[least], heap[i]
    i = least
  end
end

local function by_turn(a, b) -- priority, then the mark of the key, then the head
  local pa, pb = string.sub(a.head, 1, 4), string.sub(b.head, 1, 4)
  if pa ~= pb then return pa < pb end
  if a.mark ~= b.mark then return a.mark < b.mark end
  return a.head < b.head
end

-- Removes the up to n tasks that go next from their lanes. Returns their ids, best first. `names` are the kinds; tasks
-- from `last` on are excluded.
local function pick(names, n, now, last)
  if n <= 0 then return {} end
  local most = 64 + 2 * n
  local share_now = tonumber(call("GET", root .. "share:now") or 0)
  local share = {now = share_now, ahead = {}}
  local order, picked, taken, closed = {}, {}, {}, {}
  local marks, served, keys, n_keys = {}, {}, {}, 0 -- by key: mark in this claim; new mark; whether in `order`
  local gates, ways = gates_of_limits(), {}
  open_again(now, most)
  level(share_now, most)
  for _, kind in ipairs(names) do
    local shared = {}
    for _, gate in ipairs(gates) do
      if holds_all_of(gate.limit, kind) then shared[#shared + 1] = {gate, ""} end
    end
    local way = {kind = kind, shared = shared, groups = {}, step = n + 8}
    if closed_until(shared) <= now then ways[#ways + 1] = way end
  end
  local function read_next(way) -- enters the next open lane of this kind
    local text = next_lane(way, share_now, last)
    while text do
      local key = string.sub(text, ORDER_OF_KEY)
      local lane = (key == "" and way.kind or string.sub(way.kind, 1, -2)) .. key
      local contender = {lane = lane, key = key, way = way, heads = {}, at = 0, read = 0, mark = way.mark}
      contender.head = string.sub(text, 1, 4) .. string.sub(text, 19, 48)
      contender.gates = #gates > 0 and own_gates(gates, way.kind, lane) or {}
      local until_ = closed_until(contender.gates)
      if until_ <= now then
        if contender.mark > share.now then share.ahead[key] = true end
        if not keys[key] then keys[key], n_keys = true, n_keys + 1 end
        way.last = contender
        return push(order, contender, by_turn)
      end
      closed[#closed + 1] = {lane, "-" .. text, until_}
      text = next_lane(way, share_now, last)
    end
  end
  for _, way in ipairs(ways) do read_next(way) end
  for _, way in ipairs(ways) do
    if n_keys < 2 then read_next(way) end
  end
  local is_shared = n_keys > 1
  local function serve(contender)
    local key = contender.key
    if is_shared then
      if share.ahead[key] then share.now, share.ahead = share.now + 1, {} end
      share.ahead[key] = true
      served[key] = share.now + 1
    end
    marks[key] = share.now + (share.ahead[key] and 1 or 0)
    picked[#picked + 1] = string.sub(contender.member, ORDER + 1)
    taken[contender.lane] = (taken[contender.lane] or 0) + 1
  end
  while #order > 0 and #picked < n do
    local contender = pop(order, by_turn)
    local key = contender.key
    if contender == contender.way.last then read_next(contender.way) end
    if (marks[key] or contender.mark) > contender.mark then -- another lane of this key was served since
      contender.mark = marks[key]
      push(order, contender, by_turn)
    elseif start(contender, now) then
      if not contender.member then
        contender.step = #order == 0 and n - #picked or 4
        advance(contender, last)
      end
      serve(contender)
      local has_more = #picked < n and advance(contender, last)
      while has_more and #order == 0 and start(contender, now) do -- no other lane competes
        serve(contender)
        has_more = #picked < n and advance(contender, last)
      end
      contender.mark = marks[key]
      if has_more then push(order, contender, by_turn) end
    end
  end
  for lane, how_many in pairs(taken) do call("ZREMRANGEBYRANK", root .. "r:" .. lane, 0, how_many - 1) end
  for key, mark in pairs(served) do
    call("ZADD", root .. "share", number(mark), key)
    local lanes = lanes_of(key)
    for i = 1, #lanes, 2 do place_lane(lanes[i], mark > share.now and string.format("%014d", mark) or NO_MARK) end
  end
  for lane in pairs(taken) do place_lane(lane) end
  for _, found in ipairs(closed) do shut(unpack(found)) end
  if #gates > 0 then
    for lane in pairs(taken) do
      local _, _, key = split(lane)
      local lanes = lanes_of(key)
      for i = 1, #lanes, 2 do
        local until_ = closed_until(own_gates(gates, (with_key(lanes[i])), lanes[i]))
        if until_ > now then shut(lanes[i], lanes[i + 1], until_) end
      end
    end
  end
  keep_gates(gates, now, most)
  if next(served) then
    call("SET", root .. "share:now", number(share.now))
    forget("share", share.now, most)
  end
  return picked
end

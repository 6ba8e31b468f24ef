-- pick.lua: which waiting task is next; dtq/limits.py says it in Python, with the sources.
--
-- limits hash        selector (JSON) -> limit (JSON)
-- tat:<selector>     sorted set: bucket by the time at which it is full again (GCRA), while that is to come
-- share, share:now   sorted set: limit key by its mark, while that is ahead of the mark of the one served last

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

local function split(lane)
  return string.match(lane, "^(.-)\31(.-)\31(.*)$")
end

local function gates_of_limits()
  local gates, known = {}, call("HGETALL", root .. "limits")
  if #known == 0 then return gates end
  for i = 1, #known, 2 do
    local limit = limit_of(known[i + 1])
    if limit then gates[#gates + 1] = {selector = known[i], limit = limit, running = {}, next_at = {}} end
  end
  local run = call("HGETALL", root .. "run")
  for i = 1, #run, 2 do
    local queue, type_, key = split(run[i])
    for _, gate in ipairs(gates) do
      if covers(gate.limit, queue, type_, key) then
        local bucket = bucket_of(gate.limit, key)
        gate.running[bucket] = (gate.running[bucket] or 0) + tonumber(run[i + 1])
      end
    end
  end
  return gates
end

local function next_at(gate, bucket)
  if not gate.next_at[bucket] then
    gate.next_at[bucket] = tonumber(call("ZSCORE", root .. "tat:" .. gate.selector, bucket) or 0)
  end
  return gate.next_at[bucket]
end

local function is_open(contender, now)
  for _, pair in ipairs(contender.gates) do
    local gate, bucket = pair[1], pair[2]
    local limit = gate.limit
    if limit.paused then return false end
    if limit.max_running > 0 and (gate.running[bucket] or 0) >= limit.max_running then return false end
    if limit.rate > 0 then
      local opens_at = next_at(gate, bucket) - (limit.burst - 1) / limit.rate
      if opens_at > now + ROUNDING / limit.rate then return false end
    end
  end
  return true
end

local function byte(hex)
  return string.char(tonumber(hex, 16))
end

local function counts_from(member, now) -- when the task has started, for the rate
  local run_at = struct.unpack(">d", (string.gsub(string.sub(member, 5, 20), "..", byte)))
  return now < run_at and run_at <= now + IN_LINE and run_at or now
end

local function start(contender, now) -- lets its head through the gates; says whether they were open
  if #contender.gates == 0 then return true end
  local at = counts_from(contender.member, now)
  if not is_open(contender, at) then return false end
  for _, pair in ipairs(contender.gates) do
    local gate, bucket = pair[1], pair[2]
    gate.running[bucket] = (gate.running[bucket] or 0) + 1
    if gate.limit.rate > 0 then
      gate.next_at[bucket] = math.max(next_at(gate, bucket), at) + 1 / gate.limit.rate
      gate.changed = true
    end
  end
  return true
end

local function keep_gates(gates, now)
  for _, gate in ipairs(gates) do
    if gate.changed then
      local key = root .. "tat:" .. gate.selector
      for bucket, at in pairs(gate.next_at) do
        if at > now then call("ZADD", key, number(at), bucket) end
      end
      call("ZREMRANGEBYSCORE", key, "-inf", number(now))
    end
  end
end

-- Heads are read a few at a time, and more as a lane goes on winning. Those from `last` on are not wanted.
local function advance(contender, last)
  contender.at = contender.at + 1
  if contender.at > #contender.heads then
    local key = root .. "r:" .. contender.lane
    contender.heads = call("ZRANGE", key, contender.read, contender.read + contender.step - 1)
    if contender.read == 0 and #contender.heads == 0 then call("ZREM", root .. "lanes", contender.lane) end
    contender.read, contender.at = contender.read + #contender.heads, 1
    contender.step = math.min(contender.step * 4, 512)
  end
  local member = contender.heads[contender.at]
  contender.member = member and member < last and member or nil
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

local function by_head(a, b)
  return a.member < b.member
end

local function by_turn(a, b) -- priority, then the mark of the key, then the head
  local pa, pb = string.sub(a.member, 1, 4), string.sub(b.member, 1, 4)
  if pa ~= pb then return pa < pb end
  if a.mark ~= b.mark then return a.mark < b.mark end
  return a.member < b.member
end

local function open_rivals(lanes, gates, n, now, last) -- limit key -> a heap of its lanes; and how many keys
  local rivals, keys = {}, 0
  for _, lane in ipairs(lanes) do
    local queue, type_, key = split(lane)
    local contender = {lane = lane, key = key, gates = {}, heads = {}, at = 0, read = 0, step = #lanes == 1 and n or 4}
    for _, gate in ipairs(gates) do
      if covers(gate.limit, queue, type_, key) then
        contender.gates[#contender.gates + 1] = {gate, bucket_of(gate.limit, key)}
      end
    end
    if is_open(contender, now) and advance(contender, last) then
      if not rivals[key] then
        rivals[key], keys = {}, keys + 1
      end
      push(rivals[key], contender, by_head)
    end
  end
  return rivals, keys
end

local function pick(lanes, n, now, last) -- takes out the up to n tasks that go next: their ids, best first
  local gates = gates_of_limits()
  local rivals, keys = open_rivals(lanes, gates, n, now, last)
  local share = keys > 1 and {now = tonumber(call("GET", root .. "share:now") or 0), marks = {}}
  local function mark(key)
    if not share then return 0 end
    if not share.marks[key] then share.marks[key] = tonumber(call("ZSCORE", root .. "share", key) or 0) end
    return math.max(share.marks[key], share.now)
  end
  local order, picked, taken = {}, {}, {} -- of each lane its first
  for key, lanes_of_key in pairs(rivals) do
    push(order, {key = key, lanes = lanes_of_key, mark = mark(key), member = lanes_of_key[1].member}, by_turn)
  end
  local function serve(rival, contender)
    if share then
      share.now = mark(rival.key)
      share.marks[rival.key] = share.now + 1
      call("ZADD", root .. "share", number(share.now + 1), rival.key)
    end
    picked[#picked + 1] = string.sub(contender.member, ORDER + 1)
    taken[contender.lane] = (taken[contender.lane] or 0) + 1
    return #picked < n and advance(contender, last)
  end
  while #order > 0 and #picked < n do
    local rival = pop(order, by_turn)
    local contender = pop(rival.lanes, by_head)
    local has_more = start(contender, now) and serve(rival, contender)
    while has_more and #order == 0 and #rival.lanes == 0 and #picked < n do -- there is no other
      has_more = start(contender, now) and serve(rival, contender)
    end
    if has_more then push(rival.lanes, contender, by_head) end
    if rival.lanes[1] then
      rival.member, rival.mark = rival.lanes[1].member, mark(rival.key)
      push(order, rival, by_turn)
    end
  end
  for lane, how_many in pairs(taken) do call("ZREMRANGEBYRANK", root .. "r:" .. lane, 0, how_many - 1) end
  keep_gates(gates, now)
  if share and #picked > 0 then
    call("SET", root .. "share:now", number(share.now))
    call("ZREMRANGEBYSCORE", root .. "share", "-inf", number(share.now))
  end
  return picked
end

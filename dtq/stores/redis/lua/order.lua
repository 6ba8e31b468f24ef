-- order.lua: the lanes that have a task ready, in the order in which they are served. Part of every script.
--
--   kind: queue \31 type \31 "*" (lanes with a limit key) or "" (the one without)
--
--   w:<kind>   open lanes, as text that sorts: priority 4, mark 14, due time 16 and number 14 of the first ready task, key
--     ^   |
--     |   | its own limit is reached
--     |   v
--   shut       closed lanes by the time at which they may open (infinity: the end of a task, or another limit, opens them)
--
-- kinds   every kind that ever was             at hash   lane -> "m" if its tasks differ in priority, else "-"; then its text
-- marked  lanes by the mark of their key       due       due time of the first task, and lane       mixed   lanes with "m"
--
-- A mark that is not ahead of share:now counts as share:now. Each claim sets some old marks to 0 (level), so
-- there are few different ones.

local ORDER_OF_KEY = 49 -- the position of the limit key in the text of a lane
local NO_MARK = string.rep("0", 14)
local kinds -- every kind

local function split(lane)
  return string.match(lane, "^(.-)\31(.-)\31(.*)$")
end

local function with_key(lane) -- returns its kind and its limit key
  local queue, type_, key = split(lane)
  return queue .. "\31" .. type_ .. "\31" .. (key ~= "" and "*" or ""), key
end

local function all_kinds()
  kinds = kinds or call("ZRANGE", root .. "kinds", 0, -1)
  return kinds
end

local function lanes_of(key) -- returns the lanes with this limit key that have a task ready: lane, value of `at`, ...
  local names, found = {}, {}
  for _, kind in ipairs(all_kinds()) do
    local is_keyed = string.sub(kind, -1) == "*"
    if is_keyed == (key ~= "") then names[#names + 1] = (is_keyed and string.sub(kind, 1, -2) or kind) .. key end
  end
  read("at", names, function(i, value)
    if value then put(found, names[i], value) end
  end)
  return found
end

local function mark_of(key) -- as text
  local mark = tonumber(call("ZSCORE", root .. "share", key) or 0)
  return mark > tonumber(call("GET", root .. "share:now") or 0) and string.format("%014d", mark) or NO_MARK
end

local function take_out(lane, kind, value)
  call("ZREM", root .. "w:" .. kind, string.sub(value, 2))
  call("ZREM", root .. "due", string.sub(value, 20, 35) .. lane)
  if string.sub(value, 6, 19) ~= NO_MARK then call("ZREM", root .. "marked", lane) end
  if string.sub(value, 1, 1) == "m" then call("SREM", root .. "mixed", lane) end
end

local function put_in(lane, kind, value)
  call("HSET", root .. "at", lane, value)
  call("ZADD", root .. "kinds", 0, kind)
  call("ZADD", root .. "due", 0, string.sub(value, 20, 35) .. lane)
  local mark = string.sub(value, 6, 19)
  if mark ~= NO_MARK then call("ZADD", root .. "marked", tonumber(mark), lane) end
  if string.sub(value, 1, 1) == "m" then call("SADD", root .. "mixed", lane) end
  if not call("ZSCORE", root .. "shut", lane) then call("ZADD", root .. "w:" .. kind, 0, string.sub(value, 2)) end
end

local function place_lane(lane, mark) -- enters it by its first task; with mark nil, its mark stays
  local kind, key = with_key(lane)
  local old = call("HGET", root .. "at", lane)
  local first = call("ZRANGE", root .. "r:" .. lane, 0, 0)[1]
  if not first then
    if old then
      take_out(lane, kind, old)
      call("HDEL", root .. "at", lane)
      call("ZREM", root .. "shut", lane)
    end
    return
  end
  local last = call("ZRANGE", root .. "r:" .. lane, -1, -1)[1]
  local priority = string.sub(first, 1, 4)
  mark = mark or (old and string.sub(old, 6, 19)) or mark_of(key)
  local new = (priority == string.sub(last, 1, 4) and "-" or "m") .. priority .. mark .. string.sub(first, 5, 34) .. key
  if new == old then return end
  if old then take_out(lane, kind, old) end
  if not old then kinds = nil end
  put_in(lane, kind, new)
end

function place_lanes()
  for lane in pairs(touched) do place_lane(lane) end
  touched = {}
end

local function let_in(lane)
  call("ZREM", root .. "shut", lane)
  local value = call("HGET", root .. "at", lane)
  if value then call("ZADD", root .. "w:" .. with_key(lane), 0, string.sub(value, 2)) end
end

local function shut(lane, value, until_) -- `value` is its value in `at`
  call("ZADD", root .. "shut", until_ == math.huge and "inf" or number(until_), lane)
  call("ZREM", root .. "w:" .. with_key(lane), string.sub(value, 2))
end

function open_full() -- a task under such a key has ended: what was full is let in
  if next(freed) and call("EXISTS", root .. "shut") == 1 then
    for key in pairs(freed) do
      local lanes = lanes_of(key)
      for i = 1, #lanes, 2 do
        if call("ZSCORE", root .. "shut", lanes[i]) == "inf" then let_in(lanes[i]) end
      end
    end
  end
  freed = {}
end

local function open_again(now, most)
  for _, lane in ipairs(call("ZRANGEBYSCORE", root .. "shut", "-inf", number(now), "LIMIT", 0, most)) do let_in(lane) end
end

local function level(now, most) -- sets old marks to 0, the newest first
  for _, lane in ipairs(call("ZREVRANGEBYSCORE", root .. "marked", "(" .. number(now), "-inf", "LIMIT", 0, most)) do
    place_lane(lane, NO_MARK)
  end
end

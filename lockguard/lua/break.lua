-- End another holder's lease: ask the holder for a hand-over, or break the lease by force.
-- Force ends a lease while its body runs, so the lock delay begins now: the holder's commands may still be in
-- flight. Without a delay the first waiter is woken and the lock reserved for it, as by a release.
-- The grant that ends may wait here, or have the lock reserved: one of several nodes was busy, or woke it, when the
-- others gave it the lease. That ends too, or the node would be reserved for nobody.
-- The floor is raised above all tokens that the server knows, and above its time: a server that has lost its data, or
-- has older ones, has forgotten tokens that it gave out, and none of them was ahead of its clock. So nobody has the
-- floor itself for a token, up to which the fence is closed: the next grant's is higher, and is not refused.
-- What `at_least` keeps closed is opened: an operator who breaks a lock wants it to be taken. Only the lock delay
-- stays.
--
-- KEYS[1] lock  KEYS[2] floor  KEYS[3] tenure  KEYS[4] history  KEYS[5] queue  KEYS[6] inboxes  KEYS[7] next
-- KEYS[8] waiting (as in acquire.lua)
--
-- ARGV[1] "ask" or "force"
-- ARGV[2] reason    for display only
-- ARGV[3] token     with "force": the floor is raised to at least this token, and above the time; 0 for none
-- ARGV[4] expected  the grant that is to be ended or asked; "none": only a free lock is opened; "" for any
--
-- Returns {grant, holder, floor, kept}: grant and holder are "" if the lock was free; floor is the floor in force.
--   kept  1 if another grant than the expected one holds the lock: nothing was changed

local FLOOR_TTL_MS = 604800000
local AHEAD_US = 315360000000000

local time = redis.call('TIME')
local held = redis.call('HMGET', KEYS[1], 'grant', 'holder')
local floor = tonumber(redis.call('GET', KEYS[2])) or 0
local closing = ARGV[1] == 'force' and redis.call('GET', KEYS[3]) or '' -- before anything is changed
local delay, at_least = string.match(closing, '^(%d+) ?(%d*)$')
local delay_ms = tonumber(delay) or 0
if not (floor >= 0 and floor <= time[1] * 1000000 + time[2] + AHEAD_US) then
  floor = 0 -- no lock issued such a token, see acquire.lua
end
if ARGV[4] ~= '' and held[1] and held[1] ~= ARGV[4] then
  return {held[1], held[2] or '', string.format('%.0f', floor), 1}
end
if ARGV[1] == 'force' then
  floor = math.max(floor + 1, tonumber(ARGV[3]), time[1] * 1000000 + time[2] + 1)
end
local text, freed = string.format('%.0f', floor), false

-- Returns whether the lock was reserved for the grant.
local function take_out(grant)
  for _, place in ipairs(redis.pcall('ZRANGE', KEYS[5], 0, -1)) do
    if string.sub(place, 1, #grant + 1) == grant .. ' ' then
      redis.pcall('ZREM', KEYS[5], place)
    end
  end
  redis.pcall('HDEL', KEYS[8], grant)
  if redis.call('EXISTS', KEYS[5]) == 0 then
    redis.call('DEL', KEYS[6], KEYS[8])
  end
  local reserved = redis.pcall('GET', KEYS[7])
  if type(reserved) == 'string' and string.sub(reserved, 1, #grant + 1) == grant .. ' ' then
    redis.call('DEL', KEYS[7])
    return true
  end
  return false
end

if ARGV[1] == 'ask' then
  if held[1] then
    if redis.call('HGET', KEYS[1], 'wanted') ~= ARGV[2] then -- who asks again and again is one line
      redis.pcall('LPUSHX', KEYS[4], string.format('%s%06d asked grant=%s reason=%s', time[1], time[2], held[1],
        ARGV[2]))
    end
    redis.call('HSET', KEYS[1], 'wanted', ARGV[2])
  end
else
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[2], text, 'PX', FLOOR_TTL_MS)
  if held[1] then
    redis.pcall('LPUSH', KEYS[4], string.format('%s%06d broken grant=%s reason=%s', time[1], time[2], held[1],
      ARGV[2]))
    redis.pcall('PEXPIRE', KEYS[4], FLOOR_TTL_MS) -- even without a history: only this line records why
    freed = true
  elseif at_least and at_least ~= '' then
    local left_ms = redis.call('PTTL', KEYS[3])
    if left_ms > delay_ms then -- else only the lock delay is left, which goes on: nothing is opened
      redis.pcall('LPUSHX', KEYS[4], string.format('%s%06d opened reason=%s', time[1], time[2], ARGV[2]))
    end
    delay_ms = math.min(delay_ms, left_ms)
    freed = true
  end
  if freed and delay_ms > 0 then
    redis.call('PEXPIRE', KEYS[3], delay_ms)
    freed = false -- no waiter is woken; waiters ask again when the delay is over
  elseif freed then
    redis.call('DEL', KEYS[3])
  end
  local ended = held[1] or ARGV[4]
  if ended ~= '' and take_out(ended) and not held[1] then
    freed = redis.call('EXISTS', KEYS[3]) == 0
  end
end

-- include wake.lua

if freed then
  wake_first(KEYS[5], KEYS[6], KEYS[7], KEYS[8])
end
return {held[1] or '', held[2] or '', text, 0}

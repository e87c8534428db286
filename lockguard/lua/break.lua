-- End another holder's lease: ask the holder for a hand-over, or break the lease by force.
-- Force ends a lease while its body runs, so the lock delay begins now: the holder's commands may still be in
-- flight. Without a delay the first waiter is woken and the lock reserved for it, as by a release.
-- What `at_least` keeps closed is opened: an operator who breaks a lock wants it to be taken. Only the lock delay
-- stays.
--
-- KEYS[1] lock  KEYS[2] floor  KEYS[3] tenure  KEYS[4] history  KEYS[5] queue  KEYS[6] inboxes  KEYS[7] next
-- KEYS[8] waiting (as in acquire.lua)
--
-- ARGV[1] "ask" or "force"
-- ARGV[2] reason    for display only
-- ARGV[3] token     with "force": the floor is raised to at least this token; 0 for none
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
floor = math.max(floor, tonumber(ARGV[3]))
local text, freed = string.format('%.0f', floor), false
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
  if floor > 0 then
    redis.call('SET', KEYS[2], text, 'PX', FLOOR_TTL_MS)
  end
  if held[1] then
    redis.pcall('LPUSH', KEYS[4], string.format('%s%06d broken grant=%s reason=%s', time[1], time[2], held[1],
      ARGV[2]))
    redis.pcall('PEXPIRE', KEYS[4], FLOOR_TTL_MS) -- even without a history: only this line records why
    freed = true
  elseif at_least and at_least ~= '' then
    delay_ms = math.min(delay_ms, redis.call('PTTL', KEYS[3]))
    redis.pcall('LPUSHX', KEYS[4], string.format('%s%06d opened reason=%s', time[1], time[2], ARGV[2]))
    freed = true
  end
  if freed and delay_ms > 0 then
    redis.call('PEXPIRE', KEYS[3], delay_ms)
    freed = false -- no waiter is woken; waiters ask again when the delay is over
  elseif freed then
    redis.call('DEL', KEYS[3])
  end
end

-- include wake.lua

if freed then
  wake_first(KEYS[5], KEYS[6], KEYS[7], KEYS[8])
end
return {held[1] or '', held[2] or '', text, 0}

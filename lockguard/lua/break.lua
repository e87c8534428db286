-- End somebody else's lease: ask the holder to hand over, or throw it out.
-- Throwing out keeps the lock closed for nobody: the next in the queue finds it free when it asks, and
-- wakes within its own bounded sleep.
--
-- KEYS[1] lock  KEYS[2] floor  KEYS[3] tenure  KEYS[4] history   (as in acquire.lua)
--
-- ARGV[1] "ask" or "force"
-- ARGV[2] reason    text for people
-- ARGV[3] token     with "force": the floor is raised to at least this; 0 for none
--
-- Returns {grant, holder, floor}: who held it ("" and "" if nobody did) and the floor in force.

local FLOOR_TTL_MS = 604800000

local AHEAD_US = 315360000000000

local time = redis.call('TIME')
local held = redis.call('HMGET', KEYS[1], 'grant', 'holder')
local floor = tonumber(redis.call('GET', KEYS[2])) or 0
if not (floor >= 0 and floor <= time[1] * 1000000 + time[2] + AHEAD_US) then
  floor = 0 -- none that a lock gave out, see acquire.lua
end
floor = math.max(floor, tonumber(ARGV[3]))
local text = string.format('%.0f', floor)
if ARGV[1] == 'ask' then
  if held[1] then
    redis.call('HSET', KEYS[1], 'wanted', ARGV[2])
  end
else
  redis.call('DEL', KEYS[1], KEYS[3])
  if floor > 0 then
    redis.call('SET', KEYS[2], text, 'PX', FLOOR_TTL_MS)
  end
  if held[1] then
    redis.pcall('LPUSH', KEYS[4], string.format('%s%06d broken grant=%s reason=%s', time[1], time[2], held[1],
      ARGV[2]))
  end
end
return {held[1] or '', held[2] or '', text}

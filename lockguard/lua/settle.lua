-- Write a lease's final token while its grant still holds the lock. Tokens only increase.
--
-- KEYS[1] lock  KEYS[2] floor   (as in acquire.lua)
--
-- ARGV[1] grant
-- ARGV[2] token
--
-- Returns 1 if settled, 0 if this grant does not hold the lock: nothing was changed. An error if the token is
-- farther ahead than any that a lock issues, see acquire.lua.

local FLOOR_TTL_MS = 604800000
local AHEAD_US = 315360000000000

if redis.call('HGET', KEYS[1], 'grant') ~= ARGV[1] then
  return 0
end
local time = redis.call('TIME')
local most = time[1] * 1000000 + time[2] + AHEAD_US
local token = tonumber(ARGV[2])
if not (token and token <= most) then
  return redis.error_reply('ERR the token ' .. ARGV[2] .. ' lies more than ten years ahead')
end
local floor = tonumber(redis.call('GET', KEYS[2])) or 0
redis.call('HSET', KEYS[1], 'token', ARGV[2])
if not (floor >= token and floor <= most) then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', FLOOR_TTL_MS)
end
return 1

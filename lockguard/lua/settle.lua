-- Write a lease's final token, while its grant still holds the lock. Tokens only grow.
--
-- KEYS[1] lock  KEYS[2] floor   (as in acquire.lua)
--
-- ARGV[1] grant
-- ARGV[2] token
--
-- Returns 1 if settled, 0 if this grant does not hold the lock: nothing was changed.

local FLOOR_TTL_MS = 604800000

if redis.call('HGET', KEYS[1], 'grant') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'token', ARGV[2])
if (tonumber(redis.call('GET', KEYS[2])) or 0) < tonumber(ARGV[2]) then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', FLOOR_TTL_MS)
end
return 1

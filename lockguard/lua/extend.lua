-- Renew a lease that is held; never revive one that has ended (S6). PEXPIRE works on a full server.
-- A lock that something else overwrote with a value of another type is held by nobody.
--
-- KEYS[1] lock  KEYS[2] tenure  KEYS[3] seal   (as in acquire.lua)
--
-- ARGV[1] grant
-- ARGV[2] ttl_ms
-- ARGV[3] seal      the seal that a fence confirmed, stored in case the lease is never released; "" for none
--
-- Returns
--   0  not held by this grant: nothing was changed
--   1  renewed
--   2  renewed, and another process has asked the holder for a hand-over

local SEAL_TTL_MS = 604800000

local held = redis.pcall('HMGET', KEYS[1], 'grant', 'wanted')
if held.err then
  return string.find(tostring(held.err), 'WRONGTYPE', 1, true) and 0 or held
end
if held[1] ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local tenure = redis.pcall('GET', KEYS[2]) -- a tenure that is none must not end the lease
if type(tenure) == 'string' then
  local delay, at_least = string.match(tenure, '^(%d+) ?(%d*)$')
  local lasting = delay and delay ~= '0' and ARGV[2] + delay or 0
  if at_least ~= '' and lasting > 0 then
    lasting = math.max(lasting, redis.call('PTTL', KEYS[2])) -- never sooner than at_least, see acquire.lua
  end
  if lasting > 0 then
    redis.call('PEXPIRE', KEYS[2], lasting)
  end
end
if ARGV[3] ~= '' then
  redis.pcall('SET', KEYS[3], ARGV[3], 'PX', SEAL_TTL_MS)
end
redis.pcall('HINCRBY', KEYS[1], 'renewals', 1)
return held[2] and 2 or 1

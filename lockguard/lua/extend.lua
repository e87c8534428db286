-- Renew a lease that is held. Never brings one back (S6). PEXPIRE works on a full server.
--
-- KEYS[1] lock  KEYS[2] tenure   (as in acquire.lua)
--
-- ARGV[1] grant
-- ARGV[2] ttl_ms
--
-- Returns
--   0  not held by this grant: nothing was changed
--   1  renewed
--   2  renewed, and somebody asked the holder to hand over

local held = redis.call('HMGET', KEYS[1], 'grant', 'wanted')
if held[1] ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local delay = redis.call('GET', KEYS[2])
if delay then
  redis.call('PEXPIRE', KEYS[2], ARGV[2] + delay)
end
redis.pcall('HINCRBY', KEYS[1], 'renewals', 1)
return held[2] and 2 or 1

-- Ask whether a grant still holds its lock, and change nothing: a holder asks between two renewals.
-- A lock that something else overwrote with a value of another type is held by nobody.
--
-- KEYS[1] lock (as in acquire.lua)
--
-- ARGV[1] grant
--
-- Returns
--   0  not held by this grant
--   1  held
--   2  held, and another process has asked the holder for a hand-over

local held = redis.pcall('HMGET', KEYS[1], 'grant', 'wanted')
if held.err then
  return string.find(tostring(held.err), 'WRONGTYPE', 1, true) and 0 or held
end
if held[1] ~= ARGV[1] then
  return 0
end
return held[2] and 2 or 1

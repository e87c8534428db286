-- Restore a held lease on a node that lost it or never had it. Only for a holder that has just renewed the
-- lease on a majority of the nodes: otherwise an ended lease could block its successor here.
-- The resource stays closed here for as long as on the others, should the lease not be released.
-- The node notes how long the lease may last, as with one that it granted: it may be the only one left to tell an
-- admission, and one that knew of shorter leases only would have the others vote too soon.
--
-- KEYS[1] lock  KEYS[2] floor  KEYS[3] history  KEYS[4] tenure  KEYS[5] member   (as in acquire.lua)
--
-- ARGV[1] grant
-- ARGV[2] token
-- ARGV[3] holder
-- ARGV[4] operation
-- ARGV[5] ttl_ms
-- ARGV[6] run       the server process that the caller is connected to; "" if it may not know (admit.lua)
-- ARGV[7] closing   as in acquire.lua
-- ARGV[8] age_ms    how long it has been held, by the holder's clock: at_least counts from the grant here too
--
-- Returns
--   0  another grant holds the lock here: nothing was changed
--   1  this grant holds the lock now
--   2  this grant holds the lock now, and the node must be admitted (admit.lua). While the lock is held, no
--      other caller would notice that, and as nodes are lost one by one, too few members would be left

local FLOOR_TTL_MS = 604800000

local grant = redis.call('HGET', KEYS[1], 'grant')
if grant then
  return grant == ARGV[1] and 1 or 0
end
local lock_delay, at_least = string.match(ARGV[7], '^(%d+) ?(%d*)$')
local closed_ms = math.max(tonumber(lock_delay) > 0 and ARGV[5] + lock_delay or 0,
  (tonumber(at_least) or 0) - ARGV[8])
local floor = tonumber(redis.call('GET', KEYS[2])) or 0
local standing = redis.call('HMGET', KEYS[5], 'run', 'ttl_max_ms')
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'grant', ARGV[1], 'token', ARGV[2], 'holder', ARGV[3], 'operation', ARGV[4],
  'acquired_at_ms', string.format('%.0f', now_ms - ARGV[8]), 'ttl_ms', ARGV[5], 'renewals', '0')
redis.call('PEXPIRE', KEYS[1], ARGV[5])
if closed_ms > 0 then
  redis.call('SET', KEYS[4], ARGV[7], 'PX', closed_ms)
else
  redis.call('DEL', KEYS[4]) -- of an earlier grant: a majority has found it over
end
if (tonumber(standing[2]) or 0) < tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[5], 'ttl_max_ms', ARGV[5])
end
if not (floor >= tonumber(ARGV[2])) then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', FLOOR_TTL_MS)
end
redis.pcall('LPUSH', KEYS[3], string.format('%s%06d rejoined grant=%s', time[1], time[2], ARGV[1]))
redis.pcall('PEXPIRE', KEYS[3], FLOOR_TTL_MS)
return standing[1] and (ARGV[6] == '' or standing[1] == ARGV[6]) and 1 or 2

-- Where several independent nodes decide together: may this node vote?
--
-- A node that lost its data, or was restarted with old ones, may have forgotten a lock that it granted. If it
-- voted at once, it could help a second majority come about. So it votes only after a member hash was written
-- for its present server process, and after the longest lease that may be forgotten has ended.
-- The hash has no TTL: it is one for each server, and would take the votes of all nodes along when it ended.
--
-- KEYS[1] member    hash: run, quiet_until_ms (the end of its quarantine), ttl_max_ms, nodes
--
-- ARGV[1] run       the server process that the caller is connected to
-- ARGV[2] quarantine_ms  how long it must not vote; -1 only to look
-- ARGV[3] ttl_max_ms  the longest lease that it may have forgotten, as the other nodes know
--
-- Returns {state, quarantine_ms, ttl_max_ms, nodes}: what was found, before anything was written
--   state  0 nothing is known; 1 it was a member in another run; 2 it is a member
--   quarantine_ms  how long it does not vote yet
--   ttl_max_ms  the longest lease that it ever granted or may have forgotten, as far as it knows
--   nodes  how many decided together when it was last asked for a free lock; 0 if it was not told

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local member = redis.call('HMGET', KEYS[1], 'run', 'quiet_until_ms', 'ttl_max_ms', 'nodes')
local ttl_max_ms, nodes = tonumber(member[3]) or 0, tonumber(member[4]) or 0
if member[1] == ARGV[1] then
  return {2, math.max(0, tonumber(member[2]) - now_ms), ttl_max_ms, nodes}
end
if tonumber(ARGV[2]) >= 0 then
  redis.call('HSET', KEYS[1], 'run', ARGV[1], 'quiet_until_ms', string.format('%.0f', now_ms + ARGV[2]),
    'ttl_max_ms', math.max(ttl_max_ms, ARGV[3]))
end
return {member[1] and 1 or 0, 0, ttl_max_ms, nodes}

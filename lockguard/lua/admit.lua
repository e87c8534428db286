-- Admit this node to the membership of several independent nodes, or read whether it may vote.
--
-- A node that lost its data, or restarted with old data, may have forgotten a lock that it granted. If it
-- voted at once, it could help to form a second majority. So it votes only once a member hash was written for
-- its current server process, and the longest lease that it may have forgotten has ended.
-- The hash has no TTL: there is only one per server, and if it expired, all nodes would lose their votes.
--
-- KEYS[1] member    hash: run, quiet_until_ms (the end of its quarantine), ttl_max_ms, nodes
--
-- ARGV[1] run       the server process that the caller is connected to
-- ARGV[2] quarantine_ms  how long the node must not vote; -1 only reads
-- ARGV[3] ttl_max_ms  the longest lease that the node may have forgotten, as far as the other nodes know
--
-- Returns {state, quarantine_ms, ttl_max_ms, nodes}, as found before the script wrote anything
--   state  0 never admitted, as far as it knows; 1 admitted in another run; 2 a member
--   quarantine_ms  how long the node does not vote yet
--   ttl_max_ms  the longest lease that it ever granted or may have forgotten, as far as it knows
--   nodes  how many nodes decided together at the last request for a free lock; 0 if unknown

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

-- Admit this node to the membership of several independent nodes, or read whether it may vote.
--
-- A node that lost its data, or restarted with old data, may have forgotten a lock that it granted. If it
-- voted at once, it could help to form a second majority. So it votes only once a member hash was written for
-- its current server process, and the longest lease that it may have forgotten has ended.
-- An admission leaves its id on each node that was ever admitted and that it asks for ttl_max_ms, and acquire.lua tells it with each grant:
-- a grant that comes after the question is in no answer to it, so it must not count with one from before it.
-- A question that another admission has overtaken leaves an id that no other node can have: others may have got
-- the plain one before the loss for which the other admission asked.
-- A loss has an id too: what was asked before a loss says nothing of what that loss forgot.
-- A caller whose user may not run INFO does not know the process, and gives "": what it says is no sign of a restart. It
-- takes a member of any run for one, and leaves the run that is recorded. A member that such a caller admitted has ""
-- for its run, and is none for callers that know it, until one of them has admitted it: a run that was recorded beside
-- a vote would be forgotten with that vote, and the node would give another one.
-- The hash has no TTL: there is only one per server, and if it expired, all nodes would lose their votes.
--
-- KEYS[1] member    hash: run ("" if unknown), quiet_until_ms (the end of its quarantine), ttl_max_ms, nodes, admission (the last
--                   one that asked or admitted the node), loss (while it is no member: "<run> <id>")
--
-- ARGV[1] run       the server process that the caller is connected to; "" if it may not know
-- ARGV[2] quarantine_ms  how long the node must not vote; -1 asks who has lost its data, -2 for ttl_max_ms
-- ARGV[3] ttl_max_ms  the longest lease that the node may have forgotten, as far as the other nodes know
-- ARGV[4] admission the id of the admission that asks or admits; "": only reads
-- ARGV[5] loss      the loss that is known to the one who admits; after another one nothing is written. With -2:
--                   the admission that the node told when it was asked with -1
-- ARGV[6] node      the caller's name for this node, which no other of its nodes has
--
-- Returns {state, quarantine_ms, ttl_max_ms, nodes, loss, admission}, as found before the script wrote anything but the loss
--   state  0 never admitted, as far as it knows; 1 admitted in another run, or by a caller that may not know it; 2 a member
--   quarantine_ms  how long the node does not vote yet
--   ttl_max_ms  the longest lease that it ever granted or may have forgotten, as far as it knows
--   nodes  how many nodes decided together at the last request for a free lock; 0 if unknown
--   loss  the id of what a node that is no member has lost; "" if nobody has asked yet
--   admission  the id of the last one that asked a member for ttl_max_ms, or admitted it

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local member = redis.call('HMGET', KEYS[1], 'run', 'quiet_until_ms', 'ttl_max_ms', 'nodes', 'loss', 'admission')
local ttl_max_ms, nodes, loss = tonumber(member[3]) or 0, tonumber(member[4]) or 0, member[5] or ''
local asks = ARGV[4] ~= '' and tonumber(ARGV[2]) < 0
local run = member[1]
if run and (ARGV[1] == '' or run == ARGV[1]) then
  local last = member[6] or ''
  if tonumber(ARGV[2]) == -2 then
    redis.call('HSET', KEYS[1], 'admission', last == ARGV[5] and ARGV[4] or ARGV[4] .. ' ' .. ARGV[6])
  end
  return {2, math.max(0, tonumber(member[2]) - now_ms), ttl_max_ms, nodes, '', last}
end
if run and tonumber(ARGV[2]) == -2 then
  -- It votes for callers that do not know its run all the same: a vote of before this question must not count with later ones.
  redis.call('HSET', KEYS[1], 'admission', ARGV[4] .. ' ' .. ARGV[6])
end
if ARGV[1] ~= '' and string.sub(loss, 1, #ARGV[1] + 1) ~= ARGV[1] .. ' ' then
  loss = '' -- of another run
end
if asks and loss == '' then
  loss = ARGV[1] .. ' ' .. ARGV[4]
  redis.call('HSET', KEYS[1], 'loss', loss)
elseif tonumber(ARGV[2]) >= 0 and loss ~= '' and loss == ARGV[5] then
  redis.call('HSET', KEYS[1], 'run', ARGV[1], 'quiet_until_ms', string.format('%.0f', now_ms + ARGV[2]),
    'ttl_max_ms', math.max(ttl_max_ms, ARGV[3]), 'admission', ARGV[4], 'loss', '')
end
return {run and 1 or 0, 0, ttl_max_ms, nodes, loss, ''}

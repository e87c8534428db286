-- Remove a grant wherever it stands: it holds the lock, or has it reserved, or waits, or none of these.
-- If that frees the lock, exactly one waiter is woken and the lock is reserved for it for a short while.
-- Needs no memory to free the lock: DEL works on a full server; the history, the seal and the waking are best effort.
-- The end of a grant is written where there is a history: one begun here would have no end of life.
--
-- KEYS[1] lock  KEYS[2] queue  KEYS[3] inboxes  KEYS[4] next  KEYS[5] tenure  KEYS[6] history  KEYS[7] seal
-- (as in acquire.lua)
--
-- ARGV[1] grant
-- ARGV[2] inbox     the channel it was queued with
-- ARGV[3] lost      1 if its lease ended under its body: then its lock delay begins now, and until that is over
--                   nobody is woken. A waiter asks again when it is over.
-- ARGV[4] seal      what a fence confirmed, to be remembered; "" for nothing
--
-- Returns 1 if it held the lock, else 0.

local SEAL_TTL_MS = 604800000
local RESERVED_MS = 500
local SILENT_MS = 2500

local grant = ARGV[1]
local held = redis.call('HGET', KEYS[1], 'grant') == grant
local freed = held
if held then
  local time = redis.call('TIME')
  redis.pcall('LPUSHX', KEYS[6], string.format('%s%06d released grant=%s', time[1], time[2], grant))
  if ARGV[4] ~= '' then
    redis.pcall('SET', KEYS[7], ARGV[4], 'PX', SEAL_TTL_MS)
  end
  local delay = ARGV[3] == '1' and redis.call('GET', KEYS[5])
  if delay then
    redis.call('DEL', KEYS[1])
    redis.call('PEXPIRE', KEYS[5], delay)
    return 1
  end
  if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('DEL', KEYS[1], KEYS[3], KEYS[5]) -- the usual case: nobody waits
    return 1
  end
  redis.call('DEL', KEYS[1], KEYS[5])
else
  redis.call('ZREM', KEYS[2], grant .. ' ' .. ARGV[2])
  if string.sub(redis.call('GET', KEYS[4]) or '', 1, #grant + 1) == grant .. ' ' then
    redis.call('DEL', KEYS[4])
    freed = redis.call('EXISTS', KEYS[1]) == 0
  end
  if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('DEL', KEYS[3])
  end
end

while freed do
  local first, first_ticket = unpack(redis.call('ZPOPMIN', KEYS[2]))
  if not first then
    redis.call('DEL', KEYS[3])
    break
  end
  local first_grant, first_inbox = string.match(first, '^(%S+) (.*)$')
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  local heard_ms = tonumber(redis.call('ZSCORE', KEYS[3], first_inbox)) or 0
  if now_ms - heard_ms <= SILENT_MS then
    -- One chance for each process: it counts as silent until it is heard of again, so that a dead one
    -- costs one reservation and not one for each of its waiters. Its connection may also just be coming
    -- back (then PUBLISH reaches nobody); it asks again as soon as it is.
    redis.pcall('ZADD', KEYS[3], 0, first_inbox)
    redis.pcall('SET', KEYS[4], first_grant .. ' ' .. first_ticket .. ' ' .. first_inbox, 'PX', RESERVED_MS)
    -- In a cluster the inbox ends in the tag of the resource: then on this shard only, or on all servers if nobody
    -- listens here: the slot has moved, or it is a Redis that knows no shard channels.
    local process = string.match(first_inbox, '^(.*):{')
    if not process or (tonumber(redis.pcall('SPUBLISH', first_inbox, first_grant)) or 0) == 0 then
      redis.call('PUBLISH', process or first_inbox, first_grant)
    end
    break
  end
end
return held and 1 or 0

-- Release a grant, whether it holds the lock, has it reserved, waits in the queue, or none of these.
-- If that frees the lock, exactly one waiter is woken and the lock is reserved for it (wake.lua).
-- Freeing the lock needs no memory: DEL works on a full server. History, seal and wake-up are best effort.
-- The end of a grant is written only to an existing history: one created here would have no ttl.
--
-- KEYS[1] lock  KEYS[2] queue  KEYS[3] inboxes  KEYS[4] next  KEYS[5] tenure  KEYS[6] history  KEYS[7] seal
-- (as in acquire.lua)
--
-- ARGV[1] grant
-- ARGV[2] inbox     the channel that the grant was queued with
-- ARGV[3] lost      1 if the lease ended while its body ran: its lock delay begins now, and no waiter is
--                   woken until it is over; waiters then ask again
-- ARGV[4] seal      the seal that a fence confirmed, to be stored; "" for none
--
-- Returns 1 if the grant held the lock, else 0.

local SEAL_TTL_MS = 604800000

local grant = ARGV[1]
local held = redis.call('HGET', KEYS[1], 'grant') == grant
local freed = held
if held then
  local delay = ARGV[3] == '1' and redis.call('GET', KEYS[5])
  local time = redis.call('TIME')
  redis.pcall('LPUSHX', KEYS[6], string.format('%s%06d released grant=%s', time[1], time[2], grant))
  if ARGV[4] ~= '' then
    redis.pcall('SET', KEYS[7], ARGV[4], 'PX', SEAL_TTL_MS)
  end
  if delay then
    redis.call('DEL', KEYS[1])
    redis.call('PEXPIRE', KEYS[5], delay)
    return 1
  end
  if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('DEL', KEYS[1], KEYS[3], KEYS[5]) -- the usual case: no waiters
    return 1
  end
  redis.call('DEL', KEYS[1], KEYS[5])
else
  local reserved = redis.call('GET', KEYS[4]) or ''
  redis.call('ZREM', KEYS[2], grant .. ' ' .. ARGV[2])
  if string.sub(reserved, 1, #grant + 1) == grant .. ' ' then
    redis.call('DEL', KEYS[4])
    freed = redis.call('EXISTS', KEYS[1]) == 0
  end
  if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('DEL', KEYS[3])
  end
end

-- include wake.lua

if freed then
  wake_first(KEYS[2], KEYS[3], KEYS[4])
end
return held and 1 or 0

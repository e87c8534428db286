-- Release a grant, whether it holds the lock, has it reserved, waits in the queue, or none of these.
-- If that frees the lock, exactly one waiter is woken and the lock is reserved for it (wake.lua).
-- Freeing the lock needs no memory: DEL works on a full server. History, seal and wake-up are best effort.
-- The end of a grant is written only to an existing history: one created here would have no ttl.
--
-- KEYS[1] lock  KEYS[2] queue  KEYS[3] inboxes  KEYS[4] next  KEYS[5] tenure  KEYS[6] history  KEYS[7] seal
-- KEYS[8] waiting (as in acquire.lua)
--
-- ARGV[1] grant
-- ARGV[2] inbox     the channel that the grant was queued with
-- ARGV[3] lost      1 if the lease ended while its body ran: its lock delay begins now, and no waiter is
--                   woken until it is over; waiters then ask again
-- ARGV[4] seal      the seal that a fence confirmed, to be stored; "" for none
-- ARGV[5] at_least  optional, in ms: the resource stays closed until that long after the grant. A lease that was
--                   lost has it in its tenure
--
-- Returns 1 if the grant held the lock, else 0.

local SEAL_TTL_MS = 604800000

local grant = ARGV[1]
local held = redis.call('HGET', KEYS[1], 'grant') == grant
local freed = held
if held then
  local closed_ms, at_least = 0, tonumber(ARGV[5])
  if ARGV[3] == '1' then
    local delay, given = string.match(redis.call('GET', KEYS[5]) or '', '^(%d+) ?(%d*)$')
    closed_ms, at_least = tonumber(delay) or 0, at_least or tonumber(given)
  end
  local time = redis.call('TIME')
  if at_least then
    local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
    local acquired_ms = tonumber(redis.call('HGET', KEYS[1], 'acquired_at_ms')) or now_ms
    closed_ms = math.max(closed_ms, at_least - math.max(0, now_ms - acquired_ms)) -- the clock may have gone back
  end
  redis.pcall('LPUSHX', KEYS[6], string.format('%s%06d released grant=%s', time[1], time[2], grant))
  if ARGV[4] ~= '' then
    redis.pcall('SET', KEYS[7], ARGV[4], 'PX', SEAL_TTL_MS)
  end
  local waited_for = redis.call('EXISTS', KEYS[2], KEYS[4]) > 0
  if waited_for then
    -- Where the holder was given its lease again (rejoin.lua), its place or its reservation may still be there: it
    -- would be woken next, or the lock kept for it.
    redis.pcall('ZREM', KEYS[2], grant .. ' ' .. ARGV[2])
    redis.pcall('HDEL', KEYS[8], grant)
    local reserved = redis.pcall('GET', KEYS[4])
    if type(reserved) == 'string' and string.sub(reserved, 1, #grant + 1) == grant .. ' ' then
      redis.call('DEL', KEYS[4])
    end
  end
  if closed_ms > 0 then
    if waited_for then
      redis.call('DEL', KEYS[1])
    else
      redis.call('DEL', KEYS[1], KEYS[3], KEYS[8]) -- nobody waits: what is known of waiters goes too
    end
    if redis.call('PEXPIRE', KEYS[5], closed_ms) == 0 then -- a node that a client of before gave the lease again has none
      redis.pcall('SET', KEYS[5], '0 ' .. at_least, 'PX', closed_ms)
    end
    return 1
  end
  if not waited_for then
    redis.call('DEL', KEYS[1], KEYS[3], KEYS[5], KEYS[8]) -- the usual case: no waiters
    return 1
  end
  redis.call('DEL', KEYS[1], KEYS[5])
else
  local reserved = redis.call('GET', KEYS[4]) or ''
  redis.call('ZREM', KEYS[2], grant .. ' ' .. ARGV[2])
  redis.pcall('HDEL', KEYS[8], grant)
  if string.sub(reserved, 1, #grant + 1) == grant .. ' ' then
    redis.call('DEL', KEYS[4])
    -- Its process is alive, although it was woken and did not come: do not skip its other waiters.
    local time = redis.call('TIME')
    redis.pcall('ZADD', KEYS[3], 'XX', time[1] * 1000 + math.floor(time[2] / 1000), ARGV[2])
    freed = redis.call('EXISTS', KEYS[1]) == 0
  end
  if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('DEL', KEYS[3], KEYS[8])
  end
end

-- include wake.lua

if freed then
  wake_first(KEYS[2], KEYS[3], KEYS[4], KEYS[8])
end
return held and 1 or 0

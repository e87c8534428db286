-- Read the state of a resource; change nothing.
--
-- KEYS[1] lock  KEYS[2] floor  KEYS[3] queue  KEYS[4] inboxes   (as in acquire.lua)
--
-- ARGV[1] waiters_max   how many waiters to list
--
-- Returns {grant, token, holder, operation, age_ms, remaining_ms, ttl_ms, renewals, waiters}
--   grant: "" if the lock is free; token is then the floor, "0" if unknown
--   waiters: {member, ticket, silent_ms, member, ticket, silent_ms, ...}

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'grant', 'token', 'holder', 'operation', 'acquired_at_ms', 'ttl_ms',
  'renewals')
local queue = redis.call('ZRANGE', KEYS[3], 0, ARGV[1] - 1, 'WITHSCORES')
local waiters = {}
for i = 1, #queue, 2 do
  local inbox = string.match(queue[i], '^%S+ (.*)$')
  local heard_ms = tonumber(redis.call('ZSCORE', KEYS[4], inbox)) or 0
  waiters[#waiters + 1] = queue[i]
  waiters[#waiters + 1] = string.format('%.0f', queue[i + 1])
  waiters[#waiters + 1] = math.max(0, now_ms - heard_ms)
end
local age_ms = now_ms - (tonumber(held[5]) or now_ms)
return {held[1] or '', held[2] or redis.call('GET', KEYS[2]) or '0', held[3] or '', held[4] or '', age_ms,
  math.max(0, redis.call('PTTL', KEYS[1])), tonumber(held[6] or 0), tonumber(held[7] or 0), waiters}

-- Read the state of a resource; change nothing.
--
-- KEYS[1] lock  KEYS[2] floor  KEYS[3] queue  KEYS[4] inboxes  KEYS[5] tenure  KEYS[6] waiting
-- (as in acquire.lua)
--
-- ARGV[1] waiters_max   how many waiters to list
--
-- Returns {grant, token, holder, operation, age_ms, remaining_ms, ttl_ms, renewals, waiters, closed_ms, wanted,
--   now_ms}
--   grant: "" if the lock is free; token is then the floor, "0" if unknown
--   waiters: {member, ticket, silent_ms, who, waiting_ms, member, ...}
--     who: "<holder> <operation>", "" if unknown, as with a client of an older version
--     waiting_ms: since the ticket was given, which is the time in microseconds or a little more
--   closed_ms: how long the resource stays closed; while it is held, what would be left of at_least
--   wanted: the reason of a requested hand-over, "" for none
--   now_ms: the server's clock

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local held = redis.call('HMGET', KEYS[1], 'grant', 'token', 'holder', 'operation', 'acquired_at_ms', 'ttl_ms',
  'renewals', 'wanted')
local queue = redis.call('ZRANGE', KEYS[3], 0, ARGV[1] - 1, 'WITHSCORES')
local waiters = {}
for i = 1, #queue, 2 do
  local grant, inbox = string.match(queue[i], '^(%S+) (.*)$')
  local heard_ms = tonumber(redis.call('ZSCORE', KEYS[4], inbox or '')) or 0
  local who = redis.pcall('HGET', KEYS[6], grant or '')
  waiters[#waiters + 1] = queue[i]
  waiters[#waiters + 1] = string.format('%.0f', queue[i + 1])
  waiters[#waiters + 1] = math.max(0, now_ms - heard_ms)
  waiters[#waiters + 1] = type(who) == 'string' and who or ''
  waiters[#waiters + 1] = math.max(0, math.floor((now_us - queue[i + 1]) / 1000))
end
local age_ms = now_ms - (tonumber(held[5]) or now_ms)
local closed_ms = math.max(0, redis.call('PTTL', KEYS[5]))
if held[1] then
  local tenure = redis.pcall('GET', KEYS[5])
  local at_least = type(tenure) == 'string' and tonumber(string.match(tenure, '^%d+ (%d+)$'))
  closed_ms = at_least and math.max(0, at_least - age_ms) or 0
end
return {held[1] or '', held[2] or redis.call('GET', KEYS[2]) or '0', held[3] or '', held[4] or '', age_ms,
  math.max(0, redis.call('PTTL', KEYS[1])), tonumber(held[6] or 0), tonumber(held[7] or 0), waiters,
  closed_ms, held[8] or '', now_ms}

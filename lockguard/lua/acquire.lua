-- Acquire the lock, or a place in its queue. Repeated for the same grant it gives the same answer (S7).
--
-- KEYS[1] lock      hash; this script sets grant, token, holder, operation, acquired_at_ms, ttl_ms, renewals
-- KEYS[2] floor     string: the last token issued
-- KEYS[3] queue     sorted set: member "<grant> <inbox>", score ticket
-- KEYS[4] inboxes   sorted set: member <inbox>, score when it was last heard of, in ms
-- KEYS[5] next      string "<grant> <ticket> <inbox>": the waiter that the free lock is reserved for
-- KEYS[6] tenure    string, ARGV[7] of the grant: exists from a grant that closes the resource until it opens again
-- KEYS[7] history   list of readable lines, newest first, trimmed here: "<time_us> <event> <facts>"
-- KEYS[8] seal      string: the last seal that a fence confirmed, "<fence> <token>"; see ports.py
-- KEYS[9] waiting   hash: field <grant>, "<holder> <operation>" of a waiter; for display only
-- KEYS[10] member   hash, only where several independent nodes decide together; see admit.lua
--
-- ARGV[1] grant     32 hex digits
-- ARGV[2] ttl_ms
-- ARGV[3] holder    for display only
-- ARGV[4] operation for display only
-- ARGV[5] inbox     the channel that wakes the caller, or "" not to be queued
-- ARGV[6] ticket    the ticket from an earlier answer, or 0
-- ARGV[7] closing   "<lock_delay_ms>", or "<lock_delay_ms> <at_least_ms>": how long the resource stays closed after
--                   a grant that is not released, and from the grant on however it ends
-- ARGV[8] history   the number of grants to keep in the history; 0 deletes it
-- ARGV[9] proposal  the token or ticket that all nodes are asked to give, so that they agree; 0 for none
-- ARGV[10] run      with KEYS[10]: the server process that the caller is connected to; "" if it may not know (admit.lua)
-- ARGV[11] nodes    with KEYS[10]: how many decide together; stored, to tell a user who names too few
--
-- Returns
--   {1, token, now_us, seal, admission}     granted; admission: with KEYS[10], the last one that asked, see admit.lua
--   {0, holder, operation, token, age_ms, retry_after_ms, ticket, requeued, ahead} busy; ticket 0: not queued
--   {2, holder, operation, token, age_ms, retry_after_ms}                 busy, and the queue is full
--   {3, quarantine_ms}      free, but this node may have lost data: no vote yet. 0: not admitted yet
--
-- Commands and replies carry numbers up to 2^53 exactly. Only text needs %.0f: tostring() and .. would turn a
-- token into 1.795e+15.

local QUEUE_MAX = 10000        -- waiters per resource
local QUEUE_TTL_MS = 60000     -- a queue is dropped this long after the last acquire
local FLOOR_TTL_MS = 604800000 -- may expire: the next token is at least the time in microseconds
local HISTORY_SPARE = 0.1      -- share by which the history may grow before it is trimmed, which takes time
local AHEAD_US = 315360000000000 -- ten years: no lock issued a token that lies farther ahead

local grant, ttl_ms, inbox = ARGV[1], tonumber(ARGV[2]), ARGV[5]
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local member = grant .. ' ' .. inbox

-- The usual case in one command: the lock is neither held, nor reserved, nor closed, and has no waiters.
local untouched = redis.call('EXISTS', KEYS[1], KEYS[3], KEYS[5], KEYS[6]) == 0

-- Ignore impossible tokens (9e18, 1e400, nan): whatever is written to the floor, a higher token must exist.
local function sane(text)
  local token = tonumber(text or 0) or 0
  return token >= 0 and token < now_us + AHEAD_US and math.floor(token) or 0
end

local admission = ''

local function grant_it()
  local known = { redis.call('GET', KEYS[2]), redis.call('GET', KEYS[8]) }
  local token = math.max(now_us, sane(known[1]) + 1, sane(ARGV[9]))
  redis.call('HSET', KEYS[1], 'grant', grant, 'token', token, 'holder', ARGV[3], 'operation', ARGV[4],
    'acquired_at_ms', now_ms, 'ttl_ms', ARGV[2], 'renewals', '0')
  redis.call('PEXPIRE', KEYS[1], ttl_ms)
  redis.call('SET', KEYS[2], token, 'PX', FLOOR_TTL_MS)
  if not untouched then
    redis.call('DEL', KEYS[5])
    redis.pcall('ZREM', KEYS[3], member)
    redis.pcall('HDEL', KEYS[9], grant)
    redis.pcall('ZADD', KEYS[4], 'XX', now_ms, inbox) -- the process is alive: do not skip its other waiters
  end
  local delay = tonumber(ARGV[7])
  if not delay then
    -- Set now and not by the release: the resource stays closed also if the holder dies.
    local lock_delay, at_least = string.match(ARGV[7], '^(%d+) (%d+)$')
    local lasting = tonumber(lock_delay) > 0 and ttl_ms + lock_delay or 0
    redis.call('SET', KEYS[6], ARGV[7], 'PX', math.max(lasting, tonumber(at_least)))
  elseif delay > 0 then
    redis.call('SET', KEYS[6], ARGV[7], 'PX', ttl_ms + delay)
  end
  local most = 2 * tonumber(ARGV[8]) -- in lines: a grant and its end are two
  if most == 0 then
    redis.pcall('DEL', KEYS[7]) -- or the lines that releases add would pile up
  else
    local line = string.format('%.0f granted token=%.0f grant=%s holder=%s operation=%s', now_us, token, grant,
      ARGV[3], ARGV[4])
    local lines = redis.pcall('LPUSH', KEYS[7], line)
    if (tonumber(lines) or 0) > most * (1 + HISTORY_SPARE) then
      redis.pcall('LTRIM', KEYS[7], 0, most - 1)
    end
    redis.pcall('PEXPIRE', KEYS[7], FLOOR_TTL_MS)
  end
  return {1, token, now_us, known[2] or '', admission}
end

-- Say who waits. Not for a user whose rights were listed before these commands were used: it could not remove
-- what it wrote. Fields that a client of an older version left behind are dropped with all others; each waiter
-- writes its own again when it asks again.
local function introduce()
  local known = redis.pcall('HLEN', KEYS[9])
  if type(known) ~= 'number' then
    return
  end
  if known > QUEUE_MAX then
    redis.pcall('DEL', KEYS[9])
  end
  redis.pcall('HSET', KEYS[9], grant, ARGV[3] .. ' ' .. ARGV[4])
  redis.pcall('PEXPIRE', KEYS[9], QUEUE_TTL_MS)
end

local function busy(held, retry_after_ms)
  local holder, operation, token, age_ms = '', '', '0', 0
  if held[1] then
    holder, operation, token = held[2] or '', held[3] or '', held[4] or '0'
    age_ms = now_ms - (tonumber(held[5]) or now_ms)
  end
  if inbox == '' then
    return {0, holder, operation, token, age_ms, retry_after_ms, '0', 0}
  end
  redis.call('ZADD', KEYS[4], now_ms, inbox)
  redis.call('PEXPIRE', KEYS[4], QUEUE_TTL_MS)
  local ticket, requeued = redis.call('ZSCORE', KEYS[3], member), 0
  if KEYS[10] and ticket and ARGV[6] ~= '0' then
    ticket = ARGV[6] -- the ticket that the nodes agreed on
    redis.call('ZADD', KEYS[3], ticket, member)
  end
  if not ticket then
    if redis.call('ZCARD', KEYS[3]) >= QUEUE_MAX then
      return {2, holder, operation, token, age_ms, retry_after_ms}
    end
    if ARGV[6] ~= '0' then
      ticket, requeued = ARGV[6], 1
    elseif KEYS[10] and ARGV[9] ~= '0' then
      ticket = ARGV[9] -- the same on all nodes, so that all wake the same waiter
    else
      local last = redis.call('ZREVRANGE', KEYS[3], 0, 0, 'WITHSCORES')
      ticket = string.format('%.0f', math.max(now_us, (tonumber(last[2]) or 0) + 1))
    end
    redis.call('ZADD', KEYS[3], ticket, member)
  end
  redis.call('PEXPIRE', KEYS[3], QUEUE_TTL_MS)
  introduce()
  -- A user whose rights were listed before this command was used waits as it did, one trip later.
  local ahead = redis.pcall('ZRANK', KEYS[3], member)
  return {0, holder, operation, token, age_ms, retry_after_ms, string.format('%.0f', ticket), requeued,
    type(ahead) == 'number' and ahead or nil}
end

-- The rest of a key's ttl. If it exceeds the given ttl, the clock was set back, and the ttl starts again:
-- otherwise a dead holder would keep the lock for as long as the clock went back.
local function left_ms(key, given_ms)
  local left = redis.call('PTTL', key)
  if given_ms and left > given_ms then
    redis.call('PEXPIRE', key, given_ms)
    return given_ms
  end
  return left
end

local held = {}
if not untouched then
  held = redis.call('HMGET', KEYS[1], 'grant', 'holder', 'operation', 'token', 'acquired_at_ms', 'ttl_ms')
end
if held[1] == grant then
  local delay = tonumber(string.match(ARGV[7], '^%d+'))
  redis.call('PEXPIRE', KEYS[1], ttl_ms)
  if delay > 0 then -- it begins when the lease ends, which is later now; at_least may last longer
    redis.call('PEXPIRE', KEYS[6], math.max(ttl_ms + delay, redis.call('PTTL', KEYS[6])))
  end
  admission = KEYS[10] and redis.call('HGET', KEYS[10], 'admission') or ''
  return {1, held[4], 0, redis.call('GET', KEYS[8]) or '', admission}
end
if held[1] then
  return busy(held, left_ms(KEYS[1], tonumber(held[6])))
end

if KEYS[10] then
  local standing = redis.call('HMGET', KEYS[10], 'run', 'quiet_until_ms', 'ttl_max_ms', 'nodes', 'admission')
  if not standing[1] or ARGV[10] ~= '' and standing[1] ~= ARGV[10] then
    return {3, 0}
  end
  local quarantine_ms, longest_ms = tonumber(standing[2]) - now_ms, tonumber(standing[3])
  if quarantine_ms > longest_ms then -- the clock was set back, as above
    quarantine_ms = longest_ms
    redis.call('HSET', KEYS[10], 'quiet_until_ms', now_ms + quarantine_ms)
  end
  if quarantine_ms > 0 then
    return {3, quarantine_ms}
  end
  if standing[2] ~= '0' then
    redis.call('HSET', KEYS[10], 'quiet_until_ms', 0) -- over for good, even if the clock is set back
  end
  if longest_ms < ttl_ms then
    redis.call('HSET', KEYS[10], 'ttl_max_ms', ttl_ms)
  end
  if standing[4] ~= ARGV[11] then
    redis.call('HSET', KEYS[10], 'nodes', ARGV[11])
  end
  admission = standing[5] or ''
end

if untouched then
  return grant_it()
end

-- include wake.lua

local reserved = redis.call('GET', KEYS[5])
local reserved_for, reserved_ticket, reserved_inbox = string.match(reserved or '', '^(%S+) (%S+) (.*)$')
if reserved_for == grant then
  return grant_it()
end
if KEYS[10] and reserved_for and ARGV[6] ~= '0' and tonumber(ARGV[6]) < tonumber(reserved_ticket) then
  -- Nodes that reserve the lock for different waiters would deny all of them a majority, again and again. All
  -- nodes agree on which waiter has the earliest ticket.
  redis.call('ZADD', KEYS[3], reserved_ticket, reserved_for .. ' ' .. reserved_inbox)
  redis.call('ZADD', KEYS[4], 'XX', now_ms, reserved_inbox) -- its reservation was taken away
  return grant_it()
end
if reserved then
  return busy({}, left_ms(KEYS[5], RESERVED_MS))
end

local delay, at_least = string.match(redis.call('GET', KEYS[6]) or '', '^(%d+) ?(%d*)$')
local closed_ms = left_ms(KEYS[6], delay and math.max(tonumber(delay), tonumber(at_least) or 0))
if closed_ms > 0 then
  return busy({}, closed_ms)
end

-- Free and not reserved: the lock expired or was deleted, or the woken waiter did not come.
-- It goes to the first waiter whose process is alive; a newcomer never overtakes (L2).
while true do
  local first = redis.call('ZRANGE', KEYS[3], 0, 0)[1]
  if not first or first == member then
    return grant_it()
  end
  local first_ticket = redis.call('ZSCORE', KEYS[3], first)
  if ARGV[6] ~= '0' and tonumber(ARGV[6]) < tonumber(first_ticket) then
    return grant_it() -- our place was dropped, and it was before all of these
  end
  local first_grant, first_inbox = string.match(first, '^(%S+) (.*)$')
  redis.call('ZREM', KEYS[3], first)
  redis.pcall('HDEL', KEYS[9], first_grant)
  if is_alive(redis.call, KEYS[4], first_inbox, now_ms) then
    wake(redis.call, KEYS[4], KEYS[5], first_grant, first_ticket, first_inbox)
    return busy({}, RESERVED_MS)
  end
end

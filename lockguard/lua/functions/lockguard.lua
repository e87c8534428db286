#!lua name=lockguard
-- Read-only functions for redis-cli, from Redis 7.0 on; `lockguard functions install` loads them. Nothing that
-- lockguard does needs them. docs/reference/redis-keys.md is their contract.

local NAME = '^([%w._:-]+):{([^{}]+)}(.*)$'
local NAMESPACE = 'lockguard'
local STEP, STEP_MAX = 100, 200 -- keys to look at in one call: a call takes about a millisecond
local WAITERS_MAX = 100
local LINES = 10
local NUMBERS = { token = true, age_ms = true, left_ms = true, ttl_ms = true, renewals = true, renewal_late_ms = true,
  waiters = true }
local LATE = 1 / 3 + 1 / 10     -- of the ttl: by then a lease is renewed, or its renewal sent again

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(value)
  return type(value) == 'string' and value or ''
end

local function number(value)
  return string.format('%.0f', math.max(0, value))
end

-- What both functions tell of a lock, as pairs in a fixed order; nil if the resource is not in use.
local function told(lock, now)
  local held = redis.pcall('HMGET', lock, 'grant', 'token', 'holder', 'operation', 'acquired_at_ms', 'ttl_ms',
    'renewals', 'wanted')
  if held.err then
    return { 'state', 'unreadable' }
  end
  local waiters = redis.pcall('ZCARD', lock .. ':queue')
  waiters = number(type(waiters) == 'number' and waiters or 0)
  if not held[1] then
    local closed_ms = redis.call('PTTL', lock .. ':tenure')
    if closed_ms > 0 then
      return { 'state', 'closed', 'left_ms', number(closed_ms), 'waiters', waiters }
    end
    return waiters ~= '0' and { 'state', 'free', 'waiters', waiters } or nil
  end
  local left_ms, ttl_ms = redis.call('PTTL', lock), tonumber(held[6]) or 0
  local since_ms = ttl_ms - left_ms
  local late_ms = since_ms > ttl_ms * LATE and since_ms - ttl_ms / 3 or 0
  return {
    'state', 'held', 'holder', text(held[3]), 'operation', text(held[4]), 'token', text(held[2]), 'grant', held[1],
    'age_ms', number(now - (tonumber(held[5]) or now)), 'left_ms', number(left_ms), 'ttl_ms', number(ttl_ms),
    'renewals', text(held[7]), 'renewal_late_ms', number(math.floor(late_ms)), 'waiters', waiters,
    'wanted', text(held[8]),
  }
end

-- FCALL_RO lockguard_ls 0 CURSOR [PATTERN [COUNT [NAMESPACE]]]: one step of the list of all resources in use.
--
-- args[1] cursor    0 at first, then the first reply of the last call, until that is 0 again
-- args[2] pattern   what the names match, as Redis's KEYS does; * by default
-- args[3] count     how many keys to look at, 200 at most
-- args[4] namespace that of the guards, lockguard by default
--
-- Returns {cursor, line, line, ...}: each line is a JSON object. Each resource is told once, as long as its keys
-- stay as they are: by its lock, otherwise its queue, otherwise its tenure.
local function ls(_, args)
  local count = math.min(tonumber(args[3] or STEP) or STEP, STEP_MAX)
  local namespace = args[4] or NAMESPACE
  if not string.match(namespace, '^[%w._:-]+$') then
    return redis.error_reply('ERR a namespace has letters, digits and . _ - :')
  end
  local found = redis.call('SCAN', args[1] or '0', 'MATCH', namespace .. ':{' .. (args[2] or '*') .. '}*', 'COUNT',
    string.format('%.0f', math.max(1, count)))
  local now, lines, seen = now_ms(), { found[1] }, {}
  for _, key in ipairs(found[2]) do
    local _, name, part = string.match(key, NAME)
    local lock = name and namespace .. ':{' .. name .. '}'
    local first = part == '' or part == ':queue' and redis.call('EXISTS', lock) == 0
      or part == ':tenure' and redis.call('EXISTS', lock, lock .. ':queue') == 0
    local pairs_of = name and first and not seen[name] and told(lock, now)
    if pairs_of then
      seen[name] = true
      local fields = { '{"resource":' .. cjson.encode(name) }
      for i = 1, #pairs_of, 2 do
        local field, value = pairs_of[i], pairs_of[i + 1]
        local digits = NUMBERS[field] and string.match(value, '^%d+$') -- cjson would round a token
        fields[#fields + 1] = '"' .. field .. '":' .. (digits or cjson.encode(value))
      end
      lines[#lines + 1] = table.concat(fields, ',') .. '}'
    end
  end
  return lines
end

-- FCALL_RO lockguard_show 1 'NAMESPACE:{RESOURCE}' [LINES]: one resource, its waiters and its last events.
--
-- keys[1] lock
-- args[1] lines     how many lines of the history, 10 by default
--
-- Returns {name, value, name, value, ...}, as HGETALL does; a waiter is "<holder> <operation>", or its inbox if
-- it is not known.
local function show(keys, args)
  local lock = keys[1] or ''
  local _, name, part = string.match(lock, NAME)
  if not name or part ~= '' then
    return redis.error_reply("ERR write: FCALL_RO lockguard_show 1 'lockguard:{RESOURCE}'")
  end
  local reply = { 'resource', name }
  for _, value in ipairs(told(lock, now_ms()) or { 'state', 'free', 'waiters', '0' }) do
    reply[#reply + 1] = value
  end
  local queue = redis.pcall('ZRANGE', lock .. ':queue', 0, WAITERS_MAX - 1)
  for _, member in ipairs(queue.err and {} or queue) do
    local grant, inbox = string.match(member, '^(%S+) (.*)$')
    local who = redis.pcall('HGET', lock .. ':waiting', grant or '')
    reply[#reply + 1] = 'waiter'
    reply[#reply + 1] = type(who) == 'string' and who or inbox or member
  end
  local lines = math.floor(tonumber(args[1] or LINES) or LINES)
  local history = lines > 0 and redis.pcall('LRANGE', lock .. ':history', 0, math.min(lines, 1000) - 1) or {}
  for _, line in ipairs(history.err and {} or history) do
    reply[#reply + 1] = 'history'
    reply[#reply + 1] = line
  end
  return reply
end

redis.register_function { function_name = 'lockguard_ls', callback = ls,
  flags = { 'no-writes', 'allow-cross-slot-keys' }, description = 'One step of the list of all locks in use' }
redis.register_function { function_name = 'lockguard_show', callback = show, flags = { 'no-writes' },
  description = 'One lock, its waiters and its last events' }

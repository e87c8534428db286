-- Not a script: acquire.lua, break.lua and release.lua include it at the line "-- include wake.lua".
-- Returns nothing; defines functions that wake a waiter and reserve the free lock for it for RESERVED_MS.

local RESERVED_MS = 500        -- how long the lock is reserved for a woken waiter
local SILENT_MS = 2500         -- a process not heard of for this long is skipped

-- call: redis.call, or redis.pcall where the lock is freed although the server is full or a key of the queue is of
-- another type.
local function is_alive(call, inboxes, inbox, now_ms)
  return now_ms - (tonumber(call('ZSCORE', inboxes, inbox)) or 0) <= SILENT_MS
end

local function wake(call, inboxes, reservation, grant, ticket, inbox)
  -- One chance per process: it counts as silent until it is heard of again, so a dead process costs one
  -- reservation, not one per waiter. If the process is just reconnecting, PUBLISH does not reach it; it asks
  -- again as soon as it is connected.
  call('ZADD', inboxes, 0, inbox)
  call('SET', reservation, grant .. ' ' .. ticket .. ' ' .. inbox, 'PX', RESERVED_MS)
  -- In a cluster the inbox ends in the resource's tag: publish on this shard only, or on all servers if it
  -- has no subscriber here, because the slot has moved or this Redis has no shard channels.
  local process = string.match(inbox, '^(.*):{')
  if not process or (tonumber(redis.pcall('SPUBLISH', inbox, grant)) or 0) == 0 then
    redis.call('PUBLISH', process or inbox, grant)
  end
end

-- Called when the lock was freed: wakes the first waiter whose process is alive.
local function wake_first(queue, inboxes, reservation, waiting)
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  while true do
    local first, ticket = unpack(redis.pcall('ZPOPMIN', queue))
    if not first then
      redis.call('DEL', inboxes, waiting)
      return
    end
    local grant, inbox = string.match(first, '^(%S+) (.*)$')
    redis.pcall('HDEL', waiting, grant)
    if is_alive(redis.pcall, inboxes, inbox, now_ms) then
      return wake(redis.pcall, inboxes, reservation, grant, ticket, inbox)
    end
  end
end

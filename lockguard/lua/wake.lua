-- No script of its own: stands in acquire.lua, break.lua and release.lua, in place of the line "-- include wake.lua".
-- Returns nothing; defines what wakes a waiter and reserves the free lock for it for a short while.

local RESERVED_MS = 500        -- how long a woken waiter has to come
local SILENT_MS = 2500         -- a process not heard of for this long is passed over

local function is_alive(inboxes, inbox, now_ms)
  return now_ms - (tonumber(redis.call('ZSCORE', inboxes, inbox)) or 0) <= SILENT_MS
end

-- write: redis.call, or redis.pcall where a full server must not keep the lock from being freed.
local function wake(write, inboxes, reservation, grant, ticket, inbox)
  -- One chance for each process: it counts as silent until it is heard of again, so that a dead one costs one
  -- reservation and not one for each of its waiters. Its connection may also just be coming back (then PUBLISH
  -- reaches nobody); it asks again as soon as it is.
  write('ZADD', inboxes, 0, inbox)
  write('SET', reservation, grant .. ' ' .. ticket .. ' ' .. inbox, 'PX', RESERVED_MS)
  -- In a cluster the inbox ends in the tag of the resource: then on this shard only, or on all servers if nobody
  -- listens here: the slot has moved, or it is a Redis that knows no shard channels.
  local process = string.match(inbox, '^(.*):{')
  if not process or (tonumber(redis.pcall('SPUBLISH', inbox, grant)) or 0) == 0 then
    redis.call('PUBLISH', process or inbox, grant)
  end
end

-- The lock has just been freed: wake the first in the queue whose process is alive.
local function wake_first(queue, inboxes, reservation)
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  while true do
    local first, ticket = unpack(redis.call('ZPOPMIN', queue))
    if not first then
      redis.call('DEL', inboxes)
      return
    end
    local grant, inbox = string.match(first, '^(%S+) (.*)$')
    if is_alive(inboxes, inbox, now_ms) then
      return wake(redis.pcall, inboxes, reservation, grant, ticket, inbox)
    end
  end
end

-- Read the newest lines of a resource's history; change nothing.
--
-- KEYS[1] lock  KEYS[2] history   (as in acquire.lua)
--
-- ARGV[1] lines     how many to read at most
--
-- Returns the lines, newest first.

local lines = KEYS[2] -- KEYS[1] only names the lock in errors
return redis.call('LRANGE', lines, 0, ARGV[1] - 1)

-- Removes the consumers of a group that have no pending entries and have been idle for ARGV[2] milliseconds.
-- Atomic: between a check and the removal a consumer could take an entry, which would be lost with it.
local gone = {}
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
  if consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    gone[#gone + 1] = consumer.name
  end
end
return gone

-- KEYS: a counter without a window. ARGV: now, amount, token. Returns 1 if this changed it, 0 if not.
local known = redis.call('HMGET', KEYS[1], 'value', 'keep', 'spent:' .. ARGV[3])
if not known[1] or known[3] then
  return 0
end
local value = math.max(0, tonumber(known[1]) - tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'value', string.format('%.0f', value), 'spent:' .. ARGV[3], '')
redis.call('PEXPIRE', KEYS[1], known[2])
return 1

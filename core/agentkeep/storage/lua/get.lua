-- KEYS: h x. ARGV: now, sorts... Returns each one's value or nil.
local values = {}
for i = 2, #ARGV do
  local value = redis.call('HGET', KEYS[1], ARGV[i])
  values[i - 1] = value and live(KEYS[2], ARGV[i]) and value
end
return values

-- KEYS: h z x. ARGV: now. Returns how many live items there were.
local items = redis.call('HLEN', KEYS[1]) - redis.call('ZCOUNT', KEYS[3], '-inf', now)
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return items

-- KEYS: a counter without a window. ARGV: now. Returns what it stands at.
return tonumber(redis.call('HGET', KEYS[1], 'value') or 0)

-- KEYS: h z x of each partition, then the client token's key if there is one.
-- ARGV: now, number of writes, for each write: kind and expectation, number of its partition, sort, value,
--       expected value, expires (0: never); then, with a token: fingerprint, reference, expires.
-- Kinds: P put, D delete, C check, E ensure, X clear. Expectations: * any, - absent, + present, = equal.
-- Returns 0; {'replayed', reference}; {'mismatch'}; {'failed', index, current value or nil}.

local SLACK = 3600000 -- a partition's keys outlive its last item by this, so that not every write moves their end
local TIDY = 20       -- expired items removed from each partition written to

local writes = tonumber(ARGV[2])
local last = 2 + 6 * writes

local token = #ARGV > last and KEYS[#KEYS]
if token then
  local spent = redis.call('HMGET', token, 'fingerprint', 'reference')
  if spent[1] then
    if spent[1] == ARGV[last + 1] then
      return {'replayed', spent[2]}
    end
    return {'mismatch'}
  end
end

for i = 1, writes do
  local at = 2 + 6 * (i - 1)
  local expect = string.sub(ARGV[at + 1], 2)
  if expect ~= '*' then
    local k = 3 * tonumber(ARGV[at + 2])
    local sort = ARGV[at + 3]
    local value
    if expect == '+' then
      value = redis.call('HEXISTS', KEYS[k + 1], sort) == 1
    else
      value = redis.call('HGET', KEYS[k + 1], sort)
    end
    if value and not live(KEYS[k + 3], sort) then
      value = false
    end
    local met = (expect == '-' and not value) or (expect == '+' and value) or (expect == '=' and value == ARGV[at + 5])
    if not met then
      return {'failed', i - 1, value}
    end
  end
end

local written = {}
for i = 1, writes do
  local at = 2 + 6 * (i - 1)
  local kind = string.sub(ARGV[at + 1], 1, 1)
  local partition = tonumber(ARGV[at + 2])
  local h, z, x = KEYS[3 * partition + 1], KEYS[3 * partition + 2], KEYS[3 * partition + 3]
  local sort, expires = ARGV[at + 3], tonumber(ARGV[at + 6])
  if kind == 'E' then
    if redis.call('HEXISTS', h, sort) == 1 and live(x, sort) then
      kind = 'C' -- there already: its value stays, its end may move
      local ends = redis.call('ZSCORE', x, sort)
      if ends and expires == 0 then
        redis.call('ZREM', x, sort)
        written[partition] = true
      elseif ends and expires > tonumber(ends) then
        redis.call('ZADD', x, expires, sort)
        written[partition] = true
      end
    else
      kind = 'P'
    end
  end
  if kind == 'P' and (expires == 0 or expires > now) then
    redis.call('HSET', h, sort, ARGV[at + 4])
    redis.call('ZADD', z, 0, sort)
    if expires > 0 then
      redis.call('ZADD', x, expires, sort)
    else
      redis.call('ZREM', x, sort)
    end
    written[partition] = true
  elseif kind == 'P' or kind == 'D' then
    if redis.call('HDEL', h, sort) == 1 then
      redis.call('ZREM', z, sort)
      redis.call('ZREM', x, sort)
      written[partition] = true
    end
  elseif kind == 'X' then
    redis.call('UNLINK', h, z, x)
  end
end

for partition in pairs(written) do
  local h, z, x = KEYS[3 * partition + 1], KEYS[3 * partition + 2], KEYS[3 * partition + 3]
  local expiring = redis.call('ZCARD', x)
  if expiring > 0 then
    local expired = redis.call('ZRANGEBYSCORE', x, '-inf', now, 'LIMIT', 0, TIDY)
    if #expired > 0 then
      redis.call('HDEL', h, unpack(expired))
      redis.call('ZREM', z, unpack(expired))
      redis.call('ZREM', x, unpack(expired))
      expiring = expiring - #expired
    end
  end
  local ends = redis.call('PTTL', h)
  if expiring > 0 and expiring == redis.call('HLEN', h) then
    local need = tonumber(redis.call('ZRANGE', x, -1, -1, 'WITHSCORES')[2]) - now
    if ends < need then
      need = string.format('%.0f', need + SLACK)
      redis.call('PEXPIRE', h, need)
      redis.call('PEXPIRE', z, need)
      redis.call('PEXPIRE', x, need)
    end
  elseif ends >= 0 then
    redis.call('PERSIST', h)
    redis.call('PERSIST', z)
    redis.call('PERSIST', x)
  end
end

if token then
  local left = tonumber(ARGV[last + 3]) - now
  if left > 0 then
    redis.call('HSET', token, 'fingerprint', ARGV[last + 1], 'reference', ARGV[last + 2])
    redis.call('PEXPIRE', token, string.format('%.0f', left))
  end
end
return 0

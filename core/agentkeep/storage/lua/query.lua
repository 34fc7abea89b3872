-- KEYS: h z x. ARGV: now, from, to (ZRANGEBYLEX bounds), limit, '1' for descending, most bytes of values or '0'.
-- Returns sort, value, sort, value, ...
local MOST = 250 -- items read at once

local from, to, limit, bytes = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[6])
local command = ARGV[5] == '1' and 'ZREVRANGEBYLEX' or 'ZRANGEBYLEX'
local expiring = redis.call('EXISTS', KEYS[3]) == 1
local found, n, size = {}, 0, 0
-- Values may be 10 MB each: where bytes are limited, a few at first, then as many as will fill the rest on average.
local chunk = bytes > 0 and 8 or MOST
while n < 2 * limit do
  local wanted = math.min(limit - n / 2, chunk)
  local sorts = redis.call(command, KEYS[2], from, to, 'LIMIT', 0, wanted)
  if #sorts == 0 then
    break
  end
  local values = redis.call('HMGET', KEYS[1], unpack(sorts))
  local ends = expiring and redis.call('ZMSCORE', KEYS[3], unpack(sorts))
  for i, sort in ipairs(sorts) do
    if not expiring or not ends[i] or tonumber(ends[i]) > now then
      found[n + 1], found[n + 2], n, size = sort, values[i], n + 2, size + #values[i]
      if bytes > 0 and size >= bytes then
        return found
      end
    end
  end
  if #sorts < wanted then
    break
  end
  from = '(' .. sorts[#sorts]
  if bytes > 0 and n > 0 then
    chunk = math.max(1, math.min(MOST, math.ceil((bytes - size) / (size / (n / 2) + 1))))
  end
end
return found

-- KEYS: h z x. ARGV: now, from, to (ZRANGEBYLEX bounds), limit, '1' for descending, most bytes of values or '0'.
-- Returns sort, value, sort, value, ...
local from, to, limit, descending, bytes = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1', tonumber(ARGV[6])
local command = descending and 'ZREVRANGEBYLEX' or 'ZRANGEBYLEX'
local expiring = redis.call('EXISTS', KEYS[3]) == 1
local found, n, size = {}, 0, 0
while n < 2 * limit do
  local wanted = math.min(limit - n / 2, 500)
  local sorts = redis.call(command, KEYS[2], from, to, 'LIMIT', 0, wanted)
  for _, sort in ipairs(sorts) do
    if not expiring or live(KEYS[3], sort) then
      local value = redis.call('HGET', KEYS[1], sort)
      found[n + 1], found[n + 2], n, size = sort, value, n + 2, size + #value
      if bytes > 0 and size >= bytes then
        return found
      end
    end
  end
  if #sorts < wanted then
    break
  end
  from = '(' .. sorts[#sorts]
end
return found

-- KEYS: one of each counter. ARGV: now, for each counter: amount, limit, window (0: none), keep; all lengths in ms.
-- Returns 0; {index, value, ms until its window ends or -1} of the first counter without room.
--
-- A counter is a HASH: value; with a window, start: of the window it counts; without one, keep: how long after a write
-- it is kept, and spent:<token> of everything given back.

local values, order = {}, {}
for i, key in ipairs(KEYS) do
  local at = 1 + 4 * (i - 1)
  local amount, limit, window = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local value = values[key]
  if not value then
    local known = redis.call('HMGET', key, 'value', 'start')
    value = tonumber(known[1] or 0)
    if window > 0 and tonumber(known[2] or -1) ~= now - now % window then
      value = 0
    end
    order[#order + 1] = {key, window, ARGV[at + 4]}
  end
  if value + amount > limit then
    return {i - 1, value, window > 0 and window - now % window or -1}
  end
  values[key] = value + amount
end

for _, counter in ipairs(order) do
  local key, window, keep = unpack(counter)
  local value = string.format('%.0f', values[key])
  if window > 0 then
    redis.call('HSET', key, 'value', value, 'start', string.format('%.0f', now - now % window))
    keep = string.format('%.0f', window - now % window)
  else
    redis.call('HSET', key, 'value', value, 'keep', keep)
  end
  redis.call('PEXPIRE', key, keep)
end
return 0

-- What every script begins with.
--
-- A partition is three keys: h, HASH sort -> value; z, ZSET of the sorts, all of score 0, for their order; x, ZSET of
-- the sorts that expire, scored by the epoch millisecond from which they are gone. x alone decides what a reader sees;
-- removal is only tidying: writes remove a few of what expired, and Valkey the whole partition once all of it has.

-- Milliseconds since 1970: of this server, so that all readers agree; or of the caller's clock, if it sends one.
local now = tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local function live(x, sort)
  local expires = redis.call('ZSCORE', x, sort)
  return not expires or tonumber(expires) > now
end

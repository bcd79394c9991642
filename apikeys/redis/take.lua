-- GCRA, kept as a debt: see apikeys.LocalLimiter. One unit of debt is one part out
-- of quota of a microsecond, so that a request costs cost * window units, and quota
-- units go by in a microsecond.
local quota, window, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local held = redis.call('HMGET', KEYS[1], 'at', 'debt', 'quota')
local at, debt = tonumber(held[1]) or now, tonumber(held[2]) or 0
local old = tonumber(held[3]) or quota
if old ~= quota then -- the limit was changed; what was used stays used for as long
	debt = debt / old * quota
end

-- When the clock of the server was set back, nothing goes by.
debt = math.max(0, debt - math.max(0, now - at) * quota)
local most = burst * window
debt = math.min(debt, most)

local ok, retry = 0, 0
local after = debt + cost * window
if after <= most then
	ok, debt = 1, after
elseif cost <= burst then
	retry = math.ceil((after - most) / quota)
else -- there is never enough
	retry = math.ceil(debt / quota)
end

local reset = math.ceil(debt / quota)
if debt > 0 then
	redis.call('HSET', KEYS[1], 'at', now, 'debt', string.format('%.17g', debt), 'quota', quota)
	redis.call('PEXPIRE', KEYS[1], math.ceil(reset / 1000) + 1000)
elseif held[1] then
	redis.call('DEL', KEYS[1])
end
return {ok, math.floor((most - debt) / window), reset, retry}

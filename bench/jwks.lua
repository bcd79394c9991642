-- Asks for the documents bench-0001 to bench-$KEYSETS in turn.
local count = tonumber(os.getenv("KEYSETS"))
local requests, at = {}, 0
function init()
	for i = 1, count do
		requests[i] = wrk.format("GET", string.format("/keysets/bench-%04d/jwks.json", i))
	end
end
function request()
	at = at % count + 1
	return requests[at]
end

-- Verifies the keys in the file $VALUES in turn, as the holder of the token in
-- $TOKEN_FILE: by Connect with JSON, or with $WAY "forward" by forward-auth.
local function first(name)
	local file = assert(io.open(os.getenv(name), "r"))
	local line = file:read("l")
	file:close()
	return line
end
local token = first("TOKEN_FILE")
local requests, at, bad = {}, 0, 0
function init()
	for value in io.lines(os.getenv("VALUES")) do
		if os.getenv("WAY") == "forward" then
			requests[#requests + 1] = wrk.format("GET", "/gateway/forward-auth?scope=orders:read", {
				["X-Rotunda-Token"] = token, ["Authorization"] = "Bearer " .. value,
				["X-Forwarded-Method"] = "GET", ["X-Forwarded-Proto"] = "https", ["X-Forwarded-Host"] = "api.example.com",
				["X-Forwarded-Uri"] = "/orders?page=2", ["X-Forwarded-For"] = "203.0.113.9",
			})
		else
			requests[#requests + 1] = wrk.format("POST", "/rotunda.v1.VerificationService/VerifyApiKey",
				{ ["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. token },
				'{"key":"' .. value .. '","scopes":["orders:read"],"address":"203.0.113.9"}')
		end
	end
end
function request()
	at = at % #requests + 1
	return requests[at]
end

-- Signs with the keyset $KEYSET, by Connect with JSON, as the holder of the token in $TOKEN_FILE.
local token = ""
local file = io.open(os.getenv("TOKEN_FILE") or "", "r")
if file then
	token = file:read("l")
	file:close()
end
wrk.method = "POST"
wrk.path = "/rotunda.v1.KeysetService/Sign"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. token
wrk.body = '{"name":"' .. os.getenv("KEYSET") .. '","claims":"{\\"sub\\":\\"order-7\\",\\"aud\\":\\"ledger\\"}"}'

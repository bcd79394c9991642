-- Asks Rotunda whether a request may go on (docs/gateways.md).
--
-- It reads txn.rotunda_ask, what is asked of the request, and sets txn.rotunda_status
-- to 200 and the other txn.rotunda_* when Rotunda accepts it. Else it answers the
-- client itself. When it fails, txn.rotunda_status is not set, and the configuration
-- denies.

local url = "http://rotunda/gateway/forward-auth?"
local socket = "unix@rotunda.sock" -- of `listen rotunda`

local file = assert(io.open("rotunda-token", "r"), "the file rotunda-token, with a token of role gateway, is not there")
local token = file:read("l")
file:close()
assert(token and token ~= "", "the file rotunda-token is empty")

-- These are between the client and HAProxy, or HAProxy's own to say.
local own = {
    ["host"] = true, ["connection"] = true, ["keep-alive"] = true, ["te"] = true, ["trailer"] = true,
    ["upgrade"] = true, ["expect"] = true, ["content-length"] = true, ["transfer-encoding"] = true,
    ["proxy-connection"] = true, ["proxy-authorization"] = true, ["proxy-authenticate"] = true,
}

-- Header of Rotunda's answer -> variable.
local accepted = {
    ["x-rotunda-partner"] = "partner", ["x-rotunda-key-id"] = "key_id", ["x-rotunda-scopes"] = "scopes",
    ["x-rotunda-environment"] = "environment", ["x-rotunda-class"] = "class",
    ["ratelimit"] = "rate_limit", ["ratelimit-policy"] = "rate_policy", ["deprecation"] = "deprecation", ["sunset"] = "sunset",
}

-- What goes to the client with a denial.
local denied = {
    "content-type", "cache-control", "www-authenticate", "retry-after", "ratelimit", "ratelimit-policy", "deprecation", "sunset",
}

local reasons = { [401] = "Unauthorized", [403] = "Forbidden", [429] = "Too Many Requests", [503] = "Service Unavailable" }

local function first(headers, name)
    local values = headers and headers[name]
    return values and values[0] or nil
end

local function answer(txn, status, headers, body)
    local reply = txn:reply()
    reply:set_status(status, reasons[status])
    for _, name in ipairs(denied) do
        local value = first(headers, name)
        if value then
            reply:add_header(name, value)
        end
    end
    reply:set_body(body)
    txn:done(reply)
end

local function rotunda(txn)
    local ask = txn:get_var("txn.rotunda_ask")
    if not ask then
        return answer(txn, 403, { ["content-type"] = { [0] = "application/json" } }, '{"error":"not_allowed"}\n')
    end
    local headers, length, coding = {}, "", ""
    for name, values in pairs(txn.http:req_get_headers()) do
        if name == "content-length" then
            length = values[0]
        elseif name == "transfer-encoding" then
            coding = values[0]
        end
        if not own[name] then
            headers[name] = values
        end
    end
    -- Over whatever the client sent.
    headers["x-rotunda-token"] = { token }
    headers["x-forwarded-method"] = { txn.f:method() }
    headers["x-forwarded-proto"] = { txn.f:ssl_fc() == 1 and "https" or "http" }
    headers["x-forwarded-host"] = { txn.f:req_fhdr("host") or "" }
    headers["x-forwarded-uri"] = { txn.f:pathq() }
    headers["x-forwarded-for"] = { txn.f:src() }
    headers["x-forwarded-content-length"] = { length }
    headers["x-forwarded-transfer-encoding"] = { coding }

    local got = core.httpclient():get({ url = url .. ask, headers = headers, dst = socket, timeout = 8000 })
    if got.status == 200 then
        for name, variable in pairs(accepted) do
            local value = first(got.headers, name)
            if value then
                txn:set_var("txn.rotunda_" .. variable, value)
            end
        end
        txn:set_var("txn.rotunda_status", 200)
        return
    end
    if got.status == 401 or got.status == 403 or got.status == 429 then
        return answer(txn, got.status, got.headers, got.body or "")
    end
    -- Rotunda did not decide, or is out of reach: nobody passes.
    answer(txn, 503, { ["content-type"] = { [0] = "application/json" }, ["retry-after"] = { [0] = "1" } }, '{"error":"unavailable"}\n')
end

core.register_action("rotunda", { "http-req" }, rotunda, 0)

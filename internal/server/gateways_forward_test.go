package server

import (
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// forward asks as a gateway does that got "GET /orders" of https://api.example.com
// from 203.0.113.9. lines are names and values; a value for one of the gateway's own
// headers replaces it, with "+" before it comes after it, and "-" leaves it out.
func (b *gateBed) forward(t testing.TB, query string, lines ...string) answer {
	t.Helper()
	h := http.Header{
		"X-Rotunda-Token": {b.gateway}, "X-Forwarded-Method": {"GET"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"api.example.com"},
		"X-Forwarded-Uri": {"/orders"}, "X-Forwarded-For": {"203.0.113.9"},
	}
	own := maps.Clone(h)
	for i := 0; i < len(lines); i += 2 {
		name, value := http.CanonicalHeaderKey(lines[i]), lines[i+1]
		more := strings.HasPrefix(value, "+")
		if own[name] != nil && !more {
			delete(h, name)
		}
		if own[name] == nil || value != "-" {
			h[name] = append(h[name], strings.TrimPrefix(value, "+"))
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.http.URL+forwardAuthPath+"?"+query, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = h
	return do(t, http.DefaultClient, req)
}

func TestForwardAuthWhenKeyIsAccepted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newGateBed(t, db)
		value, k := b.key(t, func(s *apikeys.KeySpec) {
			s.Rate, s.CIDRs = apikeys.RateLimit{Quota: 12, Window: time.Minute}, []string{"203.0.113.0/24", "2001:db8::/32"}
		})
		a := b.forward(t, "scope=orders:read&partner=acme&environment=live&cost=4&require=key", "Authorization", "Bearer "+value, "X-Rotunda-Partner", "evil")
		got := http.Header{}
		for name, v := range a.header {
			if strings.HasPrefix(name, "X-Rotunda") || strings.HasPrefix(name, "Ratelimit") || name == "Cache-Control" {
				got[name] = v
			}
		}
		want := http.Header{
			"X-Rotunda-Partner": {"acme"}, "X-Rotunda-Key-Id": {k.ID}, "X-Rotunda-Scopes": {"orders:read"}, "X-Rotunda-Environment": {"live"}, "X-Rotunda-Class": {"secret"},
			"Ratelimit-Policy": {`"default";q=12;w=60`}, "Ratelimit": {`"default";r=8;t=20`}, "Cache-Control": {"no-store"},
		}
		if d := cmp.Diff(want, got); a.status != http.StatusOK || d != "" || a.body != "" {
			t.Errorf("%d %q: %s", a.status, a.body, d)
		}
		for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodDelete, "PURGE"} {
			if a := b.send(t, "", "203.0.113.9", method, forwardAuthPath, "X-Rotunda-Token", b.gateway, "X-Api-Key", value); a.status != http.StatusOK {
				t.Errorf("asked with %s: %d %s", method, a.status, a.body)
			}
		}
		for name, last := range map[string][]string{
			"appended": {"X-Forwarded-For", "198.51.100.1, 10.0.0.1 ,203.0.113.9"}, "in a line of its own": {"X-Forwarded-For", "198.51.100.1", "X-Forwarded-For", "+203.0.113.9"}, "IPv6": {"X-Forwarded-For", "2001:db8::7"},
		} {
			if a := b.forward(t, "", append(last, "X-Api-Key", value)...); a.status != http.StatusOK {
				t.Errorf("%s: %d %s", name, a.status, a.body)
			}
		}
	})
}

func TestForwardAuthWhenRequestIsDenied(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newGateBed(t, db)
		value, _ := b.key(t, plain)
		far, _ := b.key(t, func(s *apikeys.KeySpec) { s.CIDRs = []string{"198.51.100.0/24", "127.0.0.0/8"} })
		scarce, _ := b.key(t, func(s *apikeys.KeySpec) { s.Rate = apikeys.RateLimit{Quota: 1, Window: time.Minute} })
		if a := b.forward(t, "", "X-Api-Key", scarce); a.status != http.StatusOK {
			t.Fatalf("the first of one: %d %s", a.status, a.body)
		}
		k, id := b.signer(t)
		post := b.signed(t, k, id, "POST", "/orders", `{}`)
		signed := []string{"Signature-Input", post["signature-input"], "Signature", post["signature"], "Content-Digest", post["content-digest"], "X-Forwarded-Method", "POST"}
		for _, c := range []struct {
			name, query string
			lines       []string
			status      int
			code        string
		}{
			{"no key", "", nil, 401, "missing_credentials"},
			{"bad key", "", []string{"X-Api-Key", "x"}, 401, "invalid_key"},
			{"key of another partner", "partner=globex", []string{"X-Api-Key", value}, 401, "invalid_key"},
			{"scope", "scope=orders:read&scope=orders:write", []string{"X-Api-Key", value}, 403, "insufficient_scope"},
			{"address", "", []string{"X-Api-Key", far}, 403, "address_not_allowed"},
			{"address, the client's own word first", "", []string{"X-Api-Key", far, "X-Forwarded-For", "198.51.100.7, 203.0.113.9"}, 403, "address_not_allowed"},
			{"address, the client's own word in a line before", "", []string{"X-Api-Key", far, "X-Forwarded-For", "198.51.100.7", "X-Forwarded-For", "+203.0.113.9"}, 403, "address_not_allowed"},
			{"address is none", "", []string{"X-Api-Key", far, "X-Forwarded-For", "198.51.100.7, unknown"}, 403, "address_not_allowed"},
			{"address is missing", "", []string{"X-Api-Key", far, "X-Forwarded-For", "-"}, 403, "address_not_allowed"},
			{"rate", "", []string{"X-Api-Key", scarce}, 429, "rate_limited"},
			{"two keys", "", []string{"X-Api-Key", value, "Authorization", "Bearer " + value}, 401, "several_credentials"},
			{"two lines", "", []string{"Authorization", "Bearer " + value, "Authorization", "Basic x"}, 401, "several_credentials"},
			{"two empty lines and a key", "", []string{"Authorization", "", "Authorization", "", "X-Api-Key", value}, 401, "several_credentials"},
			{"two hosts", "", []string{"X-Api-Key", value, "X-Forwarded-Host", "+evil.example.com"}, 403, "bad_request"},
			{"two paths", "", []string{"X-Api-Key", value, "X-Forwarded-Uri", "+/other"}, 403, "bad_request"},
			{"two methods in a line", "", []string{"X-Api-Key", value, "X-Forwarded-Method", "GET, POST"}, 403, "bad_request"},
			{"absolute form", "", []string{"X-Api-Key", value, "X-Forwarded-Uri", "http://evil.example.com/"}, 403, "bad_request"},
			{"a path with a space", "", []string{"X-Api-Key", value, "X-Forwarded-Uri", "/a b"}, 403, "bad_request"},
			{"a long path", "", []string{"X-Api-Key", value, "X-Forwarded-Uri", "/" + strings.Repeat("a", 9000)}, 403, "bad_request"},
			{"a signed body", "", signed, 403, "body_not_verifiable"},
			{"a signed body, and the client says that there is none", "", append(slices.Clone(signed), "X-Forwarded-Content-Length", "0"), 403, "body_not_verifiable"},
			{"a signed body of chunks", "body=forwarded", append(slices.Clone(signed), "X-Forwarded-Content-Length", "0", "X-Forwarded-Transfer-Encoding", "chunked"), 403, "body_not_verifiable"},
			{"a signed body of two lengths", "body=forwarded", append(slices.Clone(signed), "X-Forwarded-Content-Length", "0", "X-Forwarded-Content-Length", "4"), 403, "body_not_verifiable"},
			{"signed, and the wrong body", "body=forwarded", append(slices.Clone(signed), "X-Forwarded-Content-Length", "0"), 401, "invalid_signature"},
		} {
			a := b.forward(t, c.query, c.lines...)
			if a.status != c.status || !strings.HasPrefix(a.body, `{"error":"`+c.code+`"`) || a.header.Get("X-Rotunda-Error") != c.code || a.header.Get("Content-Type") != "application/json" || a.header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %d %s %v, want %d %s", c.name, a.status, a.body, a.header, c.status, c.code)
			}
			if (a.header.Get("Www-Authenticate") != "") != (c.status == 401 || c.code == "insufficient_scope") || (a.header.Get("Retry-After") != "") != (c.status == 429) {
				t.Errorf("%s: %v", c.name, a.header)
			}
			for name := range a.header {
				if strings.HasPrefix(name, "X-Rotunda-") && name != "X-Rotunda-Error" {
					t.Errorf("%s: denied, and with %s", c.name, name)
				}
			}
		}
		for name, lines := range map[string][]string{
			"GET":                     append(pairs(b.signed(t, k, id, "GET", "/orders?a=1", "")), "X-Forwarded-Uri", "/orders?a=1"),
			"from the configuration":  append(pairs(b.signed(t, k, id, "GET", "/orders", "")), "X-Forwarded-Host", "10.0.0.1", "X-Forwarded-Proto", "http"),
			"POST of nothing":         append(pairs(b.signed(t, k, id, "POST", "/orders", "")), "X-Forwarded-Method", "POST", "X-Forwarded-Content-Length", "0"),
			"nothing but what it has": append(pairs(b.signed(t, k, id, "GET", "/orders", "")), "X-Forwarded-Host", "-", "X-Forwarded-Proto", "-", "X-Forwarded-For", "-"),
		} {
			if a := b.forward(t, "require=signature&body=forwarded&authority=api.example.com&scheme=https", lines...); a.status != http.StatusOK {
				t.Errorf("signed, %s: %d %s", name, a.status, a.body)
			}
		}
	})
}

func pairs(fields map[string]string) (out []string) {
	for name, value := range fields {
		out = append(out, name, value)
	}
	return out
}

// Promise: a gateway that is not set up right lets nobody through, and its clients
// are not told that their keys are bad.
func TestForwardAuthWhenGatewayIsNotSetUpRight(t *testing.T) {
	b := newGateBed(t, storetest.SQLite(t))
	value, _ := b.key(t, plain)
	for _, query := range []string{"scopes=orders:read", "scope", "scope=", "scope=a%zz", "scope=a;b=c", "partner=a&partner=b", "require=no", "body=buffered", "body=", "key_query=x", "trusted_hops=2", "%00=x"} {
		if a := b.forward(t, query, "X-Api-Key", value); a.status != http.StatusInternalServerError || a.header.Get("X-Rotunda-Error") != "gateway_misconfigured" {
			t.Errorf("%s: %d %s", query, a.status, a.body)
		}
	}
	k, id := b.signer(t)
	for _, missing := range []string{"X-Forwarded-Method", "X-Forwarded-Uri", "X-Forwarded-Proto", "X-Forwarded-Host"} {
		lines := append(pairs(b.signed(t, k, id, "GET", "/orders", "")), missing, "-")
		a := b.forward(t, "body=forwarded", append(lines, "X-Forwarded-Content-Length", "0")...)
		if a.status != http.StatusInternalServerError || a.header.Get("X-Rotunda-Error") != "gateway_misconfigured" {
			t.Errorf("signed, without %s: %d %s", missing, a.status, a.body)
		}
	}
	for name, c := range map[string]struct {
		token, actor, action, reason string
	}{
		"no token":    {"-", "anonymous", "authenticate", "missing"},
		"two tokens":  {"+" + b.admin, "anonymous", "authenticate", "missing"},
		"nonsense":    {"nonsense", "anonymous", "authenticate", "malformed"},
		"a key":       {value, "anonymous", "authenticate", ""},
		"an auditor":  {b.token(t, apikeys.Create{Role: apikeys.Auditor}), "", "gateway.forward_auth", "role"},
		"a partner":   {b.manager(t, "acme"), "", "gateway.forward_auth", "role"},
		"another net": {b.token(t, apikeys.Create{Role: apikeys.Gateway, CIDRs: []string{"203.0.113.0/24"}}), "anonymous", "authenticate", "address"},
	} {
		// The client's Authorization is no token of the gateway.
		a := b.forward(t, "", "X-Rotunda-Token", c.token, "Authorization", "Bearer "+b.admin)
		if a.status != http.StatusInternalServerError || a.header.Get("X-Rotunda-Error") != "gateway_misconfigured" || a.header.Get("Www-Authenticate") != "" {
			t.Errorf("%s: %d %s %v", name, a.status, a.body, a.header)
		}
		actor := c.actor
		if actor == "" {
			actor = idOf(c.token)
		}
		found := slices.ContainsFunc(b.events(t, audit.Query{Outcome: audit.Denied, Actor: actor}), func(e audit.Event) bool {
			return e.Action == c.action && (c.reason == "" || e.Reason == c.reason)
		})
		if !found {
			t.Errorf("%s: no event %s, %s by %s", name, c.action, c.reason, actor)
		}
	}
	if a := b.forward(t, "", "X-Api-Key", value); a.status != http.StatusOK {
		t.Errorf("the right token: %d %s", a.status, a.body)
	}
	// Whoever guesses tokens is stopped for a while; the gateway at the same address is not.
	for range 60 {
		b.forward(t, "", "X-Rotunda-Token", "guess")
	}
	if a := b.forward(t, "", "X-Rotunda-Token", "guess"); a.status != http.StatusServiceUnavailable {
		t.Errorf("after many guesses: %d %s", a.status, a.body)
	}
	if a := b.forward(t, "", "X-Api-Key", value); a.status != http.StatusOK {
		t.Errorf("the gateway beside who guesses: %d %s", a.status, a.body)
	}
}

// Promise: X-Forwarded-For is about the client; a gateway is where its connection
// comes from, a trusted proxy or not.
func TestForwardAuthWhenGatewayIsATrustedProxy(t *testing.T) {
	db := storetest.SQLite(t)
	b := newGateBed(t, db)
	value, _ := b.key(t, func(s *apikeys.KeySpec) { s.CIDRs = []string{"203.0.113.0/24"} })
	c := &gateBed{bed: newBedBeside(t, b.bed, func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })}
	c.gateway = b.token(t, apikeys.Create{Role: apikeys.Gateway, CIDRs: []string{"127.0.0.0/8"}})
	if a := c.forward(t, "", "X-Api-Key", value); a.status != http.StatusOK {
		t.Errorf("its own token: %d %s", a.status, a.body)
	}
	c.gateway = b.token(t, apikeys.Create{Role: apikeys.Gateway, CIDRs: []string{"203.0.113.0/24"}})
	if a := c.forward(t, "", "X-Api-Key", value); a.status != http.StatusInternalServerError {
		t.Errorf("a token for where the client is: %d %s", a.status, a.body)
	}
}

func TestForwardAuthWhenVerifierHasNotHeard(t *testing.T) {
	b := newGateBed(t, storetest.SQLite(t))
	value, _ := b.key(t, plain)
	b.clock.Advance(2 * time.Minute)
	a := b.forward(t, "", "X-Api-Key", value)
	if a.status != http.StatusServiceUnavailable || a.header.Get("X-Rotunda-Error") != "unavailable" || a.header.Get("Retry-After") != "1" {
		t.Errorf("%d %s %v", a.status, a.body, a.header)
	}
	if strings.Contains(b.log.String(), value) || strings.Contains(b.log.String(), b.gateway) {
		t.Error("the log holds a key or a token")
	}
}

func TestLastHopWhenHeaderIsOdd(t *testing.T) {
	for _, c := range []struct {
		lines []string
		n     int
		want  string
	}{
		{nil, 1, "invalid IP"},
		{[]string{""}, 1, "invalid IP"},
		{[]string{"192.0.2.1"}, 1, "192.0.2.1"},
		{[]string{"192.0.2.1"}, 2, "invalid IP"},
		{[]string{"192.0.2.1,"}, 1, "invalid IP"},
		{[]string{"192.0.2.1,192.0.2.2", "192.0.2.3"}, 3, "192.0.2.1"},
		{[]string{"192.0.2.1", "192.0.2.2:80"}, 1, "invalid IP"},
		{[]string{"::ffff:192.0.2.1"}, 1, "192.0.2.1"},
		{[]string{"fe80::1%eth0"}, 1, "fe80::1"},
	} {
		if got := lastHop(c.lines, c.n).String(); got != c.want {
			t.Errorf("%q, %d: %s, want %s", c.lines, c.n, got, c.want)
		}
	}
}

// FuzzForwardAuthHeaders holds the reading of a gateway's question to what it may not
// do, whatever a client sends through it.
func FuzzForwardAuthHeaders(f *testing.F) {
	f.Add("scope=orders:read", "GET", "/orders?a=1", "api.example.com", "203.0.113.9", "Bearer k", "", "0", false)
	f.Add("scope=a,b&require=either&body=forwarded&key_header=x-key", "POST", "http://x/", "a,b", "1.1.1.1, 2.2.2.2", "Basic x", "k", "", true)
	f.Add("scope=%ff&partner=", "\x00", "*", "[::1]:443", "::1", "Bearer", "\x00", "5", true)
	f.Fuzz(func(t *testing.T, query, method, uri, host, hops, authorization, key, length string, twice bool) {
		h := http.Header{
			"X-Forwarded-Method": {method}, "X-Forwarded-Uri": {uri}, "X-Forwarded-Host": {host}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-For": {hops},
			"Authorization": {authorization}, "X-Api-Key": {key}, "X-Forwarded-Content-Length": {length},
		}
		if twice {
			h["Authorization"] = append(h["Authorization"], authorization)
			h["X-Api-Key"] = append(h["X-Api-Key"], key)
		}
		g, v := readForward(&http.Request{URL: &url.URL{RawQuery: query}, Header: h})
		if g == nil {
			if v.status != http.StatusForbidden && v.status != http.StatusInternalServerError || gateMessages[v.code] == "" {
				t.Fatalf("no question, and the verdict %+v", v)
			}
			return
		}
		if strings.ContainsAny(g.target, " \x00\r\n#") || g.target != "" && g.target != "*" && g.target[0] != '/' || strings.ContainsAny(g.authority+g.method, ", \x00\r\n") {
			t.Fatalf("%q %q %q is taken for a request", g.method, g.authority, g.target)
		}
		if len(g.need.Scopes) > maxNeededScopes || g.need.Cost < 0 || g.hops != 0 || g.keyQuery != "" {
			t.Fatalf("asks for %+v", g.rules)
		}
		if strings.Contains(query, "scope=") && !strings.Contains(query, "%") && len(g.need.Scopes) == 0 && strings.HasPrefix(query, "scope=") {
			t.Fatalf("%q asks for no scope", query)
		}
		value, several := g.credential()
		if twice && !several && (g.keyHeader == "" || g.keyHeader == "Authorization" || g.keyHeader == "X-Api-Key") {
			t.Fatal("two lines are taken for one")
		}
		if !several && value != "" && value != " " && !strings.Contains(authorization+"\n"+key+"\n"+strings.Join(h[g.keyHeader], "\n"), value) {
			t.Fatalf("the key %q is in no header", value)
		}
		if !g.omitted && g.method == http.MethodPost && (g.rules.body != bodyForwarded || length != "0") {
			t.Fatalf("a POST of length %q is taken for one without a body", length)
		}
	})
}

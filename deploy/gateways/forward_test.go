package gateways

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/store"
)

func TestGatewayWhenKeyIsAccepted(t *testing.T) {
	each(t, func(t *testing.T, d *door) {
		key, id := d.key(t, apikeys.KeySpec{Scopes: []string{"orders:read", "orders:write"}, Rate: apikeys.RateLimit{Quota: 1000, Window: time.Minute}})
		want := who("acme", id, "orders:read orders:write")
		for what, lines := range map[string][]string{
			"Authorization":            {"Authorization: Bearer " + key},
			"Authorization, any case":  {"authorization: bEARER " + key},
			"X-Api-Key":                {"X-Api-Key: " + key},
			"and another Basic":        {"Authorization: Basic b3BlbjpzZXNhbWU=", "x-api-key: " + key},
			"and nothing in X-Api-Key": {"Authorization: Bearer " + key, "X-Api-Key:"},
		} {
			r := d.get(t, "/orders/7?a=%2F..%2f&b=1&&c", lines...)
			got := wantSeen(t, what, r, want, key, d.gateway, "Bearer", "b3BlbjpzZXNhbWU")
			if got.URI != "/orders/7?a=%2F..%2f&b=1&&c" || got.Host != "api.example.com" || got.Header.Get("X-Forwarded-For") != "127.0.0.1" {
				t.Errorf("%s: the service got %q of %q from %q", what, got.URI, got.Host, got.Header.Get("X-Forwarded-For"))
			}
			if policy, left := r.header.Values("RateLimit-Policy"), r.header.Get("RateLimit"); len(policy) != 1 || policy[0] != `"default";q=1000;w=60` || !strings.HasPrefix(left, `"default";r=9`) {
				t.Errorf("%s: RateLimit-Policy %q, RateLimit %q", what, policy, left)
			}
			for _, name := range []string{"Ratelimit", "Ratelimit-Policy", "Deprecation", "Sunset"} {
				if v, ok := got.Header[name]; ok {
					t.Errorf("%s: the service got %s: %q", what, name, v)
				}
			}
			for _, name := range []string{"Deprecation", "Sunset", "Retry-After", "X-Rotunda-Partner"} {
				if v, ok := r.header[name]; ok {
					t.Errorf("%s: the client got %s: %q", what, name, v)
				}
			}
		}
		body := strings.Repeat("0123456789", 20_000)
		r := d.send(t, "POST", "/orders/new", body, "X-Api-Key: "+key)
		if got := wantSeen(t, "body", r, want, key); got.Method != "POST" || got.Body != len(body) {
			t.Errorf("the service got %s with %d bytes", got.Method, got.Body)
		}

		plain, id := d.key(t, apikeys.KeySpec{Partner: "globex"})
		r = d.get(t, "/orders", "X-Api-Key: "+plain, `RateLimit: "default";r=5`, `RateLimit-Policy: "default";q=5`, "Deprecation: @1", "Sunset: Mon")
		wantSeen(t, "no limit", r, who("globex", id, "orders:read"), plain)
		for _, name := range []string{"Ratelimit", "Ratelimit-Policy", "Deprecation", "Sunset"} {
			if v, ok := r.header[name]; ok {
				t.Errorf("no limit, and the client got %s: %q", name, v)
			}
		}
	})
}

// Promise: an identity that is as long as it may be arrives whole.
func TestGatewayWhenIdentityIsLong(t *testing.T) {
	each(t, func(t *testing.T, d *door) {
		scopes := []string{"orders:read"}
		for i := range 63 {
			scopes = append(scopes, fmt.Sprintf("%02d:%s", i, strings.Repeat("s", 61)))
		}
		if _, err := d.partners.Create(t.Context(), "initech", apikeys.PartnerSpec{Scopes: scopes}, store.Once{}); err != nil {
			t.Fatal(err)
		}
		key, id := d.key(t, apikeys.KeySpec{Partner: "initech", Scopes: scopes})
		wantSeen(t, "64 scopes", d.get(t, "/orders", "X-Api-Key: "+key), who("initech", id, strings.Join(scopes, " ")), key)
	})
}

func TestGatewayWhenKeyIsRetiring(t *testing.T) {
	each(t, func(t *testing.T, d *door) {
		key, id := d.key(t, apikeys.KeySpec{})
		grace := time.Hour
		made, old, err := d.keys.Roll(t.Context(), apikeys.Roll{Kind: apikeys.APIKey, Partner: "acme", ID: id, Grace: &grace})
		if err != nil {
			t.Fatal(err)
		}
		made.Value.Destroy()
		r := d.get(t, "/orders", "Authorization: Bearer "+key)
		wantSeen(t, "retiring", r, who("acme", id, "orders:read"), key)
		if got, want := r.header.Get("Deprecation"), "@"+strconv.FormatInt(old.Since.Unix(), 10); got != want {
			t.Errorf("Deprecation %q, want %q", got, want)
		}
		if got, want := r.header.Get("Sunset"), old.GraceEndsAt.UTC().Format(http.TimeFormat); got != want {
			t.Errorf("Sunset %q, want %q", got, want)
		}
	})
}

// Promise: through each gateway a client sees 401, 403, 429 and 503 for what they are,
// and nothing that is denied reaches the service.
func TestGatewayWhenRequestIsDenied(t *testing.T) {
	each(t, func(t *testing.T, d *door) {
		good, _ := d.key(t, apikeys.KeySpec{})
		other, _ := newRotunda(t).key(t, apikeys.KeySpec{})
		revoked, id := d.key(t, apikeys.KeySpec{})
		if _, err := d.keys.Revoke(t.Context(), apikeys.APIKey, "acme", id, apikeys.KeyCompromise, ""); err != nil {
			t.Fatal(err)
		}
		suspended, id := d.key(t, apikeys.KeySpec{})
		if _, err := d.keys.Suspend(t.Context(), apikeys.APIKey, "acme", id, "audit"); err != nil {
			t.Fatal(err)
		}
		far, _ := d.key(t, apikeys.KeySpec{CIDRs: []string{"203.0.113.0/24"}})
		scarce, _ := d.key(t, apikeys.KeySpec{Rate: apikeys.RateLimit{Quota: 1, Window: time.Hour}})
		wantSeen(t, "the first of one", d.get(t, "/orders", "X-Api-Key: "+scarce), mustIdentity(t, d, scarce))

		var bodies []string
		for _, c := range []struct {
			what, target string
			lines        []string
			status       int
			code         string
		}{
			{"no key", "/orders", nil, 401, "missing_credentials"},
			{"another scheme", "/orders", []string{"Authorization: Basic " + good}, 401, "missing_credentials"},
			{"malformed", "/orders", []string{"Authorization: Bearer nonsense"}, 401, "invalid_key"},
			{"empty", "/orders", []string{"Authorization: Bearer "}, 401, "invalid_key"},
			{"typo", "/orders", []string{"Authorization: Bearer " + good[:len(good)-1] + "!"}, 401, "invalid_key"},
			{"of another Rotunda", "/orders", []string{"Authorization: Bearer " + other}, 401, "invalid_key"},
			{"revoked", "/orders", []string{"Authorization: Bearer " + revoked}, 401, "invalid_key"},
			{"suspended", "/orders", []string{"X-Api-Key: " + suspended}, 401, "invalid_key"},
			{"the gateway's own token", "/orders", []string{"Authorization: Bearer " + d.gateway}, 401, "invalid_key"},
			{"scope", "/orders/new", []string{"Authorization: Bearer " + good}, 403, "insufficient_scope"},
			{"address", "/orders", []string{"Authorization: Bearer " + far}, 403, "address_not_allowed"},
			{"address, spoofed", "/orders", []string{"Authorization: Bearer " + far, "X-Forwarded-For: 203.0.113.9", "X-Real-Ip: 203.0.113.9", "Forwarded: for=203.0.113.9"}, 403, "address_not_allowed"},
			{"rate", "/orders", []string{"Authorization: Bearer " + scarce}, 429, "rate_limited"},
			{"two keys", "/orders", []string{"Authorization: Bearer " + good, "X-Api-Key: " + good}, 401, "several_credentials"},
			{"a key, then a bad one", "/orders", []string{"X-Api-Key: " + good, "Authorization: Bearer nonsense"}, 401, "several_credentials"},
			{"a query that asks for less", "/orders/new?scope=orders:read&require=key&partner=acme", []string{"Authorization: Bearer " + good}, 403, "insufficient_scope"},
			{"headers that ask for less", "/orders/new", []string{"Authorization: Bearer " + good, "X-Forwarded-Uri: /orders", "X-Original-Url: /orders", "X-Forwarded-Method: GET"}, 403, "insufficient_scope"},
		} {
			r := d.refused(t, c.what, c.status, c.code, func() reply { return d.get(t, c.target, c.lines...) })
			challenge := r.header.Values("Www-Authenticate")
			if (len(challenge) == 1) != (c.status == 401 || c.code == "insufficient_scope") || len(challenge) > 1 {
				t.Errorf("%s: WWW-Authenticate %q", c.what, challenge)
			}
			if after, err := strconv.Atoi(r.header.Get("Retry-After")); (c.status == 429) != (err == nil && after > 0 && after <= 3600) {
				t.Errorf("%s: Retry-After %q", c.what, r.header.Get("Retry-After"))
			}
			if c.code == "invalid_key" {
				bodies = append(bodies, r.body+strings.Join(challenge, ","))
			}
		}
		for _, b := range bodies[1:] {
			if b != bodies[0] {
				t.Errorf("what is told of a bad key depends on why it is bad: %q and %q", b, bodies[0])
			}
		}
		before := d.service.hits.Load()
		for _, target := range []string{"/", "/elsewhere", "/forgotten", "/_rotunda", "/gateway/forward-auth"} {
			r := d.get(t, target, "Authorization: Bearer "+good)
			if r.status != http.StatusNotFound && r.status != http.StatusForbidden || d.service.hits.Load() != before {
				t.Errorf("%s, for which nothing is asked: %s", target, r)
			}
			if target != "/forgotten" && r.header.Get("X-Request-Id") != "" {
				t.Errorf("%s: a client speaks to Rotunda itself: %s", target, r)
			}
		}
	})
}

// mustIdentity is the identity of a key of acme by its value.
func mustIdentity(t testing.TB, d *door, value string) map[string]string {
	t.Helper()
	list, _, err := d.keys.List(t.Context(), apikeys.ListKeys{Kind: apikeys.APIKey, Partner: "acme", Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range list {
		if strings.Contains(value, k.ID) {
			return who("acme", k.ID, strings.Join(k.Scopes, " "))
		}
	}
	t.Fatal("the key is in no list")
	return nil
}

// Promise: no spoofed identity and no credential passes a gateway.
func TestGatewayWhenIdentityIsSpoofed(t *testing.T) {
	each(t, func(t *testing.T, d *door) {
		key, id := d.key(t, apikeys.KeySpec{})
		want := who("acme", id, "orders:read")
		var all []string
		for _, name := range []string{"Partner", "Key-Id", "Scopes", "Environment", "Class", "Token", "Error"} {
			for _, form := range []string{"X-Rotunda-%s", "x-rotunda-%s", "X_Rotunda_%s", "X-Rotunda_%s", "X_ROTUNDA-%s"} {
				line := fmt.Sprintf(form, name) + ": evil"
				r := d.get(t, "/orders", "Authorization: Bearer "+key, line)
				wantSeen(t, line, r, want, key, d.gateway, "evil")
				all = append(all, line, line)
			}
		}
		r := d.get(t, "/orders", append(all, "Authorization: Bearer "+key)...)
		wantSeen(t, "all of them, twice", r, want, key, d.gateway, "evil")
		// A header that the client declares to be for one hop only must not take
		// what the gateway sets along.
		conn := "GET /orders HTTP/1.1\r\nHost: api.example.com\r\nConnection: close, X-Rotunda-Partner, X-Rotunda-Token, Authorization, X-Forwarded-For\r\nAuthorization: Bearer " + key + "\r\n\r\n"
		if r, err := d.raw(conn); err != nil {
			t.Error(err)
		} else if r.seen != nil {
			wantSeen(t, "hop by hop", r, want, key, d.gateway)
		}
		d.refused(t, "a token of a gateway in place of a key", 401, "missing_credentials", func() reply { return d.get(t, "/orders", "X-Rotunda-Token: "+d.gateway) })
	})
}

// Promise: a request that can be read in two ways is refused, or read as the service
// reads it; it never gets by without a key.
func TestGatewayWhenRequestIsOdd(t *testing.T) {
	each(t, func(t *testing.T, d *door) {
		key, id := d.key(t, apikeys.KeySpec{})
		want := who("acme", id, "orders:read")
		auth := "Authorization: Bearer " + key
		head := "GET /orders HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n"
		for what, request := range map[string]string{
			"two Authorization":              head + auth + "\r\nAuthorization: Bearer other\r\n\r\n",
			"two Authorization, the same":    head + auth + "\r\n" + auth + "\r\n\r\n",
			"two in one line":                head + auth + ", Bearer other\r\n\r\n",
			"two X-Api-Key":                  head + "X-Api-Key: " + key + "\r\nX-Api-Key: other\r\n\r\n",
			"NUL in the key":                 head + auth + "\x00\r\n\r\n",
			"NUL in another header":          head + auth + "\r\nX-Other: a\x00b\r\n\r\n",
			"NUL in the path":                strings.Replace(head, "/orders", "/orders\x00", 1) + auth + "\r\n\r\n",
			"CR in a header":                 head + auth + "\r\nX-Other: a\rX-Rotunda-Partner: evil\r\n\r\n",
			"space before the colon":         head + "Authorization : Bearer " + key + "\r\n\r\n",
			"two hosts":                      head + "Host: evil.example.com\r\n" + auth + "\r\n\r\n",
			"very long key":                  head + auth + strings.Repeat("x", 100_000) + "\r\n\r\n",
			"very long other header":         head + auth + "\r\nX-Other: " + strings.Repeat("x", 100_000) + "\r\n\r\n",
			"very many headers":              head + auth + "\r\n" + strings.Repeat("X-Other: x\r\n", 5000) + "\r\n",
			"very long path":                 strings.Replace(head, "/orders", "/orders/"+strings.Repeat("x", 100_000), 1) + auth + "\r\n\r\n",
			"encoded slash":                  strings.Replace(head, "/orders", "/orders%2Fnew", 1) + auth + "\r\n\r\n",
			"dots":                           strings.Replace(head, "/orders", "/orders/../orders/new", 1) + auth + "\r\n\r\n",
			"encoded dots":                   strings.Replace(head, "/orders", "/orders/%2e%2e/orders/new", 1) + auth + "\r\n\r\n",
			"dots with a parameter":          strings.Replace(head, "/orders", "/orders/..;/new", 1) + auth + "\r\n\r\n",
			"escaped letter":                 strings.Replace(head, "/orders", "/orders/%6eew", 1) + auth + "\r\n\r\n",
			"escaped letter, then a query":   strings.Replace(head, "/orders", "/orders/ne%77?x", 1) + auth + "\r\n\r\n",
			"path parameter":                 strings.Replace(head, "/orders", "/orders;x=1/new", 1) + auth + "\r\n\r\n",
			"path parameter of nothing":      strings.Replace(head, "/orders", "/orders/;x/new", 1) + auth + "\r\n\r\n",
			"two slashes":                    strings.Replace(head, "/orders", "//orders/new", 1) + auth + "\r\n\r\n",
			"backslash":                      strings.Replace(head, "/orders", "/orders\\new", 1) + auth + "\r\n\r\n",
			"length and chunks":              strings.Replace(head, "GET", "POST", 1) + auth + "\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			"two lengths":                    strings.Replace(head, "GET", "POST", 1) + auth + "\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
			"absolute form, other authority": "GET http://evil.example.com/orders/new HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n" + auth + "\r\n\r\n",
		} {
			r, err := d.raw(request)
			switch {
			case err != nil: // it hung up
			case r.seen != nil:
				got := wantSeen(t, what, r, want, key, "evil.example.com\"", "other")
				if path, err := url.PathUnescape(got.URI); err != nil || strings.Contains(path, "new") || strings.Contains(path, "..") {
					t.Errorf("%s: a key for orders:read reached %s", what, got.URI)
				}
			case r.status == http.StatusOK:
				t.Errorf("%s: %s", what, r)
			}
			// The same without the key.
			before := d.service.hits.Load()
			_, _ = d.raw(strings.ReplaceAll(strings.ReplaceAll(request, auth, "X-Nothing: x"), key, "x"))
			if d.service.hits.Load() != before {
				t.Errorf("%s: without a key it reached the service", what)
			}
		}
		r := d.get(t, "/orders/a%20b%C3%BC;v=1?q=%2f%2e%2e/../x", auth)
		if got := wantSeen(t, "escapes", r, want, key); got.URI != "/orders/a%20b%C3%BC;v=1?q=%2f%2e%2e/../x" {
			t.Errorf("the service got %s", got.URI)
		}
		for _, c := range []string{"two Authorization lines", "twice the same"} {
			second := auth
			if c[2] == 'o' {
				second += "x"
			}
			before := d.service.hits.Load()
			if r, err := d.raw(head + auth + "\r\n" + second + "\r\n\r\n"); err == nil && r.status < 400 || d.service.hits.Load() != before {
				t.Errorf("%s: %s, %v", c, r, err)
			}
		}
	})
}

// Promise: a client can't have its identity taken away on the way to the service, as
// it could by naming it in Connection (RFC 9110, section 7.6.1).
func TestGatewayWhenConnectionNamesIdentity(t *testing.T) {
	each(t, func(t *testing.T, d *door) {
		key, id := d.key(t, apikeys.KeySpec{})
		names := "X-Rotunda-Partner, x-rotunda-key-id, X-ROTUNDA-Scopes, X-Rotunda-Environment, X-Rotunda-Class"
		for _, line := range []string{"Connection: close, " + names, "Connection: close\r\nConnection: " + names, "connection: " + names + ", close"} {
			r, err := d.raw("GET /orders HTTP/1.1\r\nHost: api.example.com\r\nX-Api-Key: " + key + "\r\n" + line + "\r\n\r\n")
			if err != nil {
				t.Fatal(err)
			}
			if r.status == http.StatusBadRequest && r.seen == nil {
				continue
			}
			got := wantSeen(t, line, r, who("acme", id, "orders:read"), key)
			if v := strings.Join(got.Header["Connection"], ","); strings.Contains(strings.ToLower(v), "rotunda") {
				t.Errorf("%s: the service, and what stands before it, got Connection: %s", line, v)
			}
		}
	})
}

// Promise: identities of requests that are under way together are never mixed up.
func TestGatewayWhenManyAskAtOnce(t *testing.T) {
	each(t, func(t *testing.T, d *door) {
		const clients, requests = 16, 25
		var running sync.WaitGroup
		for i := range clients {
			partner := []string{"acme", "globex"}[i%2]
			key, id := d.key(t, apikeys.KeySpec{Partner: partner, Name: fmt.Sprint("ci-", i)})
			running.Go(func() {
				for n := range requests {
					target := fmt.Sprintf("/orders/%d-%d", i, n)
					r, err := d.raw("GET " + target + " HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\nX-Api-Key: " + key + "\r\n\r\n")
					if err != nil || r.seen == nil || r.seen.URI != target || r.seen.Header.Get("X-Rotunda-Key-Id") != id || r.seen.Header.Get("X-Rotunda-Partner") != partner {
						t.Errorf("%s: %v %s", target, err, r)
						return
					}
				}
			})
		}
		running.Wait()
	})
}

// Promise: a revoked key is refused, and soon: the time is printed.
func TestGatewayWhenKeyIsRevoked(t *testing.T) {
	each(t, func(t *testing.T, d *door) {
		key, id := d.key(t, apikeys.KeySpec{})
		wantSeen(t, "before", d.get(t, "/orders", "X-Api-Key: "+key), who("acme", id, "orders:read"), key)
		if _, err := d.keys.Revoke(t.Context(), apikeys.APIKey, "acme", id, apikeys.KeyCompromise, ""); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for {
			r := d.get(t, "/orders", "X-Api-Key: "+key)
			if r.status == http.StatusUnauthorized && r.code() == "invalid_key" {
				break
			}
			if time.Since(began) > 30*time.Second {
				t.Fatalf("30 s after its revocation: %s", r)
			}
		}
		t.Logf("%s refused it %v after the revocation was confirmed", d.name, time.Since(began).Round(time.Microsecond))
	})
}

// Promise: without Rotunda nobody passes, and when it is back everybody does.
func TestGatewayWhenRotundaIsAway(t *testing.T) {
	each(t, func(t *testing.T, d *door) {
		key, id := d.key(t, apikeys.KeySpec{})
		auth := "Authorization: Bearer " + key
		for range 2 {
			wantSeen(t, "before", d.get(t, "/orders", auth), who("acme", id, "orders:read"), key)
			d.stop()
			for range 3 {
				d.refused(t, "while Rotunda is away", http.StatusServiceUnavailable, "unavailable", func() reply { return d.get(t, "/orders", auth) })
			}
			d.rotunda.start(t)
			for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
				r := d.get(t, "/orders", auth)
				if r.seen != nil {
					break
				}
				if r.code() != "unavailable" || time.Since(began) > 60*time.Second {
					t.Fatalf("%v after Rotunda is back: %s", time.Since(began), r)
				}
			}
		}
	})
}

// Promise: a gateway that is not set up right lets nobody through, and does not tell
// clients that their keys are bad.
func TestGatewayWhenItsTokenIsNotAccepted(t *testing.T) {
	r, s := newRotunda(t), newService(t)
	key, _ := r.key(t, apikeys.KeySpec{})
	_, v, err := r.tokens.Create(t.Context(), apikeys.Create{Name: "auditor", Role: apikeys.Auditor})
	if err != nil {
		t.Fatal(err)
	}
	auditor := v.RevealString()
	for _, k := range []kind{nginx, caddy, haproxy} {
		for what, token := range map[string]string{"an auditor's": auditor, "none": "nothing", "a key": key} {
			d := &door{kind: k, rotunda: r, service: s, at: k.start(t, r.addr, s.addr, token)}
			got := d.get(t, "/orders", "Authorization: Bearer "+key)
			if got.status != k.misconfigured || s.hits.Load() != 0 {
				t.Errorf("%s with %s: %s, %d reached the service", k.name, what, got, s.hits.Load())
			}
		}
	}
}

package server

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// Promise: whoever floods the public endpoints blocks nobody else, and never a
// registered gateway.
func TestPublicLimitWhenFlooded(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBedWith(t, db, func(c *Config) { c.PublicRate = 5 }) // a burst of 11
		b.keyset(t, "payments")
		byAddress := b.token(t, apikeys.Create{Role: apikeys.Gateway, CIDRs: []string{"198.51.100.0/24", "2001:db8:9::/48"}})
		byBearer := b.token(t, apikeys.Create{Role: apikeys.Gateway})
		signer := b.token(t, apikeys.Create{Role: apikeys.Signer})
		if _, err := b.GatewayPass(t.Context(), b.clock.Now()); err != nil {
			t.Fatal(err)
		}
		const path = "/keysets/payments/jwks.json"
		flood := func(from, token string) (ok, limited int) {
			t.Helper()
			for range 40 {
				a := b.get(t, token, from, path)
				switch a.status {
				case http.StatusOK:
					ok++
				case http.StatusTooManyRequests:
					limited++
					if a.header.Get("Retry-After") != "1" || a.header.Get("Cache-Control") != "no-store" || a.header.Get("Etag") != "" {
						t.Fatalf("429 with %v", a.header)
					}
				default:
					t.Fatalf("%d %s", a.status, a.body)
				}
			}
			return ok, limited
		}
		for _, c := range []struct {
			name, from, token string
			ok                int
		}{
			{"stranger", "203.0.113.1", "", 11},
			{"the same again", "203.0.113.1", "", 0},
			{"another stranger", "203.0.113.2", "", 11},
			{"IPv6", "2001:db8:1:2::1", "", 11},
			{"another host of that /64", "2001:db8:1:2:ffff::2", "", 0},
			{"the next /64", "2001:db8:1:3::1", "", 11},
			{"IPv4 as IPv6 is the same client", "::ffff:203.0.113.1", "", 0},
			{"gateway by its range", "198.51.100.20", "", 40},
			{"gateway by its IPv6 range", "2001:db8:9:1::5", "", 40},
			{"gateway by its bearer", "203.0.113.3", byBearer, 40},
			{"gateway by its bearer, where a stranger floods", "203.0.113.1", byBearer, 40},
			{"a range's token elsewhere", "203.0.113.4", byAddress, 11},
			{"a bad bearer", "203.0.113.5", "rk_bad", 11},
			{"a signer's token", "203.0.113.6", signer, 11},
			{"an admin's token", "203.0.113.7", b.admin, 11},
		} {
			ok, limited := flood(c.from, c.token)
			if ok != c.ok || ok+limited != 40 {
				t.Errorf("%s: %d of 40 let through, want %d", c.name, ok, c.ok)
			}
		}
		// The other documents share the client's allowance.
		for _, p := range []string{"/.well-known/jwks.json", "/keysets/payments/.well-known/openid-configuration", "/keysets/absent/jwks.json"} {
			if a := b.get(t, "", "203.0.113.1", p); a.status != http.StatusTooManyRequests {
				t.Errorf("%s: %d", p, a.status)
			}
		}
		// Five a second come back; a token that was revoked exempts no more.
		b.clock.Advance(time.Second)
		if ok, _ := flood("203.0.113.1", ""); ok != 5 {
			t.Errorf("%d a second later, want 5", ok)
		}
		for _, value := range []string{byAddress, byBearer} {
			if _, err := b.Tokens.Revoke(t.Context(), idOf(value), "test"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.GatewayPass(t.Context(), b.clock.Now()); err != nil {
			t.Fatal(err)
		}
		if ok, _ := flood("198.51.100.20", ""); ok != 11 {
			t.Errorf("after its revocation the gateway's range has %d, want 11", ok)
		}
		if ok, _ := flood("203.0.113.3", byBearer); ok >= 40 {
			t.Errorf("after its revocation the bearer still exempts")
		}
		// A bad token at a public document is an attempt like any other.
		if err := b.Denials.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for from, reason := range map[string]string{"203.0.113.4": "address", "203.0.113.5": "malformed", "203.0.113.3": "revoked"} {
			list := b.events(t, audit.Query{Outcome: audit.Denied, Address: from})
			if len(list) == 0 || list[0].Action != "authenticate" || list[0].Reason != reason {
				t.Errorf("the trail has %+v from %s, want reason %s", list, from, reason)
			}
		}
	})
}

func TestLimiterWhenClientsAreMany(t *testing.T) {
	l := newLimiter(1, 3)
	at := func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 16), byte(i >> 8), byte(i >> 4), byte(i)})
	}
	now := epoch
	early := at(0)
	for range 3 {
		if !l.allow(early, now) {
			t.Fatal("the burst is not there")
		}
	}
	for i := range 4 * maxClients {
		l.allow(at(i), now)
	}
	total := 0
	for i := range l.part {
		n := len(l.part[i].clients)
		if n > maxClients/shards {
			t.Errorf("part %d holds %d clients", i, n)
		}
		total += n
	}
	if total == 0 || total > maxClients {
		t.Errorf("%d clients are kept", total)
	}
	if l.allow(early, now) {
		t.Error("a flood of addresses made the limiter forget a client")
	}
	// Who finds no place is not shut out by those who have one.
	unseen := netip.MustParseAddr("192.0.2.100")
	for range 100 {
		if !l.allow(unseen, now) {
			t.Fatal("a flood of addresses shut out a client that asks for the first time")
		}
	}
	// Who has been quiet makes room.
	now = now.Add(time.Minute)
	late := netip.MustParseAddr("192.0.2.200")
	for range 3 {
		if !l.allow(late, now) {
			t.Fatal("no place for a new client")
		}
	}
	if l.allow(late, now) {
		t.Error("the new client has no limit")
	}
	// A clock that is set back takes nothing away and gives nothing.
	if l.allow(late, now.Add(-time.Hour)) {
		t.Error("a clock that went back gave a token")
	}
}

// Promise: X-Forwarded-For is believed as far as trusted proxies wrote it, so
// nobody chooses his own address.
func TestClientWhenForwarded(t *testing.T) {
	s := &Server{Config: Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}}
	long := strings.Repeat("10.0.0.1, ", 31)
	for _, c := range []struct {
		name, remote string
		forwarded    []string
		want         string
	}{
		{"no proxy", "203.0.113.1:5", nil, "203.0.113.1"},
		{"a stranger's header", "203.0.113.1:5", []string{"198.51.100.1"}, "203.0.113.1"},
		{"one proxy", "10.0.0.1:5", []string{"203.0.113.1"}, "203.0.113.1"},
		{"two proxies", "10.0.0.1:5", []string{"203.0.113.1, 10.0.0.2"}, "203.0.113.1"},
		{"spoofed before the proxy's word", "10.0.0.1:5", []string{"198.51.100.1, 203.0.113.1"}, "203.0.113.1"},
		{"spoofed trusted addresses", "10.0.0.1:5", []string{"198.51.100.1, 10.9.9.9, 203.0.113.1, 10.0.0.2"}, "203.0.113.1"},
		{"in a line of its own", "10.0.0.1:5", []string{"198.51.100.1", "203.0.113.1"}, "203.0.113.1"},
		{"only proxies", "10.0.0.1:5", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"no header", "10.0.0.1:5", nil, "10.0.0.1"},
		{"nonsense", "10.0.0.1:5", []string{"unknown"}, "10.0.0.1"},
		{"nonsense before the proxy's word", "10.0.0.1:5", []string{"<script>, 203.0.113.1"}, "203.0.113.1"},
		{"nonsense after a spoofed one", "10.0.0.1:5", []string{"198.51.100.1, nonsense"}, "10.0.0.1"},
		{"IPv6", "[fd00::1]:5", []string{"2001:db8::1"}, "2001:db8::1"},
		{"IPv6 with a zone", "[fd00::1%eth0]:5", []string{"2001:db8::1%x"}, "2001:db8::1"},
		{"IPv4 in IPv6", "[::ffff:10.0.0.1]:5", []string{"::ffff:203.0.113.1"}, "203.0.113.1"},
		{"more hops than anyone has", "10.0.0.1:5", []string{"203.0.113.1, " + long + "10.0.0.1"}, "10.0.0.1"},
		{"no address at all", "@", []string{"203.0.113.1"}, "0.0.0.0"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = c.remote
		r.Header["X-Forwarded-For"] = c.forwarded
		if got := s.client(r).String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func FuzzForwardedFor(f *testing.F) {
	for _, s := range []string{"203.0.113.1", "1.1.1.1, 10.0.0.2", "::1", "fe80::1%eth0", ",,", "10.0.0.1:80", strings.Repeat("10.0.0.1,", 40), "\x00"} {
		f.Add("10.0.0.1:5", s)
		f.Add("203.0.113.1:5", s)
	}
	s := &Server{Config: Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	f.Fuzz(func(t *testing.T, remote, header string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = remote
		r.Header["X-Forwarded-For"] = []string{header}
		got := s.client(r)
		if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("%q, %q: %v", remote, header, got)
		}
		peer, err := netip.ParseAddrPort(remote)
		if err != nil || !within(s.TrustedProxies, peer.Addr().Unmap()) {
			// Nobody but a trusted proxy says anything that counts.
			r.Header.Del("X-Forwarded-For")
			if plain := s.client(r); plain != got {
				t.Fatalf("%q made %v of %v", header, got, plain)
			}
			return
		}
		// What a client puts before the last proxy's word changes nothing.
		r.Header["X-Forwarded-For"] = []string{header + ", 203.0.113.77"}
		if got := s.client(r); got != netip.MustParseAddr("203.0.113.77") {
			t.Fatalf("%q before it made %v of the proxy's word", header, got)
		}
	})
}

// The limiter of failures is for those who fail: a caller at the same address
// whose token this process knows is never refused for them, and any other with a
// good token gets on as soon as the flood is over.
func TestFailuresWhenAddressIsShared(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	flood := func() {
		t.Helper()
		for i := range 60 {
			b.post(t, fmt.Sprintf("rk_bad%d", i), "203.0.113.9", v1connect.TokenServiceWhoAmIProcedure, "{}")
		}
		if a := b.post(t, "rk_bad", "203.0.113.9", v1connect.TokenServiceWhoAmIProcedure, "{}"); a.status != http.StatusTooManyRequests {
			t.Fatalf("a flood of bad tokens: %d", a.status)
		}
	}
	flood()
	if a := b.post(t, b.admin, "203.0.113.9", v1connect.TokenServiceWhoAmIProcedure, "{}"); a.status != http.StatusTooManyRequests {
		t.Errorf("a token that nobody has seen yet, during the flood: %d", a.status)
	}
	known := b.token(t, apikeys.Create{Role: apikeys.Operator})
	if a := b.post(t, known, "203.0.113.8", v1connect.TokenServiceWhoAmIProcedure, "{}"); a.status != http.StatusOK {
		t.Fatalf("elsewhere: %d %s", a.status, a.body)
	}
	for range 20 {
		if a := b.post(t, known, "203.0.113.9", v1connect.TokenServiceWhoAmIProcedure, "{}"); a.status != http.StatusOK {
			t.Fatalf("a known token during the flood: %d %s", a.status, a.body)
		}
	}
	if _, err := b.Tokens.Revoke(t.Context(), idOf(known), "test"); err != nil {
		t.Fatal(err)
	}
	if a := b.post(t, known, "203.0.113.9", v1connect.TokenServiceWhoAmIProcedure, "{}"); a.status != http.StatusTooManyRequests {
		t.Errorf("the same token, revoked: %d", a.status)
	}
	b.clock.Advance(100 * time.Millisecond)
	for range 20 {
		if a := b.post(t, b.admin, "203.0.113.9", v1connect.TokenServiceWhoAmIProcedure, "{}"); a.status != http.StatusOK {
			t.Errorf("a tenth of a second later: %d", a.status)
		}
	}
}

// Promise: whoever sends no token at all takes nothing from his neighbours.
func TestFailuresWhenRequestsAreAnonymous(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	for _, path := range []string{"/", "/metrics"} {
		for range 60 {
			if a := b.get(t, "", "203.0.113.9", path); a.status != http.StatusUnauthorized {
				t.Fatalf("%s: %d", path, a.status)
			}
		}
	}
	if a := b.post(t, b.admin, "203.0.113.9", v1connect.TokenServiceWhoAmIProcedure, "{}"); a.status != http.StatusOK {
		t.Errorf("a good token beside a flood of requests without one: %d %s", a.status, a.body)
	}
}

package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/jwks"
)

// interesting are the headers that a document is judged by.
func interesting(h http.Header) map[string]string {
	out := map[string]string{}
	for k, v := range h {
		if k != "Date" {
			out[k] = strings.Join(v, " | ")
		}
	}
	return out
}

func TestDocumentWhenFetched(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.keyset(t, "payments")
		const path = "/keysets/payments/jwks.json"
		doc := b.Keysets.Document("payments")

		a := b.get(t, "", home, path)
		want := map[string]string{
			"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "ETag", "Cache-Control": "public, max-age=60, must-revalidate",
			"Content-Length": strconv.Itoa(len(doc.Body)), "Content-Type": "application/jwk-set+json", "Cross-Origin-Resource-Policy": "cross-origin",
			"Etag": doc.ETag, "X-Content-Type-Options": "nosniff",
		}
		if d := cmp.Diff(want, interesting(a.header)); a.status != http.StatusOK || d != "" {
			t.Errorf("GET: %d, headers (-want +got):\n%s", a.status, d)
		}
		if a.body != string(doc.Body) {
			t.Errorf("body %s", a.body)
		}
		var keys jose.JSONWebKeySet
		if err := json.Unmarshal([]byte(a.body), &keys); err != nil || len(keys.Keys) != 2 {
			t.Fatalf("%d keys, %v", len(keys.Keys), err)
		}
		for _, k := range keys.Keys {
			if !k.IsPublic() || !k.Valid() || k.Algorithm != "ES256" || k.Use != "sig" || k.KeyID == "" {
				t.Errorf("published %+v", k)
			}
		}
		if len(set.Keys) != 2 || keys.Keys[0].KeyID != set.Keys[0].Kid {
			t.Errorf("published %s first", keys.Keys[0].KeyID)
		}

		h := b.send(t, "", home, http.MethodHead, path)
		if d := cmp.Diff(want, interesting(h.header)); h.status != http.StatusOK || h.body != "" || d != "" {
			t.Errorf("HEAD: %d %q, headers (-want +got):\n%s", h.status, h.body, d)
		}

		etag := doc.ETag
		for header, fresh := range map[string]bool{
			etag: true, `W/` + etag: true, `*`: true, `"other", ` + etag: true, `"other",W/` + etag + `,"x"`: true, ` ` + etag + ` `: true,
			`"other"`: false, ``: false, `W/"other"`: false, strings.Trim(etag, `"`): false, `w/` + etag: false, etag[:len(etag)-2]: false, `"` + etag + `"`: false, `**`: false,
		} {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				a := b.send(t, "", home, method, path, "If-None-Match", header)
				if fresh != (a.status == http.StatusNotModified) || !fresh && a.status != http.StatusOK {
					t.Errorf("%s with If-None-Match %s: %d", method, header, a.status)
				}
				if fresh && (a.body != "" || a.header.Get("Etag") != etag || a.header.Get("Cache-Control") != want["Cache-Control"] || a.header.Get("Access-Control-Allow-Origin") != "*" || a.header.Get("Content-Type") != "") {
					t.Errorf("304: %q %v", a.body, a.header)
				}
			}
		}
		if a := b.get(t, "", home, path, "If-None-Match", `"a"`, "If-None-Match", etag); a.status != http.StatusNotModified {
			t.Errorf("the etag in a second header line: %d", a.status)
		}

		// A new version has a new tag, and the old one is stale at once.
		b.rotate(t, "payments")
		if a := b.get(t, "", home, path, "If-None-Match", etag); a.status != http.StatusOK || a.header.Get("Etag") == etag {
			t.Errorf("after a rotation: %d %s", a.status, a.header.Get("Etag"))
		}
	})
}

// Promise: max-age never reaches beyond the next planned removal of a key, but
// for its last second.
func TestMaxAgeWhenRemovalComesNear(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.keyset(t, "payments")
		age := func() string {
			return b.get(t, "", home, "/keysets/payments/jwks.json").header.Get("Cache-Control")
		}
		want := func(seconds int) {
			t.Helper()
			if got := age(); got != fmt.Sprintf("public, max-age=%d, must-revalidate", seconds) {
				t.Errorf("at %s: %s, want max-age=%d", b.clock.Now().Format(time.TimeOnly), got, seconds)
			}
		}
		want(60)
		if _, err := b.Keysets.Sign(t.Context(), jwks.Sign{Name: "payments"}); err != nil { // for the whole token_ttl
			t.Fatal(err)
		}
		b.clock.Advance(quickLead)
		b.rotate(t, "payments")
		removal := b.clock.Now().Add(quickRetire)
		if s, err := b.Keysets.Get(t.Context(), "payments"); err != nil || len(s.Keys) < 2 {
			t.Fatalf("%v %v", s, err)
		}
		for _, c := range []struct {
			before time.Duration
			want   int
		}{{10 * time.Minute, 60}, {time.Minute, 60}, {59 * time.Second, 59}, {1500 * time.Millisecond, 1}, {999 * time.Millisecond, 1}, {0, 1}, {-time.Hour, 1}} {
			b.clock.Set(removal.Add(-c.before))
			want(c.want)
			want(c.want) // from the kept headers
		}
		b.clock.Set(removal)
		if _, err := b.Keysets.Pass(t.Context(), removal); err != nil {
			t.Fatal(err)
		}
		want(60)
	})
}

func TestPublicWhenNothingIsThere(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		for _, path := range []string{
			"/keysets/absent/jwks.json", "/keysets/absent/.well-known/openid-configuration", "/keysets/absent/.well-known/oauth-authorization-server",
			"/.well-known/oauth-authorization-server/keysets/absent", "/.well-known/openid-configuration/keysets/absent",
			"/.well-known/jwks.json", "/.well-known/openid-configuration", "/.well-known/oauth-authorization-server",
			"/keysets/" + strings.Repeat("x", 5000) + "/jwks.json", "/keysets/%00/jwks.json", "/keysets/..%2fa/jwks.json",
		} {
			a := b.get(t, "", home, path)
			if a.status != http.StatusNotFound || a.header.Get("Cache-Control") != "no-store" || a.header.Get("Etag") != "" {
				t.Errorf("%.60s: %d %v", path, a.status, a.header)
			}
			if strings.Contains(a.body, "absent") {
				t.Errorf("the answer repeats the path: %s", a.body)
			}
		}
		for _, name := range []string{"payments", "default"} {
			b.keyset(t, name)
		}
		// What was missing a moment ago is there.
		for path, name := range map[string]string{"/keysets/payments/jwks.json": "payments", "/.well-known/jwks.json": "default", "/keysets/default/jwks.json": "default"} {
			if a := b.get(t, "", home, path); a.status != http.StatusOK || a.body != string(b.Keysets.Document(name).Body) {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		// Ways to spell a path that are not its spelling.
		for path, want := range map[string]int{
			"/Keysets/payments/jwks.json": http.StatusUnauthorized, "/keysets/PAYMENTS/jwks.json": http.StatusNotFound, "/keysets/payments/JWKS.json": http.StatusNotFound,
			"/keysets//payments/jwks.json": http.StatusTemporaryRedirect, "//keysets/payments/jwks.json": http.StatusTemporaryRedirect, "/keysets/./payments/jwks.json": http.StatusTemporaryRedirect,
			"/keysets/x/../payments/jwks.json": http.StatusTemporaryRedirect, "/keysets/payments%2Fjwks.json": http.StatusNotFound, "/keysets/%2e%2e/jwks.json": http.StatusNotFound,
			"/keysets/payments/jwks.json/": http.StatusNotFound, "/keysets/payments/": http.StatusNotFound, "/keysets/": http.StatusNotFound, "/.well-known/": http.StatusNotFound, "/.well-known/security.txt": http.StatusNotFound,
			"/keysets/payments/jwks.json%00": http.StatusNotFound, "/keysets/payment%73/jwks.json": http.StatusOK, "/keysets/payments/jwks.json?x=1": http.StatusOK,
		} {
			a := b.get(t, "", home, path)
			if a.status/100 == 3 {
				a.status = http.StatusTemporaryRedirect // which of them is net/http's choice
				if l := a.header.Get("Location"); !strings.HasPrefix(l, "/") || strings.HasPrefix(l, "//") {
					t.Errorf("%s leads to %s", path, l)
				}
			}
			if a.status != want {
				t.Errorf("%s: %d, want %d", path, a.status, want)
			}
		}
		for _, path := range []string{"/keysets/payments/jwks.json", "/.well-known/jwks.json", "/keysets/payments/.well-known/openid-configuration", "/.well-known/oauth-authorization-server/keysets/payments"} {
			for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "TRACE"} {
				a := b.send(t, "", home, method, path)
				if a.status != http.StatusMethodNotAllowed || a.header.Get("Allow") != "GET, HEAD, OPTIONS" {
					t.Errorf("%s %s: %d, Allow %q", method, path, a.status, a.header.Get("Allow"))
				}
			}
			a := b.send(t, "", home, http.MethodOptions, path, "Origin", "https://app.example", "Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "if-none-match")
			want := map[string]string{"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "GET, HEAD", "Access-Control-Allow-Headers": "If-None-Match, Authorization", "Access-Control-Max-Age": "86400"}
			if d := cmp.Diff(want, interesting(a.header)); a.status != http.StatusNoContent || d != "" {
				t.Errorf("OPTIONS %s: %d, headers (-want +got):\n%s", path, a.status, d)
			}
		}
		// None of this was an attempt to get in; only the path in capitals was none of ours.
		if err := b.Denials.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if list := b.events(t, audit.Query{Outcome: audit.Denied}); len(list) != 1 || list[0].Resource != "other" {
			t.Errorf("denied attempts in the trail: %+v", list)
		}
	})
}

func TestDocumentWhenNotLoaded(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBedWith(t, db, func(c *Config) { c.Keysets = jwks.New(jwks.Config{DB: db, Local: &jwks.Local{}}) })
	for _, path := range []string{"/keysets/payments/jwks.json", "/keysets/payments/.well-known/openid-configuration", "/.well-known/jwks.json"} {
		a := b.get(t, "", home, path)
		if a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") != "1" || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s before the first load: %d %v", path, a.status, a.header)
		}
	}
	if a := b.get(t, "", home, "/readyz"); a.status != http.StatusServiceUnavailable {
		t.Errorf("readyz before the first load: %d", a.status)
	}
	if a := b.get(t, "", home, "/healthz"); a.status != http.StatusOK || a.body != "ok\n" {
		t.Errorf("healthz before the first load: %d", a.status)
	}
}

// The rules that coreos/go-oidc (oidc.NewProvider) and RFC 8414 clients hold a
// discovery document to.
func TestDiscoveryWhenFetched(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.keyset(t, "payments")
	_, err := b.Keysets.Create(t.Context(), jwks.Create{Name: "default", Issuer: "https://keys.example.com", Algorithm: "Ed25519", Policy: quick()})
	if err != nil {
		t.Fatal(err)
	}
	for path, c := range map[string]struct{ name, issuer, alg string }{
		"/keysets/payments/.well-known/openid-configuration":       {"payments", "https://auth.example.com/payments", "ES256"},
		"/keysets/payments/.well-known/oauth-authorization-server": {"payments", "https://auth.example.com/payments", "ES256"},
		"/.well-known/oauth-authorization-server/keysets/payments": {"payments", "https://auth.example.com/payments", "ES256"},
		"/.well-known/openid-configuration":                        {"default", "https://keys.example.com", "EdDSA"},
		"/.well-known/oauth-authorization-server":                  {"default", "https://keys.example.com", "EdDSA"},
	} {
		a := b.get(t, "", home, path)
		if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/json" || a.header.Get("Access-Control-Allow-Origin") != "*" || a.header.Get("Content-Length") != strconv.Itoa(len(a.body)) || a.header.Get("Cache-Control") != "public, max-age=300, must-revalidate" {
			t.Errorf("%s: %d %v", path, a.status, a.header)
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(a.body), &got); err != nil {
			t.Fatal(err)
		}
		want := map[string]any{
			"issuer": c.issuer, "jwks_uri": "https://keys.example.com/keysets/" + c.name + "/jwks.json",
			"response_types_supported": []any{"id_token"}, "subject_types_supported": []any{"public"}, "id_token_signing_alg_values_supported": []any{c.alg},
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", path, d)
		}
		if h := b.send(t, "", home, http.MethodHead, path); h.status != http.StatusOK || h.body != "" || h.header.Get("Content-Length") != a.header.Get("Content-Length") {
			t.Errorf("HEAD %s: %d %v", path, h.status, h.header)
		}
	}
}

func FuzzIfNoneMatch(f *testing.F) {
	const etag = `"AbCdEf012345678_-xyz"`
	for _, s := range []string{etag, "W/" + etag, "*", `"a", ` + etag, `,,,`, `"`, `W/`, "\x00", `"a,*,b"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		got := matches([]string{header}, etag)
		// A match needs the tag itself, or a star.
		if got && !strings.Contains(header, etag) && !strings.Contains(header, "*") {
			t.Errorf("%q matches", header)
		}
		if !matches([]string{header, etag}, etag) || !matches([]string{header + "," + etag}, etag) {
			t.Errorf("%q hides the tag behind it", header)
		}
	})
}

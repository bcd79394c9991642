package consumers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestConsumerWhenTokenIsGoodOrBad: every verifier accepts what the issuer
// signed and refuses everything else, and goes on working after it refused.
func TestConsumerWhenTokenIsGoodOrBad(t *testing.T) {
	ca := newAuthority(t)
	good := newKey(t, "k1", "ES256")
	other := newKey(t, "k2", "RS256")
	thief := newKey(t, "k1", "ES256") // another key under a published kid
	stranger := newKey(t, "k9", "ES256")

	changed := strings.Split(good.token(t, goodClaims()), ".")
	changed[1] = part(t, goodClaims().with("sub", "order-8"))
	hmac := strings.Split(good.token(t, goodClaims()), ".")
	hmac[0] = part(t, map[string]string{"alg": "HS256", "kid": "k1", "typ": "JWT"})

	bad := []struct{ name, token string }{
		{"wrong signature", thief.token(t, goodClaims())},
		{"changed claims", strings.Join(changed, ".")},
		{"expired", good.token(t, goodClaims().with("exp", time.Now().Add(-2*time.Minute).Unix()))},
		{"wrong issuer", good.token(t, goodClaims().with("iss", "https://other.example"))},
		{"wrong audience", good.token(t, goodClaims().with("aud", "billing"))},
		{"algorithm none", part(t, map[string]string{"alg": "none", "kid": "k1"}) + "." + part(t, goodClaims()) + "."},
		{"algorithm changed", strings.Join(hmac, ".")},
		{"not a token", "nonsense"},
		{"unknown kid", stranger.token(t, goodClaims())},
	}

	for _, s := range Starters() {
		t.Run(s.Name, func(t *testing.T) {
			issuer := newStaticIssuer(t, ca, good, other)
			c := newConsumer(t, s, ca, issuer.url)
			for _, k := range []*key{good, other} {
				if ok, why := verify(t, c, k.token(t, goodClaims())); !ok {
					t.Errorf("refused a good %s token: %s", k.alg, why)
				}
			}
			var reasons strings.Builder
			for _, b := range bad {
				ok, why := verify(t, c, b.token)
				if ok {
					t.Errorf("%s: accepted", b.name)
				}
				fmt.Fprintf(&reasons, "%s: %s\n", b.name, why)
			}
			if t.Failed() {
				t.Logf("it said\n%s", &reasons)
			}
			if ok, why := verify(t, c, good.token(t, goodClaims())); !ok {
				t.Errorf("refused a good token after the bad ones: %s", why)
			}
		})
	}
}

// TestConsumerWhenKidIsUnknown: which verifiers ask again at once when they
// meet a kid that they don't know, and which do so for every such token. The
// profiles rest on it: a verifier that doesn't ask must have fetched a key
// before it signs.
func TestConsumerWhenKidIsUnknown(t *testing.T) {
	const (
		never = iota
		once  // and then no more for a while
		first // at least once; further ones depend on the version installed
		each
	)
	fetches := map[string]int{
		"go-oidc": each, "jwks-rsa": each,
		"PyJWT": first, "mod_auth_openidc": first,
		"keyfunc": once,
		"jwx":     never, // by time alone
		"jose":    never, // not within 30 s of a fetch
	}
	ca := newAuthority(t)
	known := newKey(t, "k1", "ES256")
	unknown := []*key{newKey(t, "k7", "ES256"), newKey(t, "k8", "ES256"), newKey(t, "k9", "ES256")}
	for _, s := range Starters() {
		t.Run(s.Name, func(t *testing.T) {
			issuer := newStaticIssuer(t, ca, known)
			c := newConsumer(t, s, ca, issuer.url)
			for range 2 {
				if ok, why := verify(t, c, known.token(t, goodClaims())); !ok {
					t.Fatalf("refused a good token: %s", why)
				}
				if n := issuer.fetches.Load(); n != 1 {
					t.Fatalf("%d fetches for good tokens of one key, want 1", n)
				}
			}
			for i, k := range unknown {
				class := fetches[s.Name]
				must := class == each || i == 0 && class != never
				// Asked again until it fetches: go-oidc shares the result of a
				// fetch that has ended a moment before.
				wait(t, "a fetch for an unknown kid", 10*time.Second, func() (bool, error) {
					// keyfunc gives up at once when its throttle outlasts the caller's patience.
					ctx, cancel := context.WithTimeout(t.Context(), keyfuncThrottle/2)
					defer cancel()
					ok, why, err := c.Verify(ctx, k.token(t, goodClaims()))
					if err != nil {
						t.Fatal(err)
					}
					if ok {
						t.Fatal("accepted an unknown kid")
					}
					n := issuer.fetches.Load() - 1
					return !must || n > int64(i), fmt.Errorf("%d fetches: %s", n, why)
				})
			}
			n := issuer.fetches.Load() - 1
			t.Logf("%d fetches for %d unknown kids", n, len(unknown))
			switch class := fetches[s.Name]; {
			case class == never && n != 0:
				t.Errorf("%d fetches, want none", n)
			case class == once && n != 1:
				t.Errorf("%d fetches, want 1", n)
			}
			if ok, why := verify(t, c, known.token(t, goodClaims())); !ok {
				t.Errorf("refused a good token after the unknown kids: %s", why)
			}
		})
	}
}

// TestConsumerWhenAlgorithmDiffers: which algorithms each verifier accepts, all
// of them published in one set, as a keyset in the middle of a change of
// algorithm would. The table is what the profiles say of each verifier.
func TestConsumerWhenAlgorithmDiffers(t *testing.T) {
	ca := newAuthority(t)
	var keys []*key
	for _, alg := range Algorithms() {
		keys = append(keys, newKey(t, "k-"+alg, alg))
	}
	testAlgorithms(t, ca, keys, map[string][]string{
		"go-oidc":          Algorithms(),
		"keyfunc":          Algorithms(),
		"jwx":              Algorithms(),
		"jose":             Algorithms(),
		"jwks-rsa":         without("EdDSA"),
		"PyJWT":            Algorithms(),
		"mod_auth_openidc": without("EdDSA"),
	})
}

// TestConsumerWhenEd25519IsNamed: what becomes of each verifier when Ed25519
// goes by its new name (RFC 9864): in the published key alone (the column
// EdDSA/Ed25519), or in the token too. No set breaks, for ES256 is accepted
// beside it; but a key published as "Ed25519" is of no use to most, so Ed25519
// keysets publish "EdDSA".
func TestConsumerWhenEd25519IsNamed(t *testing.T) {
	ca := newAuthority(t)
	published := newKey(t, "k-old-name", "EdDSA")
	published.jwkAlg = "Ed25519"
	keys := []*key{newKey(t, "k-es", "ES256"), published, newKey(t, "k-new-name", "Ed25519")}
	testAlgorithms(t, ca, keys, map[string][]string{
		"go-oidc":          {"ES256"},
		"keyfunc":          {"ES256"},
		"jwx":              {"ES256", "EdDSA/Ed25519", "Ed25519"},
		"jose":             {"ES256", "Ed25519"},
		"jwks-rsa":         {"ES256"},
		"PyJWT":            {"ES256"},
		"mod_auth_openidc": {"ES256"},
	})
}

// testAlgorithms asks each verifier for a token of each key and compares what
// it accepts with want; it prints the table.
func testAlgorithms(t *testing.T, ca *authority, keys []*key, want map[string][]string) {
	t.Helper()
	var table strings.Builder
	fmt.Fprintf(&table, "%-18s", "")
	for _, k := range keys {
		fmt.Fprintf(&table, "%-14s", column(k))
	}
	for _, s := range Starters() {
		issuer := newStaticIssuer(t, ca, keys...)
		c, err := s.Start(t.Context(), Config{JWKSURL: issuer.url, Issuer: testIssuer, Audience: testAudience, CAFile: ca.caFile})
		if err != nil {
			t.Errorf("%s: does not start with this set: %v", s.Name, err)
			continue
		}
		t.Cleanup(c.Close)
		fmt.Fprintf(&table, "\n%-18s", s.Name)
		var accepted []string
		for _, k := range keys {
			mark := "refused"
			ok, why := verify(t, c, k.token(t, goodClaims()))
			if ok {
				mark = "ok"
				accepted = append(accepted, column(k))
			} else {
				t.Logf("%s refuses %s: %s", s.Name, column(k), why)
			}
			fmt.Fprintf(&table, "%-14s", mark)
		}
		if w := want[s.Name]; !slices.Equal(accepted, w) {
			t.Errorf("%s accepts %v, want %v", s.Name, accepted, w)
		}
	}
	t.Logf("algorithms accepted\n%s", &table)
}

func column(k *key) string {
	if k.alg == k.jwkAlg {
		return k.alg
	}
	return k.alg + "/" + k.jwkAlg
}

func without(alg string) []string {
	return slices.DeleteFunc(Algorithms(), func(a string) bool { return a == alg })
}

// TestConsumerWhenCertificateIsUntrusted: no verifier takes keys from a server
// that its CA file does not vouch for.
func TestConsumerWhenCertificateIsUntrusted(t *testing.T) {
	serving, trusted := newAuthority(t), newAuthority(t)
	k := newKey(t, "k1", "ES256")
	for _, s := range Starters() {
		t.Run(s.Name, func(t *testing.T) {
			issuer := newStaticIssuer(t, serving, k)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			c, err := s.Start(ctx, Config{JWKSURL: issuer.url, Issuer: testIssuer, Audience: testAudience, CAFile: trusted.caFile})
			if err != nil {
				return // jwx won't start without a first set
			}
			defer c.Close()
			if ok, _ := verify(t, c, k.token(t, goodClaims())); ok {
				t.Error("accepted a token under keys from an untrusted server")
			}
			if n := issuer.fetches.Load(); n != 0 {
				t.Errorf("the set was fetched %d times", n)
			}
		})
	}
}

func TestStarterWhenConfigIsUnsafe(t *testing.T) {
	ca := newAuthority(t)
	good := Config{JWKSURL: "https://127.0.0.1:1/jwks.json", Issuer: testIssuer, Audience: testAudience, CAFile: ca.caFile}
	for name, change := range map[string]func(*Config){
		"plain http":              func(c *Config) { c.JWKSURL = "http://127.0.0.1:1/jwks.json" },
		"no host":                 func(c *Config) { c.JWKSURL = "https:///jwks.json" },
		"no issuer":               func(c *Config) { c.Issuer = "" },
		"a directive in audience": func(c *Config) { c.Audience = "x\nRequire all granted" },
		"a quote in the CA file":  func(c *Config) { c.CAFile = `a"b` },
	} {
		for _, s := range Starters() {
			cfg := good
			change(&cfg)
			if c, err := s.Start(t.Context(), cfg); err == nil {
				c.Close()
				t.Errorf("%s: %s started", name, s.Name)
			}
		}
	}
}

func TestStarterWhenPackagesAreMissing(t *testing.T) {
	ca := newAuthority(t)
	cfg := Config{JWKSURL: "https://127.0.0.1:1/jwks.json", Issuer: testIssuer, Audience: testAudience, CAFile: ca.caFile, Dir: t.TempDir()}
	for _, s := range Starters() {
		if s.Name != "jose" && s.Name != "jwks-rsa" {
			continue
		}
		_, err := s.Start(t.Context(), cfg)
		if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "make setup") {
			t.Errorf("got %v, want an error that says `make setup`", err)
		}
	}
}

// TestConsumerWhenItsProcessEnds: a verifier that is gone is an error, not a
// refusal, or a dead child would pass every test of refusals.
func TestConsumerWhenItsProcessEnds(t *testing.T) {
	ca := newAuthority(t)
	k := newKey(t, "k1", "ES256")
	issuer := newStaticIssuer(t, ca, k)
	for _, s := range Starters() {
		c := newConsumer(t, s, ca, issuer.url)
		switch c := c.(consumer).verifier.(type) {
		case *child:
			c.cmd.Process.Kill()
			<-c.done
		case *apache:
			c.Close()
			if left, err := filepath.Glob(filepath.Join(c.dir, "*")); err != nil || len(left) != 0 {
				t.Errorf("%s left files: %v %v", s.Name, left, err)
			}
		default:
			continue
		}
		if ok, why, err := c.Verify(t.Context(), k.token(t, goodClaims())); err == nil {
			t.Errorf("%s: Verify = %v, %q and no error after its process ended", s.Name, ok, why)
		}
	}
}

// TestLockFileWhenInstalled: the lock file pins every package by its hash and
// names no download address.
func TestLockFileWhenInstalled(t *testing.T) {
	b, err := os.ReadFile("package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), `"resolved"`) {
		t.Error("package-lock.json records download addresses: install with the .npmrc of this folder")
	}
	if strings.Count(string(b), `"integrity"`) < 3 {
		t.Error("package-lock.json has no hashes")
	}
}

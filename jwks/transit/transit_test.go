package transit_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/jwks"
	"github.com/rotunda-dev/rotunda/jwks/transit"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
)

var epoch = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

const (
	lead   = 100 * time.Second // of the policy below
	retire = 12*time.Minute + 10*time.Second
)

// policy has its new keys in Transit.
func policy() jwks.Policy {
	p := jwks.DefaultPolicy()
	p.Rotate = schedule.Schedule{Every: time.Hour}
	p.TokenTTL, p.FetchFailure, p.MaxAge = 10*time.Minute, 0, time.Minute
	minute := time.Minute
	p.Consumers = []jwks.Consumer{{Name: "envoy", Cache: &minute}}
	p.Home = transit.Name
	return p
}

// bed is a database with a clock that the test moves, a Vault, and its Transit mount.
type bed struct {
	*jwks.Keysets
	vault *bedtest.VaultServer
	mount string
	clock *storetest.Clock
}

func newBed(t testing.TB, db *store.DB, v *bedtest.VaultServer, address string, trim bool) *bed {
	t.Helper()
	b := &bed{vault: v, mount: v.Mount(t, "transit", nil), clock: storetest.NewClock(epoch)}
	db.Now = b.clock.Now
	db.Tick = func() time.Duration { return b.clock.Now().Sub(epoch) }
	b.Keysets = jwks.New(jwks.Config{DB: db, Local: newLocal(t), Homes: map[string]jwks.Home{transit.Name: b.home(t, address, trim)}})
	return b
}

func (b *bed) home(t testing.TB, address string, trim bool) *transit.Home {
	t.Helper()
	given := map[string]string{"address": address, "mount": b.mount}
	may := []string{"keys/*", "sign/*"}
	if trim {
		given["trim"] = "true"
	}
	var hcl strings.Builder
	for _, path := range may {
		hcl.WriteString(`path "` + b.mount + `/` + path + `" { capabilities = ["create", "read", "update"] }` + "\n")
	}
	settings, err := providers.Complete("settings", transit.Settings(), given)
	if err != nil {
		t.Fatal(err)
	}
	h, err := transit.Open(providers.Config{
		Name: "signing keys", Settings: settings, Now: time.Now,
		Login: providers.Fields{}.Set("token", b.vault.NewToken(t, hcl.String(), time.Hour)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func newLocal(t testing.TB) *jwks.Local {
	t.Helper()
	kek, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	return &jwks.Local{Sealer: sealer}
}

func (b *bed) create(t testing.TB, alg jwks.Algorithm, p jwks.Policy) *jwks.Keyset {
	t.Helper()
	s, err := b.Create(t.Context(), jwks.Create{Name: "payments", Issuer: "https://auth.example.com", Algorithm: string(alg), Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (b *bed) get(t testing.TB) *jwks.Keyset {
	t.Helper()
	s, err := b.Get(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// walk moves the clock in steps that are too short for a downtime, with a pass after each.
func (b *bed) walk(t testing.TB, d time.Duration) {
	t.Helper()
	for d > 0 {
		step := min(d, 10*time.Second)
		b.clock.Advance(step)
		if _, err := b.Pass(t.Context(), b.clock.Now()); err != nil {
			t.Fatalf("pass: %v", err)
		}
		d -= step
	}
}

func (b *bed) sign(t testing.TB) jwks.Signed {
	t.Helper()
	s, err := b.Sign(t.Context(), jwks.Sign{Name: "payments", Claims: []byte(`{"sub":"order-7"}`)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// verify is what a gateway does with the published document.
func (b *bed) verify(t testing.TB, token string) error {
	t.Helper()
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(b.Document("payments").Body, &set); err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.ES512, jose.EdDSA, jose.RS256, jose.PS256})
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	if err := parsed.Claims(set, &claims); err != nil {
		return err
	}
	return claims.ValidateWithLeeway(jwt.Expected{Time: b.clock.Now()}, time.Minute)
}

func (b *bed) key(t testing.TB, set *jwks.Keyset) map[string]any {
	t.Helper()
	return b.vault.Read(t, b.mount+"/keys/rotunda-"+set.ID)
}

// mayStillSign asks Vault itself, as root, to sign with a version.
func (b *bed) mayStillSign(t testing.TB, set *jwks.Keyset, version int) bool {
	t.Helper()
	err := b.vault.Ask(http.MethodPut, b.mount+"/sign/rotunda-"+set.ID, map[string]any{"input": "cm90dW5kYQ==", "key_version": version}, nil)
	if err != nil && !strings.Contains(err.Error(), "less than the minimum encryption key version") {
		t.Fatal(err)
	}
	return err == nil
}

func wantKind(t testing.TB, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("%s: %v, want %v", what, err, kind)
	}
}

func TestSignWithEachAlgorithm(t *testing.T) {
	v := bedtest.Vault(t)
	for _, alg := range []jwks.Algorithm{jwks.ES256, jwks.ES384, jwks.ES512, jwks.Ed25519, jwks.RS256, jwks.PS256} {
		t.Run(string(alg), func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				b := newBed(t, db, v, v.Address, false)
				p := policy()
				p.Consumers = nil
				p.PublishAhead, p.RetireAfter = 0, 0
				p.Rotate = schedule.Schedule{Every: 30 * 24 * time.Hour}
				set := b.create(t, alg, p)
				for range 20 { // an ECDSA signature with a short integer comes once in 128
					s := b.sign(t)
					if err := b.verify(t, s.Token); err != nil {
						t.Fatal(err)
					}
				}
				k := b.key(t, set)
				if k["exportable"] != false || k["allow_plaintext_backup"] != false || k["latest_version"] != 2.0 {
					t.Errorf("the Transit key: exportable %v, backup %v, latest version %v; want false, false, 2", k["exportable"], k["allow_plaintext_backup"], k["latest_version"])
				}
				for _, k := range set.Keys {
					if k.Home != transit.Name {
						t.Errorf("key %s is at home %q", k.Kid, k.Home)
					}
				}
			})
		})
	}
}

// Promise: no gap, through rotations and withdrawals, and a withdrawn version signs no
// more for anybody.
func TestRotationWhenKeysAreVersions(t *testing.T) {
	v := bedtest.Vault(t)
	for name, trim := range map[string]bool{"Raise": false, "Trim": true} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				b := newBed(t, db, v, v.Address, trim)
				set := b.create(t, jwks.ES256, policy())
				first := b.sign(t)
				b.walk(t, lead)
				if _, err := b.Rotate(t.Context(), jwks.Rotate{Name: "payments"}); err != nil {
					t.Fatal(err)
				}
				second := b.sign(t)
				if second.Kid == first.Kid || b.verify(t, first.Token) != nil || b.verify(t, second.Token) != nil {
					t.Fatalf("after a rotation: kids %s, %s; %v, %v", first.Kid, second.Kid, b.verify(t, first.Token), b.verify(t, second.Token))
				}
				if !b.mayStillSign(t, set, 1) {
					t.Fatal("version 1 is retiring and may not sign any more: the test would prove nothing")
				}
				b.walk(t, retire)
				if b.mayStillSign(t, set, 1) {
					t.Error("version 1 is retired and still signs")
				}
				if !b.mayStillSign(t, set, 2) || !b.mayStillSign(t, set, 3) {
					t.Error("the active version, or the standby, may not sign")
				}
				if k := b.key(t, set); trim != (k["min_available_version"] == 2.0) {
					t.Errorf("min_available_version is %v", k["min_available_version"])
				}
				if s := b.sign(t); b.verify(t, s.Token) != nil {
					t.Error(b.verify(t, s.Token))
				}
			})
		})
	}
}

func TestRevokeWhenVersionsEndInOrder(t *testing.T) {
	v := bedtest.Vault(t)
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db, v, v.Address, false)
		set := b.create(t, jwks.ES256, policy())
		b.walk(t, lead)
		standby := set.Standby().Kid
		_, _, err := b.Revoke(t.Context(), jwks.Revoke{Name: "payments", Kid: standby, Reason: "key_compromise"})
		wantKind(t, "revoke the standby, which is newer than the active key", err, fault.ErrTransition)
		b.walk(t, lead)
		set = b.get(t)
		if slices.ContainsFunc(set.Keys, func(k jwks.Key) bool { return k.Kid == standby }) {
			t.Fatal("the revoked standby is still published")
		}
		if !b.mayStillSign(t, set, 2) {
			t.Fatal("version 2 ended before version 1, which Transit can't do: the error was wrong")
		}
		_, _, err = b.Revoke(t.Context(), jwks.Revoke{Name: "payments", Kid: set.Active().Kid, Mode: jwks.ModeStandby, Reason: "key_compromise"})
		if err != nil {
			t.Fatal(err)
		}
		if b.mayStillSign(t, set, 1) || b.mayStillSign(t, set, 2) {
			t.Error("a revoked version still signs")
		}
		if s := b.sign(t); b.verify(t, s.Token) != nil {
			t.Error(b.verify(t, s.Token))
		}
	})
}

// Promise: a rotate whose reply was lost is found again, and makes no further version.
func TestCreateWhenReplyWasLost(t *testing.T) {
	v := bedtest.Vault(t)
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		proxy := bedtest.NewLossy(t, v.Address)
		b := newBed(t, db, v, proxy.Address, false)
		set := b.create(t, jwks.ES256, policy())
		b.walk(t, lead)
		proxy.Lose(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/rotate") })
		if _, err := b.Rotate(t.Context(), jwks.Rotate{Name: "payments"}); err != nil {
			t.Fatal(err) // the promotion needs no new key
		}
		if proxy.Lost() != 1 {
			t.Fatalf("%d answers were lost, want 1", proxy.Lost())
		}
		if b.get(t).Standby() != nil {
			t.Fatal("there is a standby although its making went unanswered")
		}
		if _, err := b.PreparePass(t.Context(), b.clock.Now()); err != nil { // sees that Vault is back
			t.Fatal(err)
		}
		b.walk(t, 10*time.Second)
		if b.get(t).Standby() == nil {
			t.Fatal("there is still no standby")
		}
		if k := b.key(t, set); k["latest_version"] != 3.0 {
			t.Errorf("the Transit key has %v versions, want 3", k["latest_version"])
		}
	})
}

func TestSignWhenVaultIsSealed(t *testing.T) {
	v := bedtest.NewVault(t)
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db, v, v.Address, false)
		p := policy()
		p.Fallback = jwks.FallbackStandby
		b.create(t, jwks.ES256, p)
		b.walk(t, lead)
		token := b.sign(t).Token

		v.Seal(t)
		_, err := b.Sign(t.Context(), jwks.Sign{Name: "payments"})
		wantKind(t, "sign while Vault, which has the standby too, is sealed", err, fault.ErrUnavailable)
		if err := b.verify(t, token); err != nil {
			t.Errorf("while Vault is sealed a token is refused: %v", err)
		}
		v.Unseal(t)
		if s := b.sign(t); s.Fallback || b.verify(t, s.Token) != nil {
			t.Errorf("after the seal: fallback %v, %v", s.Fallback, b.verify(t, s.Token))
		}

		// With a standby of another home tokens go on.
		p.Home = jwks.LocalHome
		if _, err := b.UpdatePolicy(t.Context(), jwks.UpdatePolicy{Name: "payments", Policy: p}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Rotate(t.Context(), jwks.Rotate{Name: "payments"}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.PreparePass(t.Context(), b.clock.Now()); err != nil {
			t.Fatal(err)
		}
		b.walk(t, lead)
		set := b.get(t)
		if set.Active().Home != transit.Name || set.Standby() == nil || set.Standby().Home != jwks.LocalHome {
			t.Fatalf("active at %s, standby %+v", set.Active().Home, set.Standby())
		}
		v.Seal(t)
		s := b.sign(t)
		if !s.Fallback || s.Kid != set.Standby().Kid || b.verify(t, s.Token) != nil {
			t.Errorf("while Vault is sealed: fallback %v, kid %s, %v", s.Fallback, s.Kid, b.verify(t, s.Token))
		}
		v.Unseal(t)
		b.walk(t, 2*time.Minute)
		if s := b.sign(t); s.Fallback || s.Kid != set.Active().Kid || b.verify(t, s.Token) != nil {
			t.Errorf("after the seal: fallback %v, kid %s, %v", s.Fallback, s.Kid, b.verify(t, s.Token))
		}
	})
}

func TestOpenWhenVaultHasAnotherKey(t *testing.T) {
	v := bedtest.Vault(t)
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db, v, v.Address, false)
		set := b.create(t, jwks.ES256, policy())
		at := b.mount + "/keys/rotunda-" + set.ID
		v.Write(t, at+"/config", map[string]any{"deletion_allowed": true})
		v.Delete(t, at)
		v.Write(t, at, map[string]any{"type": "ecdsa-p256"})
		if _, err := b.Sign(t.Context(), jwks.Sign{Name: "payments"}); err == nil || !strings.Contains(err.Error(), "another public half") {
			t.Errorf("sign with a key that somebody put in the place of ours: %v", err)
		}
	})
}

func TestKeysetWhenHomeIsUnknown(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db, bedtest.Vault(t), bedtest.Vault(t).Address, false)
		p := policy()
		p.Home = "elsewhere"
		_, err := b.Create(t.Context(), jwks.Create{Name: "payments", Issuer: "https://auth.example.com", Policy: p})
		wantKind(t, "create a keyset at a home that is not configured", err, fault.ErrInvalid)
		_, err = b.Create(t.Context(), jwks.Create{Name: "payments", Issuer: "https://auth.example.com", Policy: p, DryRun: true})
		wantKind(t, "see what it would be to", err, fault.ErrInvalid)
		b.create(t, jwks.ES256, policy())
		_, err = b.UpdatePolicy(t.Context(), jwks.UpdatePolicy{Name: "payments", Policy: p})
		wantKind(t, "move a keyset to a home that is not configured", err, fault.ErrInvalid)
	})
}

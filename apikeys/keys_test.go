package apikeys

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// sameKey compares what can be seen of keys.
var sameKey = cmp.Options{cmpopts.IgnoreUnexported(Key{}), cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}

func TestKeyWhenMade(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{Scopes: []string{"orders:read", "pub"}, PublishableScopes: []string{"pub"}, MaxKeyTTL: 90 * 24 * time.Hour})
		b.partner(t, "free", PartnerSpec{})
		for _, c := range []struct {
			spec KeySpec
			form string
			life time.Duration
		}{
			{KeySpec{Name: "ci server", Scopes: []string{"orders:read"}, CIDRs: []string{"203.0.113.7", "2001:db8::/32", "203.0.113.7/32"}, Rate: RateLimit{100, time.Second, 200},
				Metadata: map[string]string{"team": "blue"}, ExpiresIn: time.Hour}, `^rk_live_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}$`, time.Hour},
			{KeySpec{Name: "x", Class: ClassPublishable, Scopes: []string{"pub"}, Environment: "test2"}, `^rkpub_test2_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}$`, 90 * 24 * time.Hour},
			{KeySpec{Name: strings.Repeat("é", 64), Partner: "free"}, `^rk_live_`, 0},
			{KeySpec{Name: "long", Partner: "free", ExpiresIn: maxLife}, `^rk_live_`, maxLife},
		} {
			k, value := b.key(t, c.spec)
			if !regexp.MustCompile(c.form).MatchString(value) || !strings.Contains(value, "_"+k.ID+"_") {
				t.Errorf("the form of the value is wrong, or its id is not %s", k.ID)
			}
			if !b.peppers.issued(k.ID) {
				t.Errorf("id %s does not count as issued", k.ID)
			}
			got := b.other(t).get(t, k)
			if diff := cmp.Diff(k, got, sameKey); diff != "" {
				t.Errorf("what was made and what is read differ (-made +read):\n%s", diff)
			}
			life := time.Duration(0)
			if !got.ExpiresAt.IsZero() {
				life = got.ExpiresAt.Sub(epoch)
			}
			if life != c.life || got.State(epoch) != Active || got.Lineage != got.ID || got.Version != 1 || !got.CreatedAt.Equal(epoch) || !got.NextAt.IsZero() {
				t.Errorf("%+v", got)
			}
			if !b.accepts(t, k, value) || b.accepts(t, k, value[:len(value)-10]+"0000000000") {
				t.Error("its value is not accepted, or another is")
			}
		}
		k, _ := b.key(t, KeySpec{Name: "cidrs", CIDRs: []string{"203.0.113.7", "203.0.113.7/32"}})
		if got := b.get(t, k).CIDRs; len(got) != 1 {
			t.Errorf("one range given twice became %v", got)
		}
	})
}

func publicPEM(t testing.TB, public any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func TestRequestSecretWhenMade(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		k, value := b.signing(t, KeySpec{Name: "orders-signing", Scopes: []string{"orders:write"}})
		raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(value, "whsec_"))
		if err != nil || len(raw) != 64 || !strings.HasPrefix(value, "whsec_") {
			t.Fatalf("the value is not whsec_ and 64 bytes in base64 (%v)", err)
		}
		got := b.other(t).get(t, k)
		if diff := cmp.Diff(k, got, sameKey); diff != "" {
			t.Errorf("what was made and what is read differ (-made +read):\n%s", diff)
		}
		opened, err := b.sealer.Open(t.Context(), secretPlace(k.ID), got.sealed)
		if err != nil || string(opened.Reveal()) != string(raw) {
			t.Errorf("what is sealed is not what was shown (%v)", err)
		}
		if got.Algorithm != httpsig.HMACSHA256 || got.PepperGen != 0 || got.hash != nil || !b.peppers.issued(got.ID) {
			t.Errorf("%+v", got)
		}
		// The name is taken, in every environment, but for others it is free.
		_, err = b.keys.Create(t.Context(), RequestSecret, KeySpec{Partner: "acme", Name: "orders-signing", Environment: "test"})
		wantFault(t, err, fault.ErrExists, "name_taken")
		b.partner(t, "other", PartnerSpec{})
		b.signing(t, KeySpec{Partner: "other", Name: "orders-signing"})
		b.key(t, KeySpec{Name: "orders-signing"})

		ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ed, _, _ := ed25519.GenerateKey(rand.Reader)
		rs, _ := rsa.GenerateKey(rand.Reader, 2048)
		for alg, public := range map[httpsig.Algorithm]any{httpsig.ECDSAP256: &ec.PublicKey, httpsig.Ed25519: ed, httpsig.RSAPSS512: &rs.PublicKey} {
			text := publicPEM(t, public)
			k, value := b.signing(t, KeySpec{Name: string(alg), PublicKey: "\n" + strings.ReplaceAll(text, "\n", "\r\n") + "\n"})
			if got := b.get(t, k); value != "" || got.Algorithm != alg || got.PublicKey != text || got.sealed != nil {
				t.Errorf("%s: %+v, with a value: %v", alg, got, value != "")
			}
		}
		// Once is answered with the key, which has no value that could be lost.
		spec := KeySpec{Partner: "acme", Name: "once", PublicKey: publicPEM(t, ed), Once: store.Once{Scope: "s", Key: "k", Fingerprint: "f"}}
		first, err := b.keys.Create(t.Context(), RequestSecret, spec)
		if err != nil {
			t.Fatal(err)
		}
		again, err := b.keys.Create(t.Context(), RequestSecret, spec)
		if err != nil || again.Key.ID != first.Key.ID {
			t.Errorf("again: %+v, %v", again.Key, err)
		}
	})
}

func TestKeyWhenRefused(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{Scopes: []string{"a", "b"}, PublishableScopes: []string{"b"}, MaxKeyTTL: time.Hour})
		p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		ed, private, _ := ed25519.GenerateKey(rand.Reader)
		der, _ := x509.MarshalPKCS8PrivateKey(private)
		secretPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
		short, _ := rsa.GenerateKey(rand.Reader, 1024)
		many := func(n int, f string) (out []string) {
			for i := range n {
				out = append(out, fmt.Sprintf(f, i))
			}
			return out
		}
		for what, c := range map[string]struct {
			kind          Kind
			edit          func(*KeySpec)
			of            error
			field, reason string
		}{
			"no partner":              {APIKey, func(s *KeySpec) { s.Partner = "" }, fault.ErrInvalid, "partner", "bad_name"},
			"nobody":                  {APIKey, func(s *KeySpec) { s.Partner = "nobody" }, fault.ErrNotFound, "partner", "partner_not_found"},
			"no name":                 {APIKey, func(s *KeySpec) { s.Name = "" }, fault.ErrInvalid, "name", "bad_name"},
			"spaces around":           {APIKey, func(s *KeySpec) { s.Name = " x" }, fault.ErrInvalid, "name", "bad_name"},
			"a line in it":            {APIKey, func(s *KeySpec) { s.Name = "a\nb" }, fault.ErrInvalid, "name", "bad_name"},
			"no UTF-8":                {APIKey, func(s *KeySpec) { s.Name = "\xff" }, fault.ErrInvalid, "name", "bad_name"},
			"a long name":             {APIKey, func(s *KeySpec) { s.Name = strings.Repeat("x", 129) }, fault.ErrInvalid, "name", "bad_name"},
			"a secret's name":         {RequestSecret, func(s *KeySpec) { s.Name = "Orders" }, fault.ErrInvalid, "name", "bad_name"},
			"a role as environment":   {APIKey, func(s *KeySpec) { s.Environment = "gateway" }, fault.ErrInvalid, "environment", "bad_environment"},
			"a partner's token":       {APIKey, func(s *KeySpec) { s.Environment = "partner" }, fault.ErrInvalid, "environment", "bad_environment"},
			"a capital":               {APIKey, func(s *KeySpec) { s.Environment = "Live" }, fault.ErrInvalid, "environment", "bad_environment"},
			"a long environment":      {APIKey, func(s *KeySpec) { s.Environment = strings.Repeat("x", 17) }, fault.ErrInvalid, "environment", "bad_environment"},
			"an unknown class":        {APIKey, func(s *KeySpec) { s.Class = "public" }, fault.ErrInvalid, "class", "bad_class"},
			"a publishable secret":    {RequestSecret, func(s *KeySpec) { s.Class = ClassPublishable }, fault.ErrInvalid, "class", "bad_class"},
			"a scope of others":       {APIKey, func(s *KeySpec) { s.Scopes = []string{"a", "c"} }, fault.ErrInvalid, "scopes", "scope_not_allowed"},
			"not publishable":         {APIKey, func(s *KeySpec) { s.Scopes, s.Class = []string{"a"}, ClassPublishable }, fault.ErrInvalid, "scopes", "scope_not_allowed"},
			"a scope twice":           {APIKey, func(s *KeySpec) { s.Scopes = []string{"a", "a"} }, fault.ErrInvalid, "scopes", "scope_twice"},
			"65 scopes":               {APIKey, func(s *KeySpec) { s.Scopes = many(65, "s%d") }, fault.ErrInvalid, "scopes", "too_many"},
			"65 ranges":               {APIKey, func(s *KeySpec) { s.CIDRs = many(65, "10.0.%d.0/24") }, fault.ErrInvalid, "cidrs", "too_many"},
			"no range":                {APIKey, func(s *KeySpec) { s.CIDRs = []string{"10.0.0.0/33"} }, fault.ErrInvalid, "cidrs", "bad_cidr"},
			"33 pairs":                {APIKey, func(s *KeySpec) { s.Metadata = pairs(33) }, fault.ErrInvalid, "metadata", "too_many"},
			"a rate of 0":             {APIKey, func(s *KeySpec) { s.Rate = RateLimit{Window: time.Second} }, fault.ErrInvalid, "rate_limit", "bad_rate"},
			"no window":               {APIKey, func(s *KeySpec) { s.Rate = RateLimit{Quota: 1} }, fault.ErrInvalid, "rate_limit", "bad_rate"},
			"a long window":           {APIKey, func(s *KeySpec) { s.Rate = RateLimit{1, 24*time.Hour + time.Microsecond, 0} }, fault.ErrInvalid, "rate_limit", "bad_rate"},
			"a window in nanoseconds": {APIKey, func(s *KeySpec) { s.Rate = RateLimit{1, time.Second + 1, 0} }, fault.ErrInvalid, "rate_limit", "bad_rate"},
			"a huge burst":            {APIKey, func(s *KeySpec) { s.Rate = RateLimit{1, time.Second, 1_000_000_001} }, fault.ErrInvalid, "rate_limit", "bad_rate"},
			"a negative life":         {APIKey, func(s *KeySpec) { s.ExpiresIn = -1 }, fault.ErrInvalid, "expires_in", "duration_range"},
			"no life":                 {APIKey, func(s *KeySpec) { s.ExpiresIn = time.Second - 1 }, fault.ErrInvalid, "expires_in", "duration_range"},
			"a long life":             {APIKey, func(s *KeySpec) { s.ExpiresIn = time.Hour + 1 }, fault.ErrInvalid, "expires_in", "life_too_long"},
			"a public API key":        {APIKey, func(s *KeySpec) { s.PublicKey = publicPEM(t, ed) }, fault.ErrInvalid, "public_key", "public_key_not_for_kind"},
			"P-384":                   {RequestSecret, func(s *KeySpec) { s.PublicKey = publicPEM(t, &p384.PublicKey) }, fault.ErrInvalid, "public_key", "bad_public_key"},
			"RSA of 1024 bits":        {RequestSecret, func(s *KeySpec) { s.PublicKey = publicPEM(t, &short.PublicKey) }, fault.ErrInvalid, "public_key", "bad_public_key"},
			"a private key":           {RequestSecret, func(s *KeySpec) { s.PublicKey = secretPEM }, fault.ErrInvalid, "public_key", "bad_public_key"},
			"two public keys":         {RequestSecret, func(s *KeySpec) { s.PublicKey = publicPEM(t, ed) + publicPEM(t, ed) }, fault.ErrInvalid, "public_key", "bad_public_key"},
			"a secret and a key":      {RequestSecret, func(s *KeySpec) { s.PublicKey = publicPEM(t, ed) + secretPEM }, fault.ErrInvalid, "public_key", "bad_public_key"},
			"no PEM":                  {RequestSecret, func(s *KeySpec) { s.PublicKey = "ssh-ed25519 AAAA" }, fault.ErrInvalid, "public_key", "bad_public_key"},
			"no key":                  {RequestSecret, func(s *KeySpec) { s.PublicKey = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n" }, fault.ErrInvalid, "public_key", "bad_public_key"},
			"a huge key":              {RequestSecret, func(s *KeySpec) { s.PublicKey = strings.Repeat("x", 4097) }, fault.ErrInvalid, "public_key", "bad_public_key"},
		} {
			spec := KeySpec{Partner: "acme", Name: "x"}
			c.edit(&spec)
			made, err := b.keys.Create(t.Context(), c.kind, spec)
			f, ok := errors.AsType[*fault.Error](err)
			if !ok || !errors.Is(err, c.of) || f.Reason != c.reason || f.Field != c.field || len(err.Error()) > 500 || made.Key != nil || !made.Value.IsZero() {
				t.Errorf("%s: got %v", what, err)
			}
			if err != nil && (strings.Contains(err.Error(), "MC4") || strings.Contains(err.Error(), "ssh-ed")) {
				t.Errorf("%s: the error quotes the key: %v", what, err)
			}
		}
		if n := number(t, db, `SELECT COUNT(*) FROM partner_keys`); n != 0 {
			t.Errorf("%d keys were made", n)
		}
		// The most that is allowed fits into the trail.
		scopes := many(256, "%064d")
		b.partner(t, "big", PartnerSpec{Scopes: scopes})
		var ranges []string
		for i := range 64 {
			ranges = append(ranges, fmt.Sprintf("2001:db8:ffff:ffff:ffff:ffff:ffff:ff%02x/128", i))
		}
		b.key(t, KeySpec{Partner: "big", Name: strings.Repeat("x", 128), Scopes: scopes[:64], CIDRs: ranges, Metadata: pairs(32)})
	})
}

func pairs(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprintf("%064d", i)] = strings.Repeat("v", 256)
	}
	return m
}

func TestNewKeysWhenBrandIsBad(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBed(t, db)
	for _, brand := range []string{"r", "RK", "rk1", "r_k", strings.Repeat("r", 13)} {
		_, err := NewKeys(KeysConfig{DB: db, Peppers: b.peppers, Partners: b.partners, Sealer: b.sealer, Brand: brand})
		wantFault(t, err, fault.ErrInvalid, "bad_brand")
	}
	ks, err := NewKeys(KeysConfig{DB: db, Peppers: b.peppers, Partners: b.partners, Sealer: b.sealer, Brand: "acmeinc"})
	if err != nil {
		t.Fatal(err)
	}
	b.partner(t, "acme", PartnerSpec{})
	made, err := ks.Create(t.Context(), APIKey, KeySpec{Partner: "acme", Name: "x"})
	if err != nil || !strings.HasPrefix(made.Value.RevealString(), "acmeinc_live_") {
		t.Errorf("the key does not begin with the brand (%v)", err)
	}
}

func TestKeyWhenCreateIsRepeated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{MaxKeys: 1, Scopes: []string{"a"}})
		spec := KeySpec{Name: "x", Partner: "acme", Once: store.Once{Scope: "s", Key: "k", Fingerprint: "f"}}
		first, _ := b.key(t, spec)
		// It is told also when there is no room for another.
		made, err := b.keys.Create(t.Context(), APIKey, spec)
		wantFault(t, err, fault.ErrExists, "value_shown_once")
		if !strings.Contains(err.Error(), first.ID) || !made.Value.IsZero() || made.Key != nil {
			t.Errorf("the refusal does not name the first key, or brings a value: %v", err)
		}
		spec.Once.Fingerprint = "another request"
		_, err = b.keys.Create(t.Context(), APIKey, spec)
		wantFault(t, err, fault.ErrInvalid, "idempotency_key_reused")
		if n := number(t, db, `SELECT COUNT(*) FROM partner_keys`); n != 1 {
			t.Errorf("there are %d keys, want 1", n)
		}
	})
}

// However many replicas make keys at once, a partner has no more than it may.
func TestKeyWhenMaxKeysAtOnce(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{MaxKeys: 5})
		replicas := []*bed{b, b.other(t)}
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				kind := []Kind{APIKey, RequestSecret}[i/2%2]
				_, err := replicas[i%2].keys.Create(t.Context(), kind, KeySpec{Partner: "acme", Name: fmt.Sprint("k", i)})
				if err != nil && !errors.Is(err, fault.ErrLimited) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := number(t, db, `SELECT COUNT(*) FROM partner_keys`); n != 5 {
			t.Errorf("%d keys were made, want 5", n)
		}
	})
}

// Keys that are over, and those that were rolled, leave their place to others.
func TestKeyWhenOthersMakeRoom(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{MaxKeys: 2})
		one, _ := b.key(t, KeySpec{ExpiresIn: time.Hour})
		two, _ := b.key(t, KeySpec{})
		full := func() {
			t.Helper()
			_, err := b.keys.Create(t.Context(), APIKey, KeySpec{Partner: "acme", Name: "x"})
			wantFault(t, err, fault.ErrLimited, "max_keys")
		}
		full()
		if _, err := b.keys.Suspend(t.Context(), APIKey, "", two.ID, ""); err != nil {
			t.Fatal(err)
		}
		full()
		if _, _, err := b.keys.Roll(t.Context(), Roll{Kind: APIKey, ID: one.ID}); err != nil {
			t.Fatalf("a roll needs no room: %v", err)
		}
		full()
		if _, err := b.keys.Revoke(t.Context(), APIKey, "", two.ID, "", ""); err != nil {
			t.Fatal(err)
		}
		b.key(t, KeySpec{})
		full()
		b.pass(time.Hour)
		b.key(t, KeySpec{}) // one's successor has expired
		full()
	})
}

// Of another partner's keys a partner sees, counts and touches nothing, and is told
// what it would be told of keys that never were.
func TestKeyWhenOfAnotherPartner(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		b.partner(t, "evil", PartnerSpec{})
		k, _ := b.key(t, KeySpec{})
		s, _ := b.signing(t, KeySpec{Name: "hook"})
		before := tables(t, db)
		const never = "0000000000000000"
		for what, do := range map[string]func(kind Kind, id, name string) error{
			"get": func(kind Kind, id, _ string) error { _, err := b.keys.Get(t.Context(), kind, "evil", id); return err },
			"suspend": func(kind Kind, id, _ string) error {
				_, err := b.keys.Suspend(t.Context(), kind, "evil", id, "")
				return err
			},
			"resume": func(kind Kind, id, _ string) error {
				_, err := b.keys.Resume(t.Context(), kind, "evil", id, "")
				return err
			},
			"revoke": func(kind Kind, id, _ string) error {
				_, err := b.keys.Revoke(t.Context(), kind, "evil", id, "", "")
				return err
			},
			"update": func(kind Kind, id, _ string) error {
				_, err := b.keys.Update(t.Context(), id, 1, KeySpec{Partner: "evil", Name: "x"})
				return err
			},
			"roll": func(kind Kind, id, name string) error {
				_, _, err := b.keys.Roll(t.Context(), Roll{Kind: kind, Partner: "evil", ID: id, Name: name})
				return err
			},
			"versions": func(_ Kind, _, name string) error { _, err := b.keys.Versions(t.Context(), "evil", name); return err },
		} {
			for _, of := range []*Key{k, s} {
				err, other := do(of.Kind, of.ID, of.Name), do(of.Kind, never, "never")
				if !errors.Is(err, fault.ErrNotFound) {
					t.Errorf("%s of another partner's %s: %v", what, of.Kind, err)
					continue
				}
				if got, want := strings.NewReplacer(of.ID, never, of.Name, "never").Replace(err.Error()), other.Error(); got != want {
					t.Errorf("%s: %q differs from %q", what, got, want)
				}
			}
		}
		// Nor does a kind give access to the other.
		_, err := b.keys.Get(t.Context(), RequestSecret, "", k.ID)
		wantFault(t, err, fault.ErrNotFound, "request_secret_not_found")
		for _, kind := range []Kind{APIKey, RequestSecret} {
			list, next, err := b.keys.List(t.Context(), ListKeys{Kind: kind, Partner: "evil", Ended: true, Limit: 10})
			if err != nil || len(list) != 0 || next != "" {
				t.Errorf("%s: lists %d, %v", kind, len(list), err)
			}
		}
		if tables(t, db) != before {
			t.Error("something was changed")
		}
	})
}

func TestKeysListWhenManyPages(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		b.partner(t, "other", PartnerSpec{})
		want := map[string][]string{}
		for i := range 9 {
			b.pass(time.Duration(i%2) * time.Microsecond)
			partner := []string{"acme", "acme", "other"}[i%3]
			k, _ := b.key(t, KeySpec{Partner: partner})
			b.signing(t, KeySpec{Partner: partner, Name: fmt.Sprint("s", i)})
			state := "live"
			if i%4 == 3 {
				if _, err := b.keys.Revoke(t.Context(), APIKey, "", k.ID, "", ""); err != nil {
					t.Fatal(err)
				}
				state = "ended"
			}
			for _, of := range []string{partner, ""} {
				want[of+" ended"] = append(want[of+" ended"], k.ID)
				if state == "live" {
					want[of+" live"] = append(want[of+" live"], k.ID)
				}
			}
		}
		for _, of := range slices.Sorted(maps.Keys(want)) {
			partner, which, _ := strings.Cut(of, " ")
			var got []string
			at := time.Unix(1<<40, 0)
			for page := ""; ; {
				list, next, err := b.keys.List(t.Context(), ListKeys{Kind: APIKey, Partner: partner, Ended: which == "ended", Page: page, Limit: 2})
				if err != nil {
					t.Fatal(err)
				}
				for _, k := range list {
					if k.CreatedAt.After(at) || k.Tampered() || k.Kind != APIKey {
						t.Errorf("%s is out of order, tampered, or no API key", k.ID)
					}
					at = k.CreatedAt
					got = append(got, k.ID)
				}
				if page = next; page == "" {
					break
				}
			}
			if diff := cmp.Diff(want[of], got, cmpopts.SortSlices(strings.Compare)); diff != "" {
				t.Errorf("%q: the pages together (-want +got):\n%s", of, diff)
			}
		}
		_, _, err := b.keys.List(t.Context(), ListKeys{Kind: APIKey, Page: "!", Limit: 2})
		wantFault(t, err, fault.ErrInvalid, "bad_page_token")
	})
}

func TestKeyWhenUpdated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{Scopes: []string{"a", "b"}, PublishableScopes: []string{"b"}})
		k, value := b.key(t, KeySpec{Scopes: []string{"a", "b"}, ExpiresIn: time.Hour, Environment: "test"})
		var heard []string
		b.partners.changes.listen(func(partner, id string) { heard = append(heard, partner+"/"+id) })
		spec := KeySpec{Partner: "acme", Name: "new name", Scopes: []string{"b"}, CIDRs: []string{"10.0.0.0/8"}, Rate: RateLimit{1, time.Minute, 0}, Metadata: map[string]string{"k": "v"}}
		got, err := b.keys.Update(t.Context(), k.ID, 1, spec)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, b.get(t, k), sameKey); diff != "" {
			t.Errorf("what was changed and what is read differ:\n%s", diff)
		}
		if got.Name != "new name" || !slices.Equal(got.Scopes, []string{"b"}) || len(got.CIDRs) != 1 || got.Rate != spec.Rate || got.Metadata["k"] != "v" || got.Version != 2 ||
			!got.ExpiresAt.Equal(k.ExpiresAt) || got.Environment != "test" || !got.Since.Equal(k.Since) || !b.accepts(t, k, value) || !slices.Equal(heard, []string{"acme/" + k.ID}) {
			t.Errorf("%+v, heard %v", got, heard)
		}
		_, err = b.keys.Update(t.Context(), k.ID, 1, spec)
		wantFault(t, err, fault.ErrChanged, "version_changed")
		spec.Scopes = []string{"c"}
		_, err = b.keys.Update(t.Context(), k.ID, 2, spec)
		wantFault(t, err, fault.ErrInvalid, "scope_not_allowed")
		// A scope that the partner has lost can't be kept, and is not in force meanwhile.
		p, err := b.partners.Update(t.Context(), "acme", 1, PartnerSpec{Scopes: []string{"a"}})
		if err != nil {
			t.Fatal(err)
		}
		if in := p.Effective(b.get(t, k)); len(in) != 0 {
			t.Errorf("scopes %v are in force, want none", in)
		}
		spec.Scopes = []string{"b"}
		_, err = b.keys.Update(t.Context(), k.ID, 2, spec)
		wantFault(t, err, fault.ErrInvalid, "scope_not_allowed")
		b.pass(time.Hour)
		spec.Scopes = []string{"a"}
		_, err = b.keys.Update(t.Context(), k.ID, 2, spec)
		wantFault(t, err, fault.ErrTransition, "already_expired")
		_, err = b.keys.Update(t.Context(), "nobody", 2, spec)
		wantFault(t, err, fault.ErrNotFound, "api_key_not_found")
	})
}

func TestKeyInTrail(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		ctx := audit.WithActor(t.Context(), audit.Actor{ID: "tokens/x", Role: "partner", Partner: "acme"})
		made, err := b.keys.Create(ctx, APIKey, KeySpec{Partner: "acme", Name: "ci", Scopes: []string{"orders:read"}, CIDRs: []string{"10.0.0.0/8"}, Rate: RateLimit{100, time.Second, 0}, ExpiresIn: time.Hour, Metadata: map[string]string{"m": "private"}})
		if err != nil {
			t.Fatal(err)
		}
		events, _, err := audit.List(t.Context(), db, audit.Query{Resource: made.Key.Resource()})
		if err != nil || len(events) != 1 {
			t.Fatalf("%d events, %v", len(events), err)
		}
		want := map[string]any{"name": "ci", "environment": "live", "class": "secret", "scopes": []any{"orders:read"}, "cidrs": []any{"10.0.0.0/8"}, "rate": "100/1s burst 0",
			"expires_at": "2026-01-05T01:00:00Z", "version": float64(1)}
		if diff := cmp.Diff(want, events[0].Detail); diff != "" || events[0].Action != "api_key.create" || events[0].Partner != "acme" || events[0].Actor != "tokens/x" {
			t.Errorf("%+v (-want +got):\n%s", events[0], diff)
		}
		if got := made.Key.Resource(); got != "partners/acme/api_keys/"+made.Key.ID {
			t.Errorf("its resource is %s", got)
		}
	})
}

package apikeys

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// items are keys to be imported without anything else.
func items(values ...string) (list []ImportItem) {
	for _, v := range values {
		list = append(list, ImportItem{Value: secret.FromString(v)})
	}
	return list
}

func (b *bed) imports(t testing.TB, partner, origin string, list ...ImportItem) []Imported {
	t.Helper()
	got, err := b.keys.Import(t.Context(), partner, origin, 0, list)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(list) {
		t.Fatalf("%d results for %d items", len(got), len(list))
	}
	return got
}

func strongKey() string {
	b := make([]byte, 24)
	_, _ = rand.Read(b)
	return "sk_" + hex.EncodeToString(b)
}

func TestImportWhenForms(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		digest := func(s string) []byte { d := sha256.Sum256([]byte(s)); return d[:] }
		for what, c := range map[string]struct {
			origin string
			write  func(key string) string
		}{
			"raw":                   {OriginRaw, func(s string) string { return s }},
			"hex":                   {OriginSHA256, func(s string) string { return hex.EncodeToString(digest(s)) }},
			"hex in capitals":       {OriginSHA256, func(s string) string { return strings.ToUpper(hex.EncodeToString(digest(s))) }},
			"base64":                {OriginSHA256, func(s string) string { return base64.StdEncoding.EncodeToString(digest(s)) }},
			"base64 without =":      {OriginSHA256, func(s string) string { return base64.RawStdEncoding.EncodeToString(digest(s)) }},
			"base64 for URLs":       {OriginSHA256, func(s string) string { return base64.URLEncoding.EncodeToString(digest(s)) }},
			"base64 for URLs, bare": {OriginSHA256, func(s string) string { return base64.RawURLEncoding.EncodeToString(digest(s)) }},
		} {
			value := strongKey()
			item := items(c.write(value))[0]
			item.Name, item.Environment, item.Scopes, item.CIDRs = "old", "test", []string{"orders:read"}, []string{"10.0.0.0/8"}
			item.Rate, item.Metadata, item.ExpiresAt = RateLimit{5, time.Second, 0}, map[string]string{"k": "v"}, after(time.Hour)
			r := b.imports(t, "acme", c.origin, item)[0]
			if r.Err != nil || r.Weak {
				t.Errorf("%s: %+v", what, r)
				continue
			}
			k := b.get(t, &Key{Kind: APIKey, ID: r.ID})
			if k.Origin != c.origin || k.Name != "old" || k.Environment != "test" || len(k.Scopes) != 1 || len(k.CIDRs) != 1 || k.Rate.Quota != 5 || k.Metadata["k"] != "v" || !k.ExpiresAt.Equal(after(time.Hour)) || len(k.lookup) != lookupSize {
				t.Errorf("%s: %+v", what, k)
			}
			if !b.accepts(t, k, value) || b.accepts(t, k, value+"0") {
				t.Errorf("%s: it is not accepted, or another is", what)
			}
			if got := b.events(t, k.Resource()); !cmp.Equal(got, []string{"api_key.import"}) {
				t.Errorf("%s: the trail has %v", what, got)
			}
			// The same again names the key that there is; to others it does not.
			again := b.imports(t, "acme", c.origin, item)[0]
			if !errors.Is(again.Err, fault.ErrExists) || again.ID != r.ID {
				t.Errorf("%s again: %+v", what, again)
			}
		}
	})
}

func TestImportWhenHeld(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		b.partner(t, "other", PartnerSpec{})
		strong, weak := strongKey(), "opensesame1"
		first := b.imports(t, "acme", OriginRaw, items(strong, weak, strong, weak)...)
		if first[0].Err != nil || first[1].Err != nil || first[0].Weak || !first[1].Weak {
			t.Fatalf("%+v", first)
		}
		for i := 2; i < 4; i++ {
			if !errors.Is(first[i].Err, fault.ErrExists) || first[i].ID != first[i-2].ID || first[i].Weak != first[i-2].Weak {
				t.Errorf("twice in one import: %+v", first[i])
			}
		}
		held := func(what string) {
			t.Helper()
			for i, r := range b.imports(t, "other", OriginRaw, items(strong, weak)...) {
				if !errors.Is(r.Err, fault.ErrExists) || r.ID != "" {
					t.Errorf("%s, item %d: %+v", what, i, r)
				}
			}
			sum := sha256.Sum256([]byte(strong))
			if r := b.imports(t, "other", OriginSHA256, items(hex.EncodeToString(sum[:]))...)[0]; !errors.Is(r.Err, fault.ErrExists) || r.ID != "" {
				t.Errorf("%s, as a hash: %+v", what, r)
			}
		}
		held("another partner's")
		if _, err := b.peppers.Rotate(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		held("under an older pepper")
		for _, r := range first[:2] {
			if _, err := b.keys.Revoke(t.Context(), APIKey, "acme", r.ID, KeyCompromise, ""); err != nil {
				t.Fatal(err)
			}
		}
		held("revoked")
		if n := number(t, db, `SELECT COUNT(*) FROM partner_keys`); n != 2 {
			t.Errorf("there are %d keys, want 2", n)
		}
	})
}

// One value that comes in at once, for two partners over two replicas, is held once.
func TestImportWhenAtOnce(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		replicas := []*bed{b, b.other(t)}
		b.partner(t, "acme", PartnerSpec{})
		b.partner(t, "other", PartnerSpec{})
		for _, value := range []string{strongKey(), "opensesame1", "opensesame2"} {
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					_, err := replicas[i%2].keys.Import(t.Context(), []string{"acme", "other"}[i/2], OriginRaw, 0, items(value))
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		}
		if n := number(t, db, `SELECT COUNT(*) FROM partner_keys`); n != 3 {
			t.Errorf("there are %d keys, want 3", n)
		}
	})
}

func TestImportWhenWeak(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		b.partner(t, "short", PartnerSpec{MaxKeyTTL: time.Hour})
		const day = 24 * time.Hour
		for i, c := range []struct {
			partner string
			ttl     time.Duration
			expires time.Duration // that the item says
			want    time.Duration
		}{
			{"acme", 0, 0, 30 * day}, {"acme", 90 * day, 0, 90 * day}, {"acme", day, 2 * day, day}, {"acme", day, time.Hour, time.Hour}, {"short", 0, 0, time.Hour},
		} {
			value := fmt.Sprint("hunter22-", i)
			item := items(value)[0]
			if c.expires > 0 {
				item.ExpiresAt = after(c.expires)
			}
			got, err := b.keys.Import(t.Context(), c.partner, OriginRaw, c.ttl, []ImportItem{item})
			if err != nil || got[0].Err != nil || !got[0].Weak {
				t.Fatalf("%+v, %v", got, err)
			}
			k := b.get(t, &Key{Kind: APIKey, ID: got[0].ID})
			if life := k.ExpiresAt.Sub(epoch); life != c.want || len(k.lookup) != 2 || len(k.salt) != 16 || !k.Weak {
				t.Errorf("%d: it lives for %s, want %s; %+v", i, life, c.want, k)
			}
			if !b.accepts(t, k, value) || b.accepts(t, k, value+"0") {
				t.Errorf("%d: it is not accepted, or another is", i)
			}
			events, _, err := audit.List(t.Context(), db, audit.Query{Resource: k.Resource()})
			if err != nil || len(events) != 1 || events[0].Detail["weak"] != true || events[0].Detail["origin"] != "raw" {
				t.Errorf("%+v, %v", events, err)
			}
			// Its successor is as any key that is made, and the grace is inside of the old life.
			next, old, fresh := b.roll(t, Roll{Kind: APIKey, ID: k.ID, Grace: grace(90 * day)})
			if next.Weak || next.Origin != OriginRotunda || !strings.HasPrefix(fresh, "rk_live_") || next.lookup != nil || next.salt != nil || !old.GraceEndsAt.Equal(k.ExpiresAt) {
				t.Errorf("%d: the successor: %+v", i, next)
			}
			if want := (map[string]time.Duration{"acme": 0, "short": time.Hour})[c.partner]; want == 0 && !next.ExpiresAt.IsZero() || want > 0 && !next.ExpiresAt.Equal(after(want)) {
				t.Errorf("%d: the successor ends at %s", i, next.ExpiresAt)
			}
		}
		for _, ttl := range []time.Duration{-1, time.Minute, 90*day + 1} {
			_, err := b.keys.Import(t.Context(), "acme", OriginRaw, ttl, items("opensesame1"))
			wantFault(t, err, fault.ErrInvalid, "duration_range")
		}
	})
}

// There are no more weak keys in a database than can be compared slowly; strong ones
// come in beside them.
func TestImportWhenTooManyAreWeak(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBed(t, db)
	b.partner(t, "acme", PartnerSpec{MaxKeys: 5000})
	one := b.get(t, &Key{Kind: APIKey, ID: b.imports(t, "acme", OriginRaw, items("opensesame1")...)[0].ID})
	// The others are copies: their hashes would take a minute.
	exec(t, db, `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 998)
		INSERT INTO partner_keys (`+keyColumns+`) SELECT `+strings.Replace(strings.Replace(keyColumns, "id", "'copy' || n.i", 1), "lookup", "'none'", 1)+` FROM partner_keys, n WHERE id = $1`, one.ID)
	got := b.imports(t, "acme", OriginRaw, items("opensesame2", "opensesame3", strongKey())...)
	if got[0].Err != nil || got[2].Err != nil || !got[0].Weak || got[2].Weak {
		t.Errorf("%+v", got)
	}
	wantFault(t, got[1].Err, fault.ErrInvalid, "too_many_weak")
	if _, _, err := b.keys.Roll(t.Context(), Roll{Kind: APIKey, ID: one.ID, Grace: grace(0)}); err != nil {
		t.Fatal(err)
	}
	if r := b.imports(t, "acme", OriginRaw, items("opensesame3")...)[0]; r.Err != nil {
		t.Errorf("after one was rolled: %v", r.Err)
	}
}

func TestImportWhenRefused(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{MaxKeyTTL: time.Hour, MaxKeys: 2})
		_, own := b.key(t, KeySpec{})
		_, token := newKeyString("admin")
		good := func(edit func(*ImportItem)) ImportItem {
			item := items(strongKey())[0]
			edit(&item)
			return item
		}
		value := func(s string) ImportItem { return items(s)[0] }
		bad := map[string]struct {
			origin, reason string
			item           ImportItem
		}{
			"7 characters":         {OriginRaw, "bad_key", value("1234567")},
			"513 characters":       {OriginRaw, "bad_key", value(strings.Repeat("x", 513))},
			"a space":              {OriginRaw, "bad_key", value("12345678 90")},
			"UTF-8":                {OriginRaw, "bad_key", value("12345678é")},
			"a control character":  {OriginRaw, "bad_key", value("12345678\x7f")},
			"nothing":              {OriginRaw, "bad_key", ImportItem{}},
			"a key of Rotunda's":   {OriginRaw, "own_key", value(own)},
			"one with a typo":      {OriginRaw, "own_key", value(own[:len(own)-1])},
			"an access token":      {OriginRaw, "own_key", value(token.RevealString())},
			"a publishable form":   {OriginRaw, "own_key", value("rkpub_live_12345678")},
			"63 hex digits":        {OriginSHA256, "bad_hash", value(strings.Repeat("a", 63))},
			"hex with a letter":    {OriginSHA256, "bad_hash", value(strings.Repeat("a", 63) + "g")},
			"31 bytes":             {OriginSHA256, "bad_hash", value(base64.StdEncoding.EncodeToString(make([]byte, 31)))},
			"33 bytes":             {OriginSHA256, "bad_hash", value(base64.StdEncoding.EncodeToString(make([]byte, 33)))},
			"a line in the base64": {OriginSHA256, "bad_hash", value("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\nAAAAAAAAAAA=")},
			"a bad name":           {OriginRaw, "bad_name", good(func(i *ImportItem) { i.Name = "a\nb" })},
			"a bad environment":    {OriginRaw, "bad_environment", good(func(i *ImportItem) { i.Environment = "admin" })},
			"a scope of others":    {OriginRaw, "scope_not_allowed", good(func(i *ImportItem) { i.Scopes = []string{"x"} })},
			"a bad range":          {OriginRaw, "bad_cidr", good(func(i *ImportItem) { i.CIDRs = []string{"x"} })},
			"a bad rate":           {OriginRaw, "bad_rate", good(func(i *ImportItem) { i.Rate.Quota = 1 })},
			"bad metadata":         {OriginRaw, "bad_metadata", good(func(i *ImportItem) { i.Metadata = map[string]string{"": ""} })},
			"expired":              {OriginRaw, "expired", good(func(i *ImportItem) { i.ExpiresAt = epoch })},
			"a long life":          {OriginRaw, "life_too_long", good(func(i *ImportItem) { i.ExpiresAt = after(time.Hour + time.Microsecond) })},
		}
		for what, c := range bad {
			r := b.imports(t, "acme", c.origin, c.item)[0]
			f, ok := errors.AsType[*fault.Error](r.Err)
			if !ok || !errors.Is(r.Err, fault.ErrInvalid) || f.Reason != c.reason || r.ID != "" {
				t.Errorf("%s: got %+v, want %s", what, r, c.reason)
			}
			if v := c.item.Value.RevealString(); len(v) > 8 && r.Err != nil && strings.Contains(r.Err.Error(), v[len(v)-8:]) {
				t.Errorf("%s: the error tells of the value", what)
			}
		}
		// Bad items don't keep good ones back, and the partner's limit holds.
		got := b.imports(t, "acme", OriginRaw, value("x"), value(strongKey()), value(strongKey()))
		if got[0].Err == nil || got[1].Err != nil {
			t.Errorf("%+v", got)
		}
		wantFault(t, got[2].Err, fault.ErrInvalid, "max_keys")

		for what, c := range map[string]struct {
			partner, origin, reason string
			n                       int
		}{
			"nothing": {"acme", OriginRaw, "too_many", 0}, "501": {"acme", OriginRaw, "too_many", 501}, "another origin": {"acme", OriginRotunda, "bad_form", 1}, "nobody": {"nobody", OriginRaw, "partner_not_found", 1},
		} {
			_, err := b.keys.Import(t.Context(), c.partner, c.origin, 0, make([]ImportItem, c.n))
			if f, ok := errors.AsType[*fault.Error](err); !ok || f.Reason != c.reason {
				t.Errorf("%s: got %v, want %s", what, err, c.reason)
			}
		}
	})
}

// What people make up is found out, what generators make is rarely taken for it, and
// whatever is added to a key, it does not get weaker.
func TestStrength(t *testing.T) {
	for _, key := range []string{
		"correct-horse-battery-staple", "Password123!Password123!", "MySecretApiKey2024!!", "12345678901234567890", strings.Repeat("a", 512), strings.Repeat("abcd", 128),
		"qwertyuiopasdfghjklzxcvbnm", "abcdefghijklmnopqrstuvwxyz0123456789", "deadbeefdeadbeefdeadbeefdeadbeef", "00000000000000000000000000000001",
		"sk_live_changeme_please_12345678", "P@ssw0rd!P@ssw0rd!", "correcthorsebatterystaple2024", "TheQuickBrownFoxJumpsOverTheLazyDog", "1qaz2wsx3edc4rfv5tgb6yhn",
		"acme-partner-production-key-2023-01-15", "letmein-letmein-letmein-letmein", "f3b1c0d9e8a7465b",
	} {
		if bits := strength(key); bits >= strongEnough {
			t.Errorf("%q has %.0f bits", key, bits)
		}
	}
	random := map[string]func() string{
		"32 hex digits": func() string { return hex.EncodeToString(randomBytes(16)) },
		"40 hex digits": func() string { return hex.EncodeToString(randomBytes(20)) },
		"base64 of 24":  func() string { return base64.RawURLEncoding.EncodeToString(randomBytes(24)) },
		"base64 of 32":  func() string { return base64.StdEncoding.EncodeToString(randomBytes(32)) },
		"32 of base62":  func() string { return "sk_live_" + random(32, 24) },
		"52 of base32":  func() string { return strings.ToLower(rand.Text() + rand.Text()) },
		"a UUID": func() string {
			h := hex.EncodeToString(randomBytes(16))
			return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
		},
		"40 of base62":   func() string { return random(40, 32) },
		"a GitHub token": func() string { return "ghp_" + random(36, 28) },
	}
	for what, f := range random {
		const n = 500
		weak := 0
		for range n {
			if strength(f()) < strongEnough {
				weak++
			}
		}
		if weak > n/20 {
			t.Errorf("%s: %d of %d are taken for weak", what, weak, n)
		}
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func FuzzStrength(f *testing.F) {
	f.Add("correct-horse-battery-staple")
	f.Add("")
	f.Add("\x00\xff")
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > maxForeign {
			return
		}
		if bits := strength(s); bits < 0 || bits > 8*float64(len(s)) || bits != bits {
			t.Errorf("%q has %f bits", s, bits)
		}
	})
}

func FuzzParseDigest(f *testing.F) {
	f.Add(strings.Repeat("0a", 32))
	f.Add(base64.StdEncoding.EncodeToString(make([]byte, 32)))
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseDigest(s)
		if err != nil {
			if !errors.Is(err, fault.ErrInvalid) || d != [32]byte{} || len(s) > 8 && strings.Contains(err.Error(), s) {
				t.Errorf("%q gives %x and %v", s, d, err)
			}
			return
		}
		if len(s) < 43 || len(s) > 64 {
			t.Errorf("%d characters are taken for a SHA-256", len(s))
		}
	})
}

package apikeys

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
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

func (b *bed) roll(t testing.TB, r Roll) (next, old *Key, value string) {
	t.Helper()
	made, old, err := b.keys.Roll(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return made.Key, old, made.Value.RevealString()
}

func TestRollWhenActive(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{Scopes: []string{"a", "b"}, PublishableScopes: []string{"a"}, MaxKeyTTL: 100 * 24 * time.Hour})
		first, firstValue := b.key(t, KeySpec{
			Scopes: []string{"a"}, CIDRs: []string{"10.0.0.0/8"}, Rate: RateLimit{5, time.Second, 9}, Metadata: map[string]string{"k": "v"}, Class: ClassPublishable, Environment: "test", ExpiresIn: 80 * 24 * time.Hour,
		})
		b.pass(time.Hour)
		next, old, value := b.roll(t, Roll{Kind: APIKey, Partner: "acme", ID: first.ID, Quiet: time.Hour + 1})

		// The successor is the same but for what makes it another.
		want := *first
		want.ID, want.Replaces, want.CreatedAt, want.Since = next.ID, first.ID, after(time.Hour), after(time.Hour)
		if diff := cmp.Diff(&want, b.get(t, next), sameKey); diff != "" {
			t.Errorf("the successor (-want +got):\n%s", diff)
		}
		want = *first
		want.Stored, want.ReplacedBy, want.Since, want.Version, want.Quiet = Retiring, next.ID, after(time.Hour), 2, time.Hour
		want.GraceEndsAt, want.NextAt = after(73*time.Hour), after(2*time.Hour+time.Minute)
		if diff := cmp.Diff(&want, b.get(t, first), sameKey); diff != "" {
			t.Errorf("the old key (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(old, b.get(t, first), sameKey); diff != "" {
			t.Errorf("what is returned and what is read differ:\n%s", diff)
		}
		if !b.accepts(t, first, firstValue) || !b.accepts(t, next, value) || !strings.HasPrefix(value, "rkpub_test_") {
			t.Error("not both are accepted inside the grace")
		}
		b.pass(72 * time.Hour)
		if b.accepts(t, first, firstValue) || !b.accepts(t, next, value) {
			t.Error("the old one is accepted after its grace, or the new one is not")
		}
		b.pass(time.Minute)
		third, _, _ := b.roll(t, Roll{Kind: APIKey, ID: next.ID})
		if third.Lineage != first.ID || third.Replaces != next.ID || !third.ExpiresAt.Equal(first.ExpiresAt) {
			t.Errorf("the third of the line: %+v", third)
		}
		if diff := cmp.Diff([]string{"api_key.create", "api_key.roll"}, b.events(t, next.Resource())); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
		events, _, err := audit.List(t.Context(), db, audit.Query{Resource: first.Resource(), Limit: 1})
		if err != nil || events[0].Detail["replaced_by"] != next.ID || events[0].Detail["grace_ends_at"] != after(73*time.Hour).Format(time.RFC3339) {
			t.Errorf("%+v, %v", events[0], err)
		}
	})
}

// Rolling never lengthens a life.
func TestRollWhenExpiryIsNear(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{MaxKeyTTL: 48 * time.Hour})
		b.partner(t, "free", PartnerSpec{})
		for _, c := range []struct {
			what          string
			partner       string
			life          time.Duration // of the old one
			roll          Roll
			grace, expiry time.Duration // from now; expiry 0: none
		}{
			{"the grace ends with the life", "acme", time.Hour, Roll{Grace: grace(2 * time.Hour)}, time.Hour, time.Hour},
			{"the grace is inside of the life", "acme", 2 * time.Hour, Roll{Grace: grace(time.Hour)}, time.Hour, 2 * time.Hour},
			{"a life of its own", "acme", time.Hour, Roll{ExpiresIn: 48 * time.Hour}, time.Hour, 48 * time.Hour},
			{"a shorter life", "acme", 4 * time.Hour, Roll{ExpiresIn: time.Hour}, 4 * time.Hour, time.Hour},
			{"no end", "free", 0, Roll{}, 72 * time.Hour, 0},
			{"no end before, one now", "free", 0, Roll{ExpiresIn: time.Hour}, 72 * time.Hour, time.Hour},
			{"at once", "free", 0, Roll{Grace: grace(0)}, 0, 0},
			{"the longest grace", "free", 0, Roll{Grace: grace(90 * 24 * time.Hour)}, 90 * 24 * time.Hour, 0},
		} {
			k, value := b.key(t, KeySpec{Partner: c.partner, ExpiresIn: c.life})
			c.roll.Kind, c.roll.ID = APIKey, k.ID
			next, old, _ := b.roll(t, c.roll)
			var expiry time.Duration
			if !next.ExpiresAt.IsZero() {
				expiry = next.ExpiresAt.Sub(b.clock.Now())
			}
			if got := old.GraceEndsAt.Sub(b.clock.Now()); got != c.grace || expiry != c.expiry || !old.ExpiresAt.Equal(k.ExpiresAt) {
				t.Errorf("%s: the grace is %s, want %s; the new life %s, want %s", c.what, got, c.grace, expiry, c.expiry)
			}
			if ended := c.grace == 0; ended != (old.Stored == Retired) || ended == b.accepts(t, k, value) {
				t.Errorf("%s: the old one is %s", c.what, old.Stored)
			}
		}
	})
}

func TestRollWhenRefused(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{MaxKeyTTL: time.Hour})
		k, _ := b.key(t, KeySpec{})
		b.signing(t, KeySpec{Name: "hook"})
		public, _, _ := ed25519.GenerateKey(rand.Reader)
		b.signing(t, KeySpec{Name: "public", PublicKey: publicPEM(t, public)})
		before := tables(t, db)
		for what, c := range map[string]struct {
			r      Roll
			of     error
			reason string
		}{
			"a negative grace":       {Roll{Kind: APIKey, ID: k.ID, Grace: grace(-1)}, fault.ErrInvalid, "duration_range"},
			"a long grace":           {Roll{Kind: APIKey, ID: k.ID, Grace: grace(90*24*time.Hour + 1)}, fault.ErrInvalid, "duration_range"},
			"a short quiet":          {Roll{Kind: APIKey, ID: k.ID, Quiet: 5*time.Minute - 1}, fault.ErrInvalid, "duration_range"},
			"a long life":            {Roll{Kind: APIKey, ID: k.ID, ExpiresIn: time.Hour + 1}, fault.ErrInvalid, "life_too_long"},
			"nobody":                 {Roll{Kind: APIKey, ID: "x"}, fault.ErrNotFound, "api_key_not_found"},
			"no such name":           {Roll{Kind: RequestSecret, Partner: "acme", Name: "x"}, fault.ErrNotFound, "request_secret_not_found"},
			"a name of no partner":   {Roll{Kind: RequestSecret, Name: "hook"}, fault.ErrInvalid, "partner_missing"},
			"a secret to a public":   {Roll{Kind: RequestSecret, Partner: "acme", Name: "hook", PublicKey: publicPEM(t, public)}, fault.ErrInvalid, "public_key_and_secret"},
			"a public to a secret":   {Roll{Kind: RequestSecret, Partner: "acme", Name: "public"}, fault.ErrInvalid, "public_key_and_secret"},
			"no public key":          {Roll{Kind: RequestSecret, Partner: "acme", Name: "public", PublicKey: "x"}, fault.ErrInvalid, "bad_public_key"},
			"an API key to a public": {Roll{Kind: APIKey, ID: k.ID, PublicKey: publicPEM(t, public)}, fault.ErrInvalid, "public_key_not_for_kind"},
		} {
			made, old, err := b.keys.Roll(t.Context(), c.r)
			f, ok := errors.AsType[*fault.Error](err)
			if !ok || !errors.Is(err, c.of) || f.Reason != c.reason || old != nil || made.Key != nil || !made.Value.IsZero() {
				t.Errorf("%s: got %v, want %s", what, err, c.reason)
			}
		}
		if tables(t, db) != before {
			t.Error("something was changed")
		}
	})
}

// The states from which there is no roll are those of TestMoveWhenAllowed.

func TestRollWhenRepeated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		k, _ := b.key(t, KeySpec{})
		r := Roll{Kind: APIKey, ID: k.ID, Once: store.Once{Scope: "s", Key: "k", Fingerprint: "f"}}
		next, _, _ := b.roll(t, r)
		made, old, err := b.keys.Roll(t.Context(), r)
		wantFault(t, err, fault.ErrExists, "value_shown_once")
		if !strings.Contains(err.Error(), next.ID) || !made.Value.IsZero() || old != nil {
			t.Errorf("the refusal does not name the successor, or brings a value: %v", err)
		}
		// A public key is no value that could be lost.
		public, _, _ := ed25519.GenerateKey(rand.Reader)
		s, _ := b.signing(t, KeySpec{Name: "public", PublicKey: publicPEM(t, public)})
		r = Roll{Kind: RequestSecret, Partner: "acme", Name: "public", PublicKey: publicPEM(t, public), Once: store.Once{Scope: "s", Key: "k2", Fingerprint: "f"}}
		next, _, _ = b.roll(t, r)
		again, old, _ := b.roll(t, r)
		if again.ID != next.ID || old.ID != s.ID || number(t, db, `SELECT COUNT(*) FROM partner_keys`) != 4 {
			t.Errorf("again: %+v, %+v", again, old)
		}
	})
}

// Of replicas that roll one key at once, one does: there is one successor.
func TestRollWhenAtOnce(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		replicas := []*bed{b, b.other(t)}
		b.partner(t, "acme", PartnerSpec{})
		for round := range 4 {
			kind := []Kind{APIKey, RequestSecret}[round%2]
			k, _ := b.made(t, kind, KeySpec{Name: fmt.Sprint("k", round)})
			var wg sync.WaitGroup
			var mu sync.Mutex
			won := 0
			for i := range 4 {
				wg.Go(func() {
					_, _, err := replicas[i%2].keys.Roll(t.Context(), Roll{Kind: kind, Partner: "acme", ID: k.ID, Name: k.Name})
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						won++
					} else if !errors.Is(err, fault.ErrChanged) && !errors.Is(err, fault.ErrTransition) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			// A secret is rolled by its name: who comes when the first has done rolls its successor.
			n := number(t, db, `SELECT COUNT(*) FROM partner_keys WHERE lineage = $1`, k.ID)
			if n != int64(won)+1 || kind == APIKey && won != 1 || won < 1 {
				t.Errorf("%s: %d rolls, %d keys of the line", kind, won, n)
			}
		}
	})
}

// hooked is a key-encryption key that does something before it wraps.
type hooked struct {
	secret.KEK
	before func()
}

func (h *hooked) Wrap(ctx context.Context, dek, ad []byte) ([]byte, error) {
	h.before()
	return h.KEK.Wrap(ctx, dek, ad)
}

// Who rolled a name means the version that was there then: when somebody was
// faster, his successor is not rolled too.
func TestRollWhenRolledMeanwhile(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		b.signing(t, KeySpec{Name: "hook"})
		file, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek"))
		if err != nil {
			t.Fatal(err)
		}
		rolls := 0
		slow, err := secret.NewSealer(&hooked{file.KEKs()[0], func() {
			rolls++
			b.roll(t, Roll{Kind: RequestSecret, Partner: "acme", Name: "hook"})
		}})
		if err != nil {
			t.Fatal(err)
		}
		made, old, err := newKeys(t, db, b.peppers, slow).Roll(t.Context(), Roll{Kind: RequestSecret, Partner: "acme", Name: "hook"})
		wantFault(t, err, fault.ErrChanged, "rolled_meanwhile")
		if n := number(t, db, `SELECT COUNT(*) FROM partner_keys`); n != 2 || rolls != 1 || old != nil || made.Key != nil || !made.Value.IsZero() {
			t.Errorf("%d versions after %d other rolls; it gives %+v, %+v", n, rolls, made.Key, old)
		}
	})
}

// A line has at most ten keys inside their grace, so that rolls can't make keys
// without end.
func TestRollWhenManyAreRetiring(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{MaxKeys: 1})
		k, _ := b.key(t, KeySpec{})
		for range maxRetiring {
			b.pass(time.Minute)
			k, _, _ = b.roll(t, Roll{Kind: APIKey, ID: k.ID})
		}
		_, _, err := b.keys.Roll(t.Context(), Roll{Kind: APIKey, ID: k.ID})
		wantFault(t, err, fault.ErrTransition, "too_many_retiring")
		if !strings.Contains(err.Error(), after(72*time.Hour+time.Minute).Format(time.RFC3339)) {
			t.Errorf("it does not say when there is a place: %v", err)
		}
		k, _, _ = b.roll(t, Roll{Kind: APIKey, ID: k.ID, Grace: grace(0)})
		b.pass(72*time.Hour + time.Minute - b.clock.Now().Sub(epoch))
		b.roll(t, Roll{Kind: APIKey, ID: k.ID})
	})
}

func TestVersionsWhenRolled(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		one, oneValue := b.signing(t, KeySpec{Name: "hook", ExpiresIn: 200 * time.Hour})
		b.pass(time.Hour)
		two, _, twoValue := b.roll(t, Roll{Kind: RequestSecret, Partner: "acme", Name: "hook"})
		if oneValue == twoValue || !strings.HasPrefix(twoValue, "whsec_") {
			t.Error("the new value is the old one")
		}
		ids := func() (out []string) {
			t.Helper()
			list, err := b.keys.Versions(t.Context(), "acme", "hook")
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range list {
				out = append(out, k.ID)
			}
			return out
		}
		if diff := cmp.Diff([]string{two.ID, one.ID}, ids()); diff != "" {
			t.Errorf("the versions (-want +got):\n%s", diff)
		}
		// While there is one that was not rolled the name is taken; when it has ended, or
		// expired, another line begins.
		_, err := b.keys.Create(t.Context(), RequestSecret, KeySpec{Partner: "acme", Name: "hook"})
		wantFault(t, err, fault.ErrExists, "name_taken")
		if _, err := b.keys.Revoke(t.Context(), RequestSecret, "acme", two.ID, "", ""); err != nil {
			t.Fatal(err)
		}
		_, _, err = b.keys.Roll(t.Context(), Roll{Kind: RequestSecret, Partner: "acme", Name: "hook"})
		wantFault(t, err, fault.ErrTransition, "already_revoked")
		b.pass(time.Hour)
		three, _ := b.signing(t, KeySpec{Name: "hook", ExpiresIn: time.Hour})
		b.pass(time.Hour)
		four, _ := b.signing(t, KeySpec{Name: "hook"})
		if got := b.get(t, three); got.Stored != Retired || got.sealed != nil {
			t.Errorf("the expired version is %s", got.Stored)
		}
		if diff := cmp.Diff([]string{"request_secret.create", "request_secret.retire expired"}, b.events(t, three.Resource())); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{four.ID, three.ID, two.ID, one.ID}, ids()); diff != "" || four.Lineage != four.ID {
			t.Errorf("the versions (-want +got):\n%s", diff)
		}
		_, err = b.keys.Versions(t.Context(), "acme", "nothing")
		wantFault(t, err, fault.ErrNotFound, "request_secret_not_found")
	})
}

func TestRehashWhenPepperIsNewer(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		k, value := b.key(t, KeySpec{})
		if _, err := b.peppers.Rotate(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		gen, pepper := b.peppers.current()
		parsed, _ := parseKey(value, brand)
		rehash := func(from, to int64, lookup []byte) error {
			return db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				return b.keys.rehash(ctx, tx, k.ID, from, to, apiKeyHash(pepper, k.Partner, parsed.secret), lookup)
			})
		}
		wantFault(t, rehash(1, 1, nil), fault.ErrChanged, "key_changed")
		wantFault(t, rehash(2, 1, nil), fault.ErrChanged, "key_changed")
		wantFault(t, rehash(1, 2, []byte("lookup")), fault.ErrChanged, "key_changed")
		wantFault(t, rehash(1, 3, nil), fault.ErrUnavailable, "pepper_retired")
		if err := rehash(1, gen, nil); err != nil {
			t.Fatal(err)
		}
		if got := b.get(t, k); got.PepperGen != 2 || !b.accepts(t, k, value) {
			t.Errorf("%+v", got)
		}
		wantFault(t, rehash(1, gen, nil), fault.ErrChanged, "key_changed")
		if _, err := b.keys.Revoke(t.Context(), APIKey, "", k.ID, "", ""); err != nil {
			t.Fatal(err)
		}
		wantFault(t, rehash(2, 3, nil), fault.ErrChanged, "key_changed")
	})
}

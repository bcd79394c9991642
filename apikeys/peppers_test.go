package apikeys

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func (b *bed) rotate(t testing.TB) Pepper {
	t.Helper()
	p, err := b.peppers.Rotate(t.Context(), "yearly")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Tokens move to the newest pepper when they are used, and go on working in every
// replica, whatever it remembers of them.
func TestTokenWhenPepperIsRotated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		used, usedValue := b.create(t, Create{Role: Admin})
		unused, unusedValue := b.create(t, Create{Role: Operator})
		other := b.other(t)
		mustVerify(t, other.Tokens, usedValue, here)
		if got := b.rotate(t); got.Gen != 2 || !got.CreatedAt.Equal(epoch) {
			t.Errorf("%+v", got)
		}
		gen := func(id string) int64 {
			t.Helper()
			return number(t, db, `SELECT pepper_gen FROM access_tokens WHERE id = $1`, id)
		}
		_, newValue := b.create(t, Create{Role: Admin})
		mustVerify(t, other.Tokens, newValue, here) // it has not heard of the generation yet
		mustVerify(t, b.Tokens, usedValue, here)
		if got := gen(used.ID); got != 1 {
			t.Errorf("it is under generation %d before the flush", got)
		}
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if a, c := gen(used.ID), gen(unused.ID); a != 2 || c != 1 {
			t.Errorf("the generations are %d and %d, want 2 and 1", a, c)
		}
		mustVerify(t, b.Tokens, usedValue, here)          // remembered under the old one
		mustVerify(t, b.other(t).Tokens, usedValue, here) // read anew
		mustVerify(t, b.Tokens, unusedValue, here)
		if got := number(t, db, `SELECT COUNT(*) FROM event_queue WHERE action LIKE 'token.%' AND action <> 'token.create'`); got != 0 {
			t.Errorf("moving a token made %d events", got)
		}
		// Two replicas that move it at once, and one that revokes it, spoil no seal.
		third, thirdValue := b.create(t, Create{Role: Gateway})
		b.rotate(t)
		other = b.other(t)
		mustVerify(t, b.Tokens, thirdValue, here)
		mustVerify(t, other.Tokens, thirdValue, here)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := errors.Join(b.Flush(t.Context()), b.Flush(t.Context())); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := other.Flush(t.Context()); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := other.Revoke(t.Context(), third.ID, "superseded"); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		wantDenied(t, b.replica(t, db), thirdValue, here, "revoked")
	})
}

// A token that a replica remembers from before it moved is not refused when the
// old pepper is gone.
func TestTokenWhenPepperIsRetired(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		token, value := b.create(t, Create{Role: Admin})
		_, stale := b.create(t, Create{Role: Gateway, ExpiresIn: time.Minute})
		b.rotate(t)
		b.pass(pepperSettles)
		other := b.other(t)
		mustVerify(t, other.Tokens, value, here)
		third := b.other(t)
		if err := third.Usable(t.Context(), token.ID); err != nil { // it remembers the row, and never saw the value
			t.Fatal(err)
		}
		mustVerify(t, b.Tokens, value, here)
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		done, err := b.peppers.Retire(t.Context(), 1, "yearly")
		if err != nil {
			t.Fatal(err)
		}
		if done.Gen != 1 || !done.RetiredAt.Equal(after(pepperSettles)) {
			t.Errorf("%+v", done)
		}
		for _, r := range []*bed{other, third} {
			if err := r.peppers.reload(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustVerify(t, r.Tokens, value, here)
		}
		mustVerify(t, b.Tokens, value, here)
		wantDenied(t, b.Tokens, stale, here, "unknown") // it had expired, and nobody can tell any more
	})
}

func TestPepperWhenRetireIsRefused(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		refuse := func(gen int64, kind error, reason string) {
			t.Helper()
			before := tables(t, db)
			_, err := b.peppers.Retire(t.Context(), gen, "")
			wantFault(t, err, kind, reason)
			if tables(t, db) != before {
				t.Error("something was changed")
			}
		}
		refuse(1, fault.ErrTransition, "pepper_newest")
		refuse(0, fault.ErrNotFound, "pepper_not_found")
		refuse(9, fault.ErrNotFound, "pepper_not_found")
		token, _ := b.create(t, Create{Role: Gateway})
		key, _ := b.key(t, KeySpec{})
		asleep, _ := b.key(t, KeySpec{})
		if _, err := b.keys.Suspend(t.Context(), APIKey, "", asleep.ID, ""); err != nil {
			t.Fatal(err)
		}
		retiring, _ := b.key(t, KeySpec{})
		gone, _ := b.key(t, KeySpec{})
		b.key(t, KeySpec{ExpiresIn: time.Minute})
		b.create(t, Create{Role: Gateway, ExpiresIn: time.Minute})
		b.rotate(t)
		b.roll(t, Roll{Kind: APIKey, ID: retiring.ID, Grace: grace(time.Hour)})
		if _, err := b.keys.Revoke(t.Context(), APIKey, "", gone.ID, "", ""); err != nil {
			t.Fatal(err)
		}
		b.pass(pepperSettles - time.Microsecond)
		refuse(1, fault.ErrTransition, "pepper_too_new")
		b.pass(time.Microsecond)
		_, err := b.peppers.Retire(t.Context(), 1, "")
		wantFault(t, err, fault.ErrTransition, "pepper_in_use")
		if !strings.Contains(err.Error(), "3 usable API keys and 1 access tokens") {
			t.Errorf("it does not say what needs it: %v", err)
		}
		list, err := b.peppers.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []Pepper{{Gen: 2, CreatedAt: epoch, Keys: 1}, {Gen: 1, CreatedAt: epoch, Keys: 3, Tokens: 1}}
		if diff := cmp.Diff(want, list); diff != "" {
			t.Errorf("the list (-want +got):\n%s", diff)
		}
		var got []string
		for page := ""; ; {
			list, next, err := b.peppers.Stragglers(t.Context(), 1, page, 1)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range list {
				got = append(got, s.Kind+" "+s.Partner+" "+s.ID)
			}
			if page = next; page == "" {
				break
			}
		}
		ids := []string{"api_key acme " + key.ID, "api_key acme " + asleep.ID, "api_key acme " + retiring.ID}
		slices.Sort(ids)
		if diff := cmp.Diff(append(ids, "token  "+token.ID), got); diff != "" {
			t.Errorf("the stragglers (-want +got):\n%s", diff)
		}
		for _, page := range []string{"!", "eA", "dG9rZW4", "dG9rZW4gJw"} {
			_, _, err := b.peppers.Stragglers(t.Context(), 1, page, 1)
			wantFault(t, err, fault.ErrInvalid, "bad_page_token")
		}
		b.pass(time.Hour) // the retiring one is over
		for _, k := range []*Key{key, asleep} {
			if _, err := b.keys.Revoke(t.Context(), APIKey, "", k.ID, "", ""); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.Revoke(t.Context(), token.ID, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := b.peppers.Retire(t.Context(), 1, "yearly"); err != nil {
			t.Fatal(err)
		}
		refuse(1, fault.ErrTransition, "already_retired")
		if n := number(t, db, `SELECT COUNT(*) FROM peppers WHERE gen = 1 AND sealed IS NULL`); n != 1 {
			t.Error("the pepper is still in the database")
		}
		if diff := cmp.Diff([]string{"pepper.rotate yearly", "pepper.retire yearly"}, slices.Concat(b.events(t, "peppers/2"), b.events(t, "peppers/1"))); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
		b.other(t) // starts without the old one
		_, err = b.peppers.Rotate(t.Context(), "a\nb")
		wantFault(t, err, fault.ErrInvalid, "bad_reason")
		_, err = b.peppers.Retire(t.Context(), 1, "a\nb")
		wantFault(t, err, fault.ErrInvalid, "bad_reason")
	})
}

// A replica that does not hear of newer generations makes nothing under one that
// was retired.
func TestCreateWhenPepperIsRetired(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		deaf := b.other(t)
		b.partner(t, "acme", PartnerSpec{})
		b.rotate(t)
		b.pass(pepperSettles)
		if _, err := b.peppers.Retire(t.Context(), 1, ""); err != nil {
			t.Fatal(err)
		}
		before := tables(t, db)
		_, err := deaf.keys.Create(t.Context(), APIKey, KeySpec{Partner: "acme", Name: "x"})
		wantFault(t, err, fault.ErrUnavailable, "pepper_retired")
		_, err = deaf.keys.Import(t.Context(), "acme", OriginRaw, 0, items(strongKey()))
		wantFault(t, err, fault.ErrUnavailable, "pepper_retired")
		_, _, err = deaf.Create(t.Context(), Create{Name: "x", Role: Admin})
		wantFault(t, err, fault.ErrUnavailable, "pepper_retired")
		if tables(t, db) != before {
			t.Error("something was made")
		}
		// Within seconds it hears.
		deafPass := func() {
			t.Helper()
			if _, err := deaf.peppers.Pass(t.Context(), b.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		b.tick.Add(int64(pepperEvery))
		deafPass()
		made, err := deaf.keys.Create(t.Context(), APIKey, KeySpec{Partner: "acme", Name: "x"})
		if err != nil || made.Key.PepperGen != 2 {
			t.Errorf("%+v, %v", made.Key, err)
		}
	})
}

// Replicas that rotate at once make generations one after the other.
func TestPepperWhenRotatedAtOnce(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		replicas := []*bed{b, b.other(t)}
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				if _, err := replicas[i%2].peppers.Rotate(t.Context(), ""); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := number(t, db, `SELECT MAX(gen) FROM peppers`); n != 7 || number(t, db, `SELECT COUNT(*) FROM peppers`) != 8 {
			t.Errorf("the newest generation is %d, want 7", n)
		}
		for _, r := range replicas {
			if err := r.peppers.reload(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := r.peppers.live(); !slices.Equal(got, []int64{7, 6, 5, 4, 3, 2, 1}) {
				t.Errorf("live are %v", got)
			}
		}
	})
}

// An id that nobody issued is known by itself.
func TestIssuedWhenIDIsMadeUp(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBed(t, db)
	for range 200 {
		id := b.peppers.newID()
		if !b.peppers.issued(id) || len(id) != idLength || !isBase62(id) {
			t.Fatalf("%s does not count as issued", id)
		}
		for i := range id {
			for _, c := range "0Az" {
				if changed := id[:i] + string(c) + id[i+1:]; changed != id && b.peppers.issued(changed) {
					t.Errorf("%s counts as issued", changed)
				}
			}
		}
		if b.peppers.issued(random(idLength, 12)) || b.peppers.issued(id+"0") || b.peppers.issued(id[:15]) {
			t.Error("a random id counts as issued")
		}
	}
	// It is the same for all replicas and generations, and not for another installation.
	id := b.peppers.newID()
	b.rotate(t)
	if !b.peppers.issued(id) || !b.other(t).peppers.issued(id) {
		t.Error("another replica, or generation, does not know it")
	}
	if newBed(t, storetest.SQLite(t)).peppers.issued(id) {
		t.Error("another installation knows it")
	}
}

// Promise: what can't be written to the trail does not happen.
func TestKeyChangeWhenItsEventCannotBeWritten(t *testing.T) {
	ctx := context.Background()
	for action, do := range map[string]func(b *bed, k, s *Key) error{
		"partner.create": func(b *bed, _, _ *Key) error {
			_, err := b.partners.Create(ctx, "new", PartnerSpec{}, store.Once{Scope: "s", Key: "k"})
			return err
		},
		"partner.update":  func(b *bed, _, _ *Key) error { _, err := b.partners.Update(ctx, "acme", 1, PartnerSpec{}); return err },
		"partner.suspend": func(b *bed, _, _ *Key) error { _, err := b.partners.Suspend(ctx, "acme", ""); return err },
		"partner.resume":  func(b *bed, _, _ *Key) error { _, err := b.partners.Resume(ctx, "asleep", ""); return err },
		"api_key.create": func(b *bed, _, _ *Key) error {
			_, err := b.keys.Create(ctx, APIKey, KeySpec{Partner: "acme", Name: "x", Once: store.Once{Scope: "s", Key: "k"}})
			return err
		},
		"request_secret.create": func(b *bed, _, _ *Key) error {
			_, err := b.keys.Create(ctx, RequestSecret, KeySpec{Partner: "acme", Name: "x"})
			return err
		},
		"request_secret.retire": func(b *bed, _, _ *Key) error { // of the version that expired
			_, err := b.keys.Create(ctx, RequestSecret, KeySpec{Partner: "acme", Name: "over"})
			return err
		},
		"api_key.update":  func(b *bed, k, _ *Key) error { _, err := b.keys.Update(ctx, k.ID, 1, KeySpec{Name: "y"}); return err },
		"api_key.suspend": func(b *bed, k, _ *Key) error { _, err := b.keys.Suspend(ctx, APIKey, "", k.ID, ""); return err },
		"api_key.revoke":  func(b *bed, k, _ *Key) error { _, err := b.keys.Revoke(ctx, APIKey, "", k.ID, "", ""); return err },
		"request_secret.revoke": func(b *bed, _, s *Key) error {
			_, err := b.keys.Revoke(ctx, RequestSecret, "", s.ID, "", "")
			return err
		},
		"request_secret.suspend": func(b *bed, _, s *Key) error { _, err := b.keys.Suspend(ctx, RequestSecret, "", s.ID, ""); return err },
		"api_key.roll":           func(b *bed, k, _ *Key) error { _, _, err := b.keys.Roll(ctx, Roll{Kind: APIKey, ID: k.ID}); return err },
		"request_secret.roll": func(b *bed, _, s *Key) error {
			_, _, err := b.keys.Roll(ctx, Roll{Kind: RequestSecret, Partner: "acme", Name: s.Name})
			return err
		},
		"api_key.import": func(b *bed, _, _ *Key) error {
			_, err := b.keys.Import(ctx, "acme", OriginRaw, 0, items("opensesame1"))
			return err
		},
		"api_key.retire": func(b *bed, _, _ *Key) error { _, err := b.keys.Pass(ctx, b.clock.Now()); return err },
		"pepper.rotate":  func(b *bed, _, _ *Key) error { _, err := b.peppers.Rotate(ctx, ""); return err },
	} {
		t.Run(action, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				b := newBed(t, db)
				b.partner(t, "acme", PartnerSpec{})
				b.partner(t, "asleep", PartnerSpec{})
				if _, err := b.partners.Suspend(t.Context(), "asleep", ""); err != nil {
					t.Fatal(err)
				}
				b.advance(t)
				k, value := b.key(t, KeySpec{})
				s, _ := b.signing(t, KeySpec{Name: "hook"})
				b.signing(t, KeySpec{Name: "over", ExpiresIn: time.Minute})
				old, _ := b.key(t, KeySpec{})
				b.roll(t, Roll{Kind: APIKey, ID: old.ID, Grace: grace(time.Hour)})
				b.pass(2 * time.Hour)
				b.keys.jump = jump{}
				var told int
				b.partners.changes.listen(func(string, string) { told++ })
				mend := breakEvents(t, db, action)
				before := tables(t, db)
				err := do(b, k, s)
				if err == nil || !strings.Contains(err.Error(), "broken by the test") {
					t.Fatalf("it was done without its event: %v", err)
				}
				if after := tables(t, db); after != before {
					t.Errorf("the change is there without its event:\n%s\n\n%s", before, after)
				}
				if told != 0 || !b.accepts(t, k, value) {
					t.Errorf("the caches were told %d times, or the key is gone", told)
				}
				mend()
				if err := do(b, k, s); err != nil {
					t.Fatalf("after the trail was mended: %v", err)
				}
				if n := number(t, db, `SELECT COUNT(*) FROM event_queue WHERE action = $1`, action); n == 0 || tables(t, db) == before {
					t.Error("nothing was done")
				}
			})
		})
	}
}

package apikeys

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func secretValue(s string) secret.Value { return secret.FromString(s) }

// imports takes over one key.
func (d *desk) imports(t testing.TB, partner, origin, value string) Imported {
	t.Helper()
	results, err := d.keys.Import(t.Context(), partner, origin, 0, []ImportItem{{Value: secretValue(value), Scopes: []string{"a"}}})
	if err != nil || results[0].Err != nil {
		t.Fatal(err, results)
	}
	return results[0]
}

// Promise: an imported key is accepted from the moment on at which Import returns,
// in its process, and in others when they have heard of it; and what ends it ends it.
func TestForeignWhenKeysAreImported(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		other := d.replica(t, db, VerifierConfig{})
		d.partner(t, "acme", "a")
		strong, weak, hashed := "sk_prod_9fJ2kLq8Zx7vB3nM5pR1tY6w", "winter-2019", "legacy-0123456789abcdef0123456789"
		d.want(t, strong, nil, ReasonUnknown)
		d.want(t, weak, nil, ReasonUnknown)
		ids := map[string]string{
			strong: d.imports(t, "acme", OriginRaw, strong).ID,
			hashed: d.imports(t, "acme", OriginSHA256, fmt.Sprintf("%x", foreignDigest(hashed))).ID,
		}
		w := d.imports(t, "acme", OriginRaw, weak)
		if ids[weak] = w.ID; !w.Weak {
			t.Fatalf("%q is not weak", weak)
		}
		for value, id := range ids {
			other.want(t, value, nil, ReasonUnknown) // it has not heard of it
			if got := d.want(t, value, &Need{Scopes: []string{"a"}}, ReasonOK); got.Key.ID != id || got.Partner.Name != "acme" {
				t.Errorf("%q is key %s, want %s", value, got.Key.ID, id)
			}
			d.want(t, value+"x", nil, ReasonUnknown)
		}
		other.refresh(t)
		for value, id := range ids {
			for range 2 {
				if got := other.want(t, value, nil, ReasonOK); got.Key.ID != id {
					t.Errorf("%q is key %s, want %s", value, got.Key.ID, id)
				}
			}
			other.want(t, value, &Need{Partner: "other"}, ReasonUnknown)
		}
		loads := d.Stats().Loads
		for value := range ids {
			d.want(t, value, nil, ReasonOK)
		}
		if n := d.Stats().Loads - loads; n != 0 {
			t.Errorf("%d reads for keys in memory", n)
		}
		for value, id := range ids {
			if _, err := other.keys.Revoke(t.Context(), APIKey, "acme", id, "", ""); err != nil {
				t.Fatal(err)
			}
			other.want(t, value, nil, ReasonRevoked)
			d.refresh(t)
			d.want(t, value, nil, ReasonRevoked)
		}
	})
}

// Promise: the slow hash of weak keys can't be used up: what is more than a few in a
// second is told to come again, and a weak key that was proven is answered from memory.
func TestForeignWhenWeakKeysAreGuessed(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	d.partner(t, "acme", "a")
	const weak = "winter-2019"
	d.imports(t, "acme", OriginRaw, weak)
	d.want(t, weak, nil, ReasonOK)
	// Guesses that fall into the same bucket need the slow hash.
	full, _ := d.peppers.lookups(foreignDigest(weak))
	var guesses []string
	for i := 0; len(guesses) < weakRate+6; i++ {
		g := fmt.Sprint("guess-", i)
		if l, _ := d.peppers.lookups(foreignDigest(g)); string(l[0][:bucketSize]) == string(full[0][:bucketSize]) {
			guesses = append(guesses, g)
		}
	}
	var shed, unknown atomic.Int64
	var wg sync.WaitGroup
	for _, g := range guesses {
		wg.Go(func() {
			got, err := d.Verify(context.WithoutCancel(t.Context()), g, nil)
			switch {
			case errors.Is(err, fault.ErrUnavailable):
				shed.Add(1)
			case err == nil && got.Reason == ReasonUnknown:
				unknown.Add(1)
			default:
				t.Errorf("%s, %v", got.Reason, err)
			}
		})
	}
	wg.Wait()
	// The clock of the test stands still, so no second goes by.
	if n := unknown.Load(); n > weakRate || shed.Load() == 0 || n == 0 {
		t.Errorf("%d guesses were hashed, %d shed, at most %d at one instant", n, shed.Load(), weakRate)
	}
	d.want(t, weak, nil, ReasonOK)
	d.pass(time.Second)
	d.want(t, guesses[0], nil, ReasonUnknown)
	loads := d.Stats().Loads
	d.want(t, guesses[0], nil, ReasonUnknown)
	if d.Stats().Loads != loads {
		t.Error("a guess that was made before was read again")
	}
}

// Promise: keys move to the newest pepper by being used, whatever they come from, so
// that the old generation can be retired.
func TestForeignWhenThePepperIsRotated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		other := d.replica(t, db, VerifierConfig{})
		d.partner(t, "acme", "a")
		_, own := d.key(t, KeySpec{Partner: "acme"})
		values := []string{own, "sk_prod_9fJ2kLq8Zx7vB3nM5pR1tY6w", "winter-2019"}
		for _, v := range values[1:] {
			d.imports(t, "acme", OriginRaw, v)
		}
		other.refresh(t)
		for _, v := range values {
			d.want(t, v, nil, ReasonOK)
			other.want(t, v, nil, ReasonOK)
		}
		if _, err := d.peppers.Rotate(t.Context(), "test"); err != nil {
			t.Fatal(err)
		}
		pass := func(d *desk) {
			t.Helper()
			if _, err := d.peppers.Pass(t.Context(), d.clock.Now()); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Pass(t.Context(), d.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		d.pass(pepperEvery)
		pass(other)
		pass(d)
		for _, v := range values { // both at once want to write the new hash
			d.want(t, v, nil, ReasonOK)
			other.want(t, v, nil, ReasonOK)
		}
		pass(d)
		pass(other)
		if n := number(t, db, `SELECT COUNT(*) FROM partner_keys WHERE pepper_gen = 2`); n != 3 {
			t.Fatalf("%d of 3 keys are under the new pepper", n)
		}
		d.pass(time.Hour)
		pass(d)
		pass(other)
		if _, err := d.peppers.Retire(t.Context(), 1, "test"); err != nil {
			t.Fatal(err)
		}
		d.pass(pepperEvery)
		pass(other)
		for _, r := range []*desk{d, other} {
			r.refresh(t)
			r.cache.dropAll()
			for _, v := range values {
				r.want(t, v, nil, ReasonOK)
			}
		}
		d.want(t, values[1]+"x", nil, ReasonUnknown)
	})
}

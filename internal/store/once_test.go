package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func spend(ctx context.Context, db *store.DB, o store.Once, resource string) (prior string, err error) {
	err = db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		prior, err = tx.Once(ctx, o, resource)
		return err
	})
	return prior, err
}

func TestOnceWhenRepeated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		o := store.Once{Scope: "ada/create", Key: "k1", Fingerprint: "f1"}
		want := func(o store.Once, resource, prior string) {
			t.Helper()
			got, err := spend(t.Context(), db, o, resource)
			if err != nil || got != prior {
				t.Errorf("%v: %q, %v, want %q", o, got, err, prior)
			}
		}
		want(o, "r1", "")
		want(o, "r2", "r1")
		want(store.Once{Scope: "bob/create", Key: "k1", Fingerprint: "f1"}, "r3", "") // another scope
		want(store.Once{Scope: "ada/create"}, "r4", "")                               // no key: nothing to remember
		want(store.Once{Scope: "ada/create"}, "r5", "")

		o.Fingerprint = "f2"
		_, err := spend(t.Context(), db, o, "r6")
		if f, ok := errors.AsType[*fault.Error](err); !ok || f.Reason != "idempotency_key_reused" || !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("another request: %v, want fault.ErrInvalid idempotency_key_reused", err)
		}
		for _, key := range []string{strings.Repeat("k", 256), "nul\x00", "\xff"} {
			if _, err := spend(t.Context(), db, store.Once{Scope: "s", Key: key}, "r"); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("key %.10q…: %v, want fault.ErrInvalid", key, err)
			}
		}
		// A rolled back transaction spends nothing.
		_ = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, _ = tx.Once(ctx, store.Once{Scope: "s", Key: "undone"}, "r")
			return errors.New("no")
		})
		want(store.Once{Scope: "s", Key: "undone"}, "r7", "")
	})
}

// Promise: requests with one idempotency key that arrive together make one
// thing.
func TestOnceWhenRaced(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		const racers = 8
		made, given := make([]string, racers), make([]string, racers)
		var all sync.WaitGroup
		for i := range racers {
			all.Go(func() {
				made[i] = fmt.Sprint("r", i)
				prior, err := spend(t.Context(), db, store.Once{Scope: "s", Key: "k", Fingerprint: "f"}, made[i])
				if err != nil {
					t.Errorf("racer %d: %v", i, err)
				}
				given[i] = prior
			})
		}
		all.Wait()
		var winner string
		for i, prior := range given {
			if prior == "" {
				if winner != "" {
					t.Fatalf("both %s and %s were first", winner, made[i])
				}
				winner = made[i]
			}
		}
		for i, prior := range given {
			if prior != "" && prior != winner {
				t.Errorf("racer %d got %q, want %q", i, prior, winner)
			}
		}
	})
}

func TestPruneWhenRowsAreOld(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := storetest.NewClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
		db.Now = clock.Now
		// More than a batch, spent in one transaction to be quick.
		update(t, db, func(ctx context.Context, tx *store.Tx) error {
			for i := range 1001 {
				if _, err := tx.Once(ctx, store.Once{Scope: "s", Key: fmt.Sprint(i)}, "r"); err != nil {
					return err
				}
			}
			return nil
		})
		old := clock.Now()
		clock.Advance(time.Microsecond)
		if _, err := spend(t.Context(), db, store.Once{Scope: "s", Key: "young"}, "r"); err != nil {
			t.Fatal(err)
		}
		if n, err := db.Prune(t.Context(), old); err != nil || n != 0 {
			t.Errorf("nothing is older than the first row: pruned %d, %v", n, err)
		}
		if n, err := db.Prune(t.Context(), clock.Now()); err != nil || n != 1001 {
			t.Errorf("pruned %d, %v, want 1001", n, err)
		}
		if prior, err := spend(t.Context(), db, store.Once{Scope: "s", Key: "young"}, "other"); err != nil || prior != "r" {
			t.Errorf("the young key gives %q, %v, want r", prior, err)
		}
	})
}

func TestLeaseWhenContended(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := storetest.NewClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
		db.Now = clock.Now
		ctx := t.Context()
		const ttl = 10 * time.Second
		acquire := func(holder string, epoch int64) store.Lease {
			t.Helper()
			l, err := db.Acquire(ctx, "sequencer", holder, ttl)
			want := store.Lease{Name: "sequencer", Holder: holder, Epoch: epoch, ExpiresAt: clock.Now().Add(ttl)}
			if err != nil || l != want {
				t.Fatalf("%s acquired %+v, %v, want %+v", holder, l, err, want)
			}
			return l
		}
		held := func(holder string) {
			t.Helper()
			if l, err := db.Acquire(ctx, "sequencer", holder, ttl); !errors.Is(err, store.ErrHeld) || !errors.Is(err, fault.ErrUnavailable) {
				t.Fatalf("%s acquired %+v, %v, want store.ErrHeld", holder, l, err)
			}
		}
		fence := func(l store.Lease) error {
			return db.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return tx.Fence(ctx, l) })
		}
		acquire("a", 1)
		held("b")
		clock.Advance(ttl - time.Microsecond)
		held("b")
		a := acquire("a", 1) // extended
		clock.Advance(ttl - time.Microsecond)
		a, err := db.Renew(ctx, a, ttl)
		if err != nil || a.Epoch != 1 || a.ExpiresAt != clock.Now().Add(ttl) {
			t.Fatalf("renewed: %+v, %v", a, err)
		}
		if err := fence(a); err != nil {
			t.Errorf("fence while held: %v", err)
		}
		clock.Advance(ttl)
		if err := fence(a); !errors.Is(err, fault.ErrChanged) {
			t.Errorf("fence after the expiry: %v, want fault.ErrChanged", err)
		}
		if _, err := db.Renew(ctx, a, ttl); !errors.Is(err, fault.ErrChanged) {
			t.Errorf("renewed after the expiry: %v, want fault.ErrChanged", err)
		}
		b := acquire("b", 2)
		held("a")
		if _, err := db.Renew(ctx, a, ttl); !errors.Is(err, fault.ErrChanged) {
			t.Errorf("a renewed what b holds: %v", err)
		}
		if err := db.Release(ctx, a); err != nil {
			t.Errorf("release of a lost lease: %v", err)
		}
		held("a")
		if err := db.Release(ctx, b); err != nil {
			t.Errorf("release: %v", err)
		}
		if err := fence(b); !errors.Is(err, fault.ErrChanged) {
			t.Errorf("fence after the release: %v, want fault.ErrChanged", err)
		}
		a = acquire("a", 3)
		clock.Advance(ttl)
		acquire("a", 4) // somebody may have held it in between: a new epoch
		if err := fence(a); !errors.Is(err, fault.ErrChanged) {
			t.Errorf("fence with an old epoch: %v, want fault.ErrChanged", err)
		}
		if other, err := db.Acquire(ctx, "other", "b", ttl); err != nil || other.Epoch != 1 {
			t.Errorf("another lease: %+v, %v", other, err)
		}
		if _, err := db.Acquire(ctx, "x", "", ttl); err == nil {
			t.Error("acquired without a holder")
		}
	})
}

// Promise: of processes that want a lease at the same time one gets it.
func TestLeaseWhenRaced(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		won := make([]bool, 8)
		var all sync.WaitGroup
		for i := range won {
			all.Go(func() {
				_, err := db.Acquire(t.Context(), "l", fmt.Sprint("h", i), time.Hour)
				won[i] = err == nil
				if err != nil && !errors.Is(err, store.ErrHeld) {
					t.Errorf("holder %d: %v", i, err)
				}
			})
		}
		all.Wait()
		n := 0
		for _, w := range won {
			if w {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d holders, want 1", n)
		}
	})
}

package apikeys

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

var (
	epoch = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)
	here  = netip.MustParseAddr("192.0.2.7")
)

// bed is a database with both of its clocks in the test's hand, and one replica.
type bed struct {
	*Tokens
	db     *store.DB
	sealer *secret.Sealer
	clock  *storetest.Clock
	tick   *atomic.Int64
}

func newBed(t testing.TB, db *store.DB) *bed {
	t.Helper()
	b := &bed{db: db, clock: storetest.NewClock(epoch), tick: new(atomic.Int64), sealer: newSealer(t)}
	b.follow(db)
	b.Tokens = b.replica(t, db)
	return b
}

func newSealer(t testing.TB) *secret.Sealer {
	t.Helper()
	kek, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	return sealer
}

// follow makes both clocks of a database the test's.
func (b *bed) follow(db *store.DB) {
	db.Now = b.clock.Now
	db.Tick = func() time.Duration { return time.Duration(b.tick.Load()) }
}

// replica is another process on a database of the bed.
func (b *bed) replica(t testing.TB, db *store.DB) *Tokens {
	t.Helper()
	ts, err := New(t.Context(), db, b.sealer)
	if err != nil {
		t.Fatal(err)
	}
	return ts
}

// pass lets time go by, on both clocks.
func (b *bed) pass(d time.Duration) {
	b.clock.Advance(d)
	b.tick.Add(int64(d))
}

// create makes a token and returns it with its value.
func (b *bed) create(t testing.TB, req Create) (*Token, string) {
	t.Helper()
	if req.Name == "" {
		req.Name = "edge-1"
	}
	token, v, err := b.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return token, v.RevealString()
}

func mustVerify(t testing.TB, ts *Tokens, value string, from netip.Addr) *Token {
	t.Helper()
	token, err := ts.Verify(context.WithoutCancel(t.Context()), value, from)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	return token
}

// wantDenied fails unless the token is denied for the reason.
func wantDenied(t testing.TB, ts *Tokens, value string, from netip.Addr, reason string) {
	t.Helper()
	token, err := ts.Verify(context.WithoutCancel(t.Context()), value, from)
	if token != nil {
		t.Fatalf("accepted, want denied: %s", reason)
	}
	wantFault(t, err, fault.ErrDenied, reason)
}

func wantFault(t testing.TB, err, kind error, reason string) {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || !errors.Is(err, kind) || f.Reason != reason {
		t.Fatalf("got error %v, want kind %v with reason %s", err, kind, reason)
	}
}

// exec runs SQL behind the back of the package, as whoever can write to the
// database. It must hit rows.
func exec(t testing.TB, db *store.DB, query string, args ...any) {
	t.Helper()
	err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		res, err := tx.Exec(ctx, query, args...)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			t.Errorf("%s: hit %d rows (%v)", query, n, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// number returns the single number that a query gives.
func number(t testing.TB, db *store.DB, query string, args ...any) (n int64) {
	t.Helper()
	err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, query, args...).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// eventually waits, for at most half a minute, until cond is true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("waited half a minute for: %s", what)
			return
		}
	}
}

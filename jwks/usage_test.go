package jwks

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Promise: every token is counted under its key, in the trail and in what
// predictions are made from, while the database is away as well.
func TestSignIsCounted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		usage := &audit.Usage{DB: db}
		pass := func() error {
			_, err := usage.Pass(t.Context(), b.clock.Now())
			return err
		}
		if err := pass(); err != nil {
			t.Fatal(err)
		}
		b.Keysets = New(Config{DB: db, Local: b.local, Usage: usage})
		b.create(t, "payments", ES256, quick())
		want := map[string]int64{}
		var mu sync.Mutex
		sign := func(n int) {
			t.Helper()
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() {
					s, err := b.Sign(t.Context(), Sign{Name: "payments"})
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					want[s.Kid]++
					mu.Unlock()
				})
			}
			wg.Wait()
		}
		sign(20)
		mend := breakWrites(t, db, "event_queue", "INSERT", "NEW.action = 'signing_key.usage'")
		mendCounts := hideCounts(t, db)
		for range 8 {
			b.clock.Advance(10 * time.Second)
			if err := b.flushUsage(t.Context(), b.clock.Now()); err == nil {
				t.Fatal("counts were written to a table that refuses them")
			}
			err := pass() // fails once a minute is over
			if b.clock.Now().Sub(epoch) >= time.Minute && err == nil {
				t.Fatal("usage was written to a trail that refuses it")
			}
			if err := b.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			sign(3)
		}
		mend()
		mendCounts()
		b.walk(t, quickLead)
		if _, err := b.Rotate(t.Context(), Rotate{Name: "payments"}); err != nil {
			t.Fatal(err)
		}
		sign(7)
		if err := errors.Join(b.Flush(t.Context()), usage.Flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		if len(want) != 2 {
			t.Fatalf("%d keys signed, want 2", len(want))
		}
		for kid, n := range want {
			r, err := audit.Evidence(t.Context(), db, "keysets/payments/keys/"+kid, epoch)
			if err != nil || r.Accepted != n || len(r.Gaps) != 0 {
				t.Errorf("key %s signed %d tokens; the trail says %+v, %v", kid, n, r, err)
			}
			if got := count(t, db, `SELECT SUM(count) FROM signing_counts WHERE kid = $1`, kid); got != n {
				t.Errorf("key %s signed %d tokens; signing_counts says %d", kid, n, got)
			}
		}
	})
}

// hideCounts makes the database refuse signing counts, until the returned function is called.
func hideCounts(t *testing.T, db *store.DB) (mend func()) {
	t.Helper()
	mustExec(t, db, `ALTER TABLE signing_counts RENAME TO hidden`)
	return func() {
		t.Helper()
		mustExec(t, db, `ALTER TABLE hidden RENAME TO signing_counts`)
	}
}

// Counts that can't be written for long are put together, and none is lost.
func TestSigningCountsWhenTheyCannotBeWrittenForLong(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBed(t, db)
	mend := hideCounts(t, db)
	counts := map[signingCount]int64{}
	for i := range int64(maxUnwritten) {
		counts[signingCount{"set", fmt.Sprint(i % 100), i}] = 2
	}
	b.usage.unwritten = counts
	s := &signing{keysetID: "set", kid: "0"}
	b.usage.add(s)
	if err := b.flushUsage(t.Context(), b.clock.Now()); err == nil {
		t.Fatal("counts were written to a table that is not there")
	}
	if n := len(b.usage.unwritten); n != 100 {
		t.Errorf("%d counts are kept apart, want one for each of 100 keys", n)
	}
	mend()
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := count(t, db, `SELECT SUM(count) FROM signing_counts`); got != 2*maxUnwritten+1 {
		t.Errorf("%d tokens are counted, want %d", got, 2*maxUnwritten+1)
	}
}

// The leads are started anew whatever another replica changes at the moment.
func TestServedWhenAnotherReplicaChanges(t *testing.T) {
	b, all := replicas(t, 2)
	for i := range 4 {
		b.create(t, fmt.Sprintf("set-%d", i), ES256, quick())
	}
	for round := range 15 {
		if err := b.served(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.clock.Advance(time.Hour)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for range 4 {
					_, err := all[1].UpdatePolicy(t.Context(), UpdatePolicy{Name: fmt.Sprintf("set-%d", i), Policy: quick()})
					if err != nil && !errors.Is(err, fault.ErrChanged) {
						t.Errorf("round %d: %v", round, err)
					}
				}
			})
		}
		wg.Go(func() {
			if err := b.served(t.Context()); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		})
		wg.Wait()
		for i := range 4 {
			if k := b.get(t, fmt.Sprintf("set-%d", i)).Standby(); !k.ServedSince.Equal(b.clock.Now()) {
				t.Errorf("round %d: the lead of set-%d began at %s", round, i, k.ServedSince)
			}
		}
		if t.Failed() {
			return
		}
	}
}

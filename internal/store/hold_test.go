package store_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// One of several holders runs at a time; when it ends, loses its lease or fails,
// another run begins.
func TestHold(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var running, runs, most atomic.Int64
		boom := errors.New("boom")
		told := make(chan error, 100)
		work := func(ctx context.Context, _ store.Lease) error {
			if n := running.Add(1); n > most.Load() {
				most.Store(n)
			}
			defer running.Add(-1)
			if runs.Add(1)%3 == 0 {
				return boom
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			return nil
		}
		var holders sync.WaitGroup
		for _, name := range []string{"a", "b", "c"} {
			holders.Go(func() {
				db.Hold(ctx, "work", name, 200*time.Millisecond, work, func(err error) { told <- err })
			})
		}
		for runs.Load() < 9 {
			time.Sleep(time.Millisecond)
		}
		if err := <-told; !errors.Is(err, boom) {
			t.Errorf("told of %v", err)
		}
		stop()
		holders.Wait()
		if most.Load() != 1 {
			t.Errorf("%d ran at once", most.Load())
		}
		// What ended gave the lease back.
		if _, err := db.Acquire(t.Context(), "work", "d", time.Minute); err != nil {
			t.Error(err)
		}
	})
}

// A run whose lease another one took is ended.
func TestHoldWhenLeaseIsLost(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		began := make(chan store.Lease, 10)
		ended := make(chan struct{}, 10)
		told := make(chan error, 10)
		go db.Hold(ctx, "work", "a", 200*time.Millisecond, func(ctx context.Context, l store.Lease) error {
			began <- l
			<-ctx.Done()
			ended <- struct{}{}
			return nil
		}, func(err error) { told <- err })
		lease := <-began
		if err := db.Release(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
		<-ended
		if err := <-told; err == nil {
			t.Error("nothing is told")
		}
		if again := <-began; again.Epoch <= lease.Epoch {
			t.Errorf("epoch %d after %d", again.Epoch, lease.Epoch)
		}
	})
}

// A wake-up reaches who listens in this process after the commit, and who listens
// in another one by way of the database.
func TestListen(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		woken, stop := db.Listen("topic")
		other, stopOther := db.Listen("other")
		defer stopOther()
		boom := errors.New("boom")
		err := db.Update(t.Context(), func(_ context.Context, tx *store.Tx) error {
			tx.Wake("topic")
			return boom
		})
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
		select {
		case <-woken:
			t.Error("a rollback wakes")
		default:
		}
		for range 3 { // becomes one
			if err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error { return tx.Announce(ctx, "topic") }); err != nil {
				t.Fatal(err)
			}
		}
		<-woken
		select {
		case <-woken:
			t.Error("woken twice")
		case <-other:
			t.Error("another topic wakes")
		default:
		}
		stop()
	})
}

func TestRelay(t *testing.T) {
	url := storetest.Postgres(t)
	a, b := storetest.Open(t, url), storetest.Open(t, url)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { b.Relay(ctx, func(err error) { t.Errorf("relay: %v", err) }) })
	defer running.Wait()
	defer stop()
	woken, end := b.Listen("topic")
	defer end()
	<-woken // it has connected
	if err := a.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error { return tx.Announce(ctx, "topic") }); err != nil {
		t.Fatal(err)
	}
	<-woken
}

// Statements of a snapshot do not see what others commit meanwhile.
func TestSnapshot(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newTable(t, db)
		if db.Dialect() == "sqlite" {
			return // the writer is alone
		}
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			if err := tx.Snapshot(ctx); err != nil {
				return err
			}
			count := func() (n int, err error) {
				err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM things`).Scan(&n)
				return n, err
			}
			before, err := count()
			if err != nil {
				return err
			}
			err = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.Exec(ctx, insertThing, 1, "one", "active")
				return err
			})
			if err != nil {
				return err
			}
			after, err := count()
			if err == nil && after != before {
				t.Errorf("%d rows, then %d", before, after)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

package apikeys

import (
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Promise: of all who spend a nonce at the same time one is told that it is fresh.
func TestNoncesWhenManySpendAtOnce(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		all := []*DBNonces{NewNonces(db), NewNonces(db)}
		const nonces, spenders = 60, 12
		var fresh [nonces]atomic.Int64
		var wg sync.WaitGroup
		for i := range nonces * spenders {
			wg.Go(func() {
				ok, err := all[i%2].Spend(context.WithoutCancel(t.Context()), "key", fmt.Sprint(i%nonces), epoch)
				if err != nil {
					t.Error(err)
				}
				if ok {
					fresh[i%nonces].Add(1)
				}
			})
		}
		wg.Wait()
		for i := range fresh {
			if n := fresh[i].Load(); n != 1 {
				t.Errorf("nonce %d was fresh %d times", i, n)
			}
		}
		if ok, err := all[0].Spend(t.Context(), "other key", "1", epoch); err != nil || !ok {
			t.Errorf("the same nonce of another key: %v, %v", ok, err)
		}
	})
}

// Promise: a nonce that was answered to be fresh stays spent when the process is
// killed right then.
func TestNoncesWhenTheProcessIsKilled(t *testing.T) {
	const variable = "ROTUNDA_TEST_SPEND"
	if url := os.Getenv(variable); url != "" { // the child
		db := storetest.Open(t, url)
		if fresh, err := NewNonces(db).Spend(t.Context(), "key", "nonce", epoch); err != nil || !fresh {
			t.Fatal(fresh, err)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	for name, url := range map[string]string{"sqlite": storetest.SQLiteURL(t), "postgres": storetest.Postgres(t)} {
		t.Run(name, func(t *testing.T) {
			child := osexec.Command(os.Args[0], "-test.run=^TestNoncesWhenTheProcessIsKilled$")
			child.Env = append(os.Environ(), variable+"="+url)
			out, err := child.CombinedOutput()
			if e, ok := errors.AsType[*osexec.ExitError](err); !ok || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the child ended by itself: %v\n%s", err, out)
			}
			if fresh, err := NewNonces(storetest.Open(t, url)).Spend(t.Context(), "key", "nonce", epoch); err != nil || fresh {
				t.Errorf("after the kill: fresh %v, %v", fresh, err)
			}
		})
	}
}

// Promise: when nobody knows whether a nonce is spent, the request is refused.
func TestNoncesWhenTheDatabaseIsStopped(t *testing.T) {
	server := storetest.NewServer(t)
	d := newDesk(t, storetest.Open(t, server.Database(t)))
	d.partner(t, "acme")
	k, key, _ := d.secret(t, KeySpec{Partner: "acme"})
	d.wantRequest(t, signed(t, k.ID, key, d.clock.Now(), nil), ReasonOK)
	server.Stop(t)
	r := signed(t, k.ID, key, d.clock.Now(), nil)
	if got, _, err := d.VerifyRequest(t.Context(), r); !errors.Is(err, fault.ErrUnavailable) || got.Reason != 0 {
		t.Errorf("%s, %v", got.Reason, err)
	}
	server.Start(t)
	eventually(t, "nonces are spent again", func() bool {
		got, _, err := d.VerifyRequest(t.Context(), signed(t, k.ID, key, d.clock.Now(), nil))
		return err == nil && got.Reason == ReasonOK
	})
	d.wantRequest(t, r, ReasonOK)
	d.wantRequest(t, r, ReasonReplay)
}

// Nonces are forgotten when a replay would be too old, and not before.
func TestNoncesWhenTheyAreOld(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		d.partner(t, "acme")
		k, key, _ := d.secret(t, KeySpec{Partner: "acme"})
		r := signed(t, k.ID, key, d.clock.Now(), nil)
		d.wantRequest(t, r, ReasonOK)
		for i := range 24 {
			if _, err := d.Pass(t.Context(), d.clock.Now()); err != nil {
				t.Fatal(err)
			}
			d.refresh(t)
			if got, _, err := d.VerifyRequest(t.Context(), r); err != nil || got.Reason != ReasonReplay && got.Reason != ReasonWindow {
				t.Fatalf("at %s: %s, %v", d.clock.Now(), got.Reason, err)
			}
			if i < 12 {
				d.pass(35 * time.Second) // over the end of the window
			} else {
				d.pass(6 * time.Minute) // over what any policy allows
			}
		}
		if n := d.nonces(t); n != 0 {
			t.Errorf("%d nonces are left", n)
		}
	})
}

// BenchmarkNonces is how many nonces a second a database takes, from 64 who spend at
// a time.
func BenchmarkNonces(b *testing.B) {
	for name, open := range map[string]func() *store.DB{"sqlite": func() *store.DB { return storetest.SQLite(b) }, "postgres": func() *store.DB { return storetest.Open(b, storetest.Postgres(b)) }} {
		b.Run(name, func(b *testing.B) {
			n := NewNonces(open())
			var next atomic.Int64
			b.SetParallelism(32)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if fresh, err := n.Spend(context.Background(), "0123456789abcdef", fmt.Sprintf("%020d", next.Add(1)), epoch); err != nil || !fresh {
						b.Error(fresh, err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "nonces/s")
		})
	}
}

package apikeys

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// boundOthers is what the comment of Verifier promises of other replicas, a second
// and a query, with room for a machine that is busy with other tests.
const boundOthers = 3 * time.Second

// pair is two replicas on one PostgreSQL, with real clocks, that follow changes as
// in production.
func pair(t *testing.T) [2]*desk {
	t.Helper()
	url := storetest.Postgres(t)
	first := newDesk(t, storetest.Open(t, url))
	second := &desk{db: storetest.Open(t, url), clock: first.clock, tick: first.tick, sealer: first.sealer}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	out := [2]*desk{first, second}
	for _, d := range out {
		now, begun := d.db, time.Now()
		d.start(t, VerifierConfig{})
		now.Now = func() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
		now.Tick = func() time.Duration { return time.Since(begun) }
		d.refresh(t)
		wg.Go(func() { d.Follow(ctx) })
		wg.Go(func() {
			d.db.Relay(ctx, func(err error) { t.Errorf("relay: %v", err) })
		})
	}
	t.Cleanup(func() {
		stop()
		wg.Wait()
	})
	return out
}

// Promise: after Revoke has returned, its own process accepts the key never again,
// and every other one within a second and a query. Suspensions and scopes likewise.
func TestRefreshWhenKeysAreRevokedUnderLoad(t *testing.T) {
	d := pair(t)
	d[0].partner(t, "acme", "a")
	const trials = 60
	var most [2]time.Duration
	var verified, accepted atomic.Int64
	for trial := range trials {
		at := trial % 2 // who revokes
		k, value := d[at].key(t, KeySpec{Partner: "acme", Scopes: []string{"a"}, Name: fmt.Sprint(trial)})
		need := &Need{Scopes: []string{"a"}}
		for _, r := range d {
			r.want(t, value, need, ReasonOK)
		}
		var over atomic.Int64 // when Revoke had returned
		var last [2]atomic.Int64
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i, r := range d {
			for range 2 {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						begun := time.Now().UnixNano()
						got, err := r.Verify(context.Background(), value, need)
						if err != nil {
							t.Error(err)
							return
						}
						verified.Add(1)
						if got.Reason != ReasonOK {
							continue
						}
						accepted.Add(1)
						if o := over.Load(); o > 0 && begun > o {
							for old := last[i].Load(); begun-o > old && !last[i].CompareAndSwap(old, begun-o); old = last[i].Load() {
							}
						}
					}
				})
			}
		}
		time.Sleep(3 * time.Millisecond) // the storm is on
		if _, err := d[at].keys.Revoke(t.Context(), APIKey, "acme", k.ID, KeyCompromise, ""); err != nil {
			t.Fatal(err)
		}
		over.Store(time.Now().UnixNano())
		eventually(t, "the other replica hears of it", func() bool {
			got, err := d[1-at].Verify(context.Background(), value, need)
			return err == nil && got.Reason == ReasonRevoked
		})
		time.Sleep(3 * time.Millisecond)
		close(stop)
		wg.Wait()
		if own := last[at].Load(); own > 0 {
			t.Fatalf("trial %d: the process that revoked it accepted the key %s later", trial, time.Duration(own))
		}
		most[at] = max(most[at], time.Duration(last[1-at].Load()))
	}
	if m := max(most[0], most[1]); m > boundOthers {
		t.Errorf("a revoked key was accepted by another replica for %s, the bound is %s", m, boundOthers)
	}
	if accepted.Load() < trials || verified.Load() <= accepted.Load() {
		t.Errorf("%d verifications, %d accepted: there was no load", verified.Load(), accepted.Load())
	}
	t.Logf("%d revocations under %d verifications: accepted by the same process never, by the other for %s at most", trials, verified.Load(), max(most[0], most[1]))
}

// Promise: a roll under load refuses neither key inside the grace, and after it the
// old one is refused by both replicas.
func TestRefreshWhenKeysAreRolledUnderLoad(t *testing.T) {
	d := pair(t)
	d[0].partner(t, "acme", "a")
	for trial := range 3 {
		k, value := d[0].key(t, KeySpec{Partner: "acme", Name: fmt.Sprint(trial)})
		type use struct {
			begun, ended time.Time
			replica      int
			old          bool
			reason       Reason
		}
		var mu sync.Mutex
		var uses []use
		var successor atomic.Pointer[string]
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i, r := range d {
			wg.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					v, old := value, true
					if s := successor.Load(); s != nil && n%2 == 0 {
						v, old = *s, false
					}
					u := use{begun: time.Now(), replica: i, old: old}
					got, err := r.Verify(context.Background(), v, nil)
					if err != nil {
						t.Error(err)
						return
					}
					u.ended, u.reason = time.Now(), got.Reason
					mu.Lock()
					uses = append(uses, u)
					mu.Unlock()
					time.Sleep(20 * time.Microsecond)
				}
			})
		}
		grace := 2 * boundOthers / 3
		made, old, err := d[0].keys.Roll(t.Context(), Roll{Kind: APIKey, Partner: "acme", ID: k.ID, Grace: &grace})
		if err != nil {
			t.Fatal(err)
		}
		next := made.Value.RevealString()
		successor.Store(&next)
		time.Sleep(time.Until(old.GraceEndsAt.Add(boundOthers / 10)))
		close(stop)
		wg.Wait()
		n := [2][2]int{} // by old, accepted
		for _, u := range uses {
			ok := u.reason == ReasonOK
			switch {
			case !u.old && !ok:
				t.Fatalf("replica %d says %s of the new key", u.replica, u.reason)
			case u.old && !ok && u.ended.Before(old.GraceEndsAt):
				t.Fatalf("replica %d says %s of the old key %s before the end of its grace", u.replica, u.reason, old.GraceEndsAt.Sub(u.ended))
			case u.old && ok && u.begun.After(old.GraceEndsAt):
				t.Fatalf("replica %d accepts the old key %s after the end of its grace", u.replica, u.begun.Sub(old.GraceEndsAt))
			}
			n[map[bool]int{true: 1}[u.old]][map[bool]int{true: 1}[ok]]++
		}
		if n[0][1] == 0 || n[1][0] == 0 || n[1][1] == 0 {
			t.Errorf("of new and old keys, denied and accepted: %v", n)
		}
	}
}

// Promise: while the database is away, keys in memory are accepted for StaleFor and
// then nobody is; what is not in memory is not answered; all is well when it is back.
func TestRefreshWhenTheDatabaseIsStopped(t *testing.T) {
	server := storetest.NewServer(t)
	d := newDesk(t, storetest.Open(t, server.Database(t)))
	d.start(t, VerifierConfig{StaleFor: time.Minute, Log: slog.New(slog.DiscardHandler)})
	d.partner(t, "acme", "a")
	_, known := d.key(t, KeySpec{Partner: "acme"})
	_, cold := d.key(t, KeySpec{Partner: "acme"})
	d.want(t, known, nil, ReasonOK)
	server.Stop(t)
	away := func(value string) {
		t.Helper()
		if got, err := d.Verify(t.Context(), value, nil); !errors.Is(err, fault.ErrUnavailable) || got.Reason != 0 {
			t.Errorf("%s, %v", got.Reason, err)
		}
	}
	if err := d.Refresh(t.Context()); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("refresh: %v", err)
	}
	d.pass(time.Minute)
	d.want(t, known, nil, ReasonOK)
	away(cold)
	d.want(t, "rk_live_nonsense", nil, ReasonUnknown)
	d.pass(1)
	away(known)
	away(cold)
	d.want(t, "rk_live_nonsense", nil, ReasonUnknown)
	if b := d.Stats().Behind; b != time.Minute+1 {
		t.Errorf("behind by %s", b)
	}
	server.Start(t)
	eventually(t, "changes are heard again", func() bool { return d.Refresh(t.Context()) == nil })
	d.want(t, known, nil, ReasonOK)
	d.want(t, cold, nil, ReasonOK)
}

// A Verifier that has heard nothing yet answers nothing.
func TestRefreshWhenItWasNeverCalled(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	d.partner(t, "acme")
	_, value := d.key(t, KeySpec{Partner: "acme"})
	v, err := NewVerifier(d.cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{value, "an-imported-key-or-not"} {
		if _, err := v.Verify(t.Context(), value, nil); !errors.Is(err, fault.ErrUnavailable) {
			t.Errorf("%v", err)
		}
	}
}

// What names nothing that is known drops everything, and so does a trail that was
// put back to what it once was.
func TestRefreshWhenNamesAreUnknown(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	d.partner(t, "acme", "a")
	_, value := d.key(t, KeySpec{Partner: "acme"})
	for _, name := range []string{"acme/something/new", "acme/api_keys", "acme/api_keys/a/b"} {
		d.want(t, value, nil, ReasonOK)
		d.dropNamed(name)
		if n := d.Stats().Entries; n != 0 {
			t.Errorf("%d entries after %q", n, name)
		}
	}
	d.want(t, value, nil, ReasonOK)
	d.next = 1 << 40
	d.refresh(t)
	if n := d.Stats().Entries; n != 0 || d.next > 1<<30 {
		t.Errorf("%d entries, next %d", n, d.next)
	}
}

// Two who verify while the partner is suspended don't bring its old state back.
func TestRefreshWhenAPartnerIsSuspendedWhileItIsRead(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	d.partner(t, "acme", "a")
	_, value := d.key(t, KeySpec{Partner: "acme"})
	for range 100 {
		o := d.owners.get("acme")
		o.drop()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if _, err := d.Verify(context.WithoutCancel(t.Context()), value, nil); err != nil {
					t.Error(err)
				}
			})
		}
		if _, err := d.partners.Suspend(t.Context(), "acme", ""); err != nil {
			t.Fatal(err)
		}
		d.want(t, value, nil, ReasonSuspended)
		wg.Wait()
		d.want(t, value, nil, ReasonSuspended)
		if _, err := d.partners.Resume(t.Context(), "acme", ""); err != nil {
			t.Fatal(err)
		}
		d.want(t, value, nil, ReasonOK)
	}
}

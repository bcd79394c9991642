package jwks

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// replicas are processes on one PostgreSQL database, with clocks that agree.
func replicas(t *testing.T, n int) (*bed, []*Keysets) {
	t.Helper()
	url := storetest.Postgres(t)
	b := newBed(t, storetest.Open(t, url))
	all := []*Keysets{b.Keysets}
	for len(all) < n {
		db := storetest.Open(t, url)
		follow(db, b.clock)
		all = append(all, New(Config{DB: db, Local: b.local}))
	}
	return b, all
}

// Promise: however many replicas pass and rotate at once, there is one active
// key, and each transition is in the trail once.
func TestReplicasWhenTheyPassAndRotateAtOnce(t *testing.T) {
	b, all := replicas(t, 2)
	names := []string{"a", "b", "c"}
	for _, name := range names {
		b.create(t, name, ES256, quick())
	}
	const rounds = 60
	versions := map[string]int64{}
	var rotations atomic.Int64
	for round := range rounds {
		b.clock.Advance([]time.Duration{servedGap, servedGap, minGap, minGap, minGap}[round%5])
		var wg sync.WaitGroup
		for i, ks := range all {
			wg.Go(func() {
				for range 2 {
					if _, err := ks.Pass(t.Context(), b.clock.Now()); err != nil {
						t.Errorf("round %d, replica %d: a pass failed: %v", round, i, err)
					}
				}
			})
			for _, name := range names {
				for range 3 {
					wg.Go(func() {
						_, err := ks.Rotate(t.Context(), Rotate{Name: name})
						switch {
						case err == nil:
							rotations.Add(1)
						case errors.Is(err, fault.ErrChanged), errors.Is(err, fault.ErrTransition):
						default:
							t.Errorf("round %d, replica %d: %v", round, i, err)
						}
					})
					wg.Go(func() {
						if _, err := ks.Sign(t.Context(), Sign{Name: name}); err != nil && round > 0 {
							t.Errorf("round %d, replica %d: %v", round, i, err)
						}
					})
				}
			}
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		for _, name := range names {
			set := b.get(t, name)
			if got := kids(set); len(got[Active]) != 1 || len(got[Pending]) > 1 {
				t.Fatalf("round %d: %v", round, got)
			}
			if set.Version < versions[name] {
				t.Fatalf("round %d: version %d after %d", round, set.Version, versions[name])
			}
			versions[name] = set.Version
		}
	}
	// What the table says happened is in the trail, once.
	for action, query := range map[string]string{
		"signing_key.pending":  `SELECT COUNT(*) FROM signing_keys`,
		"signing_key.active":   `SELECT COUNT(*) FROM signing_keys WHERE activated_at > 0`,
		"signing_key.retiring": `SELECT COUNT(*) FROM signing_keys WHERE demoted_at > 0`,
		"signing_key.retired":  `SELECT COUNT(*) FROM signing_keys WHERE withdrawn_at > 0`,
	} {
		want := count(t, b.db, query)
		if action == "signing_key.pending" {
			want -= int64(len(names)) // the first keys were never pending
		}
		seen := map[string]int{}
		for _, e := range b.events(t, action) {
			seen[e.Resource]++
		}
		for resource, n := range seen {
			if n != 1 {
				t.Errorf("%s of %s is in the trail %d times", action, resource, n)
			}
		}
		if int64(len(seen)) != want {
			t.Errorf("%s: %d keys in the trail, %d in the table", action, len(seen), want)
		}
	}
	if got := count(t, b.db, `SELECT COUNT(*) FROM signing_keys WHERE demoted_at > 0`); got < rotations.Load() || rotations.Load() < 3 {
		t.Errorf("%d rotations were acknowledged, %d keys were demoted", rotations.Load(), got)
	}
	for _, ks := range all {
		if err := ks.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if string(ks.Document(name).Body) != string(b.Document(name).Body) {
				t.Errorf("the replicas serve different documents of %s", name)
			}
		}
	}
}

// An update that names the version that it read never overwrites another one.
func TestReplicasWhenTheyUpdateAPolicyAtOnce(t *testing.T) {
	b, all := replicas(t, 2)
	b.create(t, "payments", ES256, quick())
	var done atomic.Int64
	for round := range 40 {
		read := b.get(t, "payments").PolicyVersion
		var won atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				p := quick()
				p.MaxAge = time.Duration(i+1) * time.Second
				_, err := all[i%2].UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: p, Version: read})
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, fault.ErrChanged) {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("round %d: %d updates of version %d were accepted, want 1", round, won.Load(), read)
		}
		done.Add(1)
		b.clock.Advance(time.Second)
	}
	if got := b.get(t, "payments").PolicyVersion; got != 1+done.Load() {
		t.Errorf("policy version %d after %d updates", got, done.Load())
	}
}

// One idempotency key, many requests at once: one keyset.
func TestReplicasWhenOneCreateIsRepeatedAtOnce(t *testing.T) {
	b, all := replicas(t, 2)
	for round := range 5 {
		req := Create{Name: fmt.Sprintf("set-%d", round), Issuer: "https://a.b", Policy: quick()}
		req.Once.Scope, req.Once.Key, req.Once.Fingerprint = "s", req.Name, "f"
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				set, err := all[i%2].Create(t.Context(), req)
				if err != nil || set.Name != req.Name || len(set.Keys) != 2 {
					t.Errorf("request %d: %v", i, err)
				}
			})
		}
		wg.Wait()
	}
	if n := count(t, b.db, `SELECT COUNT(*) FROM signing_keys`); n != 10 {
		t.Errorf("%d keys of 5 keysets", n)
	}
	if n := len(b.events(t, "keyset.create")); n != 5 {
		t.Errorf("%d creations in the trail", n)
	}
}

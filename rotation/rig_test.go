package rotation

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

// rigEpoch is a Monday, and a whole second.
var rigEpoch = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

// rig is one system in memory, which accepts and serves, and one replica that rotates in it,
// on a clock that only the test moves.
type rig struct {
	*Rotations
	t       testing.TB
	db      *store.DB
	clock   *storetest.Clock
	sealer  *secret.Sealer
	memory  *providerstest.Memory
	plan    *providerstest.Plan // of what goes wrong
	systems *Systems
	creds   *Credentials
	kinds   SystemsConfig
}

type rigConfig struct {
	memory   providerstest.MemoryConfig
	traits   func(*providers.Traits)
	quota    float64
	rotation func(*RotationsConfig)
}

func newRig(t testing.TB, db *store.DB, c rigConfig) *rig {
	t.Helper()
	clock := storetest.NewClock(rigEpoch)
	db.Now = clock.Now
	db.Tick = func() time.Duration { return clock.Now().Sub(rigEpoch) }
	kek, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek.json"))
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	c.memory.Now = clock.Now
	r := &rig{t: t, db: db, clock: clock, sealer: sealer, memory: providerstest.NewMemory(c.memory), plan: &providerstest.Plan{}}
	target, shelf := r.memory.System().TargetKind(), r.memory.System().StoreKind()
	if c.traits != nil {
		c.traits(&target.Traits)
	}
	shelf.Traits.Quota = c.quota
	openTarget, openStore := target.Open, shelf.Open
	target.Open = func(ctx context.Context, cfg providers.Config) (providers.Target, error) {
		inner, err := openTarget(ctx, cfg)
		return providerstest.BrokenTarget(inner, r.plan), err
	}
	shelf.Open = func(ctx context.Context, cfg providers.Config) (providers.Store, error) {
		inner, err := openStore(ctx, cfg)
		return providerstest.BrokenStore(inner, r.plan), err
	}
	r.kinds = SystemsConfig{DB: db, Sealer: sealer, Targets: []providers.TargetKind{target}, Stores: []providers.StoreKind{shelf}}
	r.systems, r.Rotations = r.replica(c.rotation)
	if r.creds, err = NewCredentials(CredentialsConfig{DB: db, Systems: r.systems, Rotations: r.Rotations}); err != nil {
		t.Fatal(err)
	}
	for sort, kind := range map[Sort]string{TargetSort: "memory", StoreSort: "memory"} {
		if _, err := r.systems.Create(t.Context(), sort, "mem", SystemSpec{Kind: kind}, store.Once{}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// replica is another process on the same database.
func (r *rig) replica(change func(*RotationsConfig)) (*Systems, *Rotations) {
	r.t.Helper()
	s, err := NewSystems(r.t.Context(), r.kinds)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			r.t.Errorf("close the systems: %v", err)
		}
	})
	cfg := RotationsConfig{DB: r.db, Sealer: r.sealer, Systems: s}
	if change != nil {
		change(&cfg)
	}
	rs, err := NewRotations(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return s, rs
}

// credential makes one with its account, and a place "kv/NAME" in the store.
func (r *rig) credential(name string, strategy providers.Strategy, change func(*Spec)) *Credential {
	r.t.Helper()
	r.memory.Account(name)
	spec := Spec{Target: "mem", Strategy: strategy, Params: map[string]string{"account": name}, Stores: []Placement{{Store: "mem", Path: "kv/" + name}}}
	if strategy != providers.Replace {
		spec.Grace = time.Hour
	}
	if change != nil {
		change(&spec)
	}
	c, err := r.creds.Create(r.t.Context(), name, spec, store.Once{})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) start(name string, change func(*StartRequest)) *Rotation {
	r.t.Helper()
	r.clock.Advance(time.Millisecond) // ids of one instant have no order
	req := StartRequest{Credential: name, Reason: "test"}
	if change != nil {
		change(&req)
	}
	run, err := r.Start(r.t.Context(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	return run
}

// settle passes, moving the clock to what is due next, until the run is at one of the steps.
func (r *rig) settle(id string, steps ...Step) *Rotation {
	r.t.Helper()
	for range 500 {
		run := r.get(id)
		if slices.Contains(steps, run.Step) {
			return run
		}
		next, err := r.Pass(r.t.Context(), r.clock.Now())
		if err != nil {
			r.t.Fatalf("pass: %v", err)
		}
		if next.After(r.clock.Now()) {
			r.clock.Set(next)
		}
	}
	run := r.get(id)
	r.t.Fatalf("rotation %s came to %s (%s %s), want one of %v", id, run.Step, run.ErrorReason, run.Error, steps)
	return nil
}

func (r *rig) get(id string) *Rotation {
	r.t.Helper()
	run, err := r.Get(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return run
}

// rotate makes a whole rotation.
func (r *rig) rotate(name string) *Rotation {
	r.t.Helper()
	return r.settle(r.start(name, nil).ID, StepDone)
}

// values are all sealed values of a credential, by generation.
func (r *rig) values(name string) map[int64]providers.Held {
	r.t.Helper()
	held := map[int64]providers.Held{}
	err := r.db.View(r.t.Context(), func(ctx context.Context, tx *store.Tx) error {
		list, err := readVersions(ctx, tx, r.systems.key, name, 1000)
		if err != nil {
			return err
		}
		for _, v := range list {
			h := v.held()
			if h.Fields, err = openVersion(ctx, r.sealer, v); err != nil {
				return err
			}
			if h.Fields != nil {
				held[v.Generation] = h
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return held
}

func (r *rig) serves(name string) providers.Held {
	f := r.memory.Serves("kv/" + name)
	return providers.Held{Account: f.Text("username"), Fields: f}
}

// count runs a query for one number.
func (r *rig) count(query string, args ...any) (n int) {
	r.t.Helper()
	err := r.db.View(r.t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, query, args...).Scan(&n)
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// check is the invariant at every instant: what consumers read is accepted, or a value that
// is sealed with us is; nothing is accepted that we have no record of; and every intent
// that ended did so once.
func (r *rig) check(name string, strategy providers.Strategy) error {
	r.t.Helper()
	served := r.serves(name)
	held := r.values(name)
	accepted := false
	for _, h := range held {
		accepted = accepted || r.memory.Accepts(h)
	}
	if served.Fields != nil && !r.memory.Accepts(served) && (strategy != providers.Replace || !accepted) {
		return fmt.Errorf("consumers of %s read a value that is not accepted (%d sealed values, accepted: %t)", name, len(held), accepted)
	}
	ends := map[string]int{}
	for _, e := range r.events("") {
		if ends[e.Intent]++; e.Intent != "" && ends[e.Intent] > 1 {
			return fmt.Errorf("%s ended twice", e.Action)
		}
	}
	return nil
}

// events are the newest 1,000 events of an action.
func (r *rig) events(action string) []audit.Event {
	r.t.Helper()
	list, _, err := audit.List(r.t.Context(), r.db, audit.Query{Action: action, Limit: 1000})
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

func (r *rig) open() int {
	r.t.Helper()
	list, err := audit.OpenIntents(r.t.Context(), r.db, r.clock.Now().Add(time.Hour), 0)
	if err != nil {
		r.t.Fatal(err)
	}
	return len(list)
}

// ended is what has to be true besides once every run of a credential has ended: nothing is left.
func (r *rig) ended(name string) error {
	r.t.Helper()
	if n := r.open(); n > 0 {
		return fmt.Errorf("%d intents have no end", n)
	}
	if left := r.memory.Staged("kv/" + name); left != nil {
		return fmt.Errorf("a staged copy is left in the store")
	}
	known := r.values(name)
	ids := map[string]bool{}
	for _, h := range known {
		ids[h.ID] = true
	}
	if n := len(r.memory.Keys(name)); n > len(known)+1 {
		return fmt.Errorf("the target holds %d values, %d are in our records", n, len(known))
	}
	for _, id := range r.memory.Keys(name) {
		if id != "" && !ids[id] {
			return fmt.Errorf("the target holds the key %s, which is not in our records", id)
		}
	}
	return nil
}

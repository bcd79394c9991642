package rotation

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

func TestRunOfAProcessThatDiedIsTakenOver(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		r.credential("a", providers.Dual, nil)
		run := r.start("a", nil)
		// A process that claims and never comes back.
		_, dead := r.replica(func(c *RotationsConfig) { c.Holder = "dead" })
		if err := dead.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		jobs, err := dead.claim(t.Context(), 1, 1)
		if err != nil || len(jobs) != 1 {
			t.Fatalf("%d runs were claimed: %v", len(jobs), err)
		}
		r.clock.Advance(DefaultLease - time.Millisecond)
		if did, err := r.Step(t.Context()); did || err != nil {
			t.Fatalf("the run was taken over while its lease lives: %v", err)
		}
		r.clock.Advance(time.Millisecond)
		if did, err := r.Step(t.Context()); !did || err != nil {
			t.Fatalf("the run was not taken over when the lease was over: %v", err)
		}
		if now := r.get(run.ID); now.Epoch != 2 || now.Step != StepIssue {
			t.Errorf("epoch %d, step %s", now.Epoch, now.Step)
		}
		// What the dead one comes back with is not recorded.
		if _, err := dead.advance(t.Context(), jobs[0]); !errors.Is(err, fault.ErrChanged) {
			t.Errorf("the stale process recorded its effect: %v", err)
		}
		r.settle(run.ID, StepDone)
		if err := r.ended("a"); err != nil {
			t.Error(err)
		}
	})
}

// A process that was away for the whole take-over comes back at each of its effects: before it,
// and behind it.
func TestStaleProcessDoesNoHarm(t *testing.T) {
	for _, k := range []struct {
		strategy providers.Strategy
		issues   bool
	}{{providers.Replace, false}, {providers.Alternate, false}, {providers.Dual, false}, {providers.Dual, true}} {
		for effects := range 8 {
			t.Run(fmt.Sprintf("%s issues %t after %d effects", k.strategy, k.issues, effects), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, storetest.SQLite(t), rigConfig{memory: providerstest.MemoryConfig{Issues: k.issues}})
				r.credential("a", k.strategy, func(s *Spec) { s.Grace = 0 })
				r.rotate("a")
				run := r.start("a", nil)
				_, stale := r.replica(func(c *RotationsConfig) { c.Holder = "stale" })
				if err := stale.beat(t.Context()); err != nil {
					t.Fatal(err)
				}
				jobs, err := stale.claim(t.Context(), 1, 1)
				if err != nil || len(jobs) != 1 {
					t.Fatalf("%d runs were claimed: %v", len(jobs), err)
				}
				for range effects {
					if again, err := stale.advance(t.Context(), jobs[0]); err != nil {
						t.Fatal(err)
					} else if !again {
						return // it was done before
					}
				}
				r.clock.Advance(DefaultLease)
				r.settle(run.ID, StepDone)
				if _, err := stale.advance(t.Context(), jobs[0]); err == nil {
					t.Error("the stale process recorded something")
				}
				if err := r.check("a", k.strategy); err != nil {
					t.Error(err)
				}
				if !r.memory.Accepts(r.serves("a")) {
					t.Error("the stale process broke what was published")
				}
			})
		}
	}
}

func TestClaimKeepsToTheLimitsOfTargets(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{traits: func(t *providers.Traits) { t.Parallel = 2 }})
		if _, err := r.systems.Create(t.Context(), TargetSort, "slow", SystemSpec{Kind: "memory"}, store.Once{}); err != nil {
			t.Fatal(err)
		}
		r.learn("slow", providers.Traits{Parallel: 2})
		r.learn("mem", providers.Traits{Parallel: 2})
		for i := range 20 { // the slow target's are due first
			name := fmt.Sprintf("slow-%d", i)
			r.credential(name, providers.Dual, func(s *Spec) { s.Target = "slow" })
			r.start(name, nil)
		}
		r.clock.Advance(time.Second)
		for i := range 3 {
			name := fmt.Sprintf("quick-%d", i)
			r.credential(name, providers.Dual, nil)
			r.start(name, nil)
		}
		if err := r.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		jobs, err := r.claim(t.Context(), 8, 8)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for _, j := range jobs {
			got[j.Target]++
		}
		if got["slow"] != 2 || got["mem"] != 2 {
			t.Errorf("claimed %v, want two of each target", got)
		}
		_, other := r.replica(nil)
		other.learn("slow", providers.Traits{Parallel: 2})
		other.learn("mem", providers.Traits{Parallel: 2})
		if err := other.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		if more, err := other.claim(t.Context(), 8, 8); err != nil || len(more) != 0 {
			t.Errorf("another process claimed %d beyond the limits: %v", len(more), err)
		}
	})
}

func TestClaimTakesEmergenciesFirst(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		for i := range 5 {
			name := fmt.Sprintf("c-%d", i)
			r.credential(name, providers.Dual, nil)
			r.start(name, nil)
		}
		r.clock.Advance(time.Second)
		r.credential("urgent", providers.Dual, nil)
		r.start("urgent", func(req *StartRequest) { req.Emergency = true })
		if err := r.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		jobs, err := r.claim(t.Context(), 2, 2)
		if err != nil || len(jobs) != 2 || jobs[0].Credential != "urgent" {
			t.Fatalf("claimed %d, the first of %q: %v", len(jobs), jobs[0].Credential, err)
		}
	})
}

// Two processes at once never do one run's effect under one epoch, and each run ends once.
func TestReplicasShareTheWork(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		const credentials = 24
		var mu sync.Mutex
		under := map[string]int{}
		var twice atomic.Int64
		observe := func(c *RotationsConfig) {
			c.Workers, c.Lease = 4, 5*time.Second
		}
		r := newRig(t, db, rigConfig{rotation: observe})
		db.Now = func() time.Time { return time.Now().UTC() } // these run by themselves
		began := time.Now()
		db.Tick = func() time.Duration { return time.Since(began) }
		r.plan.Before = func(string, int) {}
		var ids []string
		for i := range credentials {
			name := fmt.Sprintf("c-%02d", i)
			r.credential(name, providers.Dual, func(s *Spec) { s.Grace = 0 })
			ids = append(ids, r.start(name, nil).ID)
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for n := range 3 {
			_, rs := r.replica(func(c *RotationsConfig) {
				observe(c)
				c.Holder = fmt.Sprintf("replica-%d", n)
				c.Observe = func(o EffectOutcome) {
					mu.Lock()
					defer mu.Unlock()
					if o.Outcome == "ok" && o.Action == "apply" {
						if under[o.Credential]++; under[o.Credential] > 1 {
							twice.Add(1)
						}
					}
				}
			})
			running.Go(func() {
				if err := rs.Run(ctx); err != nil {
					t.Errorf("a replica ended: %v", err)
				}
			})
		}
		for _, id := range ids {
			limited, cancel := context.WithTimeout(ctx, time.Minute)
			if err := r.Watch(limited, id, func(Rotation) error { return nil }); err != nil {
				t.Errorf("rotation %s: %v", id, err)
			}
			cancel()
		}
		stop()
		running.Wait()
		if twice.Load() > 0 {
			t.Errorf("%d effects were done twice", twice.Load())
		}
		for i := range credentials {
			if err := r.check(fmt.Sprintf("c-%02d", i), providers.Dual); err != nil {
				t.Error(err)
			}
		}
		if n := r.count(`SELECT COUNT(*) FROM rotations WHERE holder <> ''`); n != 0 {
			t.Errorf("%d runs were not given back", n)
		}
		if n := r.count(`SELECT COUNT(*) FROM rotation_workers`); n != 0 {
			t.Errorf("%d workers did not leave", n)
		}
	})
}

func TestGracefulStopGivesRunsBack(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.db.Now = func() time.Time { return time.Now().UTC() }
	began := time.Now()
	r.db.Tick = func() time.Duration { return time.Since(began) }
	r.credential("a", providers.Dual, nil)
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.plan.Before = func(method string, _ int) {
		if method == "Apply" {
			once.Do(func() { close(entered); <-leave })
		}
	}
	run := r.start("a", nil)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	<-entered
	stop()
	close(leave)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	now := r.get(run.ID)
	if now.Holder != "" || now.Step != StepVerify || now.Attempt != 0 {
		t.Errorf("it is with %q at %s after %d tries: the effect that was under way was not recorded", now.Holder, now.Step, now.Attempt)
	}
}

func TestQuotaSpreadsWritesOverTime(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{quota: 2, memory: providerstest.MemoryConfig{Unstaged: true}})
	var ids []string
	for i := range 12 {
		name := fmt.Sprintf("c-%02d", i)
		r.credential(name, providers.Dual, nil)
		ids = append(ids, r.start(name, nil).ID)
	}
	at := r.clock.Now()
	for _, id := range ids {
		r.settle(id, StepDone)
	}
	if took := r.clock.Now().Sub(at); took < 5*time.Second-quotaBurst || took > 12*time.Second {
		t.Errorf("12 writes at 2 a second took %s", took)
	}
	if n := r.plan.Calls("Publish"); n != 12 {
		t.Errorf("%d writes, want 12", n)
	}
}

func TestQuotasTake(t *testing.T) {
	var q quotas
	if q.take("s", "a", 0, 0) != 0 {
		t.Error("a store without a quota makes wait")
	}
	now := time.Hour
	var waits []time.Duration
	for i := range 4 {
		waits = append(waits, q.take("s", fmt.Sprint(i), 2, now))
	}
	for i, want := range []time.Duration{0, 0, 500 * time.Millisecond, time.Second} {
		if waits[i] != want {
			t.Errorf("write %d waits for %s, want %s", i, waits[i], want)
		}
	}
	if got := q.take("s", "3", 2, now+400*time.Millisecond); got != 600*time.Millisecond {
		t.Errorf("asked again too early, it waits for %s", got)
	}
	if got := q.take("s", "3", 2, now+time.Second); got != 0 {
		t.Errorf("at its turn it waits for %s", got)
	}
	if q.take("other", "x", 2, now) != 0 {
		t.Error("another store has a quota of its own")
	}
}

func TestBackoffGrowsToItsBound(t *testing.T) {
	plain, urgent := &job{Rotation: &Rotation{ID: "a"}}, &job{Rotation: &Rotation{ID: "a", Priority: priorityEmergency}}
	for attempt := 1; attempt < 60; attempt++ {
		bound := min(minBackoff<<min(attempt-1, 20), maxBackoff)
		if d := backoff(plain, attempt); d <= 0 || d > bound {
			t.Errorf("try %d waits for %s, at most %s", attempt, d, bound)
		}
		if d := backoff(urgent, attempt); d > maxHurried {
			t.Errorf("try %d of an emergency waits for %s", attempt, d)
		}
	}
}

var halfDone = flag.Int("rotation.halfdone", 300, "half-done runs that are recovered; 10000 for the figure in docs/benchmarks.md")

// What a dead process had under way is ended by another one. The log has the time that it takes.
func TestRecoveryOfManyHalfDoneRuns(t *testing.T) {
	runs := *halfDone
	r := newRig(t, storetest.SQLite(t), rigConfig{traits: func(t *providers.Traits) { t.Parallel = runs }})
	r.learn("mem", providers.Traits{Parallel: runs})
	_, dead := r.replica(func(c *RotationsConfig) { c.Holder = "dead" })
	dead.learn("mem", providers.Traits{Parallel: runs})
	for i := range runs {
		name := fmt.Sprintf("c-%05d", i)
		r.credential(name, providers.Dual, func(s *Spec) { s.Grace = 0 })
		r.start(name, nil)
	}
	if err := dead.beat(t.Context()); err != nil {
		t.Fatal(err)
	}
	jobs, err := dead.claim(t.Context(), runs, runs)
	if err != nil || len(jobs) != runs {
		t.Fatalf("%d were claimed: %v", len(jobs), err)
	}
	for i, j := range jobs {
		for range i % 5 {
			if _, err := dead.advance(t.Context(), j); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.clock.Advance(DefaultLease)
	began := time.Now()
	for range runs {
		next, err := r.Pass(t.Context(), r.clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		if next.IsZero() {
			break
		}
	}
	t.Logf("%d half-done runs were recovered in %s", runs, time.Since(began))
	if n := r.count(`SELECT COUNT(*) FROM rotations WHERE outcome = 'rotated'`); n != runs {
		t.Errorf("%d of %d ended", n, runs)
	}
	if n := r.open(); n != 0 {
		t.Errorf("%d intents have no end", n)
	}
}

// Promise: a clock that is years ahead for a moment delays no run for longer than its grace.
func TestRunsWhenTheClockWasAhead(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		const ahead = 5 * 365 * 24 * time.Hour
		r := newRig(t, db, rigConfig{})
		r.credential("a", providers.Alternate, nil)
		r.rotate("a")
		r.clock.Advance(ahead)
		waits := r.start("a", nil)
		r.settle(waits.ID, StepGrace)
		if _, err := r.Pass(t.Context(), r.clock.Now()); err != nil {
			t.Fatal(err)
		}
		r.credential("b", providers.Replace, nil)
		r.plan.Steps = []providerstest.Step{{Method: "Apply", From: r.plan.Calls("Apply") + 1, Times: 1, Fault: providerstest.Throttle}}
		tries := r.start("b", nil)
		for r.plan.Calls("Apply") < 3 {
			if _, err := r.Pass(t.Context(), r.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		died := r.process(2)
		r.credential("c", providers.Replace, nil)
		held := r.start("c", nil)
		if err := died.rs.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
		if jobs, err := died.rs.claim(t.Context(), 1, 1); err != nil || len(jobs) != 1 || jobs[0].ID != held.ID {
			t.Fatalf("claimed %d runs: %v", len(jobs), err)
		}
		r.clock.Advance(-ahead)
		p := r.process(1)
		for range 15 {
			next, err := p.rs.Pass(t.Context(), r.clock.Now())
			if err != nil {
				t.Fatal(err)
			}
			if next.After(r.clock.Now()) && next.Before(r.clock.Now().Add(24*time.Hour)) {
				r.clock.Set(next)
			}
		}
		for _, id := range []string{waits.ID, tries.ID, held.ID} {
			if run := r.get(id); run.Outcome != Rotated {
				t.Errorf("the run of %s is at %s and next due %s; the clock shows %s", run.Credential, run.Step, run.NextAt, r.clock.Now())
			}
		}
	})
}

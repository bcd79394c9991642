package rotation

import (
	"context"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

// The target may have been told to end the old value by itself. Who goes back to it must not lose it
// when that end comes; not even when a process that was taken for dead tells it once more.
func TestRollbackTakesBackTheEndOfTheOldValue(t *testing.T) {
	t.Parallel()
	for _, strategy := range []providers.Strategy{providers.Alternate, providers.Dual} {
		for _, how := range []string{"told", "told, and the reply was lost", "told late", "not told, for it refused"} {
			t.Run(string(strategy)+" "+how, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, storetest.SQLite(t), rigConfig{})
				r.credential("a", strategy, nil)
				r.rotate("a")
				old := r.serves("a")
				run := r.start("a", nil)
				late := func() {}
				switch how {
				case "told, and the reply was lost":
					r.plan.Steps = []providerstest.Step{{Method: "Retire", From: 1, Times: 100, Fault: providerstest.Lose}}
				case "not told, for it refused":
					r.plan.Steps = []providerstest.Step{{Method: "Retire", From: 1, Times: 100, Fault: providerstest.Refuse}}
				case "told late":
					for r.plan.Calls("Publish") < 2 {
						if _, err := r.Step(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
					p := r.process(1)
					if err := p.rs.beat(t.Context()); err != nil {
						t.Fatal(err)
					}
					jobs, err := p.rs.claim(t.Context(), 1, 1)
					if err != nil || len(jobs) != 1 || jobs[0].work.Doing.Action != "retire" {
						t.Fatalf("claimed %d runs: %v", len(jobs), err)
					}
					r.clock.Advance(DefaultLease)
					late = func() {
						if _, err := p.rs.advance(t.Context(), jobs[0]); err == nil {
							t.Error("a process that was taken for dead recorded its effect")
						}
					}
				}
				if how != "told late" {
					r.settle(run.ID, StepGrace)
					if _, err := r.Pass(t.Context(), r.clock.Now()); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := r.Rollback(t.Context(), run.ID, ""); err != nil {
					t.Fatal(err)
				}
				if how != "not told, for it refused" {
					r.plan.Steps = nil
				}
				if _, err := r.Step(t.Context()); err != nil {
					t.Fatal(err)
				}
				late()
				if got := r.settle(run.ID, StepDone); got.Outcome != RolledBack {
					t.Fatalf("the run ended with %q", got.Outcome)
				}
				r.clock.Advance(48 * time.Hour)
				if served := r.serves("a"); !served.Fields.Equal(old.Fields) || !r.memory.Accepts(served) {
					t.Errorf("consumers read the old value: %t; it is accepted: %t", served.Fields.Equal(old.Fields), r.memory.Accepts(served))
				}
			})
		}
	}
}

// A rotation that is abandoned half-way leaves stores that serve its value. The next one with two
// accounts must not take the account that they read.
func TestAlternateWhenAbandonedHalfWay(t *testing.T) {
	t.Parallel()
	half := func(t *testing.T, back bool) *rig {
		t.Helper()
		r := newRig(t, storetest.SQLite(t), rigConfig{})
		r.credential("a", providers.Alternate, twoPaths)
		r.rotate("a")
		run := r.start("a", nil)
		second := func() {
			r.plan.Steps = []providerstest.Step{{Method: "Publish", From: r.plan.Calls("Publish") + 2, Times: -1, Fault: providerstest.Refuse}}
		}
		if back {
			r.settle(run.ID, StepGrace)
			second()
			if _, err := r.Rollback(t.Context(), run.ID, ""); err != nil {
				t.Fatal(err)
			}
		} else {
			second()
		}
		r.settle(run.ID, StepFailed)
		if _, _, err := r.Abandon(t.Context(), run.ID, ""); err != nil {
			t.Fatal(err)
		}
		r.plan.Steps = nil
		return r
	}
	accepted := func(r *rig, paths ...string) {
		r.t.Helper()
		for _, path := range paths {
			f := r.memory.Serves(path)
			if !r.memory.Accepts(providers.Held{Account: f.Text("username"), Fields: f}) {
				r.t.Fatalf("what consumers read at %s is not accepted", path)
			}
		}
	}
	for name, back := range map[string]bool{"forward": false, "back": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := half(t, back)
			run := r.settle(r.start("a", nil).ID, StepFailed)
			if run.ErrorReason != "half_published" {
				t.Errorf("it failed with %s: %s", run.ErrorReason, run.Error)
			}
			accepted(r, "kv/a", "kv/second")

			// As it was told: both serve one value by now.
			r.memory.Write("kv/second", r.memory.Serves("kv/a"))
			if _, err := r.Retry(t.Context(), run.ID, ""); err != nil {
				t.Fatal(err)
			}
			for range 100 {
				if run = r.get(run.ID); !run.EndedAt.IsZero() {
					break
				}
				if run.Step == StepFailed { // somebody else wrote it
					if _, err := r.Retry(t.Context(), run.ID, ""); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := r.Step(t.Context()); err != nil {
					t.Fatal(err)
				}
				r.clock.Advance(10 * time.Minute)
				accepted(r, "kv/a", "kv/second")
			}
			if run.Outcome != Rotated {
				t.Errorf("it is at %s, %s: %s", run.Step, run.ErrorReason, run.Error)
			}
			if err := r.ended("a"); err != nil {
				t.Error(err)
			}
		})
	}
}

// The same, where the only store came to serve the new value, and the process died before that
// was recorded.
func TestEmergencyWhenAbandonedAfterThePublication(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Alternate, nil)
	r.rotate("a")
	run := r.start("a", nil)
	r.plan.Steps = []providerstest.Step{{Method: "Publish", From: r.plan.Calls("Publish") + 1, Times: 1, Fault: providerstest.Lose}}
	for r.plan.Calls("Publish") < 2 {
		if _, err := r.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := r.Abandon(t.Context(), run.ID, ""); err != nil {
		t.Fatal(err)
	}
	next := r.start("a", func(req *StartRequest) { req.Emergency = true })
	for range 100 {
		if next = r.get(next.ID); !next.EndedAt.IsZero() {
			break
		}
		if _, err := r.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.clock.Advance(10 * time.Minute)
		if err := r.check("a", providers.Alternate); err != nil {
			t.Fatalf("at %s: %v", next.Step, err)
		}
	}
	if next.Outcome != Rotated {
		t.Errorf("it is at %s, %s: %s", next.Step, next.ErrorReason, next.Error)
	}
	if err := r.ended("a"); err != nil {
		t.Error(err)
	}
}

// A run whose value is gone from the database for good must not hold up its credential.
func TestAbandonWhenTheValueIsGone(t *testing.T) {
	t.Parallel()
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Alternate, nil)
	r.rotate("a")
	run := r.start("a", nil)
	for r.get(run.ID).Step == StepPlan {
		if _, err := r.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	err := r.db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM credential_versions WHERE credential = 'a' AND state = 'staged'`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if run = r.settle(run.ID, StepFailed); run.ErrorReason != "value_gone" {
		t.Errorf("it failed with %s: %s", run.ErrorReason, run.Error)
	}
	if _, _, err := r.Abandon(t.Context(), run.ID, ""); err != nil {
		t.Fatal(err)
	}
	if next := r.rotate("a"); next.Outcome != Rotated {
		t.Errorf("the next one ended with %q", next.Outcome)
	}
}

package rotation

import (
	"errors"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

func TestRotationOfEachStrategy(t *testing.T) {
	for _, issues := range []bool{false, true} {
		for _, strategy := range []providers.Strategy{providers.Replace, providers.Alternate, providers.Dual} {
			if issues && strategy != providers.Dual {
				continue
			}
			name := string(strategy)
			if issues {
				name += " issued"
			}
			t.Run(name, func(t *testing.T) {
				storetest.Run(t, func(t *testing.T, db *store.DB) {
					r := newRig(t, db, rigConfig{memory: providerstest.MemoryConfig{Issues: issues}})
					r.credential("a", strategy, nil)
					for generation := int64(1); generation <= 4; generation++ {
						before := r.serves("a")
						run := r.settle(r.start("a", nil).ID, StepGrace, StepDone)
						after := r.serves("a")
						if run.Generation != generation || !r.memory.Accepts(after) || after.Fields.Equal(before.Fields) {
							t.Fatalf("generation %d: the run has %d, accepted: %t, new: %t", generation, run.Generation, r.memory.Accepts(after), !after.Fields.Equal(before.Fields))
						}
						grace := strategy != providers.Replace && generation > 1
						if in := run.Step == StepGrace; in != grace {
							t.Fatalf("generation %d is at %s", generation, run.Step)
						}
						if grace && !r.memory.Accepts(before) {
							t.Fatalf("generation %d: the old value is not accepted in the grace", generation)
						}
						run = r.settle(run.ID, StepDone)
						if before.Fields != nil && r.memory.Accepts(before) {
							t.Fatalf("generation %d: the old value is accepted after the end", generation)
						}
						if run.Outcome != Rotated || run.EndedAt.IsZero() {
							t.Fatalf("generation %d ended with %q", generation, run.Outcome)
						}
						if err := r.check("a", strategy); err != nil {
							t.Fatal(err)
						}
						if err := r.ended("a"); err != nil {
							t.Fatal(err)
						}
					}
					versions, err := r.Versions(t.Context(), "a")
					if err != nil || len(versions) != 4 {
						t.Fatalf("%d versions: %v", len(versions), err)
					}
					for i, v := range versions {
						want := Retired
						if i == 0 {
							want = Current
						}
						if v.State != want || v.tampered {
							t.Errorf("version %d is %s, want %s", v.Generation, v.State, want)
						}
					}
				})
			})
		}
	}
}

// Runs of a credential go by their ids, which go by clocks: one that would get before the
// run that is under way is not begun.
func TestStartWhenTheClockIsBehind(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		r.credential("a", providers.Dual, nil)
		r.start("a", nil)
		if _, err := r.Start(t.Context(), StartRequest{Credential: "a"}); err != nil {
			t.Errorf("a second run at the same instant: %v", err)
		}
		r.credential("b", providers.Dual, nil)
		r.start("b", nil)
		r.clock.Advance(-time.Minute)
		_, err := r.Start(t.Context(), StartRequest{Credential: "b"})
		if f, ok := errors.AsType[*fault.Error](err); !ok || f.Reason != "clock_behind" {
			t.Errorf("a second run by a clock that is behind: %v", err)
		}
	})
}

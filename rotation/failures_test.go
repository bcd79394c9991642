package rotation

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

// Promise: a call that fails in whatever way, done or not, loses nothing; and what the run does
// about it is what the outcome says.
func TestFailureTable(t *testing.T) {
	type call struct{ method, step string }
	calls := []call{
		{"Prepare", "plan"}, {"Read", "plan"}, {"Stage", "issue"}, {"Apply", "issue"}, {"Verify", "verify"}, {"Publish", "publish"},
		{"Retire", "grace"}, {"Usage", "grace"}, {"Revoke", "revoke"}, {"Discard", "revoke"},
	}
	faults := []providerstest.Fault{
		providerstest.Reject, providerstest.Refuse, providerstest.Move, providerstest.Throttle, providerstest.Drop, providerstest.Lose, providerstest.Hang, providerstest.HangDone,
		providerstest.Panic, providerstest.PanicDone,
	}
	type kind struct {
		name     string
		strategy providers.Strategy
		issues   bool
	}
	kinds := []kind{{"replace", providers.Replace, false}, {"alternate", providers.Alternate, false}, {"dual", providers.Dual, false}, {"dual issued", providers.Dual, true}}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			for _, c := range calls {
				if k.strategy == providers.Replace && slices.Contains([]string{"Retire", "Usage", "Revoke"}, c.method) {
					continue // there is nothing to end
				}
				for _, f := range faults {
					t.Run(fmt.Sprintf("%s %s", c.method, f), func(t *testing.T) {
						t.Parallel()
						r := newRig(t, storetest.SQLite(t), rigConfig{
							memory: providerstest.MemoryConfig{Issues: k.issues},
							rotation: func(c *RotationsConfig) {
								if f == providerstest.Hang || f == providerstest.HangDone {
									c.EffectTimeout = 50 * time.Millisecond
								}
							},
						})
						r.credential("a", k.strategy, nil)
						r.rotate("a")
						r.rotate("a")
						before := r.serves("a")
						r.plan.Steps = []providerstest.Step{{Method: c.method, From: r.plan.Calls(c.method) + 1, Fault: f}}
						run := r.settle(r.start("a", nil).ID, StepDone, StepFailed)
						if err := r.check("a", k.strategy); err != nil {
							t.Fatal(err)
						}
						if want := outcomeOf(c.method, f, k.issues); string(run.Step) != want {
							t.Fatalf("it came to %s (%s: %s), want %s", run.Step, run.ErrorReason, run.Error, want)
						}
						if run.Step == StepFailed {
							if string(run.FailedStep) != c.step || run.ErrorReason == "" || !strings.Contains(run.Error, "rotunda credential retry a") {
								t.Errorf("it failed at %s with %q: %s", run.FailedStep, run.ErrorReason, run.Error)
							}
							if _, err := r.Retry(t.Context(), run.ID, "seen to"); err != nil {
								t.Fatal(err)
							}
							run = r.settle(run.ID, StepDone)
						}
						after := r.serves("a")
						if run.Outcome != Rotated || !r.memory.Accepts(after) || r.memory.Accepts(before) || after.Fields.Equal(before.Fields) {
							t.Errorf("it ended with %q; new accepted: %t, old: %t", run.Outcome, r.memory.Accepts(after), r.memory.Accepts(before))
						}
						if err := r.check("a", k.strategy); err != nil {
							t.Error(err)
						}
						if err := r.ended("a"); err != nil {
							t.Error(err)
						}
					})
				}
			}
		})
	}
}

// outcomeOf is what a run does about one fault of one call.
func outcomeOf(method string, f providerstest.Fault, issues bool) string {
	const failed, done = "failed", "done"
	switch {
	case slices.Contains([]providerstest.Fault{providerstest.Throttle, providerstest.Drop, providerstest.Lose, providerstest.Hang, providerstest.HangDone, providerstest.Panic, providerstest.PanicDone}, f):
		return done // the same again
	case method == "Usage", method == "Retire":
		return done // the grace ends by the clock
	case f == providerstest.Reject && method == "Verify":
		return done // it may need a while
	case f == providerstest.Reject && method == "Apply" && !issues:
		return done // with another value
	}
	return failed
}

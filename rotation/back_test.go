package rotation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

func twoPaths(s *Spec) { s.Stores = append(s.Stores, Placement{Store: "mem", Path: "kv/second"}) }

// failAt makes every further call of a method fail for a person to see to.
func (r *rig) failAt(method string) {
	r.plan.Steps = []providerstest.Step{{Method: method, From: r.plan.Calls(method) + 1, Times: -1, Fault: providerstest.Refuse}}
}

func TestRollbackFromEachFailure(t *testing.T) {
	for _, k := range []struct {
		strategy providers.Strategy
		issues   bool
	}{{providers.Replace, false}, {providers.Alternate, false}, {providers.Dual, false}, {providers.Dual, true}} {
		for _, method := range []string{"Prepare", "Stage", "Apply", "Verify", "Publish", "second Publish", "lost Apply"} {
			name := string(k.strategy)
			if k.issues {
				name += " issued"
			}
			t.Run(name+" "+method, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, storetest.SQLite(t), rigConfig{memory: providerstest.MemoryConfig{Issues: k.issues}})
				r.credential("a", k.strategy, twoPaths)
				r.rotate("a")
				r.rotate("a")
				before := r.serves("a")
				switch method {
				case "second Publish":
					r.plan.Steps = []providerstest.Step{{Method: "Publish", From: r.plan.Calls("Publish") + 2, Times: -1, Fault: providerstest.Refuse}}
				case "lost Apply":
					n := r.plan.Calls("Apply")
					r.plan.Steps = []providerstest.Step{{Method: "Apply", From: n + 1, Fault: providerstest.Lose}, {Method: "Apply", From: n + 2, Fault: providerstest.Refuse}, {Method: "Verify", From: r.plan.Calls("Verify") + 1, Fault: providerstest.Reject}}
				default:
					r.failAt(method)
				}
				run := r.settle(r.start("a", nil).ID, StepFailed)
				r.plan.Steps = nil
				back, err := r.Rollback(t.Context(), run.ID, "take it back")
				if err != nil {
					t.Fatal(err)
				}
				if !back.Back {
					t.Error("the run does not say that it goes back")
				}
				if err := r.check("a", k.strategy); err != nil {
					t.Fatal(err)
				}
				run = r.settle(run.ID, StepDone, StepFailed)
				if run.Outcome != RolledBack {
					t.Fatalf("it came to %s with %q (%s: %s)", run.Step, run.Outcome, run.ErrorReason, run.Error)
				}
				after := r.serves("a")
				if !after.Fields.Equal(before.Fields) || !r.memory.Serves("kv/second").Equal(before.Fields) || !r.memory.Accepts(after) {
					t.Errorf("consumers read the old value: %t and %t; it is accepted: %t", after.Fields.Equal(before.Fields), r.memory.Serves("kv/second").Equal(before.Fields), r.memory.Accepts(after))
				}
				if n := len(r.values("a")); n != 1 {
					t.Errorf("%d values are sealed, want 1", n)
				}
				if err := r.ended("a"); err != nil {
					t.Error(err)
				}
				run = r.rotate("a") // and all goes on
				if run.Outcome != Rotated || r.memory.Accepts(before) || !r.memory.Accepts(r.serves("a")) {
					t.Errorf("the next rotation ended with %q", run.Outcome)
				}
				if err := r.ended("a"); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestRollbackInGrace(t *testing.T) {
	for _, strategy := range []providers.Strategy{providers.Alternate, providers.Dual} {
		t.Run(string(strategy), func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				r := newRig(t, db, rigConfig{})
				r.credential("a", strategy, nil)
				r.rotate("a")
				before := r.serves("a")
				run := r.settle(r.start("a", nil).ID, StepGrace)
				newer := r.serves("a")
				if _, err := r.Rollback(t.Context(), "a", "the new one breaks us"); err != nil { // by the name of the credential
					t.Fatal(err)
				}
				run = r.settle(run.ID, StepDone)
				if run.Outcome != RolledBack || !r.serves("a").Fields.Equal(before.Fields) || !r.memory.Accepts(before) || r.memory.Accepts(newer) {
					t.Fatalf("it ended with %q; old served: %t, accepted: %t; new accepted: %t", run.Outcome, r.serves("a").Fields.Equal(before.Fields), r.memory.Accepts(before), r.memory.Accepts(newer))
				}
				c, err := r.creds.Get(t.Context(), "a")
				if err != nil || c.Current != 1 || c.Generation != 2 {
					t.Errorf("current %d of %d: %v", c.Current, c.Generation, err)
				}
				r.rotate("a")
				if err := r.ended("a"); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestRollbackWhenThereIsNothingToGoBackTo(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Replace, nil)
	r.failAt("Publish")
	run := r.settle(r.start("a", nil).ID, StepFailed)
	if _, err := r.Rollback(t.Context(), run.ID, "x"); !errors.Is(err, fault.ErrTransition) || !strings.Contains(err.Error(), "no older value") {
		t.Errorf("rollback of a first rotation: %v", err)
	}
	r.plan.Steps = nil
	if _, err := r.Retry(t.Context(), run.ID, "x"); err != nil {
		t.Fatal(err)
	}
	run = r.settle(run.ID, StepDone)
	for what, do := range map[string]func() error{
		"rollback": func() error { _, err := r.Rollback(t.Context(), run.ID, "x"); return err },
		"retry":    func() error { _, err := r.Retry(t.Context(), run.ID, "x"); return err },
		"abandon":  func() error { _, _, err := r.Abandon(t.Context(), run.ID, "x"); return err },
	} {
		if err := do(); !errors.Is(err, fault.ErrTransition) {
			t.Errorf("%s of a run that has ended: %v", what, err)
		}
	}
	// A target that makes its values itself, and replaces them, can't be given the old one.
	own := newRig(t, storetest.SQLite(t), rigConfig{memory: providerstest.MemoryConfig{Issues: true}})
	own.credential("a", providers.Replace, nil)
	own.rotate("a")
	own.plan.Steps = []providerstest.Step{{Method: "Apply", From: own.plan.Calls("Apply") + 1, Fault: providerstest.Lose}, {Method: "Apply", From: own.plan.Calls("Apply") + 2, Fault: providerstest.Refuse}}
	failed := own.settle(own.start("a", nil).ID, StepFailed)
	if _, err := own.Rollback(t.Context(), failed.ID, "x"); !errors.Is(err, fault.ErrTransition) {
		t.Errorf("rollback of a value that the target made: %v", err)
	}
	if _, err := own.Retry(t.Context(), failed.ID, "x"); err != nil {
		t.Fatal(err)
	}
	if own.settle(failed.ID, StepDone); !own.memory.Accepts(own.serves("a")) {
		t.Error("after the retry consumers read a value that is not accepted")
	}
	// While the old value is being ended it can't be made current again.
	r.credential("b", providers.Dual, nil)
	r.rotate("b")
	r.failAt("Revoke")
	run = r.settle(r.start("b", nil).ID, StepFailed)
	if _, err := r.Rollback(t.Context(), run.ID, "x"); !errors.Is(err, fault.ErrTransition) {
		t.Errorf("rollback of a run that is ending the old value: %v", err)
	}
}

func TestAbandonKeepsWhatMayBeAccepted(t *testing.T) {
	for _, strategy := range []providers.Strategy{providers.Replace, providers.Alternate, providers.Dual} {
		for _, method := range []string{"Prepare", "Stage", "Apply", "Verify", "Publish", "Revoke"} {
			if strategy == providers.Replace && method == "Revoke" {
				continue
			}
			t.Run(string(strategy)+" "+method, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, storetest.SQLite(t), rigConfig{})
				r.credential("a", strategy, twoPaths)
				r.rotate("a")
				r.failAt(method)
				run := r.settle(r.start("a", nil).ID, StepFailed)
				r.plan.Steps = nil
				ended, left, err := r.Abandon(t.Context(), run.ID, "we give up")
				if err != nil || ended.Outcome != Abandoned || ended.Step != StepDone {
					t.Fatalf("it is at %s with %q: %v", ended.Step, ended.Outcome, err)
				}
				changed := slices.Contains([]string{"Verify", "Publish", "Revoke"}, method)
				if changed != slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, "target mem may accept") }) {
					t.Errorf("it leaves %q", left)
				}
				if err := r.check("a", strategy); err != nil {
					t.Error(err)
				}
				if n := r.open(); n != 0 {
					t.Errorf("%d intents have no end", n)
				}
				// The next rotation ends what was left.
				r.rotate("a")
				if len(r.values("a")) != 1 {
					t.Errorf("%d values are sealed after the next rotation", len(r.values("a")))
				}
				if n := len(r.memory.Keys("a")); n != 1 {
					t.Errorf("the target holds %d values after the next rotation", n)
				}
			})
		}
	}
}

func TestEmergencyEndsTheGraceOfTheRotationBefore(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		r.credential("a", providers.Dual, nil)
		r.rotate("a")
		first := r.serves("a")
		run := r.settle(r.start("a", nil).ID, StepGrace)
		second := r.serves("a")
		alive, err := r.memory.Session(second)
		if err != nil {
			t.Fatal(err)
		}
		zero := time.Duration(0)
		if _, err := r.Start(t.Context(), StartRequest{Credential: "a", Emergency: true, Grace: &zero}); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("an emergency without a reason: %v", err)
		}
		urgent := r.start("a", func(req *StartRequest) { req.Emergency, req.Grace = true, &zero })
		if _, err := r.Start(t.Context(), StartRequest{Credential: "a"}); !errors.Is(err, fault.ErrTransition) {
			t.Errorf("a third one, while one waits: %v", err)
		}
		at := r.clock.Now()
		urgent = r.settle(urgent.ID, StepDone)
		if took := r.clock.Now().Sub(at); took > time.Second {
			t.Errorf("the emergency waited for %s", took)
		}
		if r.memory.Accepts(first) || r.memory.Accepts(second) || !r.memory.Accepts(r.serves("a")) {
			t.Errorf("accepted: first %t, second %t, current %t", r.memory.Accepts(first), r.memory.Accepts(second), r.memory.Accepts(r.serves("a")))
		}
		if alive() {
			t.Error("a session of the old value lives on")
		}
		if run = r.get(run.ID); run.Outcome != Rotated || urgent.Outcome != Rotated {
			t.Errorf("they ended with %q and %q", run.Outcome, urgent.Outcome)
		}
		if err := r.ended("a"); err != nil {
			t.Error(err)
		}
	})
}

func TestStartWhenOneHasFailed(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Dual, nil)
	r.failAt("Apply")
	run := r.settle(r.start("a", nil).ID, StepFailed)
	_, err := r.Start(t.Context(), StartRequest{Credential: "a", Emergency: true, Reason: "leaked"})
	if !errors.Is(err, fault.ErrTransition) || !strings.Contains(err.Error(), run.ID) {
		t.Errorf("start beside a failed one: %v", err)
	}
}

func TestStartIsIdempotentByKey(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		r.credential("a", providers.Dual, nil)
		once := func(req *StartRequest) { req.Once = store.Once{Scope: "ada", Key: "k", Fingerprint: "f"} }
		first, again := r.start("a", once), r.start("a", once)
		if first.ID != again.ID {
			t.Errorf("two runs for one key: %s and %s", first.ID, again.ID)
		}
		if _, err := r.Start(t.Context(), StartRequest{Credential: "nobody"}); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("rotate what is not there: %v", err)
		}
		if _, err := r.Get(t.Context(), "nothing"); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("get what is not there: %v", err)
		}
	})
}

func TestDriftStopsTheRotation(t *testing.T) {
	for _, when := range []string{"before", "during"} {
		t.Run(when, func(t *testing.T) {
			r := newRig(t, storetest.SQLite(t), rigConfig{})
			r.credential("a", providers.Dual, nil)
			r.rotate("a")
			old := r.serves("a")
			foreign := providers.Fields{}.Set("username", "a").Set("password", "somebody else's")
			var run *Rotation
			if when == "before" {
				r.memory.Write("kv/a", foreign)
				run = r.start("a", nil)
			} else {
				r.plan.Before = func(method string, _ int) {
					if method == "Publish" {
						r.plan.Before = nil
						r.memory.Write("kv/a", foreign)
					}
				}
				run = r.start("a", nil)
			}
			run = r.settle(run.ID, StepFailed, StepDone)
			if run.ErrorReason != "drift" || !r.memory.Serves("kv/a").Equal(foreign) || !r.memory.Accepts(old) {
				t.Fatalf("it is at %s with %q; the store was left alone: %t; the old value is accepted: %t", run.Step, run.ErrorReason, r.memory.Serves("kv/a").Equal(foreign), r.memory.Accepts(old))
			}
			// A person has looked, and has it replaced.
			if _, err := r.Retry(t.Context(), run.ID, "was a mistake"); err != nil {
				t.Fatal(err)
			}
			run = r.settle(run.ID, StepDone)
			if !r.memory.Accepts(r.serves("a")) || run.Outcome != Rotated {
				t.Errorf("it ended with %q", run.Outcome)
			}
		})
	}
}

func TestAdoptionOfWhatIsThere(t *testing.T) {
	for _, strategy := range []providers.Strategy{providers.Replace, providers.Dual, providers.Alternate} {
		t.Run(string(strategy), func(t *testing.T) {
			r := newRig(t, storetest.SQLite(t), rigConfig{})
			there := providers.Fields{}.Set("username", "a").Set("password", "from before Rotunda")
			r.memory.Write("kv/a", there)
			r.credential("a", strategy, nil)
			run := r.settle(r.start("a", nil).ID, StepFailed)
			if run.ErrorReason != "path_in_use" || !r.memory.Serves("kv/a").Equal(there) {
				t.Fatalf("it failed with %q", run.ErrorReason)
			}
			if _, _, err := r.Abandon(t.Context(), run.ID, ""); err != nil {
				t.Fatal(err)
			}
			r.credential("b", strategy, func(s *Spec) { s.Adopt = true })
			r.memory.Write("kv/b", providers.Fields{}.Set("username", "b").Set("password", "from before Rotunda"))
			// It can be taken back: the value from before is kept until the end.
			r.failAt("Publish")
			run = r.settle(r.start("b", nil).ID, StepFailed)
			r.plan.Steps = nil
			if _, err := r.Rollback(t.Context(), run.ID, ""); err != nil {
				t.Fatal(err)
			}
			if run = r.settle(run.ID, StepDone, StepFailed); run.Outcome != RolledBack || r.serves("b").Fields.Text("password") != "from before Rotunda" {
				t.Fatalf("it came to %s with %q (%s: %s)", run.Step, run.Outcome, run.ErrorReason, run.Error)
			}
			if run = r.rotate("b"); run.Outcome != Rotated || !r.memory.Accepts(r.serves("b")) {
				t.Errorf("it ended with %q; accepted: %t", run.Outcome, r.memory.Accepts(r.serves("b")))
			}
		})
	}
}

// What was there before Rotunda goes back where it was, and nowhere else: an operator who may
// not read a path must not have its value carried to one that he may.
func TestAdoptedValueIsNotCarriedToAnotherPlace(t *testing.T) {
	for _, strategy := range []providers.Strategy{providers.Replace, providers.Dual, providers.Alternate} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprint(strategy, first), func(t *testing.T) {
				r := newRig(t, storetest.SQLite(t), rigConfig{})
				there := providers.Fields{}.Set("username", "a").Set("password", "from before Rotunda")
				r.memory.Write("kv/theirs", there)
				r.credential("a", strategy, func(s *Spec) {
					s.Adopt = true
					s.Stores = []Placement{{Store: "mem", Path: "kv/theirs"}, {Store: "mem", Path: "kv/mine"}}
					if !first {
						slices.Reverse(s.Stores)
					}
				})
				// In the second place it fails, in the first it was published.
				r.plan.Steps = []providerstest.Step{{Method: "Publish", From: r.plan.Calls("Publish") + 2, Times: -1, Fault: providerstest.Refuse}}
				run := r.settle(r.start("a", nil).ID, StepFailed)
				r.plan.Steps = nil
				if _, err := r.Rollback(t.Context(), run.ID, ""); err != nil {
					t.Fatal(err)
				}
				if run = r.settle(run.ID, StepDone, StepFailed); run.Outcome != RolledBack {
					t.Fatalf("it came to %s with %q (%s: %s)", run.Step, run.Outcome, run.ErrorReason, run.Error)
				}
				if got := r.memory.Serves("kv/theirs"); !got.Equal(there) {
					t.Error("the value from before is not back where it was")
				}
				if r.memory.Serves("kv/mine").Text("password") == "from before Rotunda" {
					t.Error("the value was carried to another path")
				}
				if run = r.rotate("a"); run.Outcome != Rotated || !r.memory.Accepts(providers.Held{Account: "a", Fields: r.memory.Serves("kv/theirs")}) {
					t.Errorf("the next one ended with %q", run.Outcome)
				}
			})
		}
	}
}

func TestGraceEndsWhenTheOldValueIsQuiet(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Dual, func(s *Spec) { s.Grace, s.Quiet = 10*time.Hour, time.Hour })
	r.rotate("a")
	old := r.serves("a")
	start := r.clock.Now()
	run := r.settle(r.start("a", nil).ID, StepGrace)
	for r.clock.Now().Sub(start) < 2*time.Hour { // somebody uses it for two hours
		if err := r.memory.System().Target().Verify(t.Context(), providers.Change{}, old); err != nil {
			t.Fatalf("after %s the old value is refused: %v", r.clock.Now().Sub(start), err)
		}
		r.clock.Advance(10 * time.Minute)
		if _, err := r.Pass(t.Context(), r.clock.Now()); err != nil {
			t.Fatal(err)
		}
	}
	last := r.clock.Now()
	run = r.settle(run.ID, StepDone)
	if took := r.clock.Now().Sub(last); took < 45*time.Minute || took > 90*time.Minute {
		t.Errorf("it ended %s after the last use, want about an hour", took)
	}
	if r.memory.Accepts(old) {
		t.Error("the old value is accepted")
	}
	if !run.Evidence.Known || run.Evidence.Source != "memory" {
		t.Errorf("evidence %+v", run.Evidence)
	}
}

func TestWarningWhenTheOldValueIsUsedNearTheEnd(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Dual, nil)
	r.rotate("a")
	old := r.serves("a")
	run := r.settle(r.start("a", nil).ID, StepGrace)
	if _, err := r.memory.Session(old); err != nil {
		t.Fatal(err)
	}
	r.settle(run.ID, StepDone)
	if r.memory.Accepts(old) {
		t.Error("the grace is a promise, and the old value is accepted after it")
	}
	if n := len(r.events("rotation.still_used")); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
}

func TestRejectedValuesAreReplacedThreeTimes(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		r.credential("a", providers.Replace, nil)
		r.rotate("a")
		old := r.serves("a")
		r.memory.Policy("a", 100)
		run := r.settle(r.start("a", nil).ID, StepFailed)
		if run.ErrorReason != "rejected" || run.Rejections != 3 || !r.memory.Accepts(old) || !r.serves("a").Fields.Equal(old.Fields) {
			t.Fatalf("it failed with %q after %d rejections", run.ErrorReason, run.Rejections)
		}
		r.credential("b", providers.Dual, nil)
		r.memory.Policy("b", 100)
		other := r.settle(r.start("b", nil).ID, StepFailed)
		if _, err := r.Rollback(t.Context(), other.ID, ""); err != nil {
			t.Fatal(err)
		}
		if other = r.settle(other.ID, StepDone); other.Outcome != RolledBack || r.memory.Staged("kv/b") != nil {
			t.Errorf("taken back, it ended with %q, a staged copy is left: %t", other.Outcome, r.memory.Staged("kv/b") != nil)
		}
		r.memory.Policy("a", 10)
		if _, err := r.Retry(t.Context(), run.ID, "the policy was a mistake"); err != nil {
			t.Fatal(err)
		}
		if r.settle(run.ID, StepDone); !r.memory.Accepts(r.serves("a")) || r.memory.Staged("kv/a") != nil {
			t.Error("it did not go on with a new value, or left a staged copy")
		}
		if err := r.ended("a"); err != nil {
			t.Error(err)
		}
	})
}

// A value may have come through though the target refuses it now, because it has it already.
func TestApplyIsRefusedAfterItCameThrough(t *testing.T) {
	for _, f := range []providerstest.Fault{providerstest.Reject, providerstest.Refuse} {
		r := newRig(t, storetest.SQLite(t), rigConfig{})
		r.credential("a", providers.Replace, nil)
		r.rotate("a")
		n := r.plan.Calls("Apply")
		r.plan.Steps = []providerstest.Step{{Method: "Apply", From: n + 1, Fault: providerstest.Lose}, {Method: "Apply", From: n + 2, Times: -1, Fault: f}}
		run := r.settle(r.start("a", nil).ID, StepDone, StepFailed)
		if run.Outcome != Rotated || run.Rejections != 0 || !r.memory.Accepts(r.serves("a")) {
			t.Errorf("%s: it came to %s (%s)", f, run.Step, run.Error)
		}
	}
}

func TestVerifyGivesUpBeforeAnAccountIsLocked(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Alternate, nil)
	r.rotate("a")
	old := r.serves("a")
	n := r.plan.Calls("Verify")
	r.plan.Steps = []providerstest.Step{{Method: "Verify", From: n + 1, Times: -1, Fault: providerstest.Old}}
	run := r.settle(r.start("a", nil).ID, StepFailed)
	if run.ErrorReason != "not_accepted" || r.plan.Calls("Verify")-n != maxNotAccepted || !r.memory.Accepts(old) {
		t.Errorf("it failed with %q after %d logins", run.ErrorReason, r.plan.Calls("Verify")-n)
	}
	// Eventually it is seen.
	r.plan.Steps = []providerstest.Step{{Method: "Verify", From: r.plan.Calls("Verify") + 1, Times: 5, Fault: providerstest.Old}}
	if _, err := r.Retry(t.Context(), run.ID, ""); err != nil {
		t.Fatal(err)
	}
	r.settle(run.ID, StepDone)
}

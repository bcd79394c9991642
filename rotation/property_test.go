package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

// killed is what a process dies of.
var errKilled = errors.New("killed")

// process is a replica that can be killed at the next point that it comes to.
type process struct {
	rs *Rotations
}

func (r *rig) process(n int) *process {
	p := &process{}
	_, p.rs = r.replica(func(c *RotationsConfig) {
		c.Holder = fmt.Sprintf("process-%d", n)
	})
	return p
}

// Promise: at every instant either the value in the store or a sealed value in our database is
// accepted by the target; whatever fails, dies, comes back too late, is asked for or taken
// back meanwhile. With alternate and dual what consumers read is accepted all the time.
func TestNoCredentialIsLost(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		strategy := rapid.SampledFrom([]providers.Strategy{providers.Replace, providers.Alternate, providers.Dual}).Draw(rt, "strategy")
		conf := providerstest.MemoryConfig{Unstaged: rapid.Bool().Draw(rt, "unstaged")}
		if strategy == providers.Dual {
			conf.Issues = rapid.Bool().Draw(rt, "issues")
		}
		r := newRig(t, storetest.SQLite(t), rigConfig{memory: conf})
		r.credential("a", strategy, func(s *Spec) {
			if strategy == providers.Replace {
				return
			}
			s.Quiet = rapid.SampledFrom([]time.Duration{0, 10 * time.Minute}).Draw(rt, "quiet")
		})
		r.rotate("a")

		made := 0
		next := func() *process { made++; return r.process(made) }
		processes := []*process{next(), next()}
		var stale []func() error // runs in the hands of processes that stopped in the middle
		late := false            // one of them came back
		must := func(err error, kinds ...error) {
			if err != nil && !slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(err, kind) }) {
				rt.Fatalf("%v", err)
			}
		}
		newest := func() *Rotation {
			list, _, err := r.List(t.Context(), RotationQuery{Credential: "a", Limit: 1})
			must(err)
			return list[0]
		}
		// step does one effect, and dies on the way when it is told to.
		step := func(i int, at string) {
			p := processes[i]
			points := 0
			p.rs.at = func(_ context.Context, pt Point) {
				if points++; at == "before" && points == 1 || at == "after" && pt.After {
					panic(errKilled)
				}
			}
			dead := false
			func() {
				defer func() {
					if got := recover(); got != nil {
						if err, ok := got.(error); !ok || !errors.Is(err, errKilled) {
							panic(got)
						}
						dead = true
					}
				}()
				_, err := p.rs.Step(t.Context())
				must(err, fault.ErrChanged)
			}()
			if dead {
				processes[i] = next()
			}
		}
		methods := []string{"Prepare", "Read", "Stage", "Apply", "Verify", "Publish", "Retire", "Usage", "Revoke", "Discard"}
		faults := []providerstest.Fault{providerstest.Reject, providerstest.Refuse, providerstest.Move, providerstest.Throttle, providerstest.Drop, providerstest.Lose}
		rt.Repeat(map[string]func(*rapid.T){
			"start": func(rt *rapid.T) {
				req := StartRequest{Credential: "a", Reason: "asked", Emergency: rapid.Bool().Draw(rt, "emergency")}
				if rapid.Bool().Draw(rt, "no grace") {
					zero := time.Duration(0)
					req.Grace = &zero
				}
				r.clock.Advance(time.Millisecond) // ids of one instant would be in any order, and no seed a reproduction
				_, err := r.Start(t.Context(), req)
				must(err, fault.ErrTransition, fault.ErrUnavailable) // also of a clock that was set back
			},
			"steps": func(rt *rapid.T) {
				for range rapid.IntRange(1, 8).Draw(rt, "n") {
					step(rapid.IntRange(0, 1).Draw(rt, "process"), "")
				}
			},
			"kill": func(rt *rapid.T) {
				step(rapid.IntRange(0, 1).Draw(rt, "process"), rapid.SampledFrom([]string{"before", "after"}).Draw(rt, "where"))
				r.clock.Advance(DefaultLease)
			},
			"hang": func(rt *rapid.T) {
				p := next()
				must(p.rs.beat(t.Context()))
				jobs, err := p.rs.claim(t.Context(), 1, 1)
				must(err)
				for _, j := range jobs {
					stale = append(stale, func() error { _, err := p.rs.advance(t.Context(), j); return err })
				}
				r.clock.Advance(DefaultLease)
			},
			"wake": func(rt *rapid.T) {
				if len(stale) == 0 {
					rt.Skip("nobody hangs")
				}
				i := rapid.IntRange(0, len(stale)-1).Draw(rt, "which")
				_ = stale[i]() // whatever it comes to, it must not harm
				late = true
				stale = slices.Delete(stale, i, i+1)
			},
			"break": func(rt *rapid.T) {
				m := rapid.SampledFrom(methods).Draw(rt, "method")
				r.plan.Steps = append(r.plan.Steps, providerstest.Step{
					Method: m, From: r.plan.Calls(m) + rapid.IntRange(1, 2).Draw(rt, "from"), Times: rapid.IntRange(1, 3).Draw(rt, "times"), Fault: rapid.SampledFrom(faults).Draw(rt, "fault"),
				})
			},
			"clock": func(rt *rapid.T) {
				r.clock.Advance(time.Duration(rapid.IntRange(-2, 4000).Draw(rt, "seconds")) * time.Second)
			},
			"retry": func(rt *rapid.T) {
				r.clock.Advance(DefaultLease)
				_, err := r.Retry(t.Context(), newest().ID, "")
				must(err, fault.ErrTransition)
			},
			"rollback": func(rt *rapid.T) {
				r.clock.Advance(DefaultLease) // what was killed is nobody's
				_, err := r.Rollback(t.Context(), newest().ID, "")
				must(err, fault.ErrTransition)
			},
			"abandon": func(rt *rapid.T) {
				r.clock.Advance(DefaultLease)
				_, _, err := r.Abandon(t.Context(), newest().ID, "")
				must(err, fault.ErrTransition)
			},
			"": func(rt *rapid.T) {
				if err := r.check("a", strategy); err != nil {
					rt.Fatalf("%v", err)
				}
			},
		})

		// In the end everything works again, and nothing is left.
		r.plan.Steps = nil
		r.clock.Advance(24 * time.Hour)
		p := next()
		for range 400 {
			open, _, err := r.List(t.Context(), RotationQuery{Credential: "a", Unended: true})
			must(err)
			if len(open) == 0 {
				break
			}
			for _, o := range open {
				if o.Step == StepFailed {
					if _, err := r.Retry(t.Context(), o.ID, ""); err != nil {
						must(err, fault.ErrTransition)
					}
				}
			}
			at, err := p.rs.Pass(t.Context(), r.clock.Now())
			must(err)
			if at.After(r.clock.Now()) {
				r.clock.Set(at)
			}
			if err := r.check("a", strategy); err != nil {
				rt.Fatalf("%v", err)
			}
			for _, o := range open { // a value that a late process set again may be in the way for good
				if now := r.get(o.ID); late && now.Step == StepFailed {
					_, _, err := r.Abandon(t.Context(), o.ID, "")
					must(err, fault.ErrTransition)
				}
			}
		}
		if n := r.open(); n > 0 {
			list, _, err := r.List(t.Context(), RotationQuery{Credential: "a"})
			must(err)
			var runs []string
			for _, o := range list {
				runs = append(runs, fmt.Sprintf("%s %s %s %s next %s: %s", o.Step, o.Outcome, o.FailedStep, o.ErrorReason, o.NextAt, o.Error))
			}
			rt.Fatalf("%d intents have no end; now it is %s; runs: %q", n, r.clock.Now(), runs)
		}
		r.clock.Advance(100 * 24 * time.Hour) // what ends by itself has
		if err := r.check("a", strategy); err != nil {
			rt.Fatalf("long after the end of all runs: %v", err)
		}
		if late {
			return
		}
		if run := r.rotate("a"); run.Outcome != Rotated {
			rt.Fatalf("the last rotation ended with %q", run.Outcome)
		}
		if err := r.ended("a"); err != nil {
			rt.Fatalf("%v", err)
		}
	})
}

package rotation

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

// effects are those that change something outside, in the order of a plan.
func effects(p *RotationPlan) (list []string) {
	for _, e := range p.Effects {
		list = append(list, e.Effect+" "+string(e.Step))
	}
	return list
}

func TestPlanWhenMade(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		for _, c := range []struct {
			strategy providers.Strategy
			issues   bool
			first    []string
			then     []string
		}{
			{providers.Dual, false, []string{"E0 plan", "E1 issue", "E2 issue", "E3 verify", "E4 publish", "E8 done"}, []string{"E0 plan", "E1 issue", "E2 issue", "E3 verify", "E4 publish", "E6 grace", "E7 revoke", "E8 done"}},
			{providers.Dual, true, []string{"E0 plan", "E2 issue", "E1 issue", "E3 verify", "E4 publish", "E8 done"}, []string{"E0 plan", "E2 issue", "E1 issue", "E3 verify", "E4 publish", "E6 grace", "E7 revoke", "E8 done"}},
			{providers.Replace, false, []string{"E0 plan", "E1 issue", "E2 issue", "E3 verify", "E4 publish", "E8 done"}, []string{"E0 plan", "E1 issue", "E2 issue", "E3 verify", "E4 publish", "E8 done"}},
		} {
			r := newRig(t, storetest.SQLite(t), rigConfig{memory: providerstest.MemoryConfig{Issues: c.issues}})
			r.credential("a", c.strategy, nil)
			check := func(want []string, generation int64) {
				t.Helper()
				p, err := r.creds.Plan(t.Context(), "a")
				if err != nil || p.Blocked || p.Generation != generation || p.Account != "a" {
					t.Fatalf("%+v, %v", p, err)
				}
				if diff := cmp.Diff(want, effects(p)); diff != "" {
					t.Errorf("%s, issues %v (-want +got):\n%s", c.strategy, c.issues, diff)
				}
				if r.plan.Calls("Apply") != int(generation-1) || r.plan.Calls("Publish") != int(generation-1) || r.plan.Calls("Stage") != int(generation-1) {
					t.Errorf("%s: a plan changed something", c.strategy)
				}
			}
			check(c.first, 1)
			r.rotate("a")
			check(c.then, 2)
			p, err := r.creds.Plan(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			seen := slices.ContainsFunc(p.Effects, func(e PlannedEffect) bool { return e.Effect == "E2" && e.Sees != "" })
			if seen != (c.strategy == providers.Replace) {
				t.Errorf("%s: consumers notice: %v", c.strategy, seen)
			}
		}

		// What would stop it is said.
		r := newRig(t, db, rigConfig{})
		r.credential("a", providers.Dual, nil)
		r.rotate("a")
		r.memory.Write("kv/a", providers.Fields{}.Set("password", "sesame"))
		p, err := r.creds.Plan(t.Context(), "a")
		if err != nil || !p.Blocked {
			t.Fatalf("%+v, %v", p, err)
		}
		i := slices.IndexFunc(p.Effects, func(e PlannedEffect) bool { return e.Blocked != "" })
		if e := p.Effects[i]; e.Effect != "E4" || !strings.Contains(e.Blocked, "version 2, and we put version 1") || strings.Contains(e.Blocked, "sesame") {
			t.Errorf("%+v", e)
		}
		// And so does the rotation itself.
		failed := r.settle(r.start("a", nil).ID, StepFailed)
		if failed.FailedStep != StepPublish && failed.FailedStep != StepPlan {
			t.Errorf("it failed at %s", failed.FailedStep)
		}
		if p, err = r.creds.Plan(t.Context(), "a"); err != nil || !strings.Contains(p.Effects[0].Blocked, failed.ID) {
			t.Errorf("%+v, %v", p.Effects[0], err)
		}
	})
}

// finding is the first finding of a check; the zero one when there is none.
func finding(list []providers.Finding, check string) providers.Finding {
	for _, f := range list {
		if f.Check == check {
			return f
		}
	}
	return providers.Finding{}
}

func TestPreflightWhenSomethingIsWrong(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{quota: 5})
	k := newLocked(r)
	es, p, _ := newHooks(t, r)
	addEndpoint(t, es, "one")
	r.credential("a", providers.Dual, func(s *Spec) {
		s.Notify = []string{"one"}
		s.Schedule = schedule.Schedule{Every: 24 * time.Hour}
	})
	find := func(name string) []providers.Finding {
		t.Helper()
		list, err := r.creds.Preflight(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			if f.Check == "" || f.Detail == "" || f.OK && (f.Warning || f.Remedy != "") || !f.OK && f.Remedy == "" {
				t.Errorf("an odd finding: %+v", f)
			}
		}
		return list
	}
	want := func(name, check string, ok, warning bool, text string) {
		t.Helper()
		if f := finding(find(name), check); f.Check != check || f.OK != ok || f.Warning != warning || !strings.Contains(f.Detail, text) {
			t.Errorf("%s: got %+v", check, f)
		}
	}
	want("a", "state", true, false, "")
	want("a", "times", true, false, "")
	want("a", "self_reference", true, false, "")
	want("a", "account", true, false, "exists")
	want("a", "store_version", true, false, "kv/a")
	want("a", "quota", true, false, "1s")
	want("a", "endpoint", false, true, "nothing was sent")
	r.rotate("a")
	want("a", "login", true, false, "generation 1")
	deliver(t, r, es)
	want("a", "endpoint", true, false, "took its last webhook")
	p.answer = func(Outgoing) (Answer, error) { return Answer{Status: 500}, nil }
	r.clock.Advance(time.Second)
	r.rotate("a")
	deliver(t, r, es)
	want("a", "endpoint", false, true, "500")
	if _, err := es.Disable(t.Context(), "one", ""); err != nil {
		t.Fatal(err)
	}
	want("a", "endpoint", false, true, "disabled")
	endValue(t, r, r.values("a")[2])
	want("a", "login", false, true, "not accepted")
	r.memory.Write("kv/a", providers.Fields{}.Set("password", "sesame"))
	want("a", "store_version", false, false, "serves version 3, and we put version 2")
	if _, err := r.creds.Pause(t.Context(), "a", ""); err != nil {
		t.Fatal(err)
	}
	want("a", "paused", false, true, "not followed")
	r.settle(r.start("a", nil).ID, StepFailed)
	want("a", "rotation_failed", false, false, "waits for a person")

	// A path that is taken by somebody else.
	r.memory.Write("kv/b", providers.Fields{}.Set("password", "x"))
	r.credential("b", providers.Replace, nil)
	want("b", "store_version", false, false, "adopt is not set")
	want("b", "schedule", false, true, "no schedule")
	want("b", "overlap", false, true, "replace")
	c, err := r.creds.Get(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	spec := c.Spec
	spec.Adopt, spec.Strategy = true, providers.Dual
	window, err := schedule.ParseWindow("Sat 01:00-02:00")
	if err != nil {
		t.Fatal(err)
	}
	spec.Schedule, spec.Windows = schedule.Schedule{Cron: "@daily"}, []schedule.Window{window}
	if _, err := r.creds.Update(t.Context(), "b", c.Version, spec); err != nil {
		t.Fatal(err)
	}
	want("b", "store_version", true, false, "")
	want("b", "windows", false, true, "28 firings")
	want("b", "grace", false, true, "the grace is 0")

	// The account that Rotunda logs in with itself.
	login := lockedSpec()
	login.Login = login.Login.Set("username", "app")
	if _, err := r.systems.Create(t.Context(), TargetSort, "orders", login, store.Once{}); err != nil {
		t.Fatal(err)
	}
	for name, account := range map[string]string{"self": "app", "mine": "reader"} {
		r.memory.Account(account)
		if _, err := r.creds.Create(t.Context(), name, Spec{Target: "orders", Params: map[string]string{"account": account}}, store.Once{}); err != nil {
			t.Fatal(err)
		}
	}
	want("self", "self_reference", false, false, "login.username")
	want("mine", "self_reference", true, false, "")

	// Out of reach: a finding, no error.
	k.accepted = "another"
	want("mine", "target", false, false, "not accepted")
	r.plan.Steps = []providerstest.Step{{Method: "Read", Times: -1, Fault: providerstest.Drop}}
	want("b", "store", false, false, "kv/b")
	r.plan.Steps = nil
	list, err := r.systems.Test(t.Context(), StoreSort, "mem", "kv/a")
	if err != nil || len(list) != 2 || !list[0].OK || !list[1].OK {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err = r.systems.Test(t.Context(), TargetSort, "orders", ""); err != nil || len(list) != 1 || !list[0].OK {
		t.Errorf("%+v, %v", list, err)
	}
}

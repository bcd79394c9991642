package rotation

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

// foreignMark makes the target say that another rotation has set a value of an account.
func foreignMark(t testing.TB, r *rig, account string, generation int64) {
	t.Helper()
	target := r.memory.System().Target()
	_, err := target.Apply(t.Context(), providers.Change{
		Credential: account, Rotation: "ffffffff-ffff-7fff-8fff-ffffffffffff", Generation: generation, Epoch: 1 << 40, Strategy: providers.Dual, Params: map[string]string{"account": account},
		New: providers.Held{Generation: generation, Account: account, Fields: providers.Fields{}.Set("username", account).Set("password", "theirs")},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// endValue makes the target forget a value.
func endValue(t testing.TB, r *rig, h providers.Held) {
	t.Helper()
	if err := r.memory.System().Target().Revoke(t.Context(), providers.Change{}, h); err != nil {
		t.Fatal(err)
	}
}

func TestProbeWhenSomethingDrifts(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, r *rig, old providers.Fields)
		want Drift
		note string
	}{
		{"nothing", func(*testing.T, *rig, providers.Fields) {}, NoDrift, ""},
		{"a foreign value", func(_ *testing.T, r *rig, _ providers.Fields) {
			r.memory.Write("kv/a", providers.Fields{}.Set("password", "sesame"))
		}, DriftStore, "none of ours"},
		{"an older value of ours", func(_ *testing.T, r *rig, old providers.Fields) { r.memory.Write("kv/a", old) }, DriftStore, "older value of ours, of generation 2"},
		{"our value, written again", func(_ *testing.T, r *rig, _ providers.Fields) { r.memory.Write("kv/a", r.serves("a").Fields) }, DriftLabel, "as version 4, and we put it there as 3"},
		{"the target forgot", func(t *testing.T, r *rig, _ providers.Fields) { endValue(t, r, r.values("a")[3]) }, DriftTarget, "target mem does not accept"},
		{"both", func(t *testing.T, r *rig, _ providers.Fields) {
			endValue(t, r, r.values("a")[3])
			r.memory.Write("kv/a", providers.Fields{}.Set("password", "sesame"))
		}, DriftBoth, "either"},
		{"somebody else's marker", func(t *testing.T, r *rig, _ providers.Fields) { foreignMark(t, r, "a", 9) }, DriftMarker, "generation 9 of rotation ffffffff"},
	} {
		t.Run(c.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				r := newRig(t, db, rigConfig{memory: providerstest.MemoryConfig{Limit: 3}})
				r.credential("a", providers.Dual, nil)
				r.rotate("a")
				r.rotate("a")
				old := r.serves("a").Fields
				run := r.settle(r.start("a", nil).ID, StepGrace) // the old value is still sealed
				c.do(t, r, old)
				logins := r.plan.Calls("Verify")
				first, err := r.creds.Probe(t.Context(), "a")
				if err != nil || !first.Complete || first.Drift != c.want || !strings.Contains(first.Note, c.note) || (c.note == "") != (first.Note == "") {
					t.Fatalf("%+v, %v", first, err)
				}
				if n := r.plan.Calls("Verify") - logins; n != 1 {
					t.Errorf("%d logins for one probe", n)
				}
				for _, secret := range []string{"sesame", "theirs", old.Text("password"), r.serves("a").Fields.Text("password")} {
					if strings.Contains(first.Note, secret) {
						t.Error("the note holds a value")
					}
				}
				if _, err := r.creds.Probe(t.Context(), "a"); err != nil {
					t.Fatal(err)
				}
				got, err := r.creds.Get(t.Context(), "a")
				if err != nil || got.Drift != c.want || got.DriftNote != first.Note || got.ProbedAt.IsZero() || (c.want == NoDrift) != got.DriftSince.IsZero() {
					t.Errorf("%+v, %v", got, err)
				}
				events := 0
				for _, e := range r.heard("credentials/a") {
					if strings.HasPrefix(e, "credential.drift") {
						events++
					}
				}
				if want := map[bool]int{true: 0, false: 1}[c.want == NoDrift]; events != want {
					t.Errorf("%d events of drift, want %d", events, want)
				}
				_ = run
			})
		})
	}
}

func TestProbeWhenDriftEnds(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		r.credential("a", providers.Dual, nil)
		r.rotate("a")
		r.memory.Write("kv/a", providers.Fields{}.Set("password", "sesame"))
		if p, err := r.creds.Probe(t.Context(), "a"); err != nil || p.Drift != DriftStore {
			t.Fatalf("%+v, %v", p, err)
		}
		// A failed read changes nothing that is known.
		r.plan.Steps = []providerstest.Step{{Method: "Read", Times: -1, Fault: providerstest.Drop}}
		p, err := r.creds.Probe(t.Context(), "a")
		if err != nil || p.Complete || p.Drift != DriftStore || p.Stores[0].Err == "" || p.Stores[0].Serves != ServesUnknown {
			t.Errorf("%+v, %v", p, err)
		}
		r.plan.Steps = nil
		run := r.settle(r.start("a", func(s *StartRequest) { s.Overwrite = true }).ID, StepDone)
		if p, err = r.creds.Probe(t.Context(), "a"); err != nil || p.Drift != NoDrift || p.Stores[0].Generation != run.Generation {
			t.Errorf("%+v, %v", p, err)
		}
		var drift []string
		for _, e := range r.heard("credentials/a") {
			if strings.HasPrefix(e, "credential.drift") {
				drift = append(drift, e)
			}
		}
		if diff := cmp.Diff([]string{"credential.drift", "credential.drift_end"}, drift); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
	})
}

// What was rolled back leaves its marker with the target. That is no drift.
func TestProbeWhenRolledBack(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Dual, nil)
	r.rotate("a")
	run := r.settle(r.start("a", nil).ID, StepGrace)
	if _, err := r.Rollback(t.Context(), run.ID, "test"); err != nil {
		t.Fatal(err)
	}
	r.settle(run.ID, StepDone)
	if p, err := r.creds.Probe(t.Context(), "a"); err != nil || p.Drift != NoDrift || p.Target != TargetAccepts {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestProbeWhenARunIsUnderWay(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Dual, nil)
	_, err := r.creds.Probe(t.Context(), "a")
	wantReason(t, err, fault.ErrTransition, "no_value")
	r.rotate("a")
	r.start("a", nil)
	calls := r.plan.Calls("Read")
	_, err = r.creds.Probe(t.Context(), "a")
	wantReason(t, err, fault.ErrTransition, "is_rotating")
	if r.plan.Calls("Read") != calls {
		t.Error("the store was asked during a run")
	}
}

func TestProbePassWhenThereAreSome(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		const n = 10
		at := map[time.Duration]bool{}
		for i := range n {
			name := fmt.Sprint("c", i)
			r.credential(name, providers.Dual, nil)
			r.rotate(name)
			c, err := r.creds.Get(t.Context(), name)
			if err != nil || !c.ProbeAt.After(r.clock.Now()) || c.ProbeAt.After(r.clock.Now().Add(time.Hour)) {
				t.Fatalf("a probe at %v, now is %v, %v", c.ProbeAt, r.clock.Now(), err)
			}
			at[c.ProbeAt.Sub(c.ProbeAt.Truncate(time.Hour))] = true
		}
		if len(at) < n-1 {
			t.Errorf("%d credentials are probed at %d instants of the hour", n, len(at))
		}
		r.memory.Write("kv/c3", providers.Fields{}.Set("password", "sesame"))
		r.exec(`UPDATE credentials SET reason = 'x' WHERE name = 'c5'`) // tampered with
		r.start("c7", nil)
		start := r.clock.Now()
		for probes := 0; r.clock.Now().Before(start.Add(time.Hour)); probes++ {
			next, err := r.creds.ProbePass(t.Context(), r.clock.Now())
			if err != nil && !strings.Contains(err.Error(), "c5") || probes > 50 {
				t.Fatal(err)
			}
			if err != nil {
				next = r.clock.Now().Add(time.Second)
			}
			if next.Before(r.clock.Now()) || next.After(r.clock.Now().Add(2*time.Hour)) {
				t.Fatalf("next look at %v, now is %v", next, r.clock.Now())
			}
			r.clock.Set(next)
		}
		list, _, err := r.creds.List(t.Context(), ListCredentials{Drift: AnyDrift, Limit: 10})
		if err != nil || len(list) != 1 || list[0].Name != "c3" {
			t.Errorf("%d drift, %v", len(list), err)
		}
		for i := range n {
			c, err := r.creds.Get(t.Context(), fmt.Sprint("c", i))
			if probed := !c.ProbedAt.IsZero(); err != nil || probed != (i != 5 && i != 7) {
				t.Errorf("c%d was probed: %v, %v", i, probed, err)
			}
		}
	})
}

func TestProbeWhenChangedMeanwhile(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Dual, nil)
	r.rotate("a")
	p, err := r.creds.readProbe(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	r.rotate("a")
	err = r.creds.recordProbe(context.WithoutCancel(t.Context()), p, &ProbeResult{Complete: true, Drift: DriftStore})
	wantReason(t, err, fault.ErrChanged, "changed")
	if c, err := r.creds.Get(t.Context(), "a"); err != nil || c.Drift != NoDrift {
		t.Errorf("drift %q, %v", c.Drift, err)
	}
}

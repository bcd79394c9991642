package rotation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

// newFleet makes n rotated credentials c00, c01, …, with the label tier=1 on even ones, in a
// store with a quota of 5 rotations a second.
func newFleet(t testing.TB, db *store.DB, n int) (*rig, *Incidents) {
	t.Helper()
	r := newRig(t, db, rigConfig{})
	newLocked(r)
	if _, err := r.systems.Create(t.Context(), StoreSort, "shelf", SystemSpec{Kind: "shelf"}, store.Once{}); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		name := fmt.Sprintf("c%02d", i)
		r.credential(name, providers.Dual, func(s *Spec) {
			s.Stores = []Placement{{Store: "shelf", Path: "kv/" + name}}
			s.Labels = map[string]string{"tier": fmt.Sprint(1 + i%2)}
		})
		r.settle(r.start(name, nil).ID, StepDone)
	}
	in, err := NewIncidents(IncidentsConfig{DB: db, Credentials: r.creds})
	if err != nil {
		t.Fatal(err)
	}
	return r, in
}

func TestEmergencyWhenPlanned(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r, in := newFleet(t, db, 6)
		r.credential("never", providers.Dual, nil) // has no value
		// One has failed.
		r.plan.Steps = []providerstest.Step{{Method: "Prepare", Times: -1, Fault: providerstest.Refuse}}
		failed := r.settle(r.start("c03", nil).ID, StepFailed)
		r.plan.Steps = nil

		plan, err := in.PlanEmergency(t.Context(), Selector{All: true}, 0, "", 3)
		if err != nil {
			t.Fatal(err)
		}
		if plan.Count != 7 || plan.Rotate != 5 || !cmp.Equal(plan.Skip, map[string]int64{"rotation_failed": 1, "no_value": 1}) || len(plan.Items) != 3 || plan.NextPage != "c02" {
			t.Errorf("%+v", plan)
		}
		if len(plan.Loads) != 2 || plan.Loads[0].Name != "shelf" || plan.Loads[0].PerSecond != 5 || plan.Loads[0].Takes != time.Second || plan.Takes != time.Second || plan.Items[2].Starts != 400*time.Millisecond {
			t.Errorf("loads %+v, items %+v", plan.Loads, plan.Items)
		}
		rest, err := in.PlanEmergency(t.Context(), Selector{All: true}, 0, plan.NextPage, 10)
		if err != nil || len(rest.Items) != 4 || rest.NextPage != "" || rest.Hash != plan.Hash || rest.Items[0].Credential != "c03" || rest.Items[0].Skip != "rotation_failed" || !strings.Contains(rest.Items[0].Why, failed.ID) {
			t.Errorf("%+v, %v", rest, err)
		}
		for what, c := range map[string]struct {
			s    Selector
			want int64
		}{
			"a label":  {Selector{Labels: map[string]string{"tier": "1"}}, 3},
			"a store":  {Selector{Store: "shelf"}, 6},
			"a target": {Selector{Target: "mem"}, 7},
			"names":    {Selector{Credentials: []string{"c05", "c01", "c01"}}, 2},
		} {
			p, err := in.PlanEmergency(t.Context(), c.s, 0, "", 100)
			if err != nil || p.Count != c.want || int64(len(p.Items)) != c.want || p.Hash == plan.Hash {
				t.Errorf("%s: %+v, %v", what, p, err)
			}
		}
		if p, err := in.PlanEmergency(t.Context(), Selector{All: true}, time.Hour, "", 3); err != nil || p.Hash == plan.Hash {
			t.Errorf("another grace has the same hash, %v", err)
		}
		if n := r.count(`SELECT COUNT(*) FROM rotations WHERE cause = 'emergency'`); n != 0 {
			t.Errorf("a plan began %d runs", n)
		}

		for what, c := range map[string]struct {
			s      Selector
			grace  time.Duration
			kind   error
			reason string
		}{
			"nothing":        {Selector{}, 0, fault.ErrInvalid, "selector_ambiguous"},
			"two":            {Selector{All: true, Store: "shelf"}, 0, fault.ErrInvalid, "selector_ambiguous"},
			"1,001 names":    {Selector{Credentials: make([]string, 1001)}, 0, fault.ErrInvalid, "too_many"},
			"nine labels":    {Selector{Labels: map[string]string{"1": "", "2": "", "3": "", "4": "", "5": "", "6": "", "7": "", "8": "", "9": ""}}, 0, fault.ErrInvalid, "too_many"},
			"no name":        {Selector{Store: "a b"}, 0, fault.ErrInvalid, "bad_name"},
			"one not there":  {Selector{Credentials: []string{"c01", "nosuch"}}, 0, fault.ErrNotFound, "credential_not_found"},
			"negative grace": {Selector{All: true}, -1, fault.ErrInvalid, "grace_range"},
			"a long grace":   {Selector{All: true}, maxGrace + 1, fault.ErrInvalid, "grace_range"},
		} {
			_, err := in.PlanEmergency(t.Context(), c.s, c.grace, "", 10)
			f, ok := errors.AsType[*fault.Error](err)
			if !ok || !errors.Is(err, c.kind) || f.Reason != c.reason {
				t.Errorf("%s: got %v", what, err)
			}
		}
		_, err = in.StartEmergency(t.Context(), EmergencyRequest{Selector: Selector{All: true}})
		wantReason(t, err, fault.ErrInvalid, "reason_required")
		_, err = in.StartEmergency(t.Context(), EmergencyRequest{Selector: Selector{All: true}, Reason: "leak", PlanHash: rest.Hash[:63] + "x"})
		wantReason(t, err, fault.ErrChanged, "plan_changed")
		_, err = in.StartEmergency(t.Context(), EmergencyRequest{Selector: Selector{Store: "mem", All: false}, Reason: "leak"})
		if err != nil { // "never" has a place there
			t.Error(err)
		}
		_, err = in.StartEmergency(t.Context(), EmergencyRequest{Selector: Selector{Target: "nosuch"}, Reason: "leak"})
		wantReason(t, err, fault.ErrNotFound, "nothing_selected")
	})
}

// Promise: an emergency goes on where it was after a crash, and begins each run once.
func TestEmergencyWhenTheProcessDies(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		const n = 2*incidentBatch + 5
		r := newRig(t, db, rigConfig{})
		for i := range n {
			r.credential(fmt.Sprintf("c%02d", i), providers.Dual, func(s *Spec) { s.Adopt = true })
		}
		once := store.Once{Scope: "s", Key: "k", Fingerprint: "f"}
		incidents := func() *Incidents {
			systems, runs := r.replica(nil)
			cs, err := NewCredentials(CredentialsConfig{DB: db, Systems: systems, Rotations: runs})
			if err != nil {
				t.Fatal(err)
			}
			in, err := NewIncidents(IncidentsConfig{DB: db, Credentials: cs})
			if err != nil {
				t.Fatal(err)
			}
			return in
		}
		in := incidents()
		plan, err := in.PlanEmergency(t.Context(), Selector{All: true}, time.Minute, "", 1)
		if err != nil {
			t.Fatal(err)
		}
		ctx := audit.WithActor(t.Context(), audit.Actor{ID: "ada"})
		req := EmergencyRequest{Selector: Selector{All: true}, Reason: "leaked", PlanHash: plan.Hash, Grace: time.Minute, Once: once}
		i, err := in.StartEmergency(ctx, req)
		if err != nil || i.Total != n || i.State != IncidentOpen {
			t.Fatalf("%+v, %v", i, err)
		}
		if again, err := in.StartEmergency(ctx, req); err != nil || again.ID != i.ID {
			t.Errorf("the repeated request: %+v, %v", again, err)
		}
		// One batch, and the process is gone; two others go on at the same time.
		err = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			i, err := in.lockIncident(ctx, tx, i.ID)
			if err != nil {
				return err
			}
			_, err = in.advance(ctx, tx, i)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 2)
		for _, in := range []*Incidents{incidents(), incidents()} {
			go func() {
				_, err := in.Pass(t.Context(), r.clock.Now())
				done <- err
			}()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		got, err := in.Get(t.Context(), i.ID)
		if err != nil || got.Begun != n || got.Skipped != 0 || got.Steps[StepPlan] != n || got.State != IncidentOpen || got.Tampered() {
			t.Fatalf("%+v, %v", got, err)
		}
		if twice := r.count(`SELECT COUNT(*) FROM (SELECT credential FROM rotations GROUP BY credential HAVING COUNT(*) > 1) AS t`); twice != 0 {
			t.Errorf("%d credentials have two runs", twice)
		}
		run := r.get(r.ids("c00")[0])
		if run.Cause != Emergency || run.Incident != i.ID || run.Grace != time.Minute || run.Reason != "leaked" || run.Actor != "ada" {
			t.Errorf("%+v", run)
		}
		for range 100 {
			if next, err := r.Pass(t.Context(), r.clock.Now()); err != nil || next.IsZero() {
				break
			}
		}
		for n := range n {
			r.settle(r.ids(fmt.Sprintf("c%02d", n))[0], StepDone)
		}
		if _, err := in.Pass(t.Context(), r.clock.Now()); err != nil {
			t.Fatal(err)
		}
		got, err = in.Get(t.Context(), i.ID)
		if err != nil || got.State != IncidentClosed || got.EndedAt.IsZero() || got.Outcomes[Rotated] != n {
			t.Errorf("%+v, %v", got, err)
		}
		if next, err := in.Pass(t.Context(), r.clock.Now()); err != nil || !next.IsZero() {
			t.Errorf("nothing is open, next is %v, %v", next, err)
		}
		if diff := cmp.Diff([]string{"incident.close", "incident.start leaked"}, r.heard("incidents/"+i.ID)); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
		_, err = in.Stop(t.Context(), i.ID, "")
		wantReason(t, err, fault.ErrTransition, "already_closed")
		list, _, err := in.List(t.Context(), "", 10)
		if err != nil || len(list) != 1 || list[0].ID != i.ID {
			t.Errorf("%v, %v", list, err)
		}
	})
}

func TestEmergencyWhenStoppedAndTamperedWith(t *testing.T) {
	r, in := newFleet(t, storetest.SQLite(t), 4)
	r.exec(`UPDATE credentials SET reason = 'x' WHERE name = 'c01'`)
	i, err := in.StartEmergency(t.Context(), EmergencyRequest{Selector: Selector{All: true}, Reason: "leak"})
	if err != nil {
		t.Fatal(err)
	}
	begin := func() error {
		return r.db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			i, err := in.lockIncident(ctx, tx, i.ID)
			if err != nil {
				return err
			}
			batch, err := in.selected(ctx, tx, i.Selector, i.After, 2)
			if err != nil {
				return err
			}
			for _, s := range batch {
				if err := in.begin(ctx, tx, i, s); err != nil {
					return err
				}
				i.After = s.Name
			}
			return in.writeIncident(ctx, tx, i)
		})
	}
	if err := begin(); err != nil {
		t.Fatal(err)
	}
	stopped, err := in.Stop(t.Context(), i.ID, "enough")
	if err != nil || stopped.State != IncidentStopped || stopped.Begun != 1 || stopped.Skipped != 1 || !stopped.EndedAt.IsZero() {
		t.Fatalf("%+v, %v", stopped, err)
	}
	if diff := cmp.Diff([]string{"incident.skip tampered"}, keep(r.heard("credentials/c01"), "incident.")); diff != "" {
		t.Errorf("the trail (-want +got):\n%s", diff)
	}
	if _, err := in.Pass(t.Context(), r.clock.Now()); err != nil {
		t.Fatal(err)
	}
	if n := r.count(`SELECT COUNT(*) FROM rotations WHERE incident <> ''`); n != 1 {
		t.Errorf("%d runs, want the one that was begun before", n)
	}
	r.settle(r.ids("c00")[0], StepDone)
	if _, err := in.Pass(t.Context(), r.clock.Now()); err != nil {
		t.Fatal(err)
	}
	got, err := in.Get(t.Context(), i.ID)
	if err != nil || got.State != IncidentStopped || got.EndedAt.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	// Who may write to the database can't widen an incident.
	second, err := in.StartEmergency(t.Context(), EmergencyRequest{Selector: Selector{Credentials: []string{"c02"}}, Reason: "leak"})
	if err != nil {
		t.Fatal(err)
	}
	r.exec(`UPDATE incidents SET selector = '{"all":true}' WHERE id = $1`, second.ID)
	_, err = in.Pass(t.Context(), r.clock.Now())
	wantReason(t, err, fault.ErrDenied, "tampered")
	if n := r.count(`SELECT COUNT(*) FROM rotations WHERE incident = $1`, second.ID); n != 0 {
		t.Errorf("%d runs were begun by it", n)
	}
}

func keep(list []string, prefix string) (out []string) {
	for _, s := range list {
		if strings.HasPrefix(s, prefix) {
			out = append(out, s)
		}
	}
	return out
}

package server

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/rotation"
)

// A credential is made, looked at, rotated under the eyes of a watcher, and its values
// follow each other.
func TestRotationWhenWatchedToItsEnd(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		ctx := t.Context()
		b.system(t)
		b.memory.Account("orders")
		operator := b.token(t, apikeys.Create{Role: apikeys.Operator})
		credentials, runs := b.credentials(operator), b.runs(operator)
		spec := &rotundav1.CredentialSpec{
			Target: "mem", Strategy: "dual", Params: map[string]string{"account": "orders"}, Fields: map[string]string{"host": "db.test"},
			Stores:   []*rotundav1.Placement{{Store: "mem", Path: "kv/orders"}},
			Schedule: &rotundav1.Schedule{Cron: "0 3 * * *", Zone: "Europe/Berlin"}, Windows: []string{"Sat,Sun 22:00-04:00"}, Missed: "skip",
			Grace: durationpb.New(time.Hour), Labels: map[string]string{"tier": "1"}, Probe: durationpb.New(-1),
		}
		made, err := credentials.CreateCredential(ctx, withKey(&rotundav1.CreateCredentialRequest{Name: "orders", Spec: spec}, "k"))
		if err != nil {
			t.Fatal(err)
		}
		c := made.Msg.GetCredential()
		if d := cmp.Diff(spec, c.GetSpec(), protocmp.Transform()); d != "" {
			t.Errorf("what was asked for and what was made (-asked +made):\n%s", d)
		}
		if c.GetState() != rotundav1.CredentialState_CREDENTIAL_STATE_ACTIVE || c.GetNextAt() == nil || c.GetVersion() != 1 || c.GetTampered() {
			t.Errorf("made: %v", c)
		}
		if again, err := credentials.CreateCredential(ctx, withKey(&rotundav1.CreateCredentialRequest{Name: "orders", Spec: spec}, "k")); err != nil || again.Msg.GetCredential().GetVersion() != 1 {
			t.Errorf("the same request again: %v, %v", again, err)
		}
		checked, err := credentials.PreflightCredential(ctx, connect.NewRequest(&rotundav1.PreflightCredentialRequest{Credential: "orders"}))
		if err != nil || len(checked.Msg.GetFindings()) == 0 {
			t.Errorf("preflight: %v, %v", checked, err)
		}
		plan, err := credentials.PlanCredential(ctx, connect.NewRequest(&rotundav1.PlanCredentialRequest{Credential: "orders"}))
		if err != nil || len(plan.Msg.GetEffects()) < 5 || plan.Msg.GetGeneration() != 1 || len(plan.Msg.GetObstacles()) != 0 {
			t.Errorf("plan: %v, %v", plan, err)
		}

		started, err := runs.StartRotation(ctx, withKey(&rotundav1.StartRotationRequest{Credential: "orders", Reason: "first"}, "s"))
		if err != nil {
			t.Fatal(err)
		}
		id := started.Msg.GetRotation().GetId()
		if again, err := runs.StartRotation(ctx, withKey(&rotundav1.StartRotationRequest{Credential: "orders", Reason: "first"}, "s")); err != nil || again.Msg.GetRotation().GetId() != id {
			t.Errorf("the same request again: %v, %v", again, err)
		}
		stream, err := runs.WatchRotation(ctx, connect.NewRequest(&rotundav1.WatchRotationRequest{Rotation: id}))
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		if !stream.Receive() || stream.Msg().GetRotation().GetStep() != rotundav1.RotationStep_ROTATION_STEP_PLAN {
			t.Fatalf("the first message is %v, %v", stream.Msg(), stream.Err())
		}
		b.bring(t, id, rotation.StepDone)
		var last *rotundav1.Rotation
		for stream.Receive() {
			last = stream.Msg().GetRotation()
		}
		if stream.Err() != nil || last.GetStep() != rotundav1.RotationStep_ROTATION_STEP_DONE || last.GetOutcome() != rotundav1.RotationOutcome_ROTATION_OUTCOME_ROTATED || last.GetEndedAt() == nil {
			t.Errorf("the watch ended with %v, %v", last, stream.Err())
		}

		b.clock.Advance(time.Second) // ids of one millisecond have no order
		next, err := runs.StartRotation(ctx, connect.NewRequest(&rotundav1.StartRotationRequest{Credential: "orders"}))
		if err != nil {
			t.Fatal(err)
		}
		b.bring(t, next.Msg.GetRotation().GetId(), rotation.StepGrace)
		got, err := b.credentials(b.token(t, apikeys.Create{Role: apikeys.Auditor})).GetCredential(ctx, connect.NewRequest(&rotundav1.GetCredentialRequest{Credential: "orders"}))
		if err != nil {
			t.Fatal(err)
		}
		var states []string
		for _, v := range got.Msg.GetVersions() {
			states = append(states, v.GetState().String())
		}
		if d := cmp.Diff([]string{"VERSION_STATE_CURRENT", "VERSION_STATE_PREVIOUS"}, states); d != "" {
			t.Errorf("versions (-want +got):\n%s", d)
		}
		if r := got.Msg.GetRotation(); r.GetStep() != rotundav1.RotationStep_ROTATION_STEP_GRACE || r.GetGraceEndsAt() == nil || got.Msg.GetStores()[0].GetGeneration() != 2 || got.Msg.GetCredential().GetCurrent() != 2 {
			t.Errorf("in its grace: %v", got.Msg)
		}
		b.bring(t, next.Msg.GetRotation().GetId(), rotation.StepDone)

		history, err := runs.ListRotations(ctx, connect.NewRequest(&rotundav1.ListRotationsRequest{Credential: "orders", PageSize: 1}))
		if err != nil || len(history.Msg.GetRotations()) != 1 || history.Msg.GetNextPageToken() == "" {
			t.Fatalf("history: %v, %v", history, err)
		}
		older, err := runs.ListRotations(ctx, connect.NewRequest(&rotundav1.ListRotationsRequest{Credential: "orders", PageSize: 1, PageToken: history.Msg.GetNextPageToken()}))
		if err != nil || len(older.Msg.GetRotations()) != 1 || older.Msg.GetRotations()[0].GetId() != id || older.Msg.GetNextPageToken() != "" {
			t.Errorf("the page after: %v, %v", older, err)
		}
		if open, err := runs.ListRotations(ctx, connect.NewRequest(&rotundav1.ListRotationsRequest{Open: true})); err != nil || len(open.Msg.GetRotations()) != 0 {
			t.Errorf("open: %v, %v", open, err)
		}
		if one, err := runs.GetRotation(ctx, connect.NewRequest(&rotundav1.GetRotationRequest{Rotation: id})); err != nil || one.Msg.GetRotation().GetReason() != "first" || one.Msg.GetRotation().GetActor() != idOf(operator) {
			t.Errorf("get: %v, %v", one, err)
		}
		_, err = runs.GetRotation(ctx, connect.NewRequest(&rotundav1.GetRotationRequest{Rotation: strings.Repeat("0", 36)}))
		wantProblem(t, err, connect.CodeNotFound, "rotation_not_found")

		// Somebody else writes to the store: the probe tells.
		b.memory.Write("kv/orders", providers.Fields{}.Set("password", "of somebody else"))
		probed, err := credentials.ProbeCredential(ctx, connect.NewRequest(&rotundav1.ProbeCredentialRequest{Credential: "orders"}))
		if err != nil || probed.Msg.GetCredential().GetDrift() != rotundav1.Drift_DRIFT_STORE || !probed.Msg.GetComplete() || probed.Msg.GetStores()[0].GetServes() != "foreign" {
			t.Errorf("probe: %v, %v", probed, err)
		}
		for _, q := range []*rotundav1.ListCredentialsRequest{{Drifted: true}, {Target: "mem"}, {Store: "mem"}, {Labels: map[string]string{"tier": "1"}}, {State: rotundav1.CredentialState_CREDENTIAL_STATE_ACTIVE}} {
			if list, err := credentials.ListCredentials(ctx, connect.NewRequest(q)); err != nil || len(list.Msg.GetCredentials()) != 1 {
				t.Errorf("list of %v: %v, %v", q, list, err)
			}
		}
		for _, q := range []*rotundav1.ListCredentialsRequest{{Target: "other"}, {Labels: map[string]string{"tier": "2"}}, {State: rotundav1.CredentialState_CREDENTIAL_STATE_PAUSED}} {
			if list, err := credentials.ListCredentials(ctx, connect.NewRequest(q)); err != nil || len(list.Msg.GetCredentials()) != 0 {
				t.Errorf("list of %v: %v, %v", q, list, err)
			}
		}
		forecast, err := credentials.Forecast(ctx, connect.NewRequest(&rotundav1.ForecastRequest{Days: 30}))
		if err != nil || forecast.Msg.GetCredentials() != 1 || forecast.Msg.GetRotations() == 0 || len(forecast.Msg.GetHours()) == 0 {
			t.Errorf("forecast: %v, %v", forecast, err)
		}

		// What was seen has to be what is there.
		seen := probed.Msg.GetCredential()
		spec.Labels = map[string]string{"tier": "2"}
		_, err = credentials.UpdateCredential(ctx, connect.NewRequest(&rotundav1.UpdateCredentialRequest{Credential: "orders", Version: seen.GetVersion() + 7, Spec: spec}))
		wantProblem(t, err, connect.CodeAborted, "version_changed")
		changed, err := credentials.UpdateCredential(ctx, connect.NewRequest(&rotundav1.UpdateCredentialRequest{Credential: "orders", Version: seen.GetVersion(), Spec: spec}))
		if err != nil || changed.Msg.GetCredential().GetSpec().GetLabels()["tier"] != "2" {
			t.Errorf("update: %v, %v", changed, err)
		}
		paused, err := credentials.PauseCredential(ctx, connect.NewRequest(&rotundav1.PauseCredentialRequest{Credential: "orders", Reason: "freeze"}))
		if err != nil || paused.Msg.GetCredential().GetState() != rotundav1.CredentialState_CREDENTIAL_STATE_PAUSED || paused.Msg.GetCredential().GetReason() != "freeze" {
			t.Errorf("pause: %v, %v", paused, err)
		}
		resumed, err := credentials.ResumeCredential(ctx, connect.NewRequest(&rotundav1.ResumeCredentialRequest{Credential: "orders", Reason: "over"}))
		if err != nil || resumed.Msg.GetCredential().GetState() != rotundav1.CredentialState_CREDENTIAL_STATE_ACTIVE {
			t.Errorf("resume: %v, %v", resumed, err)
		}
		if _, err := credentials.DeleteCredential(ctx, connect.NewRequest(&rotundav1.DeleteCredentialRequest{Credential: "orders", Reason: "moved"})); err != nil {
			t.Error(err)
		}
		_, err = credentials.GetCredential(ctx, connect.NewRequest(&rotundav1.GetCredentialRequest{Credential: "orders"}))
		wantProblem(t, err, connect.CodeNotFound, "credential_not_found")
	})
}

func TestSpecWhenMalformed(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.system(t)
	b.memory.Account("orders")
	for field, change := range map[string]func(*rotundav1.CredentialSpec){
		"spec.grace":          func(s *rotundav1.CredentialSpec) { s.Grace = &durationpb.Duration{Seconds: 1 << 60} },
		"spec.quiet":          func(s *rotundav1.CredentialSpec) { s.Quiet = &durationpb.Duration{Seconds: 1, Nanos: -1} },
		"spec.schedule.every": func(s *rotundav1.CredentialSpec) { s.Schedule.Every = &durationpb.Duration{Seconds: 1 << 40} },
		"spec.windows":        func(s *rotundav1.CredentialSpec) { s.Windows = []string{"always"} },
		"spec.stores[0].path": func(s *rotundav1.CredentialSpec) { s.Stores[0].Path = strings.Repeat("x", 1025) },
	} {
		spec := &rotundav1.CredentialSpec{Target: "mem", Params: map[string]string{"account": "orders"}, Stores: []*rotundav1.Placement{{Store: "mem", Path: "kv/x"}}, Schedule: &rotundav1.Schedule{Every: durationpb.New(time.Hour)}}
		change(spec)
		_, err := b.credentials(b.admin).CreateCredential(t.Context(), connect.NewRequest(&rotundav1.CreateCredentialRequest{Name: "orders", Spec: spec}))
		code, p := problemOf(t, err)
		if code != connect.CodeInvalidArgument || p.GetField() != field {
			t.Errorf("%s: %s, field %q: %v", field, code, p.GetField(), err)
		}
	}
}

// A rotation that failed waits for a person, says why, and does what the person says.
func TestRotationWhenItFails(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		ctx := t.Context()
		runs := b.runs(b.admin)
		b.system(t)
		again, back, over := b.failing(t, "again"), b.failing(t, "back"), b.failing(t, "over")
		waiting, err := runs.ListRotations(ctx, connect.NewRequest(&rotundav1.ListRotationsRequest{Failed: true}))
		if err != nil || len(waiting.Msg.GetRotations()) != 3 {
			t.Fatalf("failed: %v, %v", waiting, err)
		}
		for _, r := range waiting.Msg.GetRotations() {
			if r.GetErrorReason() == "" || r.GetError() == "" || r.GetFailedStep() != rotundav1.RotationStep_ROTATION_STEP_ISSUE || r.GetRejections() == 0 {
				t.Errorf("a failed rotation: %v", r)
			}
		}
		// Its watch ends at once: nothing happens before a person has looked.
		stream, err := runs.WatchRotation(ctx, connect.NewRequest(&rotundav1.WatchRotationRequest{Rotation: again}))
		if err != nil {
			t.Fatal(err)
		}
		if !stream.Receive() || stream.Msg().GetRotation().GetStep() != rotundav1.RotationStep_ROTATION_STEP_FAILED || stream.Receive() || stream.Err() != nil {
			t.Errorf("the watch of a failed rotation: %v, %v", stream.Msg(), stream.Err())
		}
		_ = stream.Close()

		retried, err := runs.RetryRotation(ctx, connect.NewRequest(&rotundav1.RetryRotationRequest{Rotation: again, Reason: "policy is mended"}))
		if err != nil || retried.Msg.GetRotation().GetStep() == rotundav1.RotationStep_ROTATION_STEP_FAILED {
			t.Errorf("retry: %v, %v", retried, err)
		}
		_, err = runs.RetryRotation(ctx, connect.NewRequest(&rotundav1.RetryRotationRequest{Rotation: again}))
		if code, _ := problemOf(t, err); code != connect.CodeFailedPrecondition {
			t.Errorf("retry of one that goes on: %v", err)
		}
		b.bring(t, again, rotation.StepDone)
		rolled, err := runs.RollbackRotation(ctx, connect.NewRequest(&rotundav1.RollbackRotationRequest{Rotation: back, Reason: "not now"}))
		if err != nil {
			t.Fatalf("rollback: %v", err)
		}
		b.bring(t, rolled.Msg.GetRotation().GetId(), rotation.StepDone)
		left, err := runs.AbandonRotation(ctx, connect.NewRequest(&rotundav1.AbandonRotationRequest{Rotation: over, Reason: "gone"}))
		if err != nil || left.Msg.GetRotation().GetOutcome() != rotundav1.RotationOutcome_ROTATION_OUTCOME_ABANDONED {
			t.Errorf("abandon: %v, %v", left, err)
		}
		for id, want := range map[string]rotundav1.RotationOutcome{
			again: rotundav1.RotationOutcome_ROTATION_OUTCOME_ROTATED, back: rotundav1.RotationOutcome_ROTATION_OUTCOME_ROLLED_BACK, over: rotundav1.RotationOutcome_ROTATION_OUTCOME_ABANDONED,
		} {
			if r, err := runs.GetRotation(ctx, connect.NewRequest(&rotundav1.GetRotationRequest{Rotation: id})); err != nil || r.Msg.GetRotation().GetOutcome() != want {
				t.Errorf("%s: %v, %v, want %s", id, r, err, want)
			}
		}
	})
}

// An emergency does what the plan said that was looked at, or nothing.
func TestEmergencyWhenPlanIsHeldTo(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		ctx := t.Context()
		runs := b.runs(b.admin)
		b.system(t)
		for _, name := range []string{"a", "b", "c"} {
			b.labelled(t, name)
		}
		selector := &rotundav1.Selector{Labels: map[string]string{"tier": "1"}}
		plan, err := runs.PlanEmergency(ctx, connect.NewRequest(&rotundav1.PlanEmergencyRequest{Selector: selector}))
		if err != nil || plan.Msg.GetTotal() != 3 || !cmp.Equal(plan.Msg.GetCredentials(), []string{"a", "b", "c"}) || plan.Msg.GetPlanHash() == "" || len(plan.Msg.GetParts()) == 0 {
			t.Fatalf("plan: %v, %v", plan, err)
		}
		var paged []string
		for page := ""; ; {
			res, err := runs.PlanEmergency(ctx, connect.NewRequest(&rotundav1.PlanEmergencyRequest{Selector: selector, PageSize: 2, PageToken: page}))
			if err != nil || res.Msg.GetPlanHash() != plan.Msg.GetPlanHash() {
				t.Fatalf("a page of the plan: %v, %v", res, err)
			}
			paged = append(paged, res.Msg.GetCredentials()...)
			if page = res.Msg.GetNextPageToken(); page == "" {
				break
			}
		}
		if d := cmp.Diff([]string{"a", "b", "c"}, paged); d != "" {
			t.Errorf("the pages of the plan together (-want +got):\n%s", d)
		}
		start := func(hash, key string) (*rotundav1.Incident, error) {
			res, err := runs.StartEmergency(ctx, withKey(&rotundav1.StartEmergencyRequest{Selector: selector, Reason: "leaked", PlanHash: hash}, key))
			if err != nil {
				return nil, err
			}
			return res.Msg.GetIncident(), nil
		}
		b.labelled(t, "d")
		_, err = start(plan.Msg.GetPlanHash(), "")
		if code, _ := problemOf(t, err); code != connect.CodeAborted {
			t.Errorf("a plan that is no longer the same: %v", err)
		}
		if list, err := runs.ListIncidents(ctx, connect.NewRequest(&rotundav1.ListIncidentsRequest{})); err != nil || len(list.Msg.GetIncidents()) != 0 {
			t.Errorf("incidents: %v, %v", list, err)
		}
		plan, err = runs.PlanEmergency(ctx, connect.NewRequest(&rotundav1.PlanEmergencyRequest{Selector: selector}))
		if err != nil {
			t.Fatal(err)
		}
		made, err := start(plan.Msg.GetPlanHash(), "k")
		if err != nil || made.GetTotal() != 4 || made.GetState() != rotundav1.IncidentState_INCIDENT_STATE_OPEN {
			t.Fatalf("start: %v, %v", made, err)
		}
		if again, err := start(plan.Msg.GetPlanHash(), "k"); err != nil || again.GetId() != made.GetId() {
			t.Errorf("the same request again: %v, %v", again, err)
		}
		for range 200 {
			for _, pass := range []func(context.Context, time.Time) (time.Time, error){b.Incidents.Pass, b.Rotations.Pass} {
				if _, err := pass(ctx, b.clock.Now()); err != nil {
					t.Fatal(err)
				}
			}
			b.clock.Advance(time.Second)
			got, err := runs.GetIncident(ctx, connect.NewRequest(&rotundav1.GetIncidentRequest{Incident: made.GetId()}))
			if err != nil {
				t.Fatal(err)
			}
			if made = got.Msg.GetIncident(); made.GetState() == rotundav1.IncidentState_INCIDENT_STATE_CLOSED {
				break
			}
		}
		if made.GetState() != rotundav1.IncidentState_INCIDENT_STATE_CLOSED || made.GetRotated() != 4 || made.GetFailed() != 0 || made.GetEndedAt() == nil {
			t.Errorf("at the end: %v", made)
		}
		rotations, err := runs.ListRotations(ctx, connect.NewRequest(&rotundav1.ListRotationsRequest{Incident: made.GetId()}))
		if err != nil || len(rotations.Msg.GetRotations()) != 4 || rotations.Msg.GetRotations()[0].GetCause() != rotundav1.RotationCause_ROTATION_CAUSE_EMERGENCY {
			t.Errorf("its rotations: %v, %v", rotations, err)
		}
		next, err := start("", "")
		if err != nil {
			t.Fatal(err)
		}
		stopped, err := runs.StopIncident(ctx, connect.NewRequest(&rotundav1.StopIncidentRequest{Incident: next.GetId(), Reason: "drill"}))
		if err != nil || stopped.Msg.GetIncident().GetState() == rotundav1.IncidentState_INCIDENT_STATE_OPEN {
			t.Errorf("stop: %v, %v", stopped, err)
		}
		for _, bad := range []*rotundav1.Selector{{}, {Target: "mem", All: true}, {Credentials: []string{"a"}, Labels: map[string]string{"tier": "1"}}} {
			_, err := runs.PlanEmergency(ctx, connect.NewRequest(&rotundav1.PlanEmergencyRequest{Selector: bad}))
			if code, _ := problemOf(t, err); code != connect.CodeInvalidArgument {
				t.Errorf("selector %v: %v", bad, err)
			}
		}
	})
}

// labelled makes a credential with a label, and a value.
func (b *bed) labelled(t testing.TB, name string) {
	t.Helper()
	b.credential(t, name, func(s *rotation.Spec) { s.Labels = map[string]string{"tier": "1"} })
	b.bring(t, b.start(t, name), rotation.StepDone)
}

// A watch that nothing happens to is alive, and ends with the token, and is one of a
// bounded number.
func TestWatchRotationWhenNothingHappens(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.heartbeat, b.recheck = time.Millisecond, time.Millisecond
		b.rotations.perToken = 2
		b.system(t)
		b.credential(t, "orders")
		id := b.start(t, "orders")
		auditor := b.token(t, apikeys.Create{Role: apikeys.Auditor})
		watch := func() *connect.ServerStreamForClient[rotundav1.WatchRotationResponse] {
			t.Helper()
			stream, err := b.runs(auditor).WatchRotation(t.Context(), connect.NewRequest(&rotundav1.WatchRotationRequest{Rotation: id}))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = stream.Close() })
			return stream
		}
		first, second := watch(), watch()
		for range 3 { // the rotation, and then beats
			for _, s := range []*connect.ServerStreamForClient[rotundav1.WatchRotationResponse]{first, second} {
				if !s.Receive() || s.Msg().GetRotation().GetId() != id || s.Msg().GetRotation().GetStep() != rotundav1.RotationStep_ROTATION_STEP_PLAN {
					t.Fatalf("got %v, %v", s.Msg(), s.Err())
				}
			}
		}
		third := watch()
		if third.Receive() {
			t.Error("a third watch of one token")
		}
		wantProblem(t, third.Err(), connect.CodeResourceExhausted, "too_many_watchers")
		if _, err := b.Tokens.Revoke(t.Context(), idOf(auditor), "drill"); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*connect.ServerStreamForClient[rotundav1.WatchRotationResponse]{first, second} {
			for s.Receive() {
			}
			wantProblem(t, s.Err(), connect.CodePermissionDenied, "token_ended")
		}
		absent, err := b.runs(b.admin).WatchRotation(t.Context(), connect.NewRequest(&rotundav1.WatchRotationRequest{Rotation: strings.Repeat("0", 36)}))
		if err != nil {
			t.Fatal(err)
		}
		if absent.Receive() {
			t.Error("a rotation that is not there is shown")
		}
		wantProblem(t, absent.Err(), connect.CodeNotFound, "rotation_not_found")
	})
}

// When the database is gone, everything about credentials says so; nothing waits, and
// nothing of the database is told.
func TestCredentialsWhenDatabaseIsGone(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBed(t, db)
	b.system(t)
	b.credential(t, "orders")
	b.kept(t, "orders-db", "orders/db")
	id := b.start(t, "orders")
	if a := b.post(t, b.admin, home, "/rotunda.v1.TokenService/WhoAmI", "{}"); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for short, body := range map[string]string{
		"StoreService/GetStore": `{"store":"mem"}`, "StoreService/ListStores": `{}`, "StoreService/ReadSecret": `{"path":"orders/db"}`,
		"StoreService/CreateStore":        `{"name":"new","kind":"memory","login":{"password":"hush-hush"}}`,
		"TargetService/ListTargets":       `{}`,
		"CredentialService/GetCredential": `{"credential":"orders"}`, "CredentialService/ListCredentials": `{}`, "CredentialService/PauseCredential": `{"credential":"orders"}`,
		"RotationService/StartRotation": `{"credential":"orders"}`, "RotationService/GetRotation": `{"rotation":"` + id + `"}`, "RotationService/ListRotations": `{}`,
		"RotationService/ListIncidents": `{}`, "EndpointService/ListEndpoints": `{}`, "EndpointService/ListDeliveries": `{}`,
	} {
		a := b.post(t, b.admin, home, "/rotunda.v1."+short, body)
		if a.code != "unavailable" || strings.Contains(a.message, "database is closed") || strings.Contains(a.message, "hush") {
			t.Errorf("%s: %s %q", short, a.code, a.message)
		}
	}
	if a := b.get(t, b.admin, home, "/metrics"); a.status != http.StatusOK || strings.Contains(a.body, "rotunda_credentials_drifted") || !strings.Contains(a.body, "rotunda_rotation_workers ") {
		t.Errorf("metrics: %d", a.status)
	}
	if errors.Is(b.DB.Ping(t.Context()), nil) {
		t.Error("the database is there")
	}
}

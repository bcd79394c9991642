package server

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// keysOf returns the log's keys, of which the caller trusts the first.
func (b *bed) keysOf(t testing.TB) *trail.Keys {
	t.Helper()
	res, err := b.trail(b.admin).ListTrailKeys(t.Context(), connect.NewRequest(&rotundav1.ListTrailKeysRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := trail.ParseKeys(res.Msg.GetKeys()[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := keys.Follow(res.Msg.GetHandovers()); err != nil {
		t.Fatal(err)
	}
	return keys
}

func (b *bed) checkpointOf(t testing.TB, size int64) (trail.Checkpoint, string) {
	t.Helper()
	res, err := b.trail(b.admin).GetCheckpoint(t.Context(), connect.NewRequest(&rotundav1.GetCheckpointRequest{Size: size}))
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.keysOf(t).Open(res.Msg.GetCheckpoint())
	if err != nil {
		t.Fatal(err)
	}
	return c, res.Msg.GetCheckpoint()
}

// Promise: what the API says of an event can be verified with the log's key alone.
func TestTrailWhenItIsProved(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		client := b.trail(b.token(t, apikeys.Create{Role: apikeys.Auditor}))
		wantProblem(t, errOf(client.GetCheckpoint(t.Context(), connect.NewRequest(&rotundav1.GetCheckpointRequest{}))), connect.CodeNotFound, "checkpoint_not_found")
		b.record(t, audit.Event{Action: "keyset.create", Resource: "keysets/a", Actor: "ada", Partner: "acme", Reason: "why", Address: "192.0.2.9", Detail: map[string]any{"a": 1}})
		waiting, err := client.ListEvents(t.Context(), connect.NewRequest(&rotundav1.ListEventsRequest{Partner: "acme"}))
		if err != nil || len(waiting.Msg.GetEvents()) != 1 || waiting.Msg.GetEvents()[0].GetIndex() != -1 {
			t.Fatalf("an event that waits: %v, %v", waiting, err)
		}
		id := waiting.Msg.GetEvents()[0].GetId()
		wantProblem(t, errOf(client.ProveEvent(t.Context(), connect.NewRequest(&rotundav1.ProveEventRequest{Id: id}))), connect.CodeNotFound, "checkpoint_not_found")
		b.sequence(t)
		first, _ := b.checkpointOf(t, 0)
		b.grow(t, 300)
		listed, err := client.ListEvents(t.Context(), connect.NewRequest(&rotundav1.ListEventsRequest{Partner: "acme"}))
		if err != nil || len(listed.Msg.GetEvents()) != 1 {
			t.Fatal(listed, err)
		}
		e := listed.Msg.GetEvents()[0]
		if e.GetIndex() != first.Size-1 || e.GetDetail() != `{"a":1}` || e.GetActor() != "ada" || len(e.GetErased()) != 0 {
			t.Errorf("listed as %v", e)
		}

		proof, err := client.ProveEvent(t.Context(), connect.NewRequest(&rotundav1.ProveEventRequest{Id: id}))
		if err != nil {
			t.Fatal(err)
		}
		record, err := bundle.VerifyProof(proof.Msg.GetProof(), b.keysOf(t))
		if err != nil || record.ID != id || record.Index != e.GetIndex() || record.Actor != "ada" {
			t.Errorf("proved %+v, %v", record, err)
		}
		if _, err := bundle.VerifyProof(strings.Replace(proof.Msg.GetProof(), "\nindex ", "\nindex 1", 1), b.keysOf(t)); err == nil {
			t.Error("the proof is good for another index")
		}
		wantProblem(t, errOf(client.ProveEvent(t.Context(), connect.NewRequest(&rotundav1.ProveEventRequest{Id: "x"}))), connect.CodeNotFound, "event_not_found")

		now, _ := b.checkpointOf(t, 0)
		if now.Size != 300 {
			t.Fatalf("the checkpoint is of %d", now.Size)
		}
		if old, _ := b.checkpointOf(t, first.Size); old != first {
			t.Errorf("the checkpoint of %d is %v, was %v", first.Size, old, first)
		}
		consistent, err := client.ProveConsistency(t.Context(), connect.NewRequest(&rotundav1.ProveConsistencyRequest{OldSize: first.Size}))
		if err != nil {
			t.Fatal(err)
		}
		var path tlog.TreeProof
		for _, h := range consistent.Msg.GetHashes() {
			path = append(path, tlog.Hash(h))
		}
		if err := tlog.CheckTree(path, now.Size, now.Root, first.Size, first.Root); err != nil {
			t.Error(err)
		}
		if c, err := b.keysOf(t).Open(consistent.Msg.GetCheckpoint()); err != nil || c != now {
			t.Errorf("the proof is to %v, %v", c, err)
		}
		for _, c := range []struct {
			old, size int64
			code      connect.Code
			reason    string
		}{{301, 0, connect.CodeInvalidArgument, "size_range"}, {2, 299, connect.CodeNotFound, "checkpoint_not_found"}, {1, 301, connect.CodeNotFound, "checkpoint_not_found"}} {
			_, err := client.ProveConsistency(t.Context(), connect.NewRequest(&rotundav1.ProveConsistencyRequest{OldSize: c.old, NewSize: c.size}))
			wantProblem(t, err, c.code, c.reason)
		}
	})
}

func errOf[T any](_ T, err error) error { return err }

func TestTrailKeyWhenRotatedAndRestarted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.grow(t, 20)
		client := b.settings(b.admin)
		rotated, err := client.RotateTrailKey(t.Context(), connect.NewRequest(&rotundav1.RotateTrailKeyRequest{Reason: "yearly"}))
		if err != nil {
			t.Fatal(err)
		}
		b.grow(t, 25)
		keys := b.keysOf(t).List()
		if len(keys) != 2 || keys[1] != rotated.Msg.GetKey() {
			t.Fatalf("keys %q, want %q last", keys, rotated.Msg.GetKey())
		}
		b.checkpointOf(t, 0) // verifies from the first key on
		b.exec(t, `UPDATE trail SET stopped = 'drill'`)
		restarted, err := client.RestartTrail(t.Context(), connect.NewRequest(&rotundav1.RestartTrailRequest{Reason: "restored"}))
		if err != nil {
			t.Fatal(err)
		}
		b.grow(t, 30)
		c, _ := b.checkpointOf(t, 0)
		if c.Origin != restarted.Msg.GetOrigin() || !strings.HasPrefix(c.Origin, "rotunda.test/trail~") || !strings.HasPrefix(restarted.Msg.GetKey(), c.Origin+"+") {
			t.Errorf("restarted as %v, the checkpoint is of %q", restarted.Msg, c.Origin)
		}
		status, err := b.trail(b.admin).GetTrailStatus(t.Context(), connect.NewRequest(&rotundav1.GetTrailStatusRequest{}))
		if err != nil || status.Msg.GetStopped() != "" || status.Msg.GetKey() != restarted.Msg.GetKey() || status.Msg.GetOrigin() != c.Origin || status.Msg.GetSize() != 30 {
			t.Errorf("status %v, %v", status, err)
		}
	})
}

func (b *bed) exec(t testing.TB, statement string, args ...any) {
	t.Helper()
	err := b.db.Update(context.WithoutCancel(t.Context()), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, statement, args...)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestTrailStatusWhenAsked(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.grow(t, 10)
		b.clock.Advance(time.Minute)
		since := b.clock.Now()
		b.record(t, audit.Event{Action: "x"}, audit.Event{Action: "x"})
		b.clock.Advance(time.Minute)
		b.record(t, audit.Event{Action: "x"})
		client := b.trail(b.token(t, apikeys.Create{Role: apikeys.Auditor})) // one event more
		res, err := client.GetTrailStatus(t.Context(), connect.NewRequest(&rotundav1.GetTrailStatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		m := res.Msg
		if m.GetOrigin() != "rotunda.test/trail" || m.GetSize() != 10 || m.GetWaiting() != 4 || !m.GetWaitingSince().AsTime().Equal(since) ||
			m.GetStopped() != "" || m.GetPruned() != 0 || m.GetRetentionSeconds() != 0 || !m.GetCheckpointAt().AsTime().Equal(epoch) {
			t.Errorf("status %v", m)
		}
		if _, signed := b.checkpointOf(t, 0); m.GetCheckpoint() != signed {
			t.Error("it has another checkpoint than the newest")
		}
		if keys := b.keysOf(t).List(); m.GetKey() != keys[0] {
			t.Errorf("it has the key %q", m.GetKey())
		}
		b.exec(t, `UPDATE trail SET stopped = 'drill'`)
		if res, err = client.GetTrailStatus(t.Context(), connect.NewRequest(&rotundav1.GetTrailStatusRequest{})); err != nil || res.Msg.GetStopped() != "drill" {
			t.Errorf("stopped: %v, %v", res, err)
		}
	})
}

func TestRetentionAndHoldsWhenSet(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.grow(t, 10)
		b.record(t, audit.Event{Action: "x", Partner: "acme", Resource: "keysets/a/keys/1"})
		b.sequence(t)
		client, audits := b.settings(b.admin), b.trail(b.admin)
		hold, err := client.CreateHold(t.Context(), connect.NewRequest(&rotundav1.CreateHoldRequest{Hold: &rotundav1.Hold{Name: "case-7", Reason: "court", Partner: "acme", Resource: "keysets/a/"}}))
		if err != nil || hold.Msg.GetHold().GetName() != "case-7" || !hold.Msg.GetHold().GetCreatedAt().AsTime().Equal(b.clock.Now()) {
			t.Fatal(hold, err)
		}
		b.sequence(t)
		b.clock.Advance(48 * time.Hour)
		set := func(seconds int64, dry bool) *rotundav1.SetRetentionResponse {
			t.Helper()
			res, err := client.SetRetention(t.Context(), connect.NewRequest(&rotundav1.SetRetentionRequest{Seconds: seconds, DryRun: dry}))
			if err != nil {
				t.Fatal(err)
			}
			return res.Msg
		}
		const day = 24 * 60 * 60
		if res := set(day, true); res.GetDue() != 11 || res.GetHeld() != 1 || res.GetWaitsFor() != "" {
			t.Errorf("planned: %v", res)
		}
		if keep, err := b.Trail.Retention(t.Context()); err != nil || keep != 0 {
			t.Errorf("a plan set retention to %v, %v", keep, err)
		}
		if res := set(3*day, true); res.GetDue() != 0 {
			t.Errorf("planned for younger events: %v", res)
		}
		if res := set(day, false); res.GetDue() != 11 || res.GetHeld() != 1 {
			t.Errorf("set: %v", res)
		}
		pruned, err := b.Trail.Prune(t.Context(), b.clock.Now())
		if err != nil || pruned.Deleted != 11 || pruned.Held != 1 {
			t.Errorf("pruned %+v, %v: the plan was wrong", pruned, err)
		}
		status, err := audits.GetTrailStatus(t.Context(), connect.NewRequest(&rotundav1.GetTrailStatusRequest{}))
		if err != nil || status.Msg.GetRetentionSeconds() != day || status.Msg.GetPruned() != 12 || len(status.Msg.GetHolds()) != 1 {
			t.Errorf("status %v, %v", status, err)
		}
		for _, seconds := range []int64{1, day + 1, 1 << 60} {
			_, err := client.SetRetention(t.Context(), connect.NewRequest(&rotundav1.SetRetentionRequest{Seconds: seconds}))
			wantProblem(t, err, connect.CodeInvalidArgument, "retention_range")
		}
		_, err = client.ReleaseHold(t.Context(), connect.NewRequest(&rotundav1.ReleaseHoldRequest{Name: "case-7", Reason: "over"}))
		list, err2 := client.ListHolds(t.Context(), connect.NewRequest(&rotundav1.ListHoldsRequest{}))
		if err != nil || err2 != nil || len(list.Msg.GetHolds()) != 0 {
			t.Errorf("released: %v, %v, %v", list, err, err2)
		}
		_, err = client.ReleaseHold(t.Context(), connect.NewRequest(&rotundav1.ReleaseHoldRequest{Name: "case-7", Reason: "over"}))
		wantProblem(t, err, connect.CodeNotFound, "hold_not_found")
	})
}

func TestFieldsWhenErased(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.record(t, audit.Event{Action: "x", Actor: "ada", Address: "192.0.2.77", Detail: map[string]any{"name": "ada"}})
		b.sequence(t)
		client := b.settings(b.admin)
		req := &rotundav1.EraseFieldsRequest{Fields: []string{"actor", "detail"}, Actor: "ada", Reason: "request 5", DryRun: true}
		res, err := client.EraseFields(t.Context(), connect.NewRequest(req))
		if err != nil || res.Msg.GetEvents() != 1 || res.Msg.GetReceipt() != "" {
			t.Fatal(res, err)
		}
		req.DryRun = false
		if res, err = client.EraseFields(t.Context(), connect.NewRequest(req)); err != nil || res.Msg.GetEvents() != 1 || res.Msg.GetReceipt() == "" || res.Msg.GetSelectors() != "actor=ada\n" {
			t.Fatal(res, err)
		}
		list, err := b.trail(b.admin).ListEvents(t.Context(), connect.NewRequest(&rotundav1.ListEventsRequest{Action: "x"}))
		if err != nil || len(list.Msg.GetEvents()) != 1 {
			t.Fatal(list, err)
		}
		e := list.Msg.GetEvents()[0]
		if e.GetActor() != "" || e.GetDetail() != "" || e.GetAddress() != "192.0.2.77" || fmt.Sprint(e.GetErased()) != "[actor detail]" {
			t.Errorf("erased: %v", e)
		}
		b.sequence(t)
		proof, err := b.trail(b.admin).ProveEvent(t.Context(), connect.NewRequest(&rotundav1.ProveEventRequest{Id: e.GetId()}))
		if err != nil {
			t.Fatal(err)
		}
		if r, err := bundle.VerifyProof(proof.Msg.GetProof(), b.keysOf(t)); err != nil || !r.IsErased(trail.Actor) {
			t.Errorf("an event with erased fields is proved: %v", err)
		}
		_, err = client.EraseFields(t.Context(), connect.NewRequest(&rotundav1.EraseFieldsRequest{Fields: []string{"action"}, Actor: "ada", Reason: "x"}))
		wantProblem(t, err, connect.CodeInvalidArgument, "field_unknown")
	})
}

func TestWitnessWhenItCosigns(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.grow(t, 10)
		w, other := newCosigner(t, "witness.test/w"), newCosigner(t, "witness.test/other")
		client := b.settings(b.admin)
		made, err := client.CreateWitness(t.Context(), connect.NewRequest(&rotundav1.CreateWitnessRequest{Vkey: w.vkey}))
		if err != nil || made.Msg.GetWitness().GetName() != "witness.test/w" || made.Msg.GetWitness().GetState() != "unknown" {
			t.Fatal(made, err)
		}
		_, err = client.CreateWitness(t.Context(), connect.NewRequest(&rotundav1.CreateWitnessRequest{Vkey: w.vkey + "x"}))
		wantProblem(t, err, connect.CodeInvalidArgument, "vkey_malformed")
		b.sequence(t)
		c, signed := b.checkpointOf(t, 0)
		add := func(text string) (*rotundav1.AddCosignatureResponse, error) {
			res, err := client.AddCosignature(t.Context(), connect.NewRequest(&rotundav1.AddCosignatureRequest{Checkpoint: text}))
			if err != nil {
				return nil, err
			}
			return res.Msg, nil
		}
		body, _, _ := strings.Cut(signed, "\n\n")
		at := b.clock.Now().Add(-time.Minute)
		line := w.cosign(body+"\n", at)
		wrong := w.cosign(strings.Replace(body, "10\n", "11\n", 1), at)
		for _, bad := range []struct {
			text   string
			code   connect.Code
			reason string
		}{
			{"nonsense", connect.CodeInvalidArgument, "checkpoint_malformed"},
			{signed, connect.CodeInvalidArgument, "witness_unknown"},
			{signed + other.cosign(body+"\n", at) + "\n", connect.CodeInvalidArgument, "witness_unknown"},
			{signed + wrong + "\n", connect.CodeInvalidArgument, "cosignature_wrong"},
			{trail.Checkpoint{Origin: c.Origin, Size: c.Size, Root: tlog.Hash{1}}.Text() + "\n" + line + "\n", connect.CodeFailedPrecondition, "checkpoint_differs"},
			{trail.Checkpoint{Origin: c.Origin, Size: c.Size + 1, Root: c.Root}.Text() + "\n" + line + "\n", connect.CodeNotFound, "checkpoint_not_found"},
		} {
			_, err := add(bad.text)
			wantProblem(t, err, bad.code, bad.reason)
		}
		res, err := add(signed + other.cosign(body+"\n", at) + "\n" + line + "\n")
		if err != nil || fmt.Sprint(res.GetWitnesses()) != "[witness.test/w]" {
			t.Fatal(res, err)
		}
		parsed, err := trail.ParseWitness(w.vkey)
		if err != nil {
			t.Fatal(err)
		}
		_, cosigned := b.checkpointOf(t, 0)
		if seen, err := parsed.Verify(cosigned); err != nil || !seen.Equal(at) {
			t.Errorf("the checkpoint is cosigned at %v, %v", seen, err)
		}
		if strings.Contains(cosigned, "witness.test/other") {
			t.Error("the line of a stranger was kept")
		}
		list, err := client.ListWitnesses(t.Context(), connect.NewRequest(&rotundav1.ListWitnessesRequest{}))
		if err != nil || len(list.Msg.GetWitnesses()) != 1 || list.Msg.GetWitnesses()[0].GetSize() != c.Size || !list.Msg.GetWitnesses()[0].GetCosignedAt().AsTime().Equal(at) {
			t.Errorf("witnesses %v, %v", list, err)
		}
		if _, err := client.DeleteWitness(t.Context(), connect.NewRequest(&rotundav1.DeleteWitnessRequest{Name: "witness.test/w"})); err != nil {
			t.Error(err)
		}
		_, err = add(signed + line + "\n")
		wantProblem(t, err, connect.CodeInvalidArgument, "witness_unknown")
	})
}

func TestIntentsAndEvidenceWhenAsked(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		var open, ended string
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) (err error) {
			if open, err = audit.Begin(ctx, tx, audit.Event{Action: "credential.issue", Resource: "credentials/db"}); err != nil {
				return err
			}
			if ended, err = audit.Begin(ctx, tx, audit.Event{Action: "credential.issue", Resource: "credentials/web"}); err != nil {
				return err
			}
			return audit.End(ctx, tx, ended, audit.Event{Action: "credential.issue", Resource: "credentials/web", Outcome: audit.Failed})
		})
		if err != nil {
			t.Fatal(err)
		}
		client := b.trail(b.admin)
		intents := func(req *rotundav1.ListOpenIntentsRequest) []*rotundav1.Event {
			t.Helper()
			res, err := client.ListOpenIntents(t.Context(), connect.NewRequest(req))
			if err != nil {
				t.Fatal(err)
			}
			return res.Msg.GetEvents()
		}
		if got := intents(&rotundav1.ListOpenIntentsRequest{}); len(got) != 0 {
			t.Errorf("what began just now is listed: %v", got)
		}
		b.clock.Advance(begunBefore + time.Second)
		if got := intents(&rotundav1.ListOpenIntentsRequest{}); len(got) != 1 || got[0].GetId() != open || got[0].GetOutcome() != "started" {
			t.Errorf("open intents: %v", got)
		}
		if got := intents(&rotundav1.ListOpenIntentsRequest{Before: timestamppb.New(epoch)}); len(got) != 0 {
			t.Errorf("begun before then: %v", got)
		}

		usage := &audit.Usage{DB: db}
		since := b.clock.Now()
		b.clock.Advance(time.Minute)
		usage.Count(audit.TokenUsage, "tokens/x", "", 3, b.clock.Now())
		usage.Count(audit.TokenUsage, "tokens/x", "address", 2, b.clock.Now())
		if err := usage.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := client.GetEvidence(t.Context(), connect.NewRequest(&rotundav1.GetEvidenceRequest{Resource: "tokens/x", Since: timestamppb.New(since)}))
		if err != nil {
			t.Fatal(err)
		}
		want, err := audit.Evidence(t.Context(), db, "tokens/x", since)
		if err != nil || want.Accepted != 3 || want.Denied["address"] != 2 {
			t.Fatal(want, err)
		}
		m := got.Msg
		if m.GetAccepted() != 3 || m.GetDenied()["address"] != 2 || !m.GetLastAccepted().AsTime().Equal(want.LastAccepted) || m.GetUnused() ||
			int(m.GetReplicas()) != want.Replicas || len(m.GetGaps()) != len(want.Gaps) || m.GetCoveredUntil().AsTime().Equal(want.Until) == want.Until.IsZero() {
			t.Errorf("evidence %v, want %+v", m, want)
		}
		_, err = client.GetEvidence(t.Context(), connect.NewRequest(&rotundav1.GetEvidenceRequest{Resource: "tokens/x"}))
		wantProblem(t, err, connect.CodeInvalidArgument, "required")
		_, err = client.GetEvidence(t.Context(), connect.NewRequest(&rotundav1.GetEvidenceRequest{Resource: "tokens/typo", Since: timestamppb.New(since)}))
		wantProblem(t, err, connect.CodeNotFound, "resource_not_found")
	})
}

package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

var asAdmin = Actor{ID: "token/admin", Address: "192.0.2.99", RequestID: "r-admin"}

// Erased values are gone from rows, searches and exports, and the log verifies as
// before.
func TestEraseKeepsTree(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		record(t, db,
			Event{Action: "x", Actor: "token/ada", Address: "198.51.100.7", RequestID: "r1", Reason: "from home", Detail: map[string]any{"a": 1.0}},
			Event{Action: "x", Actor: "token/bob", Address: "198.51.100.7", Partner: "acme"},
			Event{Action: "x", Actor: "token/ada", Address: "203.0.113.1", Partner: "acme"},
			Event{Action: "x", Actor: "token/bob"})
		ctx := WithActor(t.Context(), asAdmin)
		before, _, err := b.Checkpoint(t.Context())
		if err == nil {
			t.Fatal("there is a checkpoint already", before)
		}
		erase := Erase{Fields: []trail.Field{trail.Address, trail.Reason}, Address: "198.51.100.7", Reason: "ticket 12", DryRun: true}
		if done, err := b.Erase(ctx, erase); err != nil || done.Events != 0 || done.Waiting != 2 {
			t.Errorf("a dry run before they are sequenced: %+v, %v", done, err)
		}
		sequence(t, b.Trail)
		if done, err := b.Erase(ctx, erase); err != nil || done.Events != 2 || done.Receipt != "" || len(list(t, db, Query{Action: "trail.erase"})) != 0 {
			t.Errorf("a dry run: %+v, %v", done, err)
		}
		if before, _, err = b.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		erase.DryRun = false
		done, err := b.Erase(ctx, erase)
		if err != nil || done.Events != 2 || done.Waiting != 0 {
			t.Fatalf("erased %+v, %v", done, err)
		}
		if again, err := b.Erase(ctx, erase); err != nil || again != (Erased{}) {
			t.Errorf("erased again: %+v, %v", again, err)
		}
		sequence(t, b.Trail)
		verify(t, b.Trail)
		if root, err := b.rootAt(t, before.Size); err != nil || root != before.Root {
			t.Errorf("the tree changed: %v", err)
		}
		records := b.records(t)
		r := records[2]
		if r.Address != "" || !r.IsErased(trail.Address) || !r.IsErased(trail.Reason) || r.IsErased(trail.Actor) || r.RequestID != "r1" || r.Detail != `{"a":1}` {
			t.Errorf("record %+v", r)
		}
		if r = records[3]; !r.IsErased(trail.Address) || r.IsErased(trail.Reason) || r.Partner != "acme" {
			t.Errorf("record %+v", r)
		}
		if n := len(list(t, db, Query{Address: "198.51.100.7"})); n != 0 {
			t.Errorf("a search for the address finds %d", n)
		}
		if e := list(t, db, Query{RequestID: "r1"}); len(e) != 1 || cmp.Diff([]string{"reason", "address"}, e[0].Erased) != "" || e[0].Address != "" {
			t.Errorf("the list has %+v", e)
		}
		e := list(t, db, Query{Action: "trail.erase"})[0]
		sum := sha256.Sum256([]byte(done.Receipt + erase.Selectors()))
		want := map[string]any{"fields": []any{"address", "reason"}, "count": 2.0, "begin": 2.0, "end": 4.0, "selected_by": []any{"address"}, "selector": hex.EncodeToString(sum[:])}
		if diff := cmp.Diff(want, e.Detail); diff != "" || e.Actor != asAdmin.ID || e.Address != asAdmin.Address || e.Reason != "ticket 12" {
			t.Errorf("the event is %+v (-want +got):\n%s", e, diff)
		}
		// More fields of an event that has lost some already.
		if done, err := b.Erase(ctx, Erase{Fields: []trail.Field{trail.Actor, trail.Detail, trail.Address}, ID: r1(records).ID, Reason: "ticket 13"}); err != nil || done.Events != 1 {
			t.Errorf("erased more: %+v, %v", done, err)
		}
		if r := b.records(t)[2]; !r.IsErased(trail.Actor) || !r.IsErased(trail.Detail) || !r.IsErased(trail.Address) || r.RequestID != "r1" {
			t.Errorf("record %+v", r)
		}
		report := b.verifyExport(t, ExportRequest{})
		if !report.OK() || report.ErasedFields != 5 {
			t.Errorf("report %+v", report)
		}
	})
}

func r1(records []trail.Record) trail.Record { return records[2] }

// The value is nowhere in the trail's rows, and not in the file of an SQLite
// database that was closed.
func TestEraseWhenFileIsSearched(t *testing.T) {
	url := storetest.SQLiteURL(t)
	path := strings.TrimPrefix(url, "sqlite:")
	secret := "198.51.100." + "237"
	holds := func() (files []string) {
		names, err := filepath.Glob(path + "*")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			raw, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(raw), secret) {
				files = append(files, filepath.Base(name))
			}
		}
		return files
	}
	db, err := store.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	tr := newTrail(t, db)
	for range 30 {
		record(t, db, Event{Action: "x", Actor: "token/ada", Address: secret, Reason: strings.Repeat("z", 700)})
		sequence(t, tr)
	}
	if len(holds()) == 0 {
		t.Fatal("the address is not in the file before it is erased: this test shows nothing")
	}
	if done, err := tr.Erase(t.Context(), Erase{Fields: []trail.Field{trail.Address}, Address: secret, Reason: "r"}); err != nil || done.Events != 30 {
		t.Fatalf("erased %+v, %v", done, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if files := holds(); len(files) > 0 {
		t.Errorf("the address is still in %v", files)
	}
}

// What a hold covers is not erased, and the refusal names the hold.
func TestEraseWhenHeld(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		b.add(t, "a", 5)
		b.add(t, "b", 5)
		if err := b.AddHold(t.Context(), Hold{Name: "case-7", Reason: "r", Resource: "b/"}); err != nil {
			t.Fatal(err)
		}
		erase := Erase{Fields: []trail.Field{trail.Address}, Address: "192.0.2.1", Reason: "ticket"}
		for _, erase.DryRun = range []bool{true, false} {
			_, err := b.Erase(t.Context(), erase)
			if !errors.Is(err, fault.ErrTransition) || !strings.Contains(err.Error(), "case-7") {
				t.Errorf("dry run %v: %v", erase.DryRun, err)
			}
		}
		// Also when the hold comes after the look at all of them.
		if err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, _, err := erase.batch(ctx, tx, 0, "receipt")
			return err
		}); !errors.Is(err, fault.ErrTransition) {
			t.Errorf("a batch under a hold: %v", err)
		}
		if n := len(list(t, db, Query{Address: "192.0.2.1"})); n != 10 {
			t.Errorf("%d of 10 still have the address", n)
		}
		if err := b.ReleaseHold(t.Context(), "case-7", "over"); err != nil {
			t.Fatal(err)
		}
		if done, err := b.Erase(t.Context(), erase); err != nil || done.Events != 10 {
			t.Errorf("after the release: %+v, %v", done, err)
		}
		// An event whose partner was erased may be anybody's: every hold of a partner covers it.
		if _, err := b.Erase(t.Context(), Erase{Fields: []trail.Field{trail.Partner}, Partner: "acme", Reason: "ticket"}); err != nil {
			t.Fatal(err)
		}
		if err := b.AddHold(t.Context(), Hold{Name: "h", Reason: "r", Partner: "other"}); err != nil {
			t.Fatal(err)
		}
		b.clock.Advance(48 * time.Hour)
		sequence(t, b.Trail)
		if p := b.prune(t); p.Held != 10 {
			t.Errorf("pruned %+v", p)
		}
	})
}

// Many events are erased in several transactions; after an interruption at any of
// them the next call goes on.
func TestEraseWhenInterrupted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		b.add(t, "a", 2*eraseBatch+10)
		erase := Erase{Fields: []trail.Field{trail.Address}, Address: "192.0.2.1", Reason: "ticket"}
		// As if the process was killed after its first transaction.
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			n, next, err := erase.batch(ctx, tx, 0, "receipt")
			if n != eraseBatch || next != 2+eraseBatch {
				t.Errorf("the first batch has %d, and goes on at %d", n, next)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if done, err := b.Erase(t.Context(), erase); err != nil || done.Events != eraseBatch+10 {
			t.Errorf("erased %+v, %v", done, err)
		}
		sequence(t, b.Trail)
		var counts []float64
		for _, e := range list(t, db, Query{Action: "trail.erase"}) {
			counts = append(counts, e.Detail["count"].(float64))
		}
		if diff := cmp.Diff([]float64{10, eraseBatch, eraseBatch}, counts); diff != "" {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
		verify(t, b.Trail)
	})
}

func TestEraseWhenRefused(t *testing.T) {
	db := storetest.SQLite(t)
	b := newPruneBed(t, db)
	record(t, db, Event{Action: "x", Actor: asAdmin.ID, Address: "203.0.113.50"}, Event{Action: "x", Actor: "token/ada", Address: "203.0.113.51"})
	sequence(t, b.Trail)
	address := []trail.Field{trail.Address}
	for name, c := range map[string]struct {
		erase Erase
		want  error
	}{
		"no field":                   {Erase{Actor: "token/ada", Reason: "r"}, fault.ErrInvalid},
		"no such field":              {Erase{Fields: []trail.Field{trail.NumFields}, Actor: "token/ada", Reason: "r"}, fault.ErrInvalid},
		"no selector":                {Erase{Fields: address, Since: epoch, Reason: "r"}, fault.ErrInvalid},
		"no reason":                  {Erase{Fields: address, Actor: "token/ada"}, fault.ErrInvalid},
		"a reason that tells":        {Erase{Fields: address, Actor: "token/ada", Reason: "token/ada asked"}, fault.ErrInvalid},
		"a reason that tells a find": {Erase{Fields: address, Actor: "token/ada", Reason: "was at 203.0.113.51"}, fault.ErrInvalid},
		"one's own name":             {Erase{Fields: []trail.Field{trail.Actor}, Actor: asAdmin.ID, Reason: "r"}, fault.ErrTransition},
		"one's own name, found":      {Erase{Fields: []trail.Field{trail.Actor}, Address: "203.0.113.50", Reason: "r"}, fault.ErrTransition},
	} {
		if done, err := b.Erase(WithActor(t.Context(), asAdmin), c.erase); !errors.Is(err, c.want) || done.Events != 0 {
			t.Errorf("%s: %+v, %v, want %v", name, done, err, c.want)
		}
	}
	for _, r := range b.records(t) {
		for f := range trail.NumFields {
			if r.IsErased(f) {
				t.Errorf("event %d has lost its %v", r.Index, f)
			}
		}
	}
}

// The record of an erasure does not bring back what was erased, also when it was
// asked for from the same address, under the same request.
func TestEraseWhenAskedFromTheSamePlace(t *testing.T) {
	db := storetest.SQLite(t)
	b := newPruneBed(t, db)
	place := Actor{ID: "token/admin", Address: "203.0.113.77", Partner: "acme-person", RequestID: "req-1"}
	record(t, db, Event{Action: "x", Actor: "token/ada", Address: place.Address, Partner: place.Partner, RequestID: place.RequestID})
	sequence(t, b.Trail)
	fields := []trail.Field{trail.Actor, trail.Address, trail.Partner, trail.RequestID}
	if done, err := b.Erase(WithActor(t.Context(), place), Erase{Fields: fields, Actor: "token/ada", Reason: "ticket"}); err != nil || done.Events != 1 {
		t.Fatalf("erased %+v, %v", done, err)
	}
	for _, e := range list(t, db, Query{}) {
		raw, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, value := range []string{place.Address, place.Partner, place.RequestID, "token/ada"} {
			if strings.Contains(string(raw), value) {
				t.Errorf("%s is in %s", value, raw)
			}
		}
		if e.Action == "trail.erase" && e.Actor != place.ID {
			t.Errorf("the erasure is put down to %q", e.Actor)
		}
	}
}

// Erasing the details of all events of the scheduler leaves those that declare
// what was pruned.
func TestEraseKeepsEvidence(t *testing.T) {
	db := storetest.SQLite(t)
	b := newPruneBed(t, db)
	b.add(t, "a", 5)
	b.clock.Advance(48 * time.Hour)
	b.prune(t)
	b.add(t, "b", 5)
	ctx := WithActor(t.Context(), asAdmin)
	all := Erase{Fields: []trail.Field{trail.Detail, trail.Actor}, Actor: Rotunda, Reason: "all of it"}
	done, err := b.Erase(ctx, all)
	if err != nil || done.Events != 5 {
		t.Fatalf("erased %+v, %v", done, err)
	}
	all.Actor, all.Since = "", epoch
	all.ID = list(t, db, Query{Action: bundle.PruneAction})[0].ID
	if done, err := b.Erase(ctx, all); err != nil || done.Events != 0 {
		t.Errorf("erased the evidence: %+v, %v", done, err)
	}
	sequence(t, b.Trail)
	if report := b.verifyExport(t, ExportRequest{}); !report.OK() || report.ErasedFields != 5 {
		t.Errorf("report %+v", report)
	}
	if n := fmt.Sprint(len(b.records(t))); n != "7" {
		t.Errorf("%s events", n)
	}
}

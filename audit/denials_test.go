package audit

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func total(events []Event) (n int64) {
	for _, e := range events {
		n += e.Count
	}
	return n
}

func TestDenialsAreCounted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := newClock(db)
		d := &Denials{DB: db}
		ctx := WithActor(t.Context(), Actor{ID: "anonymous", Address: "192.0.2.1", RequestID: "r1"})
		deny := func(n int, e Event) {
			t.Helper()
			for range n {
				if err := d.Record(ctx, e); err != nil {
					t.Fatal(err)
				}
			}
		}
		pass := func() {
			t.Helper()
			if _, err := d.Pass(t.Context(), clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		attempt := Event{Action: "keyset.create", Resource: "keysets/a", Reason: "bad_token", Outcome: OK}
		deny(1, attempt)
		got := list(t, db, Query{})
		if len(got) != 1 || got[0].Outcome != Denied || got[0].Count != 1 || got[0].Actor != "anonymous" || got[0].Address != "192.0.2.1" || got[0].RequestID != "r1" {
			t.Fatalf("the first is written at once: %+v", got)
		}
		deny(6, attempt)
		other := attempt
		other.Reason = "expired"
		deny(1, other)
		clock.Advance(denialWindow - time.Microsecond)
		pass()
		if got := list(t, db, Query{}); len(got) != 2 {
			t.Fatalf("within the window: %+v", got)
		}
		clock.Advance(time.Microsecond)
		pass()
		if got := list(t, db, Query{Limit: 1})[0]; got.Count != 6 || got.Reason != "bad_token" || got.Address != "192.0.2.1" {
			t.Errorf("the rest became %+v", got)
		}
		pass()
		// The next window begins with an event of its own.
		deny(3, attempt)
		if got := list(t, db, Query{}); len(got) != 4 || total(got) != 9 {
			t.Errorf("%d events of %d attempts", len(got), total(got))
		}
		// A window that no pass has closed goes into the next event.
		clock.Advance(denialWindow)
		deny(1, attempt)
		if got := list(t, db, Query{Limit: 1})[0]; got.Count != 3 {
			t.Errorf("the next event counts %d", got.Count)
		}
		deny(4, attempt)
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := list(t, db, Query{}); total(got) != 16 {
			t.Errorf("%d attempts are in the trail, 16 were made", total(got))
		}
	})
}

func TestDenialsFromManyGoroutines(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := newClock(db)
		d := &Denials{DB: db}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 200 {
					if err := d.Record(t.Context(), Event{Action: "x", Resource: fmt.Sprint(j % 5)}); err != nil {
						t.Error(err)
					}
					if i == 0 && j%50 == 0 {
						clock.Advance(denialWindow)
						if _, err := d.Pass(t.Context(), clock.Now()); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := list(t, db, Query{}); total(got) != 1600 || len(got) > 60 {
			t.Errorf("%d attempts in %d events, 1600 were made", total(got), len(got))
		}
	})
}

// A flood of attempts that all differ fills neither the memory nor the database.
func TestDenialsWhenFlooded(t *testing.T) {
	db := storetest.SQLite(t)
	clock := newClock(db)
	d := &Denials{DB: db}
	const flood = 100_000
	// All but the last places are taken, as if by kinds that were written.
	for i := range maxDenials - 50 {
		d.put(denial{resource: fmt.Sprintf("before-%d", i)}, &count{until: clock.Now().Add(denialWindow)})
	}
	for i := range flood {
		if err := d.Record(t.Context(), Event{Actor: "anonymous", Action: "verify", Resource: fmt.Sprintf("keys/%d", i), Address: fmt.Sprint(i), Reason: "unknown"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(d.seen); n > maxDenials+1 {
		t.Errorf("%d kinds are in memory", n)
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := list(t, db, Query{})
	if total(got) != flood || len(got) != 52 {
		t.Errorf("%d events of %d attempts, want 52 of %d", len(got), total(got), flood)
	}
	var rest []Event // the first beyond the bound, and all others
	for _, e := range got {
		if e.Address == "" {
			rest = append(rest, e)
		}
	}
	if len(rest) != 2 || total(rest) != flood-50 {
		t.Errorf("the rest became %+v", rest)
	}
	for _, e := range rest {
		if e.Actor != "anonymous" || e.Resource != "" || e.Action != "verify" || e.Reason != "unknown" {
			t.Errorf("the rest became %+v", e)
		}
	}
	if len(d.seen) != 0 || len(d.share) != 0 {
		t.Errorf("%d kinds and %d shares are kept after the last was written", len(d.seen), len(d.share))
	}
}

// Far beyond the bound not even actors are told apart: nothing grows any more.
func TestDenialsWhenActorsAreMany(t *testing.T) {
	db := storetest.SQLite(t)
	clock := newClock(db)
	d := &Denials{DB: db}
	for i := range 2*maxDenials - 5 {
		d.put(denial{resource: fmt.Sprintf("before-%d", i)}, &count{until: clock.Now().Add(denialWindow)})
	}
	for i := range 100 {
		if err := d.Record(t.Context(), Event{Actor: fmt.Sprintf("token-%d", i), Action: "verify", Address: "192.0.2.1", Reason: "unknown"}); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.seen) != 2*maxDenials+1 {
		t.Errorf("%d kinds are in memory", len(d.seen))
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := list(t, db, Query{Actor: various}); total(got) != 95 || got[0].Action != various || got[0].Reason != variousKinds {
		t.Errorf("the rest became %+v", got)
	}
}

// Promise: one caller's flood takes no place from anybody else, and keeps his
// name and address.
func TestDenialsWhenOneCallerFloods(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := newClock(db)
		d := &Denials{DB: db}
		const flood = 2000
		for round := range 2 { // a new window begins with a whole share
			for i := range flood {
				e := Event{Actor: "token-1", Action: "rpc.Sign", Resource: fmt.Sprintf("keysets/%d", i), Reason: "role", Address: fmt.Sprintf("2001:db8::%x:1", i)}
				if err := d.Record(t.Context(), e); err != nil {
					t.Fatal(err)
				}
			}
			if len(d.seen) != maxShare+1 {
				t.Errorf("%d kinds are in memory, want %d", len(d.seen), maxShare+1)
			}
			got := list(t, db, Query{Actor: "token-1", Action: various})
			if len(got) != 2*round+1 || got[0].Address != fmt.Sprintf("2001:db8::%x:1", maxShare) || got[0].Reason != variousKinds || got[0].Resource != "" {
				t.Fatalf("the rest is %+v", got)
			}
			clock.Advance(denialWindow)
			if _, err := d.Pass(t.Context(), clock.Now()); err != nil {
				t.Fatal(err)
			}
			if n := total(list(t, db, Query{Actor: "token-1"})); n != int64(flood*(round+1)) {
				t.Errorf("%d attempts are in the trail, %d were made", n, flood*(round+1))
			}
		}
		for i := range maxShare + 1 {
			if err := d.Record(t.Context(), Event{Actor: "token-1", Action: "a", Resource: fmt.Sprint(i), Address: "2001:db8::1"}); err != nil {
				t.Fatal(err)
			}
		}
		for _, e := range []Event{
			{Actor: "token-2", Action: "a", Resource: "x", Address: "2001:db8::1"},
			{Actor: "token-1", Action: "a", Resource: "x", Address: "2001:db8:0:1::1"},
			{Actor: "token-1", Action: "a", Resource: "x", Address: "192.0.2.1"},
		} {
			if err := d.Record(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			if got := list(t, db, Query{Actor: e.Actor, Address: e.Address, Resource: "x"}); len(got) != 1 {
				t.Errorf("%+v became %+v", e, got)
			}
		}
	})
}

// What is kept of an attempt is small, and does not keep the request alive.
func TestDenialsWhenTextIsHuge(t *testing.T) {
	db := storetest.SQLite(t)
	newClock(db)
	d := &Denials{DB: db}
	huge := strings.Repeat("x", 128<<10)
	e := Event{Actor: huge, Action: huge, Resource: huge, Partner: huge, Reason: huge, RequestID: huge, Address: huge, Detail: map[string]any{"token": huge[:20]}}
	if err := d.Record(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	own := func(what, s string) {
		t.Helper()
		if len(s) > maxText || unsafe.StringData(s) == unsafe.StringData(huge) {
			t.Errorf("%s has %d bytes, or shares them with the request", what, len(s))
		}
	}
	for k, c := range d.seen {
		for what, s := range map[string]string{
			"key's actor": k.actor, "key's block": k.block, "key's action": k.action, "key's resource": k.resource, "key's reason": k.reason,
			"actor": c.first.Actor, "action": c.first.Action, "resource": c.first.Resource, "partner": c.first.Partner, "reason": c.first.Reason,
			"request": c.first.RequestID, "address": c.first.Address, "detail": c.first.Detail["token"].(string),
		} {
			own(what, s)
		}
	}
	if len(d.seen) != 1 {
		t.Errorf("%d kinds are in memory", len(d.seen))
	}
}

// A denied attempt that can't be written is kept and written later.
func TestDenialsWhenWriteFails(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := newClock(db)
		statements := []string{`CREATE TRIGGER broken BEFORE INSERT ON event_queue WHEN NEW.action = 'x' BEGIN SELECT RAISE(ABORT, 'broken by the test'); END`}
		undo := `DROP TRIGGER broken`
		if db.Dialect() == "postgres" {
			statements = []string{
				`CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'broken by the test'; END $$`,
				`CREATE TRIGGER broken BEFORE INSERT ON event_queue FOR EACH ROW WHEN (NEW.action = 'x') EXECUTE FUNCTION broken()`,
			}
			undo = `DROP TRIGGER broken ON event_queue`
		}
		for _, s := range statements {
			if err := exec(t, db, s); err != nil {
				t.Fatal(err)
			}
		}
		d := &Denials{DB: db}
		err := d.Record(t.Context(), Event{Action: "x", Reason: "bad_token"})
		if err == nil || !strings.Contains(err.Error(), "x") {
			t.Errorf("the failure is reported as %v", err)
		}
		for range 4 { // counted, not tried again and again
			if err := d.Record(t.Context(), Event{Action: "x", Reason: "bad_token"}); err != nil {
				t.Error(err)
			}
		}
		if err := d.Record(t.Context(), Event{Action: "y"}); err != nil {
			t.Error(err)
		}
		clock.Advance(denialWindow)
		for range 3 {
			if _, err := d.Pass(t.Context(), clock.Now()); err == nil {
				t.Error("the failure is not reported")
			}
		}
		if err := d.Record(t.Context(), Event{Action: "x", Reason: "bad_token"}); err == nil {
			t.Error("the failure is not reported")
		}
		if err := exec(t, db, undo); err != nil {
			t.Fatal(err)
		}
		clock.Advance(denialWindow)
		if _, err := d.Pass(t.Context(), clock.Now()); err != nil {
			t.Fatal(err)
		}
		if got := list(t, db, Query{Action: "x"}); len(got) != 1 || got[0].Count != 6 || got[0].Outcome != Denied {
			t.Errorf("6 attempts became %+v", got)
		}
		if err := d.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		if got := list(t, db, Query{}); total(got) != 7 {
			t.Errorf("%d attempts, 7 were made", total(got))
		}
	})
}

// A caller who gives up does not make his denial unseen.
func TestDenialsWhenCallerGivesUp(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := (&Denials{DB: db}).Record(ctx, Event{Action: "x"}); err != nil {
			t.Error(err)
		}
		if got := list(t, db, Query{}); len(got) != 1 {
			t.Errorf("events %+v", got)
		}
	})
}

package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// pruneBed is a trail whose events are kept for a day.
type pruneBed struct {
	*Trail
	clock *storetest.Clock
}

func newPruneBed(t testing.TB, db *store.DB) *pruneBed {
	t.Helper()
	b := &pruneBed{clock: newClock(db)}
	b.Trail = newTrail(t, db)
	if err := b.SetRetention(t.Context(), 24*time.Hour, "drill"); err != nil {
		t.Fatal(err)
	}
	return b
}

// add records and sequences n events of a resource.
func (b *pruneBed) add(t testing.TB, resource string, n int) {
	t.Helper()
	events := make([]Event, n)
	for i := range events {
		events[i] = Event{Action: "x", Resource: fmt.Sprintf("%s/%d", resource, i), Partner: "acme", Address: "192.0.2.1"}
	}
	record(t, b.DB, events...)
	sequence(t, b.Trail)
}

// prune prunes until there is nothing more to do, and sequences what that recorded.
func (b *pruneBed) prune(t testing.TB) (all Pruned) {
	t.Helper()
	for {
		p, err := b.Prune(t.Context(), b.clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		all.Deleted, all.Blocked, all.Next = all.Deleted+p.Deleted, p.Blocked, p.Next
		all.Held, all.Open = p.Held, p.Open
		if !p.More {
			sequence(t, b.Trail)
			return all
		}
	}
}

// left returns the indexes of the events that are there.
func (b *pruneBed) left(t testing.TB) []int64 {
	t.Helper()
	var indexes []int64
	for _, r := range b.records(t) {
		indexes = append(indexes, r.Index)
	}
	return indexes
}

// records returns what is there, after checking each leaf.
func (b *pruneBed) records(t testing.TB) []trail.Record {
	t.Helper()
	var all []trail.Record
	for index := int64(0); ; {
		records, next, err := b.Read(t.Context(), index, maxRead)
		if err != nil {
			t.Fatal(err)
		}
		for i := range records {
			if h, err := records[i].Event.Hash(); err != nil || h != records[i].Hash || len(records[i].Differs()) > 0 {
				t.Fatalf("event %d has the leaf %v, the tree %v (%v, %v)", records[i].Index, h, records[i].Hash, err, records[i].Differs())
			}
		}
		if all = append(all, records...); next == index {
			return all
		}
		index = next
	}
}

func span(from, to int64) (all []int64) {
	for i := from; i < to; i++ {
		all = append(all, i)
	}
	return all
}

// What is older than retention allows goes, from the beginning on; the tree and
// the proofs of what is left stay, and an export says what was pruned.
func TestPruneKeepsTree(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		b.add(t, "a", 298) // with the start and the retention: 300
		b.clock.Advance(30 * time.Hour)
		b.add(t, "b", 20)
		before, _, err := b.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		plan, err := b.PrunePlan(t.Context(), b.clock.Now(), 0)
		if err != nil || plan.Begin != 0 || plan.End != 300 || plan.Deleted != 300 || plan.Blocked != "" {
			t.Fatalf("plan %+v, %v", plan, err)
		}
		if p := b.prune(t); p.Deleted != 300 || !p.Next.Equal(b.clock.Now().Add(time.Hour)) {
			t.Errorf("pruned %+v", p)
		}
		if diff := cmp.Diff(span(300, 321), b.left(t)); diff != "" {
			t.Errorf("left (-want +got):\n%s", diff)
		}
		event := list(t, db, Query{Action: bundle.PruneAction})[0]
		want := map[string]any{"begin": 0.0, "end": 300.0, "deleted": 300.0, "held": 0.0, "open": 0.0, "set_by": "rotunda", "why": "drill", "keep_hours": 24.0, "before": "2026-01-05T06:00:00.000000Z"}
		if diff := cmp.Diff(want, event.Detail); diff != "" || event.Actor != Rotunda || event.Outcome != OK {
			t.Errorf("event (-want +got):\n%s", diff)
		}
		root, err := b.rootAt(t, before.Size)
		if err != nil || root != before.Root {
			t.Errorf("the tree changed: %v", err)
		}
		if _, err := b.Prove(t.Context(), event.ID); err != nil {
			t.Error(err)
		}
		again, err := b.Prune(t.Context(), b.clock.Now())
		if err != nil || again.Deleted != 0 || again.More {
			t.Errorf("pruned again: %+v, %v", again, err)
		}
		if n := len(list(t, db, Query{Action: bundle.PruneAction})); n != 1 {
			t.Errorf("%d events trail.prune", n)
		}
		report := b.verifyExport(t, ExportRequest{})
		if !report.OK() || report.Pruned != 300 || report.Records != 21 || len(report.PrunedRanges) != 1 || report.PrunedRanges[0].Event != event.ID {
			t.Errorf("report %+v", report)
		}
		// Below what was pruned the database lets delete, and nowhere else.
		if err := exec(t, db, `DELETE FROM events WHERE leaf_index = 300`); err == nil {
			t.Error("an event that was not pruned was deleted")
		}
	})
}

func (b *pruneBed) rootAt(t testing.TB, size int64) (root [32]byte, err error) {
	t.Helper()
	err = b.DB.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		e, err := loadEdge(ctx, tx, size)
		if err == nil {
			root = e.root()
		}
		return err
	})
	return root, err
}

// Events "trail.prune" are what shows that nothing else was cut out, so they stay.
func TestPruneWhenYearsPass(t *testing.T) {
	db := storetest.SQLite(t)
	b := newPruneBed(t, db)
	for range 10 {
		b.add(t, "a", 3)
		b.clock.Advance(25 * time.Hour)
		b.prune(t)
		if report := b.verifyExport(t, ExportRequest{}); !report.OK() {
			t.Fatalf("findings %v", report.Findings)
		}
	}
	records := b.records(t)
	for _, r := range records {
		if r.Action != bundle.PruneAction {
			t.Errorf("%s is left", r.Action)
		}
	}
	if len(records) != 10 {
		t.Errorf("%d are left", len(records))
	}
	// When there is nothing else, no more of them come.
	for range 3 {
		b.clock.Advance(25 * time.Hour)
		b.prune(t)
	}
	if n := len(b.records(t)); n != 10 {
		t.Errorf("%d are left", n)
	}
}

// What a follower has not read stays, and the result names the follower.
func TestPruneWhenSinkIsDead(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		b.add(t, "a", 20)
		for name, next := range map[string]int64{"sink/quick": 22, "sink/dead": 7} {
			if err := b.SetCursor(t.Context(), name, 0, next); err != nil {
				t.Fatal(err)
			}
		}
		b.clock.Advance(48 * time.Hour)
		plan, err := b.PrunePlan(t.Context(), b.clock.Now(), 0)
		if err != nil || plan.Deleted != 7 || plan.Blocked != "sink/dead" {
			t.Errorf("plan %+v, %v", plan, err)
		}
		if p := b.prune(t); p.Deleted != 7 || p.Blocked != "sink/dead" {
			t.Errorf("pruned %+v", p)
		}
		if left := b.left(t); left[0] != 7 {
			t.Errorf("left: %v", left)
		}
		if err := b.SetCursor(t.Context(), "sink/dead", 7, 23); err != nil {
			t.Fatal(err)
		}
		if p := b.prune(t); p.Deleted != 15 || p.Blocked != "" {
			t.Errorf("after the sink is back: %+v", p)
		}
	})
}

// What a hold covers stays, and goes once it is released.
func TestPruneWhenHeld(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		b.add(t, "keysets/pay", 5)   // 2 to 6
		b.add(t, "keysets/other", 5) // 7 to 11
		record(t, db, Event{Action: "x", Resource: "keysets/pay/9", Partner: "other"})
		sequence(t, b.Trail)
		if err := b.AddHold(t.Context(), Hold{Name: "case-7", Reason: "a court asked", Partner: "acme", Resource: "keysets/pay/"}); err != nil {
			t.Fatal(err)
		}
		sequence(t, b.Trail)
		b.clock.Advance(48 * time.Hour)
		if p := b.prune(t); p.Deleted != 9 || p.Held != 5 {
			t.Errorf("pruned %+v", p)
		}
		if diff := cmp.Diff(append(span(2, 7), 14), b.left(t)); diff != "" {
			t.Fatalf("left (-want +got):\n%s", diff)
		}
		if report := b.verifyExport(t, ExportRequest{}); !report.OK() || report.Pruned != 9 || report.PrunedRuns != 2 {
			t.Errorf("report %+v", report)
		}
		if err := b.ReleaseHold(t.Context(), "case-7", "the case is closed"); err != nil {
			t.Fatal(err)
		}
		sequence(t, b.Trail)
		if p := b.prune(t); p.Deleted != 5 {
			t.Errorf("after the release: %+v", p)
		}
		if diff := cmp.Diff([]int64{14, 15, 16}, b.left(t)); diff != "" {
			t.Errorf("left (-want +got):\n%s", diff)
		}
		if d := list(t, db, Query{Action: bundle.PruneAction})[0].Detail; d["begin"] != 2.0 || d["end"] != 7.0 || d["deleted"] != 5.0 {
			t.Errorf("the second event has %v", d)
		}
		if report := b.verifyExport(t, ExportRequest{}); !report.OK() || report.Pruned != 14 {
			t.Errorf("report %+v", report)
		}
	})
}

// An open intent is never pruned; once it has ended, it is.
func TestPruneWhenIntentIsOpen(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		id := begin(t, db, Event{Action: "store.write"})
		b.add(t, "a", 3)
		b.clock.Advance(48 * time.Hour)
		if p := b.prune(t); p.Deleted != 5 || p.Open != 1 {
			t.Errorf("pruned %+v", p)
		}
		if got := openIDs(t, db, b.clock.Now(), 0); len(got) != 1 || got[0] != id {
			t.Errorf("open: %v", got)
		}
		if err := end(t.Context(), db, id, Event{Action: "store.write", Outcome: Failed}); err != nil {
			t.Fatal(err)
		}
		sequence(t, b.Trail)
		if p := b.prune(t); p.Deleted != 1 {
			t.Errorf("pruned after its end: %+v", p)
		}
		if report := b.verifyExport(t, ExportRequest{}); !report.OK() {
			t.Errorf("findings %v", report.Findings)
		}
	})
}

// More than one transaction's worth is pruned in several, of which each says what
// it did.
func TestPruneWhenThereIsMuch(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		b.add(t, "a", pruneBatch+100)
		b.clock.Advance(48 * time.Hour)
		now := b.clock.Now()
		next, err := b.PrunePass(t.Context(), now)
		if err != nil || !next.Equal(now.Add(pruneGap)) {
			t.Fatalf("next %v, %v", next, err)
		}
		if n := len(b.left(t)); n != 102 {
			t.Errorf("%d are left after the first step", n)
		}
		for next.Equal(now.Add(pruneGap)) {
			if next, err = b.PrunePass(t.Context(), now); err != nil {
				t.Fatal(err)
			}
		}
		sequence(t, b.Trail)
		if !next.Equal(now.Add(time.Hour)) {
			t.Errorf("the next pass is at %v", next)
		}
		if n := len(b.left(t)); n != 2 {
			t.Errorf("%d are left", n)
		}
		// Before that time a pass does nothing.
		b.add(t, "b", 1)
		b.clock.Advance(30 * time.Minute)
		if again, err := b.PrunePass(t.Context(), b.clock.Now()); err != nil || !again.Equal(next) {
			t.Errorf("a pass too early: %v, %v", again, err)
		}
	})
}

// What was left behind, and is younger than a retention that was lengthened since,
// stays until that time is over.
func TestPruneWhenRetentionWasLengthened(t *testing.T) {
	db := storetest.SQLite(t)
	b := newPruneBed(t, db)
	if err := b.AddHold(t.Context(), Hold{Name: "h", Reason: "r"}); err != nil {
		t.Fatal(err)
	}
	b.add(t, "a", 3)
	b.clock.Advance(30 * time.Hour)
	if p := b.prune(t); p.Deleted != 0 || p.Held != 6 {
		t.Errorf("pruned %+v", p)
	}
	if err := b.SetRetention(t.Context(), 48*time.Hour, "drill"); err != nil {
		t.Fatal(err)
	}
	if err := b.ReleaseHold(t.Context(), "h", "over"); err != nil {
		t.Fatal(err)
	}
	sequence(t, b.Trail)
	if p := b.prune(t); p.Deleted != 0 {
		t.Errorf("pruned what is 30 hours old: %+v", p)
	}
	b.clock.Advance(19 * time.Hour)
	if p := b.prune(t); p.Deleted != 6 {
		t.Errorf("pruned %+v", p)
	}
}

// A clock that runs ahead of the database's prunes nothing that is young.
func TestPruneWhenCallersClockIsAhead(t *testing.T) {
	db := storetest.SQLite(t)
	b := newPruneBed(t, db)
	b.add(t, "a", 3)
	p, err := b.Prune(t.Context(), b.clock.Now().Add(100*24*time.Hour))
	if err != nil || p.Deleted != 0 {
		t.Errorf("pruned %+v, %v", p, err)
	}
}

func TestPruneWhenKeptForEver(t *testing.T) {
	db := storetest.SQLite(t)
	b := newPruneBed(t, db)
	if err := b.SetRetention(t.Context(), 0, "drill"); err != nil {
		t.Fatal(err)
	}
	b.add(t, "a", 3)
	b.clock.Advance(100 * 365 * 24 * time.Hour)
	p, err := b.Prune(t.Context(), b.clock.Now())
	plan, err2 := b.PrunePlan(t.Context(), b.clock.Now(), 0)
	if err != nil || err2 != nil || p.Deleted != 0 || plan.Deleted != 0 {
		t.Errorf("pruned %+v, %v; plan %+v, %v", p, err, plan, err2)
	}
}

func TestPruneWhenTrailIsStopped(t *testing.T) {
	db := storetest.SQLite(t)
	b := newPruneBed(t, db)
	b.add(t, "a", 3)
	b.clock.Advance(48 * time.Hour)
	if err := exec(t, db, `UPDATE trail SET stopped = 'altered'`); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Prune(t.Context(), b.clock.Now()); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("pruned a trail that is stopped: %v", err)
	}
}

func TestRetentionWhenSet(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		tr := newTrail(t, db)
		for _, keep := range []time.Duration{-time.Hour, time.Nanosecond, 23 * time.Hour, 24*time.Hour + time.Minute} {
			if err := tr.SetRetention(t.Context(), keep, "drill"); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("keep %v: %v", keep, err)
			}
		}
		for _, keep := range []time.Duration{24 * time.Hour, 24 * time.Hour, 7 * 365 * 24 * time.Hour, 0} {
			if err := tr.SetRetention(t.Context(), keep, "drill"); err != nil {
				t.Fatal(err)
			}
			if got, err := tr.Retention(t.Context()); err != nil || got != keep {
				t.Errorf("retention %v, %v, want %v", got, err, keep)
			}
		}
		sequence(t, tr)
		var changes []string
		for _, e := range list(t, db, Query{Action: "retention.update"}) {
			changes = append(changes, fmt.Sprintf("%v→%v", e.Detail["was_hours"], e.Detail["keep_hours"]))
		}
		slices.Reverse(changes)
		if diff := cmp.Diff([]string{"0→24", "24→61320", "61320→0"}, changes); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

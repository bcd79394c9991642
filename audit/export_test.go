package audit

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// intoBundle writes an export to a folder.
type intoBundle struct {
	dir  string
	w    *bundle.Writer
	head bundle.Head
}

func (i *intoBundle) Head(h bundle.Head) (err error) {
	i.head = h
	if i.w == nil {
		i.w, err = bundle.Create(i.dir, h, "jsonl")
	}
	return err
}

func (i *intoBundle) Record(r *trail.Record) error { return i.w.Write(r) }
func (i *intoBundle) Gap(g bundle.Gap) error       { return i.w.Gap(g) }

// trusted returns what an auditor was given when the log began.
func trusted(t testing.TB, tr *Trail) *trail.Keys {
	t.Helper()
	vkeys, _, err := tr.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := trail.ParseKeys(vkeys[0])
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// verifyExport exports to a bundle and verifies it offline.
func verifyExport(t testing.TB, tr *Trail, request ExportRequest) bundle.Report {
	t.Helper()
	into := &intoBundle{dir: filepath.Join(t.TempDir(), "bundle")}
	if err := tr.Export(t.Context(), request, into); err != nil {
		t.Fatal(err)
	}
	if err := into.w.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := bundle.Verify(t.Context(), into.dir, bundle.Options{Keys: trusted(t, tr), Whole: request.Omitted})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func (b *pruneBed) verifyExport(t testing.TB, request ExportRequest) bundle.Report {
	t.Helper()
	return verifyExport(t, b.Trail, request)
}

// collected is an export in memory, checked as it comes.
type collected struct {
	head    bundle.Head
	records []int64
	ids     []string
	gaps    []bundle.Gap
	tree    *trail.Range
	fail    func() error // called before each record and gap
}

func (c *collected) Head(h bundle.Head) (err error) {
	c.head = h
	c.tree, err = trail.NewRange(0, h.Begin, h.Left)
	return err
}

func (c *collected) Record(r *trail.Record) error {
	if c.fail != nil {
		if err := c.fail(); err != nil {
			return err
		}
	}
	h, err := r.Event.Hash()
	if err != nil || h != r.Hash || r.Index != c.tree.End() || r.Origin != c.head.Origin || len(r.Differs()) > 0 {
		return fmt.Errorf("record %d of %q where %d is due: %w, hash %v, leaf %v, differs %v", r.Index, r.Origin, c.tree.End(), err, r.Hash, h, r.Differs())
	}
	c.tree.Append(r.Hash)
	c.records, c.ids = append(c.records, r.Index), append(c.ids, r.ID)
	return nil
}

func (c *collected) Gap(g bundle.Gap) error {
	if c.fail != nil {
		if err := c.fail(); err != nil {
			return err
		}
	}
	c.gaps = append(c.gaps, g)
	if len(g.Entries) > 0 {
		if len(g.Hashes) > 0 || int64(len(g.Entries)) != g.End-g.Begin || g.Begin != c.tree.End() {
			return fmt.Errorf("a gap %d to %d with %d leaves where %d is due", g.Begin, g.End, len(g.Entries), c.tree.End())
		}
		for _, e := range g.Entries {
			c.tree.Append(tlog.RecordHash(e))
		}
		return nil
	}
	r, err := trail.NewRange(g.Begin, g.End, g.Hashes)
	if err != nil {
		return err
	}
	return c.tree.AppendRange(r)
}

// collect exports into memory, and checks that the parts give the tree's root.
func collect(t testing.TB, tr *Trail, request ExportRequest) *collected {
	t.Helper()
	c := &collected{}
	if err := tr.Export(t.Context(), request, c); err != nil {
		t.Fatal(err)
	}
	right, err := trail.NewRange(c.head.End, c.head.End, c.head.Right)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.tree.AppendRange(right); err != nil {
		t.Fatal(err)
	}
	root, err := c.tree.Root()
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, err := trusted(t, tr).Open(c.head.Checkpoint)
	if err != nil || checkpoint.Root != root || checkpoint.Size != c.head.End {
		t.Fatalf("the export gives the root %v of %d leaves, the checkpoint is %+v, %v", root, c.head.End, checkpoint, err)
	}
	return c
}

func (c *collected) runs() string {
	var b strings.Builder
	for _, g := range c.gaps {
		fmt.Fprintf(&b, "%d-%d %s, ", g.Begin, g.End, g.Why)
	}
	return strings.TrimSuffix(b.String(), ", ")
}

// A filtered export has what a search finds, and gaps for the rest: one for each
// run, however long.
func TestExportFindsWhatSearchFinds(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := newClock(db)
		tr := newTrail(t, db)
		var minute []Event
		for i := range exportRows + 2000 {
			e := Event{Action: "keyset.create", Resource: "keysets/a", Actor: "token/ada", Address: "192.0.2.1"}
			switch {
			case i%1000 == 1:
				e = Event{Action: "api_key.revoke", Resource: "partners/acme/keys/1", Partner: "acme", Actor: "token/bob", RequestID: fmt.Sprint("r", i)}
			case i%997 == 5:
				e.Outcome, e.Reason = Denied, "scope"
			}
			if i%600 == 0 {
				record(t, db, minute...)
				clock.Advance(time.Minute)
				minute = nil
			}
			minute = append(minute, e)
		}
		record(t, db, minute...)
		sequence(t, tr)
		for name, q := range map[string]Query{
			"everything":    {},
			"actor":         {Actor: "token/bob"},
			"action":        {Action: "api_key."},
			"resource":      {Resource: "partners/"},
			"partner":       {Partner: "acme"},
			"outcome":       {Outcome: Denied},
			"request id":    {RequestID: "r1001"},
			"address":       {Address: "192.0.2.1"},
			"since":         {Since: epoch.Add(5 * time.Minute)},
			"until":         {Until: epoch.Add(5 * time.Minute)},
			"between":       {Since: epoch.Add(2 * time.Minute), Until: epoch.Add(3 * time.Minute), Actor: "token/ada"},
			"later":         {Since: epoch.Add(time.Hour)},
			"nothing":       {Actor: "nobody"},
			"several of it": {Actor: "token/ada", Outcome: OK, Action: "keyset.create", Resource: "keysets/a"},
		} {
			q.Limit = 1000
			want := map[string]bool{}
			for _, e := range list(t, db, q) {
				want[e.ID] = true
			}
			for _, omitted := range []bool{false, true} {
				c := collect(t, tr, ExportRequest{Query: q, Omitted: omitted})
				got := map[string]bool{}
				for _, id := range c.ids {
					got[id] = true
				}
				if diff := cmp.Diff(want, got); diff != "" || len(got) != len(c.ids) {
					t.Errorf("%s, omitted %v: (-search +export):\n%s", name, omitted, diff)
				}
				for i, g := range c.gaps {
					if omitted != (len(g.Entries) > 0) || g.Why != bundle.Filtered {
						t.Errorf("%s: the gap %d to %d has %d leaves, %s", name, g.Begin, g.End, len(g.Entries), g.Why)
					}
					if !omitted && i > 0 && c.gaps[i-1].End == g.Begin {
						t.Errorf("%s: two gaps meet at %d", name, g.Begin)
					}
				}
				if report := verifyExport(t, tr, ExportRequest{Query: q, Omitted: omitted}); !report.OK() || report.Records != int64(len(want)) {
					t.Errorf("%s, omitted %v: %d records, findings %v", name, omitted, report.Records, report.Findings)
				}
			}
		}
	})
}

// An export that was interrupted goes on under its checkpoint, though the log has
// grown, and was pruned.
func TestExportWhenResumed(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		b.add(t, "a", exportRows)
		b.add(t, "b", exportRows+10)
		size, err := b.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		stopped := errors.New("the reader is gone")
		calls := 0
		first := &collected{fail: func() error {
			if calls++; calls > 1500 {
				return stopped
			}
			return nil
		}}
		if err := b.Export(t.Context(), ExportRequest{}, first); !errors.Is(err, stopped) {
			t.Fatal(err)
		}
		b.add(t, "c", 10)
		b.clock.Advance(48 * time.Hour)
		b.prune(t)
		rest := collect(t, b.Trail, ExportRequest{From: 1500, Size: size})
		if rest.head.Begin != 1500 || rest.head.End != size || len(rest.head.Evidence) == 0 || rest.runs() != fmt.Sprintf("1500-%d pruned", size) {
			t.Errorf("the rest: %d to %d, %d proofs, gaps %s", rest.head.Begin, rest.head.End, len(rest.head.Evidence), rest.runs())
		}
		// As a bundle of its own it verifies: the evidence says what was pruned.
		if report := b.verifyExport(t, ExportRequest{From: 1500, Size: size}); !report.OK() || report.Pruned != size-1500 {
			t.Errorf("report %+v", report)
		}
		for _, r := range []ExportRequest{{From: -1}, {From: 1 << 40}, {From: size + 1, Size: size}} {
			if err := b.Export(t.Context(), r, &collected{}); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%+v: %v", r, err)
			}
		}
		if err := b.Export(t.Context(), ExportRequest{Size: size - 1}, &collected{}); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("a size without a checkpoint: %v", err)
		}
	})
}

// Events that are pruned before an export has come to them end it: what it said
// of the log at its beginning would not be true.
func TestExportWhenPrunedMeanwhile(t *testing.T) {
	db := storetest.SQLite(t)
	b := newPruneBed(t, db)
	b.add(t, "a", exportRows+100)
	b.clock.Advance(48 * time.Hour)
	c := &collected{}
	c.fail = func() error {
		c.fail = nil
		b.prune(t)
		return nil
	}
	if err := b.Export(t.Context(), ExportRequest{}, c); !errors.Is(err, fault.ErrChanged) {
		t.Errorf("exported though events were pruned: %v", err)
	}
	if report := b.verifyExport(t, ExportRequest{}); !report.OK() {
		t.Errorf("findings %v", report.Findings)
	}
}

// An export right after a prune waits for the event that declares it.
func TestExportWhenPruneIsNotSequenced(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		b.add(t, "a", 10)
		b.clock.Advance(48 * time.Hour)
		if p, err := b.Prune(t.Context(), b.clock.Now()); err != nil || p.Deleted != 12 {
			t.Fatalf("pruned %+v, %v", p, err)
		}
		if report := b.verifyExport(t, ExportRequest{}); !report.OK() || report.Pruned != 12 || report.Records != 1 {
			t.Errorf("report %+v", report)
		}
	})
}

// What was cut out without being pruned is in a gap that nobody declared.
func TestExportWhenEventIsMissing(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		tr := newTrail(t, db)
		record(t, db, make10()...)
		sequence(t, tr)
		drop := `DROP TRIGGER events_no_delete`
		if db.Dialect() == "postgres" {
			drop += ` ON events`
		}
		for _, statement := range []string{drop, `DELETE FROM events WHERE leaf_index IN (4, 5, 10)`} {
			if err := exec(t, db, statement); err != nil {
				t.Fatal(err)
			}
		}
		if c := collect(t, tr, ExportRequest{}); c.runs() != "4-6 pruned, 10-11 pruned" {
			t.Errorf("gaps %s", c.runs())
		}
		report := verifyExport(t, tr, ExportRequest{})
		if report.OK() || len(report.Findings) != 2 || report.Findings[0].Kind != bundle.Undeclared || report.Findings[0].Index != 4 {
			t.Errorf("findings %v", report.Findings)
		}
	})
}

func make10() []Event {
	events := make([]Event, 10)
	for i := range events {
		events[i] = Event{Action: "x", Resource: fmt.Sprint("r/", i), Address: "192.0.2.1"}
	}
	return events
}

func TestExportWhenTileIsMissing(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		tr := newTrail(t, db)
		if err := tr.Export(t.Context(), ExportRequest{}, &collected{}); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("an export without a checkpoint: %v", err)
		}
		record(t, db, make10()...)
		sequence(t, tr)
		if err := exec(t, db, `DELETE FROM trail_tiles WHERE level = 0`); err != nil {
			t.Fatal(err)
		}
		if err := tr.Export(t.Context(), ExportRequest{}, &collected{}); !errors.Is(err, errTile) || !strings.Contains(err.Error(), "restore it from a backup") {
			t.Errorf("an export without tiles: %v", err)
		}
	})
}

// A time is a filter like others. Where the leaves about its beginning were
// pruned, they are in the range, because nobody knows their times.
func TestExportWhenSinceWasPruned(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		since := b.clock.Now().Add(time.Hour)
		b.add(t, "a", 8) // 2 to 9, with two before
		b.clock.Advance(2 * time.Hour)
		b.add(t, "b", 10) // 10 to 19
		b.clock.Advance(time.Hour)
		b.add(t, "c", 10) // 20 to 29
		c := collect(t, b.Trail, ExportRequest{Query: Query{Since: since}})
		if c.head.Begin != 10 || len(c.records) != 20 || len(c.gaps) != 0 {
			t.Errorf("begins at %d, %d records, gaps %s", c.head.Begin, len(c.records), c.runs())
		}
		if err := b.AddHold(t.Context(), Hold{Name: "h", Reason: "r", Resource: "a/7"}); err != nil { // 9
			t.Fatal(err)
		}
		sequence(t, b.Trail)
		b.clock.Advance(24*time.Hour - 30*time.Minute)
		b.prune(t)
		c = collect(t, b.Trail, ExportRequest{Query: Query{Since: since}})
		if c.head.Begin != 10 || c.runs() != "10-20 pruned" || c.head.Filter["since"] != "2026-01-05T01:00:00.000000Z" {
			t.Errorf("begins at %d, gaps %s, filter %v", c.head.Begin, c.runs(), c.head.Filter)
		}
		if report := b.verifyExport(t, ExportRequest{Query: Query{Since: since}}); !report.OK() {
			t.Errorf("findings %v", report.Findings)
		}
	})
}

// A key that was rotated, and a log that was restarted under another name, do not
// keep an export from verifying.
func TestExportWhenKeysWereRotated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		tr := newTrail(t, db)
		for range 3 {
			record(t, db, make10()...)
			sequence(t, tr)
			if _, err := tr.RotateKey(t.Context(), "yearly"); err != nil {
				t.Fatal(err)
			}
		}
		if report := verifyExport(t, tr, ExportRequest{}); !report.OK() || report.Records != 33 {
			t.Errorf("report %+v", report)
		}
		sequence(t, tr)
		if report := verifyExport(t, tr, ExportRequest{Query: Query{Action: "trail_key."}, Omitted: true}); !report.OK() || report.Records != 3 {
			t.Errorf("report %+v", report)
		}
	})
}

// A batch ends by its bytes, too.
func TestExportWhenEventsAreLarge(t *testing.T) {
	db := storetest.SQLite(t)
	newClock(db)
	tr := newTrail(t, db)
	const n = 2 * exportBytes / (16 << 10)
	events := make([]Event, n)
	for i := range events {
		events[i] = Event{Action: "x", Detail: map[string]any{"text": strings.Repeat("a", 16<<10-20)}}
	}
	record(t, db, events...)
	sequence(t, tr)
	if c := collect(t, tr, ExportRequest{}); len(c.records) != n+1 {
		t.Errorf("%d records, want %d", len(c.records), n+1)
	}
	var most int
	e := &exporter{records: make([]trail.Record, exportRows), salts: make([]saltBuffer, exportRows)}
	err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		if _, err := e.begin(ctx, tx); err != nil {
			return err
		}
		for e.next < e.end {
			if err := e.read(ctx, tx); err != nil {
				return err
			}
			most = max(most, len(e.pieces))
		}
		return nil
	})
	if err != nil || most > n/2+2 {
		t.Errorf("a batch has %d events of %d, %v", most, n, err)
	}
}

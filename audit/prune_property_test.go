package audit

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// pruneModel is what the trail must be, whatever was done to it.
type pruneModel struct {
	*pruneBed
	keep    time.Duration
	there   map[string]Event // that were seen with an index and are not gone
	holds   map[string]Hold
	open    []string
	cursors map[string]int64
	roots   map[int64]tlog.Hash // of checkpoints
	holdNo  int
}

// Over any sequence of records, prunes, holds, erasures, intents, cursors and
// restarts: no leaf and no root changes; nothing is lost that is young, held,
// open or unread; and every export verifies offline.
func TestPruneProperty(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		m := &pruneModel{pruneBed: newPruneBed(t, db), keep: 24 * time.Hour, there: map[string]Event{}, holds: map[string]Hold{}, cursors: map[string]int64{}, roots: map[int64]tlog.Hash{}}
		rapid.Check(t, func(rt *rapid.T) {
			for range rapid.IntRange(1, 6).Draw(rt, "steps") {
				m.act(t, rt)
			}
			m.check(t)
			m.export(t, rt)
		})
	})
}

func (m *pruneModel) act(t *testing.T, rt *rapid.T) {
	pick := func(label string, values ...string) string { return rapid.SampledFrom(values).Draw(rt, label) }
	resource := func() string {
		return pick("kind", "keysets/", "tokens/") + pick("name", "a", "b", "c")
	}
	ctx := WithActor(t.Context(), asAdmin)
	switch act := pick("act", "record", "record", "begin", "end", "sequence", "wait", "prune", "prune", "hold", "release", "erase", "read", "restart", "keep"); act {
	case "record":
		events := make([]Event, rapid.IntRange(1, 20).Draw(rt, "events"))
		for i := range events {
			events[i] = Event{Action: pick("action", "key.create", "key.revoke", "login"), Resource: resource(), Partner: pick("partner", "", "acme", "other"),
				Actor: pick("actor", "token/ada", "token/bob"), Address: pick("address", "", "192.0.2.1", "192.0.2.2"), Outcome: pick("outcome", OK, OK, Denied)}
		}
		record(t, m.DB, events...)
	case "begin":
		m.open = append(m.open, begin(t, m.DB, Event{Action: "store.write", Resource: resource(), Partner: "acme"}))
	case "end":
		if n := len(m.open); n > 0 {
			i := rapid.IntRange(0, n-1).Draw(rt, "intent")
			if err := end(ctx, m.DB, m.open[i], Event{Action: "store.write", Outcome: pick("end", OK, Failed)}); err != nil {
				t.Fatal(err)
			}
			m.open = slices.Delete(m.open, i, i+1)
		}
	case "sequence":
		sequence(t, m.Trail)
	case "wait":
		m.clock.Advance(time.Duration(rapid.IntRange(-1, 30).Draw(rt, "hours")) * time.Hour)
	case "prune":
		m.check(t)
		plan, err := m.PrunePlan(t.Context(), m.clock.Now(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if p := m.prune(t); p.Deleted != plan.Deleted || p.Blocked != plan.Blocked {
			t.Errorf("pruned %+v, planned %+v", p, plan)
		}
		m.lost(t)
	case "hold":
		m.holdNo++
		h := Hold{Name: fmt.Sprint("h", m.holdNo), Reason: "r", Partner: pick("held partner", "", "acme", "other"), Resource: pick("held", "", "keysets/", "tokens/a", "nothing/")}
		if err := m.AddHold(ctx, h); err != nil {
			t.Fatal(err)
		}
		m.holds[h.Name] = h
	case "release":
		for _, name := range slices.Sorted(maps.Keys(m.holds)) {
			if rapid.Bool().Draw(rt, "release") {
				if err := m.ReleaseHold(ctx, name, "over"); err != nil {
					t.Fatal(err)
				}
				delete(m.holds, name)
			}
		}
	case "erase":
		e := Erase{Reason: "ticket", Fields: []trail.Field{trail.Field(rapid.IntRange(1, int(trail.NumFields)-1).Draw(rt, "field"))}}
		switch by := pick("by", "actor", "address", "partner"); by {
		case "actor":
			e.Actor = "token/ada"
		case "address":
			e.Address = "192.0.2.1"
		default:
			e.Partner = "acme"
		}
		if _, err := m.Erase(ctx, e); err != nil && (len(m.holds) == 0 || !strings.Contains(err.Error(), "legal hold")) {
			t.Fatal(err)
		}
	case "read":
		size, err := m.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		name := pick("cursor", "sink/a", "sink/b")
		from := m.cursors[name]
		to := rapid.Int64Range(from, max(from, size)).Draw(rt, "to")
		if err := m.SetCursor(ctx, name, from, to); err != nil {
			t.Fatal(err)
		}
		m.cursors[name] = to
	case "restart":
		if err := m.Close(t.Context()); err != nil && !strings.Contains(err.Error(), "lease") {
			t.Fatal(err)
		}
		m.Trail = openTrail(t, m.Config)
	case "keep":
		m.keep = time.Duration(rapid.IntRange(24, 48).Draw(rt, "keep")) * time.Hour
		if err := m.SetRetention(ctx, m.keep, "drill"); err != nil {
			t.Fatal(err)
		}
	}
}

// check takes in what is new, after checking leaves and roots.
func (m *pruneModel) check(t *testing.T) {
	t.Helper()
	sequence(t, m.Trail)
	m.records(t)
	m.lost(t)
	for _, e := range list(t, m.DB, Query{Limit: 1000}) {
		if _, ok := m.there[e.ID]; !ok {
			m.there[e.ID] = e
		}
	}
	c, _, err := m.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.roots[c.Size] = c.Root
	for size, want := range m.roots {
		if got, err := m.rootAt(t, size); err != nil || got != want {
			t.Fatalf("the root at %d leaves changed: %v", size, err)
		}
		break // any one
	}
}

// lost judges what is gone since the last time.
func (m *pruneModel) lost(t *testing.T) {
	t.Helper()
	now := map[string]bool{}
	for _, e := range list(t, m.DB, Query{Limit: 1000}) {
		now[e.ID] = true
	}
	before := m.clock.Now().Add(-m.keep)
	for id, e := range m.there {
		if now[id] {
			continue
		}
		delete(m.there, id)
		if !e.Time.Before(before) || e.Action == bundle.PruneAction || slices.Contains(m.open, id) {
			t.Errorf("event %d (%s, %v, open: %v) is gone at %v", e.Index, e.Action, e.Time, slices.Contains(m.open, id), m.clock.Now())
		}
		for _, h := range m.holds {
			if (h.Partner == "" || h.Partner == e.Partner) && (h.Resource == "" || h.Resource == e.Resource || strings.HasSuffix(h.Resource, "/") && strings.HasPrefix(e.Resource, h.Resource)) {
				t.Errorf("event %d is gone in spite of the hold %+v", e.Index, h)
			}
		}
		for name, next := range m.cursors {
			if e.Index >= next {
				t.Errorf("event %d is gone, and %s has read up to %d", e.Index, name, next)
			}
		}
	}
}

func (m *pruneModel) export(t *testing.T, rt *rapid.T) {
	t.Helper()
	sometimes := func(label string, values ...string) string {
		return rapid.SampledFrom(append(values, make([]string, len(values))...)).Draw(rt, label)
	}
	q := Query{Actor: sometimes("by", "token/ada"), Action: sometimes("of", "key.", "login"), Resource: sometimes("on", "keysets/"), Partner: sometimes("for", "acme"), Address: sometimes("at", "192.0.2.1"), Outcome: sometimes("with", OK, Denied)}
	if rapid.Bool().Draw(rt, "bounded") {
		q.Since = m.clock.Now().Add(-time.Duration(rapid.IntRange(0, 100).Draw(rt, "since")) * time.Hour)
		q.Until = q.Since.Add(time.Duration(rapid.IntRange(0, 100).Draw(rt, "until")) * time.Hour)
	}
	if rapid.Bool().Draw(rt, "whole") {
		q = Query{}
	}
	request := ExportRequest{Query: q, Omitted: rapid.Bool().Draw(rt, "omitted")}
	c := collect(t, m.Trail, request)
	q.Limit = 1000
	want := map[string]bool{}
	for _, e := range list(t, m.DB, q) {
		want[e.ID] = true
	}
	if request.Omitted { // which has the events that declare what was pruned, whatever the query
		for _, e := range list(t, m.DB, Query{Action: bundle.PruneAction, Limit: 1000}) {
			if e.Index >= c.head.Begin && e.Index < c.head.End {
				want[e.ID] = true
			}
		}
	}
	if len(c.ids) != len(want) {
		t.Errorf("%+v: %d events exported, a search finds %d", q, len(c.ids), len(want))
	}
	if report := verifyExport(t, m.Trail, request); !report.OK() {
		t.Errorf("%+v: findings %v", request, report.Findings)
	}
}

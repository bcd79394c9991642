package audit

import (
	"context"
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

var exportEvents = flag.Int("trail.events", 20_000, "how many events BenchmarkExport exports, and BenchmarkOpenIntents looks among")

// newBusyTrail makes a log of n events that look like those of a busy day.
func newBusyTrail(b *testing.B, db *store.DB, n int) *Trail {
	b.Helper()
	tr := newTrail(b, db)
	for done := 0; done < n; {
		err := db.Update(b.Context(), func(ctx context.Context, tx *store.Tx) error {
			for i := done; i < min(n, done+batchSize); i++ {
				err := Record(ctx, tx, Event{
					Actor: fmt.Sprintf("token/0198c0de-0000-7000-8000-%012d", i%100), Action: "keyset.sign", Resource: fmt.Sprintf("keysets/k%d", i%1000),
					Partner: "acme", Address: "192.0.2.7", RequestID: fmt.Sprintf("req-%d", i), Detail: map[string]any{"kid": "abcdefghijklmnopqrstuvwxyz0123456789", "n": i},
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		done += batchSize
		sequence(b, tr)
	}
	return tr
}

// counted takes an export and keeps nothing.
type counted struct{ records int }

func (c *counted) Head(bundle.Head) error     { return nil }
func (c *counted) Gap(bundle.Gap) error       { return nil }
func (c *counted) Record(*trail.Record) error { c.records++; return nil }

func runDatabases(b *testing.B, body func(b *testing.B, db *store.DB)) {
	b.Run("sqlite", func(b *testing.B) { body(b, storetest.SQLite(b)) })
	b.Run("postgres", func(b *testing.B) { body(b, storetest.Open(b, storetest.Postgres(b))) })
}

// BenchmarkExport reads a whole log as an export does, beside a plain SELECT of
// the same rows in one statement. By hand: -trail.events 1000000 -benchtime 1x.
func BenchmarkExport(b *testing.B) {
	runDatabases(b, func(b *testing.B, db *store.DB) {
		tr := newBusyTrail(b, db, *exportEvents)
		b.Run("export", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c := &counted{}
				if err := tr.Export(b.Context(), ExportRequest{}, c); err != nil || c.records < *exportEvents {
					b.Fatal(c.records, err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(*exportEvents), "µs/event")
		})
		b.Run("select", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				err := db.View(b.Context(), func(ctx context.Context, tx *store.Tx) error {
					rows, err := tx.Query(ctx, `SELECT `+recordColumns+` FROM events ORDER BY leaf_index`)
					if err != nil {
						return err
					}
					defer rows.Close()
					var r trail.Record
					var at, erased int64
					for rows.Next() {
						n++
						if err := rows.Scan(&r.Index, &erased, &r.ID, &at, &r.Actor, &r.Action, &r.Resource, &r.Partner, &r.Outcome, &r.Reason, &r.RequestID, &r.Address, &r.Detail, &r.Count, &r.Intent, &r.Salt, &r.Checks); err != nil {
							return err
						}
					}
					return rows.Err()
				})
				if err != nil || n < *exportEvents {
					b.Fatal(n, err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(*exportEvents), "µs/event")
		})
		// One event in the middle: what does not match is passed over by index.
		b.Run("one of all", func(b *testing.B) {
			for b.Loop() {
				c := &counted{}
				if err := tr.Export(b.Context(), ExportRequest{Query: Query{RequestID: fmt.Sprint("req-", *exportEvents/2)}}, c); err != nil || c.records != 1 {
					b.Fatal(c.records, err)
				}
			}
		})
	})
}

// BenchmarkOpenIntents looks for a few open intents in a log of many events.
func BenchmarkOpenIntents(b *testing.B) {
	runDatabases(b, func(b *testing.B, db *store.DB) {
		tr := newBusyTrail(b, db, *exportEvents)
		for range 5 {
			begin(b, db, Event{Action: "store.write"})
		}
		sequence(b, tr)
		for range 5 {
			begin(b, db, Event{Action: "store.write"})
		}
		before := time.Now().Add(time.Hour)
		for b.Loop() {
			if events, err := OpenIntents(b.Context(), db, before, 100); err != nil || len(events) != 10 {
				b.Fatal(len(events), err)
			}
		}
	})
}

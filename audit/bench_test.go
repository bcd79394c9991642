package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// sample is an event as changes record them.
func sample(i int) Event {
	return Event{Actor: "k3v9x0m2q8r7t1b5", Action: "signing_key.active", Resource: fmt.Sprintf("keysets/payments-%d/keys/abcdefghijklmnopqrstuvwxyz0123456789", i%1000),
		Partner: "acme", RequestID: "QZ3K6J5WTVX2Y7PLM4NRA8DBCE", Address: "2001:db8::17",
		Detail: map[string]any{"from": "pending", "since": "2026-01-05T00:00:00Z", "reason": "rotation", "version": i}}
}

// bare inserts the same row into a table of the same columns and primary key:
// what any audit table costs, without salts, hashes, queue and tree.
func bare(ctx context.Context, tx *store.Tx, e Event, n int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO bare (n, id, occurred_at, actor, action, resource, partner, outcome, reason, request_id, address, detail, count)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		n, tx.ID(), store.Micros(tx.Now), e.Actor, e.Action, e.Resource, e.Partner, OK, e.Reason, e.RequestID, e.Address,
		`{"from":"pending","reason":"rotation","since":"2026-01-05T00:00:00Z","version":1}`, 1)
	return err
}

const bareTable = `CREATE TABLE bare (n BIGINT PRIMARY KEY, id TEXT NOT NULL, occurred_at BIGINT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
	resource TEXT NOT NULL, partner TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, request_id TEXT NOT NULL, address TEXT NOT NULL,
	detail TEXT NOT NULL, count BIGINT NOT NULL)`

// bareIndexes are the indexes by which the trail is searched.
var bareIndexes = []string{"occurred_at", "actor, n", "action, n", "resource, n", "partner, n", "request_id", "address, n", "id"}

// BenchmarkRecord compares, per event: a bare insert, a bare insert into a table
// with the trail's indexes, Record, and Record until the event has its leaf index
// and a signed checkpoint covers it.
func BenchmarkRecord(b *testing.B) {
	for _, database := range []struct {
		name    string
		open    func(testing.TB) *store.DB
		writers int
	}{
		{"sqlite", storetest.SQLite, 1},
		{"postgres", func(t testing.TB) *store.DB { return storetest.Open(t, storetest.Postgres(t)) }, 8},
	} {
		for _, perTx := range []int{1, 100} {
			for _, kind := range []string{"bare", "bare-indexed", "record", "sequenced"} {
				b.Run(fmt.Sprintf("%s/tx=%d/%s", database.name, perTx, kind), func(b *testing.B) {
					db := database.open(b)
					tr := newTrail(b, db)
					if err := exec(b, db, bareTable); err != nil {
						b.Fatal(err)
					}
					if kind == "bare-indexed" {
						for i, columns := range bareIndexes {
							if err := exec(b, db, fmt.Sprintf(`CREATE INDEX bare_%d ON bare (%s)`, i, columns)); err != nil {
								b.Fatal(err)
							}
						}
					}
					ctx, stop := context.WithCancel(b.Context())
					var background sync.WaitGroup
					if kind == "sequenced" {
						background.Go(func() { _ = tr.Run(ctx) })
					}
					var next atomic.Int64
					var writers sync.WaitGroup
					b.ResetTimer()
					for range database.writers {
						writers.Go(func() {
							for {
								first := next.Add(int64(perTx)) - int64(perTx)
								if first >= int64(b.N) {
									return
								}
								err := db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
									for i := first; i < min(first+int64(perTx), int64(b.N)); i++ {
										var err error
										if e := sample(int(i)); kind == "record" || kind == "sequenced" {
											err = Record(ctx, tx, e)
										} else {
											err = bare(ctx, tx, e, i)
										}
										if err != nil {
											return err
										}
									}
									return nil
								})
								if err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					writers.Wait()
					if kind == "sequenced" {
						for {
							size, err := tr.Head(ctx)
							if err != nil {
								b.Fatal(err)
							}
							if size > int64(b.N) { // and trail.start
								break
							}
							time.Sleep(time.Millisecond)
						}
					}
					b.StopTimer()
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
					stop()
					background.Wait()
				})
			}
		}
	}
}

// BenchmarkCheckpointLatency measures from the commit of an event until a follower
// has it under a signed checkpoint, one event at a time.
func BenchmarkCheckpointLatency(b *testing.B) {
	for name, open := range map[string]func(testing.TB) *store.DB{
		"sqlite":   storetest.SQLite,
		"postgres": func(t testing.TB) *store.DB { return storetest.Open(t, storetest.Postgres(t)) },
	} {
		b.Run(name, func(b *testing.B) {
			db := open(b)
			tr := newTrail(b, db)
			ctx, stop := context.WithCancel(b.Context())
			var background sync.WaitGroup
			seen := make(chan int64, 1024)
			background.Go(func() { _ = tr.Run(ctx) })
			background.Go(func() {
				err := tr.Follow(ctx, 0, func(_ []trail.Record, next int64) error {
					seen <- next
					return nil
				})
				if !errors.Is(err, context.Canceled) {
					b.Error(err)
				}
			})
			for next := int64(0); next < 1; {
				next = <-seen
			}
			var worst time.Duration
			b.ResetTimer()
			for i := range b.N {
				if err := db.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return Record(ctx, tx, sample(i)) }); err != nil {
					b.Fatal(err)
				}
				committed := time.Now()
				for next := int64(0); next < int64(i)+2; {
					next = <-seen
				}
				worst = max(worst, time.Since(committed))
				time.Sleep(time.Duration(i%7) * time.Millisecond) // not in step with the sequencer
			}
			b.StopTimer()
			b.ReportMetric(float64(worst.Milliseconds()), "worst-ms")
			stop()
			background.Wait()
		})
	}
}

package store_test

import (
	"context"
	"database/sql"
	"net/url"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// BenchmarkInsert compares one durable insert through Update with the same
// transaction through database/sql alone, on the same file or server, one
// after the other. "raw" is the floor: what the driver and the disk cost.
func BenchmarkInsert(b *testing.B) {
	const create = `CREATE TABLE bench (id BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL)`
	const query = `INSERT INTO bench (id, name) VALUES ($1, $2)`
	run := func(name string, db *store.DB, raw *sql.DB) {
		b.Cleanup(func() { _ = raw.Close() })
		if _, err := raw.Exec(create); err != nil {
			b.Fatal(err)
		}
		var id int64
		ctx := context.Background()
		b.Run(name+"/raw", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				id++
				tx, err := raw.BeginTx(ctx, nil)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := tx.ExecContext(ctx, query, id, "name"); err != nil {
					b.Fatal(err)
				}
				if err := tx.Commit(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/store", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				id++
				err := db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
					_, err := tx.Exec(ctx, query, id, "name")
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	file := storetest.SQLiteURL(b)
	db := storetest.Open(b, file)
	raw, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: strings.TrimPrefix(file, "sqlite:")}).String()+
		"?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		b.Fatal(err)
	}
	raw.SetMaxOpenConns(1)
	run("sqlite", db, raw)

	server := storetest.Postgres(b)
	if raw, err = sql.Open("pgx", server); err != nil {
		b.Fatal(err)
	}
	run("postgres", storetest.Open(b, server), raw)
}

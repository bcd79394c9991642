package store_test

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/migrations"
)

// Promise: replicas that start together bring an empty database to the newest
// schema, and each migration runs once.
func TestMigrateWhenReplicasRace(t *testing.T) {
	latest, err := migrations.Latest()
	if err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, replicas []*store.DB) {
		var all sync.WaitGroup
		for _, db := range replicas {
			all.Go(func() {
				if err := db.Migrate(t.Context()); err != nil {
					t.Errorf("Migrate: %v", err)
				}
			})
		}
		all.Wait()
		err := replicas[0].View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			var rows, top int64
			err := tx.QueryRow(ctx, `SELECT COUNT(*), MAX(version_id) FROM schema_version WHERE version_id > 0`).Scan(&rows, &top)
			if rows != latest || top != latest {
				t.Errorf("%d migrations ran, up to %d; want %d", rows, top, latest)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	t.Run("postgres", func(t *testing.T) {
		url := storetest.EmptyPostgres(t)
		check(t, []*store.DB{storetest.Open(t, url), storetest.Open(t, url), storetest.Open(t, url)})
	})
	t.Run("sqlite", func(t *testing.T) {
		db := storetest.Open(t, "sqlite:"+filepath.Join(t.TempDir(), "x.db"))
		check(t, []*store.DB{db, db, db})
	})
}

func TestMigrateWhenAnotherReplicaMigrates(t *testing.T) {
	db := storetest.Open(t, storetest.EmptyPostgres(t))
	other, err := store.Writer(db).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.ExecContext(t.Context(), `SELECT pg_advisory_lock($1)`, store.MigrationLock); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- db.Migrate(t.Context()) }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for waiting := false; !waiting; {
		err := other.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waiting)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			t.Fatalf("Migrate did not wait: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	var begun bool
	if err := other.QueryRowContext(ctx, `SELECT to_regclass('schema_version') IS NOT NULL`).Scan(&begun); err != nil || begun {
		t.Errorf("Migrate has begun while it waits (%v)", err)
	}
	if _, err := other.ExecContext(ctx, `SELECT pg_advisory_unlock($1)`, store.MigrationLock); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Migrate: %v", err)
	}
}

func TestOpenWhenSchemaIsNewer(t *testing.T) {
	for name, newURL := range map[string]func(testing.TB) string{"sqlite": storetest.SQLiteURL, "postgres": storetest.Postgres} {
		t.Run(name, func(t *testing.T) {
			url := newURL(t)
			db := storetest.Open(t, url)
			if err := db.Migrate(t.Context()); err != nil {
				t.Errorf("Migrate when up to date: %v", err)
			}
			update(t, db, func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.Exec(ctx, `INSERT INTO schema_version (version_id, is_applied) VALUES (9999, $1)`, true)
				return err
			})
			wantFault(t, db.Migrate(t.Context()), fault.ErrRejected, "schema_too_new", "9999")
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			_, err := store.Open(t.Context(), url)
			wantFault(t, err, fault.ErrRejected, "schema_too_new", "9999")
		})
	}
}

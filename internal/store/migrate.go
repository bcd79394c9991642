package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/pressly/goose/v3"

	"github.com/rotunda-dev/rotunda/migrations"
)

// versionTable is where goose writes which migrations have run.
const versionTable = "schema_version"

// migrationLock is the key of PostgreSQL's advisory lock around Migrate.
const migrationLock int64 = 0x726f74756e6461 // "rotunda"

// Migrate brings the schema up to date. Each migration is one transaction, so
// an interrupted Migrate is continued by the next. Replicas may call it at the
// same time.
func (db *DB) Migrate(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, migrateLimit)
	defer cancel()
	pool, done := db.dialect.migratePool()
	defer func() { err = errors.Join(err, done()) }()
	if db.dialect.name == migrations.Postgres {
		conn, err := pool.Conn(ctx)
		if err != nil {
			return db.fault(ctx, fmt.Errorf("migrate: connect: %w", err))
		}
		defer conn.Close() //nolint:errcheck // closing the pool ends the session, and that frees the lock
		if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, migrationLock); err != nil {
			return db.fault(ctx, fmt.Errorf("migrate: wait for the replica that migrates now: %w", err))
		}
	}
	// Under the lock: another replica, of a newer version, may have been first.
	if err := db.checkVersion(ctx, pool); err != nil {
		return err
	}
	if err := up(ctx, db.dialect.name, pool); err != nil {
		return db.fault(ctx, fmt.Errorf("migrate the schema: %w", err))
	}
	return nil
}

func up(ctx context.Context, dialect string, pool *sql.DB) error {
	set, err := migrations.FS(dialect)
	if err != nil {
		return err
	}
	goosed := map[string]goose.Dialect{migrations.SQLite: goose.DialectSQLite3, migrations.Postgres: goose.DialectPostgres}
	provider, err := goose.NewProvider(goosed[dialect], pool, set,
		goose.WithTableName(versionTable),
		goose.WithDisableGlobalRegistry(true),
		goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

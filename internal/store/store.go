// Package store is Rotunda's database: transactions, compare-and-swap,
// idempotency keys and leases over SQLite or PostgreSQL. The packages that own
// tables write their SQL beside their own code and run it through [Tx]; the
// same SQL text serves both databases.
//
// # Model
//
// [Open] takes "sqlite:/path/file.db" or "postgres://…" and gives a [DB].
// [DB.Update] runs a function in one read-write transaction, [DB.View] in one
// read-only snapshot. Nothing else reaches the database, so what a function
// did is either all there or not at all. Every transaction has one instant,
// [Tx.Now], read from the only clock seam of the program, [DB.Now].
//
// SQLite is one process and one file: one connection writes (BEGIN IMMEDIATE,
// WAL, synchronous=FULL), so writers queue in the process and a COMMIT that
// returned is on the disk; a pool of query-only connections reads, and is
// never blocked by the writer. A second process is refused by a lock on the
// side file FILE.lock, which the kernel releases when the process dies.
//
// PostgreSQL is any number of processes. Update is READ COMMITTED, View is
// REPEATABLE READ READ ONLY. Isolation is therefore not what keeps two
// replicas apart: every change is compare-and-swap. [Tx.Swap] runs an UPDATE
// or DELETE guarded by the old state, and says fault.ErrChanged unless it hit
// exactly one row.
//
// # SQL that works in both
//
// $1 placeholders; TEXT, BIGINT, BYTEA and BOOLEAN columns; times as BIGINT
// microseconds since 1970 ([Micros], [Time]); INSERT … ON CONFLICT … DO
// NOTHING or DO UPDATE; RETURNING; partial unique indexes; strings in single
// quotes only (SQLite's double-quoted strings are switched off). Let $n appear
// in order of n. TEXT holds UTF-8 without NUL; anything else goes to BYTEA.
//
// # Invariants
//
//   - A nil from Update means that the change is durable.
//   - A transaction with a failed statement never commits. PostgreSQL works
//     like that; for SQLite, Tx remembers the failure. To go on after a
//     conflict, avoid it: ON CONFLICT DO NOTHING.
//   - A panic or runtime.Goexit in the function rolls back.
//   - A caller's context cancels waiting and statements, but never a COMMIT
//     that has begun: that one is bounded by a timer of its own.
//   - The function of Update may run more than once (at most 4 times):
//     PostgreSQL may abort a transaction for a deadlock or a serialization
//     failure, and Update then runs it again with a new Tx. It must have no
//     effect outside of its Tx except through [Tx.AfterCommit], and must set,
//     not append to, variables of its caller.
//   - Everything waits for a bounded time: for a connection, for a lock, for a
//     statement, for a whole Update (see the constants beside each).
//
// # Failures
//
// Errors of the database become kinds of package fault with the driver's error
// as cause: a unique violation is fault.ErrExists ([IsUnique] tells which); a
// lost connection, a full disk, a lock that is not released, a read-only or
// damaged file is fault.ErrUnavailable. A statement's own fault (syntax, a
// foreign key, a trigger) has no kind: it is a bug or the domain knows better.
// sql.ErrNoRows is left to the caller.
//
// When the connection is lost during COMMIT nobody knows whether the change is
// there. Update then returns [ErrOutcomeUnknown] (also fault.ErrUnavailable)
// and runs no AfterCommit function; ask again, under an idempotency key
// ([Tx.Once]) or compare-and-swap.
//
// A transaction inside a transaction is refused with an error: on SQLite it
// would wait for itself. It is recognised by the context that the function
// got, so pass that one on.
//
// # Leases
//
// [DB.Acquire] gives one holder at a time a named lease with an epoch that
// grows at every change of hands; [Tx.Fence] makes a transaction fail when the
// lease is no longer held. Expiry is judged by the clocks of the processes, so
// their skew must be small against the time to live; a wrong clock can move a
// lease too early, but can't get a stale holder's write past Fence.
//
// # Schema
//
// [DB.Migrate] brings the schema of package migrations up to date; Open never
// does, but refuses a schema newer than the program. Replicas that start
// together migrate one after the other, under an advisory lock.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/migrations"
)

const (
	openLimit    = 15 * time.Second // for all that Open does
	waitLimit    = 10 * time.Second // for a connection of the pool
	updateLimit  = 60 * time.Second // for one Update with its retries
	commitLimit  = 30 * time.Second // for COMMIT, ROLLBACK and BEGIN
	migrateLimit = 10 * time.Minute // for all that Migrate does
)

// DB is an open database. Its methods may be called from many goroutines.
type DB struct {
	// Now is the clock. It may be replaced before the first use, by tests.
	Now func() time.Time

	// Tick is a clock that no one sets: the time since some fixed instant. It
	// measures how long ago something was. It may be replaced like Now.
	Tick func() time.Duration

	dialect dialect
	read    *sql.DB
	write   *sql.DB // SQLite: one connection; PostgreSQL: the same as read
	hub     hub
	shut    atomic.Bool
	release func() error // gives back what Open took beside the pools
}

// dialect is what the two databases do differently. There are two values of
// it: see sqlite.go and postgres.go.
type dialect struct {
	name        string // "sqlite" or "postgres"
	update      *sql.TxOptions
	view        *sql.TxOptions
	hasTable    string                         // SQL: $1 name → one row when the table is there
	classify    func(err error) *fault.Error   // nil: no kind known
	retryable   func(err error) bool           // aborted for reasons of concurrency: run again
	lost        func(err error) bool           // the connection is gone, the server may be well
	undone      func(err error) bool           // a failed COMMIT certainly did nothing
	migratePool func() (*sql.DB, func() error) // for Migrate, with what to call after it
	maxConns    int                            // how many dead connections a pool may hold
	snapshot    string                         // SQL of Tx.Snapshot; "": every transaction is one
	// relay hears announcements until it fails; nil: there is no other process.
	relay func(ctx context.Context, ready func(), heard func(topic string)) error
}

// Open opens a database and checks that it can be used. It creates the file of
// an SQLite database (mode 0600) when it is missing, but not its folder, and
// migrates nothing.
//
//	sqlite:/var/lib/rotunda/rotunda.db
//	postgres://user:password@host:5432/database?sslmode=verify-full
//
// An error says what was attempted, what is wrong and what to do, and never
// holds the password. Its kind is fault.ErrInvalid for a wrong URL,
// fault.ErrRejected when the database refuses us (wrong password, not a
// database, schema too new), fault.ErrUnavailable for the rest.
func Open(ctx context.Context, url string) (*DB, error) {
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	var db *DB
	var err error
	switch {
	case strings.HasPrefix(url, "sqlite:"):
		db, err = openSQLite(ctx, strings.TrimPrefix(url, "sqlite:"))
	case strings.HasPrefix(url, "postgres://"), strings.HasPrefix(url, "postgresql://"):
		db, err = openPostgres(ctx, url)
	default:
		// The URL itself may hold a password and stays out of the message.
		return nil, fault.Invalid("database_url", "database_url",
			"open database: the URL starts with neither sqlite: nor postgres://: use sqlite:/path/file.db or postgres://user:password@host/database")
	}
	if err != nil {
		return nil, err
	}
	db.Now = func() time.Time { return instant(time.Now()) }
	opened := time.Now()
	db.Tick = func() time.Duration { return time.Since(opened) }
	if err := db.checkVersion(ctx, db.read); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// Dialect returns "sqlite" or "postgres".
func (db *DB) Dialect() string { return db.dialect.name }

// Ping says whether the database answers. Its error is fault.ErrUnavailable.
func (db *DB) Ping(ctx context.Context) error {
	return db.View(ctx, func(ctx context.Context, tx *Tx) error {
		var n int
		if err := tx.QueryRow(ctx, `SELECT 1`).Scan(&n); err != nil {
			return fmt.Errorf("ping database: %w", err)
		}
		return nil
	})
}

// Close waits for running transactions and closes the database. Calls after it
// fail with fault.ErrUnavailable.
func (db *DB) Close() error {
	if db.shut.Swap(true) {
		return nil
	}
	// Readers first: the last connection to an SQLite file folds the WAL into
	// it, and a query-only one may not.
	err := db.read.Close()
	if db.write != db.read {
		err = errors.Join(err, db.write.Close())
	}
	if db.release != nil {
		err = errors.Join(err, db.release())
	}
	if err != nil {
		return fmt.Errorf("close database: %w", err)
	}
	return nil
}

// Micros returns t as it is stored: microseconds since 1970, 0 for the zero
// time.
func Micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// Time is the inverse of [Micros]; it returns UTC.
func Time(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// instant drops what the database can't hold, so that a time compares equal
// before and after it was stored.
func instant(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// checkVersion refuses a schema that a newer program made.
func (db *DB) checkVersion(ctx context.Context, pool *sql.DB) error {
	know, err := migrations.Latest()
	if err != nil {
		return err
	}
	have, err := db.version(ctx, pool)
	if err != nil {
		return db.fault(ctx, fmt.Errorf("read the schema's version: %w", err))
	}
	if have > know {
		return fault.New(fault.ErrRejected, "schema_too_new",
			"open database: its schema is at version %d and this program knows %d: run a newer Rotunda, or restore a backup made before the upgrade", have, know)
	}
	return nil
}

// version returns the schema's version, 0 for an empty database.
func (db *DB) version(ctx context.Context, pool *sql.DB) (int64, error) {
	var n int64
	err := pool.QueryRowContext(ctx, db.dialect.hasTable, versionTable).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	err = pool.QueryRowContext(ctx, `SELECT COALESCE(MAX(version_id), 0) FROM `+versionTable).Scan(&n)
	return n, err
}

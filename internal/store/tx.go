package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// retries is how often Update runs its function again after a deadlock or a
// serialization failure.
const retries = 3

// Tx is one transaction. It is used by one goroutine, and not after the
// function that got it has returned.
type Tx struct {
	// Now is the instant of this transaction: UTC, whole microseconds. On
	// SQLite it is read after the write lock was had.
	Now time.Time

	db       *DB
	sql      *sql.Tx
	readOnly bool
	failed   error // the first failed statement
	after    []func()
	ids      uint16 // made by ID so far
}

// running marks the context of a transaction's function.
type running struct {
	db    *DB
	ended atomic.Bool
}

type runningKey struct{}

// Update runs fn in one read-write transaction, commits when fn returns nil,
// and rolls back otherwise. fn may run more than once: see the package
// comment. It gets a context that is done after a minute at the latest.
//
// Beside the errors of fn it returns fault.ErrUnavailable, fault.ErrExists (a
// unique index, also one checked at COMMIT) and [ErrOutcomeUnknown].
func (db *DB) Update(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, updateLimit)
	defer cancel()
	for attempt := 0; ; attempt++ {
		after, err := db.run(ctx, false, fn)
		if err == nil {
			for _, f := range after {
				f()
			}
			return nil
		}
		if attempt == retries || !db.dialect.retryable(err) {
			return db.fault(caller, err)
		}
		if err := pause(ctx, attempt); err != nil {
			return db.fault(caller, err)
		}
	}
}

// View runs fn in one read-only transaction that sees one state of the
// database. Statements that write fail.
func (db *DB) View(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	after, err := db.run(ctx, true, fn)
	if err != nil {
		return db.fault(ctx, err)
	}
	for _, f := range after {
		f()
	}
	return nil
}

// pause waits between two attempts: 5 to 10 ms, then up to 20, then up to 40.
// The jitter keeps two transactions from meeting in the same way again.
func pause(ctx context.Context, attempt int) error {
	base := 5 * time.Millisecond << attempt
	timer := time.NewTimer(base + rand.N(base)) //nolint:gosec // jitter is no secret
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run does one attempt and returns the functions to run after it.
func (db *DB) run(ctx context.Context, readOnly bool, fn func(context.Context, *Tx) error) ([]func(), error) {
	if r, ok := ctx.Value(runningKey{}).(*running); ok && r.db == db && !r.ended.Load() {
		return nil, errors.New("store: a transaction was begun inside another one: pass the *store.Tx down instead")
	}
	b, err := db.begin(ctx, readOnly)
	if err != nil {
		return nil, err
	}
	defer b.end() // also when fn panics
	tx := &Tx{Now: instant(db.Now()), db: db, sql: b.tx, readOnly: readOnly}
	mark := &running{db: db}
	defer mark.ended.Store(true)
	if err := fn(context.WithValue(ctx, runningKey{}, mark), tx); err != nil {
		return nil, err
	}
	if tx.failed != nil {
		return nil, fmt.Errorf("store: transaction rolled back, because a statement failed and its error was dropped: %w", tx.failed)
	}
	// A caller that has gone gets a certain answer while there still is one.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := b.commit(); err != nil {
		if readOnly || db.dialect.undone(err) {
			return nil, fmt.Errorf("commit: %w", err)
		}
		return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return tx.after, nil
}

// bracket is a begun transaction with its connection.
//
// database/sql rolls back when the context of BeginTx ends, also under a
// COMMIT, whose outcome would then be unknown. So BeginTx gets a context of
// its own that no caller can end, and each step that talks to the database
// ends it by timer.
type bracket struct {
	conn   *sql.Conn
	tx     *sql.Tx
	cancel context.CancelFunc
}

func (db *DB) begin(ctx context.Context, readOnly bool) (*bracket, error) {
	if db.shut.Load() {
		return nil, fault.New(fault.ErrUnavailable, "database_closed", "begin transaction: the database is closed")
	}
	pool, opts := db.write, db.dialect.update
	if readOnly {
		pool, opts = db.read, db.dialect.view
	}
	// A server that restarted leaves one dead connection per place in the
	// pool; each is found out by its own failed BEGIN, which did nothing.
	for attempt := 0; ; attempt++ {
		b, err := beginOnce(ctx, pool, opts)
		if err == nil {
			return b, nil
		}
		if attempt >= db.dialect.maxConns || !errors.Is(err, errBegin) || !db.dialect.lost(err) || ctx.Err() != nil {
			return nil, err
		}
	}
}

// errBegin marks a failed BEGIN, as opposed to a failed dial.
var errBegin = errors.New("begin transaction")

func beginOnce(ctx context.Context, pool *sql.DB, opts *sql.TxOptions) (*bracket, error) {
	wait, stopWaiting := context.WithTimeout(ctx, waitLimit)
	defer stopWaiting()
	conn, err := pool.Conn(wait)
	if err != nil {
		if ctx.Err() == nil && wait.Err() != nil {
			return nil, fault.New(fault.ErrUnavailable, "database_busy",
				"begin transaction: no connection came free within %v: %w", waitLimit, err)
		}
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	detach := context.AfterFunc(ctx, cancel) // BEGIN may still be given up
	limit := time.AfterFunc(commitLimit, cancel)
	tx, err := conn.BeginTx(own, opts)
	limit.Stop()
	b := &bracket{conn: conn, tx: tx, cancel: cancel}
	if !detach() {
		b.end()
		return nil, fmt.Errorf("begin transaction: %w", context.Cause(ctx))
	}
	if err != nil {
		b.end()
		return nil, fmt.Errorf("%w: %w", errBegin, err)
	}
	return b, nil
}

func (b *bracket) commit() error {
	defer time.AfterFunc(commitLimit, b.cancel).Stop()
	return b.tx.Commit()
}

// end rolls back unless the transaction has ended, and gives the connection
// back. A failed ROLLBACK needs no report: the connection is discarded, and
// the database drops what it had not committed.
func (b *bracket) end() {
	limit := time.AfterFunc(commitLimit, b.cancel)
	defer limit.Stop()
	if b.tx != nil {
		_ = b.tx.Rollback()
	}
	_ = b.conn.Close()
	b.cancel()
}

// Exec runs a statement that gives no rows.
func (tx *Tx) Exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if err := tx.usable(); err != nil {
		return nil, err
	}
	if tx.readOnly {
		return nil, errors.New("store: View can't write: use Update")
	}
	res, err := tx.sql.ExecContext(ctx, query, args...)
	if err != nil {
		return nil, tx.fail(ctx, err)
	}
	return res, nil
}

// Query runs a statement that gives rows. Close them (or read them to the end)
// before the next statement: PostgreSQL has one at a time on a connection.
func (tx *Tx) Query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if err := tx.usable(); err != nil {
		return nil, err
	}
	rows, err := tx.sql.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, tx.fail(ctx, err)
	}
	return rows, nil
}

// QueryRow runs a statement that gives one row. Return the error of its Scan:
// Update gives it its kind. After a failed statement Scan fails too.
func (tx *Tx) QueryRow(ctx context.Context, query string, args ...any) *sql.Row {
	if tx.failed != nil {
		// A *sql.Row with an error of one's choice can't be made; running the
		// statement could write outside of the transaction (see usable).
		done, cancel := context.WithCancel(ctx)
		cancel()
		return tx.sql.QueryRowContext(done, query, args...)
	}
	return tx.sql.QueryRowContext(ctx, query, args...)
}

// usable refuses statements after a failed one. PostgreSQL would refuse them
// anyway; SQLite rolls back by itself after some failures (a full disk), and
// would run what follows outside of any transaction.
func (tx *Tx) usable() error {
	if tx.failed != nil {
		return fmt.Errorf("store: an earlier statement of this transaction failed: %w", tx.failed)
	}
	return nil
}

func (tx *Tx) fail(ctx context.Context, err error) error {
	tx.failed = tx.db.fault(ctx, err)
	return tx.failed
}

// Swap runs an UPDATE or DELETE whose WHERE names the state that the caller
// saw. It returns fault.ErrChanged unless exactly one row was hit; return that
// error, or what was hit is committed.
func (tx *Tx) Swap(ctx context.Context, query string, args ...any) error {
	res, err := tx.Exec(ctx, query, args...)
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err != nil {
		return fmt.Errorf("store: rows affected: %w", err)
	}
	if n != 1 {
		return fault.New(fault.ErrChanged, "changed", "compare-and-swap hit %d rows, want 1: read again and retry", n)
	}
	return nil
}

// AfterCommit has f run after this transaction has committed, in the order of
// the calls, in the goroutine of Update and before Update returns. f runs
// outside of the transaction and may begin another. It does not run after a
// rollback, nor when the outcome of the COMMIT is unknown, nor when the
// process dies in between: it may wake or invalidate, but must not be the only
// record of anything.
func (tx *Tx) AfterCommit(f func()) { tx.after = append(tx.after, f) }

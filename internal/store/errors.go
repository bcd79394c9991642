package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// ErrOutcomeUnknown says that a COMMIT was sent and its answer never came: the
// change may be there or not. Errors that wrap it are also
// fault.ErrUnavailable. Never take it for a rollback: read again, or repeat
// what is safe to repeat.
var ErrOutcomeUnknown error = fault.New(fault.ErrUnavailable, "outcome_unknown",
	"the connection was lost during COMMIT, so the change may have been made or not: read again before repeating it")

// ErrHeld says that a lease is held by somebody else. Errors that wrap it are
// also fault.ErrUnavailable.
var ErrHeld error = fault.New(fault.ErrUnavailable, "lease_held", "the lease is held by another process")

// IsUnique says whether err is a violation of a unique index or primary key,
// and, when names are given, of one of those names. The databases spell them
// differently, so give both spellings:
//
//	store.IsUnique(err, "keysets_pkey", "keysets.name")
//
// PostgreSQL gives the name of the index; SQLite gives "table.column", for
// several columns "table.a, table.b", and the name of the index only when it
// is over expressions. Two unique indexes over the same columns can't be told
// apart on SQLite.
func IsUnique(err error, names ...string) bool {
	got, ok := uniqueName(err)
	return ok && (len(names) == 0 || slices.Contains(names, got))
}

func uniqueName(err error) (string, bool) {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.ConstraintName, e.Code == "23505"
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return sqliteUnique(e)
	}
	return "", false
}

// fault gives an error of the database its kind. An error that has one
// already, and one of no known kind, is returned as it is. The end of ctx,
// which is the caller's, is the caller's own affair; the end of one of our
// timers is an outage.
func (db *DB) fault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	if gone := ctx.Err(); gone != nil {
		if errors.Is(err, gone) {
			return err
		}
		if !IsUnique(err) {
			return fmt.Errorf("%w: %w", gone, err)
		}
	}
	if f := db.dialect.classify(err); f != nil {
		return f
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fault.New(fault.ErrUnavailable, "database_slow", "the database did not answer in time: %w", err)
	}
	return err
}

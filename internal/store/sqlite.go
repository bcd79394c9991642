package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

const sqliteReaders = 8

// sqliteHeader begins every database file (https://sqlite.org/fileformat.html,
// section 1.3).
const sqliteHeader = "SQLite format 3\x00"

// Settings are per connection, so they go in the DSN. _dqs=0 makes "x" a name
// and never a string, as in PostgreSQL; _defensive=1 forbids SQL to damage the
// file; _error_rc=1 keeps stale messages out of errors; secure_delete overwrites
// what a row held, so that a destroyed key is gone from the file.
const (
	sqliteCommon = "?_pragma=busy_timeout(5000)&_pragma=foreign_keys(1)&_dqs=0&_defensive=1&_error_rc=1"
	sqliteWriter = sqliteCommon + "&_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=secure_delete(1)"
	sqliteReader = sqliteCommon + "&_txlock=deferred&_pragma=query_only(1)"
)

func openSQLite(ctx context.Context, name string) (db *DB, err error) {
	path, err := sqlitePath(name)
	if err != nil {
		return nil, err
	}
	release, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, release())
		}
	}()
	if err := touch(path); err != nil {
		return nil, err
	}

	dsn := (&url.URL{Scheme: "file", Path: filepath.ToSlash(path)}).String()
	write, err := openCaching(dsn + sqliteWriter)
	if err != nil {
		return nil, fmt.Errorf("open SQLite database %s: %w", path, err)
	}
	write.SetMaxOpenConns(1)
	if err := probe(ctx, path, write); err != nil {
		return nil, errors.Join(err, write.Close())
	}
	read, err := openCaching(dsn + sqliteReader)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open SQLite database %s: %w", path, err), write.Close())
	}
	read.SetMaxOpenConns(sqliteReaders)
	read.SetMaxIdleConns(sqliteReaders)
	return &DB{
		dialect: dialect{
			name:        "sqlite",
			view:        &sql.TxOptions{ReadOnly: true},
			hasTable:    `SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = $1`,
			classify:    classifySQLite,
			retryable:   func(error) bool { return false },
			lost:        func(error) bool { return false },
			undone:      undoneSQLite,
			migratePool: func() (*sql.DB, func() error) { return write, func() error { return nil } },
		},
		read:    read,
		write:   write,
		release: release,
	}, nil
}

// sqlitePath checks the path of a database file and resolves links in its
// folder, so that one file has one lock, whatever name it is reached by. The
// file itself must not be a link.
func sqlitePath(name string) (string, error) {
	invalid := func(format string, args ...any) (string, error) {
		return "", fault.Invalid("database_url", "database_url", format, args...)
	}
	if rest, ok := strings.CutPrefix(name, "//"); ok { // sqlite:///path
		if !strings.HasPrefix(rest, "/") {
			return invalid("open SQLite database %q: a host makes no sense here: use sqlite:/path/file.db", name)
		}
		name = rest
	}
	switch {
	case name == "":
		return invalid("open SQLite database: the path is missing: use sqlite:/path/file.db")
	case strings.Contains(name, ":memory:"):
		return invalid("open SQLite database %q: a database in memory would lose every key at exit and is not supported: use a file", name)
	case strings.ContainsAny(name, "?\x00"):
		return invalid("open SQLite database %q: the path holds a question mark or NUL, and settings can't be given in the URL: use sqlite:/path/file.db", name)
	}
	path, err := filepath.Abs(name)
	if err != nil {
		return invalid("open SQLite database %q: %w", name, err)
	}
	folder, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return invalid("open SQLite database %s: its folder can't be used: create it first: %w", path, err)
	}
	path = filepath.Join(folder, filepath.Base(path))
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return invalid("open SQLite database %s: %w", path, err)
	case info.Mode()&fs.ModeSymlink != 0:
		return invalid("open SQLite database %s: it is a symbolic link, which somebody could point at another file: give the path of the file itself", path)
	}
	return path, nil
}

// touch creates the file with mode 0600, which SQLite gives to its -wal and
// -shm files too, and makes sure that we may write to it: SQLite itself would
// quietly fall back to reading. A file that others can write is refused: what
// they put there would be believed.
func touch(path string) error {
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return fault.Invalid("database_url", "database_url", "open SQLite database %s: it is not a file: give the path of a file", path)
	}
	f, err := openOwn(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().Perm()&0o022 != 0 {
		err = fault.New(fault.ErrRejected, "database_mode",
			"open SQLite database: %s can be written by others (mode %04o), who could change keys and tokens: run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	header, readErr := io.ReadAll(io.LimitReader(f, int64(len(sqliteHeader))))
	if err := errors.Join(readErr, f.Close()); err != nil {
		return fault.New(fault.ErrUnavailable, "database_io", "open SQLite database %s: %w", path, err)
	}
	// SQLite takes some very short files for empty databases and overwrites
	// them.
	if len(header) > 0 && string(header) != sqliteHeader {
		return fault.New(fault.ErrRejected, "database_damaged",
			"open SQLite database %s: the file is not an SQLite database: give another path, or restore it from a backup", path)
	}
	return nil
}

// probe opens the first connection, reads the schema and takes the write lock
// once: what is wrong with the file shows here, and not at the first request.
func probe(ctx context.Context, path string, write *sql.DB) error {
	err := func() error {
		conn, err := write.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // only gives it back to the pool
		var mode string
		if err := conn.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&mode); err != nil {
			return err
		}
		if mode != "wal" {
			return fault.New(fault.ErrRejected, "database_wal",
				"open SQLite database %s: it can't be switched to write-ahead logging (it stays at %q): put it on a local disk", path, mode)
		}
		var tables int
		if err := conn.QueryRowContext(ctx, `SELECT COUNT(*) FROM sqlite_master`).Scan(&tables); err != nil {
			return err
		}
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		return tx.Rollback()
	}()
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	if f := classifySQLite(err); f != nil {
		kind := f.Kind
		if f.Reason == "database_damaged" {
			kind = fault.ErrRejected // no retry will mend it
		}
		return fault.New(kind, f.Reason, "open SQLite database %s: %w", path, f)
	}
	return fault.New(fault.ErrUnavailable, "database_io", "open SQLite database %s: %w", path, err)
}

// classifySQLite reads SQLite's result codes (https://sqlite.org/rescode.html).
func classifySQLite(err error) *fault.Error {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return nil
	}
	if _, ok := sqliteUnique(e); ok {
		return fault.New(fault.ErrExists, "exists", "already there: %w", err)
	}
	unavailable := func(reason, text string) *fault.Error {
		return fault.New(fault.ErrUnavailable, reason, "%s: %w", text, err)
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return unavailable("database_locked", "another program holds a lock on the database file: end it (an open sqlite3 shell, a backup) and retry")
	case sqlite3.SQLITE_FULL:
		return unavailable("database_full", "the disk is full: free space and retry")
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		return unavailable("database_read_only", "the database file can't be written: check owner and mode of the file and its folder, and that the disk is mounted read-write")
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return unavailable("database_damaged", "the file is damaged or not an SQLite database: restore it from a backup, or give another path")
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOMEM:
		return unavailable("database_io", "the database file can't be read or written: check the disk")
	case sqlite3.SQLITE_INTERRUPT:
		return unavailable("database_slow", "the statement was interrupted")
	}
	return nil
}

// undoneSQLite: SQLite rolls back whenever COMMIT fails, but after a failed
// write or fsync of the WAL the commit record may still reach the disk, and be
// found there by the next recovery.
func undoneSQLite(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && e.Code()&0xff != sqlite3.SQLITE_IOERR
}

// sqliteUnique takes the columns or the index out of SQLite's message, which
// has no other place for them.
func sqliteUnique(e *sqlite.Error) (string, bool) {
	switch e.Code() {
	case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID:
	default:
		return "", false
	}
	m := regexp.MustCompile(`UNIQUE constraint failed: (?:index '([^']+)'|([^()]+?))(?: \(\d+\))?$`).FindStringSubmatch(e.Error())
	if m == nil {
		return "", true
	}
	return m[1] + m[2], true
}

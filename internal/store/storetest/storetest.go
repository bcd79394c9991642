// Package storetest gives tests real databases: SQLite files and a PostgreSQL
// server. [Run] runs one test body against both.
//
// The PostgreSQL server is the one at ROTUNDA_TEST_POSTGRES (the URL of a
// superuser) when that is set. Otherwise one is started from the installed
// binaries, once per test process, when the first test asks for it; it is
// stopped and its folder removed when the process ends, however it ends. When
// there are no binaries the test fails: it is never skipped.
//
// Every test gets a database of its own. The schema is migrated once, into a
// template that the databases are copied from: of a server given from outside
// it stays there for the next run, named by a hash of the migrations.
//
// The two templates and the server are the package's only state; that they
// are shared by a test process is their purpose.
package storetest

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

// Run runs body as the subtests "sqlite" and "postgres", each on a migrated
// database of its own.
func Run(t *testing.T, body func(t *testing.T, db *store.DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { body(t, SQLite(t)) })
	t.Run("postgres", func(t *testing.T) { body(t, Open(t, Postgres(t))) })
}

// SQLite returns a migrated database in a file of its own.
func SQLite(t testing.TB) *store.DB {
	t.Helper()
	return Open(t, SQLiteURL(t))
}

// SQLiteURL returns the URL of a migrated database that nobody has open.
func SQLiteURL(t testing.TB) string {
	t.Helper()
	image, err := sqliteTemplate()
	if err != nil {
		t.Fatalf("make the SQLite template: %v", err)
	}
	path := filepath.Join(t.TempDir(), "rotunda.db")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return "sqlite:" + path
}

// Open opens a database and closes it at the end of the test.
func Open(t testing.TB, url string) *store.DB {
	t.Helper()
	db, err := store.Open(context.Background(), url)
	if err != nil {
		t.Fatalf("open test database: %v", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close test database: %v", err)
		}
	})
	return db
}

var sqliteTemplate = sync.OnceValues(func() (_ []byte, err error) {
	folder, err := os.MkdirTemp("", "rotunda-sqlite-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "template.db")
	if err := migrated(context.Background(), "sqlite:"+path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

func migrated(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	db, err := store.Open(ctx, url)
	if err != nil {
		return err
	}
	if err := db.Migrate(ctx); err != nil {
		_ = db.Close()
		return err
	}
	return db.Close()
}

// Clock is a clock that stands still until it is moved: db.Now = clock.Now.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a clock that shows t.
func NewClock(t time.Time) *Clock { return &Clock{now: t} }

// Now returns what the clock shows.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock by d, which may be negative.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Set moves the clock to t.
func (c *Clock) Set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

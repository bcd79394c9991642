package storetest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"

	"github.com/rotunda-dev/rotunda/migrations"
)

// templateLock serialises test processes that make the template.
const templateLock = 0x74656d706c617465 // "template"

// Postgres returns the URL of a migrated database of its own, dropped at the
// end of the test.
func Postgres(t testing.TB) string {
	t.Helper()
	server, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return server.Database(t)
}

// EmptyPostgres is Postgres without a schema.
func EmptyPostgres(t testing.TB) string {
	t.Helper()
	server, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return server.create(t, "template0")
}

var shared = sync.OnceValues(func() (*Server, error) {
	if u := os.Getenv("ROTUNDA_TEST_POSTGRES"); u != "" {
		parsed, err := url.Parse(u)
		if err != nil {
			return nil, fmt.Errorf("ROTUNDA_TEST_POSTGRES is not a URL: want postgres://superuser:password@host:5432/postgres")
		}
		return &Server{super: parsed}, nil
	}
	return start()
})

// Database returns the URL of a migrated database, dropped at the end of the
// test.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name, err := s.migratedTemplate()
	if err != nil {
		t.Fatalf("make the PostgreSQL template: %v", err)
	}
	return s.create(t, name)
}

func (s *Server) create(t testing.TB, template string) string {
	t.Helper()
	name := "rotunda_test_" + strings.ToLower(rand.Text())
	if err := s.exec("CREATE DATABASE " + name + " TEMPLATE " + template); err != nil {
		t.Fatalf("create test database: %v", err)
	}
	t.Cleanup(func() {
		if err := s.exec("DROP DATABASE IF EXISTS " + name + " WITH (FORCE)"); err != nil {
			t.Errorf("drop test database: %v", err)
		}
	})
	return s.url(name)
}

// url returns the URL of one of the server's databases.
func (s *Server) url(database string) string {
	u := *s.super
	u.Path = "/" + database
	return u.String()
}

func (s *Server) exec(query string) error {
	return s.admin(func(ctx context.Context, conn *sql.Conn) error {
		_, err := conn.ExecContext(ctx, query)
		return err
	})
}

func (s *Server) admin(do func(ctx context.Context, conn *sql.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	db, err := sql.Open("pgx", s.super.String())
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // nothing is lost with this connection
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // as above
	return do(ctx, conn)
}

// migratedTemplate returns the name of a database with the current schema. It
// gets that name only when it is complete.
func (s *Server) migratedTemplate() (string, error) {
	s.once.Do(func() { s.template, s.templateErr = s.makeTemplate() })
	return s.template, s.templateErr
}

func (s *Server) makeTemplate() (string, error) {
	hash, err := schemaHash()
	if err != nil {
		return "", err
	}
	name := "rotunda_template_" + hash
	err = s.admin(func(ctx context.Context, conn *sql.Conn) error {
		if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, int64(templateLock)); err != nil {
			return err
		}
		var there bool
		err := conn.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)`, name).Scan(&there)
		if err != nil || there {
			return err
		}
		draft := name + "_draft"
		for _, query := range []string{"DROP DATABASE IF EXISTS " + draft + " WITH (FORCE)", "CREATE DATABASE " + draft + " TEMPLATE template0"} {
			if _, err := conn.ExecContext(ctx, query); err != nil {
				return err
			}
		}
		if err := migrated(ctx, s.url(draft)); err != nil {
			return err
		}
		// The server notices a closed connection a little later than we do,
		// and refuses to rename a database that is in use.
		for {
			_, err := conn.ExecContext(ctx, "ALTER DATABASE "+draft+" RENAME TO "+name)
			if err == nil || !strings.Contains(err.Error(), "55006") {
				return err
			}
			select {
			case <-ctx.Done():
				return err
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	return name, err
}

// schemaHash names a set of migrations.
func schemaHash() (string, error) {
	set, err := migrations.FS(migrations.Postgres)
	if err != nil {
		return "", err
	}
	names, err := fs.Glob(set, "*.sql")
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, name := range names {
		text, err := fs.ReadFile(set, name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n%s", name, len(text), text)
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

package bedtest

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Postgres is a PostgreSQL server. Its log has every statement, and every login.
type Postgres struct {
	*process
	Port     int
	User     string // a superuser
	Password string
	CA       string // PEM of the authority of its certificate
}

const postgresScript = `
bin=$2 port=$3
signal=QUIT
serve() {
	exec "$bin/postgres" -D "$folder/data" -c listen_addresses=127.0.0.1 -c port="$port" -c unix_socket_directories="$folder" \
		-c fsync=off -c full_page_writes=off -c synchronous_commit=off -c max_connections=200 -c lc_messages=C \
		-c ssl=on -c ssl_cert_file="$folder/cert.pem" -c ssl_key_file="$folder/key.pem" \
		-c log_statement=all -c log_connections=on -c log_min_error_statement=debug5 -c log_parameter_max_length_on_error=-1
}
prepare() {
	"$bin/initdb" -D "$folder/data" -U super --auth=scram-sha-256 --pwfile="$folder/password" --no-sync -E UTF8 --locale=C.UTF-8 &&
		rm "$folder/password"
}
`

var sharedPostgres = sync.OnceValues(startPostgres)

// PostgreSQL is the server of this test process.
func PostgreSQL(t testing.TB) *Postgres {
	t.Helper()
	p, err := sharedPostgres()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// NewPostgreSQL is a server for this test alone.
func NewPostgreSQL(t testing.TB) *Postgres {
	t.Helper()
	p, err := startPostgres()
	if err != nil {
		t.Fatal(err)
	}
	p.endWith(t)
	return p
}

func startPostgres() (*Postgres, error) {
	bin, err := postgresBinaries()
	if err != nil {
		return nil, err
	}
	cert, key, err := certificate()
	if err != nil {
		return nil, err
	}
	p := &Postgres{User: "super", Password: rand.Text(), CA: string(cert)}
	p.process, err = launch("pg", func(_ string, port, _ int) recipe {
		p.Port = port
		return recipe{
			name: "PostgreSQL", user: "postgres", script: postgresScript, args: []string{bin, strconv.Itoa(port)},
			files: map[string][]byte{"password": []byte(p.Password), "cert.pem": cert, "key.pem": key},
			probe: func(ctx context.Context) error {
				conn, err := pgx.Connect(ctx, p.URL())
				if err != nil {
					return err
				}
				return conn.Close(ctx)
			},
		}
	})
	return p, err
}

// URL is that of the superuser, database postgres, without TLS.
func (p *Postgres) URL() string { return p.URLOf(p.User, p.Password, "postgres") }

// URLOf is the URL of another user or database.
func (p *Postgres) URLOf(user, password, database string) string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword(user, password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Port)), Path: "/" + database, RawQuery: "sslmode=disable",
	}).String()
}

// Connect is a connection of the superuser, closed at the end of the test.
func (p *Postgres) Connect(t testing.TB) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ready)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the server may have been stopped
	})
	return conn
}

// Exec runs statements as the superuser.
func (p *Postgres) Exec(t testing.TB, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ready)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is lost with this connection
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			t.Fatalf("%v: %s", err, statement)
		}
	}
}

// postgresBinaries is the folder of initdb and postgres, of the newest version.
func postgresBinaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), "postgres")); err == nil {
			return filepath.Dir(path), nil
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	best, version := "", -1
	for _, path := range found {
		bin := filepath.Dir(path)
		if n, err := strconv.Atoi(filepath.Base(filepath.Dir(bin))); err == nil && n > version {
			best, version = bin, n
		}
	}
	if best == "" {
		return "", errors.New("PostgreSQL is not installed, and this test needs it: run `make setup`")
	}
	return best, nil
}

// Fresh is a name that no other test has: prefix, underscore, twelve letters and digits.
func Fresh(prefix string) string { return prefix + "_" + strings.ToLower(rand.Text()[:12]) }

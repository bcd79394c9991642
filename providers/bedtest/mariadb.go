package bedtest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// MariaDBServer is a MariaDB server. Its general log has every statement.
type MariaDBServer struct {
	*process
	Port     int
	User     string // may do everything
	Password string
	CA       string // PEM of the authority of its certificate
}

const mariadbScript = `
signal=KILL
port=$2
prepare() {
	mariadb-install-db --no-defaults --datadir="$folder/data" --auth-root-authentication-method=normal --skip-test-db --skip-name-resolve || return 1
	# The bootstrap runs before the server listens, so that there never is a root without password.
	mariadbd --no-defaults --datadir="$folder/data" --bootstrap <"$folder/first.sql" && rm "$folder/first.sql"
}
serve() {
	exec mariadbd --no-defaults --datadir="$folder/data" --bind-address=127.0.0.1 --port="$port" --socket="$folder/socket" \
		--pid-file="$folder/pid" --skip-name-resolve --skip-log-bin --innodb-flush-log-at-trx-commit=1 --innodb-buffer-pool-size=32M \
		--ssl-cert="$folder/cert.pem" --ssl-key="$folder/key.pem" --plugin-load-add=auth_ed25519 \
		--general-log=1 --general-log-file="$folder/general" --slow-query-log=1 --long-query-time=0 --slow-query-log-file="$folder/slow"
}
`

var sharedMariaDB = sync.OnceValues(startMariaDB)

// MariaDB is the server of this test process.
func MariaDB(t testing.TB) *MariaDBServer {
	t.Helper()
	m, err := sharedMariaDB()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// NewMariaDB is a server for this test alone.
func NewMariaDB(t testing.TB) *MariaDBServer {
	t.Helper()
	m, err := startMariaDB()
	if err != nil {
		t.Fatal(err)
	}
	m.endWith(t)
	return m
}

func startMariaDB() (*MariaDBServer, error) {
	cert, key, err := certificate()
	if err != nil {
		return nil, err
	}
	m := &MariaDBServer{User: "super", Password: rand.Text(), CA: string(cert)}
	first := "FLUSH PRIVILEGES;\nCREATE USER 'super'@'%' IDENTIFIED BY '" + m.Password + "';\n" +
		"GRANT ALL PRIVILEGES ON *.* TO 'super'@'%' WITH GRANT OPTION;\nDROP USER IF EXISTS ''@'localhost';\nDROP USER 'root'@'localhost';\n"
	m.process, err = launch("mdb", func(_ string, port, _ int) recipe {
		m.Port = port
		return recipe{
			name: "MariaDB", user: "mysql", script: mariadbScript, args: []string{strconv.Itoa(port)},
			files: map[string][]byte{"cert.pem": cert, "key.pem": key, "first.sql": []byte(first)},
			probe: func(ctx context.Context) error {
				db, err := m.open(m.User, m.Password)
				if err != nil {
					return err
				}
				defer db.Close() //nolint:errcheck // nothing is lost with this connection
				return db.PingContext(ctx)
			},
		}
	})
	return m, err
}

// Address is HOST:PORT, with and without TLS.
func (m *MariaDBServer) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(m.Port)) }

// Log is all that the server has logged: errors, statements, slow statements.
func (m *MariaDBServer) Log(t testing.TB) string {
	t.Helper()
	return m.read(t, "log") + m.read(t, "general") + m.read(t, "slow")
}

// Open is a pool of connections of a user without TLS, closed at the end of the test.
func (m *MariaDBServer) Open(t testing.TB, user, password string) *sql.DB {
	t.Helper()
	db, err := m.open(user, password)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// Exec runs statements as the user that may do everything.
func (m *MariaDBServer) Exec(t testing.TB, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ready)
	defer cancel()
	db, err := m.open(m.User, m.Password)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // nothing is lost with this connection
	for _, statement := range statements {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			t.Fatalf("%v: %s", err, statement)
		}
	}
}

func (m *MariaDBServer) open(user, password string) (*sql.DB, error) {
	c := mysql.NewConfig()
	c.User, c.Passwd, c.Net, c.Addr, c.Timeout = user, password, "tcp", m.Address(), 5*time.Second
	c.Logger = &mysql.NopLogger{}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// TLS is how a client checks the certificate of this server.
func (m *MariaDBServer) TLS() *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(m.CA))
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}
}

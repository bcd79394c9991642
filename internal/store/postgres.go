package store

import (
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Limits of a connection. Each is a setting of the server's session, and may
// be given another value in the URL (…?statement_timeout=10s). Behind pgbouncer
// they must be in its ignore_startup_parameters, and transaction pooling needs
// default_query_exec_mode=exec in the URL.
const (
	postgresConns            = 16
	postgresConnectTimeout   = 5 * time.Second
	postgresStatementTimeout = 30 * time.Second
	postgresLockTimeout      = 10 * time.Second
	postgresIdleTimeout      = 60 * time.Second // idle inside a transaction
)

func openPostgres(ctx context.Context, rawURL string) (*DB, error) {
	config, err := parsePostgres(rawURL)
	if err != nil {
		return nil, err
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = postgresConnectTimeout
	}
	defaults := map[string]string{
		"application_name":                    "rotunda",
		"statement_timeout":                   millis(postgresStatementTimeout),
		"lock_timeout":                        millis(postgresLockTimeout),
		"idle_in_transaction_session_timeout": millis(postgresIdleTimeout),
		"client_encoding":                     "UTF8",
	}
	for k, v := range defaults {
		if _, ok := config.RuntimeParams[k]; !ok {
			config.RuntimeParams[k] = v
		}
	}
	pool := stdlib.OpenDB(*config)
	pool.SetMaxOpenConns(postgresConns)
	pool.SetMaxIdleConns(postgresConns)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	pool.SetConnMaxLifetime(time.Hour)
	if err := pool.PingContext(ctx); err != nil {
		return nil, errors.Join(refused(config, err), pool.Close())
	}
	return &DB{
		dialect: dialect{
			name:     "postgres",
			update:   &sql.TxOptions{Isolation: sql.LevelReadCommitted},
			view:     &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
			hasTable: `SELECT 1 FROM pg_class WHERE oid = to_regclass($1)`,
			classify: classifyPostgres,
			retryable: func(err error) bool {
				e, ok := errors.AsType[*pgconn.PgError](err)
				return ok && (e.Code == "40001" || e.Code == "40P01") && !errors.Is(err, ErrOutcomeUnknown)
			},
			lost:        lostPostgres,
			undone:      undonePostgres,
			maxConns:    postgresConns,
			migratePool: func() (*sql.DB, func() error) { return migratePool(config) },
			snapshot:    `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`,
			relay: func(ctx context.Context, ready func(), heard func(string)) error {
				return relayPostgres(ctx, config, ready, heard)
			},
		},
		read:  pool,
		write: pool,
	}, nil
}

// parsePostgres reads the URL and the PG* variables. It refuses a connection
// over the network that nobody chose to leave unverified: without sslmode, pgx
// takes any certificate and falls back to plain text, as libpq does
// (PostgreSQL manual, "SSL Support", table "SSL Mode Descriptions").
func parsePostgres(rawURL string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(rawURL)
	if err != nil {
		// The parser's text quotes parts of the URL; it is not worth the risk.
		return nil, fault.Invalid("database_url", "database_url",
			"open PostgreSQL: the URL can't be read: use postgres://user:password@host:5432/database?sslmode=verify-full, with special characters in the password percent-encoded, and check that the files it names (sslrootcert, sslcert, sslkey) exist")
	}
	hosts := append([]*pgconn.FallbackConfig{{Host: config.Host, Port: config.Port, TLSConfig: config.TLSConfig}}, config.Fallbacks...)
	names := config.Database
	for _, h := range hosts {
		names += h.Host
	}
	for name := range config.RuntimeParams {
		names += name
	}
	if strings.Contains(names, "@") {
		// What follows the first @ of the password ended up here, and would be in every message.
		return nil, fault.Invalid("database_url", "database_url",
			"open PostgreSQL: the URL has an @ in the host or the database name: percent-encode the special characters of the password (@ is %%40, / is %%2F)")
	}
	if sslmodeChosen(rawURL) {
		return config, nil
	}
	for _, h := range hosts {
		if !verified(h.TLSConfig) && !onThisMachine(h.Host, h.Port) {
			where := h.Host
			if strings.Trim(strings.ToLower(where), "abcdefghijklmnopqrstuvwxyz0123456789.-_:%") != "" {
				where = "the server" // a part of a password may be in what is no host name
			}
			return nil, fault.Invalid("database_url", "database_plaintext",
				"open PostgreSQL: the connection to %s would not be verified: add sslmode=verify-full (and sslrootcert), or write sslmode=disable or sslmode=require to accept that", where)
		}
	}
	return config, nil
}

// sslmodeChosen says whether the URL or else PGSSLMODE names an sslmode. An
// empty one in the URL hides the variable and means the default. ssl=true is no
// choice: it looks safe, and pgx reads it as sslmode=require, over an sslmode
// before it too.
func sslmodeChosen(rawURL string) bool {
	// Not url.Parse: it refuses a list of hosts with ports, which pgx takes. A
	// question mark may stand in a password.
	_, rest, _ := strings.Cut(rawURL, "://")
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		rest = rest[i+1:]
	}
	_, query, _ := strings.Cut(rest, "?")
	// What it can't decode, pgx has refused before.
	q, _ := url.ParseQuery(query)
	if q.Has("ssl") {
		return false
	}
	if given := q["sslmode"]; len(given) > 0 {
		return !slices.ContainsFunc(given, func(s string) bool { return strings.TrimSpace(s) == "" })
	}
	return os.Getenv("PGSSLMODE") != ""
}

// verified says whether the server must prove with its certificate who it is.
func verified(conf *tls.Config) bool {
	return conf != nil && (!conf.InsecureSkipVerify || conf.VerifyPeerCertificate != nil)
}

// onThisMachine says whether a connection to the host stays on this machine.
func onThisMachine(host string, port uint16) bool {
	if network, _ := pgconn.NetworkAddress(host, port); network == "unix" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// migratePool gives Migrate connections of its own: building an index may take
// longer than a request may, and so may waiting for another replica. One
// connection holds the advisory lock, the other works.
func migratePool(config *pgx.ConnConfig) (*sql.DB, func() error) {
	slow := config.Copy()
	slow.RuntimeParams["statement_timeout"] = millis(migrateLimit)
	slow.RuntimeParams["lock_timeout"] = millis(migrateLimit)
	slow.RuntimeParams["idle_in_transaction_session_timeout"] = millis(migrateLimit)
	pool := stdlib.OpenDB(*slow)
	pool.SetMaxOpenConns(2)
	return pool, pool.Close
}

// relayPostgres listens on a connection of its own.
func relayPostgres(ctx context.Context, config *pgx.ConnConfig, ready func(), heard func(topic string)) error {
	conn, err := pgx.ConnectConfig(ctx, config.Copy())
	if err != nil {
		return fmt.Errorf("connect to hear announcements: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is lost with this connection
	if _, err := conn.Exec(ctx, `LISTEN `+channel); err != nil {
		return fmt.Errorf("listen for announcements: %w", err)
	}
	ready()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("wait for announcements: %w", err)
		}
		heard(n.Payload)
	}
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// refused explains why the first connection failed.
func refused(config *pgx.ConnConfig, err error) error {
	where := fmt.Sprintf("open PostgreSQL database %q at %s as %q", config.Database,
		net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port))), config.User)
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch {
		case strings.HasPrefix(e.Code, "28"):
			return fault.New(fault.ErrRejected, "database_denied", "%s: the server refuses the user or the password: check both in the database URL, and pg_hba.conf: %w", where, e)
		case e.Code == "3D000":
			return fault.New(fault.ErrRejected, "database_missing", "%s: there is no such database: create it first: %w", where, e)
		case e.Code == "42501":
			return fault.New(fault.ErrRejected, "database_denied", "%s: the user may not connect: grant it: %w", where, e)
		}
		return fault.New(fault.ErrUnavailable, "database_unavailable", "%s: the server refuses for now: %w", where, e)
	}
	return fault.New(fault.ErrUnavailable, "database_unavailable",
		"%s: the server can't be reached: check that it runs and listens there, and sslmode: %w", where, err)
}

// classifyPostgres reads SQLSTATE codes (PostgreSQL manual, appendix A).
func classifyPostgres(err error) *fault.Error {
	unavailable := func(reason, text string) *fault.Error {
		return fault.New(fault.ErrUnavailable, reason, "%s: %w", text, err)
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if lostPostgres(err) {
			return unavailable("database_unavailable", "the connection to PostgreSQL is lost: check the server and the network, and retry")
		}
		return nil
	}
	switch e.Code {
	case "23505":
		return fault.New(fault.ErrExists, "exists", "already there: %w", err)
	case "40001", "40P01":
		return unavailable("database_contended", "too many transactions changed the same rows: retry")
	case "55P03":
		return unavailable("database_locked", "a lock was not released in time: retry")
	case "57014", "25P03", "25P04":
		return unavailable("database_slow", "PostgreSQL ended the transaction, because it took too long")
	case "25006":
		return unavailable("database_read_only", "PostgreSQL is read-only: point the database URL at the primary")
	case "53100":
		return unavailable("database_full", "the disk of PostgreSQL is full: free space and retry")
	case "XX001", "XX002":
		return unavailable("database_damaged", "PostgreSQL found damaged data: restore it from a backup")
	}
	switch e.Code[:min(2, len(e.Code))] {
	case "08", "28", "53", "57", "58":
		return unavailable("database_unavailable", "PostgreSQL is not available")
	}
	return nil
}

// lostPostgres says whether the connection, not the statement, failed.
func lostPostgres(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(e.Code, "08") || strings.HasPrefix(e.Code, "57P")
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	for _, lost := range []error{driver.ErrBadConn, sql.ErrConnDone, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed} {
		if errors.Is(err, lost) {
			return true
		}
	}
	return pgconn.SafeToRetry(err)
}

// undonePostgres: a failed COMMIT certainly did nothing only when the server
// answered so. A server that says it is going down (57P) may have committed
// before it said so. pgconn.SafeToRetry must not be asked: pgx 5.12 answers
// yes ("conn closed") also when the connection was lost after a COMMIT was
// sent, because MultiResultReader.NextResult drops the first error.
func undonePostgres(err error) bool {
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		return true
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && !lostPostgres(e)
}

package postgres

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// Bounds of what one call may take from the server.
const (
	connections    = 5
	connectTimeout = 10 * time.Second
	callTimeout    = 45 * time.Second
	maxMessage     = 1 << 20 // bytes of one row or error; memory for it is taken at once
)

// Kind is the target kind "postgres".
func Kind() providers.TargetKind {
	return providers.TargetKind{
		Name: "postgres",
		Doc:  "The passwords of roles of a PostgreSQL server, version 10 and newer.",
		Settings: []providers.Setting{
			{Name: "address", Doc: "HOST:PORT of the server, the primary", Required: true, Pattern: `\S{1,260}`},
			{Name: "user", Doc: "role that the target logs in as; it needs CREATEROLE, and from PostgreSQL 16 on ADMIN OPTION on the roles to rotate", Required: true},
			{Name: "database", Doc: "database to log in to", Default: "postgres"},
			{Name: "sslmode", Doc: "verify-full: TLS, certificate and name checked; disable: loopback only, or with plaintext=allow", Default: "verify-full", OneOf: []string{"verify-full", "disable"}},
			{Name: "sslrootcert", Doc: "certificates of the authorities to trust, as PEM text; none: those of the system", Pattern: `(?s)\s*-----BEGIN CERTIFICATE-----.*`},
			providers.Plaintext(),
		},
		Login: []providers.Setting{{Name: "password", Doc: "password of the login role", Required: true}},
		Params: append([]providers.Setting{
			{Name: "users", Doc: "for alternate: the two roles that take turns, as A,B", Pattern: `[^,]+,[^,]+`},
			{Name: "user", Doc: "for replace: the role"},
			{Name: "database", Doc: "database by which a login is proven; none: that of the target"},
		}, providers.PasswordParams()...),
		Traits: providers.Traits{Strategies: []providers.Strategy{providers.Alternate, providers.Replace}},
		Open:   func(ctx context.Context, c providers.Config) (providers.Target, error) { return open(ctx, c) },
	}
}

type target struct {
	name     string
	address  string
	user     string
	password string
	conn     *pgx.ConnConfig
	pool     *pgxpool.Pool
	now      func() time.Time
}

var (
	_ providers.Target    = (*target)(nil)
	_ providers.Scratcher = (*target)(nil)
)

func open(ctx context.Context, c providers.Config) (*target, error) {
	host, portText, err := net.SplitHostPort(c.Settings["address"])
	if err != nil {
		host, portText = strings.Trim(c.Settings["address"], "[]"), "5432"
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 || host == "" || strings.ContainsAny(host, "/@ ") {
		return nil, fault.Invalid("settings.address", "address_malformed", "%s: the address of a PostgreSQL server is HOST:PORT", c.Name)
	}
	// Everything that pgx would take from the environment or the home folder is set.
	config, err := pgxpool.ParseConfig("host=127.0.0.1 port=5432 user=x password=x dbname=x sslmode=disable target_session_attrs=any application_name=rotunda")
	if err != nil {
		return nil, fault.Invalid("settings", "environment", "%s: the variables PG… of the environment can't be read by the PostgreSQL driver: unset them", c.Name)
	}
	t := &target{name: c.Name, address: net.JoinHostPort(host, strconv.FormatUint(port, 10)), user: c.Settings["user"], password: c.Login.Text("password"), now: c.Now}
	cc := config.ConnConfig
	cc.Host, cc.Port, cc.User, cc.Password, cc.Database = host, uint16(port), t.user, t.password, c.Settings["database"]
	cc.Fallbacks, cc.ConnectTimeout, cc.DefaultQueryExecMode = nil, connectTimeout, pgx.QueryExecModeExec
	cc.RuntimeParams = map[string]string{"application_name": "rotunda"}
	cc.DialFunc = providers.DialBound(&net.Dialer{Timeout: connectTimeout, KeepAlive: time.Minute})
	cc.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		f := pgproto3.NewFrontend(r, w)
		f.SetMaxBodyLen(maxMessage)
		return f
	}
	if c.Settings["sslmode"] == "disable" {
		if err := providers.CheckPlaintext(c, host); err != nil {
			return nil, err
		}
	} else {
		cc.TLSConfig = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
		if pem := c.Settings["sslrootcert"]; pem != "" {
			pool := x509.NewCertPool()
			if len(pem) > providers.MaxValue || !pool.AppendCertsFromPEM([]byte(pem)) {
				return nil, fault.Invalid("settings.sslrootcert", "certificate_malformed", "%s: sslrootcert is not PEM text of certificates", c.Name)
			}
			cc.TLSConfig.RootCAs = pool
		}
	}
	config.MaxConns, config.MinConns, config.MaxConnIdleTime, config.MaxConnLifetime = connections, 0, time.Minute, 10*time.Minute
	t.conn = cc.Copy()
	if t.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fault.Invalid("settings", "settings_unusable", "%s: the settings can't be used for a connection", c.Name)
	}
	return t, nil
}

func (t *target) Close() error {
	t.pool.Close()
	return nil
}

// login returns a connection of the target's login. When the role that is rotated is the
// login itself, the login's password may be any that c knows.
func (t *target) login(ctx context.Context, c providers.Change) (*pgx.Conn, func(), error) {
	pooled, err := t.pool.Acquire(ctx)
	if err == nil {
		return pooled.Conn(), pooled.Release, nil
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && strings.HasPrefix(pg.Code, "28") {
		for _, h := range append([]providers.Held{c.New, c.Current}, c.Others...) {
			password := h.Fields.Text("password")
			if h.Account != t.user || password == "" || password == t.password {
				continue
			}
			config := t.conn.Copy()
			config.Password = password
			if conn, err := pgx.ConnectConfig(ctx, config); err == nil {
				return conn, func() { closeConn(ctx, conn) }, nil
			}
		}
	}
	return nil, nil, t.failure(ctx, atLogin, "log in as "+strconv.Quote(t.user), err)
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the connection is of no more use, however it ends
}

// role is a role as the transaction that locked it sees it.
type role struct {
	name   string
	text   string // the person's part of its comment
	marker marker
	marked bool
	now    time.Time
	async  bool // this session's commits are not durable when they return
}

// errGone is what change's function sees of a role that does not exist.
var errGone = errors.New("no such role")

// change locks account and runs the statements that decide returns, in one transaction.
// None: nothing is changed.
func (t *target) change(ctx context.Context, c providers.Change, account, doing string, secrets []string, decide func(role) ([]string, error)) error {
	if err := checkName(account); err != nil {
		return t.failure(ctx, atWork, doing, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, release, err := t.login(ctx, c)
	if err != nil {
		return err
	}
	defer release()
	at := atWork
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		r, err := lockRole(ctx, tx, account)
		if err != nil {
			return err
		}
		statements, err := decide(r)
		if err != nil || len(statements) == 0 {
			return err
		}
		if r.async {
			statements = append([]string{"SET LOCAL synchronous_commit = on"}, statements...)
		}
		at = atPassword
		for _, statement := range statements {
			if _, err := tx.Exec(ctx, statement, pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if errors.Is(err, errGone) {
			return errGone
		}
		return t.failure(ctx, at, doing, err, secrets...)
	}
	return nil
}

func lockRole(ctx context.Context, tx pgx.Tx, account string) (role, error) {
	const guard = "SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = '30s'; " +
		"SET LOCAL standard_conforming_strings = on; SET LOCAL search_path = pg_catalog, pg_temp"
	if _, err := tx.Exec(ctx, guard, pgx.QueryExecModeSimpleProtocol); err != nil {
		return role{}, err
	}
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", lockKey(account)); err != nil {
		return role{}, err
	}
	return readRole(ctx, tx, account)
}

type querier interface {
	QueryRow(ctx context.Context, query string, args ...any) pgx.Row
}

func readRole(ctx context.Context, q querier, account string) (role, error) {
	r := role{name: account}
	var comment, commit string
	err := q.QueryRow(ctx, `SELECT coalesce(pg_catalog.shobj_description(r.oid, 'pg_authid'), ''), pg_catalog.clock_timestamp(), pg_catalog.current_setting('synchronous_commit')
		FROM pg_catalog.pg_roles r WHERE r.rolname = $1`, account).Scan(&comment, &r.now, &commit)
	if errors.Is(err, pgx.ErrNoRows) {
		return role{}, errGone
	}
	r.async = commit == "off"
	r.text, r.marker, r.marked = splitComment(comment)
	return r, err
}

// lockKey is the advisory lock of a role: the same for everybody who rotates it.
func lockKey(account string) int64 {
	sum := sha256.Sum256([]byte("rotunda role\x00" + account))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

func identifier(name string) string { return pgx.Identifier{name}.Sanitize() }

// literal quotes text for a session with standard_conforming_strings.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// checkName refuses what can't be the name of a role: PostgreSQL would cut it short
// after 63 bytes, and change another role.
func checkName(name string) error {
	if name == "" || len(name) > 63 || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return fault.Invalid("params.users", "role_malformed", "%.80q can't be the name of a role: that is 1 to 63 bytes of UTF-8", name)
	}
	return nil
}

// accounts are the roles of a credential: two for alternate, one for replace.
func (t *target) accounts(c providers.Change) ([]string, error) {
	var names []string
	switch c.Strategy {
	case providers.Alternate:
		names = strings.Split(c.Params["users"], ",")
		for i := range names {
			names[i] = strings.TrimSpace(names[i])
		}
		if len(names) != 2 || names[0] == names[1] {
			return nil, fault.Invalid("params.users", "users_malformed", "%s: strategy alternate needs two different roles, as users=A,B", t.name)
		}
		if slices.Contains(names, t.user) {
			return nil, fault.Invalid("params.users", "self_reference", "%s: %q is the role that this target logs in as, and can't take turns: use another login, or strategy replace", t.name, t.user)
		}
	case providers.Replace:
		names = []string{c.Params["user"]}
		if names[0] == "" {
			return nil, fault.Invalid("params.user", "user_missing", "%s: strategy replace needs the role, as user=NAME", t.name)
		}
	default:
		return nil, fault.Invalid("strategy", "strategy_unknown", "%s: PostgreSQL has no strategy %q: a role has one password; use alternate or replace", t.name, c.Strategy)
	}
	for _, name := range names {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	return names, nil
}

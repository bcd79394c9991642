package mysql

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// Bounds of what one call may take from the server.
const (
	connections    = 5
	connectTimeout = 10 * time.Second
	callTimeout    = 45 * time.Second
	lockSeconds    = 10
)

// Kind is the target kind "mysql".
func Kind() providers.TargetKind {
	return providers.TargetKind{
		Name: "mysql",
		Doc:  "The passwords of accounts of a MariaDB server (10.4 and newer) or a MySQL server (8.0.21 and newer).",
		Settings: []providers.Setting{
			{Name: "address", Doc: "HOST:PORT of the server, the primary", Required: true, Pattern: `\S{1,260}`},
			{Name: "user", Doc: "account that the target logs in as; it needs CREATE USER, and SELECT ON mysql.*", Required: true},
			{Name: "tls", Doc: "verify: TLS, certificate and name checked; off: loopback only, or with plaintext=allow", Default: "verify", OneOf: []string{"verify", "off"}},
			{Name: "ca", Doc: "certificates of the authorities to trust, as PEM text; none: those of the system", Pattern: `(?s)\s*-----BEGIN CERTIFICATE-----.*`},
			{Name: "send", Doc: "hash: the server is told the hash, and no log has the password; text: the password, where a password policy insists on reading it", Default: "hash", OneOf: []string{"hash", "text"}},
			{Name: "marker_table", Doc: "MariaDB: DATABASE.TABLE with the markers, by which a call of an older rotation is refused; none: no such refusal", Pattern: `[A-Za-z0-9_]{1,64}\.[A-Za-z0-9_]{1,64}`},
			providers.Plaintext(),
		},
		Login: []providers.Setting{{Name: "password", Doc: "password of the login account", Required: true}},
		Params: append([]providers.Setting{
			{Name: "users", Doc: "for alternate: the two accounts that take turns, as USER[@HOST],USER[@HOST]; HOST is % unless given", Pattern: `[^,]+,[^,]+`},
			{Name: "user", Doc: "for replace and dual: the account, as USER[@HOST]"},
			{Name: "plugin", Doc: "authentication plugin; default: mysql_native_password for MariaDB, caching_sha2_password for MySQL", Default: "default", OneOf: []string{"default", native, ed25519, cachingSHA2}},
		}, providers.PasswordParams()...),
		Traits: providers.Traits{Strategies: []providers.Strategy{providers.Alternate, providers.Replace, providers.Dual}},
		Open:   func(_ context.Context, c providers.Config) (providers.Target, error) { return open(c) },
	}
}

type target struct {
	name     string
	address  string
	user     string
	password string
	text     bool
	table    string // quoted; empty: none
	config   *mysql.Config
	pool     *sql.DB
}

var (
	_ providers.Target    = (*target)(nil)
	_ providers.Scratcher = (*target)(nil)
)

func open(c providers.Config) (*target, error) {
	host, port, err := net.SplitHostPort(c.Settings["address"])
	if err != nil {
		host, port = strings.Trim(c.Settings["address"], "[]"), "3306"
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || host == "" || strings.ContainsAny(host, "/@() ") {
		return nil, fault.Invalid("settings.address", "address_malformed", "%s: the address of a MariaDB or MySQL server is HOST:PORT", c.Name)
	}
	t := &target{name: c.Name, address: net.JoinHostPort(host, port), user: c.Settings["user"], password: c.Login.Text("password"), text: c.Settings["send"] == "text"}
	if table := c.Settings["marker_table"]; table != "" {
		db, name, _ := strings.Cut(table, ".")
		t.table = "`" + db + "`.`" + name + "`"
	}
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd, cfg.Net, cfg.Addr = t.user, t.password, "tcp", t.address
	cfg.Timeout, cfg.ReadTimeout, cfg.WriteTimeout = connectTimeout, callTimeout, connectTimeout
	cfg.Logger = &mysql.NopLogger{}
	cfg.DialFunc = providers.DialBound(&net.Dialer{Timeout: connectTimeout})
	// So that quotes are doubled and nothing else is special in a literal.
	cfg.Params = map[string]string{"sql_mode": "'STRICT_ALL_TABLES,NO_BACKSLASH_ESCAPES'"}
	if c.Settings["tls"] == "off" {
		if err := providers.CheckPlaintext(c, host); err != nil {
			return nil, err
		}
	} else {
		cfg.TLS = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
		if pem := c.Settings["ca"]; pem != "" {
			pool := x509.NewCertPool()
			if len(pem) > providers.MaxValue || !pool.AppendCertsFromPEM([]byte(pem)) {
				return nil, fault.Invalid("settings.ca", "certificate_malformed", "%s: ca is not PEM text of certificates", c.Name)
			}
			cfg.TLS.RootCAs = pool
		}
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, fault.Invalid("settings", "settings_unusable", "%s: the settings can't be used for a connection", c.Name)
	}
	t.config, t.pool = cfg, sql.OpenDB(connector)
	t.pool.SetMaxOpenConns(connections)
	t.pool.SetMaxIdleConns(2)
	t.pool.SetConnMaxIdleTime(time.Minute)
	t.pool.SetConnMaxLifetime(10 * time.Minute)
	return t, nil
}

func (t *target) Close() error { return t.pool.Close() }

// session is a connection of the target's login.
type session struct {
	*sql.Conn
	flavour
}

func (t *target) login(ctx context.Context) (*session, error) {
	conn, err := t.pool.Conn(ctx)
	if err != nil {
		return nil, t.failure(ctx, atLogin, "log in as "+strconv.Quote(t.user), err, false)
	}
	var version string
	if err := conn.QueryRowContext(ctx, "SELECT VERSION()").Scan(&version); err != nil {
		_ = conn.Close()
		return nil, t.failure(ctx, atWork, "read the version", err, false)
	}
	return &session{conn, flavourOf(version)}, nil
}

// alter runs a statement about accounts. MariaDB reports that it failed (1396), and what
// was wrong with it only as a warning.
func (s *session) alter(ctx context.Context, statement string) error {
	_, err := s.ExecContext(ctx, statement)
	my, ok := errors.AsType[*mysql.MySQLError](err)
	if !ok || my.Number != accountFailed {
		return err
	}
	rows, errShow := s.QueryContext(ctx, "SHOW WARNINGS LIMIT 100")
	if errShow != nil {
		return errShow // what happened is not known
	}
	defer rows.Close()
	for rows.Next() {
		var level, message string
		var number uint16
		if err := rows.Scan(&level, &number, &message); err != nil {
			return err
		}
		if level == "Error" && number != accountFailed {
			err = &mysql.MySQLError{Number: number, Message: message}
		}
	}
	return errors.Join(err, rows.Err())
}

// accountFailed is ER_CANNOT_USER.
const accountFailed = 1396

// locked runs do while nobody else works on account. The lock goes with the connection.
func (t *target) locked(ctx context.Context, a account, doing string, do func(*session) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := t.login(ctx)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // it goes back to the pool, or is closed already
	sum := sha256.Sum256([]byte(a.String()))
	name := "rotunda_" + hex.EncodeToString(sum[:20])
	var got sql.NullInt64
	if err := s.QueryRowContext(ctx, "SELECT GET_LOCK(?, ?)", name, lockSeconds).Scan(&got); err != nil {
		return t.failure(ctx, atWork, doing, err, false)
	}
	if got.Int64 != 1 {
		return fault.New(fault.ErrLimited, "locked", "%s: %s: another rotation works on the account and did not end within %d seconds", t.name, doing, lockSeconds)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if _, err := s.ExecContext(ctx, "DO RELEASE_LOCK(?)", name); err != nil {
			_ = s.Raw(func(any) error { return driver.ErrBadConn }) // not back into the pool
		}
	}()
	return do(s)
}

// account is USER@HOST.
type account struct{ user, host string }

func (a account) String() string { return a.user + "@" + a.host }

// of says whether a is the account of a value. Of one from before Rotunda only the
// fields are known.
func (a account) of(h providers.Held) bool {
	return h.Account == a.String() || h.Account == "" && h.Fields.Text("username") == a.user
}

func (a account) sql() string { return literal(a.user) + "@" + literal(a.host) }

// literal quotes text for a session with NO_BACKSLASH_ESCAPES.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

func parseAccount(text string) (account, error) {
	a := account{strings.TrimSpace(text), "%"}
	if i := strings.LastIndexByte(a.user, '@'); i >= 0 {
		a = account{a.user[:i], a.user[i+1:]}
	}
	if a.user == "" || len(a.user) > 128 || a.host == "" || len(a.host) > 255 || strings.ContainsAny(a.user+a.host, "\x00\n\r") {
		return account{}, fault.Invalid("params.users", "account_malformed", "%.80q is not an account: USER or USER@HOST", text)
	}
	return a, nil
}

// accounts are those of a credential: two for alternate, else one.
func (t *target) accounts(c providers.Change) ([]account, error) {
	var names []string
	switch c.Strategy {
	case providers.Alternate:
		names = strings.Split(c.Params["users"], ",")
		if len(names) != 2 {
			return nil, fault.Invalid("params.users", "users_malformed", "%s: strategy alternate needs two accounts, as users=A,B", t.name)
		}
	case providers.Replace, providers.Dual:
		names = []string{c.Params["user"]}
	default:
		return nil, fault.Invalid("strategy", "strategy_unknown", "%s: there is no strategy %q here: use alternate, replace or dual", t.name, c.Strategy)
	}
	var out []account
	for _, name := range names {
		a, err := parseAccount(name)
		if err != nil {
			return nil, err
		}
		if a.user == t.user {
			return nil, fault.Invalid("params.users", "self_reference", "%s: %q is what this target logs in as, and would be locked out: use another login", t.name, a.user)
		}
		out = append(out, a)
	}
	if len(out) == 2 && out[0].user == out[1].user {
		return nil, fault.Invalid("params.users", "users_malformed", "%s: the two accounts of strategy alternate need different user names: sessions don't show the host", t.name)
	}
	return out, nil
}

func (t *target) isOurs(c providers.Change, name string) (account, error) {
	all, err := t.accounts(c)
	if err != nil {
		return account{}, err
	}
	i := slices.IndexFunc(all, func(a account) bool { return a.String() == name })
	if i < 0 {
		return account{}, fault.Invalid("params", "account_unknown", "%s: %q is none of the credential's accounts %q", t.name, name, all)
	}
	return all[i], nil
}

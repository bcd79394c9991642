package mysql_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/mysql"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

// bed is a MariaDB server, and a login on it that may rotate and nothing more.
type bed struct {
	*bedtest.MariaDBServer
	admin, password, table string
}

func newBed(t testing.TB, server *bedtest.MariaDBServer) *bed {
	t.Helper()
	b := &bed{MariaDBServer: server, admin: bedtest.Fresh("rotator"), password: bedtest.Fresh("login"), table: bedtest.Fresh("marks")}
	user := "'" + b.admin + "'@'%'"
	server.Exec(t, "CREATE DATABASE IF NOT EXISTS rotunda",
		"CREATE TABLE rotunda."+b.table+" (account VARBINARY(400) PRIMARY KEY, rotation VARCHAR(64) NOT NULL, generation BIGINT NOT NULL, epoch BIGINT NOT NULL, fence BIGINT NOT NULL) ENGINE=InnoDB",
		"CREATE USER "+user+" IDENTIFIED BY '"+b.password+"'",
		"GRANT CREATE USER, PROCESS, CONNECTION ADMIN ON *.* TO "+user, "GRANT SELECT ON mysql.* TO "+user,
		"GRANT SELECT, INSERT, UPDATE, DELETE ON rotunda."+b.table+" TO "+user)
	t.Cleanup(func() { server.Exec(t, "DROP USER "+user) })
	return b
}

func (b *bed) config(t testing.TB, more map[string]string) providers.Config {
	t.Helper()
	settings := map[string]string{"address": b.Address(), "user": b.admin, "tls": "off", "marker_table": "rotunda." + b.table}
	maps.Copy(settings, more)
	settings, err := providers.Complete("settings", mysql.Kind().Settings, settings)
	if err != nil {
		t.Fatal(err)
	}
	return providers.Config{Name: "orders", Settings: settings, Login: providers.Fields{"password": secret.FromString(b.password)}, Now: time.Now}
}

func openWith(t testing.TB, c providers.Config) providers.Target {
	t.Helper()
	target, err := mysql.Kind().Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func (b *bed) open(t testing.TB) providers.Target { return openWith(t, b.config(t, nil)) }

func literal(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", "''").Replace(s) + "'"
}

func (b *bed) users(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		b.Exec(t, "CREATE USER "+literal(name)+"@'%' IDENTIFIED VIA mysql_native_password USING 'invalid'")
		t.Cleanup(func() { b.Exec(t, "DROP USER IF EXISTS "+literal(name)+"@'%'") })
	}
}

func (b *bed) change(t testing.TB, s providers.Strategy, names ...string) providers.Change {
	t.Helper()
	if names == nil {
		names = []string{bedtest.Fresh("a"), bedtest.Fresh("b")}
	}
	if s != providers.Alternate {
		names = names[:1]
	}
	b.users(t, names...)
	return providers.Change{Credential: "orders-db", Strategy: s, Params: params(t, s, nil, names...)}
}

func params(t testing.TB, s providers.Strategy, more map[string]string, names ...string) map[string]string {
	t.Helper()
	given := map[string]string{"users": strings.Join(names, ",")}
	if s != providers.Alternate {
		given = map[string]string{"user": names[0]}
	}
	maps.Copy(given, more)
	out, err := providers.Complete("params", mysql.Kind().Params, given)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// accepts asks the server by a login of its own.
func (b *bed) accepts(t testing.TB, h providers.Held) bool {
	t.Helper()
	db := b.Open(t, h.Fields.Text("username"), h.Fields.Text("password"))
	err := db.PingContext(t.Context())
	for errors.Is(err, driver.ErrMalformPkt) { // see Verify
		err = db.PingContext(t.Context())
	}
	if err != nil && !strings.Contains(err.Error(), "Error 1045") && !strings.Contains(err.Error(), "Error 4151") {
		t.Fatalf("the server does not say whether it accepts a login: %v", err)
	}
	return err == nil
}

func (b *bed) snapshot(t testing.TB, _ providers.Change) string {
	t.Helper()
	db := b.Open(t, b.User, b.Password)
	rows, err := db.QueryContext(t.Context(), "SELECT CONCAT_WS(' ', User, Host, MD5(Priv)) FROM mysql.global_priv UNION SELECT CONCAT_WS(' ', account, rotation, generation, epoch, fence) FROM rotunda."+b.table+" ORDER BY 1")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out strings.Builder
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		out.WriteString(line + "\n")
	}
	return out.String()
}

func (b *bed) session(t testing.TB, h providers.Held) func() bool {
	t.Helper()
	db := b.Open(t, h.Fields.Text("username"), h.Fields.Text("password"))
	conn, err := db.Conn(t.Context())
	for errors.Is(err, driver.ErrMalformPkt) { // see Verify
		conn, err = db.Conn(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return func() bool { return conn.PingContext(context.Background()) == nil }
}

func TestTarget(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
	base := providerstest.TargetBed{
		Kind: mysql.Kind(), Open: b.open, Accepts: b.accepts, Marks: true, Snapshot: b.snapshot, Session: b.session,
		Strategies: []providers.Strategy{providers.Alternate, providers.Replace},
		Change:     func(t testing.TB, s providers.Strategy) providers.Change { return b.change(t, s) },
		Missing: func(t testing.TB, s providers.Strategy) providers.Change {
			return providers.Change{Params: params(t, s, nil, bedtest.Fresh("no"), bedtest.Fresh("none"))}
		},
		Public: []string{"username"},
	}
	t.Run("marker table", func(t *testing.T) { providerstest.Target(t, base) })

	base.Open = func(t testing.TB) providers.Target {
		return openWith(t, b.config(t, map[string]string{"marker_table": ""}))
	}
	base.Marks = false
	base.Change = func(t testing.TB, s providers.Strategy) providers.Change {
		c := b.change(t, s)
		c.Params["plugin"] = "ed25519"
		user := strings.Split(c.Params["users"]+c.Params["user"], ",")[0]
		password := bedtest.Fresh("initial")
		b.Exec(t, "ALTER USER '"+user+"'@'%' IDENTIFIED BY '"+password+"'")
		c.Current = providers.Held{Account: user + "@%", Fields: providers.Fields{}.Set("username", user).Set("password", password)}
		return c
	}
	t.Run("ed25519, with a value, without markers", func(t *testing.T) { providerstest.Target(t, base) })

	// Without the right to read accounts, records and markers have to do.
	blind := newBed(t, bedtest.MariaDB(t))
	blind.Exec(t, "REVOKE SELECT ON mysql.* FROM '"+blind.admin+"'@'%'")
	base.Open, base.Marks, base.Snapshot = blind.open, true, blind.snapshot
	base.Missing = nil // Check can't know
	base.Change = func(t testing.TB, s providers.Strategy) providers.Change { return blind.change(t, s) }
	t.Run("without reading accounts", func(t *testing.T) { providerstest.Target(t, base) })
}

func rotation(c providers.Change, generation, epoch int64) providers.Change {
	c.Generation, c.Epoch, c.At = generation, epoch, time.Now().Add(-time.Second)
	c.Rotation = fmt.Sprintf("00000000-0000-4000-8000-%012d", generation)
	c.New = providers.Held{Generation: generation, Rotation: c.Rotation}
	return c
}

func prepare(t testing.TB, target providers.Target, c providers.Change) providers.Change {
	t.Helper()
	c, err := target.Prepare(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func apply(t testing.TB, target providers.Target, c providers.Change) providers.Held {
	t.Helper()
	h, err := target.Apply(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

package postgres_test

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/postgres"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

// bed is a server, and a login on it that may rotate and nothing more.
type bed struct {
	*bedtest.Postgres
	admin, password string
}

func newBed(t testing.TB, server *bedtest.Postgres) *bed {
	t.Helper()
	b := &bed{Postgres: server, admin: bedtest.Fresh("rotator"), password: bedtest.Fresh("login")}
	server.Exec(t, fmt.Sprintf("CREATE ROLE %s LOGIN CREATEROLE PASSWORD '%s' IN ROLE pg_read_all_stats, pg_signal_backend", b.admin, b.password))
	t.Cleanup(func() { server.Exec(t, "DROP ROLE IF EXISTS "+b.admin) })
	return b
}

func (b *bed) config(t testing.TB, more map[string]string) providers.Config {
	t.Helper()
	settings := map[string]string{"address": fmt.Sprintf("127.0.0.1:%d", b.Port), "user": b.admin, "sslmode": "disable"}
	maps.Copy(settings, more)
	settings, err := providers.Complete("settings", postgres.Kind().Settings, settings)
	if err != nil {
		t.Fatal(err)
	}
	return providers.Config{Name: "orders", Settings: settings, Login: providers.Fields{"password": secret.FromString(b.password)}, Now: time.Now}
}

func (b *bed) open(t testing.TB) providers.Target { return b.openWith(t, b.config(t, nil)) }

func (b *bed) openWith(t testing.TB, c providers.Config) providers.Target {
	t.Helper()
	target, err := postgres.Kind().Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// users makes roles, in PostgreSQL 16 and newer with the admin option for the login.
func (b *bed) users(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		b.Exec(t, "CREATE ROLE "+quote(name)+" LOGIN")
		t.Cleanup(func() { b.Exec(t, "DROP ROLE IF EXISTS "+quote(name)) })
		b.Exec(t, "DO $$ BEGIN IF current_setting('server_version_num')::int >= 160000 THEN EXECUTE 'GRANT "+strings.ReplaceAll(quote(name), "'", "''")+" TO "+b.admin+" WITH ADMIN OPTION'; END IF; END $$")
	}
}

// change is a credential without a value yet.
func (b *bed) change(t testing.TB, s providers.Strategy, names ...string) providers.Change {
	t.Helper()
	if names == nil {
		names = []string{bedtest.Fresh("a"), bedtest.Fresh("b")}[:map[providers.Strategy]int{providers.Alternate: 2, providers.Replace: 1}[s]]
	}
	b.users(t, names...)
	return providers.Change{
		Credential: "orders-db", Strategy: s, Params: params(t, s, names...),
		Static: map[string]string{"host": "db.example", "port": "5432", "dbname": "orders"},
	}
}

func params(t testing.TB, s providers.Strategy, names ...string) map[string]string {
	t.Helper()
	given := map[string]string{"users": strings.Join(names, ",")}
	if s == providers.Replace {
		given = map[string]string{"user": names[0]}
	}
	out, err := providers.Complete("params", postgres.Kind().Params, given)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// accepts asks the server by a login of its own.
func (b *bed) accepts(t testing.TB, h providers.Held) bool {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.URLOf(h.Account, h.Fields.Text("password"), "postgres"))
	if err == nil {
		_ = conn.Close(t.Context())
		return true
	}
	if !strings.Contains(err.Error(), "28P01") && !strings.Contains(err.Error(), "28000") {
		t.Fatalf("the server does not say whether it accepts a login: %v", err)
	}
	return false
}

func (b *bed) query(t testing.TB, query string, args ...any) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var text string
	if err := conn.QueryRow(t.Context(), query, args...).Scan(&text); err != nil {
		t.Fatalf("%v: %s", err, query)
	}
	return text
}

func (b *bed) snapshot(t testing.TB, _ providers.Change) string {
	t.Helper()
	return b.query(t, `SELECT string_agg(concat_ws(' ', oid, rolname, rolcanlogin, md5(rolpassword), rolvaliduntil, shobj_description(oid, 'pg_authid')), E'\n' ORDER BY rolname) FROM pg_authid`)
}

func (b *bed) session(t testing.TB, h providers.Held) func() bool {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.URLOf(h.Account, h.Fields.Text("password"), "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return func() bool { _, err := conn.Exec(t.Context(), "SELECT 1"); return err == nil }
}

func TestTarget(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	initial := func(t testing.TB, s providers.Strategy) providers.Change {
		c := b.change(t, s)
		user := strings.Split(c.Params["users"]+c.Params["user"], ",")[0]
		password := bedtest.Fresh("initial")
		b.Exec(t, "ALTER ROLE "+quote(user)+" PASSWORD '"+password+"'")
		c.Current = providers.Held{Account: user, Fields: providers.Fields{}.Set("username", user).Set("password", password)}
		return c
	}
	base := providerstest.TargetBed{
		Kind:     postgres.Kind(),
		Open:     b.open,
		Change:   func(t testing.TB, s providers.Strategy) providers.Change { return b.change(t, s) },
		Accepts:  b.accepts,
		Marks:    true,
		Snapshot: b.snapshot,
		Missing: func(t testing.TB, s providers.Strategy) providers.Change {
			return providers.Change{Params: params(t, s, bedtest.Fresh("no"), bedtest.Fresh("none"))}
		},
		Session: b.session,
		Retires: true,
		Public:  []string{"username"},
	}
	t.Run("fresh", func(t *testing.T) { providerstest.Target(t, base) })
	base.Change = initial
	t.Run("with a value", func(t *testing.T) { providerstest.Target(t, base) })
}

// rotation is one rotation that the test drives.
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

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
)

const generatedFile = `
kind: store
name: own
type: builtin
---
kind: target
name: random
type: generated
---
kind: credential
name: session-key
target: random
params: {length: 48}
stores: [{store: own, path: web/session-key}]
schedule: {every: 30d, jitter: 1h}
`

// manifest writes a file for -f and returns its path.
func manifest(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "credential.yaml")
	write(t, path, text, 0o600)
	return path
}

// secret remembers what a command prints, as a secret.
func (tr *tour) secret(t *testing.T, what, token string, args ...string) string {
	t.Helper()
	v := strings.TrimSuffix(tr.run(t, exitDone, token, "", args...).stdout, "\n")
	if v == "" {
		t.Fatalf("%v printed nothing", args)
	}
	tr.secrets[what] = []byte(v)
	return v
}

// shown is what credential show says, as the API has it.
type shown struct {
	Credential struct {
		Name, Generation, Current, NextAt, RotatedAt, Drift string
	}
	Versions []struct{ Generation, State, Account, GraceEndsAt string }
	Stores   []struct{ Store, Path, Version, Generation string }
	Rotation *struct{ ID, Step, Error string }
}

func (tr *tour) show(t *testing.T, name string) (s shown) {
	t.Helper()
	if err := json.Unmarshal([]byte(tr.run(t, exitDone, "", "", "credential", "show", name, "-o", "json").stdout), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// The quick start: nothing but Rotunda is needed.
func testCredentialTour(t *testing.T, bin program, url string) {
	tr := newTour(t, bin, url)
	file := manifest(t, generatedFile)
	wantWords(t, tr.say(t, exitDone, "", "credential", "create", "-f", file), "store own: created", "target random: created", "credential session-key: created")
	wantWords(t, tr.say(t, exitDone, "", "credential", "create", "-f", file), "credential session-key: unchanged")
	wantWords(t, tr.say(t, exitRefused, "", "read", "web/session-key", "--field", "value"), "reason ")
	tr.say(t, exitDone, "", "credential", "preflight", "session-key")
	wantWords(t, tr.say(t, exitDone, "", "credential", "plan", "session-key"), "generation 1", "E2", "E4", "own")
	if s := tr.show(t, "session-key"); s.Credential.Current != "" {
		t.Errorf("a plan has made generation %s", s.Credential.Current)
	}
	wantWords(t, tr.say(t, exitDone, "", "credential", "rotate", "session-key", "--watch"), "plan ", "issue ", "verify ", "publish ", "done      rotated")

	// A consumer reads its own path, and nothing else.
	_, reader := tr.create(t, "", "token", "create", "web", "--role", "reader", "--path", "web/*")
	first := tr.secret(t, "the first value", reader, "read", "web/session-key", "--field", "value")
	if len(first) != 48 {
		t.Errorf("the value has %d characters, want 48", len(first))
	}
	wantWords(t, tr.say(t, exitRefused, reader, "read", "mail/smtp"), "secret_not_found")
	tr.say(t, exitRefused, reader, "credential", "show", "session-key")
	tr.say(t, exitRefused, reader, "credential", "rotate", "session-key")

	tr.say(t, exitDone, "", "credential", "rotate", "session-key", "--emergency", "--reason", "leaked", "--grace", "0", "--watch")
	second := tr.secret(t, "the second value", reader, "read", "web/session-key", "--field", "value")
	if first == second {
		t.Error("an emergency has not changed the value")
	}
	if previous := tr.secret(t, "the previous value", reader, "read", "web/session-key", "--version", "previous", "--field", "value"); previous != first {
		t.Error("the previous value is not the one before")
	}
	wantWords(t, tr.say(t, exitDone, "", "credential", "rotate", "--emergency", "--all", "--dry-run"), "1 credential will be rotated", "session-key")
	wantWords(t, tr.say(t, exitDone, "", "credential", "rotate", "--emergency", "--store", "own", "--reason", "laptop stolen", "--yes", "--watch"), "1 of 1 begun, 1 have the new value")
	tr.secret(t, "the third value", reader, "read", "web/session-key", "--field", "value")

	wantWords(t, tr.say(t, exitDone, "", "credential", "show", "session-key"), "generation 3", "every 30d", "own web/session-key: version 3")
	wantWords(t, tr.say(t, exitDone, "", "credential", "history", "session-key"), "emergency", "manual", "leaked", "laptop stolen", "rotated")
	wantWords(t, tr.say(t, exitDone, "", "credential", "probe", "session-key"), "all agree")
	eventually(t, "the end of the incident", func() bool {
		return strings.Contains(tr.say(t, exitDone, "", "incident", "list"), "closed")
	})
	wantWords(t, tr.say(t, exitDone, "", "incident", "list"), "laptop stolen", "store own", "1 of 1")
	wantWords(t, tr.say(t, exitDone, "", "forecast", "--days", "90"), "of 1 credential in the next 90 days", "store own")
	wantWords(t, tr.say(t, exitDone, "", "credential", "pause", "session-key", "--reason", "r"), "paused")
	wantWords(t, tr.say(t, exitDone, "", "credential", "resume", "session-key"), "active")

	// The server runs on while copies of the credential are killed beside it.
	drilled := tr.drill(t, exitDone, "session-key")
	wantWords(t, drilled, "E2 before", "E2 after", "E4 before", "E4 after", "no credential was lost")
	wantWords(t, tr.drill(t, exitRefused, "nothing"), "nothing")
	if got := tr.show(t, "session-key"); got.Credential.Current != "3" {
		t.Errorf("the drill has touched the credential itself: generation %s", got.Credential.Current)
	}
	wantWords(t, tr.say(t, exitDone, "", "audit", "list", "--resource", "credentials/session-key/"), "rotation.run")
	wantWords(t, tr.say(t, exitDone, "", "doctor"), "of 1 credential none is overdue", "1 store can be logged in to", "1 target can be logged in to")
	tr.stop(t)
	tr.leaksNone(t, 5, "session-key")
}

// drill runs the drill of a credential on the server's machine.
func (tr *tour) drill(t *testing.T, want int, name string) string {
	t.Helper()
	args := []string{"drill", "crash", name}
	if tr.env != nil { // the deep one runs with SQLite
		args = append(args, "--quick")
	}
	cmd := tr.bin.command(t, append(tr.server.env(), tr.env...), args...)
	folder := t.TempDir()
	cmd.Env = append(cmd.Env, "TMPDIR="+folder)
	out, _ := cmd.CombinedOutput() // the code tells
	tr.printed.Write(out)
	if code := cmd.ProcessState.ExitCode(); code != want {
		t.Fatalf("drill: exit %d, want %d\n%s", code, want, out)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("the drill left %v, %v", left, err)
	}
	return string(out)
}

// ordersBed is a database of orders and a Vault, with what Rotunda may do in each.
type ordersBed struct {
	pg          *bedtest.Postgres
	vault       *bedtest.VaultServer
	admin, a, b string
	mount       string
	file        string
}

func newOrdersBed(t *testing.T, tr *tour) *ordersBed {
	t.Helper()
	o := &ordersBed{pg: bedtest.PostgreSQL(t), vault: bedtest.Vault(t)}
	o.admin, o.a, o.b = bedtest.Fresh("rotunda"), bedtest.Fresh("orders"), bedtest.Fresh("orders")
	adminPassword := bedtest.Fresh("admin")
	o.pg.Exec(t, fmt.Sprintf(`CREATE ROLE %s LOGIN CREATEROLE PASSWORD '%s'`, o.admin, adminPassword),
		fmt.Sprintf(`CREATE ROLE %s LOGIN`, o.a), fmt.Sprintf(`CREATE ROLE %s LOGIN`, o.b),
		fmt.Sprintf(`GRANT %s, %s TO %s WITH ADMIN OPTION`, o.a, o.b, o.admin), fmt.Sprintf(`GRANT pg_read_all_stats TO %s`, o.admin))
	o.mount = o.vault.Mount(t, "kv", map[string]string{"version": "2"})
	token := o.vault.NewToken(t, fmt.Sprintf(`path "%[1]s/data/*" { capabilities = ["create", "read", "update", "patch"] }
path "%[1]s/metadata/*" { capabilities = ["read", "patch", "delete"] }
path "%[1]s/config" { capabilities = ["read"] }`, o.mount), time.Hour)
	tr.secrets["the login of the target"], tr.secrets["the login of the store"] = []byte(adminPassword), []byte(token)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "pg.txt"), adminPassword+"\n", 0o600)
	write(t, filepath.Join(dir, "vault.txt"), token+"\n", 0o600)
	o.file = filepath.Join(dir, "orders-db.yaml")
	write(t, o.file, fmt.Sprintf(`# yaml-language-server: $schema=./credential.schema.json
kind: store
name: vault-prod
type: vault-kv
settings: {address: %q, mount: %s}
login: {token_file: vault.txt}
---
kind: target
name: orders-pg
type: postgres
settings: {address: "127.0.0.1:%d", user: %s, sslmode: disable}
login: {password_file: pg.txt}
---
kind: credential
name: orders-db
target: orders-pg
strategy: alternate
params: {users: "%s,%s"}
fields: {host: 127.0.0.1, port: %d}
stores: [{store: vault-prod, path: orders/db}]
schedule: {cron: "0 3 * * 1", zone: Europe/Berlin, jitter: 1h}
windows: ["Mon 02:00-06:00"]
grace: 24h
labels: {tier: 1}
`, o.vault.Address, o.mount, o.pg.Port, o.admin, o.a, o.b, o.pg.Port), 0o600)
	return o
}

// read is what consumers of orders/db read in Vault.
func (o *ordersBed) read(t *testing.T) (user, password string) {
	t.Helper()
	data, _ := o.vault.Read(t, o.mount+"/data/orders/db")["data"].(map[string]any)
	user, _ = data["username"].(string)
	password, _ = data["password"].(string)
	return user, password
}

// opens tells whether PostgreSQL takes a login.
func (o *ordersBed) opens(t *testing.T, user, password string) bool {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), o.pg.URLOf(user, password, "postgres"))
	if err != nil {
		return false
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
	return true
}

// The lines of a user's tour, on a real PostgreSQL and a real Vault.
func testCredentialPostgres(t *testing.T, bin program, url string) {
	tr := newTour(t, bin, url)
	o := newOrdersBed(t, tr)
	note := func(what string) (user, password string) {
		user, password = o.read(t)
		tr.secrets[what] = []byte(password)
		if !o.opens(t, user, password) {
			t.Errorf("%s is not accepted by PostgreSQL", what)
		}
		return user, password
	}
	wantWords(t, tr.say(t, exitDone, "", "credential", "create", "-f", o.file), "credential orders-db: created")
	wantWords(t, tr.say(t, exitDone, "", "credential", "preflight", "orders-db"), "ok ")
	wantWords(t, tr.say(t, exitDone, "", "credential", "plan", "orders-db"), "orders/db", "E2", "alternate")
	wantWords(t, tr.say(t, exitDone, "", "credential", "rotate", "orders-db", "--watch"), "verify ", "publish ")
	user1, password1 := note("the first value")
	wantWords(t, tr.say(t, exitDone, "", "credential", "rotate", "orders-db", "--watch"), "the old value is accepted until")
	user2, password2 := note("the second value")
	if user1 == user2 || !o.opens(t, user1, password1) {
		t.Error("the old user does not work on through the grace")
	}
	wantWords(t, tr.say(t, exitDone, "", "credential", "show", "orders-db"), "current      generation 2", "previous     generation 1", "still accepted, ends in 1d", "in Europe/Berlin", "vault-prod orders/db: version 2", "drift")

	// Leaked: both old values end at once, the grace of the one before too.
	tr.say(t, exitDone, "", "credential", "rotate", "orders-db", "--emergency", "--reason", "leaked", "--grace", "0")
	eventually(t, "the emergency", func() bool {
		s := tr.show(t, "orders-db")
		return s.Credential.Current == "3" && s.Rotation == nil
	})
	note("the third value")
	if o.opens(t, user2, password2) {
		t.Error("the leaked value is still accepted")
	}
	wantWords(t, tr.say(t, exitDone, "", "credential", "history", "orders-db"), "emergency", "leaked", "rotated")
	wantWords(t, tr.say(t, exitDone, "", "forecast", "--days", "90"), "store vault-prod", "target orders-pg")
	wantWords(t, tr.say(t, exitDone, "", "credential", "rotate", "--emergency", "--label", "tier=1", "--dry-run"), "1 credential will be rotated")

	// Somebody writes into Vault by hand: that is found, and a rotation does not write over it.
	o.vault.Write(t, o.mount+"/data/orders/db", map[string]any{"data": map[string]any{"username": "me", "password": "mine"}})
	wantWords(t, tr.say(t, exitRefused, "", "credential", "probe", "orders-db"), "store", "credential rotate orders-db --overwrite")
	wantWords(t, tr.say(t, exitRefused, "", "credential", "rotate", "orders-db", "--watch"), "What to do", "credential retry orders-db", "credential rollback orders-db", "credential abandon orders-db")
	tr.say(t, exitDone, "", "credential", "rollback", "orders-db", "--watch")
	tr.say(t, exitDone, "", "credential", "rotate", "orders-db", "--overwrite", "--watch")
	note("the value after the overwriting")

	wantWords(t, tr.drill(t, exitDone, "orders-db"), "E2 before", "E7 after", "no credential was lost, and all that was made for this is removed")
	for _, left := range []string{"SELECT count(*) FROM pg_roles WHERE rolname LIKE '" + o.a + "%' OR rolname LIKE '" + o.b + "%'"} {
		var n int
		if err := o.pg.Connect(t).QueryRow(t.Context(), left).Scan(&n); err != nil || n != 2 {
			t.Errorf("after the drill there are %d roles, want the 2 of the credential: %v", n, err)
		}
	}
	if keys, _ := o.vault.Read(t, o.mount+"/metadata/orders?list=true")["keys"].([]any); len(keys) != 1 {
		t.Errorf("after the drill Vault has %v", keys)
	}
	// Vault keeps what it served: all that was made is looked for.
	for version := 1; version < 20; version++ {
		var out struct {
			Data struct {
				Data map[string]string `json:"data"`
			} `json:"data"`
		}
		if o.vault.Ask("GET", fmt.Sprintf("%s/data/orders/db?version=%d", o.mount, version), nil, &out) == nil && len(out.Data.Data["password"]) > 8 {
			tr.secrets[fmt.Sprintf("version %d", version)] = []byte(out.Data.Data["password"])
		}
	}
	tr.stop(t)
	tr.leaksNone(t, 7, "orders-db")
}

// Of two replicas the one that is at work is killed: the other one goes on with the same value.
func testCredentialReplicas(t *testing.T, bin program) {
	tr := newTour(t, bin, storetest.Postgres(t))
	o := newOrdersBed(t, tr)
	tr.say(t, exitDone, "", "credential", "create", "-f", o.file)
	tr.say(t, exitDone, "", "credential", "rotate", "orders-db", "--watch")
	first, _ := o.read(t)
	other := o.a
	if first == o.a {
		other = o.b
	}

	// PostgreSQL holds the change of the role back, until the replica that asked for it is dead.
	conn := o.pg.Connect(t)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "ALTER ROLE "+other+" CONNECTION LIMIT 50"); err != nil {
		t.Fatal(err)
	}
	tr.say(t, exitDone, "", "credential", "rotate", "orders-db")
	watch := o.pg.Connect(t)
	eventually(t, "the replica that is at work", func() bool {
		var n int
		if err := watch.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'`, o.admin).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
	at := tr.show(t, "orders-db")
	second := bin.serve(t, tr.dir, tr.env, "--log-level", "debug")
	tr.server.kill()
	tr.printed.WriteString(tr.server.stderr.String())
	killed := time.Now()
	tr.server = second
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other replica", func() bool { return tr.show(t, "orders-db").Credential.Current == "2" })
	t.Logf("the other replica published the new value %s after the kill", time.Since(killed).Round(10*time.Millisecond))
	after := tr.show(t, "orders-db")
	if at.Rotation == nil || after.Rotation == nil || at.Rotation.ID != after.Rotation.ID {
		t.Errorf("another rotation has published it: %+v, then %+v", at.Rotation, after.Rotation)
	}
	user, password := o.read(t)
	if user != other || !o.opens(t, user, password) {
		t.Errorf("consumers read a value of %s, which PostgreSQL accepts: %t", user, o.opens(t, user, password))
	}
	tr.secrets["the new value"] = []byte(password)
	tr.stop(t)
	tr.leaksNone(t, 4, "orders-db")
}

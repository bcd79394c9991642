package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// tour is a run of the program that remembers every secret that it was given,
// and all that was printed beside them.
type tour struct {
	bin     program
	dir     dataDir
	env     []string // of the server
	url     string   // of the database
	server  *instance
	secrets map[string][]byte // what it is → the secret
	printed strings.Builder   // stderr of all, and stdout of what prints no secret
}

func newTour(t *testing.T, bin program, url string) *tour {
	t.Helper()
	tr := &tour{bin: bin, dir: dataDir(filepath.Join(t.TempDir(), "data")), url: url, secrets: map[string][]byte{}}
	if url == "" {
		tr.url = "sqlite:" + tr.dir.db()
	} else {
		tr.env = []string{"ROTUNDA_DATABASE_URL=" + url}
	}
	tr.start(t)
	tr.secrets["the first admin token"] = []byte(tr.server.token(t))
	return tr
}

func (tr *tour) start(t *testing.T) {
	t.Helper()
	tr.server = tr.bin.serve(t, tr.dir, tr.env, "--log-level", "debug")
}

func (tr *tour) stop(t *testing.T) {
	t.Helper()
	if code := tr.server.stop(t); code != exitDone {
		t.Fatalf("stopped with %d\n%s", code, tr.server.stderr)
	}
	tr.printed.WriteString(tr.server.stderr.String())
}

// run runs a command, as the admin or with another token.
func (tr *tour) run(t *testing.T, want int, token, stdin string, args ...string) outcome {
	t.Helper()
	env := tr.server.env()
	if token != "" {
		env = append(env, "ROTUNDA_TOKEN="+token)
	}
	cmd := tr.bin.command(t, env, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Stdin = &out, &errs, strings.NewReader(stdin)
	_ = cmd.Run() // the code tells
	r := outcome{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
	tr.printed.WriteString(r.stderr)
	if r.code != want {
		t.Fatalf("%v: exit %d, want %d\n%s%s", args, r.code, want, r.stdout, r.stderr)
	}
	return r
}

// say is run for what prints no secret: it returns all that was printed.
func (tr *tour) say(t *testing.T, want int, token string, args ...string) string {
	t.Helper()
	r := tr.run(t, want, token, "", args...)
	tr.printed.WriteString(r.stdout)
	return r.stdout + r.stderr
}

var anID = regexp.MustCompile(`\b([0-9A-Za-z]{16})\b`)

// create is run for what prints one secret, alone: it returns it, and the id of what has it.
func (tr *tour) create(t *testing.T, token string, args ...string) (id, value string) {
	t.Helper()
	r := tr.run(t, exitDone, token, "", args...)
	value = strings.TrimSuffix(r.stdout, "\n")
	m := anID.FindStringSubmatch(r.stderr)
	if value == "" || strings.ContainsAny(value, " \n") || m == nil {
		t.Fatalf("%v printed %q\n%s", args, r.stdout, r.stderr)
	}
	tr.secrets["the value of "+m[1]] = []byte(value)
	return m[1], value
}

// verify asks about a key that is given on stdin.
func (tr *tour) verify(t *testing.T, want int, key string, args ...string) string {
	t.Helper()
	r := tr.run(t, want, "", key+"\n", append([]string{"key", "verify", "--address", "203.0.113.9"}, args...)...)
	tr.printed.WriteString(r.stdout)
	return r.stdout + r.stderr
}

func onBothDatabases(part func(*testing.T, program, string)) func(*testing.T, program) {
	return func(t *testing.T, bin program) {
		for name, url := range map[string]func() string{"SQLite": func() string { return "" }, "PostgreSQL": func() string { return storetest.Postgres(t) }} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				part(t, bin, url())
			})
		}
	}
}

// The tour of a partner, by the commands of the README, from the first key to the
// retirement of a pepper.
func testPartnerTour(t *testing.T, bin program, url string) {
	tr := newTour(t, bin, url)
	wantWords(t, tr.say(t, exitDone, "", "partner", "create", "acme", "--scope", "orders:read", "--scope", "orders:write", "--max-key-ttl", "8760h"), "acme  active", "orders:read orders:write", "at most 365d")
	tr.say(t, exitDone, "", "partner", "create", "beta", "--scope", "orders:read")
	_, acme := tr.create(t, "", "token", "create", "--role", "partner", "--partner", "acme")
	_, beta := tr.create(t, "", "token", "create", "--role", "partner", "--partner", "beta")
	wantWords(t, tr.say(t, exitDone, acme, "token", "whoami"), "acme", "partner acme")

	// A key, and who may have it.
	id, key := tr.create(t, acme, "key", "create", "--name", "ci", "--scope", "orders:read", "--expires-in", "2160h", "--cidr", "203.0.113.0/24", "--rate", "100/s")
	if !strings.HasPrefix(key, "rk_live_"+id+"_") {
		t.Errorf("the key has another form: its id is %s", id)
	}
	wantWords(t, tr.verify(t, exitDone, key, "--scope", "orders:read"), "ok\n", "acme", "orders:read", "in 90d", "99 left of 100/s")
	wantWords(t, tr.verify(t, exitRefused, key, "--scope", "orders:write"), "denied: scope")
	wantWords(t, tr.verify(t, exitRefused, key, "--address", "203.0.114.9"), "denied: address")
	wantWords(t, tr.verify(t, exitRefused, key, "--partner", "beta"), "denied: unknown")
	wantWords(t, tr.verify(t, exitRefused, key[:len(key)-1]+"~"), "denied: ")
	wantWords(t, tr.say(t, exitDone, "", "key", "verify", key, "--address", "203.0.113.9"), "ok\n", "a key among the arguments can be read by everybody")
	wantWords(t, tr.say(t, exitRefused, acme, "key", "create", "--name", "n", "--scope", "orders:refund"), "scope_not_allowed")
	// An admin names a partner where nothing else does; an id is enough.
	wantWords(t, tr.say(t, exitDone, "", "key", "get", id), "ci of acme", "active")
	wantWords(t, tr.say(t, exitRefused, "", "key", "get", id, "--partner", "beta"), "key_not_found")
	wantWords(t, tr.say(t, exitRefused, "", "key", "create", "--name", "n"), "Give --partner")
	for _, args := range [][]string{{"get", id}, {"roll", id}, {"revoke", id, "--reason", "unspecified"}, {"suspend", id}, {"update", id, "--name", "n"}} {
		if got := tr.say(t, exitRefused, beta, append([]string{"key"}, args...)...); !strings.Contains(got, "key_not_found") {
			t.Errorf("beta touches a key of acme: %v: %s", args, got)
		}
	}
	wantWords(t, tr.say(t, exitDone, beta, "key", "list"), "there are no keys")

	// Changes, and a roll with a grace.
	wantWords(t, tr.say(t, exitDone, acme, "key", "update", id, "--add-scope", "orders:write", "--rate", "50/m", "--metadata", "owner=ann"), "orders:read orders:write", "50/m", "owner=ann")
	wantWords(t, tr.verify(t, exitDone, key, "--scope", "orders:write"), "left of 50/m")
	newID, newKey := tr.create(t, acme, "key", "roll", id, "--grace", "72h", "--quiet", "24h")
	wantWords(t, tr.verify(t, exitDone, key), "retiring: ends in 3d", "replaced by "+newID)
	wantWords(t, tr.verify(t, exitDone, newKey), "active", newID)
	wantWords(t, tr.say(t, exitRefused, acme, "key", "roll", id), "is_retiring", newID)
	wantWords(t, tr.say(t, exitDone, acme, "key", "revoke", id, "--reason", "key_compromise", "--text", "it was in a log"), "revoked", "key_compromise", "it was in a log")
	wantWords(t, tr.verify(t, exitRefused, key), "denied: revoked")
	wantWords(t, tr.say(t, exitDone, acme, "key", "suspend", newID, "--reason", "strange traffic"), "suspended")
	wantWords(t, tr.verify(t, exitRefused, newKey), "denied: suspended")
	tr.say(t, exitDone, acme, "key", "resume", newID)
	tr.say(t, exitDone, "", "partner", "suspend", "acme", "--reason", "their CI was broken into")
	wantWords(t, tr.verify(t, exitRefused, newKey), "denied: suspended")
	tr.say(t, exitRefused, acme, "key", "list")
	tr.say(t, exitDone, "", "partner", "resume", "acme")
	wantWords(t, tr.verify(t, exitDone, newKey), "ok\n")
	wantWords(t, tr.say(t, exitDone, "", "partner", "update", "acme", "--remove-scope", "orders:write"), "orders:read\n")
	wantWords(t, tr.verify(t, exitRefused, newKey, "--scope", "orders:write"), "denied: scope")
	tr.say(t, exitDone, "", "partner", "update", "acme", "--add-scope", "orders:write")

	tr.imports(t, acme)
	tr.signs(t, acme)
	tr.repeats(t, acme)
	tr.peppers(t, acme, newKey)

	list := tr.say(t, exitDone, "", "audit", "list", "--limit", "500")
	wantWords(t, list, "partner.create", "partner.suspend", "partner.resume", "partner.update", "api_key.create", "api_key.update", "api_key.roll", "api_key.revoke", "api_key.suspend", "api_key.resume",
		"api_key.import", "request_secret.create", "request_secret.roll", "pepper.rotate", "pepper.retire", "token.create")
	tr.stop(t)
	tr.leaksNothing(t)
}

// imports takes over keys of another system.
func (tr *tour) imports(t *testing.T, acme string) {
	const old, weak = "sk_old_4eC39HqLyjWDarjtT1zdp7dc8aYb", "winter2019"
	tr.secrets["a key that is imported as a hash"], tr.secrets["a weak key"] = []byte(old), []byte(weak)
	sum := sha256.Sum256([]byte(old))
	digest := hex.EncodeToString(sum[:])
	tr.secrets["the hash of an imported key"] = []byte(digest)
	file := func(content string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "keys.csv")
		write(t, path, content, 0o600)
		return path
	}
	hashes := file("\xef\xbb\xbfpartner,value,name,scopes,rate\r\nacme," + digest + ",\"legacy, one\",orders:read,10/m\r\nacme," + digest[:9] + ",short,,\r\nacme," + strings.Repeat("ab", 32) + ",foreign,orders:refund,\r\n")
	wantWords(t, tr.say(t, exitRefused, acme, "key", "import", "--from", "sha256", hashes), "ask an admin")
	got := tr.say(t, exitRefused, "", "key", "import", "--from", "sha256", hashes)
	wantWords(t, got, "1 imported, 0 there already, 2 refused", "line 3: ", "line 4: scope_not_allowed")
	wantWords(t, tr.say(t, exitRefused, "", "key", "import", "--from", "sha256", hashes), "0 imported, 1 there already, 2 refused")
	wantWords(t, tr.verify(t, exitDone, old, "--scope", "orders:read"), "ok\n", "legacy, one", "10/m")
	raws := file("name,value\nhand made," + weak + "\n")
	wantWords(t, tr.say(t, exitDone, "", "key", "import", "--partner", "acme", "--from", "raw", raws), "1 imported", "1 key is too easy to guess")
	wantWords(t, tr.verify(t, exitDone, weak), "ok\n", "hand made", "in 30d")
	wantWords(t, tr.say(t, exitDone, "", "doctor"), "warn", "1 key is imported and too easy to guess")
}

// signs makes request secrets, and has signed requests explained.
func (tr *tour) signs(t *testing.T, acme string) {
	keyid, value := tr.create(t, acme, "secret", "create", "--name", "orders-signing", "--scope", "orders:write")
	dir := t.TempDir()
	sign := func(keyid, value, target string) string {
		t.Helper()
		raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(value, "whsec_"))
		if err != nil || len(raw) != 64 {
			t.Fatalf("the secret has %d bytes, %v", len(raw), err)
		}
		tr.secrets["the bytes of "+keyid] = raw
		key, err := httpsig.NewHMACKey(raw)
		if err != nil {
			t.Fatal(err)
		}
		body := `{"order":7}`
		m := &httpsig.Message{Method: "POST", Scheme: "https", Authority: "api.example.com", Path: "/orders", Header: map[string][]string{"Content-Digest": {httpsig.Digest([]byte(body))}}}
		input, signature, err := httpsig.Sign(m, key, httpsig.Params{
			Components: []string{"@method", "@authority", "@path", "content-digest"}, Created: time.Now(), KeyID: keyid, Nonce: fmt.Sprintf("%016x", time.Now().UnixNano()),
		})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "request.txt")
		write(t, path, "POST "+target+" HTTP/1.1\r\nHost: api.example.com\r\nContent-Digest: "+m.Header["Content-Digest"][0]+"\r\nSignature-Input: "+input+"\r\nSignature: "+signature+"\r\n\r\n"+body, 0o600)
		return path
	}
	for range 2 { // explaining spends no nonce
		wantWords(t, tr.say(t, exitDone, acme, "secret", "explain", "--request", sign(keyid, value, "/orders")), "ok\n", keyid, "orders-signing")
	}
	base := filepath.Join(dir, "base.txt")
	write(t, base, "\"@method\": POST\n\"@authority\": api.example.com\n\"@path\": /orders\n", 0o600)
	got := tr.say(t, exitRefused, acme, "secret", "explain", "--request", sign(keyid, value, "/orders/7"), "--signer-base", base)
	wantWords(t, got, "denied: signature", "differ first at @path", `server  "@path": /orders/7`, `signer  "@path": /orders`, "The signature base, as the server makes it")

	next, nextValue := tr.create(t, acme, "secret", "roll", "orders-signing", "--grace", "72h")
	for id, v := range map[string]string{keyid: value, next: nextValue} {
		wantWords(t, tr.say(t, exitDone, acme, "secret", "explain", "--request", sign(id, v, "/orders")), "ok\n", id)
	}
	tr.say(t, exitDone, acme, "secret", "revoke", keyid, "--reason", "superseded")
	wantWords(t, tr.say(t, exitRefused, acme, "secret", "explain", "--request", sign(keyid, value, "/orders")), "denied: revoked")
	wantWords(t, tr.say(t, exitDone, acme, "secret", "get", "orders-signing"), next, "active")
	wantWords(t, tr.say(t, exitDone, "", "secret", "list", "--partner", "acme", "--ended"), keyid, "revoked", next)
}

// repeats creates twice under one idempotency key, and takes the result as JSON.
func (tr *tour) repeats(t *testing.T, acme string) {
	args := []string{"key", "create", "--name", "once", "--idempotency-key", "the-same", "-o", "json"}
	r := tr.run(t, exitDone, acme, "", args...)
	var made struct {
		Key   struct{ ID string }
		Value string
	}
	if err := json.Unmarshal([]byte(r.stdout), &made); err != nil || made.Value == "" || made.Key.ID == "" {
		t.Fatalf("%v in %s", err, r.stdout)
	}
	tr.secrets["a key as JSON"] = []byte(made.Value)
	wantWords(t, tr.say(t, exitRefused, acme, args...), "value_shown_once", made.Key.ID)
	wantWords(t, tr.verify(t, exitDone, made.Value), "ok\n")
}

// peppers rotates the pepper and retires the old one, when its keys have moved.
func (tr *tour) peppers(t *testing.T, acme, used string) {
	wantWords(t, tr.say(t, exitDone, "", "pepper", "rotate", "--reason", "yearly"), "generation 2 is the newest")
	wantWords(t, tr.say(t, exitRefused, "", "pepper", "retire", "1"), "pepper_too_new")
	wantWords(t, tr.say(t, exitRefused, "", "pepper", "retire", "2"), "pepper_newest")
	usedID := strings.Split(used, "_")[2]
	wantWords(t, tr.say(t, exitDone, "", "pepper", "stragglers", "1"), usedID)
	// A key moves about a second after it was used, a token when its use is next written:
	// at the latest when the server stops.
	eventually(t, "a key that is used to move", func() bool {
		tr.verify(t, exitDone, used)
		return !strings.Contains(tr.say(t, exitDone, "", "pepper", "stragglers", "1"), usedID)
	})
	tr.say(t, exitDone, acme, "token", "whoami")
	tr.stop(t)

	// A replica may go on with the old one for a while; that while is over, for the test.
	db, err := store.Open(t.Context(), tr.url)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE peppers SET created_at = created_at - $1`, time.Hour.Microseconds())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	tr.learnPeppers(t, db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	tr.start(t)
	wantWords(t, tr.say(t, exitRefused, "", "pepper", "retire", "1"), "pepper_in_use", "pepper stragglers 1")
	// What was not used is rolled or revoked.
	var left struct {
		Stragglers []struct{ Kind, ID, Partner string }
	}
	r := tr.run(t, exitDone, "", "", "pepper", "stragglers", "1", "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &left); err != nil {
		t.Fatal(err)
	}
	for _, s := range left.Stragglers {
		switch {
		case s.ID == usedID || s.Kind == "token" && s.Partner != "beta":
			t.Errorf("%s %s was used, and did not move", s.Kind, s.ID)
		case s.Kind == "token":
			tr.say(t, exitDone, "", "token", "revoke", s.ID, "--reason", "cessation_of_operation")
		default:
			tr.say(t, exitDone, acme, "key", "revoke", s.ID, "--reason", "cessation_of_operation")
		}
	}
	wantWords(t, tr.say(t, exitDone, "", "pepper", "stragglers", "1"), "nothing needs generation 1 any more", "pepper retire 1")
	wantWords(t, tr.say(t, exitDone, "", "pepper", "retire", "1", "--reason", "yearly"), "generation 1 is destroyed")
	wantWords(t, tr.verify(t, exitDone, used), "ok\n")
	wantWords(t, tr.say(t, exitDone, "", "pepper", "list"), "retired", "current")
	wantWords(t, tr.say(t, exitDone, acme, "token", "whoami"), "partner acme")
}

// learnPeppers opens the sealed peppers, so that they can be looked for.
func (tr *tour) learnPeppers(t *testing.T, db *store.DB) {
	t.Helper()
	kek, err := secret.OpenFile(tr.dir.kek())
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	sealed := map[string][]byte{}
	err = db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		rows, err := tx.Query(ctx, `SELECT gen, sealed FROM peppers`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var gen string
			var b []byte
			if err := rows.Scan(&gen, &b); err != nil {
				return err
			}
			sealed[gen] = b
		}
		return rows.Err()
	})
	if err != nil || len(sealed) != 3 { // the root, and two generations
		t.Fatalf("%d peppers, %v", len(sealed), err)
	}
	for gen, b := range sealed {
		v, err := sealer.Open(t.Context(), secret.Place{Table: "peppers", Row: gen, Column: "sealed"}, b)
		if err != nil {
			t.Fatal(err)
		}
		tr.secrets["pepper "+gen] = v.Reveal()
		v.Destroy()
	}
}

// Promise: no key, secret, token or pepper is in the database, in a log line or
// in an error.
func (tr *tour) leaksNothing(t *testing.T) {
	t.Helper()
	tr.leaksNone(t, 14, "acme", "partner")
}

// leaksNone is leaksNothing where at least so many secrets are known, and the database has
// these words.
func (tr *tour) leaksNone(t *testing.T, least int, words ...string) {
	t.Helper()
	if len(tr.secrets) < least {
		t.Errorf("only %d secrets are known", len(tr.secrets))
	}
	places := map[string][]byte{"what was printed and logged": []byte(tr.printed.String()), "the database": tr.dump(t)}
	for _, name := range []string{tr.dir.checkpoint()} {
		if b, err := os.ReadFile(name); err == nil {
			places[name] = b
		}
	}
	for place, content := range places {
		for _, known := range words { // what must be there
			if place == "the database" && !bytes.Contains(content, []byte(known)) {
				t.Errorf("there is no %q in %s: it was not dumped", known, place)
			}
		}
		for what, s := range tr.secrets {
			forms := [][]byte{s, []byte(hex.EncodeToString(s)), []byte(strings.ToUpper(hex.EncodeToString(s))), []byte(base64.StdEncoding.EncodeToString(s)), []byte(base64.RawURLEncoding.EncodeToString(s))}
			if len(s) > 60 { // of a key, the part that proves it would be enough
				forms = append(forms, s[len(s)-40:], []byte(hex.EncodeToString(s[len(s)-40:])))
			}
			for _, form := range forms {
				if bytes.Contains(content, form) {
					t.Errorf("%s holds %s", place, what)
				}
			}
		}
	}
}

// dump returns all that the database holds.
func (tr *tour) dump(t *testing.T) []byte {
	t.Helper()
	var all bytes.Buffer
	if path, ok := strings.CutPrefix(tr.url, "sqlite:"); ok {
		for _, f := range []string{path, path + "-wal", path + "-shm"} {
			b, err := os.ReadFile(f)
			if err != nil && !missing(err) {
				t.Fatal(err)
			}
			all.Write(b)
		}
		return all.Bytes()
	}
	db, err := store.Open(t.Context(), tr.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		tables, err := texts(ctx, tx, `SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1`)
		if err != nil {
			return err
		}
		for _, table := range tables {
			// As text a row shows bytes in hex; what they spell is wanted too.
			rows, err := texts(ctx, tx, `SELECT row_to_json(t)::text FROM "`+table+`" t`)
			if err != nil {
				return err
			}
			for _, row := range rows {
				all.WriteString(row + "\n")
				for _, m := range hexBytes.FindAllStringSubmatch(row, -1) {
					b, err := hex.DecodeString(m[1])
					if err != nil {
						return err
					}
					all.Write(append(b, '\n'))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.Bytes()
}

var hexBytes = regexp.MustCompile(`"\\\\x((?:[0-9a-f]{2})*)"`)

func texts(ctx context.Context, tx *store.Tx, query string) (list []string, err error) {
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, rows.Err()
}

// verification returns a client with the admin's token.
func (s *instance) verification(token string) v1connect.VerificationServiceClient {
	return v1connect.NewVerificationServiceClient(&http.Client{Transport: &bearer{token, &http.Transport{}}}, s.base)
}

// Promise: a key that one replica revoked is refused by the others.
func testPartnerReplicas(t *testing.T, bin program) {
	env := []string{"ROTUNDA_DATABASE_URL=" + storetest.Postgres(t)}
	root := t.TempDir()
	one := bin.serve(t, dataDir(filepath.Join(root, "one")), env)
	two := bin.serve(t, dataDir(filepath.Join(root, "two")), env, "--kek-file", one.dir.kek())
	token := one.token(t)
	one.cli(t, bin, exitDone, "partner", "create", "acme", "--scope", "orders:read")
	keys := v1connect.NewApiKeyServiceClient(&http.Client{Transport: &bearer{token, &http.Transport{}}}, one.base)
	ask := func(s *instance, value string) rotundav1.VerifyReason {
		t.Helper()
		res, err := s.verification(token).VerifyApiKey(t.Context(), connect.NewRequest(&rotundav1.VerifyApiKeyRequest{Key: value}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.GetReason()
	}
	for round := range 5 {
		made, err := keys.CreateApiKey(t.Context(), connect.NewRequest(&rotundav1.CreateApiKeyRequest{Partner: "acme", Name: fmt.Sprint("key ", round), Scopes: []string{"orders:read"}}))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*instance{one, two} { // both have it in memory
			if got := ask(s, made.Msg.GetValue()); got != rotundav1.VerifyReason_VERIFY_REASON_OK {
				t.Fatalf("round %d: a new key is %s", round, got)
			}
		}
		if _, err := keys.RevokeApiKey(t.Context(), connect.NewRequest(&rotundav1.RevokeApiKeyRequest{Partner: "acme", Id: made.Msg.GetKey().GetId()})); err != nil {
			t.Fatal(err)
		}
		if got := ask(one, made.Msg.GetValue()); got != rotundav1.VerifyReason_VERIFY_REASON_REVOKED {
			t.Errorf("round %d: where it was revoked, the key is %s", round, got)
		}
		began := time.Now()
		eventually(t, "the other replica to refuse it", func() bool { return ask(two, made.Msg.GetValue()) == rotundav1.VerifyReason_VERIFY_REASON_REVOKED })
		t.Logf("round %d: refused by the other replica after %s", round, time.Since(began).Round(time.Millisecond))
	}
}

// startRedis starts a Redis of the test's own on a socket, and returns its URL and how to end it.
func startRedis(t *testing.T) (url string, stop func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "redis") // a socket's path may have about a hundred characters
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	cmd := exec.CommandContext(t.Context(), "redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", dir)
	if err := cmd.Start(); err != nil {
		t.Fatalf("start Redis: %v: scripts/setup.sh installs it", err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // it may be gone already
		_ = cmd.Wait()
	})
	t.Cleanup(func() {
		stop()
		_ = os.RemoveAll(dir)
	})
	eventually(t, "Redis to listen", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return "unix://" + socket, stop
}

// Promise: replicas that share a Redis share rate limits; without it they do what
// --rate-limit-fail says.
func testPartnerRedis(t *testing.T, bin program) {
	url, stopRedis := startRedis(t)
	env := []string{"ROTUNDA_DATABASE_URL=" + storetest.Postgres(t), "ROTUNDA_REDIS_URL=" + url}
	root := t.TempDir()
	one := bin.serve(t, dataDir(filepath.Join(root, "one")), env)
	start := func(policy string) *instance {
		return bin.serve(t, dataDir(filepath.Join(root, policy)), env, "--kek-file", one.dir.kek(), "--rate-limit-fail", policy)
	}
	closed, open := start("closed"), start("open")
	token := one.token(t)
	one.cli(t, bin, exitDone, "partner", "create", "acme")
	key := strings.TrimSpace(one.cli(t, bin, exitDone, "key", "create", "--partner", "acme", "--name", "limited", "--rate", "5/d").stdout)
	free := strings.TrimSpace(one.cli(t, bin, exitDone, "key", "create", "--partner", "acme", "--name", "free").stdout)
	ask := func(s *instance, key string) string {
		res, err := s.verification(token).VerifyApiKey(t.Context(), connect.NewRequest(&rotundav1.VerifyApiKeyRequest{Key: key}))
		if err != nil {
			return connect.CodeOf(err).String()
		}
		return verifyWord(res.Msg.GetReason())
	}
	want := func(s *instance, key, answer string) {
		t.Helper()
		if got := ask(s, key); got != answer {
			t.Errorf("the answer is %s, want %s", got, answer)
		}
	}
	// Whatever Redis is too slow for on a busy machine is asked again: only a count that is
	// shared lets these two say that the limit is used up.
	for _, s := range []*instance{one, one, one, one, one} {
		want(s, key, "ok")
	}
	for _, s := range []*instance{closed, open} {
		eventually(t, "the other replicas' limit to be used up", func() bool { return ask(s, key) == "rate" })
	}
	stopRedis()
	eventually(t, "a replica to count for itself", func() bool { return ask(one, key) == "rate" })
	eventually(t, "a replica to refuse what has a limit", func() bool { return ask(closed, key) == "unavailable" })
	for range 6 {
		want(open, key, "ok")
	}
	for _, s := range []*instance{one, closed, open} {
		want(s, free, "ok")
	}
}

// Promise: kill -9 among creations leaves no key without its event, no event without
// its key, and loses no key that was handed out.
func testPartnerKill(t *testing.T, bin program) {
	dir := dataDir(filepath.Join(t.TempDir(), "data"))
	rng := newRand(t)
	var mu sync.Mutex
	handed := map[string]string{} // id → value
	for round := range 3 {
		s := bin.serve(t, dir, nil)
		if round == 0 {
			s.cli(t, bin, exitDone, "partner", "create", "acme", "--max-keys", "100000")
		}
		keys := v1connect.NewApiKeyServiceClient(&http.Client{Transport: &bearer{s.token(t), &http.Transport{}}}, s.base)
		var steps atomic.Int64
		var workers sync.WaitGroup
		for range 4 {
			workers.Go(func() {
				for i := 0; ; i++ {
					res, err := keys.CreateApiKey(t.Context(), connect.NewRequest(&rotundav1.CreateApiKeyRequest{Partner: "acme", Name: fmt.Sprint("key ", i)}))
					if err != nil {
						return
					}
					steps.Add(1)
					mu.Lock()
					handed[res.Msg.GetKey().GetId()] = res.Msg.GetValue()
					mu.Unlock()
				}
			})
		}
		after := int64(10 + rng.IntN(40))
		eventually(t, "some keys", func() bool { return steps.Load() >= after })
		time.Sleep(time.Duration(rng.IntN(int(20 * time.Millisecond)))) // somewhere in the next ones
		s.kill()
		workers.Wait()
	}
	s := bin.serve(t, dir, nil)
	eventually(t, "events to get their place in the trail", func() bool {
		return strings.Contains(s.cli(t, bin, exitDone, "audit", "status").stdout, "waiting    none")
	})
	events := map[string]int{}
	for _, e := range s.exported(t, bin) {
		if _, id, ok := strings.Cut(e.Resource, "partners/acme/api_keys/"); ok && e.Action == "api_key.create" {
			events[id]++
		}
	}
	var listed struct{ Keys []struct{ ID string } }
	if err := json.Unmarshal([]byte(s.cli(t, bin, exitDone, "key", "list", "--partner", "acme", "--limit", "10000", "-o", "json").stdout), &listed); err != nil {
		t.Fatal(err)
	}
	for _, k := range listed.Keys {
		if events[k.ID] != 1 {
			t.Errorf("key %s has %d events of its creation", k.ID, events[k.ID])
		}
	}
	if len(listed.Keys) != len(events) || len(handed) < 30 || len(handed) > len(events) {
		t.Errorf("%d keys were handed out, %d are there, and %d have an event", len(handed), len(listed.Keys), len(events))
	}
	for id, value := range handed {
		res, err := s.verification(s.token(t)).VerifyApiKey(t.Context(), connect.NewRequest(&rotundav1.VerifyApiKeyRequest{Key: value}))
		if err != nil || res.Msg.GetReason() != rotundav1.VerifyReason_VERIFY_REASON_OK || res.Msg.GetVerified().GetKeyId() != id {
			t.Errorf("a key that was handed out is %s, %v", res.Msg.GetReason(), err)
		}
	}
}

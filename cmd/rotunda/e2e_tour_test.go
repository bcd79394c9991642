package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/go-jose/go-jose/v4"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// verifies checks a JWT against a JWKS document, as a consumer would.
func verifies(document, token string) error {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(document), &set); err != nil {
		return err
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return err
	}
	keys := set.Key(jws.Signatures[0].Header.KeyID)
	if len(keys) != 1 {
		return fmt.Errorf("%d keys have the kid %s", len(keys), jws.Signatures[0].Header.KeyID)
	}
	_, err = jws.Verify(keys[0])
	return err
}

func testTour(t *testing.T, bin program) {
	dir := dataDir(filepath.Join(t.TempDir(), "data"))
	s := bin.serve(t, dir, nil)
	wantMode(t, string(dir), 0o700)
	for _, f := range []string{dir.adminToken(), dir.kek(), dir.db()} {
		wantMode(t, f, 0o600)
	}
	cli := func(want int, args ...string) outcome {
		t.Helper()
		r := bin.run(t, s.env(), args...)
		if r.code != want {
			t.Fatalf("%v: exit %d, want %d\n%s%s", args, r.code, want, r.stdout, r.stderr)
		}
		return r
	}
	cli(exitDone, "keyset", "create", "payments", "--issuer", "https://auth.example.com", "--algorithm", "ES256",
		"--rotate-every", "720h", "--token-ttl", "1h", "--profile", "envoy", "--profile", "jose")
	r := cli(exitDone, "sign", "payments", "--claims", `{"sub":"order-7","aud":"ledger"}`, "--ttl", "10m")
	jwt := strings.TrimSpace(r.stdout)
	res, document := s.get(t, "/keysets/payments/jwks.json")
	if res.StatusCode != http.StatusOK || res.Header.Get("Etag") == "" || !strings.Contains(res.Header.Get("Cache-Control"), "max-age=300") {
		t.Errorf("document: %s %v", res.Status, res.Header)
	}
	if err := verifies(document, jwt); err != nil {
		t.Errorf("the JWT: %v", err)
	}
	wantWords(t, cli(exitDone, "keyset", "show", "payments").stdout, "active", "pending", "served since")
	r = cli(exitRefused, "keyset", "rotate", "payments")
	wantWords(t, r.stderr, "lead_not_over", "must be served for", "request ")

	var shown struct {
		Keyset struct{ Keys []struct{ Kid, State string } }
	}
	if err := json.Unmarshal([]byte(cli(exitDone, "keyset", "show", "payments", "-o", "json").stdout), &shown); err != nil {
		t.Fatal(err)
	}
	kid := shown.Keyset.Keys[0].Kid
	revoke := []string{"keyset", "revoke", "payments", kid, "--reason", "key_compromise", "--mode"}
	for _, mode := range []string{"standby", "fresh"} {
		r := cli(exitDone, append(revoke, mode, "--dry-run")...)
		wantWords(t, r.stdout, "mode standby", "mode fresh", "envoy", "jose")
	}
	if _, again := s.get(t, "/keysets/payments/jwks.json"); again != document {
		t.Error("a dry run changed the document")
	}
	cli(exitDone, append(revoke, "fresh")...)
	if _, after := s.get(t, "/keysets/payments/jwks.json"); verifies(after, jwt) == nil || strings.Contains(after, kid) {
		t.Error("the revoked key is still published")
	}
	cli(exitRefused, append(revoke, "fresh")...) // it is gone
	wantWords(t, cli(exitDone, "audit", "list").stdout, "keyset.create", "keyset.revoke_key", "signing_key.revoked", "key_compromise", "token.create")
	cli(exitDone, "doctor")
	cli(exitDone, "version")
	cli(exitUsage, "keyset", "show", "payments", "--nonsense")
	cli(exitUsage, "serve", "--nonsense")
	cli(exitRefused, "keyset", "show", "absent")

	// A second start keeps the token and everything else.
	token := s.token(t)
	if code := s.stop(t); code != exitDone {
		t.Fatalf("stopped with %d\n%s", code, s.stderr)
	}
	cli(exitUnreachable, "keyset", "list")
	s = bin.serve(t, dir, nil)
	if s.token(t) != token {
		t.Error("a second start made another token")
	}
	cli(exitDone, "keyset", "show", "payments")
	if strings.Contains(s.stderr.String(), token) {
		t.Error("the log holds the admin token")
	}
}

// acknowledged is what a server has answered for.
type acknowledged struct {
	keysets   []string
	tokens    [][2]string // keyset, JWT
	rotations map[string]int
}

// work creates, rotates and signs until the server is gone.
func work(ctx context.Context, keysets v1connect.KeysetServiceClient, prefix string, done *acknowledged, steps *atomic.Int64) error {
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s-%d", prefix, i)
		_, err := keysets.CreateKeyset(ctx, connect.NewRequest(&rotundav1.CreateKeysetRequest{Name: name, Issuer: "https://auth.example.com", Policy: &rotundav1.Policy{TokenTtl: durationpb.New(time.Hour)}}))
		if err != nil {
			return err
		}
		done.keysets = append(done.keysets, name)
		for range 2 {
			steps.Add(1)
			res, err := keysets.Sign(ctx, connect.NewRequest(&rotundav1.SignRequest{Name: name, Claims: `{}`}))
			if err != nil {
				return err
			}
			done.tokens = append(done.tokens, [2]string{name, res.Msg.GetToken()})
			_, err = keysets.RotateKeyset(ctx, connect.NewRequest(&rotundav1.RotateKeysetRequest{Name: name, OverrideLead: true, Reason: "test"}))
			if err != nil {
				return err
			}
			done.rotations[name]++
		}
	}
}

// check holds a server to what another, or it before a crash, has answered for.
func (done *acknowledged) check(t *testing.T, s *instance, token string) {
	t.Helper()
	keysets, trail := s.clients(token)
	documents := map[string]string{}
	for _, name := range done.keysets {
		got, err := keysets.GetKeyset(t.Context(), connect.NewRequest(&rotundav1.GetKeysetRequest{Name: name}))
		if err != nil {
			t.Errorf("a keyset that was acknowledged is lost: %v", err)
			continue
		}
		active := 0
		for _, k := range got.Msg.GetKeyset().GetKeys() {
			if k.GetState() == rotundav1.KeyState_KEY_STATE_ACTIVE {
				active++
			}
		}
		if active != 1 {
			t.Errorf("keyset %s has %d active keys", name, active)
		}
		_, documents[name] = s.get(t, "/keysets/"+name+"/jwks.json")
		events := map[string]int{}
		list, err := trail.ListEvents(t.Context(), connect.NewRequest(&rotundav1.ListEventsRequest{Resource: "keysets/" + name + "/", PageSize: 1000}))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Msg.GetEvents() {
			events[e.GetAction()+" "+e.GetResource()]++
			if events[e.GetAction()+" "+e.GetResource()] > 1 {
				t.Errorf("%s on %s stands twice in the trail", e.GetAction(), e.GetResource())
			}
			events[e.GetAction()]++
		}
		// The last rotation may be done and its answer lost.
		if n := events["signing_key.active"] - 1; n < done.rotations[name] || n > done.rotations[name]+1 {
			t.Errorf("the trail has %d rotations of %s, and %d were acknowledged", n, name, done.rotations[name])
		}
		made, err := trail.ListEvents(t.Context(), connect.NewRequest(&rotundav1.ListEventsRequest{Resource: "keysets/" + name, Action: "keyset.create"}))
		if err != nil || len(made.Msg.GetEvents()) != 1 {
			t.Errorf("the creation of %s is in the trail %d times, %v", name, len(made.Msg.GetEvents()), err)
		}
	}
	for _, jwt := range done.tokens {
		if err := verifies(documents[jwt[0]], jwt[1]); err != nil {
			t.Errorf("a JWT of %s that was handed out: %v", jwt[0], err)
		}
	}
}

// crash kills a server while it works, after a random number of steps and at a
// random moment of the step.
func crash(t *testing.T, victim *instance, token, prefix string, rng *rand.Rand, done *acknowledged) {
	t.Helper()
	keysets, _ := victim.clients(token)
	var steps atomic.Int64
	ended := make(chan error, 1)
	go func() { ended <- work(t.Context(), keysets, prefix, done, &steps) }()
	after := int64(4 + rng.IntN(20))
	eventually(t, "some work", func() bool { return steps.Load() >= after })
	time.Sleep(time.Duration(rng.IntN(int(20 * time.Millisecond)))) // somewhere in the next steps
	victim.kill()
	if err := <-ended; err == nil {
		t.Fatal("the work ended without a reason")
	}
}

func newRand(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// Promise: kill -9 loses nothing that was acknowledged.
func testKill(t *testing.T, bin program) {
	dir := dataDir(filepath.Join(t.TempDir(), "data"))
	done := &acknowledged{rotations: map[string]int{}}
	rng := newRand(t)
	for round := range 3 {
		s := bin.serve(t, dir, nil)
		crash(t, s, s.token(t), fmt.Sprintf("r%d", round), rng, done)
	}
	s := bin.serve(t, dir, nil)
	done.check(t, s, s.token(t))
}

// Promise: of two replicas either may die at any moment; the other goes on.
func testReplicas(t *testing.T, bin program) {
	env := []string{"ROTUNDA_DATABASE_URL=" + storetest.Postgres(t)}
	root := t.TempDir()
	one := bin.serve(t, dataDir(filepath.Join(root, "one")), env)
	token := one.token(t)
	start := func(name string) *instance {
		return bin.serve(t, dataDir(filepath.Join(root, name)), env, "--kek-file", one.dir.kek())
	}
	two := start("two")
	if _, err := os.Stat(two.dir.adminToken()); !missing(err) {
		t.Errorf("the second replica made a token too: %v", err)
	}
	mine, theirs := &acknowledged{rotations: map[string]int{}}, &acknowledged{rotations: map[string]int{}}
	keysets, _ := two.clients(token)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var steps atomic.Int64
	ended := make(chan error, 1)
	go func() { ended <- work(ctx, keysets, "two", theirs, &steps) }()
	crash(t, one, token, "one", newRand(t), mine)
	before := steps.Load()
	eventually(t, "the other replica to go on", func() bool { return steps.Load() > before+4 })
	cancel()
	if err := <-ended; connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("the other replica's work ended with %v", err)
	}
	// What the dead one answered for is served by the living one, a pass later.
	eventually(t, "the living replica to serve the dead one's keysets", func() bool {
		res, body := two.get(t, "/keysets/"+mine.keysets[len(mine.keysets)-1]+"/jwks.json")
		last := mine.tokens[len(mine.tokens)-1]
		return res.StatusCode == http.StatusOK && (last[0] != mine.keysets[len(mine.keysets)-1] || verifies(body, last[1]) == nil)
	})
	mine.check(t, two, token)
	theirs.check(t, two, token)
	three := start("three")
	mine.check(t, three, token)

	// A replica without the key file, or with another, would be of no use, and
	// says so; it does not make a new one.
	four := filepath.Join(root, "four")
	r := bin.run(t, env, "serve", "--listen", "127.0.0.1:0", "--data-dir", four)
	if r.code != exitRefused {
		t.Errorf("started without the key file: %d", r.code)
	}
	wantWords(t, r.stderr, "kek.json is missing", "--kek-file")
	if _, err := os.Stat(dataDir(four).kek()); !missing(err) {
		t.Errorf("a new key file was made: %v", err)
	}
	if _, err := secret.OpenOrCreateFile(dataDir(four).kek()); err != nil {
		t.Fatal(err)
	}
	r = bin.run(t, env, "serve", "--listen", "127.0.0.1:0", "--data-dir", four)
	if r.code != exitRefused {
		t.Errorf("started with another key file: %d", r.code)
	}
	wantWords(t, r.stderr, "key file that this database was made with")
	u, err := url.Parse(strings.TrimPrefix(env[0], "ROTUNDA_DATABASE_URL="))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	for _, text := range []string{r.stdout + r.stderr, one.stderr.String(), two.stderr.String()} {
		if strings.Contains(text, password) {
			t.Errorf("the database's password is in:\n%s", text)
		}
	}
}

// Promise: a server that is told to stop answers what it has begun to read.
func testStop(t *testing.T, bin program) {
	s := bin.serve(t, dataDir(filepath.Join(t.TempDir(), "data")), nil)
	keysets, _ := s.clients(s.token(t))
	create := func(name string) string {
		return `{"name":"` + name + `","issuer":"https://auth.example.com","policy":{"tokenTtl":"60s"}}`
	}
	if r := bin.run(t, s.env(), "keyset", "create", "watched", "--issuer", "https://auth.example.com", "--token-ttl", "1h"); r.code != exitDone {
		t.Fatal(r.stderr)
	}
	stream, err := keysets.Watch(t.Context(), connect.NewRequest(&rotundav1.WatchRequest{Name: "watched"}))
	if err != nil || !stream.Receive() {
		t.Fatalf("watch: %v %v", err, stream.Err())
	}
	defer stream.Close()

	// Half of a request is sent before the signal, half after it.
	host := strings.TrimPrefix(s.base, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := create("late")
	head := "POST " + v1connect.KeysetServiceCreateKeysetProcedure + " HTTP/1.1\r\nHost: " + host + "\r\nContent-Type: application/json\r\nConnection: close\r\nAuthorization: Bearer " + s.token(t) + fmt.Sprintf("\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(body))
	if _, err := io.WriteString(conn, head); err != nil {
		t.Fatal(err)
	}
	// The server says so when it begins to read: the request is under way then.
	const under = "HTTP/1.1 100 Continue\r\n\r\n"
	begun := make([]byte, len(under))
	if _, err := io.ReadFull(conn, begun); err != nil || string(begun) != under {
		t.Fatalf("the request did not begin: %v %q", err, begun)
	}
	if _, err := io.WriteString(conn, body[:10]); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the listener to close", func() bool {
		c, err := net.Dial("tcp", host)
		if err == nil {
			_ = c.Close() // it came in before the end
		}
		return err != nil
	})
	if _, err := io.WriteString(conn, body[10:]); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) {
		t.Errorf("the request that was under way: %v\n%s", err, answer)
	}
	if stream.Receive() {
		t.Error("the stream goes on")
	}
	if code := s.wait(t); code != exitDone {
		t.Errorf("exit %d\n%s", code, s.stderr)
	}
	s = bin.serve(t, s.dir, nil)
	if r := bin.run(t, s.env(), "keyset", "show", "late"); r.code != exitDone {
		t.Errorf("what was answered is lost: %s", r.stderr)
	}
}

func testRefusesToStart(t *testing.T, bin program) {
	dir := dataDir(filepath.Join(t.TempDir(), "data"))
	first := bin.serve(t, dir, nil)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(t.TempDir(), "open.json")
	b, err := os.ReadFile(dir.kek())
	if err == nil {
		err = os.WriteFile(open, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	fresh := func() string { return filepath.Join(t.TempDir(), "data") }
	const secretPart = "hunter2-secret"
	for name, c := range map[string]struct {
		args  []string
		code  int
		words []string
	}{
		"address in use":                {[]string{"--listen", strings.TrimPrefix(first.base, "http://"), "--data-dir", fresh()}, exitRefused, []string{"listen on", "address already in use", "--listen"}},
		"database of a running server":  {[]string{"--data-dir", string(dir)}, exitRefused, []string{"rotunda.db", "is locked by process"}},
		"data directory below a file":   {[]string{"--data-dir", filepath.Join(file, "data")}, exitRefused, []string{"data directory", "not a directory"}},
		"plain text on every address":   {[]string{"--listen", "0.0.0.0:0", "--data-dir", fresh()}, exitRefused, []string{"not a loopback address", "--tls-cert", "--insecure"}},
		"key file that others can read": {[]string{"--kek-file", open, "--data-dir", fresh()}, exitRefused, []string{"open.json", "chmod"}},
		"database that is not there":    {[]string{"--database-url", "postgres://rotunda:" + secretPart + "@127.0.0.1:1/rotunda?sslmode=disable", "--data-dir", fresh()}, exitRefused, []string{"127.0.0.1:1"}},
		"database URL of no kind":       {[]string{"--database-url", "mysql://rotunda:" + secretPart + "@db/rotunda", "--data-dir", fresh()}, exitRefused, []string{"sqlite", "postgres"}},
		"database URL that is none":     {[]string{"--database-url", "postgres://rotunda:" + secretPart + "@db:port/%zz", "--data-dir", fresh()}, exitRefused, nil},
		"half of TLS":                   {[]string{"--tls-cert", "x.pem", "--data-dir", fresh()}, exitUsage, []string{"--tls-key"}},
		"certificate that is not there": {[]string{"--tls-cert", "x.pem", "--tls-key", "y.pem", "--data-dir", fresh()}, exitRefused, []string{"x.pem"}},
		"rate of nothing":               {[]string{"--public-rate", "0", "--data-dir", fresh()}, exitUsage, []string{"--public-rate"}},
		"log level of nothing":          {[]string{"--log-level", "loud", "--data-dir", fresh()}, exitUsage, []string{"--log-level"}},
		"proxy that is no range":        {[]string{"--trusted-proxy", "10.0.0.1", "--data-dir", fresh()}, exitUsage, []string{"--trusted-proxy", "10.0.0.0/8"}},
		"public URL with a query":       {[]string{"--public-url", "https://x.example?y", "--data-dir", fresh()}, exitUsage, []string{"--public-url"}},
		"unknown flag":                  {[]string{"--nonsense"}, exitUsage, []string{"--nonsense"}},
		"trail's name with a space":     {[]string{"--trail-origin", "our trail", "--data-dir", fresh()}, exitUsage, []string{"--trail-origin", "our trail", "rotunda.example.com/trail"}},
		"Redis in plain text":           {[]string{"--redis-url", "redis://rotunda:" + secretPart + "@cache.example:6379", "--data-dir", fresh()}, exitRefused, []string{"cache.example:6379", "rediss://", "--insecure"}},
		"Redis URL of no kind":          {[]string{"--redis-url", "http://rotunda:" + secretPart + "@cache", "--data-dir", fresh()}, exitRefused, []string{"--redis-url", "redis://"}},
		"key prefix with a digit":       {[]string{"--key-prefix", "k1", "--data-dir", fresh()}, exitRefused, []string{"--key-prefix", "lower-case letters"}},
		"stale for a day":               {[]string{"--verify-stale", "1d", "--data-dir", fresh()}, exitUsage, []string{"--verify-stale", "1h"}},
		"rate limit of no policy":       {[]string{"--rate-limit-fail", "maybe", "--data-dir", fresh()}, exitUsage, []string{"local, open, closed"}},
		"argument":                      {[]string{"now"}, exitUsage, []string{"now"}},
	} {
		args := append([]string{"serve"}, c.args...)
		if !slices.Contains(args, "--listen") {
			args = append(args, "--listen", "127.0.0.1:0")
		}
		r := bin.run(t, nil, args...)
		if r.code != c.code || strings.Contains(r.stdout+r.stderr, secretPart) || strings.Contains(r.stderr, "goroutine ") {
			t.Errorf("%s: exit %d, want %d\n%s", name, r.code, c.code, r.stderr)
		}
		wantWords(t, r.stderr, c.words...)
	}
	if r := bin.run(t, nil, "serve", "--listen", "0.0.0.0:0", "--insecure", "--data-dir", fresh()); r.code != exitRefused || !strings.Contains(r.stderr, "--public-url") {
		t.Errorf("a listener on every address without --public-url: %d %s", r.code, r.stderr)
	}
	open2 := bin.serve(t, dataDir(fresh()), nil, "--listen", "0.0.0.0:0", "--insecure", "--public-url", "http://keys.example.com")
	if code := open2.stop(t); code != exitDone {
		t.Errorf("--insecure: %d %s", code, open2.stderr)
	}
	if r := bin.run(t, first.env(), "keyset", "list"); r.code != exitDone {
		t.Errorf("the first server was disturbed: %s", r.stderr)
	}
}

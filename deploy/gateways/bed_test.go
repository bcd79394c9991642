// Package gateways runs the configurations of this folder: real gateways, started
// from these files, in front of a service that tells what it got, with a real Rotunda
// to ask. Only addresses and the gateway's token are put in.
package gateways

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/server"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/jwks"
	"github.com/rotunda-dev/rotunda/rotation"
	"github.com/rotunda-dev/rotunda/rotation/sender"
)

// rotunda is Rotunda on a database of its own and an address that it keeps when it is
// started again.
type rotunda struct {
	db       *store.DB
	sealer   *secret.Sealer
	peppers  *apikeys.Peppers
	tokens   *apikeys.Tokens
	partners *apikeys.Partners
	keys     *apikeys.Keys
	gateway  string // a gateway's token
	addr     string
	stop     func()
}

// places has nowhere to copy the trail to.
type places struct{ server.Places }

func (places) Running() server.Running { return server.Running{} }

func newRotunda(t testing.TB) *rotunda {
	t.Helper()
	kek, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek.json"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rotunda{db: storetest.SQLite(t)}
	if r.sealer, err = secret.NewSealer(kek.KEKs()...); err != nil {
		t.Fatal(err)
	}
	if r.peppers, err = apikeys.OpenPeppers(t.Context(), r.db, r.sealer); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	t.Cleanup(func() { r.stop() })
	_, v, err := r.tokens.Create(t.Context(), apikeys.Create{Name: "edge", Role: apikeys.Gateway, CIDRs: []string{"127.0.0.1/32"}})
	if err != nil {
		t.Fatal(err)
	}
	r.gateway = v.RevealString()
	for _, name := range []string{"acme", "globex"} {
		if _, err := r.partners.Create(t.Context(), name, apikeys.PartnerSpec{Scopes: []string{"orders:read", "orders:write"}}, store.Once{}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// reads is a built-in store that no gateway asks.
type reads struct{ server.Secrets }

// rotating completes a configuration with rotations, which no gateway asks for.
func (r *rotunda) rotating(t testing.TB, cfg *server.Config) {
	t.Helper()
	var err error
	if cfg.Systems, err = rotation.NewSystems(t.Context(), rotation.SystemsConfig{DB: r.db, Sealer: r.sealer}); err != nil {
		t.Fatal(err)
	}
	if cfg.Rotations, err = rotation.NewRotations(rotation.RotationsConfig{DB: r.db, Sealer: r.sealer, Systems: cfg.Systems}); err != nil {
		t.Fatal(err)
	}
	if cfg.Credentials, err = rotation.NewCredentials(rotation.CredentialsConfig{DB: r.db, Systems: cfg.Systems, Rotations: cfg.Rotations}); err != nil {
		t.Fatal(err)
	}
	if cfg.Incidents, err = rotation.NewIncidents(rotation.IncidentsConfig{DB: r.db, Credentials: cfg.Credentials}); err != nil {
		t.Fatal(err)
	}
	posts, err := sender.New(sender.Config{Now: r.db.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(posts.Close)
	if cfg.Endpoints, err = rotation.NewEndpoints(rotation.EndpointsConfig{DB: r.db, Systems: cfg.Systems, Secrets: r.keys, Sender: posts}); err != nil {
		t.Fatal(err)
	}
	cfg.Secrets = reads{}
}

// start serves, with nothing in memory but what is in the database.
func (r *rotunda) start(t testing.TB) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	r.tokens = apikeys.NewTokens(r.db, r.peppers)
	r.partners = apikeys.NewPartners(r.db, r.peppers)
	var err error
	if r.keys, err = apikeys.NewKeys(apikeys.KeysConfig{DB: r.db, Peppers: r.peppers, Partners: r.partners, Sealer: r.sealer}); err != nil {
		t.Fatal(err)
	}
	verifier, err := apikeys.NewVerifier(apikeys.VerifierConfig{DB: r.db, Keys: r.keys, Partners: r.partners, Sealer: r.sealer, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := verifier.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	keysets := jwks.New(jwks.Config{DB: r.db, Local: &jwks.Local{Sealer: r.sealer}, Log: log})
	trail, err := audit.Open(t.Context(), audit.Config{DB: r.db, Sealer: r.sealer, Log: log, Origin: "rotunda.test/gateways"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := server.Config{
		DB: r.db, Keysets: keysets, Tokens: r.tokens, Denials: &audit.Denials{DB: r.db}, Trail: trail, Places: places{}, Log: log,
		Partners: r.partners, Keys: r.keys, Peppers: r.peppers, Verifier: verifier, PublicURL: "https://keys.example.com",
	}
	r.rotating(t, &cfg)
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	handler, err := s.Handler()
	if err != nil {
		t.Fatal(err)
	}
	at := r.addr
	if at == "" {
		at = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	hs := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10, Protocols: new(http.Protocols)}
	hs.Protocols.SetHTTP1(true)
	hs.Protocols.SetUnencryptedHTTP2(true)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { verifier.Follow(ctx) })
	running.Go(func() {
		if err := hs.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	r.stop = sync.OnceFunc(func() {
		if err := hs.Close(); err != nil {
			t.Errorf("close the server: %v", err)
		}
		cancel()
		running.Wait()
	})
}

// key makes a key and returns its value.
func (r *rotunda) key(t testing.TB, spec apikeys.KeySpec) (value, id string) {
	t.Helper()
	if spec.Partner == "" {
		spec.Partner = "acme"
	}
	if spec.Name == "" {
		spec.Name = "ci"
	}
	if spec.Scopes == nil {
		spec.Scopes = []string{"orders:read"}
	}
	made, err := r.keys.Create(t.Context(), apikeys.APIKey, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Value.Destroy()
	return made.Value.RevealString(), made.Key.ID
}

// service is what stands behind a gateway.
type service struct {
	addr string
	hits atomic.Int64
}

// seen is a request as the service got it.
type seen struct {
	Method, URI, Host string
	Header            http.Header
	Body              int
}

func newService(t testing.TB) *service {
	t.Helper()
	s := &service{}
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hits.Add(1)
		n, _ := io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(seen{r.Method, r.RequestURI, r.Host, r.Header, int(n)})
	}))
	t.Cleanup(hs.Close)
	s.addr = hs.Listener.Addr().String()
	return s
}

// kind is one of the gateways that run here.
type kind struct {
	name    string
	pkg     string // Debian's
	binary  string
	folder  string
	token   string // file of the token
	put     func(token string) string
	command func(dir string) []string

	misconfigured int  // status when Rotunda does not accept the gateway's token
	hidesChunks   bool // does not tell that there is a Transfer-Encoding
}

var nginx = kind{
	name: "NGINX", pkg: "nginx-light", binary: "/usr/sbin/nginx", folder: "nginx", token: "rotunda-token.conf",
	put: func(token string) string { return `proxy_set_header X-Rotunda-Token "` + token + "\";\n" },
	command: func(dir string) []string {
		directives := "daemon off;"
		if os.Geteuid() == 0 {
			directives += " user root;" // its worker writes below the test's folder
		}
		return []string{"-p", dir, "-c", "nginx.conf", "-g", directives}
	},
	misconfigured: http.StatusServiceUnavailable,
}

var caddy = kind{
	name: "Caddy", pkg: "caddy", binary: "/usr/bin/caddy", folder: "caddy", token: "rotunda-token.caddy",
	put:           func(token string) string { return "header_up X-Rotunda-Token " + token + "\n" },
	command:       func(dir string) []string { return []string{"run", "--config", "Caddyfile", "--adapter", "caddyfile"} },
	misconfigured: http.StatusInternalServerError,
	hidesChunks:   true,
}

var haproxy = kind{
	name: "HAProxy", pkg: "haproxy", binary: "/usr/sbin/haproxy", folder: "haproxy", token: "rotunda-token",
	put:           func(token string) string { return token + "\n" },
	command:       func(dir string) []string { return []string{"-C", dir, "-f", "haproxy.cfg"} },
	misconfigured: http.StatusServiceUnavailable,
}

// The addresses in the files, and whose they are.
const (
	rotundaAddr = "127.0.0.1:8470"
	serviceAddr = "127.0.0.1:9000"
	gatewayPort = ":8080"
)

// start runs a gateway from its files and returns where it listens.
func (k kind) start(t testing.TB, rotunda, service, token string) string {
	t.Helper()
	if _, err := os.Stat(k.binary); err != nil {
		t.Fatalf("%s is not here: install Debian's %s, or run scripts/setup.sh test", k.binary, k.pkg)
	}
	// The port is free when it is chosen, and may be taken a moment later.
	var err error
	for range 3 {
		var addr string
		if addr, err = k.launch(t, rotunda, service, token); err == nil {
			return addr
		}
	}
	t.Fatal(err)
	return ""
}

func (k kind) launch(t testing.TB, rotunda, service, token string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	k.copyTo(t, dir, strings.NewReplacer(rotundaAddr, rotunda, serviceAddr, service, gatewayPort, addr[strings.LastIndexByte(addr, ':'):]))
	if err := os.WriteFile(filepath.Join(dir, k.token), []byte(k.put(token)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(k.binary, k.command(dir)...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	var said lockedBuffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = childAttr(syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	stop := func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Errorf("%s did not end within 20 s of SIGTERM", k.name)
			cmd.Process.Kill()
			<-ended
		}
	}
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		select {
		case <-ended:
			return "", errors.New(k.name + " ended at once:\n" + said.String())
		case <-time.After(20 * time.Millisecond):
		}
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			continue
		}
		conn.Close()
		t.Cleanup(func() {
			stop()
			if t.Failed() {
				t.Logf("%s said:\n%s", k.name, strings.ReplaceAll(said.String(), token, "[token]"))
			}
		})
		return addr, nil
	}
	stop()
	return "", errors.New(k.name + " did not listen within 30 s:\n" + said.String())
}

// copyTo copies the files; each address must be in one of them.
func (k kind) copyTo(t testing.TB, dir string, addresses *strings.Replacer) {
	t.Helper()
	files, err := os.ReadDir(k.folder)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		if !f.Type().IsRegular() {
			continue // left by somebody who ran it here
		}
		text, err := os.ReadFile(filepath.Join(k.folder, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
		if err := os.WriteFile(filepath.Join(dir, f.Name()), []byte(addresses.Replace(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []string{rotundaAddr, serviceAddr, gatewayPort} {
		if !strings.Contains(all.String(), a) {
			t.Fatalf("no file of %s has the address %s: what would it connect to?", k.folder, a)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

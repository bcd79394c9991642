package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/jwks"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// epoch is a Monday, and a whole second.
var epoch = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

// home is the address of callers that the test does not tell apart.
const home = "192.0.2.1"

// bed is a whole server on a real database and a real socket. Its clock moves
// only when the test says so. The tests reach it through a trusted proxy, so
// that each request can come from an address of its own.
type bed struct {
	*Server
	db      *store.DB
	clock   *storetest.Clock
	sealer  *secret.Sealer
	log     *journal
	http    *httptest.Server
	admin   string // an admin's token
	adminID string
	reads   map[string]string // requests that only read, by method
	outside
}

func newBed(t testing.TB, db *store.DB) *bed {
	t.Helper()
	return newBedWith(t, db, func(*Config) {})
}

func newBedWith(t testing.TB, db *store.DB, adjust func(*Config)) *bed {
	t.Helper()
	b := &bed{db: db, clock: storetest.NewClock(epoch), log: &journal{}}
	db.Now = b.clock.Now
	db.Tick = func() time.Duration { return b.clock.Now().Sub(epoch) }
	kek, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek.json"))
	if err != nil {
		t.Fatal(err)
	}
	if b.sealer, err = secret.NewSealer(kek.KEKs()...); err != nil {
		t.Fatal(err)
	}
	peppers, err := apikeys.OpenPeppers(t.Context(), db, b.sealer)
	if err != nil {
		t.Fatal(err)
	}
	tokens := apikeys.NewTokens(db, peppers)
	_, err = tokens.Bootstrap(t.Context(), func(v secret.Value) error { b.admin = v.RevealString(); return nil })
	if err != nil {
		t.Fatal(err)
	}
	b.adminID = idOf(b.admin)
	log := slog.New(slog.NewJSONHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	keysets := jwks.New(jwks.Config{DB: db, Local: &jwks.Local{Sealer: b.sealer}, Log: log})
	if err := keysets.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	partners := apikeys.NewPartners(db, peppers)
	keys, err := apikeys.NewKeys(apikeys.KeysConfig{DB: db, Peppers: peppers, Partners: partners, Sealer: b.sealer})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := apikeys.NewVerifier(apikeys.VerifierConfig{DB: db, Keys: keys, Partners: partners, Sealer: b.sealer, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := verifier.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	opened, err := audit.Open(t.Context(), audit.Config{DB: db, Sealer: b.sealer, Log: log, Origin: "rotunda.test/trail"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		DB: db, Keysets: keysets, Tokens: tokens, Denials: &audit.Denials{DB: db}, Trail: opened, Places: newStoredPlaces(db, opened), Log: log,
		Partners: partners, Keys: keys, Peppers: peppers, Verifier: verifier,
		PublicURL: "https://keys.example.com/", TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	}
	b.rotating(t, &cfg, log)
	adjust(&cfg)
	b.serve(t, cfg)
	return b
}

// newBedBeside is another server on the same database as b.
func newBedBeside(t testing.TB, b *bed, adjust func(*Config)) *bed {
	t.Helper()
	c := &bed{db: b.db, clock: b.clock, sealer: b.sealer, log: b.log, admin: b.admin, adminID: b.adminID, outside: b.outside}
	cfg := b.Config
	adjust(&cfg)
	c.serve(t, cfg)
	return c
}

// serve makes the server and serves it.
func (b *bed) serve(t testing.TB, cfg Config) {
	t.Helper()
	var err error
	if b.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	handler, err := b.Handler()
	if err != nil {
		t.Fatal(err)
	}
	b.http = httptest.NewUnstartedServer(handler)
	b.http.Config.Protocols = new(http.Protocols)
	b.http.Config.Protocols.SetHTTP1(true)
	b.http.Config.Protocols.SetUnencryptedHTTP2(true)
	b.http.Config.ErrorLog = slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug)
	b.http.Start()
	t.Cleanup(b.http.Close)
}

// journal keeps everything that is logged.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func idOf(token string) string { return strings.Split(token, "_")[2] }

// token makes an access token and returns its value.
func (b *bed) token(t testing.TB, req apikeys.Create) string {
	t.Helper()
	if req.Name == "" {
		req.Name = string(req.Role)
	}
	_, v, err := b.Tokens.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Destroy()
	return v.RevealString()
}

// partner makes a partner whose keys may have the scopes orders:read and orders:write.
func (b *bed) partner(t testing.TB, name string) *apikeys.Partner {
	t.Helper()
	p, err := b.Partners.Create(t.Context(), name, apikeys.PartnerSpec{Scopes: []string{"orders:read", "orders:write"}, PublishableScopes: []string{"orders:read"}}, store.Once{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// manager makes a partner's own token.
func (b *bed) manager(t testing.TB, partner string) string {
	t.Helper()
	return b.token(t, apikeys.Create{Role: apikeys.Manager, Partner: partner})
}

// quick is a policy with round figures: lead 1m40s, retire delay 12m10s.
func quick() jwks.Policy {
	p := jwks.DefaultPolicy()
	p.Rotate = schedule.Schedule{Every: time.Hour}
	p.TokenTTL = 10 * time.Minute
	p.FetchFailure = 0
	p.MaxAge = time.Minute
	minute := time.Minute
	p.Consumers = []jwks.Consumer{{Name: "envoy", Cache: &minute}}
	return p
}

const (
	quickLead   = 100 * time.Second
	quickRetire = 12*time.Minute + 10*time.Second
)

func (b *bed) keyset(t testing.TB, name string) *jwks.Keyset {
	t.Helper()
	s, err := b.Keysets.Create(t.Context(), jwks.Create{Name: name, Issuer: "https://auth.example.com/" + name, Policy: quick()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// rotate brings a keyset to its next version, past the lead.
func (b *bed) rotate(t testing.TB, name string) *jwks.Keyset {
	t.Helper()
	s, err := b.Keysets.Rotate(t.Context(), jwks.Rotate{Name: name, Override: true, Reason: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// as is an HTTP client that sends a token ("" for none) from an address.
func as(token, from string) *http.Client {
	return &http.Client{
		Transport:     &identity{token: token, from: from, next: http.DefaultTransport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type identity struct {
	token, from string
	next        http.RoundTripper
}

func (i *identity) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if i.token != "" {
		r.Header.Set("Authorization", "Bearer "+i.token)
	}
	if i.from != "" {
		r.Header.Set("X-Forwarded-For", i.from)
	}
	return i.next.RoundTrip(r)
}

func (b *bed) keysets(token string) rotundav1connect.KeysetServiceClient {
	return rotundav1connect.NewKeysetServiceClient(as(token, home), b.http.URL)
}

func (b *bed) tokens(token string) rotundav1connect.TokenServiceClient {
	return rotundav1connect.NewTokenServiceClient(as(token, home), b.http.URL)
}

func (b *bed) trail(token string) rotundav1connect.AuditServiceClient {
	return rotundav1connect.NewAuditServiceClient(as(token, home), b.http.URL)
}

// answer is a response as a stranger to the protocol sees it.
type answer struct {
	status  int
	header  http.Header
	body    string
	code    string // of a Connect error; "" when it is none
	message string
	problem *rotundav1.Problem
}

// post calls a unary procedure with a JSON body.
func (b *bed) post(t testing.TB, token, from, procedure, body string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.http.URL+procedure, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return do(t, as(token, from), req)
}

// get fetches a path; header is a list of names and values.
func (b *bed) get(t testing.TB, token, from, path string, header ...string) answer {
	t.Helper()
	return b.send(t, token, from, http.MethodGet, path, header...)
}

func (b *bed) send(t testing.TB, token, from, method, path string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, b.http.URL+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return do(t, as(token, from), req)
}

func do(t testing.TB, c *http.Client, req *http.Request) answer {
	t.Helper()
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: res.StatusCode, header: res.Header, body: string(raw)}
	if res.StatusCode != http.StatusOK {
		a.read(t, raw)
	}
	return a
}

// read takes a Connect error apart, if it is one.
func (a *answer) read(t testing.TB, raw []byte) {
	t.Helper()
	var e struct {
		Code, Message string
		Details       []struct{ Type, Value string }
	}
	if json.Unmarshal(raw, &e) != nil {
		return
	}
	a.code, a.message = e.Code, e.Message
	for _, d := range e.Details {
		v, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(d.Value, "="))
		if err != nil || d.Type != "rotunda.v1.Problem" {
			t.Fatalf("detail %+v of %s: %v", d, raw, err)
		}
		a.problem = &rotundav1.Problem{}
		if err := proto.Unmarshal(v, a.problem); err != nil {
			t.Fatal(err)
		}
	}
}

// problemOf returns a client error's code and detail.
func problemOf(t testing.TB, err error) (connect.Code, *rotundav1.Problem) {
	t.Helper()
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		t.Fatalf("got %v, want a Connect error", err)
	}
	for _, d := range ce.Details() {
		if m, err := d.Value(); err == nil {
			if p, ok := m.(*rotundav1.Problem); ok {
				return ce.Code(), p
			}
		}
	}
	return ce.Code(), nil
}

// wantProblem fails unless err is a Connect error with a code and a reason.
func wantProblem(t testing.TB, err error, code connect.Code, reason string) *rotundav1.Problem {
	t.Helper()
	if err == nil {
		t.Fatalf("done, want %s %s", code, reason)
	}
	got, p := problemOf(t, err)
	if got != code || p.GetReason() != reason {
		t.Fatalf("got %s, reason %q (%v), want %s, %q", got, p.GetReason(), err, code, reason)
	}
	return p
}

// events reads the whole trail, oldest first.
func (b *bed) events(t testing.TB, q audit.Query) []audit.Event {
	t.Helper()
	q.Limit = 1000
	var all []audit.Event
	for {
		events, next, err := audit.List(context.WithoutCancel(t.Context()), b.db, q)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, events...)
		if q.Page = next; next == "" {
			slices.Reverse(all)
			return all
		}
	}
}

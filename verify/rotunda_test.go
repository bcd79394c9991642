package verify

import (
	"bufio"
	"context"
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
	"google.golang.org/protobuf/types/known/durationpb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// rotunda is a real server: the built binary with a database of its own.
type rotunda struct {
	url     string
	keysets rotundav1connect.KeysetServiceClient
	tokens  rotundav1connect.TokenServiceClient
	partner rotundav1connect.PartnerServiceClient
	keys    rotundav1connect.ApiKeyServiceClient
	secrets rotundav1connect.RequestSecretServiceClient
	gateway string // an access token
	stop    func()
}

var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "rotunda-verify-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "rotunda")
	out, err := exec.Command("go", "build", "-o", path, "../cmd/rotunda").CombinedOutput()
	if err != nil {
		return "", &buildError{string(out), err}
	}
	return path, nil
})

type buildError struct {
	out string
	err error
}

func (e *buildError) Error() string { return e.err.Error() + "\n" + e.out }

func TestMain(m *testing.M) {
	code := m.Run()
	if built.Load() {
		if path, err := program(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
	os.Exit(code)
}

var (
	built    atomic.Bool
	servesOn = regexp.MustCompile(`serves on (\S+)`)
)

func newRotunda(t testing.TB) *rotunda {
	t.Helper()
	built.Store(true)
	path, err := program()
	if err != nil {
		t.Fatalf("building the server: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	cmd := exec.Command(path, "serve", "--data-dir", dir, "--listen", "127.0.0.1:0")
	cmd.Dir = t.TempDir()
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + cmd.Dir}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	m := servesOn.FindStringSubmatch(line)
	if m == nil {
		stop()
		t.Fatalf("the server said %q (%v)\n%s", line, err, stderr.String())
	}
	go func() { _, _ = copyAll(discard{}, lines) }()
	admin, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	hc := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(admin)))
		return http.DefaultTransport.RoundTrip(r)
	})}
	s := &rotunda{
		url: m[1], stop: stop,
		keysets: rotundav1connect.NewKeysetServiceClient(hc, m[1]),
		tokens:  rotundav1connect.NewTokenServiceClient(hc, m[1]),
		partner: rotundav1connect.NewPartnerServiceClient(hc, m[1]),
		keys:    rotundav1connect.NewApiKeyServiceClient(hc, m[1]),
		secrets: rotundav1connect.NewRequestSecretServiceClient(hc, m[1]),
	}
	s.gateway = do(t, s.tokens.CreateToken, &rotundav1.CreateTokenRequest{Name: "edge", Role: rotundav1.Role_ROLE_GATEWAY}).GetValue()
	return s
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// do makes one call.
func do[Q, R any](t testing.TB, call func(context.Context, *connect.Request[Q]) (*connect.Response[R], error), q *Q) *R {
	t.Helper()
	res, err := call(t.Context(), connect.NewRequest(q))
	if err != nil {
		t.Fatalf("%T: %v", q, err)
	}
	return res.Msg
}

func (s *rotunda) client(t testing.TB) *Client {
	t.Helper()
	return newClient(t, s.url, func(c *ClientConfig) { c.Token = s.gateway })
}

func (s *rotunda) acme(t testing.TB) {
	t.Helper()
	do(t, s.partner.CreatePartner, &rotundav1.CreatePartnerRequest{Name: "acme", Scopes: []string{"orders:read", "orders:write"}})
}

func (s *rotunda) key(t testing.TB, change ...func(*rotundav1.CreateApiKeyRequest)) (id, value string) {
	t.Helper()
	q := &rotundav1.CreateApiKeyRequest{Partner: "acme", Name: "ci", Scopes: []string{"orders:read"}}
	for _, c := range change {
		c(q)
	}
	res := do(t, s.keys.CreateApiKey, q)
	return res.GetKey().GetId(), res.GetValue()
}

// shifted is a clock that can be put forward.
type shifted struct{ by atomic.Int64 }

func (s *shifted) now() time.Time          { return time.Now().Add(time.Duration(s.by.Load())) }
func (s *shifted) forward(d time.Duration) { s.by.Add(int64(d)) }

// Tokens of a real keyset through rotation, revocation and an outage.
func TestTokensWhenARealKeysetChanges(t *testing.T) {
	s := newRotunda(t)
	const name = "payments"
	do(t, s.keysets.CreateKeyset, &rotundav1.CreateKeysetRequest{Name: name, Issuer: testIssuer, Policy: &rotundav1.Policy{TokenTtl: durationpb.New(time.Hour)}})
	sign := func() (token, kid string) {
		t.Helper()
		res := do(t, s.keysets.Sign, &rotundav1.SignRequest{Name: name, Claims: `{"sub":"order-7","aud":"orders"}`})
		return res.GetToken(), res.GetKid()
	}
	var fetches atomic.Int64
	var statuses sync.Map
	clock := &shifted{}
	tokens, err := NewTokens(TokensConfig{
		Issuer: testIssuer, JWKSURL: s.url + "/keysets/" + name + "/jwks.json", Audiences: []string{testAudience}, Now: clock.now,
		MaxStale: 10 * time.Minute, FetchTimeout: time.Minute,
		HTTPClient: &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			n := fetches.Add(1)
			res, err := http.DefaultTransport.RoundTrip(r)
			if err == nil {
				statuses.Store(n, res.StatusCode)
			}
			return res, err
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := func(token, reason string) {
		t.Helper()
		_, err := tokens.Verify(t.Context(), token)
		wantReason(t, err, reason)
	}
	first, oldKid := sign()
	c, err := tokens.Verify(t.Context(), first)
	if err != nil || c.Subject != "order-7" || c.KeyID != oldKid {
		t.Fatalf("%+v, %v", c, err)
	}

	// A rotation: the new key was published before, so nothing is fetched.
	do(t, s.keysets.RotateKeyset, &rotundav1.RotateKeysetRequest{Name: name, OverrideLead: true, Reason: "test"})
	second, newKid := sign()
	if newKid == oldKid {
		t.Fatal("the keyset did not rotate")
	}
	want(second, "accepted")
	want(first, "accepted")
	if n := fetches.Load(); n != 1 {
		t.Errorf("%d fetches over a rotation, want 1", n)
	}

	// Nothing has changed: the server says so without a document.
	if err := tokens.Refresh(t.Context()); err != nil { // the new standby
		t.Fatal(err)
	}
	if err := tokens.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, _ := statuses.Load(fetches.Load()); status != http.StatusNotModified {
		t.Errorf("an unchanged JWKS was answered with %v", status)
	}

	// A key is revoked, and a key that nobody has seen signs: the first token of the new
	// key makes the set fresh, and the revoked key is out at once.
	do(t, s.keysets.RevokeKey, &rotundav1.RevokeKeyRequest{Name: name, Kid: newKid, Mode: rotundav1.RevokeMode_REVOKE_MODE_FRESH, Reason: "key_compromise"})
	third, _ := sign()
	want(third, "accepted")
	want(second, "unknown")
	want(first, "accepted")

	// A key that no longer signs is revoked: within the max-age it is out.
	do(t, s.keysets.RevokeKey, &rotundav1.RevokeKeyRequest{Name: name, Kid: oldKid, Reason: "key_compromise"})
	want(first, "accepted")
	clock.forward(time.Until(tokens.Status().ExpiresAt) + time.Second)
	want(first, "unknown")
	want(third, "accepted")

	// The server is gone: what is known is accepted for MaxStale, what is not can't be.
	s.stop()
	clock.forward(tokens.Status().ExpiresAt.Sub(clock.now()) + 5*time.Minute)
	want(third, "accepted")
	clock.forward(5*time.Minute + time.Second)
	want(third, "unavailable")
}

func TestDiscoveryWhenTheServerIsReal(t *testing.T) {
	s := newRotunda(t)
	do(t, s.keysets.CreateKeyset, &rotundav1.CreateKeysetRequest{Name: "default", Issuer: testIssuer, Algorithm: "Ed25519", Policy: &rotundav1.Policy{TokenTtl: durationpb.New(time.Hour)}})
	token := do(t, s.keysets.Sign, &rotundav1.SignRequest{Name: "default", Claims: `{"aud":["orders"],"scope":"a b"}`, Typ: "at+jwt"}).GetToken()
	for _, path := range []string{"/keysets/default/.well-known/openid-configuration", "/keysets/default/.well-known/oauth-authorization-server"} {
		tokens, err := NewTokens(TokensConfig{Issuer: testIssuer, DiscoveryURL: s.url + path, Audiences: []string{testAudience}, Type: "at+jwt", FetchTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if c, err := tokens.Verify(t.Context(), token); err != nil || c.Algorithm != "EdDSA" || !c.Has("b") {
			t.Errorf("%s: %+v, %v", path, c, err)
		}
	}
}

func TestVerifyKeyWhenTheServerIsReal(t *testing.T) {
	s := newRotunda(t)
	s.acme(t)
	client := s.client(t)
	want := func(q KeyRequest, reason Reason) Decision {
		t.Helper()
		d, err := client.VerifyKey(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if d.Reason != reason || d.OK() != (reason == ReasonOK) || d.Status != reason.status() {
			t.Errorf("%+v, want %s", d, reason)
		}
		return d
	}
	id, key := s.key(t)
	d := want(KeyRequest{Key: key, Scopes: []string{"orders:read"}}, ReasonOK)
	if d.Partner != "acme" || d.KeyID != id || d.Environment != "live" || d.Retiring || d.Publishable {
		t.Errorf("%+v", d)
	}
	if d := want(KeyRequest{Key: key, Scopes: []string{"orders:write"}}, ReasonScope); d.KeyID != id {
		t.Errorf("%+v", d)
	}
	want(KeyRequest{Key: key, Partner: "bolt"}, ReasonUnknown)
	want(KeyRequest{Key: key, Environment: "test"}, ReasonUnknown)
	want(KeyRequest{Key: "rk_live_nonsense"}, ReasonUnknown)
	last := byte('A')
	if key[len(key)-1] == last {
		last = 'B'
	}
	if d, err := client.VerifyKey(t.Context(), KeyRequest{Key: key[:len(key)-1] + string(last)}); err != nil || d.OK() || d.Partner != "" {
		t.Errorf("with another checksum: %+v, %v", d, err)
	}

	_, ranged := s.key(t, func(q *rotundav1.CreateApiKeyRequest) { q.Cidrs = []string{"203.0.113.0/24"} })
	want(KeyRequest{Key: ranged}, ReasonAddress)
	want(KeyRequest{Key: ranged, Address: mustAddr("198.51.100.1")}, ReasonAddress)
	want(KeyRequest{Key: ranged, Address: mustAddr("::ffff:203.0.113.9")}, ReasonOK)

	_, limited := s.key(t, func(q *rotundav1.CreateApiKeyRequest) {
		q.RateLimit = &rotundav1.RateLimit{Quota: 2, Window: durationpb.New(24 * time.Hour)}
	})
	if d := want(KeyRequest{Key: limited}, ReasonOK); d.Rate == nil || d.Rate.Quota != 2 || d.Rate.Remaining != 1 || d.Header.Get("RateLimit") == "" {
		t.Errorf("%+v", d)
	}
	want(KeyRequest{Key: limited, Scopes: []string{"orders:write"}}, ReasonScope) // takes nothing
	want(KeyRequest{Key: limited}, ReasonOK)
	if d := want(KeyRequest{Key: limited}, ReasonRate); d.Rate.RetryAfter <= 0 || d.Header.Get("Retry-After") == "" {
		t.Errorf("%+v", d)
	}

	// A roll: both work, and the old one says until when.
	rolled := do(t, s.keys.RollApiKey, &rotundav1.RollApiKeyRequest{Partner: "acme", Id: id, Grace: durationpb.New(time.Hour)})
	want(KeyRequest{Key: rolled.GetValue()}, ReasonOK)
	d = want(KeyRequest{Key: key}, ReasonOK)
	if !d.Retiring || d.ReplacedBy != rolled.GetKey().GetId() || d.GraceEndsAt.IsZero() || d.Header.Get("Deprecation") == "" || d.Header.Get("Sunset") == "" {
		t.Errorf("%+v", d)
	}
	// Revoked means revoked: the next answer is no.
	do(t, s.keys.RevokeApiKey, &rotundav1.RevokeApiKeyRequest{Partner: "acme", Id: id, Reason: rotundav1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE})
	want(KeyRequest{Key: key}, ReasonRevoked)
	want(KeyRequest{Key: rolled.GetValue()}, ReasonOK)

	// A gateway without a right to ask is not a client without a key.
	wrong := newClient(t, s.url, func(c *ClientConfig) { c.Token = rolled.GetValue() })
	if d, err := wrong.VerifyKey(t.Context(), KeyRequest{Key: rolled.GetValue()}); err == nil || d.OK() || !strings.Contains(err.Error(), "this gateway's access token") {
		t.Errorf("%+v, %v", d, err)
	}
	s.stop()
	if d, err := client.VerifyKey(t.Context(), KeyRequest{Key: rolled.GetValue()}); reasonOf(err) != "unavailable" || d.OK() {
		t.Errorf("without a server: %+v, %v", d, err)
	}
}

func TestVerifyRequestWhenTheServerIsReal(t *testing.T) {
	s := newRotunda(t)
	s.acme(t)
	made := do(t, s.secrets.CreateRequestSecret, &rotundav1.CreateRequestSecretRequest{Partner: "acme", Name: "signing", Scopes: []string{"orders:write"}})
	signer := newSigner(t, func(c *SignerConfig) { c.KeyID, c.Secret = made.GetSecret().GetId(), made.GetValue() })
	client := s.client(t)
	want := func(r *http.Request, o RequestOptions, reason Reason) Decision {
		t.Helper()
		d, err := client.VerifyRequest(r, o)
		if err != nil {
			t.Fatal(err)
		}
		if d.Reason != reason {
			t.Errorf("%s (%s), want %s", d.Reason, d.Message, reason)
		}
		return d
	}
	for _, body := range []string{"", "{}", strings.Repeat("x", sentBody), strings.Repeat("x", sentBody+1), strings.Repeat("x", defaultBody)} {
		for _, target := range []string{"/orders", "/orders?page=2&x=%20", "/a%2Fb?"} {
			r := arrived(t, signer, "POST", target, body)
			o := asSent
			o.Scopes = []string{"orders:write"}
			if d := want(r, o, ReasonOK); d.Partner != "acme" || d.KeyID != made.GetSecret().GetId() {
				t.Errorf("%+v", d)
			}
			again := arrived(t, signer, "POST", target, body)
			again.Header = r.Header
			want(again, o, ReasonReplay)
		}
	}
	r := arrived(t, signer, "POST", "/orders", "{}")
	r.RequestURI = "/orders/7"
	want(r, asSent, ReasonSignature)
	o := asSent
	o.Scopes = []string{"orders:read"}
	want(arrived(t, signer, "GET", "/orders", ""), o, ReasonScope)
	bare := newSigner(t, func(c *SignerConfig) {
		c.KeyID, c.Secret, c.Components = made.GetSecret().GetId(), made.GetValue(), []string{"@method", "@authority"}
	})
	want(arrived(t, bare, "GET", "/orders", ""), asSent, ReasonComponents)
	late := newSigner(t, func(c *SignerConfig) {
		c.KeyID, c.Secret, c.Now = made.GetSecret().GetId(), made.GetValue(), func() time.Time { return time.Now().Add(-time.Hour) }
	})
	want(arrived(t, late, "GET", "/orders", ""), asSent, ReasonWindow)
}

package verify

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

func newGuard(t testing.TB, o Options) *Guard {
	t.Helper()
	g, err := NewGuard(o)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// reached is a handler that notes what came through.
type reached struct {
	identity Identity
	header   http.Header
	body     string
	n        int
}

func (h *reached) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.n++
	h.identity, _ = From(r.Context())
	h.header = r.Header
	b, _ := io.ReadAll(r.Body)
	h.body = string(b)
	w.WriteHeader(http.StatusNoContent)
}

func reply(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func get(t testing.TB, header ...string) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/orders", http.NoBody)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// Every way in, over one guard, with a real server behind it.
func TestGuardWhenTheServerIsReal(t *testing.T) {
	s := newRotunda(t)
	s.acme(t)
	client := s.client(t)
	id, key := s.key(t, func(q *rotundav1.CreateApiKeyRequest) {
		q.RateLimit = &rotundav1.RateLimit{Quota: 5, Window: durationpb.New(24 * 3600e9)}
	})
	made := do(t, s.secrets.CreateRequestSecret, &rotundav1.CreateRequestSecretRequest{Partner: "acme", Name: "signing", Scopes: []string{"orders:read"}})
	signer := newSigner(t, func(c *SignerConfig) { c.KeyID, c.Secret = made.GetSecret().GetId(), made.GetValue() })
	i := newIssuer(t, "k1")
	g := newGuard(t, Options{Client: client, Tokens: i.tokens(t), Scheme: "https", Authority: "api.example", StripCredential: true})
	h := &reached{}
	reading, writing := g.Middleware("orders:read")(h), g.Middleware("orders:write")(h)

	res := reply(reading, get(t, "Authorization", "Bearer "+key, "X-Rotunda-Partner", "bolt", "X_Rotunda_Scopes", "all", "X-Other", "stays"))
	if res.Code != http.StatusNoContent || h.identity.Kind != KindAPIKey || h.identity.Partner != "acme" || h.identity.Subject != id || !h.identity.Has("orders:read") {
		t.Errorf("%d %+v", res.Code, h.identity)
	}
	if diff := cmp.Diff(http.Header{"X-Other": {"stays"}}, h.header); diff != "" {
		t.Error(diff)
	}
	if res.Header().Get("RateLimit") == "" {
		t.Errorf("headers %v", res.Header())
	}
	if res := reply(reading, get(t, "X-Api-Key", key)); res.Code != http.StatusNoContent {
		t.Errorf("X-Api-Key: %d", res.Code)
	}
	if res := reply(writing, get(t, "X-Api-Key", key)); res.Code != http.StatusForbidden || res.Body.String() != `{"error":"forbidden"}`+"\n" || !strings.Contains(res.Header().Get("WWW-Authenticate"), "insufficient_scope") {
		t.Errorf("scope: %d %s %v", res.Code, res.Body, res.Header())
	}
	for range 3 {
		reply(reading, get(t, "X-Api-Key", key))
	}
	if res := reply(reading, get(t, "X-Api-Key", key)); res.Code != http.StatusTooManyRequests || res.Header().Get("Retry-After") == "" || res.Body.String() != `{"error":"rate_limited"}`+"\n" {
		t.Errorf("rate: %d %s %v", res.Code, res.Body, res.Header())
	}

	r := arrived(t, signer, "POST", "/orders?x=1", "hello")
	if res := reply(reading, r); res.Code != http.StatusNoContent || h.identity.Kind != KindSignature || h.identity.Partner != "acme" || h.body != "hello" || h.header.Get("Signature") != "" {
		t.Errorf("signed: %d %+v, body %q, %v", res.Code, h.identity, h.body, h.header)
	}
	again := arrived(t, signer, "POST", "/orders?x=1", "hello")
	again.Header = r.Header
	if res := reply(reading, again); res.Code != http.StatusUnauthorized {
		t.Errorf("replay: %d", res.Code)
	}

	if res := reply(reading, get(t, "Authorization", "bearer "+i.sign(t, "k1"))); res.Code != http.StatusNoContent || h.identity.Kind != KindToken || h.identity.Subject != "user-7" || h.identity.Claims == nil {
		t.Errorf("token: %d %+v", res.Code, h.identity)
	}

	do(t, s.keys.RevokeApiKey, &rotundav1.RevokeApiKeyRequest{Partner: "acme", Id: id})
	before := h.n
	res = reply(reading, get(t, "X-Api-Key", key))
	if res.Code != http.StatusUnauthorized || h.n != before || res.Body.String() != `{"error":"unauthorized"}`+"\n" {
		t.Errorf("revoked: %d %s", res.Code, res.Body)
	}
	s.stop()
	res = reply(reading, get(t, "X-Api-Key", key))
	if res.Code != http.StatusServiceUnavailable || h.n != before || res.Header().Get("Retry-After") == "" {
		t.Errorf("without a server: %d %v", res.Code, res.Header())
	}
}

func TestGuardWhenCredentialsAreOdd(t *testing.T) {
	s := &scripted{}
	client := newClient(t, s.start(t).URL)
	i := newIssuer(t, "k1")
	token := i.sign(t, "k1")
	var log bytes.Buffer
	g := newGuard(t, Options{Client: client, Tokens: i.tokens(t), Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	h := &reached{}
	guarded := g.Middleware("orders:read")(h)
	for name, tc := range map[string]struct {
		header []string
		want   int
		asked  int
	}{
		"none":                  {nil, 401, 0},
		"key":                   {[]string{"Authorization", "Bearer rk_live_x"}, 204, 1},
		"scheme in other case":  {[]string{"Authorization", "bEARER rk_live_x"}, 204, 1},
		"two spaces":            {[]string{"Authorization", "Bearer  rk_live_x"}, 204, 1},
		"basic":                 {[]string{"Authorization", "Basic rk_live_x"}, 401, 0},
		"no scheme":             {[]string{"Authorization", "rk_live_x"}, 401, 0},
		"empty":                 {[]string{"Authorization", ""}, 401, 0},
		"nothing after it":      {[]string{"Authorization", "Bearer "}, 401, 0},
		"two in one line":       {[]string{"Authorization", "Bearer a, Bearer b"}, 401, 0},
		"two lines":             {[]string{"Authorization", "Bearer a", "Authorization", "Bearer b"}, 401, 0},
		"two fields":            {[]string{"Authorization", "Bearer a", "X-Api-Key", "b"}, 401, 0},
		"same in two fields":    {[]string{"Authorization", "Bearer a", "X-Api-Key", "a"}, 401, 0},
		"two keys":              {[]string{"X-Api-Key", "a", "X-Api-Key", "b"}, 401, 0},
		"empty key and another": {[]string{"X-Api-Key", "", "Authorization", "Bearer a"}, 401, 0},
		"key and signature":     {[]string{"X-Api-Key", "a", "Signature", "x"}, 401, 0},
		"broken signature":      {[]string{"Signature", "x"}, 401, 0},
		"control characters":    {[]string{"X-Api-Key", "a\x01"}, 401, 0},
		"long key":              {[]string{"X-Api-Key", strings.Repeat("k", 2000)}, 401, 0},
		"token":                 {[]string{"Authorization", "Bearer " + token}, 204, 0},
		"token as a key":        {[]string{"X-Api-Key", token}, 204, 1},
		"spoilt token":          {[]string{"Authorization", "Bearer " + token[:len(token)-4] + "AAAA"}, 401, 0},
		"dotted key":            {[]string{"Authorization", "Bearer my.key"}, 204, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s.keys = nil
			res := reply(guarded, get(t, tc.header...))
			if res.Code != tc.want || len(s.keys) != tc.asked {
				t.Errorf("%d %s, the server was asked %d times, want %d and %d", res.Code, res.Body, len(s.keys), tc.want, tc.asked)
			}
			if tc.want == 401 && res.Header().Get("WWW-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
		})
	}
	if strings.Contains(log.String(), token) || strings.Contains(log.String(), "rk_live_x") || !strings.Contains(log.String(), "reason=missing") {
		t.Errorf("the log holds a credential, or nothing:\n%s", log.String())
	}
}

func TestGuardWhenTokensLackScopes(t *testing.T) {
	i := newIssuer(t, "k1")
	g := newGuard(t, Options{Tokens: i.tokens(t)})
	h := &reached{}
	token := "Bearer " + i.sign(t, "k1")
	if res := reply(g.Middleware("orders:read", "orders:delete")(h), get(t, "Authorization", token)); res.Code != http.StatusForbidden {
		t.Errorf("%d", res.Code)
	}
	if res := reply(g.Middleware("orders:read")(Require("orders:delete")(h)), get(t, "Authorization", token)); res.Code != http.StatusForbidden {
		t.Errorf("behind it: %d", res.Code)
	}
	if res := reply(Require()(h), get(t, "Authorization", token)); res.Code != http.StatusUnauthorized {
		t.Errorf("without a guard: %d", res.Code)
	}
	if h.n != 0 {
		t.Error("a request came through")
	}
	if res := reply(g.Middleware()(Require("orders:write")(h)), get(t, "Authorization", token)); res.Code != http.StatusNoContent || h.header.Get("Authorization") == "" {
		t.Errorf("%d", res.Code)
	}
	// A token has no partner: where one is named, it can't be that one's.
	named := newGuard(t, Options{Tokens: i.tokens(t), Partner: "acme"})
	if res := reply(named.Middleware()(h), get(t, "Authorization", token)); res.Code != http.StatusUnauthorized {
		t.Errorf("%d", res.Code)
	}
	// Keys are not accepted where nobody can verify them.
	if res := reply(g.Middleware()(h), get(t, "X-Api-Key", "rk_live_x")); res.Code != http.StatusUnauthorized {
		t.Errorf("%d", res.Code)
	}
	if res := reply(g.Middleware()(h), arrived(t, newSigner(t), "GET", "/", "")); res.Code != http.StatusUnauthorized {
		t.Errorf("%d", res.Code)
	}
}

func TestGuardWhenSignaturesAreVerifiedHere(t *testing.T) {
	g := newGuard(t, Options{Keyring: newKeyring(t, secretKey(t)), Scheme: "https", Authority: "api.example", MaxBody: 100})
	h := &reached{}
	guarded := g.Middleware("orders:read")(h)
	if res := reply(guarded, arrived(t, newSigner(t), "POST", "/x", "hello")); res.Code != http.StatusNoContent || h.body != "hello" || h.identity.Partner != "acme" {
		t.Errorf("%d %+v", res.Code, h.identity)
	}
	if res := reply(guarded, arrived(t, newSigner(t), "POST", "/x", strings.Repeat("x", 200))); res.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("%d", res.Code)
	}
	if res := reply(g.Middleware("orders:write")(h), arrived(t, newSigner(t), "POST", "/x", "hello")); res.Code != http.StatusForbidden {
		t.Errorf("%d", res.Code)
	}
}

func TestClientAddressWhenProxiesStandBefore(t *testing.T) {
	g := newGuard(t, Options{Tokens: newIssuer(t).tokens(t), TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/64")}})
	for _, tc := range []struct {
		remote string
		lines  []string
		want   string
	}{
		{"203.0.113.9:1", nil, "203.0.113.9"},
		{"203.0.113.9:1", []string{"1.2.3.4"}, "203.0.113.9"},
		{"[::ffff:203.0.113.9]:1", []string{"1.2.3.4"}, "203.0.113.9"},
		{"10.0.0.1:1", nil, "10.0.0.1"},
		{"10.0.0.1:1", []string{"203.0.113.9"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"1.2.3.4, 203.0.113.9, 10.0.0.2"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"1.2.3.4", "203.0.113.9"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"203.0.113.9:4711"}, "203.0.113.9"},
		{"[2001:db8::1]:1", []string{"[2001:db8:1::9]:4711"}, "2001:db8:1::9"},
		{"[2001:db8::1]:1", []string{"2001:db8:1::9"}, "2001:db8:1::9"},
		{"[2001:db8::1%eth0]:1", []string{"203.0.113.9"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"10.0.0.9"}, "10.0.0.9"},
		{"10.0.0.1:1", []string{"unknown"}, ""},
		{"10.0.0.1:1", []string{"203.0.113.9, unknown, 10.0.0.2"}, ""},
		{"10.0.0.1:1", []string{""}, ""},
		{"@", []string{"203.0.113.9"}, ""},
		{"", nil, ""},
	} {
		if got := addressText(g.client(tc.remote, http.Header{"X-Forwarded-For": tc.lines})); got != tc.want {
			t.Errorf("%s %q: %q, want %q", tc.remote, tc.lines, got, tc.want)
		}
	}
}

func TestNewGuardWhenOptionsAreWrong(t *testing.T) {
	tokens := newIssuer(t).tokens(t)
	for name, o := range map[string]Options{
		"nothing":        {},
		"scheme alone":   {Tokens: tokens, Scheme: "https"},
		"quote in realm": {Tokens: tokens, Realm: `a"b`},
		"line in realm":  {Tokens: tokens, Realm: "a\r\nb"},
	} {
		if _, err := NewGuard(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// guardedService is a Connect service behind an interceptor; VerifyApiKey stands for
// any unary method, the audit service's Watch for a stream.
type guardedService struct {
	rotundav1connect.UnimplementedKeysetServiceHandler
	identity Identity
	header   http.Header
	fails    error
}

func (s *guardedService) ListKeysets(ctx context.Context, r *connect.Request[rotundav1.ListKeysetsRequest]) (*connect.Response[rotundav1.ListKeysetsResponse], error) {
	s.identity, _ = From(ctx)
	s.header = r.Header()
	if s.fails != nil {
		return nil, s.fails
	}
	return connect.NewResponse(&rotundav1.ListKeysetsResponse{}), nil
}

func (s *guardedService) Watch(ctx context.Context, r *connect.Request[rotundav1.WatchRequest], stream *connect.ServerStream[rotundav1.WatchResponse]) error {
	s.identity, _ = From(ctx)
	return stream.Send(&rotundav1.WatchResponse{})
}

// A guard that accepts signed requests accepts none where it can't see what was signed.
func TestInterceptorWhenACallIsSigned(t *testing.T) {
	g := newGuard(t, Options{Keyring: newKeyring(t, secretKey(t))})
	service := &guardedService{}
	mux := http.NewServeMux()
	mux.Handle(rotundav1connect.NewKeysetServiceHandler(service, connect.WithInterceptors(g.Interceptor(nil))))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	client := rotundav1connect.NewKeysetServiceClient(&http.Client{Transport: newSigner(t)}, server.URL)
	_, err := client.ListKeysets(t.Context(), connect.NewRequest(&rotundav1.ListKeysetsRequest{}))
	if connect.CodeOf(err) != connect.CodeUnauthenticated || service.identity.Kind != "" {
		t.Errorf("%v, %+v", err, service.identity)
	}
	// The middleware sees it, and lets it in.
	guarded := httptest.NewServer(g.Middleware("orders:read")(func() http.Handler {
		mux := http.NewServeMux()
		mux.Handle(rotundav1connect.NewKeysetServiceHandler(service))
		return mux
	}()))
	t.Cleanup(guarded.Close)
	client = rotundav1connect.NewKeysetServiceClient(&http.Client{Transport: newSigner(t)}, guarded.URL)
	if _, err := client.ListKeysets(t.Context(), connect.NewRequest(&rotundav1.ListKeysetsRequest{})); err != nil || service.identity.Partner != "acme" {
		t.Errorf("%v, %+v", err, service.identity)
	}
}

func TestInterceptorWhenCallsComeIn(t *testing.T) {
	script := &scripted{key: func(q *rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error) {
		res := &rotundav1.VerifyApiKeyResponse{Reason: rotundav1.VerifyReason_VERIFY_REASON_OK, Verified: accept(), Headers: []*rotundav1.Header{{Name: "Sunset", Value: "soon"}}}
		switch q.GetKey() {
		case "revoked":
			res.Reason = rotundav1.VerifyReason_VERIFY_REASON_REVOKED
		case "rate":
			res.Reason = rotundav1.VerifyReason_VERIFY_REASON_RATE
		case "scope":
			res.Reason = rotundav1.VerifyReason_VERIFY_REASON_SCOPE
		case "down":
			return nil, connect.NewError(connect.CodeUnavailable, errors.New("the database is gone"))
		}
		return res, nil
	}}
	g := newGuard(t, Options{Client: newClient(t, script.start(t).URL), StripCredential: true})
	service := &guardedService{}
	mux := http.NewServeMux()
	mux.Handle(rotundav1connect.NewKeysetServiceHandler(service, connect.WithInterceptors(g.Interceptor(func(s connect.Spec) []string {
		return []string{s.Procedure[strings.LastIndexByte(s.Procedure, '/')+1:]}
	}))))
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)

	for protocol, options := range [][]connect.ClientOption{nil, {connect.WithGRPC()}, {connect.WithGRPCWeb()}} {
		const grpc = 1
		client := rotundav1connect.NewKeysetServiceClient(server.Client(), server.URL, options...)
		unary := func(header ...string) (http.Header, error) {
			req := connect.NewRequest(&rotundav1.ListKeysetsRequest{})
			for i := 0; i < len(header); i += 2 {
				req.Header().Add(header[i], header[i+1])
			}
			res, err := client.ListKeysets(t.Context(), req)
			if err != nil {
				return nil, err
			}
			return res.Header(), nil
		}
		stream := func(header ...string) (http.Header, error) {
			req := connect.NewRequest(&rotundav1.WatchRequest{Name: "x"})
			for i := 0; i < len(header); i += 2 {
				req.Header().Add(header[i], header[i+1])
			}
			s, err := client.Watch(t.Context(), req)
			if err != nil {
				return nil, err
			}
			defer s.Close()
			if !s.Receive() {
				return nil, s.Err()
			}
			return s.ResponseHeader(), nil
		}
		for method, call := range map[string]func(...string) (http.Header, error){"ListKeysets": unary, "Watch": stream} {
			service.identity = Identity{}
			script.keys = nil
			h, err := call("X-Api-Key", "good", "X-Rotunda-Partner", "bolt")
			if err != nil || service.identity.Partner != "acme" || h.Get("Sunset") != "soon" {
				t.Errorf("%s: %v %+v %v", method, err, service.identity, h)
			}
			if got := script.keys[0]; got.GetScopes()[0] != method || got.GetAddress() != "127.0.0.1" {
				t.Errorf("%s: asked %v", method, got)
			}
			if method == "ListKeysets" && (service.header.Get("X-Api-Key") != "" || service.header.Get("X-Rotunda-Partner") != "") {
				t.Errorf("the handler gets %v", service.header)
			}
			for key, code := range map[string]connect.Code{
				"revoked": connect.CodeUnauthenticated, "rate": connect.CodeResourceExhausted, "scope": connect.CodePermissionDenied,
				"down": connect.CodeUnavailable, "": connect.CodeUnauthenticated,
			} {
				service.identity = Identity{}
				_, err := call("X-Api-Key", key)
				e, ok := errors.AsType[*connect.Error](err)
				if !ok || e.Code() != code || service.identity.Kind != "" || strings.Contains(e.Message(), "database") {
					t.Errorf("%s with %q: %v, want %s", method, key, err, code)
				}
				if ok && code == connect.CodeUnauthenticated && protocol != grpc && e.Meta().Get("WWW-Authenticate") == "" {
					t.Errorf("%s with %q: %v without WWW-Authenticate", method, key, e.Meta())
				}
			}
			if _, err := call("Signature", "x", "Signature-Input", "x"); connect.CodeOf(err) != connect.CodeUnauthenticated {
				t.Errorf("%s signed: %v", method, err)
			}
		}
		service.fails = connect.NewError(connect.CodeNotFound, errors.New("there is none"))
		_, err := unary("X-Api-Key", "good")
		if e, ok := errors.AsType[*connect.Error](err); !ok || e.Code() != connect.CodeNotFound || e.Meta().Get("Sunset") != "soon" {
			t.Errorf("an error of the handler: %v", err)
		}
		service.fails = nil
	}
}

func TestMiddlewareWhenItStripsTheCredential(t *testing.T) {
	i := newIssuer(t, "k1")
	g := newGuard(t, Options{Tokens: i.tokens(t), StripCredential: true})
	h := &reached{}
	r := get(t, "Authorization", "Bearer "+i.sign(t, "k1"), "X-Rotunda-Partner", "bolt", "X_Rotunda_Scopes", "all", "X-Other", "stays")
	before := r.Header.Clone()
	if res := reply(g.Middleware()(h), r); res.Code != http.StatusNoContent {
		t.Fatalf("%d", res.Code)
	}
	if diff := cmp.Diff(http.Header{"X-Other": {"stays"}}, h.header); diff != "" {
		t.Errorf("the handler gets %s", diff)
	}
	if diff := cmp.Diff(before, r.Header); diff != "" {
		t.Errorf("the caller's request was changed: %s", diff)
	}
}

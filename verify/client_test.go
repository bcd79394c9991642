package verify

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// scripted answers as a broken, newer or hostile server would; the real one is in
// e2e_test.go.
type scripted struct {
	rotundav1connect.UnimplementedVerificationServiceHandler
	mu       sync.Mutex
	key      func(*rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error)
	request  func(*rotundav1.VerifyRequestRequest) (*rotundav1.VerifyRequestResponse, error)
	keys     []*rotundav1.VerifyApiKeyRequest
	requests []*rotundav1.VerifyRequestRequest
	tokens   []string
}

func (s *scripted) VerifyApiKey(_ context.Context, r *connect.Request[rotundav1.VerifyApiKeyRequest]) (*connect.Response[rotundav1.VerifyApiKeyResponse], error) {
	s.mu.Lock()
	s.keys, s.tokens = append(s.keys, r.Msg), append(s.tokens, r.Header().Get("Authorization"))
	s.mu.Unlock()
	res, err := s.key(r.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

func (s *scripted) VerifyRequest(_ context.Context, r *connect.Request[rotundav1.VerifyRequestRequest]) (*connect.Response[rotundav1.VerifyRequestResponse], error) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Msg)
	s.mu.Unlock()
	res, err := s.request(r.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

func accept() *rotundav1.Verified {
	return &rotundav1.Verified{Partner: "acme", KeyId: "key_1", Scopes: []string{"orders:read"}}
}

func (s *scripted) start(t testing.TB) *httptest.Server {
	t.Helper()
	if s.key == nil {
		s.key = func(*rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error) {
			return &rotundav1.VerifyApiKeyResponse{Reason: rotundav1.VerifyReason_VERIFY_REASON_OK, Verified: accept()}, nil
		}
	}
	if s.request == nil {
		s.request = func(*rotundav1.VerifyRequestRequest) (*rotundav1.VerifyRequestResponse, error) {
			return &rotundav1.VerifyRequestResponse{Reason: rotundav1.VerifyReason_VERIFY_REASON_OK, Verified: accept()}, nil
		}
	}
	mux := http.NewServeMux()
	mux.Handle(rotundav1connect.NewVerificationServiceHandler(s))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

func newClient(t testing.TB, url string, change ...func(*ClientConfig)) *Client {
	t.Helper()
	cfg := ClientConfig{URL: url, Token: "rk_gateway_test", Timeout: 30 * time.Second}
	for _, c := range change {
		c(&cfg)
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestVerifyKeyWhenTheServerAnswers(t *testing.T) {
	s := &scripted{}
	client := newClient(t, s.start(t).URL+"/")
	d, err := client.VerifyKey(t.Context(), KeyRequest{
		Key: "rk_live_x", Scopes: []string{"orders:read"}, Address: netip.MustParseAddr("::ffff:203.0.113.9"),
		Partner: "acme", Environment: "live", Cost: 3,
	})
	if err != nil || !d.OK() || d.Partner != "acme" || d.KeyID != "key_1" || d.Status != http.StatusOK {
		t.Errorf("%+v, %v", d, err)
	}
	q := s.keys[0]
	if q.GetAddress() != "203.0.113.9" || q.GetCost() != 3 || q.GetPartner() != "acme" || q.GetEnvironment() != "live" || !q.GetWantHeaders() || s.tokens[0] != "Bearer rk_gateway_test" {
		t.Errorf("asked %v with %s", q, s.tokens[0])
	}
}

// Whatever is wrong with a server, its answer is not yes.
func TestVerifyKeyWhenTheServerIsWrong(t *testing.T) {
	for name, key := range map[string]func(*rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error){
		"nothing": func(*rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error) {
			return &rotundav1.VerifyApiKeyResponse{}, nil
		},
		"unknown reason": func(*rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error) {
			return &rotundav1.VerifyApiKeyResponse{Reason: 99, Verified: accept(), HttpStatus: 200}, nil
		},
		"yes to nobody": func(*rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error) {
			return &rotundav1.VerifyApiKeyResponse{Reason: 1, HttpStatus: 200}, nil
		},
		"unauthenticated": func(*rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error) {
			return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("no"))
		},
		"internal": func(*rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error) {
			return nil, connect.NewError(connect.CodeInternal, errors.New("no"))
		},
		"exhausted": func(*rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error) {
			return nil, connect.NewError(connect.CodeResourceExhausted, errors.New("no"))
		},
		"huge": func(*rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error) {
			v := accept()
			v.Name = strings.Repeat("x", 2*maxAnswer)
			return &rotundav1.VerifyApiKeyResponse{Reason: 1, Verified: v}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &scripted{key: key}
			d, err := newClient(t, s.start(t).URL).VerifyKey(t.Context(), KeyRequest{Key: "rk_live_x"})
			if !errors.Is(err, ErrUnavailable) || d.OK() {
				t.Errorf("%+v, %v", d, err)
			}
			if len(s.keys) != 1 {
				t.Errorf("asked %d times", len(s.keys))
			}
		})
	}
	t.Run("denied with status 200", func(t *testing.T) {
		s := &scripted{key: func(*rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error) {
			return &rotundav1.VerifyApiKeyResponse{Reason: rotundav1.VerifyReason_VERIFY_REASON_REVOKED, Verified: accept(), HttpStatus: 200,
				Headers: []*rotundav1.Header{{Name: "retry-after", Value: "7"}, {Name: "Set-Cookie", Value: "a=b"}, {Name: "Sunset", Value: "x\r\ny: z"}}}, nil
		}}
		d, err := newClient(t, s.start(t).URL).VerifyKey(t.Context(), KeyRequest{Key: "rk_live_x"})
		if err != nil || d.Reason != ReasonRevoked || d.Status != http.StatusUnauthorized {
			t.Errorf("%+v, %v", d, err)
		}
		if diff := cmp.Diff(http.Header{"Retry-After": {"7"}}, d.Header); diff != "" {
			t.Error(diff)
		}
	})
}

// What can't be a key is denied here.
func TestVerifyKeyWhenItCannotBeOne(t *testing.T) {
	client := newClient(t, "http://127.0.0.1:1")
	for key, want := range map[string]Reason{"": ReasonMissing, "rk\x00": ReasonMalformed, "rk_\xff": ReasonMalformed, "rk_é": ReasonMalformed, strings.Repeat("k", 1025): ReasonMalformed} {
		if d, err := client.VerifyKey(t.Context(), KeyRequest{Key: key}); err != nil || d.Reason != want || d.OK() {
			t.Errorf("%.10q: %+v, %v", key, d, err)
		}
	}
}

// dropping is a server in front of another that cuts its first connections after
// it has read something from them.
func dropping(t *testing.T, backend string, first int) (url string, dials func() int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var n atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if n.Add(1) <= int64(first) {
				_, _ = c.Read(make([]byte, 1))
				_ = c.(*net.TCPConn).SetLinger(0) // so that the other end sees a reset
				_ = c.Close()
				continue
			}
			to, err := net.Dial("tcp", backend)
			if err != nil {
				_ = c.Close()
				continue
			}
			go func() { _, _ = copyAll(to, c); _ = to.Close() }()
			go func() { _, _ = copyAll(c, to); _ = c.Close() }()
		}
	}()
	return "http://" + l.Addr().String(), func() int { return int(n.Load()) }
}

func TestVerifyKeyWhenTheConnectionBreaks(t *testing.T) {
	for name, tc := range map[string]struct {
		first int
		cost  int64
		ok    bool
		asked int
	}{
		"once":               {1, 0, true, 2},
		"twice":              {2, 1, false, 2},
		"once, of some cost": {1, 5, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := &scripted{}
			url, dials := dropping(t, s.start(t).Listener.Addr().String(), tc.first)
			client := newClient(t, url, func(c *ClientConfig) {
				c.HTTPClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			})
			d, err := client.VerifyKey(t.Context(), KeyRequest{Key: "rk_live_x", Cost: tc.cost})
			if d.OK() != tc.ok || (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrUnavailable) {
				t.Errorf("%+v, %v", d, err)
			}
			if dials() != tc.asked {
				t.Errorf("asked %d times, want %d: %v", dials(), tc.asked, err)
			}
		})
	}
	// A signed request is asked about once: its nonce may have been spent.
	s := &scripted{}
	url, dials := dropping(t, s.start(t).Listener.Addr().String(), 1)
	d, err := newClient(t, url).VerifyRequest(arrived(t, newSigner(t), "GET", "/", ""), asSent)
	if !errors.Is(err, ErrUnavailable) || d.OK() || dials() != 1 {
		t.Errorf("%+v, %v, asked %d times", d, err, dials())
	}
}

func TestVerifyKeyWhenTheServerHangs(t *testing.T) {
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = copyAll(io.Discard, r.Body) // only then a server sees that its client is gone
		<-r.Context().Done()
	})
	d, err := newClient(t, s.URL, func(c *ClientConfig) { c.Timeout = 50 * time.Millisecond }).VerifyKey(t.Context(), KeyRequest{Key: "rk_live_x"})
	if !errors.Is(err, ErrUnavailable) || d.OK() {
		t.Errorf("%+v, %v", d, err)
	}
}

// The access token goes to the server that is configured, and nowhere else.
func TestClientWhenItIsRedirected(t *testing.T) {
	elsewhere := 0
	other := serve(t, func(http.ResponseWriter, *http.Request) { elsewhere++ })
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	if _, err := newClient(t, s.URL).VerifyKey(t.Context(), KeyRequest{Key: "rk_live_x"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if elsewhere != 0 {
		t.Error("the question came to another server")
	}
}

func TestClientWhenItsTokenChanges(t *testing.T) {
	s := &scripted{}
	n := 0
	client := newClient(t, s.start(t).URL, func(c *ClientConfig) {
		c.Token, c.TokenFrom = "", func(context.Context) (string, error) {
			if n++; n == 3 {
				return "", errors.New("the file is gone")
			}
			return strings.Repeat("x", n), nil
		}
	})
	for range 2 {
		if _, err := client.VerifyKey(t.Context(), KeyRequest{Key: "k"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.VerifyKey(t.Context(), KeyRequest{Key: "k"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff([]string{"Bearer x", "Bearer xx"}, s.tokens); diff != "" {
		t.Error(diff)
	}
}

func TestNewClientWhenConfigurationIsWrong(t *testing.T) {
	for name, cfg := range map[string]ClientConfig{
		"plain http":   {URL: "http://rotunda.example", Token: "x"},
		"no URL":       {Token: "x"},
		"no token":     {URL: "https://rotunda.example"},
		"two tokens":   {URL: "https://rotunda.example", Token: "x", TokenFrom: func(context.Context) (string, error) { return "", nil }},
		"long timeout": {URL: "https://rotunda.example", Token: "x", Timeout: time.Hour},
		"negative":     {URL: "https://rotunda.example", Token: "x", Timeout: -1},
	} {
		if _, err := NewClient(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Only what the signature covers leaves the gateway.
func TestVerifyRequestWhenItIsSent(t *testing.T) {
	s := &scripted{}
	client := newClient(t, s.start(t).URL)
	signer := newSigner(t, func(c *SignerConfig) {
		c.Components = []string{"@method", "@authority", "@path", "@query", "content-digest", "x-trace"}
	})
	ask := func(size int, change func(*http.Request)) (Decision, *rotundav1.VerifyRequestRequest) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "POST", "https://api.example/orders?x=1", strings.NewReader(strings.Repeat("b", size)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Add("X-Trace", "one")
		req.Header.Add("X-Trace", "two")
		out, err := signer.Sign(req)
		if err != nil {
			t.Fatal(err)
		}
		in := httptest.NewRequestWithContext(t.Context(), "POST", "/orders?x=1", strings.NewReader(strings.Repeat("b", size)))
		in.Header = out.Header
		in.Header.Set("Cookie", "session=secret")
		in.Header.Set("Authorization", "Bearer secret")
		change(in)
		before := len(s.requests)
		d, err := client.VerifyRequest(in, asSent)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.requests) == before {
			return d, nil
		}
		return d, s.requests[before]
	}
	d, q := ask(10, func(*http.Request) {})
	if !d.OK() {
		t.Fatalf("%+v", d)
	}
	var names []string
	for _, h := range q.GetHeaders() {
		names = append(names, h.GetName())
	}
	if diff := cmp.Diff([]string{"Signature-Input", "Signature", "Content-Digest", "X-Trace", "X-Trace"}, names); diff != "" {
		t.Error(diff)
	}
	if q.GetTarget() != "/orders?x=1" || q.GetScheme() != "https" || q.GetAuthority() != "api.example" || len(q.GetBody()) != 10 || q.GetBodyOmitted() {
		t.Errorf("asked %v", q)
	}
	if d, q := ask(200_000, func(*http.Request) {}); !d.OK() || len(q.GetBody()) != 0 || !q.GetBodyOmitted() || !q.GetContentDigestVerified() {
		t.Errorf("a long body: %+v, %v", d, q)
	}
	for name, tc := range map[string]struct {
		size   int
		change func(*http.Request)
		want   Reason
	}{
		"body":                   {10, func(r *http.Request) { r.Header.Set("Content-Digest", "sha-256=:AAAA:") }, ReasonDigest},
		"long body, no digest":   {200_000, func(r *http.Request) { r.Header.Del("Content-Digest") }, ReasonDigest},
		"too long body":          {2 << 20, func(*http.Request) {}, ReasonTooLarge},
		"no signature":           {10, func(r *http.Request) { r.Header.Del("Signature") }, ReasonMissing},
		"field that is no UTF-8": {10, func(r *http.Request) { r.Header.Set("X-Trace", "\xff") }, ReasonMalformed},
		"long field":             {10, func(r *http.Request) { r.Header.Set("X-Trace", strings.Repeat("x", 9000)) }, ReasonMalformed},
		"many fields":            {10, func(r *http.Request) { r.Header["X-Trace"] = make([]string, 300) }, ReasonMalformed},
		"long target":            {10, func(r *http.Request) { r.RequestURI = "/" + strings.Repeat("x", 9000) }, ReasonMalformed},
	} {
		if d, q := ask(tc.size, tc.change); d.Reason != tc.want || q != nil {
			t.Errorf("%s: %+v, and the server was asked: %t", name, d, q != nil)
		}
	}
}

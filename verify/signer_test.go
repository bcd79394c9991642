package verify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// testSecret is 64 bytes that everybody may know.
const testSecret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw=="

func newKeyring(t testing.TB, keys ...LocalKey) *Keyring {
	t.Helper()
	k, err := NewKeyring(KeyringConfig{Keys: keys, Nonces: NewNonces(NoncesConfig{Max: 10_000})})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func secretKey(t testing.TB) LocalKey {
	t.Helper()
	k, err := SecretKey(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	return LocalKey{ID: "sk_1", Key: k, Partner: "acme", Scopes: []string{"orders:read"}}
}

func newSigner(t testing.TB, change ...func(*SignerConfig)) *Signer {
	t.Helper()
	cfg := SignerConfig{KeyID: "sk_1", Secret: testSecret}
	for _, c := range change {
		c(&cfg)
	}
	s, err := NewSigner(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// received is what a server saw of a signed request.
type received struct {
	decision Decision
	header   http.Header
	body     string
	path     string
}

// verifier is a server that verifies what it gets.
func verifier(t testing.TB, k *Keyring) (*httptest.Server, func() []received) {
	t.Helper()
	var mu sync.Mutex
	var got []received
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		d, err := k.VerifyRequest(r, RequestOptions{})
		if err != nil {
			t.Errorf("verifying: %v", err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("reading the body again: %v", err)
		}
		mu.Lock()
		got = append(got, received{d, r.Header, string(body), r.RequestURI})
		mu.Unlock()
		w.WriteHeader(d.Status)
	})
	return s, func() []received { mu.Lock(); defer mu.Unlock(); return got }
}

func TestSignerWhenRequestsDiffer(t *testing.T) {
	ring := newKeyring(t, secretKey(t))
	s, got := verifier(t, ring)
	client := &http.Client{Transport: newSigner(t)}
	for name, tc := range map[string]struct {
		method, path, body string
		unknownLength      bool
	}{
		"GET":             {"GET", "/orders", "", false},
		"query":           {"GET", "/orders?page=2&x=%20y", "", false},
		"empty query":     {"GET", "/orders?", "", false},
		"escaped path":    {"GET", "/a%2Fb/%C3%A4", "", false},
		"root":            {"GET", "", "", false},
		"body":            {"POST", "/orders", `{"a":1}`, false},
		"unknown length":  {"PUT", "/orders", strings.Repeat("x", 200_000), true},
		"DELETE":          {"DELETE", "/orders/7", "", false},
		"body with query": {"PATCH", "/orders?x=1", "{}", false},
	} {
		t.Run(name, func(t *testing.T) {
			var body io.Reader
			if tc.body != "" {
				body = strings.NewReader(tc.body)
			}
			if tc.unknownLength {
				body = io.MultiReader(strings.NewReader(tc.body[:10]), strings.NewReader(tc.body[10:]))
			}
			req, err := http.NewRequestWithContext(t.Context(), tc.method, s.URL+tc.path, body)
			if err != nil {
				t.Fatal(err)
			}
			before := req.Header.Clone()
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			all := got()
			last := all[len(all)-1]
			if last.decision.Reason != ReasonOK || last.decision.Partner != "acme" || last.body != tc.body {
				t.Errorf("%+v (%s), body of %d bytes", last.decision, last.decision.Message, len(last.body))
			}
			if diff := cmp.Diff(before, req.Header); diff != "" {
				t.Errorf("the caller's request was changed: %s", diff)
			}
			if hasQuery := strings.Contains(tc.path, "?"); hasQuery != strings.Contains(last.header.Get("Signature-Input"), `"@query"`) {
				t.Errorf("Signature-Input %s", last.header.Get("Signature-Input"))
			}
			if (tc.body != "") != (last.header.Get("Content-Digest") != "") {
				t.Errorf("Content-Digest %q", last.header.Get("Content-Digest"))
			}
		})
	}
}

func TestSignerWhenEachKindOfKeySigns(t *testing.T) {
	for _, alg := range []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256, jose.RS256} {
		private := newPrivateKey(t, alg)
		public, err := httpsig.NewPublicKey(private.Public())
		if err != nil {
			t.Fatal(err)
		}
		s, got := verifier(t, newKeyring(t, LocalKey{ID: "pk", Key: public, Partner: "acme"}))
		signer := newSigner(t, func(c *SignerConfig) { c.KeyID, c.Secret, c.PrivateKey = "pk", "", private })
		res, err := (&http.Client{Transport: signer}).Post(s.URL+"/x", "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if d := got()[0].decision; d.Reason != ReasonOK {
			t.Errorf("%s: %+v", alg, d)
		}
	}
}

// A redirect is followed with a signature of its own, and never to a host that is
// not allowed.
func TestSignerWhenRedirected(t *testing.T) {
	var elsewhere int
	stranger := serve(t, func(http.ResponseWriter, *http.Request) { elsewhere++ })
	ring := newKeyring(t, secretKey(t))
	var inputs []string
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		d, err := ring.VerifyRequest(r, RequestOptions{})
		if err != nil || !d.OK() {
			t.Errorf("%s: %+v, %v", r.URL, d, err)
		}
		inputs = append(inputs, r.Header.Get("Signature-Input"))
		switch r.URL.Path {
		case "/here":
			http.Redirect(w, r, "/there?x=1", http.StatusTemporaryRedirect)
		case "/away":
			http.Redirect(w, r, stranger.URL+"/", http.StatusTemporaryRedirect)
		}
	})
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: newSigner(t, func(c *SignerConfig) { c.Hosts = []string{u.Host} })}
	res, err := client.Post(s.URL+"/here", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK || len(inputs) != 2 || inputs[0] == inputs[1] {
		t.Errorf("%s, signed as %q", res.Status, inputs)
	}
	if _, err := client.Post(s.URL+"/away", "text/plain", strings.NewReader("hello")); !errors.Is(err, ErrHost) {
		t.Errorf("to a stranger: %v", err)
	}
	if elsewhere != 0 {
		t.Error("a request came to a host that is not allowed")
	}
	// The Host field goes where the URL does not say.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "other.example"
	if _, err := client.Do(req); !errors.Is(err, ErrHost) {
		t.Errorf("with another Host: %v", err)
	}
}

// Each attempt has a nonce of its own; the same request sent twice is a replay.
func TestSignerWhenARequestIsRepeated(t *testing.T) {
	s, got := verifier(t, newKeyring(t, secretKey(t)))
	signer := newSigner(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/x", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		res, err := signer.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	once, err := signer.Sign(req)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		res, err := http.DefaultTransport.RoundTrip(once.Clone(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	var reasons []Reason
	nonces := map[string]bool{}
	for _, r := range got() {
		reasons = append(reasons, r.decision.Reason)
		_, nonce, _ := strings.Cut(r.header.Get("Signature-Input"), `nonce="`)
		nonce, _, _ = strings.Cut(nonce, `"`)
		if len(nonce) < 22 {
			t.Errorf("the nonce %q has less than 128 bits", nonce)
		}
		nonces[nonce] = true
	}
	if diff := cmp.Diff([]Reason{ReasonOK, ReasonOK, ReasonOK, ReasonOK, ReasonReplay}, reasons); diff != "" {
		t.Error(diff)
	}
	if len(nonces) != 4 {
		t.Errorf("%d nonces, want 4", len(nonces))
	}
}

// closed says whether a body was closed.
type closed struct {
	io.Reader
	yes bool
}

func (c *closed) Close() error { c.yes = true; return nil }

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }

func TestSignerWhenARequestCannotBeSigned(t *testing.T) {
	base := roundTripper(func(*http.Request) (*http.Response, error) {
		t.Error("a request was sent")
		return nil, errors.New("sent")
	})
	signer := newSigner(t, func(c *SignerConfig) { c.MaxBody, c.Base = 10, base })
	for name, tc := range map[string]struct {
		change func(*http.Request)
		words  string
	}{
		"long body":  {func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("12345678901")) }, "more than 10 bytes"},
		"body fails": {func(r *http.Request) { r.Body = io.NopCloser(failing{}) }, "the disk is gone"},
		"GetBody fails": {func(r *http.Request) {
			r.GetBody = func() (io.ReadCloser, error) { return nil, errors.New("once only") }
		}, "once only"},
		"wrong length":    {func(r *http.Request) { r.ContentLength = 9 }, "ContentLength says 9"},
		"signed already":  {func(r *http.Request) { r.Header.Set("Signature-Input", "x=()") }, "signed already"},
		"user in the URL": {func(r *http.Request) { r.URL.User = url.UserPassword("a", "b") }, "user name"},
		"CONNECT":         {func(r *http.Request) { r.Method = http.MethodConnect }, "CONNECT"},
		"no host":         {func(r *http.Request) { r.URL.Host = "" }, "host"},
		"opaque":          {func(r *http.Request) { r.URL.Opaque = "//x/y" }, "host"},
		"odd authority":   {func(r *http.Request) { r.Host = "exämple.org" }, "authority"},
		"cancelled": {func(r *http.Request) {
			ctx, cancel := context.WithCancel(r.Context())
			cancel()
			*r = *r.WithContext(ctx)
		}, "context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.example/x", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			body := &closed{Reader: strings.NewReader("12345")}
			req.Body = body
			tc.change(req)
			was := req.Body
			_, err = signer.RoundTrip(req)
			if err == nil || !strings.Contains(err.Error(), tc.words) {
				t.Errorf("error %v, want %q", err, tc.words)
			}
			if was == io.ReadCloser(body) && !body.yes {
				t.Error("the body was not closed")
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A body that can be had again is not kept in memory, whatever its size.
func TestSignerWhenTheBodyIsLargeAndCanBeHadAgain(t *testing.T) {
	const size = 8 << 20
	content := bytes.Repeat([]byte("x"), size)
	var digest string
	var n int64
	signer := newSigner(t, func(c *SignerConfig) {
		c.MaxBody = 1000
		c.Base = roundTripper(func(r *http.Request) (*http.Response, error) {
			digest = r.Header.Get("Content-Digest")
			var err error
			n, err = io.Copy(io.Discard, r.Body)
			return &http.Response{StatusCode: 200, Body: http.NoBody}, err
		})
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.example/x", bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	res, err := signer.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if n != size || digest != httpsig.Digest(content) {
		t.Errorf("%d bytes sent, digest %s", n, digest)
	}
}

func TestNewSignerWhenConfigurationIsWrong(t *testing.T) {
	for name, change := range map[string]func(*SignerConfig){
		"no key id":        func(c *SignerConfig) { c.KeyID = "" },
		"no key":           func(c *SignerConfig) { c.Secret = "" },
		"two keys":         func(c *SignerConfig) { c.PrivateKey = newPrivateKey(t, jose.EdDSA) },
		"P-384":            func(c *SignerConfig) { c.Secret, c.PrivateKey = "", newPrivateKey(t, jose.ES384) },
		"no base64":        func(c *SignerConfig) { c.Secret = "whsec_!" },
		"short":            func(c *SignerConfig) { c.Secret = "whsec_AAAA" },
		"webhook key pair": func(c *SignerConfig) { c.Secret = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=" },
		"no authority":     func(c *SignerConfig) { c.Components = []string{"@method", "@path"} },
	} {
		cfg := SignerConfig{KeyID: "sk_1", Secret: testSecret}
		change(&cfg)
		_, err := NewSigner(cfg)
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if cfg.Secret != "" && strings.Contains(err.Error(), strings.TrimPrefix(cfg.Secret, "whsec_")) {
			t.Errorf("%s: the error holds the secret: %v", name, err)
		}
	}
}

// What a program may print of a configuration holds no secret.
func TestSecretsWhenPrinted(t *testing.T) {
	signer := newSigner(t)
	client, err := NewClient(ClientConfig{URL: "https://rotunda.example", Token: "rk_gateway_abc"})
	if err != nil {
		t.Fatal(err)
	}
	ring := newKeyring(t, secretKey(t))
	var private crypto.Signer = newPrivateKey(t, jose.EdDSA)
	asymmetric := newSigner(t, func(c *SignerConfig) { c.Secret, c.PrivateKey = "", private })
	private2, err := httpsig.NewPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	guard, err := NewGuard(Options{Keyring: newKeyring(t, LocalKey{ID: "x", Key: private2})})
	if err != nil {
		t.Fatal(err)
	}
	raw := fmt.Sprintf("%v", []byte{0, 1, 2, 3, 4, 5, 6, 7})
	seed := private.(ed25519.PrivateKey).Seed()[:8]
	for _, v := range []any{
		SignerConfig{KeyID: "sk_1", Secret: testSecret}, &SignerConfig{Secret: testSecret}, signer, *signer,
		ClientConfig{URL: "https://rotunda.example", Token: "rk_gateway_abc"}, client, *client,
		KeyRequest{Key: "rk_live_key"}, ring, *ring, LocalKey{ID: "x", Key: asymmetric.key}, guard, *guard, asymmetric, *asymmetric, SignerConfig{PrivateKey: private},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
			text := fmt.Sprintf(verb, v)
			for _, secret := range []string{testSecret[6:], "rk_gateway_abc", "rk_live_key", strings.Trim(raw, "[]"), "0x0, 0x1, 0x2, 0x3", "0001020304",
				strings.Trim(fmt.Sprint(seed), "[]"), fmt.Sprintf("%x", seed),
			} {
				if strings.Contains(text, secret) {
					t.Errorf("%T with %s prints %s", v, verb, secret)
				}
			}
		}
	}
}

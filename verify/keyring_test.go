package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// arrived is a signed request as a server gets it.
func arrived(t testing.TB, s *Signer, method, target, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://api.example"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body == "" {
		req.Body, req.GetBody = http.NoBody, nil
	}
	out, err := s.Sign(req)
	if err != nil {
		t.Fatal(err)
	}
	in := httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	in.Host, in.Header = "api.example", out.Header
	if body == "" {
		in.Body, in.ContentLength = http.NoBody, 0
	}
	return in
}

var asSent = RequestOptions{Scheme: "https", Authority: "api.example"}

func TestRequestWhenItWasChanged(t *testing.T) {
	signer := newSigner(t)
	ring := newKeyring(t, secretKey(t))
	for name, tc := range map[string]struct {
		change  func(*http.Request)
		options RequestOptions
		want    Reason
	}{
		"not at all":           {func(*http.Request) {}, asSent, ReasonOK},
		"method":               {func(r *http.Request) { r.Method = "PUT" }, asSent, ReasonSignature},
		"path":                 {func(r *http.Request) { r.RequestURI = "/orders/8?x=1" }, asSent, ReasonSignature},
		"query":                {func(r *http.Request) { r.RequestURI = "/orders?x=2" }, asSent, ReasonSignature},
		"query dropped":        {func(r *http.Request) { r.RequestURI = "/orders" }, asSent, ReasonSignature},
		"URL without the line": {func(r *http.Request) { r.URL.Path = "/handled/elsewhere" }, asSent, ReasonOK},
		"absolute target":      {func(r *http.Request) { r.RequestURI = "https://api.example/orders?x=1" }, asSent, ReasonMalformed},
		"host":                 {func(r *http.Request) { r.Host = "other.example" }, RequestOptions{Scheme: "https"}, ReasonSignature},
		"host of the proxy":    {func(r *http.Request) { r.Host = "10.0.0.7:8080" }, asSent, ReasonOK},
		"other authority":      {func(*http.Request) {}, RequestOptions{Scheme: "https", Authority: "other.example"}, ReasonSignature},
		"body":                 {func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("hellO")) }, asSent, ReasonDigest},
		"body dropped":         {func(r *http.Request) { r.Body, r.ContentLength = http.NoBody, 0 }, asSent, ReasonDigest},
		"digest dropped":       {func(r *http.Request) { r.Header.Del("Content-Digest") }, asSent, ReasonComponents},
		"digest of the change": {func(r *http.Request) {
			r.Header.Set("Content-Digest", httpsig.Digest([]byte("hellO")))
			r.Body = io.NopCloser(strings.NewReader("hellO"))
		}, asSent, ReasonSignature},
		"long body": {func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(strings.Repeat("x", 2000)))
			r.ContentLength = -1
		}, RequestOptions{Scheme: "https", Authority: "api.example", MaxBody: 1000}, ReasonTooLarge},
		"long body announced": {func(r *http.Request) { r.ContentLength = 2000 }, RequestOptions{Scheme: "https", Authority: "api.example", MaxBody: 1000}, ReasonTooLarge},
		"body breaks off":     {func(r *http.Request) { r.Body = io.NopCloser(failing{}) }, asSent, ReasonMalformed},
		"signature dropped":   {func(r *http.Request) { r.Header.Del("Signature") }, asSent, ReasonMissing},
		"input dropped":       {func(r *http.Request) { r.Header.Del("Signature-Input") }, asSent, ReasonMissing},
		"signature twice":     {func(r *http.Request) { r.Header.Add("Signature", r.Header.Get("Signature")) }, asSent, ReasonMalformed},
		"key of nobody":       {func(r *http.Request) { replace(r, `keyid="sk_1"`, `keyid="sk_2"`) }, asSent, ReasonUnknown},
		"no nonce":            {func(r *http.Request) { replace(r, "nonce", "tag") }, asSent, ReasonComponents},
		"component dropped":   {func(r *http.Request) { replace(r, `"@path" `, "") }, asSent, ReasonComponents},
		"other algorithm":     {func(r *http.Request) { replace(r, `;keyid`, `;alg="ed25519";keyid`) }, asSent, ReasonAlgorithm},
		"older":               {func(r *http.Request) { replace(r, "created=1", "created=") }, asSent, ReasonWindow},
		"scope that is there": {func(*http.Request) {}, RequestOptions{Scheme: "https", Authority: "api.example", Scopes: []string{"orders:read"}}, ReasonOK},
		"scope that is not":   {func(*http.Request) {}, RequestOptions{Scheme: "https", Authority: "api.example", Scopes: []string{"orders:read", "orders:write"}}, ReasonScope},
		"other partner":       {func(*http.Request) {}, RequestOptions{Scheme: "https", Authority: "api.example", Partner: "bolt"}, ReasonUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			r := arrived(t, signer, "POST", "/orders?x=1", "hello")
			tc.change(r)
			d, err := ring.VerifyRequest(r, tc.options)
			if err != nil {
				t.Fatal(err)
			}
			if d.Reason != tc.want {
				t.Errorf("%s (%s), want %s", d.Reason, d.Message, tc.want)
			}
			if d.OK() {
				if body, err := io.ReadAll(r.Body); err != nil || string(body) != "hello" {
					t.Errorf("the handler gets %q, %v", body, err)
				}
			}
			if (d.Reason == ReasonOK) != d.OK() || d.OK() != (d.Status == http.StatusOK) {
				t.Errorf("%+v", d)
			}
		})
	}
}

func replace(r *http.Request, old, with string) {
	in := r.Header.Get("Signature-Input")
	out := strings.Replace(in, old, with, 1)
	if in == out {
		panic("nothing to replace: " + old)
	}
	r.Header.Set("Signature-Input", out)
}

// A signature that leaves out what the policy asks for is refused, also when it is right.
func TestRequestWhenTheSignatureCoversLess(t *testing.T) {
	ring := newKeyring(t, secretKey(t))
	for _, tc := range []struct {
		components string
		want       Reason
	}{
		{"@authority @path @query content-digest", ReasonComponents},
		{"@method @target-uri content-digest", ReasonOK}, // it covers what is in it
		{"@method @authority @query content-digest", ReasonComponents},
		{"@method @authority @path content-digest", ReasonComponents},
		{"@method @authority @path @query", ReasonComponents},
	} {
		signer := newSigner(t, func(c *SignerConfig) { c.Components = strings.Fields(tc.components) })
		if d, err := ring.VerifyRequest(arrived(t, signer, "POST", "/orders?x=1", "hello"), asSent); err != nil || d.Reason != tc.want {
			t.Errorf("%s: %s (%s), %v", tc.components, d.Reason, d.Message, err)
		}
	}
	// Without a body there is nothing to digest.
	signer := newSigner(t, func(c *SignerConfig) { c.Components = []string{"@method", "@authority", "@path", "@query"} })
	if d, err := ring.VerifyRequest(arrived(t, signer, "POST", "/orders?x=1", ""), asSent); err != nil || !d.OK() {
		t.Errorf("without a body: %+v, %v", d, err)
	}
	// Nor can one be added on the way.
	r := arrived(t, signer, "POST", "/orders?x=1", "")
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader("hello")), 5
	if d, err := ring.VerifyRequest(r, asSent); err != nil || d.Reason != ReasonComponents {
		t.Errorf("with a body added: %+v, %v", d, err)
	}
}

// A stranger's body is not read.
func TestBodyWhenTheSignatureIsWrong(t *testing.T) {
	ring := newKeyring(t, secretKey(t))
	other, err := NewSigner(SignerConfig{KeyID: "sk_1", Secret: "whsec_" + strings.Repeat("QUFB", 12)})
	if err != nil {
		t.Fatal(err)
	}
	r := arrived(t, other, "POST", "/orders", "hello")
	body := &counted{r: r.Body}
	r.Body = body
	d, err := ring.VerifyRequest(r, asSent)
	if err != nil || d.Reason != ReasonSignature || body.n != 0 {
		t.Errorf("%+v, %v, %d bytes read", d, err, body.n)
	}
}

type counted struct {
	r io.ReadCloser
	n int
}

func (c *counted) Read(p []byte) (int, error) { n, err := c.r.Read(p); c.n += n; return n, err }
func (c *counted) Close() error               { return c.r.Close() }

func TestKeyringWhenAKeyHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := secretKey(t)
		k.NotAfter = time.Now().Add(time.Hour)
		ring, signer := newKeyring(t, k), newSigner(t)
		if d, err := ring.VerifyRequest(arrived(t, signer, "GET", "/", ""), asSent); err != nil || !d.OK() {
			t.Errorf("%+v, %v", d, err)
		}
		time.Sleep(time.Hour)
		if d, err := ring.VerifyRequest(arrived(t, signer, "GET", "/", ""), asSent); err != nil || d.Reason != ReasonExpired {
			t.Errorf("%+v, %v", d, err)
		}
	})
}

func TestNewKeyringWhenConfigurationIsWrong(t *testing.T) {
	k := secretKey(t)
	nonces := NewNonces(NoncesConfig{})
	for name, cfg := range map[string]KeyringConfig{
		"no store of nonces": {Keys: []LocalKey{k}},
		"key id twice":       {Keys: []LocalKey{k, k}, Nonces: nonces},
		"no key":             {Keys: []LocalKey{{ID: "x"}}, Nonces: nonces},
		"no key id":          {Keys: []LocalKey{{Key: k.Key}}, Nonces: nonces},
	} {
		if _, err := NewKeyring(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestKeyringWhenTheNonceStoreFails(t *testing.T) {
	ring, err := NewKeyring(KeyringConfig{Keys: []LocalKey{secretKey(t)}, Nonces: broken{}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := ring.VerifyRequest(arrived(t, newSigner(t), "GET", "/", ""), asSent)
	if !errors.Is(err, ErrUnavailable) || d.OK() {
		t.Errorf("%+v, %v", d, err)
	}
}

type broken struct{}

func (broken) Use(context.Context, Nonce) error { return errors.New("no connection") }

// A request is accepted once in its whole life, and its nonce is not kept longer.
func TestNonceWhenTimePasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nonces := NewNonces(NoncesConfig{})
		ring, err := NewKeyring(KeyringConfig{Keys: []LocalKey{secretKey(t)}, Nonces: nonces})
		if err != nil {
			t.Fatal(err)
		}
		signer := newSigner(t)
		// Clocks differ: this signer's is ahead as far as it may be.
		ahead := newSigner(t, func(c *SignerConfig) { c.Now = func() time.Time { return time.Now().Add(30 * time.Second) } })
		a, b := arrived(t, signer, "GET", "/", ""), arrived(t, ahead, "GET", "/", "")
		accepted := 0
		for range 7 * 60 {
			for _, r := range []*http.Request{a, b} {
				d, err := ring.VerifyRequest(r, asSent)
				if err != nil {
					t.Fatal(err)
				}
				switch d.Reason {
				case ReasonOK:
					accepted++
				case ReasonReplay, ReasonWindow:
				default:
					t.Fatalf("%+v", d)
				}
			}
			time.Sleep(time.Second)
		}
		if accepted != 2 {
			t.Errorf("two requests were accepted %d times", accepted)
		}
		if d, err := ring.VerifyRequest(arrived(t, signer, "GET", "/", ""), asSent); err != nil || !d.OK() {
			t.Errorf("%+v, %v", d, err)
		}
		if len(nonces.used) != 1 || len(nonces.expire) != 1 || len(nonces.counts) != 1 {
			t.Errorf("%d nonces, %d slots, %d keys are kept, want 1 of each", len(nonces.used), len(nonces.expire), len(nonces.counts))
		}
	})
}

func TestNonceWhenManyComeAtOnce(t *testing.T) {
	nonces := NewNonces(NoncesConfig{})
	now := time.Now()
	var fresh atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := range 1000 {
				err := nonces.Use(t.Context(), Nonce{KeyID: "k", Value: fmt.Sprint(n), Created: now.Add(time.Second), Until: now.Add(time.Minute)})
				if err == nil {
					fresh.Add(1)
				} else if !errors.Is(err, ErrReplay) {
					t.Errorf("%v", err)
				}
			}
		})
	}
	wg.Wait()
	if fresh.Load() != 1000 {
		t.Errorf("%d uses of 1000 nonces", fresh.Load())
	}
}

// A full store refuses, and forgets nothing; one signer does not fill it alone.
func TestNonceWhenTheStoreIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nonces := NewNonces(NoncesConfig{Max: 6, MaxPerKey: 4})
		use := func(key string, n int) error {
			now := time.Now()
			return nonces.Use(t.Context(), Nonce{KeyID: key, Value: fmt.Sprint(n), Created: now, Until: now.Add(time.Minute)})
		}
		for n := range 4 {
			if err := use("a", n); err != nil {
				t.Fatal(err)
			}
		}
		if err := use("a", 4); !errors.Is(err, ErrFull) {
			t.Errorf("a fifth of one key: %v", err)
		}
		for n := range 2 {
			if err := use("b", n); err != nil {
				t.Fatal(err)
			}
		}
		if err := use("c", 0); !errors.Is(err, ErrFull) {
			t.Errorf("a seventh: %v", err)
		}
		for n := range 4 {
			if err := use("a", n); !errors.Is(err, ErrReplay) {
				t.Errorf("nonce %d of a full store: %v", n, err)
			}
		}
		time.Sleep(time.Minute + nonceSlot)
		for n := range 4 {
			if err := use("a", n); err != nil {
				t.Errorf("after a minute: %v", err)
			}
		}
	})
}

// Key id and nonce don't run together.
func TestNonceWhenKeysShareIt(t *testing.T) {
	nonces := NewNonces(NoncesConfig{})
	now := time.Now().Add(time.Second)
	for _, n := range []Nonce{{KeyID: "a", Value: "bc"}, {KeyID: "ab", Value: "c"}, {KeyID: "b", Value: "bc"}} {
		n.Created, n.Until = now, now.Add(time.Minute)
		if err := nonces.Use(t.Context(), n); err != nil {
			t.Errorf("%+v: %v", n, err)
		}
	}
}

// What was captured before a restart can't be sent again after it.
func TestNonceWhenTheProcessRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer := newSigner(t)
		captured := arrived(t, signer, "GET", "/", "")
		if d, err := newKeyring(t, secretKey(t)).VerifyRequest(captured, asSent); err != nil || !d.OK() {
			t.Fatalf("%+v, %v", d, err)
		}
		time.Sleep(time.Second)
		ring := newKeyring(t, secretKey(t))
		if d, err := ring.VerifyRequest(captured, asSent); err != nil || d.Reason != ReasonWindow {
			t.Errorf("%+v, %v", d, err)
		}
		if d, err := ring.VerifyRequest(arrived(t, signer, "GET", "/", ""), asSent); err != nil || !d.OK() {
			t.Errorf("%+v, %v", d, err)
		}
	})
}

// Promise: a clock that is set back makes nothing new that was used.
func TestNoncesWhenTheClockIsSetBack(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	now := began
	n := NewNonces(NoncesConfig{Now: func() time.Time { return now }})
	use := func(value string, created time.Time) error {
		return n.Use(t.Context(), Nonce{KeyID: "k", Value: value, Created: created, Until: created.Add(5 * time.Minute)})
	}
	if err := use("a", began); err != nil {
		t.Fatal(err)
	}
	now = began.Add(10 * time.Minute)
	if err := use("b", now); err != nil { // the first is forgotten
		t.Fatal(err)
	}
	now = began.Add(time.Minute)
	if err := use("a", began); !errors.Is(err, ErrBeforeStart) {
		t.Errorf("after the clock was set back: %v", err)
	}
	now = began.Add(10 * time.Minute)
	if err := use("c", now); err != nil {
		t.Error(err)
	}
}

// Promise: a guard of one environment lets in keys of that one only.
func TestKeyringWhenAnEnvironmentIsNamed(t *testing.T) {
	key := secretKey(t)
	signer, err := NewSigner(SignerConfig{KeyID: key.ID, Secret: testSecret})
	if err != nil {
		t.Fatal(err)
	}
	for of, want := range map[string]Reason{"": ReasonUnknown, "test": ReasonUnknown, "live": ReasonOK} {
		key.Environment = of
		r := arrived(t, signer, http.MethodGet, "/orders", "")
		d, err := newKeyring(t, key).VerifyRequest(r, RequestOptions{Scheme: "https", Authority: "api.example", Environment: "live"})
		if err != nil || d.Reason != want || d.OK() && d.Environment != "live" {
			t.Errorf("a key of %q: %+v, %v", of, d, err)
		}
	}
}

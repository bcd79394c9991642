package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	testIssuer   = "https://auth.example.com"
	testAudience = "orders"
)

// issuer signs tokens and serves its keys: as an http.RoundTripper, so that whole
// days pass at once in a synctest bubble.
type issuer struct {
	mu       sync.Mutex
	keys     []jose.JSONWebKey // public halves
	private  map[string]jose.JSONWebKey
	header   http.Header // of each answer
	fetches  int
	notMod   int
	requests []http.Header
	fail     error         // instead of an answer
	status   int           // instead of 200
	body     []byte        // instead of the document
	delay    time.Duration // before an answer
}

func newIssuer(t testing.TB, kids ...string) *issuer {
	t.Helper()
	i := &issuer{private: map[string]jose.JSONWebKey{}, header: http.Header{"Content-Type": {"application/jwk-set+json"}}}
	for _, kid := range kids {
		i.add(t, kid, jose.ES256)
	}
	return i
}

func newPrivateKey(t testing.TB, alg jose.SignatureAlgorithm) crypto.Signer {
	t.Helper()
	var k crypto.Signer
	var err error
	switch alg {
	case jose.ES256:
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		k, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.ES512:
		k, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case jose.EdDSA:
		_, k, err = ed25519.GenerateKey(rand.Reader)
	default:
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (i *issuer) add(t testing.TB, kid string, alg jose.SignatureAlgorithm) {
	t.Helper()
	k := newPrivateKey(t, alg)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.private[kid] = jose.JSONWebKey{Key: k, KeyID: kid, Algorithm: string(alg)}
	i.keys = append(i.keys, jose.JSONWebKey{Key: k.Public(), KeyID: kid, Algorithm: string(alg), Use: "sig"})
}

func (i *issuer) withdraw(kid string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var left []jose.JSONWebKey
	for _, k := range i.keys {
		if k.KeyID != kid {
			left = append(left, k)
		}
	}
	i.keys = left
}

func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

func (i *issuer) document() []byte {
	b, err := json.Marshal(map[string]any{"keys": i.keys})
	if err != nil {
		panic(err)
	}
	return b
}

func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	i.mu.Lock()
	i.fetches++
	i.requests = append(i.requests, r.Header.Clone())
	delay, fail, status, body, header := i.delay, i.fail, i.status, i.body, i.header.Clone()
	if body == nil {
		body = i.document()
	}
	i.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if fail != nil {
		return nil, fail
	}
	if status == 0 {
		status = http.StatusOK
	}
	if tag := header.Get("ETag"); tag != "" && r.Header.Get("If-None-Match") == tag {
		status, body = http.StatusNotModified, nil
		i.set(func() { i.notMod++ })
	}
	return &http.Response{
		StatusCode: status, Status: strconv.Itoa(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: io.NopCloser(strings.NewReader(string(body))), Request: r,
	}, nil
}

func (i *issuer) config() TokensConfig {
	return TokensConfig{
		Issuer: testIssuer, JWKSURL: "https://auth.example.com/keysets/payments/jwks.json",
		Audiences: []string{testAudience}, HTTPClient: &http.Client{Transport: i},
	}
}

func (i *issuer) tokens(t testing.TB, change ...func(*TokensConfig)) *Tokens {
	t.Helper()
	cfg := i.config()
	for _, c := range change {
		c(&cfg)
	}
	tokens, err := NewTokens(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// sign makes a good token; change may spoil it.
func (i *issuer) sign(t testing.TB, kid string, change ...func(header map[jose.HeaderKey]any, claims map[string]any)) string {
	t.Helper()
	i.mu.Lock()
	key := i.private[kid]
	i.mu.Unlock()
	now := time.Now()
	claims := map[string]any{
		"iss": testIssuer, "aud": testAudience, "sub": "user-7", "scope": "orders:read orders:write",
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	header := map[jose.HeaderKey]any{}
	for _, c := range change {
		c(header, claims)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, key, header, payload)
}

func signed(t testing.TB, key jose.JSONWebKey, header map[jose.HeaderKey]any, payload []byte) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(key.Algorithm), Key: key}, &jose.SignerOptions{ExtraHeaders: header})
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	s, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// reasonOf is the reason of a denial, or why there is none.
func reasonOf(err error) string {
	if err == nil {
		return "accepted"
	}
	if d, ok := errors.AsType[*Denied](err); ok {
		return string(d.Reason)
	}
	if errors.Is(err, ErrUnavailable) {
		return "unavailable"
	}
	return err.Error()
}

func wantReason(t *testing.T, err error, want string) {
	t.Helper()
	if got := reasonOf(err); got != want {
		t.Errorf("got %q (%v), want %q", got, err, want)
	}
}

func rng() io.Reader { return rand.Reader }

func copyAll(to io.Writer, from io.Reader) (int64, error) { return io.Copy(to, from) }

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

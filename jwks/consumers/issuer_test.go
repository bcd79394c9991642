package consumers

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

const (
	testIssuer   = "https://issuer.example"
	testAudience = "ledger"
)

// authority is a certificate authority with one certificate, for 127.0.0.1.
type authority struct {
	caFile, certFile, keyFile string
	cert                      tls.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	dir := t.TempDir()
	caKey, caTemplate := newECKey(t, elliptic.P256()), &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "consumers test root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca := newCertificate(t, caTemplate, caTemplate, caKey.Public(), caKey)
	leafKey := newECKey(t, elliptic.P256())
	leaf := newCertificate(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"},
		NotBefore: caTemplate.NotBefore, NotAfter: caTemplate.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, leafKey.Public(), caKey)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{
		caFile:   newPEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", ca.Raw),
		certFile: newPEM(t, filepath.Join(dir, "cert.pem"), "CERTIFICATE", leaf.Raw),
		keyFile:  newPEM(t, filepath.Join(dir, "key.pem"), "PRIVATE KEY", pkcs8),
		cert:     tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey},
	}
}

func newCertificate(t *testing.T, template, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newPEM(t *testing.T, path, kind string, der []byte) string {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newECKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// key signs tokens with the standard library alone, so that no JOSE library
// under test judges its own work.
type key struct {
	kid    string
	alg    string // in the token's header
	jwkAlg string // in the published key; usually alg
	signer crypto.Signer
}

func newKey(t *testing.T, kid, alg string) *key {
	t.Helper()
	k := &key{kid: kid, alg: alg, jwkAlg: alg}
	var err error
	switch alg {
	case "ES256":
		k.signer = newECKey(t, elliptic.P256())
	case "ES384":
		k.signer = newECKey(t, elliptic.P384())
	case "ES512":
		k.signer = newECKey(t, elliptic.P521())
	case "EdDSA", "Ed25519":
		_, k.signer, err = ed25519.GenerateKey(rand.Reader)
	default:
		k.signer, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// jwk is the public key as RFC 7517, RFC 7518 section 6 and RFC 8037 section 2 write it.
func (k *key) jwk(t *testing.T) map[string]string {
	t.Helper()
	m := map[string]string{"kid": k.kid, "alg": k.jwkAlg, "use": "sig"}
	switch pub := k.signer.Public().(type) {
	case *ecdsa.PublicKey:
		point, err := pub.Bytes() // 0x04, x, y
		if err != nil {
			t.Fatal(err)
		}
		half := (len(point) - 1) / 2
		m["kty"], m["crv"], m["x"], m["y"] = "EC", pub.Params().Name, b64(point[1:1+half]), b64(point[1+half:])
	case ed25519.PublicKey:
		m["kty"], m["crv"], m["x"] = "OKP", "Ed25519", b64(pub)
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", b64(pub.N.Bytes()), b64(big.NewInt(int64(pub.E)).Bytes())
	}
	return m
}

type claims map[string]any

// goodClaims are accepted by every verifier for five minutes.
func goodClaims() claims {
	now := time.Now()
	return claims{"iss": testIssuer, "aud": testAudience, "sub": "order-7", "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix()}
}

func (c claims) with(name string, v any) claims {
	c[name] = v
	return c
}

// token signs c (RFC 7515, RFC 7518 section 3, RFC 8037 section 3.1).
func (k *key) token(t *testing.T, c claims) string {
	t.Helper()
	input := part(t, map[string]string{"alg": k.alg, "kid": k.kid, "typ": "JWT"}) + "." + part(t, c)
	return input + "." + b64(k.sign(t, []byte(input)))
}

func (k *key) sign(t *testing.T, input []byte) []byte {
	t.Helper()
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[k.alg[2:]]
	var digest []byte
	if hash != 0 {
		h := hash.New()
		h.Write(input)
		digest = h.Sum(nil)
	}
	var sig []byte
	var err error
	switch s := k.signer.(type) {
	case ed25519.PrivateKey:
		sig = ed25519.Sign(s, input)
	case *ecdsa.PrivateKey:
		r, v, e := ecdsa.Sign(rand.Reader, s, digest)
		if e != nil {
			t.Fatal(e)
		}
		size := (s.Params().BitSize + 7) / 8
		sig = append(r.FillBytes(make([]byte, size)), v.FillBytes(make([]byte, size))...)
	case *rsa.PrivateKey:
		if k.alg[:2] == "PS" {
			sig, err = rsa.SignPSS(rand.Reader, s, hash, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			sig, err = rsa.SignPKCS1v15(rand.Reader, s, hash, digest)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func part(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b64(b)
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// staticIssuer publishes a fixed set of keys and counts who asks.
type staticIssuer struct {
	url     string
	fetches atomic.Int64
}

func newStaticIssuer(t *testing.T, ca *authority, keys ...*key) *staticIssuer {
	t.Helper()
	set := map[string][]map[string]string{"keys": {}}
	for _, k := range keys {
		set["keys"] = append(set["keys"], k.jwk(t))
	}
	body, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	s := &staticIssuer{}
	s.url = newTLSServer(t, ca, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.fetches.Add(1)
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Header().Set("Cache-Control", "public, max-age=60, must-revalidate")
		w.Write(body)
	})) + "/jwks.json"
	return s
}

// newTLSServer serves h on a loopback port of its own and gives its base URL.
func newTLSServer(t *testing.T, ca *authority, h http.Handler) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{ca.cert}}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // probes of a port that hang up
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL
}

func newConsumer(t *testing.T, s Starter, ca *authority, jwksURL string) Consumer {
	t.Helper()
	c, err := s.Start(t.Context(), Config{JWKSURL: jwksURL, Issuer: testIssuer, Audience: testAudience, CAFile: ca.caFile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// verify fails the test when the verifier can't be asked.
func verify(t *testing.T, c Consumer, token string) (bool, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ok, why, err := c.Verify(ctx, token)
	if err != nil {
		t.Fatal(err)
	}
	if !ok && why == "" {
		t.Fatal(fmt.Errorf("%s refused a token without a reason", c.Name()))
	}
	return ok, why
}

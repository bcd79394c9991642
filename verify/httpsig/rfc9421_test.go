package httpsig

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The vectors are those of RFC 9421 appendix B: messages, keys, signature bases
// and signatures as the RFC prints them.

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "rfc9421", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readMessage reads a message of the RFC, and its body.
func readMessage(t testing.TB, name string) (*Message, []byte) {
	t.Helper()
	r := bufio.NewReader(bytes.NewReader(readFile(t, name)))
	if strings.HasPrefix(string(readFile(t, name)), "HTTP/") {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return &Message{Status: resp.StatusCode, Header: resp.Header}, body
	}
	req, err := http.ReadRequest(r)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		t.Fatal(err)
	}
	return &Message{
		Method: req.Method, Scheme: "https", Authority: req.Host, Path: req.URL.EscapedPath(),
		Query: req.URL.RawQuery, HasQuery: req.URL.RawQuery != "" || req.URL.ForceQuery, Header: req.Header,
	}, body
}

func sharedSecret(t testing.TB) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(readFile(t, "test-shared-secret"))))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parsePEM(t testing.TB, name string) []byte {
	t.Helper()
	block, _ := pem.Decode(readFile(t, name))
	if block == nil {
		t.Fatalf("%s is not PEM", name)
	}
	return block.Bytes
}

// rfcKey is the key of a keyid of appendix B.1, to verify with.
func rfcKey(t testing.TB, keyid string) *Key {
	t.Helper()
	var k *Key
	var err error
	if keyid == "test-shared-secret" {
		k, err = NewHMACKey(sharedSecret(t))
	} else {
		var p crypto.PublicKey
		if p, err = x509.ParsePKIXPublicKey(parsePEM(t, keyid+".pub")); err == nil {
			k, err = NewPublicKey(p)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestRFC9421Vectors(t *testing.T) {
	for _, v := range []struct {
		name, label, keyid string
		alg                Algorithm
	}{
		{"b21", "sig-b21", "test-key-rsa-pss", RSAPSS512},
		{"b22", "sig-b22", "test-key-rsa-pss", RSAPSS512},
		{"b23", "sig-b23", "test-key-rsa-pss", RSAPSS512},
		{"b24", "sig-b24", "test-key-ecc-p256", ECDSAP256},
		{"b25", "sig-b25", "test-shared-secret", HMACSHA256},
		{"b26", "sig-b26", "test-key-ed25519", Ed25519},
		{"b3", "ttrp", "test-key-ecc-p256", ECDSAP256},
	} {
		t.Run(v.name, func(t *testing.T) {
			m, body := readMessage(t, v.name+".http")
			for _, label := range []string{"", v.label} {
				s, err := Parse(m, label)
				if err != nil {
					t.Fatal(err)
				}
				if s.Label != v.label || s.KeyID != v.keyid || s.Created != 1618884473 {
					t.Errorf("label %q, keyid %q, created %d", s.Label, s.KeyID, s.Created)
				}
				k := rfcKey(t, s.KeyID)
				if k.Algorithm() != v.alg {
					t.Errorf("the key is for %s, want %s", k.Algorithm(), v.alg)
				}
				base, err := Verify(s, m, k, nil)
				if err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff(string(readFile(t, v.name+".base")), string(base)); diff != "" {
					t.Errorf("signature base (-RFC +ours):\n%s", diff)
				}
			}
			if d := m.Header["Content-Digest"]; d != nil {
				if err := CheckDigest(d, bytes.TrimSpace(body)); err != nil {
					t.Error(err)
				}
			}
			s, err := Parse(m, v.label)
			if err != nil {
				t.Fatal(err)
			}
			s.Value[len(s.Value)-1] ^= 1
			if _, err := Verify(s, m, rfcKey(t, s.KeyID), nil); reason(err) != ReasonSignature {
				t.Errorf("a signature with one bit changed: %v", err)
			}
		})
	}
}

// rfcSigner is the private key of a keyid of appendix B.1.
func rfcSigner(t testing.TB, keyid string) *Key {
	t.Helper()
	if keyid == "test-shared-secret" {
		return rfcKey(t, keyid)
	}
	der := parsePEM(t, keyid+".key")
	var key any
	var err error
	switch keyid {
	case "test-key-ed25519":
		key, err = x509.ParsePKCS8PrivateKey(der)
	case "test-key-ecc-p256":
		key, err = x509.ParseECPrivateKey(der)
	default: // the standard library does not know PKCS #8 with the RSA-PSS identifier
		var pkcs8 struct {
			Version    int
			Algorithm  pkix.AlgorithmIdentifier
			PrivateKey []byte
		}
		if _, err = asn1.Unmarshal(der, &pkcs8); err == nil {
			key, err = x509.ParsePKCS1PrivateKey(pkcs8.PrivateKey)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewPrivateKey(key.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// The RFC's own parameters through Sign: the fields that come out are those of
// the RFC, to the byte where the algorithm has no randomness.
func TestSignMakesTheRFCsFields(t *testing.T) {
	created := time.Unix(1618884473, 0)
	for _, v := range []struct {
		name          string
		p             Params
		deterministic bool
	}{
		{"b21", Params{Label: "sig-b21", Created: created, KeyID: "test-key-rsa-pss", Nonce: "b3k2pp5k7z-50gnwp.yemd"}, false},
		{"b22", Params{Label: "sig-b22", Created: created, KeyID: "test-key-rsa-pss", Tag: "header-example",
			Components: []string{"@authority", "content-digest", `@query-param;name="Pet"`}}, false},
		{"b23", Params{Label: "sig-b23", Created: created, KeyID: "test-key-rsa-pss",
			Components: []string{"date", "@method", "@path", "@query", "@authority", "content-type", "content-digest", "content-length"}}, false},
		{"b24", Params{Label: "sig-b24", Created: created, KeyID: "test-key-ecc-p256",
			Components: []string{"@status", "content-type", "content-digest", "content-length"}}, false},
		{"b25", Params{Label: "sig-b25", Created: created, KeyID: "test-shared-secret",
			Components: []string{"date", "@authority", "content-type"}}, true},
		{"b26", Params{Label: "sig-b26", Created: created, KeyID: "test-key-ed25519",
			Components: []string{"date", "@method", "@path", "@authority", "content-type", "content-length"}}, true},
		{"b3", Params{Label: "ttrp", Created: created, KeyID: "test-key-ecc-p256",
			Components: []string{"@path", "@query", "@method", "@authority", "client-cert"}}, false},
	} {
		t.Run(v.name, func(t *testing.T) {
			m, _ := readMessage(t, v.name+".http")
			input, signature, err := Sign(m, rfcSigner(t, v.p.KeyID), v.p)
			if err != nil {
				t.Fatal(err)
			}
			if want := m.Header["Signature-Input"][0]; input != want {
				t.Errorf("Signature-Input\n got %s\nwant %s", input, want)
			}
			if want := m.Header["Signature"][0]; v.deterministic && signature != want {
				t.Errorf("Signature\n got %s\nwant %s", signature, want)
			}
			m.Header["Signature-Input"], m.Header["Signature"] = []string{input}, []string{signature}
			s, err := Parse(m, "")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Verify(s, m, rfcKey(t, v.p.KeyID), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

package gateways

import (
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// signer signs requests as a client of api.example.com does.
type signer struct {
	id  string
	key *httpsig.Key
}

func (r *rotunda) signer(t testing.TB) *signer {
	t.Helper()
	made, err := r.keys.Create(t.Context(), apikeys.RequestSecret, apikeys.KeySpec{Partner: "acme", Name: "orders-signing", Scopes: []string{"orders:read"}})
	if err != nil {
		t.Fatal(err)
	}
	defer made.Value.Destroy()
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(made.Value.RevealString(), "whsec_"))
	if err != nil {
		t.Fatal("the secret is not whsec_ and base64")
	}
	k, err := httpsig.NewHMACKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{made.Key.ID, k}
}

// sign returns the header lines of a signed request.
func (s *signer) sign(t testing.TB, method, target, body string) []string {
	t.Helper()
	m := &httpsig.Message{Method: method, Scheme: "https", Authority: "api.example.com", Header: http.Header{}}
	m.Path, m.Query, m.HasQuery = strings.Cut(target, "?")
	components := []string{"@method", "@authority", "@path"}
	if m.HasQuery {
		components = append(components, "@query")
	}
	var lines []string
	if body != "" {
		components = append(components, "content-digest")
		digest := httpsig.Digest([]byte(body))
		m.Header["Content-Digest"] = []string{digest}
		lines = append(lines, "Content-Digest: "+digest)
	}
	input, signature, err := httpsig.Sign(m, s.key, httpsig.Params{Components: components, Created: time.Now(), KeyID: s.id, Nonce: rand.Text()})
	if err != nil {
		t.Fatal(err)
	}
	return append(lines, "Signature-Input: "+input, "Signature: "+signature)
}

// Promise: through each gateway a signature is over what the service gets, whatever
// headers say, and a body that nobody compared does not pass.
func TestGatewayWhenRequestIsSigned(t *testing.T) {
	each(t, func(t *testing.T, d *door) {
		s := d.signer(t)
		want := who("acme", s.id, "orders:read")
		for _, target := range []string{"/signed", "/signed/a%20b%C3%bc?x=%2F..%2f&&y", "/signed?"} {
			for _, method := range []string{"GET", "DELETE", "OPTIONS"} {
				lines := s.sign(t, method, target, "")
				// The authority is from the configuration: another Host changes nothing.
				got := wantSeen(t, method+" "+target, d.send(t, method, target, "", lines...), want)
				if got.URI != target || got.Method != method {
					t.Errorf("the service got %s %s, signed was %s %s", got.Method, got.URI, method, target)
				}
				d.refused(t, "the same again", 401, "invalid_signature", func() reply { return d.send(t, method, target, "", lines...) })
			}
		}
		wantSeen(t, "POST of nothing", d.send(t, "POST", "/signed", "", append(s.sign(t, "POST", "/signed", ""), "Content-Length: 0")...), want)
		spoofed := append(s.sign(t, "GET", "/signed/a", ""), "X-Forwarded-Uri: /signed/b", "X-Forwarded-Method: POST", "X-Forwarded-Host: evil.example.com", "X-Forwarded-Proto: http",
			"X-Forwarded-Uri: /signed/c", "X-Forwarded-Content-Length: 7", "X-Forwarded-Content-Length: 8", "X-Forwarded-Transfer-Encoding: chunked")
		wantSeen(t, "right, with forged X-Forwarded-*", d.get(t, "/signed/a", spoofed...), want)

		key, _ := d.key(t, apikeys.KeySpec{})
		body := `{"order":7}`
		for what, ask := range map[string]func() reply{
			"another path, forged X-Forwarded-Uri": func() reply {
				return d.get(t, "/signed/b", append(s.sign(t, "GET", "/signed/a", ""), "X-Forwarded-Uri: /signed/a")...)
			},
			"another method, forged X-Forwarded-Method": func() reply {
				return d.send(t, "DELETE", "/signed/a", "", append(s.sign(t, "GET", "/signed/a", ""), "X-Forwarded-Method: GET")...)
			},
			"another query": func() reply { return d.get(t, "/signed?a=2", s.sign(t, "GET", "/signed?a=1", "")...) },
			"two signatures": func() reply {
				return d.get(t, "/signed", append(s.sign(t, "GET", "/signed", ""), s.sign(t, "GET", "/signed", "")...)...)
			},
			"no such secret": func() reply {
				return d.get(t, "/signed", (&signer{"0000000000000000", s.key}).sign(t, "GET", "/signed", "")...)
			},
		} {
			d.refused(t, what, 401, "invalid_signature", ask)
		}
		d.refused(t, "a key in place of a signature", 401, "missing_credentials", func() reply { return d.get(t, "/signed", "Authorization: Bearer "+key) })
		for what, ask := range map[string]func() reply{
			"a body": func() reply { return d.send(t, "POST", "/signed", body, s.sign(t, "POST", "/signed", body)...) },
			"a body, forged lengths": func() reply {
				return d.send(t, "POST", "/signed", body, append(s.sign(t, "POST", "/signed", body), "X-Forwarded-Content-Length: 0", "X-Forwarded-Transfer-Encoding:")...)
			},
			"a body that is not signed": func() reply { return d.send(t, "POST", "/signed", body, s.sign(t, "POST", "/signed", "")...) },
			"a body of a GET":           func() reply { return d.send(t, "GET", "/signed", body, s.sign(t, "GET", "/signed", "")...) },
			"chunks":                    func() reply { return d.chunks(t, "POST", s) },
		} {
			d.refused(t, what, 403, "body_not_verifiable", ask)
		}
		if d.hidesChunks { // docs/gateways.md says so
			wantSeen(t, "chunks of a GET", d.chunks(t, "GET", s), want)
		} else {
			d.refused(t, "chunks of a GET", 403, "body_not_verifiable", func() reply { return d.chunks(t, "GET", s) })
		}
		// Where a key does as well, a signature that is wrong is not made up for by one.
		wrong := s.sign(t, "GET", "/orders/a", "")
		d.refused(t, "a wrong signature and a key", 401, "invalid_signature", func() reply {
			return d.get(t, "/orders/b", append(wrong, "Authorization: Bearer "+key)...)
		})
	})
}

// chunks sends a signed request with a body that is not signed, and has no length.
func (d *door) chunks(t testing.TB, method string, s *signer) reply {
	t.Helper()
	head := append([]string{method + " /signed HTTP/1.1", "Host: api.example.com", "Connection: close", "Transfer-Encoding: chunked"}, s.sign(t, method, "/signed", "")...)
	r, err := d.raw(strings.Join(head, "\r\n") + "\r\n\r\n4\r\nevil\r\n0\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

package oracles

import (
	"bytes"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// request is one that both sides read from net/http.
func request(t testing.TB, method, url, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Date", "Tue, 20 Apr 2021 02:07:55 GMT")
	if body != "" {
		r.Header.Set("Content-Digest", httpsig.Digest([]byte(body)))
	}
	return r
}

func message(r *http.Request) *httpsig.Message {
	return &httpsig.Message{
		Method: r.Method, Scheme: r.URL.Scheme, Authority: r.Host, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery,
		HasQuery: r.URL.RawQuery != "" || r.URL.ForceQuery, Header: r.Header,
	}
}

func accept(r *http.Request, k keyPair, body string, required []string) error {
	m := message(r)
	s, err := httpsig.Parse(m, "")
	if err != nil {
		return err
	}
	policy := httpsig.DefaultPolicy()
	policy.Required = required
	if err := policy.Check(s, m, body != "", time.Now()); err != nil {
		return err
	}
	if _, err := httpsig.Verify(s, m, k.verifies, nil); err != nil {
		return err
	}
	return s.CheckBody(m, []byte(body))
}

func sign(t testing.TB, r *http.Request, k keyPair, components []string) {
	t.Helper()
	input, signature, err := httpsig.Sign(message(r), k.sign, httpsig.Params{
		Label: label, Components: components, Created: time.Now(), KeyID: k.id, Nonce: newNonce(),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Signature-Input", input)
	r.Header.Set("Signature", signature)
}

var keyIDs = []string{"test-shared-secret", "test-key-ed25519", "test-key-ecc-p256", "test-key-rsa-pss"}

// cases are requests. Of nearly all, every peer makes the same base; where one
// does not, it says why, and the test holds that it is so.
var cases = []struct {
	name, method, url, body string
	components              []string
	differs                 map[string]string // by the peer's name
}{
	{name: "the default policy", method: "POST", url: "https://example.com/foo?param=Value&Pet=dog", body: `{"hello": "world"}`,
		components: []string{"@method", "@authority", "@path", "@query", "content-digest"}},
	{name: "no query, no body", method: "GET", url: "https://example.com/foo", components: []string{"@method", "@authority", "@path", "@query"}},
	{name: "a port", method: "PUT", url: "http://example.com:8080/a", body: "x", components: []string{"@authority", "content-digest"}},
	{name: "fields", method: "POST", url: "https://example.com/", body: "x", components: []string{"date", "content-type", "content-digest"}},
	{name: "a query parameter", method: "GET", url: "https://example.com/?param=Value&Pet=dog", components: []string{`@query-param;name="Pet"`, "@method"}},
	{name: "nothing", method: "GET", url: "https://example.com/"},
	{name: "no path", method: "DELETE", url: "https://example.com", components: []string{"@path", "@method"}, differs: map[string]string{
		"yaronf/httpsign":        "an empty path stays empty (RFC 9421 section 2.2.6 makes it a slash)",
		"remitly-oss/httpsig-go": "the same",
	}},
	{name: "upper case", method: "GET", url: "https://EXAMPLE.com/Foo", components: []string{"@authority", "@path"}, differs: map[string]string{
		"yaronf/httpsign":        "the authority keeps its case (section 2.2.3 makes it lower)",
		"remitly-oss/httpsig-go": "the same",
	}},
	{name: "escapes", method: "GET", url: "https://example.com/a%20b/%C3%A9?x=%2F%20+y", components: []string{"@path", "@query"}, differs: map[string]string{
		"remitly-oss/httpsig-go": "the path is decoded (section 2.2.6 leaves it as it was sent)",
	}},
}

func TestPeersSignAndWeVerify(t *testing.T) {
	for _, p := range peers(newNode(t)) {
		for _, id := range keyIDs {
			k := newKeyPair(t, id)
			if !slices.Contains(p.algs, k.alg) {
				continue
			}
			for _, c := range cases {
				t.Run(p.name+"/"+string(k.alg)+"/"+c.name, func(t *testing.T) {
					r := request(t, c.method, c.url, c.body)
					if err := p.sign(t, r, k, c.components); err != nil {
						t.Fatalf("the peer does not sign: %v", err)
					}
					if why := c.differs[p.name]; why != "" {
						if err := accept(r, k, c.body, c.components); err == nil {
							t.Errorf("it does not differ any more: %s", why)
						}
						return
					}
					if err := accept(r, k, c.body, c.components); err != nil {
						t.Errorf("%v\nSignature-Input: %s", err, r.Header.Get("Signature-Input"))
					}
					r.Header.Set("Signature-Input", r.Header.Get("Signature-Input")+`;tag="x"`)
					if err := accept(r, k, c.body, c.components); err == nil {
						t.Error("accepted with a tag that was not signed")
					}
				})
			}
		}
	}
}

func TestWeSignAndPeersVerify(t *testing.T) {
	for _, p := range peers(newNode(t)) {
		for _, id := range keyIDs {
			k := newKeyPair(t, id)
			if !slices.Contains(p.algs, k.alg) {
				continue
			}
			for _, c := range cases {
				t.Run(p.name+"/"+string(k.alg)+"/"+c.name, func(t *testing.T) {
					r := request(t, c.method, c.url, c.body)
					sign(t, r, k, c.components)
					if why := c.differs[p.name]; why != "" {
						if err := p.verify(t, r, k); err == nil {
							t.Errorf("it does not differ any more: %s", why)
						}
						return
					}
					if err := p.verify(t, r, k); err != nil {
						t.Errorf("%v\nSignature-Input: %s", err, r.Header.Get("Signature-Input"))
					}
					r = request(t, c.method, c.url, c.body)
					sign(t, r, k, c.components)
					r.Header.Set("Signature-Input", r.Header.Get("Signature-Input")+`;tag="x"`)
					if err := p.verify(t, r, k); err == nil {
						t.Error("the peer accepts a tag that was not signed: it proves nothing")
					}
				})
			}
		}
	}
}

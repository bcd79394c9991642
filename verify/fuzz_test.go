package verify

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// No text but the one that was signed is accepted. (ECDSA has a second signature for
// each, which only arithmetic finds.)
func FuzzTokenVerify(f *testing.F) {
	i := newIssuer(f, "k1")
	i.add(f, "r1", jose.RS256)
	tokens := i.tokens(f)
	good := map[string]bool{i.sign(f, "k1"): true, i.sign(f, "r1"): true}
	for token := range good {
		f.Add(token)
		f.Add(token + "=")
		f.Add(strings.Replace(token, ".", "..", 1))
		parts := strings.Split(token, ".")
		f.Add("eyJhbGciOiJub25lIiwia2lkIjoiazEifQ." + parts[1] + ".")
		f.Add("eyJhbGciOiJIUzI1NiIsImtpZCI6ImsxIn0." + parts[1] + "." + parts[2])
	}
	if err := tokens.Refresh(f.Context()); err != nil {
		f.Fatal(err)
	}
	tokens.unknownNext = time.Now().Add(24 * time.Hour) // made-up key ids are not what is tried here
	f.Fuzz(func(t *testing.T, token string) {
		c, err := tokens.Verify(t.Context(), token)
		if (err == nil) != good[token] || (c == nil) == (err == nil) {
			t.Errorf("%q: %+v, %v", token, c, err)
		}
		if _, err := tokens.header(token); err == nil && !looksLikeToken(token) {
			t.Errorf("a header was read of %q", token)
		}
	})
}

func FuzzJWKS(f *testing.F) {
	i := newIssuer(f, "a")
	i.add(f, "b", jose.EdDSA)
	f.Add(i.document())
	f.Add([]byte(`{"keys":[{"kty":"oct","kid":"a","k":"AAAA","alg":"HS256"}]}`))
	f.Add([]byte(`{"keys":[[]],"keys":{}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		keys, err := parseSet(body)
		if err != nil && keys != nil {
			t.Fatal("keys and an error")
		}
		for kid, k := range keys {
			if kid == "" || len(kid) > maxKeyID || len(k.algs) == 0 {
				t.Errorf("key %q: %+v", kid, k)
			}
			for _, a := range k.algs {
				if strings.HasPrefix(string(a), "HS") || a == "none" {
					t.Errorf("key %q is for %s", kid, a)
				}
			}
		}
	})
}

// Whatever the fields of a request hold, who has no credential does not come in, and
// what a client says of itself does not reach the handler.
func FuzzGuardHeaders(f *testing.F) {
	i := newIssuer(f, "k1")
	secret, err := SecretKey(testSecret)
	if err != nil {
		f.Fatal(err)
	}
	ring, err := NewKeyring(KeyringConfig{Keys: []LocalKey{{ID: "sk_1", Key: secret}}, Nonces: NewNonces(NoncesConfig{Max: 10})})
	if err != nil {
		f.Fatal(err)
	}
	tokens := i.tokens(f)
	token := i.sign(f, "k1")
	if err := tokens.Refresh(f.Context()); err != nil {
		f.Fatal(err)
	}
	tokens.unknownNext = time.Now().Add(24 * time.Hour)
	guard, err := NewGuard(Options{Tokens: tokens, Keyring: ring, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("Bearer "+token, "", "", "", "1.2.3.4")
	f.Add("Bearer "+token, "x", "", "", "")
	f.Add("", "", `sig1=("@method");created=1;keyid="sk_1"`, "sig1=:AAAA:", "::1")
	f.Add("Basic x", "", "", "", "[")
	f.Fuzz(func(t *testing.T, authorization, key, input, signature, forwarded string) {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", http.NoBody)
		for name, value := range map[string]string{"Authorization": authorization, "X-Api-Key": key, "Signature-Input": input, "Signature": signature, "X-Forwarded-For": forwarded} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		r.Header.Set("X-Rotunda-Partner", "acme")
		came := false
		w := httptest.NewRecorder()
		guard.Middleware()(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			came = true
			if r.Header.Get("X-Rotunda-Partner") != "" {
				t.Error("the handler got what the client said of itself")
			}
		})).ServeHTTP(w, r)
		_, presented, _ := strings.Cut(authorization, " ")
		only := strings.TrimLeft(presented, " ") == token && key == "" && input == "" && signature == ""
		if came != (w.Code == http.StatusOK) || came && !only {
			t.Errorf("came in: %t, %d", came, w.Code)
		}
		if a := guard.client("10.0.0.1:1", r.Header); a.Is4In6() || a.Zone() != "" {
			t.Errorf("the client's address is %s", a)
		}
	})
}

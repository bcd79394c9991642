package verify

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
)

func TestTokenWhenEachAlgorithmSigns(t *testing.T) {
	i := newIssuer(t)
	for _, alg := range allAlgorithms {
		i.add(t, "key-"+alg, jose.SignatureAlgorithm(alg))
	}
	tokens := i.tokens(t)
	for _, alg := range allAlgorithms {
		c, err := tokens.Verify(t.Context(), i.sign(t, "key-"+alg))
		if err != nil {
			t.Errorf("%s: %v", alg, err)
			continue
		}
		if c.Algorithm != alg || c.KeyID != "key-"+alg || c.Subject != "user-7" || !c.Has("orders:write") || c.Has("orders") {
			t.Errorf("%s: claims %+v", alg, c)
		}
	}
	if n := i.count(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
}

type change = func(map[jose.HeaderKey]any, map[string]any)

func TestTokenWhenItIsDenied(t *testing.T) {
	i := newIssuer(t, "k1")
	other := newIssuer(t, "k1")
	tokens := i.tokens(t)
	now := time.Now()
	claim := func(name string, value any) change {
		return func(_ map[jose.HeaderKey]any, c map[string]any) { c[name] = value }
	}
	without := func(name string) change {
		return func(_ map[jose.HeaderKey]any, c map[string]any) { delete(c, name) }
	}
	good := i.sign(t, "k1")
	parts := strings.Split(good, ".")
	b64 := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	header := func(h string) string { return b64(h) + "." + parts[1] + "." + parts[2] }
	for name, tc := range map[string]struct{ token, want string }{
		"good":                       {good, "accepted"},
		"other issuer":               {i.sign(t, "k1", claim("iss", testIssuer+"/")), "issuer"},
		"no issuer":                  {i.sign(t, "k1", without("iss")), "issuer"},
		"other audience":             {i.sign(t, "k1", claim("aud", "orders2")), "audience"},
		"one audience of several":    {i.sign(t, "k1", claim("aud", []string{"x", testAudience})), "accepted"},
		"no audience":                {i.sign(t, "k1", without("aud")), "audience"},
		"audience of a number":       {i.sign(t, "k1", claim("aud", 7)), "malformed"},
		"no exp":                     {i.sign(t, "k1", without("exp")), "malformed"},
		"exp of a string":            {i.sign(t, "k1", claim("exp", "1999999999")), "malformed"},
		"exp below zero":             {i.sign(t, "k1", claim("exp", -1)), "malformed"},
		"exp beyond time":            {i.sign(t, "k1", claim("exp", 1e300)), "malformed"},
		"exp null":                   {i.sign(t, "k1", claim("exp", nil)), "malformed"},
		"expired":                    {i.sign(t, "k1", claim("exp", now.Add(-2*time.Minute).Unix())), "expired"},
		"expired within leeway":      {i.sign(t, "k1", claim("exp", now.Add(-30*time.Second).Unix())), "accepted"},
		"not yet":                    {i.sign(t, "k1", claim("nbf", now.Add(2*time.Minute).Unix())), "window"},
		"not yet within leeway":      {i.sign(t, "k1", claim("nbf", now.Add(30*time.Second).Unix())), "accepted"},
		"issued in the future":       {i.sign(t, "k1", claim("iat", now.Add(2*time.Minute).Unix())), "window"},
		"fraction of a second":       {i.sign(t, "k1", claim("exp", float64(now.Unix())+60.5)), "accepted"},
		"key of somebody else":       {other.sign(t, "k1"), "signature"},
		"other payload":              {parts[0] + "." + b64(`{"iss":"x"}`) + "." + parts[2], "signature"},
		"no signature":               {parts[0] + "." + parts[1] + ".", "malformed"},
		"none":                       {b64(`{"alg":"none","kid":"k1"}`) + "." + parts[1] + "." + parts[2], "algorithm"},
		"None":                       {header(`{"alg":"None","kid":"k1"}`), "algorithm"},
		"no alg":                     {header(`{"kid":"k1"}`), "algorithm"},
		"alg of another key type":    {header(`{"alg":"RS256","kid":"k1"}`), "algorithm"},
		"no kid":                     {header(`{"alg":"ES256"}`), "malformed"},
		"long kid":                   {header(`{"alg":"ES256","kid":"` + strings.Repeat("k", 257) + `"}`), "malformed"},
		"kid twice":                  {header(`{"alg":"ES256","kid":"k1","kid":"k1"}`), "malformed"},
		"kid in other case":          {header(`{"alg":"ES256","KID":"k1"}`), "malformed"},
		"crit":                       {header(`{"alg":"ES256","kid":"k1","crit":["exp"],"exp":1}`), "malformed"},
		"crit of b64":                {header(`{"alg":"ES256","kid":"k1","crit":["b64"],"b64":true}`), "malformed"},
		"b64":                        {header(`{"alg":"ES256","kid":"k1","b64":false}`), "malformed"},
		"zip":                        {header(`{"alg":"ES256","kid":"k1","zip":"DEF"}`), "malformed"},
		"header is no object":        {header(`[]`), "malformed"},
		"empty":                      {"", "malformed"},
		"two parts":                  {parts[0] + "." + parts[1], "malformed"},
		"four parts":                 {good + ".x", "malformed"},
		"JWS in JSON":                {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, "malformed"},
		"line end":                   {good + "\n", "malformed"},
		"line end inside":            {parts[0] + ".\n" + parts[1] + "." + parts[2], "malformed"},
		"padding":                    {good + "=", "malformed"},
		"other spelling":             {respelled(good), "malformed"},
		"too long":                   {good + strings.Repeat("A", maxToken), "malformed"},
		"unknown kid":                {header(`{"alg":"ES256","kid":"k2"}`), "unknown"},
		"claims twice":               {signed(t, i.private["k1"], nil, []byte(`{"iss":"x","iss":"`+testIssuer+`"}`)), "malformed"},
		"claims are no object":       {signed(t, i.private["k1"], nil, []byte(`[1]`)), "malformed"},
		"claims are null":            {signed(t, i.private["k1"], nil, []byte(`null`)), "issuer"},
		"claims are empty":           {signed(t, i.private["k1"], nil, nil), "malformed"},
		"claims in other case":       {signed(t, i.private["k1"], nil, []byte(`{"ISS":"`+testIssuer+`"}`)), "issuer"},
		"scopes of another spelling": {i.sign(t, "k1", without("scope"), claim("scp", []string{"orders:read"})), "accepted"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := tokens.Verify(t.Context(), tc.token)
			wantReason(t, err, tc.want)
			if (err == nil) != (c != nil) {
				t.Errorf("claims %v and error %v", c, err)
			}
			if d, ok := errors.AsType[*Denied](err); ok && tc.token != "" && strings.Contains(d.Error(), tc.token) {
				t.Error("the error holds the token")
			}
		})
	}
}

// respelled changes bits of the last character that decoders drop.
func respelled(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(token) - 1
	return token[:last] + string(alphabet[strings.IndexByte(alphabet, token[last])|1])
}

// A public key must never be the secret of an HMAC.
func TestTokenWhenItsHMACKeyIsThePublicKey(t *testing.T) {
	i := newIssuer(t)
	i.add(t, "r1", jose.RS256)
	public, err := json.Marshal(i.keys[0])
	if err != nil {
		t.Fatal(err)
	}
	secret := jose.JSONWebKey{Key: public, KeyID: "r1", Algorithm: string(jose.HS256)}
	token := signed(t, secret, nil, []byte(`{"iss":"`+testIssuer+`"}`))
	_, err = i.tokens(t).Verify(t.Context(), token)
	wantReason(t, err, "algorithm")
	cfg := i.config()
	cfg.Algorithms = []string{"HS256"}
	if _, err := NewTokens(cfg); err == nil {
		t.Error("HS256 can be configured")
	}
}

func TestTokenWhenTypeIsDemanded(t *testing.T) {
	i := newIssuer(t, "k1")
	tokens := i.tokens(t, func(c *TokensConfig) { c.Type = "at+jwt" })
	for typ, want := range map[string]string{"at+jwt": "accepted", "AT+JWT": "accepted", "application/at+jwt": "accepted", "JWT": "type", "": "type"} {
		_, err := tokens.Verify(t.Context(), i.sign(t, "k1", func(h map[jose.HeaderKey]any, _ map[string]any) {
			if typ != "" {
				h[jose.HeaderType] = typ
			}
		}))
		wantReason(t, err, want)
	}
}

func TestTokenWhenAlgorithmsAreLimited(t *testing.T) {
	i := newIssuer(t)
	i.add(t, "r1", jose.PS256)
	_, err := i.tokens(t, func(c *TokensConfig) { c.Algorithms = []string{"ES256"} }).Verify(t.Context(), i.sign(t, "r1"))
	wantReason(t, err, "algorithm")
	// A key that is published for PS256 is not for RS256, although the maths would do.
	forged := i.private["r1"]
	forged.Algorithm = string(jose.RS256)
	_, err = i.tokens(t).Verify(t.Context(), signed(t, forged, nil, []byte(`{}`)))
	wantReason(t, err, "algorithm")
}

func TestClaimsWhenDecoded(t *testing.T) {
	i := newIssuer(t, "k1")
	c, err := i.tokens(t).Verify(t.Context(), i.sign(t, "k1", func(_ map[jose.HeaderKey]any, c map[string]any) { c["plan"] = "gold" }))
	if err != nil {
		t.Fatal(err)
	}
	var own struct {
		Plan string `json:"plan"`
		Sub  string `json:"sub"`
	}
	if err := c.Decode(&own); err != nil || own.Plan != "gold" || own.Sub != "user-7" {
		t.Errorf("decoded %+v, %v", own, err)
	}
	if diff := cmp.Diff([]string{"orders:read", "orders:write"}, c.Scopes); diff != "" {
		t.Error(diff)
	}
}

func TestNewTokensWhenConfigurationIsWrong(t *testing.T) {
	for name, change := range map[string]func(*TokensConfig){
		"no issuer":           func(c *TokensConfig) { c.Issuer = "" },
		"no audience":         func(c *TokensConfig) { c.Audiences = nil },
		"empty audience":      func(c *TokensConfig) { c.Audiences = []string{""} },
		"unknown algorithm":   func(c *TokensConfig) { c.Algorithms = []string{"none"} },
		"long leeway":         func(c *TokensConfig) { c.Leeway = time.Hour },
		"short age":           func(c *TokensConfig) { c.MaxAge = time.Second },
		"plain http":          func(c *TokensConfig) { c.JWKSURL = "http://auth.example.com/jwks.json" },
		"http to a fake host": func(c *TokensConfig) { c.JWKSURL = "http://localhost.example.com/jwks.json" },
		"file":                func(c *TokensConfig) { c.JWKSURL = "file:///etc/passwd" },
		"user in the URL":     func(c *TokensConfig) { c.JWKSURL = "https://a:b@auth.example.com/" },
		"two places":          func(c *TokensConfig) { c.DiscoveryURL = "https://auth.example.com/" },
		"issuer is no URL":    func(c *TokensConfig) { c.Issuer, c.JWKSURL = "accounts", "" },
	} {
		cfg := newIssuer(t, "k1").config()
		change(&cfg)
		if _, err := NewTokens(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, u := range []string{"http://127.0.0.1:1/", "http://[::1]/", "http://localhost:8470/x"} {
		cfg := newIssuer(t, "k1").config()
		cfg.JWKSURL = u
		if _, err := NewTokens(cfg); err != nil {
			t.Errorf("%s: %v", u, err)
		}
	}
}

// jwk writes a public key with members changed.
func jwk(t *testing.T, k jose.JSONWebKey, change map[string]any) map[string]any {
	t.Helper()
	b, err := k.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for name, v := range change {
		if m[name] = v; v == nil {
			delete(m, name)
		}
	}
	return m
}

func TestJWKSWhenKeysAreUnfit(t *testing.T) {
	i := newIssuer(t, "good", "odd")
	odd := i.keys[1]
	private := i.private["odd"]
	small, err := rsa.GenerateKey(rng(), 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]any{
		"unknown type":      map[string]any{"kty": "AKP", "alg": "ML-DSA-65", "kid": "odd", "pub": "AAAA"},
		"symmetric":         map[string]any{"kty": "oct", "alg": "HS256", "kid": "odd", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"},
		"for encryption":    jwk(t, odd, map[string]any{"use": "enc"}),
		"only for signing":  jwk(t, odd, map[string]any{"key_ops": []string{"sign"}}),
		"no kid":            jwk(t, odd, map[string]any{"kid": nil}),
		"long kid":          jwk(t, odd, map[string]any{"kid": strings.Repeat("k", 300)}),
		"kid is a number":   jwk(t, odd, map[string]any{"kid": 7}),
		"private":           jwk(t, private, nil),
		"alg of another":    jwk(t, odd, map[string]any{"alg": "RS256"}),
		"alg none":          jwk(t, odd, map[string]any{"alg": "none"}),
		"off the curve":     jwk(t, odd, map[string]any{"x": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}),
		"RSA of 1,024 bits": jwk(t, jose.JSONWebKey{Key: small.Public(), KeyID: "odd", Algorithm: "RS256"}, nil),
		"not an object":     "odd",
		"null":              nil,
	} {
		t.Run(name, func(t *testing.T) {
			body, err := json.Marshal(map[string]any{"keys": []any{key, i.keys[0]}})
			if err != nil {
				t.Fatal(err)
			}
			keys, err := parseSet(body)
			if err != nil {
				t.Fatal(err)
			}
			if len(keys) != 1 || keys["good"] == nil {
				t.Errorf("keys %v, want only the good one", keys)
			}
		})
	}
	for name, change := range map[string]map[string]any{
		"without alg and use": {"alg": nil, "use": nil},
		"to verify":           {"key_ops": []string{"verify"}, "use": nil},
	} {
		body, err := json.Marshal(map[string]any{"keys": []any{jwk(t, odd, change)}})
		if err != nil {
			t.Fatal(err)
		}
		if keys, err := parseSet(body); err != nil || keys["odd"] == nil {
			t.Errorf("%s: %v, %v", name, keys, err)
		}
	}
}

func TestJWKSWhenTheDocumentIsUnfit(t *testing.T) {
	i := newIssuer(t, "a", "b")
	twice := i.keys[1]
	twice.KeyID = "a"
	write := func(keys ...any) string {
		b, err := json.Marshal(map[string]any{"keys": keys})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	many := make([]any, maxKeys+1)
	for n := range many {
		many[n] = map[string]any{"kty": "x", "kid": fmt.Sprint(n)}
	}
	for name, body := range map[string]string{
		"kid twice":   write(i.keys[0], twice),
		"keys twice":  `{"keys":[],"keys":[]}`,
		"no keys":     `{}`,
		"keys null":   `{"keys":null}`,
		"keys object": `{"keys":{}}`,
		"not JSON":    `<html>`,
		"empty":       ``,
		"null":        `null`,
		"many":        write(many...),
		"deep":        `{"keys":[` + strings.Repeat("[", 500_000) + strings.Repeat("]", 500_000) + `]}`,
		"deep object": `{"keys":[` + strings.Repeat(`{"a":`, 100_000),
	} {
		if keys, err := parseSet([]byte(body)); err == nil {
			t.Errorf("%s: accepted as %v", name, keys)
		}
	}
	if keys, err := parseSet([]byte(`{"keys":[],"more":1}`)); err != nil || len(keys) != 0 {
		t.Errorf("an empty set: %v, %v", keys, err)
	}
}

func TestLifetimeWhenHeadersSayIt(t *testing.T) {
	for _, tc := range []struct {
		header string
		age    string
		want   time.Duration
	}{
		{"", "", noHeaderAge},
		{"public, max-age=300, must-revalidate", "", 300 * time.Second},
		{"max-age=300", "100", 200 * time.Second},
		{"max-age=300", "400", 0},
		{`max-age="60"`, "", time.Minute},
		{"MAX-AGE=60", "", time.Minute},
		{"max-age=60, max-age=600", "", time.Minute},
		{"no-store", "", 0},
		{"no-cache, max-age=60", "", 0},
		{"max-age=-5", "", 0},
		{"max-age=soon", "", 0},
		{"max-age=99999999999999999999999", "", 10 * 365 * 24 * time.Hour},
		{"s-maxage=5", "", noHeaderAge},
	} {
		h := http.Header{}
		if tc.header != "" {
			h.Set("Cache-Control", tc.header)
		}
		if tc.age != "" {
			h.Set("Age", tc.age)
		}
		if got := lifetime(h); got != tc.want {
			t.Errorf("%q, Age %q: %s, want %s", tc.header, tc.age, got, tc.want)
		}
	}
}

package verify

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

// TokensConfig says which tokens are accepted, and where their keys are.
type TokensConfig struct {
	// Issuer is the iss claim, compared byte by byte. Required.
	Issuer string
	// JWKSURL is where the keys are: SERVER/keysets/NAME/jwks.json. Without it,
	// DiscoveryURL names it; and without that too, the document at
	// Issuer/.well-known/openid-configuration, which must name the same issuer.
	JWKSURL      string
	DiscoveryURL string
	// Audiences are those of which a token must have one. Required, unless
	// AnyAudience says that a token made for somebody else will do.
	Audiences   []string
	AnyAudience bool
	// Algorithms are JWS names. Empty: ES256, ES384, ES512, EdDSA, RS256, RS384,
	// RS512, PS256, PS384 and PS512. A key is used only with its own.
	Algorithms []string
	// Type, if not empty, is the typ header that a token must have, as "at+jwt".
	Type string
	// Leeway is added on both sides for clocks that differ. 0: 1 minute, less than
	// 0: none, at most 5 minutes.
	Leeway time.Duration

	// MaxAge bounds how long a JWKS is used before it is fetched again, whatever
	// its server says. 0: 10 minutes; from 10 seconds to 1 day.
	MaxAge time.Duration
	// MaxStale is for how much longer it is used while it can't be fetched. So long
	// a key that was withdrawn in the meantime is accepted too, and who can cut the
	// connection can bring that about. 0: 1 hour, less than 0: not at all, at most
	// 1 day.
	MaxStale time.Duration
	// FetchTimeout bounds one fetch. 0: 5 seconds; at most 1 minute.
	FetchTimeout time.Duration

	// HTTPClient fetches documents. Its own redirect rule is not used: redirects
	// to another host are not followed.
	HTTPClient *http.Client
	// AllowHTTP allows http URLs of hosts other than this one. Who is on the way
	// can then make tokens.
	AllowHTTP bool
	// Report, if set, hears of each fetch that failed, also of those that no call
	// waits for, one at a time. It must return soon.
	Report func(error)
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

const (
	minAge         = 10 * time.Second // less would be a fetch per request
	noHeaderAge    = 5 * time.Minute  // of a JWKS that says nothing
	unknownEvery   = 10 * time.Second // a fetch that an unknown key id causes
	maxRetryPause  = 10 * time.Second
	maxWaiting     = 4096 // calls that wait for a fetch
	maxToken       = 16 << 10
	defaultLeeway  = time.Minute
	defaultMaxAge  = 10 * time.Minute
	defaultStale   = time.Hour
	defaultTimeout = 5 * time.Second
)

var allAlgorithms = []string{"ES256", "ES384", "ES512", "EdDSA", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}

// Tokens verifies tokens of one issuer. It is safe for concurrent use.
//
// Keys are fetched by the calls that need them, ahead of their expiry, so a call
// with a known key id waits for a fetch in two cases only: there is no set yet, or
// the last one has run out while nobody asked. Run avoids the second. A set that
// can't be fetched again is used for MaxStale more.
type Tokens struct {
	cfg  TokensConfig
	algs []jose.SignatureAlgorithm
	docs *documents

	set atomic.Pointer[keySet]

	mu          sync.Mutex
	flight      *flight   // the fetch under way
	failures    int       // since the last success
	lastErr     error     // of the last failure
	retryAt     time.Time // of a fetch that failed
	unknownNext time.Time // when an unknown key id may cause a fetch
	waiting     int
}

type flight struct {
	done chan struct{}
	err  error // once done is closed
}

// NewTokens checks the configuration. It fetches nothing: see [Tokens.Refresh].
func NewTokens(cfg TokensConfig) (*Tokens, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("verifying tokens: %w", err)
	}
	t := &Tokens{cfg: cfg}
	for _, a := range cfg.Algorithms {
		t.algs = append(t.algs, jose.SignatureAlgorithm(a))
	}
	t.docs = newDocuments(&t.cfg)
	return t, nil
}

func (c *TokensConfig) check() error {
	if c.Issuer == "" {
		return errors.New("set Issuer to the iss claim of the tokens")
	}
	if len(c.Audiences) == 0 && !c.AnyAudience {
		return errors.New("set Audiences to those that this service answers to, or set AnyAudience")
	}
	if slices.Contains(c.Audiences, "") {
		return errors.New("an audience is empty")
	}
	if len(c.Algorithms) == 0 {
		c.Algorithms = allAlgorithms
	}
	for _, a := range c.Algorithms {
		if !slices.Contains(allAlgorithms, a) {
			return fmt.Errorf("algorithm %q can't be accepted: %s can", a, strings.Join(allAlgorithms, ", "))
		}
	}
	for _, d := range []struct {
		name                 string
		value                *time.Duration
		usual, least, most   time.Duration
		negativeMeansNothing bool
	}{
		{"Leeway", &c.Leeway, defaultLeeway, 0, 5 * time.Minute, true},
		{"MaxAge", &c.MaxAge, defaultMaxAge, minAge, 24 * time.Hour, false},
		{"MaxStale", &c.MaxStale, defaultStale, 0, 24 * time.Hour, true},
		{"FetchTimeout", &c.FetchTimeout, defaultTimeout, time.Millisecond, time.Minute, false},
	} {
		switch v := *d.value; {
		case v == 0:
			*d.value = d.usual
		case v < 0 && d.negativeMeansNothing:
			*d.value = 0
		case v < d.least || v > d.most:
			return fmt.Errorf("%s is %s: it goes from %s to %s", d.name, v, d.least, d.most)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Report == nil {
		c.Report = func(error) {}
	}
	return c.checkURLs()
}

// Verify verifies a token in the compact form and returns its claims. The error is
// a [Denied], or [ErrUnavailable] when there are no keys to verify it with.
func (t *Tokens) Verify(ctx context.Context, token string) (*Claims, error) {
	h, err := t.header(token)
	if err != nil {
		return nil, err
	}
	key, err := t.key(ctx, h.Kid)
	if err != nil {
		return nil, err
	}
	alg := jose.SignatureAlgorithm(h.Alg)
	if !slices.Contains(key.algs, alg) {
		return nil, &Denied{ReasonAlgorithm, "the key " + quote(h.Kid) + " is not for " + quote(h.Alg)}
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{alg})
	if err != nil {
		return nil, &Denied{ReasonMalformed, "it is not a signed token"}
	}
	payload, err := jws.Verify(key.key)
	if err != nil {
		return nil, &Denied{ReasonSignature, "the signature is not that of the key " + quote(h.Kid)}
	}
	claims, err := parseClaims(payload)
	if err != nil {
		return nil, &Denied{ReasonMalformed, "the claims of the token can't be read"}
	}
	claims.KeyID, claims.Algorithm, claims.Type = h.Kid, h.Alg, h.Typ
	if err := t.check(claims, t.cfg.Now()); err != nil {
		return nil, err
	}
	return claims, nil
}

// header is the part of a JOSE header that decides how a token is verified.
type header struct {
	Alg  string          `json:"alg"`
	Kid  string          `json:"kid"`
	Typ  string          `json:"typ"`
	Crit json.RawMessage `json:"crit"`
	B64  json.RawMessage `json:"b64"`
	Zip  json.RawMessage `json:"zip"`
}

// header reads the header of a token whose form is beyond doubt.
func (t *Tokens) header(token string) (*header, error) {
	if len(token) > maxToken {
		return nil, &Denied{ReasonMalformed, fmt.Sprintf("it is longer than %d bytes", maxToken)}
	}
	if !looksLikeToken(token) {
		return nil, &Denied{ReasonMalformed, "it is not three parts of base64url with a dot between them"}
	}
	first, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.Strict().DecodeString(first)
	var h header
	if err != nil || json.Unmarshal(raw, &h) != nil {
		return nil, &Denied{ReasonMalformed, "its header is not a JSON object, or has a name twice"}
	}
	switch {
	case h.Crit != nil || h.B64 != nil || h.Zip != nil:
		return nil, &Denied{ReasonMalformed, "its header asks for an extension (crit, b64, zip), and none is known"}
	case !slices.Contains(t.algs, jose.SignatureAlgorithm(h.Alg)):
		return nil, &Denied{ReasonAlgorithm, "the algorithm " + quote(h.Alg) + " is not accepted"}
	case h.Kid == "" || len(h.Kid) > maxKeyID:
		return nil, &Denied{ReasonMalformed, fmt.Sprintf("its header needs a kid of 1 to %d bytes", maxKeyID)}
	case t.cfg.Type != "" && !sameType(h.Typ, t.cfg.Type):
		return nil, &Denied{ReasonType, "the type " + quote(h.Typ) + " is not " + quote(t.cfg.Type)}
	}
	return &h, nil
}

// looksLikeToken tells a token in the compact form from anything else. Each part is
// in the one spelling that an encoder writes: decoders skip line ends, and the bits
// that the last character has too many, and so one token would have many spellings.
func looksLikeToken(s string) bool {
	parts := 0
	for part := range strings.SplitSeq(s, ".") {
		if parts++; parts > 3 || !canonicalBase64(part) {
			return false
		}
	}
	return parts == 3
}

// canonicalBase64 accepts base64url without padding (RFC 4648, sections 3.5 and 5).
func canonicalBase64(s string) bool {
	last := 0
	for i := 0; i < len(s); i++ {
		switch c := int(s[i]); {
		case 'A' <= c && c <= 'Z':
			last = c - 'A'
		case 'a' <= c && c <= 'z':
			last = c - 'a' + 26
		case '0' <= c && c <= '9':
			last = c - '0' + 52
		case c == '-':
			last = 62
		case c == '_':
			last = 63
		default:
			return false
		}
	}
	switch len(s) % 4 {
	case 0:
		return s != ""
	case 2:
		return last&0xf == 0
	case 3:
		return last&3 == 0
	}
	return false
}

// sameType compares media types (RFC 7515, section 4.1.9).
func sameType(a, b string) bool {
	short := func(s string) string {
		if rest, ok := strings.CutPrefix(strings.ToLower(s), "application/"); ok && !strings.Contains(rest, "/") {
			return rest
		}
		return strings.ToLower(s)
	}
	return short(a) == short(b)
}

func (t *Tokens) check(c *Claims, now time.Time) error {
	leeway := t.cfg.Leeway
	switch {
	case c.Issuer != t.cfg.Issuer:
		return &Denied{ReasonIssuer, "its issuer is " + quote(c.Issuer)}
	case !t.cfg.AnyAudience && !slices.ContainsFunc(c.Audience, func(a string) bool { return slices.Contains(t.cfg.Audiences, a) }):
		return &Denied{ReasonAudience, "it is for none of the audiences of this service"}
	case c.ExpiresAt.IsZero():
		return &Denied{ReasonMalformed, "it has no exp claim"}
	case !now.Before(c.ExpiresAt.Add(leeway)):
		return &Denied{ReasonExpired, "it expired at " + c.ExpiresAt.Format(time.RFC3339)}
	case !c.NotBefore.IsZero() && now.Add(leeway).Before(c.NotBefore):
		return &Denied{ReasonWindow, "it holds from " + c.NotBefore.Format(time.RFC3339) + " on"}
	case !c.IssuedAt.IsZero() && now.Add(leeway).Before(c.IssuedAt):
		return &Denied{ReasonWindow, "it was issued at " + c.IssuedAt.Format(time.RFC3339) + ", which is in the future: set the clocks"}
	}
	return nil
}

// quote quotes what a stranger sent, at a length that fits a log line.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

package jwks

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// claims checks the caller's claims and returns the payload to sign.
func claims(set *Keyset, req Sign, now time.Time) ([]byte, Signed, error) {
	var out Signed
	bad := func(format string, args ...any) ([]byte, Signed, error) {
		return nil, Signed{}, fault.Invalid("claims", "bad_claims", format, args...)
	}
	if len(req.Claims) > maxTokenSize {
		return bad("the claims are %d bytes, more than %d", len(req.Claims), maxTokenSize)
	}
	if req.TTL < 0 || req.TTL > maxDuration {
		return nil, out, fault.Invalid("ttl", "duration_range", "ttl %s is outside 0 to %s", req.TTL, maxDuration)
	}
	if err := checkTyp(req.Typ); err != nil {
		return nil, out, err
	}
	c, err := parseClaims(req.Claims)
	if err != nil {
		return bad("%v", err)
	}
	if iss, ok := c["iss"]; ok {
		var s string
		if json.Unmarshal(iss, &s) != nil || s != set.Issuer {
			return bad("iss is not the issuer of keyset %q, %s: leave it out", set.Name, set.Issuer)
		}
	}
	for _, name := range []string{"sub", "jti"} {
		var s *string
		if v, ok := c[name]; ok && (json.Unmarshal(v, &s) != nil || s == nil) {
			return bad("%s must be a string", name)
		}
	}
	if v, ok := c["aud"]; ok && !isAudience(v) {
		return bad("aud must be a string or an array of strings")
	}
	if _, ok := c["iat"]; ok {
		return bad("iat is set by Rotunda: leave it out")
	}
	if v, ok := c["nbf"]; ok {
		if _, err := numericDate(v); err != nil {
			return bad("nbf %v", err)
		}
	}

	life := req.TTL
	if life == 0 {
		life = set.Policy.TokenTTL
	}
	if v, ok := c["exp"]; ok {
		exp, err := numericDate(v)
		if err != nil {
			return bad("exp %v", err)
		}
		if !exp.After(now) {
			return bad("exp %s is not in the future", stamp(exp))
		}
		asked := exp.Sub(now)
		if req.TTL == 0 || asked < life {
			life = asked
		}
	}
	if life > set.Policy.TokenTTL {
		if set.Policy.Overlong == OverlongRefuse {
			return nil, out, fault.Invalid("ttl", "ttl_too_long", "a life of %s is longer than the token_ttl %s of keyset %q: ask for less, or raise token_ttl", life.Truncate(time.Second), set.Policy.TokenTTL, set.Name)
		}
		life, out.Clamped = set.Policy.TokenTTL, true
	}
	// Whole seconds, rounded down: the token never lives longer than was noted.
	out.ExpiresAt = now.Add(life).Truncate(time.Second)
	if !out.ExpiresAt.After(now) {
		return nil, out, fault.Invalid("ttl", "duration_range", "a life of %s is under a second: ask for more", life)
	}

	c["iss"] = mustJSON(set.Issuer)
	c["iat"] = json.RawMessage(strconv.FormatInt(now.Unix(), 10))
	c["exp"] = json.RawMessage(strconv.FormatInt(out.ExpiresAt.Unix(), 10))
	if _, ok := c["jti"]; !ok {
		c["jti"] = json.RawMessage(`"` + rand.Text() + `"`)
	}
	var payload bytes.Buffer
	enc := json.NewEncoder(&payload)
	enc.SetEscapeHTML(false) // six times as long, for nothing
	if err := enc.Encode(c); err != nil {
		return bad("the claims can't be written as JSON")
	}
	return bytes.TrimSpace(payload.Bytes()), out, nil
}

// parseClaims reads a JSON object with unique member names (RFC 7519, section
// 4), keeping numbers as they are written.
func parseClaims(b []byte) (map[string]json.RawMessage, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return map[string]json.RawMessage{}, nil
	}
	if !utf8.Valid(b) {
		return nil, errors.New("the claims are not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("the claims are no JSON object")
	}
	c := map[string]json.RawMessage{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, errors.New("the claims are no JSON object")
		}
		for _, known := range []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti"} {
			if name != known && strings.EqualFold(name, known) {
				// Some JSON readers take it for the registered claim.
				return nil, fmt.Errorf("claim %q differs from %q only in case", clip(name), known)
			}
		}
		if _, twice := c[name]; twice {
			return nil, fmt.Errorf("claim %q appears twice", clip(name))
		}
		if len(c) == maxTokenClaim {
			return nil, fmt.Errorf("there are more than %d claims", maxTokenClaim)
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("claim %q is no JSON value", clip(name))
		}
		if deep(v) > maxTokenDepth {
			return nil, fmt.Errorf("claim %q is nested deeper than %d", clip(name), maxTokenDepth)
		}
		c[name] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, errors.New("the claims are no JSON object")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the claims")
	}
	return c, nil
}

// numericDate reads a NumericDate (RFC 7519, section 2) within the years 1970 to 9999.
func numericDate(v json.RawMessage) (time.Time, error) {
	var f *float64
	if json.Unmarshal(v, &f) != nil || f == nil {
		return time.Time{}, errors.New("must be a number of seconds since 1970")
	}
	if *f < 0 || *f > 253402300799 {
		return time.Time{}, errors.New("is outside the years 1970 to 9999")
	}
	return time.Unix(int64(math.Floor(*f)), 0).UTC(), nil
}

func isAudience(v json.RawMessage) bool {
	var one *string
	if json.Unmarshal(v, &one) == nil {
		return one != nil
	}
	var many []*string
	if json.Unmarshal(v, &many) != nil {
		return false
	}
	for _, s := range many {
		if s == nil {
			return false
		}
	}
	return true
}

// checkTyp allows media-type names (RFC 7515, section 4.1.9).
func checkTyp(typ string) error {
	for _, r := range typ {
		if r <= ' ' || r >= 0x7f || r == '"' || r == '\\' {
			return fault.Invalid("typ", "bad_typ", "typ %q is no media type: use for example \"JWT\" or \"at+jwt\"", clip(typ))
		}
	}
	if len(typ) > 64 {
		return fault.Invalid("typ", "bad_typ", "typ is longer than 64 bytes")
	}
	return nil
}

func mustJSON(s string) json.RawMessage {
	b, _ := json.Marshal(s) // a string always marshals
	return b
}

// deep returns how deep arrays and objects are nested in a valid JSON value.
func deep(v json.RawMessage) (most int) {
	depth, quoted := 0, false
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
			most = max(most, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return most
}

package jwks

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// Sign describes a token to be signed.
type Sign struct {
	Name   string        // of the keyset
	Claims []byte        // a JSON object; iss, iat and exp are set by Rotunda, jti when absent
	TTL    time.Duration // 0: the policy's TokenTTL
	Typ    string        // "": "JWT"
}

// Signed is a signed token.
type Signed struct {
	Token     string // compact JWS (RFC 7515, section 7.1)
	Kid       string
	ExpiresAt time.Time
	Clamped   bool // the life asked for was longer than the policy allows
	Fallback  bool // the standby signed, because the active key's signer is out of reach
}

// Sign signs a JWT (RFC 7519) with the keyset's active key, from memory.
//
// Before a key signs a longer life than ever before, that life is committed to
// its row: the key's withdrawal waits for it. So no token outlives the
// publication of its key, whatever happens to the policy later.
//
// Errors: fault.ErrInvalid for claims that can't be signed, fault.ErrNotFound,
// and fault.ErrUnavailable when the signer, or for longer than SignerLease the
// database, is out of reach.
func (ks *Keysets) Sign(ctx context.Context, req Sign) (Signed, error) {
	for attempt := 0; ; attempt++ {
		s, err := ks.sign(ctx, req)
		if !errors.Is(err, errMoved) {
			if err != nil {
				return Signed{}, fmt.Errorf("sign with keyset %q: %w", clip(req.Name), err)
			}
			return s, nil
		}
		if attempt == 3 {
			return Signed{}, fmt.Errorf("sign with keyset %q: %w", req.Name, fault.New(fault.ErrUnavailable, "keys_moving", "its keys change too fast: try again"))
		}
		if err := ks.Refresh(ctx); err != nil {
			return Signed{}, fmt.Errorf("sign with keyset %q: %w", req.Name, err)
		}
	}
}

func (ks *Keysets) sign(ctx context.Context, req Sign) (Signed, error) {
	e, ok := ks.view.entry(req.Name)
	if !ok {
		return Signed{}, fault.New(fault.ErrNotFound, "keyset_not_found", "keyset %q does not exist: see `rotunda keyset list`", clip(req.Name)).On("name")
	}
	if stale := ks.Staleness(); stale > SignerLease/2 {
		// Half of the lease is left for the signature itself and for clocks that run apart.
		if err := ks.renewLease(ctx); err != nil {
			return Signed{}, fault.New(fault.ErrUnavailable, "lease_over", "the database has not answered for %s, so another replica may have revoked the key: %w", stale.Truncate(time.Second), err)
		}
		return Signed{}, errMoved
	}
	if e.active == nil {
		return Signed{}, fault.New(fault.ErrUnavailable, "no_active_key", "no key is active")
	}
	now := ks.db.Now()
	payload, out, err := claims(e.set, req, now)
	if err != nil {
		return Signed{}, err
	}
	life := out.ExpiresAt.Sub(now)

	signature, err := ks.signWith(ctx, e, e.active, payload, req.Typ, life)
	if err == nil {
		if !e.set.FallbackSince.IsZero() {
			ks.endFallback(ctx, e, now)
		}
		out.Token, out.Kid = signature, e.active.kid
		return out, nil
	}
	if !errors.Is(err, fault.ErrUnavailable) || e.set.Policy.Fallback != FallbackStandby || ctx.Err() != nil {
		return Signed{}, err
	}
	standby := e.set.Standby()
	if standby == nil || e.set.leadOver(*standby).After(now) {
		return Signed{}, fmt.Errorf("the standby can't stand in, its lead is not over: %w", err)
	}
	token, standbyErr := ks.signWith(ctx, e, e.standby, payload, req.Typ, life)
	if standbyErr != nil {
		return Signed{}, errors.Join(err, standbyErr)
	}
	if e.set.FallbackSince.IsZero() {
		if err := ks.startFallback(ctx, e, err); err != nil {
			return Signed{}, err
		}
	}
	out.Token, out.Kid, out.Fallback = token, e.standby.kid, true
	return out, nil
}

// signWith signs with one key after it has made sure that the token's life is
// on the key's row.
func (ks *Keysets) signWith(ctx context.Context, e *entry, s *signing, payload []byte, typ string, life time.Duration) (string, error) {
	signer, err := ks.open(ctx, s)
	if err != nil {
		return "", fmt.Errorf("key %s: %w", s.kid, err)
	}
	if int64(life) > s.life.Load() {
		if err := ks.extend(ctx, e.set, s, life); err != nil {
			return "", err
		}
	}
	if typ == "" {
		typ = "JWT"
	}
	alg := e.set.Algorithm.JWS()
	opts := (&jose.SignerOptions{}).WithType(jose.ContentType(typ)).WithHeader("kid", s.kid)
	js, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: opaque{ctx, alg, s.kid, signer}}, opts)
	if err != nil {
		return "", fmt.Errorf("key %s: %w", s.kid, err)
	}
	jws, err := js.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("key %s: %w", s.kid, err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("key %s: %w", s.kid, err)
	}
	ks.usage.add(s)
	return token, nil
}

// extend commits a longer token life to a key that may still sign. It is
// rounded up, so that a key is extended a few times in its life and not with
// each token that is a second longer.
func (ks *Keysets) extend(ctx context.Context, set *Keyset, s *signing, life time.Duration) error {
	to := set.Policy.TokenTTL
	if life > to {
		to = life
	}
	err := ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.Swap(ctx, `UPDATE signing_keys SET max_token_life = CASE WHEN max_token_life < $1 THEN $1 ELSE max_token_life END
			WHERE keyset_id = $2 AND kid = $3 AND state IN ('active', 'pending')`, to.Microseconds(), s.keysetID, s.kid)
	})
	if errors.Is(err, fault.ErrChanged) {
		return errMoved
	}
	if err != nil {
		return fmt.Errorf("note the life of a token on key %s: %w", s.kid, err)
	}
	s.learn(to)
	return nil
}

// startFallback writes down that the standby signs, once, however many
// replicas find out at the same time.
func (ks *Keysets) startFallback(ctx context.Context, e *entry, why error) error {
	err := ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, err := begin(ctx, tx, e.set.Name)
		if err != nil {
			return err
		}
		if a := c.set.Active(); !c.set.FallbackSince.IsZero() || a == nil || a.Kid != e.active.kid {
			return errMoved
		}
		c.set.FallbackSince = tx.Now
		err = audit.Record(ctx, tx, audit.Event{Actor: audit.Rotunda, Action: "keyset.fallback_start", Resource: c.set.resource(e.standby.kid), Reason: "signer_unreachable",
			Detail: map[string]any{"active": e.active.kid, "standby": e.standby.kid, "error": clip(why.Error())}})
		if err != nil {
			return err
		}
		return c.end(ctx)
	})
	if err != nil && !errors.Is(err, errMoved) && !errors.Is(err, fault.ErrChanged) {
		return fmt.Errorf("write down that the standby signs: %w", err)
	}
	return ks.Refresh(ctx)
}

// minFallback keeps a signer that comes and goes from filling the trail.
const minFallback = time.Minute

// endFallback writes down that the active key signs again. A token has been
// signed already: if it can't be written now, a later token tries again.
func (ks *Keysets) endFallback(ctx context.Context, e *entry, now time.Time) {
	if now.Sub(e.set.FallbackSince) < minFallback {
		return
	}
	_ = ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, err := begin(ctx, tx, e.set.Name)
		if err != nil {
			return err
		}
		if c.set.FallbackSince.IsZero() {
			return errMoved
		}
		err = audit.Record(ctx, tx, audit.Event{Actor: audit.Rotunda, Action: "keyset.fallback_end", Resource: c.set.resource(e.active.kid),
			Detail: map[string]any{"active": e.active.kid, "since": stamp(c.set.FallbackSince)}})
		if err != nil {
			return err
		}
		c.set.FallbackSince = time.Time{}
		return c.end(ctx)
	})
	_ = ks.Refresh(ctx)
}

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
	payload, err := json.Marshal(c)
	if err != nil {
		return bad("the claims can't be written as JSON")
	}
	return payload, out, nil
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
		if _, twice := c[name]; twice {
			return nil, fmt.Errorf("claim %q stands twice", clip(name))
		}
		if len(c) == maxTokenClaim {
			return nil, fmt.Errorf("there are more than %d claims", maxTokenClaim)
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("claim %q is no JSON value", clip(name))
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

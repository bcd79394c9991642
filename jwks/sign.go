package jwks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"

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

	// What is left of the lease bounds the signature too.
	ctx, cancel := context.WithTimeout(ctx, SignerLease/2)
	defer cancel()
	signature, err := ks.tryActive(ctx, e, payload, req.Typ, life)
	if err == nil {
		if !e.set.FallbackSince.IsZero() {
			ks.endFallback(ctx, e, now)
		}
		out.Token, out.Kid = signature, e.active.kid
		return out, nil
	}
	if !errors.Is(err, errUnreachable) || e.set.Policy.Fallback != FallbackStandby || ctx.Err() != nil {
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

// tryActive signs with the active key. Where the standby may stand in, half of
// the time is left for it.
func (ks *Keysets) tryActive(ctx context.Context, e *entry, payload []byte, typ string, life time.Duration) (string, error) {
	if e.set.Policy.Fallback == FallbackStandby {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, SignerLease/4)
		defer cancel()
	}
	return ks.signWith(ctx, e, e.active, payload, typ, life)
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
		return "", fmt.Errorf("key %s: %w", s.kid, outOfReach(err))
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

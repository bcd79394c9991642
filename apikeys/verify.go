package apikeys

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// Verify returns the token whose value a caller presents from an address. The
// error is fault.ErrDenied with the reason "malformed", "unknown", "tampered",
// "revoked", "expired", "suspended" (its partner is) or "address", or
// fault.ErrUnavailable. To the caller all denials
// look the same; the reason is for the trail, and so is the token, which the
// [Denial] names when it is known which one was meant.
//
// How often a token was accepted, and denied to who had its value, is counted
// for the trail: see [Tokens.Usage].
func (ts *Tokens) Verify(ctx context.Context, value string, from netip.Addr) (*Token, error) {
	k, ok := parseKeyString(value)
	if !ok {
		return nil, denied("malformed")
	}
	c, err := ts.lookup(ctx, k.id)
	if err != nil {
		if d, ok := errors.AsType[*Denial](err); ok && d.Token != "" {
			ts.Usage.Count(audit.TokenUsage, resource(d.Token), d.err.Reason, 1, ts.db.Now())
		}
		return nil, err
	}
	t := c.token
	if digest := ts.digest(value); !c.holds(&digest) {
		pepper, err := ts.peppers.find(ctx, t.gen)
		if errors.Is(err, fault.ErrNotFound) && ts.forget(c) {
			// It was read before it moved to a newer pepper, and the old one was retired.
			if c, err = ts.lookup(ctx, k.id); err == nil {
				t = c.token
				pepper, err = ts.peppers.find(ctx, t.gen)
			}
		}
		if errors.Is(err, fault.ErrNotFound) {
			return nil, denied("unknown")
		}
		if err != nil {
			return nil, err
		}
		if !hmac.Equal(mac(pepper, "", k.secret), t.hash) || string(t.Role) != k.env {
			return nil, denied("unknown")
		}
		c.proof.Store(&digest)
	}
	now := ts.db.Now()
	reason := ""
	switch t.State(now) {
	case StateRevoked:
		reason = "revoked"
	case StateExpired:
		reason = "expired"
	default:
		if t.asleep {
			reason = "suspended"
		} else if len(t.CIDRs) > 0 && !slices.ContainsFunc(t.CIDRs, func(p netip.Prefix) bool { return p.Contains(from.Unmap()) }) {
			reason = "address"
		}
	}
	ts.Usage.Count(audit.TokenUsage, t.resource, reason, 1, now)
	if reason != "" {
		return nil, denied(reason).of(t)
	}
	newest, newer := ts.peppers.current()
	var hash []byte
	if t.gen < newest {
		hash = mac(newer, "", k.secret)
	}
	ts.mu.Lock()
	ts.used[t.ID] = now
	if hash != nil && len(ts.moved) < maxCached {
		ts.moved[t.ID] = movedTo{t.gen, newest, hash}
	}
	ts.mu.Unlock()
	return t, nil
}

// forget drops a remembered token, and reports whether it was remembered.
func (ts *Tokens) forget(c *cached) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.cache[c.token.ID] != c {
		return false
	}
	delete(ts.cache, c.token.ID)
	return true
}

// Remembers reports whether this process has read a token of this value before,
// active when it did. It asks no database, and it lets nobody in: it tells a
// caller whom Verify knows from one who guesses.
func (ts *Tokens) Remembers(value string) bool {
	k, ok := parseKeyString(value)
	if !ok {
		return false
	}
	ts.mu.Lock()
	c := ts.cache[k.id]
	ts.mu.Unlock()
	if c == nil {
		return false
	}
	pepper, ok := ts.peppers.get(c.token.gen)
	return ok && hmac.Equal(mac(pepper, "", k.secret), c.token.hash) && string(c.token.Role) == k.env &&
		c.token.State(ts.db.Now()) == StateActive && !c.token.asleep
}

// digest is what a token in memory knows its value by once it was proven: an HMAC
// for each request would be most of what a verification by RPC costs. It is of no use
// outside of this process, and forgotten with the token.
func (ts *Tokens) digest(value string) [sha256.Size]byte {
	var buf [256]byte // more than a token has, or it is moved to the heap
	return sha256.Sum256(append(append(buf[:0], ts.salt[:]...), value...))
}

// holds reports whether a digest is that of a value that was proven to be the token's.
func (c *cached) holds(digest *[sha256.Size]byte) bool {
	proof := c.proof.Load()
	return proof != nil && subtle.ConstantTimeCompare(proof[:], digest[:]) == 1
}

// Denial is the error of a token that is not accepted. It wraps a *fault.Error
// of kind fault.ErrDenied.
type Denial struct {
	Token string // id of the token that was meant; "" when nobody knows
	err   *fault.Error
}

func denied(reason string) *Denial {
	return &Denial{err: fault.New(fault.ErrDenied, reason, "the access token is not accepted: %s", reason)}
}

func (d *Denial) of(t *Token) *Denial {
	d.Token = t.ID
	return d
}

func (d *Denial) Error() string { return d.err.Error() }

// Unwrap makes the kind and the reason visible.
func (d *Denial) Unwrap() error { return d.err }

// lookup returns the token of an id, from memory or from its row. The error is
// fault.ErrDenied, reason "unknown" or "tampered", or fault.ErrUnavailable.
func (ts *Tokens) lookup(ctx context.Context, id string) (*cached, error) {
	tick := ts.db.Tick()
	ts.mu.Lock()
	c, revoked := ts.cache[id], ts.revoked
	ts.mu.Unlock()
	if c != nil && tick-c.seen < FreshFor {
		return c, nil
	}
	grace := c != nil && tick-c.seen < GraceFor
	reading := ctx
	if grace {
		// A database that hangs must not use the grace up.
		var cancel context.CancelFunc
		reading, cancel = context.WithTimeout(ctx, graceWait)
		defer cancel()
	}
	var t *Token
	err := ts.db.View(reading, func(ctx context.Context, tx *store.Tx) (err error) {
		if t, err = read(ctx, tx, id); err != nil {
			return err
		}
		if err := ts.genuine(t); err != nil || t.Partner == "" {
			return err
		}
		p, err := ts.peppers.readPartner(ctx, tx, t.Partner)
		if err != nil {
			return err
		}
		if p.tampered {
			return denied("tampered").of(t) // nobody knows whether it is active
		}
		t.asleep = p.State != Active
		return nil
	})
	switch {
	case err == nil:
		ts.mu.Lock()
		if len(ts.cache) >= maxCached {
			clear(ts.cache) // it fills again within a second
		}
		fresh := &cached{token: t, seen: tick}
		if ts.revoked == revoked { // else what was read may be what was just revoked
			ts.cache[id] = fresh
		}
		ts.mu.Unlock()
		return fresh, nil
	case errors.Is(err, fault.ErrNotFound):
		return nil, denied("unknown")
	case grace && ctx.Err() == nil && (errors.Is(err, fault.ErrUnavailable) || reading.Err() != nil):
		return c, nil
	}
	return nil, err
}

// GatewayRanges returns the address ranges of all usable gateway tokens: a
// client there is a registered gateway even when it can't send a token.
func (ts *Tokens) GatewayRanges(ctx context.Context) (ranges []netip.Prefix, err error) {
	err = ts.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		ranges = nil
		return ts.usable(ctx, tx, Gateway, func(t *Token) { ranges = append(ranges, t.CIDRs...) })
	})
	if err != nil {
		return nil, fmt.Errorf("read the address ranges of gateways: %w", err)
	}
	return ranges, nil
}

// Pass writes when tokens were last used, and is called about once a second.
func (ts *Tokens) Pass(ctx context.Context, now time.Time) (time.Time, error) {
	if now.Sub(ts.writtenAt) < usedEvery && !now.Before(ts.writtenAt) {
		return time.Time{}, nil
	}
	ts.writtenAt = now
	return time.Time{}, ts.Flush(ctx)
}

// Flush writes what this process only has in memory.
func (ts *Tokens) Flush(ctx context.Context) error {
	ts.mu.Lock()
	used, moved := ts.used, ts.moved
	ts.used, ts.moved = map[string]time.Time{}, map[string]movedTo{}
	ts.mu.Unlock()
	// What fails is not tried again: whoever uses a token again moves it again.
	moveErr := ts.writeMoved(ctx, moved)
	if len(used) == 0 {
		return moveErr
	}
	err := ts.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		// In one order, or two replicas could wait for each other.
		for _, id := range slices.Sorted(maps.Keys(used)) {
			_, err := tx.Exec(ctx, `UPDATE access_tokens SET last_used_at = $1 WHERE id = $2 AND last_used_at < $1`, store.Micros(used[id]), id)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		ts.mu.Lock()
		for id, at := range used {
			if at.After(ts.used[id]) {
				ts.used[id] = at
			}
		}
		ts.mu.Unlock()
		err = fmt.Errorf("write when tokens were last used: %w", err)
	}
	return errors.Join(moveErr, err)
}

// writeMoved writes what tokens are hashed as under the newest pepper.
func (ts *Tokens) writeMoved(ctx context.Context, moved map[string]movedTo) error {
	if len(moved) == 0 {
		return nil
	}
	err := ts.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := takeTurns(ctx, tx); err != nil {
			return err
		}
		for _, id := range slices.Sorted(maps.Keys(moved)) {
			m := moved[id]
			t, err := read(ctx, tx, id)
			if err != nil {
				return err
			}
			if t.gen != m.from || t.Stored != StateActive || ts.genuine(t) != nil {
				continue // another replica was faster, or there is nothing to move
			}
			if err := ts.peppers.check(ctx, tx, m.to); err != nil {
				return err
			}
			t.gen, t.hash = m.to, m.hash
			err = tx.Swap(ctx, `UPDATE access_tokens SET hash = $1, seal = $2, pepper_gen = $3 WHERE id = $4 AND pepper_gen = $5 AND state = $6`,
				t.hash, t.seal(ts.peppers.sealKey), t.gen, id, m.from, StateActive)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("hash tokens under the newest pepper: %w", err)
	}
	return nil
}

// Usable reports whether a token that was verified before would still be
// accepted: nil, fault.ErrDenied, or fault.ErrUnavailable when nobody knows.
func (ts *Tokens) Usable(ctx context.Context, id string) error {
	c, err := ts.lookup(ctx, id)
	if err != nil {
		return err
	}
	t := c.token
	if state := t.State(ts.db.Now()); state != StateActive {
		return denied(state)
	}
	if t.asleep {
		return denied("suspended")
	}
	return nil
}

// Forget has this process look at the tokens of a partner anew: the partner was
// suspended, or resumed.
func (ts *Tokens) Forget(partner string) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for id, c := range ts.cache {
		if c.token.Partner == partner {
			delete(ts.cache, id)
		}
	}
	ts.revoked++ // what is being read now may be what was just changed
}

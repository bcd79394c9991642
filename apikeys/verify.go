package apikeys

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// Verify returns the token whose value a caller presents from an address. The
// error is fault.ErrDenied with the reason "malformed", "unknown", "revoked",
// "expired" or "address", or fault.ErrUnavailable. To the caller all denials
// look the same; the reason is for the trail.
func (ts *Tokens) Verify(ctx context.Context, value string, from netip.Addr) (*Token, error) {
	k, ok := parseKeyString(value)
	if !ok {
		return nil, denied("malformed")
	}
	t, err := ts.lookup(ctx, k.id)
	if errors.Is(err, fault.ErrNotFound) {
		return nil, denied("unknown")
	}
	if err != nil {
		return nil, err
	}
	ts.mu.Lock()
	pepper, ok := ts.peppers[t.gen]
	ts.mu.Unlock()
	if !ok {
		return nil, fault.New(fault.ErrUnavailable, "pepper_missing", "pepper generation %d is not loaded: restart this replica", t.gen)
	}
	if !hmac.Equal(mac(pepper, "", k.secret), t.hash) || string(t.Role) != k.env {
		return nil, denied("unknown")
	}
	now := ts.db.Now()
	switch t.State(now) {
	case StateRevoked:
		return nil, denied("revoked")
	case StateExpired:
		return nil, denied("expired")
	}
	if len(t.CIDRs) > 0 && !slices.ContainsFunc(t.CIDRs, func(p netip.Prefix) bool { return p.Contains(from.Unmap()) }) {
		return nil, denied("address")
	}
	ts.mu.Lock()
	ts.used[t.ID] = now
	ts.mu.Unlock()
	return t, nil
}

func denied(reason string) error {
	return fault.New(fault.ErrDenied, reason, "the access token is not accepted: %s", reason)
}

func (ts *Tokens) lookup(ctx context.Context, id string) (*Token, error) {
	tick := ts.db.Tick()
	ts.mu.Lock()
	c, revoked := ts.cache[id], ts.revoked
	ts.mu.Unlock()
	if c != nil && tick-c.seen < FreshFor {
		return c.token, nil
	}
	var t *Token
	err := ts.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		t, err = read(ctx, tx, id)
		return err
	})
	switch {
	case err == nil:
		ts.mu.Lock()
		if len(ts.cache) >= maxCached {
			clear(ts.cache) // it fills again within a second
		}
		if ts.revoked == revoked { // else what was read may be what was just revoked
			ts.cache[id] = &cached{token: t, seen: tick}
		}
		ts.mu.Unlock()
		return t, nil
	case errors.Is(err, fault.ErrUnavailable) && c != nil && tick-c.seen < GraceFor:
		return c.token, nil
	}
	return nil, err
}

// GatewayRanges returns the address ranges of all usable gateway tokens: a
// client there is a registered gateway even when it can't send a token.
func (ts *Tokens) GatewayRanges(ctx context.Context) (ranges []netip.Prefix, err error) {
	err = ts.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		ranges = nil
		rows, err := tx.Query(ctx, `SELECT `+tokenColumns+` FROM access_tokens WHERE role = 'gateway' AND state = 'active'`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			t, err := scanToken(rows)
			if err != nil {
				return err
			}
			if t.State(tx.Now) == StateActive {
				ranges = append(ranges, t.CIDRs...)
			}
		}
		return rows.Err()
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
	used := ts.used
	ts.used = map[string]time.Time{}
	ts.mu.Unlock()
	if len(used) == 0 {
		return nil
	}
	err := ts.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		for id, at := range used {
			_, err := tx.Exec(ctx, `UPDATE access_tokens SET last_used_at = $1 WHERE id = $2 AND last_used_at < $1`, store.Micros(at), id)
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
		return fmt.Errorf("write when tokens were last used: %w", err)
	}
	return nil
}

// Usable reports whether a token that was verified before would still be
// accepted: nil, fault.ErrDenied, or fault.ErrUnavailable when nobody knows.
func (ts *Tokens) Usable(ctx context.Context, id string) error {
	t, err := ts.lookup(ctx, id)
	if err != nil {
		return err
	}
	if state := t.State(ts.db.Now()); state != StateActive {
		return denied(state)
	}
	return nil
}

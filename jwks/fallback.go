package jwks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// errUnreachable marks the failure of a key's home, as opposed to one of the
// database: only for the first may the standby stand in.
var errUnreachable = errors.New("the signer is out of reach")

// outOfReach marks an error of a home that may pass.
func outOfReach(err error) error {
	if errors.Is(err, fault.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	return err
}

// startFallback writes down that the standby signs, once, however many
// replicas find out at the same time.
func (ks *Keysets) startFallback(ctx context.Context, e *entry, why error) error {
	err := ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, err := ks.begin(ctx, tx, e.set.Name)
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
		c, err := ks.begin(ctx, tx, e.set.Name)
		if err != nil {
			return err
		}
		if c.set.FallbackSince.IsZero() {
			return errMoved
		}
		if err := c.endFallback(ctx); err != nil {
			return err
		}
		return c.end(ctx)
	})
	_ = ks.Refresh(ctx)
}

// endFallback writes down that the standby no longer stands in, if it did.
func (c *change) endFallback(ctx context.Context) error {
	if c.set.FallbackSince.IsZero() {
		return nil
	}
	detail := map[string]any{"since": stamp(c.set.FallbackSince)}
	c.set.FallbackSince = time.Time{}
	return audit.Record(ctx, c.tx, audit.Event{Actor: audit.Rotunda, Action: "keyset.fallback_end", Resource: c.set.resource(""), Detail: detail})
}

package jwks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// Mode says what signs after a key was revoked.
type Mode string

// The modes of a revocation.
const (
	// ModeStandby promotes the published standby: nobody refuses new tokens,
	// and no cache drops the revoked key before its time.
	ModeStandby Mode = "standby"
	// ModeFresh signs with a key that nobody has seen: consumers that refetch
	// on an unknown kid drop the revoked key at once, consumers that refresh on
	// a timer refuse new tokens until they do.
	ModeFresh Mode = "fresh"
	// modeNone only withdraws, for a key that does not sign.
	modeNone Mode = ""
)

// Reasons are the reasons of a revocation (RFC 5280, section 5.3.1).
var Reasons = []string{"unspecified", "key_compromise", "affiliation_changed", "superseded", "cessation_of_operation", "privilege_withdrawn"}

// Revoke describes a revocation.
type Revoke struct {
	Name    string
	Kid     string
	Mode    Mode   // required for the active key; for others, fresh also replaces the active key
	Reason  string // one of Reasons
	Comment string
	DryRun  bool
}

// Prediction is what a revocation would do to one consumer.
type Prediction struct {
	Consumer string
	Exposure time.Duration // longest time that the revoked key stays accepted; may be Forever
	Refusal  time.Duration // longest time that good new tokens are refused
	Refused  float64       // good new tokens refused in that time, at the present rate
	Note     string
}

// ModePlan is what a revocation in one mode would do.
type ModePlan struct {
	Mode        Mode
	Possible    bool
	Why         string // when it is not possible
	Predictions []Prediction
}

// RevokePlan is what a revocation would do in each mode.
type RevokePlan struct {
	Modes       []ModePlan
	Outstanding int64   // unexpired tokens of the revoked key, at most
	SignRate    float64 // tokens per second over the last hour
}

// Revoke withdraws a key that may be compromised and destroys its private
// half. It returns the plan, and unless DryRun the keyset as it is now.
func (ks *Keysets) Revoke(ctx context.Context, req Revoke) (*RevokePlan, *Keyset, error) {
	fail := func(err error) (*RevokePlan, *Keyset, error) {
		return nil, nil, fmt.Errorf("revoke key %s of keyset %q: %w", clip(req.Kid), clip(req.Name), err)
	}
	if req.Mode != modeNone && req.Mode != ModeStandby && req.Mode != ModeFresh {
		return fail(fault.Invalid("mode", "unknown_mode", "mode %q is unknown: use %q or %q", clip(string(req.Mode)), ModeStandby, ModeFresh))
	}
	if !req.DryRun && !slices.Contains(Reasons, req.Reason) {
		return fail(fault.Invalid("reason", "unknown_reason", "reason %q is unknown: use one of %v", clip(req.Reason), Reasons))
	}
	// What this process signed a moment ago counts too.
	if err := ks.flushUsage(ctx, ks.db.Now()); err != nil {
		return fail(err)
	}
	// How long the standby was served decides what happens: see Rotate.
	if !req.DryRun {
		if err := ks.served(ctx); err != nil {
			return fail(err)
		}
	}
	var plan *RevokePlan
	var set *Keyset
	err := ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		plan, set, err = ks.predict(ctx, tx, req)
		return err
	})
	if err != nil {
		return fail(err)
	}
	if req.DryRun {
		return plan, nil, nil
	}
	signs := set.anyKey(req.Kid).State == Active
	if signs && req.Mode == modeNone {
		return fail(fault.Invalid("mode", "mode_required", "the key signs, so something else must: choose mode %q or %q (see the plan with --dry-run)", ModeStandby, ModeFresh))
	}

	// The fresh key is made before the transaction. A spare standby is made too,
	// if that takes no time.
	var fresh, standby *Made
	if req.Mode == ModeFresh {
		if fresh, err = ks.make(ctx, set); err != nil {
			return fail(err)
		}
	}
	if req.Mode != ModeFresh && ks.ready(set) {
		if standby, err = ks.make(ctx, set); errors.Is(err, fault.ErrUnavailable) {
			err = nil // a revocation doesn't wait for a home: the next pass makes the standby
		}
		if err != nil {
			return fail(err)
		}
	}
	var withdrawn Key
	err = ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, err := ks.begin(ctx, tx, req.Name)
		if err != nil {
			return err
		}
		set, c.reason = c.set, req.Reason
		k := set.anyKey(req.Kid)
		if k == nil {
			return notPublished(set, req.Kid)
		}
		if (k.State == Active) != signs {
			return fmt.Errorf("%w: the key became %s meanwhile", fault.ErrChanged, k.State)
		}
		withdrawn = *k
		if err := c.move(ctx, withdrawn, Revoked); err != nil {
			return err
		}
		switch {
		case fresh != nil:
			if a := set.Active(); a != nil {
				if err := c.move(ctx, *a, Retiring); err != nil {
					return err
				}
			}
			c.override = true
			if err := c.move(ctx, c.born(*fresh, Generated), Active); err != nil {
				return err
			}
		case signs:
			p := set.Standby()
			if p == nil {
				return noStandby(set)
			}
			c.override = set.leadOver(*p).After(tx.Now)
			if err := c.move(ctx, *p, Active); err != nil {
				return err
			}
		}
		c.override, c.reason = false, ""
		if set.Standby() == nil && standby != nil {
			if err := c.move(ctx, c.born(*standby, Generated), Pending); err != nil {
				return err
			}
		}
		if withdrawn.State != Retiring || fresh != nil {
			if err := c.endFallback(ctx); err != nil {
				return err
			}
		}
		err = audit.Record(ctx, tx, audit.Event{Action: "keyset.revoke_key", Resource: set.resource(req.Kid), Reason: req.Reason,
			Detail: map[string]any{"kid": req.Kid, "was": string(withdrawn.State), "mode": string(req.Mode), "comment": req.Comment, "outstanding_tokens": plan.Outstanding}})
		if err != nil {
			return err
		}
		return c.end(ctx)
	})
	if err != nil {
		return fail(err)
	}
	ks.refreshAfterChange(ctx)
	err = ks.destroy(ctx, withdrawn, set)
	return plan, set.forDisplay(), err
}

func notPublished(set *Keyset, kid string) error {
	return fault.New(fault.ErrNotFound, "kid_not_found", "keyset %q publishes no key %s: see `rotunda keyset show %s`", set.Name, clip(kid), set.Name).On("kid")
}

func noStandby(set *Keyset) error {
	return fault.New(fault.ErrTransition, "no_standby", "keyset %q has no standby to promote: use mode %q", set.Name, ModeFresh).On("mode")
}

// predict computes the plans of a revocation from the policy's consumers, the
// age of the standby and the rate of signing.
func (ks *Keysets) predict(ctx context.Context, tx *store.Tx, req Revoke) (*RevokePlan, *Keyset, error) {
	set, err := ks.load(ctx, tx, req.Name)
	if err != nil {
		return nil, nil, err
	}
	k := set.anyKey(req.Kid)
	if k == nil {
		return nil, nil, notPublished(set, req.Kid)
	}
	consumers, err := set.Policy.consumers()
	if err != nil {
		return nil, nil, err
	}
	plan := &RevokePlan{}
	if plan.Outstanding, err = signed(ctx, tx, set.ID, k.Kid, tx.Now.Add(-k.MaxTokenLife)); err != nil {
		return nil, nil, err
	}
	lately, err := signed(ctx, tx, set.ID, "", tx.Now.Add(-rateWindow))
	if err != nil {
		return nil, nil, err
	}
	window := min(rateWindow, max(time.Minute, tx.Now.Sub(set.CreatedAt)))
	plan.SignRate = float64(lately) / window.Seconds()

	standby := set.Standby()
	for _, mode := range []Mode{ModeStandby, ModeFresh} {
		mp := ModePlan{Mode: mode, Possible: true}
		if k.State != Active && mode == ModeStandby {
			mp.Mode = modeNone // nothing else changes
		}
		if k.State == Active && mode == ModeStandby && standby == nil {
			mp.Possible, mp.Why = false, noStandby(set).Error()
		}
		for _, c := range consumers {
			p := Prediction{Consumer: c.Name, Note: c.Note}
			switch {
			case mode == ModeFresh:
				p.Exposure, p.Refusal = c.reach(set.Policy, true), c.refusal(set.Policy, 0)
			case k.State == Active && standby != nil:
				aged := tx.Now.Sub(standby.ServedSince).Truncate(time.Second)
				p.Refusal = c.refusal(set.Policy, aged)
				// The consumer may know the standby already, however young it is: no
				// refetch can be counted on.
				p.Exposure = c.reach(set.Policy, false)
			default:
				p.Exposure = c.reach(set.Policy, false)
			}
			p.Refused = plan.SignRate * p.Refusal.Seconds()
			mp.Predictions = append(mp.Predictions, p)
		}
		plan.Modes = append(plan.Modes, mp)
	}
	return plan, set, nil
}

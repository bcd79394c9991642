package apikeys

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// step says with what a key comes into another state.
type step struct {
	action string // of the event: "revoke"
	reason string // of the event
	detail map[string]any
	edit   func(k *Key) // what else of it changes
}

// move is the only code that changes a key's state. The event shares its
// transaction, and all caches hear of it. A secret is destroyed with the key's end.
func (ks *Keys) move(ctx context.Context, tx *store.Tx, seen *Key, to State, s step) (*Key, error) {
	if err := seen.genuine(); err != nil {
		return nil, err
	}
	state := seen.State(tx.Now)
	if !slices.Contains(moves[seen.Stored], to) || state == Expired && to != Retired && to != Revoked || state == Retired && to != Retired {
		return nil, over(seen, state, string(to))
	}
	k := *seen
	k.Stored, k.Since = to, tx.Now
	if s.edit != nil {
		s.edit(&k)
	}
	if k.Ended() {
		k.sealed = nil
	}
	k.NextAt = nextAt(&k, tx.Now)
	if err := ks.writeKey(ctx, tx, &k); err != nil {
		return nil, err
	}
	if err := ks.partners.changes.tell(ctx, tx, k.Partner, k.ID); err != nil {
		return nil, err
	}
	detail := map[string]any{"name": k.Name, "from": string(seen.Stored), "version": k.Version}
	for name, v := range s.detail {
		detail[name] = v
	}
	return &k, audit.Record(ctx, tx, audit.Event{Action: string(k.Kind) + "." + s.action, Resource: k.Resource(), Partner: k.Partner, Reason: s.reason, Detail: detail})
}

// over says why a key can't come into a state, or be worked on.
func over(k *Key, state State, to string) error {
	what := fmt.Sprintf("%s %s can't be %s: ", k.Kind.words(), k.ID, to)
	at := k.Since.Format(time.RFC3339)
	switch state {
	case Revoked:
		return fault.New(fault.ErrTransition, "already_revoked", "%sit was revoked at %s", what, at)
	case Retired:
		if k.Stored != Retired {
			at = k.GraceEndsAt.Format(time.RFC3339)
		}
		return fault.New(fault.ErrTransition, "already_retired", "%sits grace ended at %s", what, at)
	case Expired:
		return fault.New(fault.ErrTransition, "already_expired", "%sit expired at %s, and nothing revives it: create a new one", what, k.ExpiresAt.Format(time.RFC3339))
	case Suspended:
		return fault.New(fault.ErrTransition, "is_suspended", "%sit is suspended since %s: resume it first", what, at)
	case Retiring:
		return fault.New(fault.ErrTransition, "is_retiring", "%sit was rolled, and %s is its successor", what, k.ReplacedBy)
	case Active:
	}
	return fault.New(fault.ErrTransition, "is_"+string(state), "%sit is %s since %s", what, state, at)
}

// change makes one move in a transaction of its own.
func (ks *Keys) change(ctx context.Context, kind Kind, partner, id, action string, do func(ctx context.Context, tx *store.Tx, k *Key) (*Key, error)) (k *Key, err error) {
	err = ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		seen, err := ks.readKey(ctx, tx, kind, partner, id)
		if err == nil {
			k, err = do(ctx, tx, seen)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", action, kind.words(), err)
	}
	return k, nil
}

// Suspend stops a key until Resume.
func (ks *Keys) Suspend(ctx context.Context, kind Kind, partner, id, reason string) (*Key, error) {
	if err := checkReason("reason", reason); err != nil {
		return nil, fmt.Errorf("suspend %s: %w", kind.words(), err)
	}
	return ks.change(ctx, kind, partner, id, "suspend", func(ctx context.Context, tx *store.Tx, k *Key) (*Key, error) {
		return ks.move(ctx, tx, k, Suspended, step{action: "suspend", reason: reason, edit: func(k *Key) { k.ReasonText = reason }})
	})
}

// Resume undoes Suspend: the key is active or retiring as before.
func (ks *Keys) Resume(ctx context.Context, kind Kind, partner, id, reason string) (*Key, error) {
	if err := checkReason("reason", reason); err != nil {
		return nil, fmt.Errorf("resume %s: %w", kind.words(), err)
	}
	return ks.change(ctx, kind, partner, id, "resume", func(ctx context.Context, tx *store.Tx, k *Key) (*Key, error) {
		if k.Stored != Suspended {
			return nil, over(k, k.State(tx.Now), "resumed")
		}
		to := Active
		if !k.GraceEndsAt.IsZero() {
			to = Retiring
		}
		return ks.move(ctx, tx, k, to, step{action: "resume", reason: reason, edit: func(k *Key) { k.ReasonText = "" }})
	})
}

// Revoke ends a key for good. reason is one of the names of RFC 5280; "" is Unspecified.
func (ks *Keys) Revoke(ctx context.Context, kind Kind, partner, id, reason, text string) (*Key, error) {
	if reason == "" {
		reason = Unspecified
	}
	if !slices.Contains([]string{KeyCompromise, AffiliationChanged, Superseded, CessationOfOperation, PrivilegeWithdrawn, Unspecified}, reason) {
		return nil, fmt.Errorf("revoke %s: %w", kind.words(), fault.Invalid("reason", "bad_reason", "reason %q is none of those that RFC 5280 has for a key", clip(reason)))
	}
	if err := checkReason("text", text); err != nil {
		return nil, fmt.Errorf("revoke %s: %w", kind.words(), err)
	}
	return ks.change(ctx, kind, partner, id, "revoke", func(ctx context.Context, tx *store.Tx, k *Key) (*Key, error) {
		s := step{action: "revoke", reason: reason, edit: func(k *Key) { k.Reason, k.ReasonText = reason, text }}
		if text != "" {
			s.detail = map[string]any{"text": text}
		}
		return ks.move(ctx, tx, k, Revoked, s)
	})
}

package jwks

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// change is one transaction's work on a keyset. Whoever changes a keyset
// begins one, makes moves, and ends it. What is published or signed with changes
// only together with an event of the keyset: by it, every process learns what
// to read again.
type change struct {
	tx     *store.Tx
	set    *Keyset
	seal   rowSeal
	reason string // why a person asked for it; "" for the schedule

	// override lets a key sign before its lead is over. It needs a reason.
	override bool
}

// begin loads a keyset and takes its row, so that of two replicas which decide
// on the same state only one goes on: the other gets fault.ErrChanged.
func (ks *Keysets) begin(ctx context.Context, tx *store.Tx, name string) (*change, error) {
	set, err := ks.load(ctx, tx, name)
	if err != nil {
		return nil, err
	}
	seal, err := ks.readSeal(ctx, tx)
	if err != nil {
		return nil, err
	}
	// What was loaded is what the row says, from here to the commit.
	err = tx.Swap(ctx, `UPDATE keysets SET version = version WHERE id = $1 AND version = $2 AND policy_version = $3`, set.ID, set.Version, set.PolicyVersion)
	if err != nil {
		return nil, fmt.Errorf("change keyset %q: %w", name, err)
	}
	return &change{tx: tx, set: set, seal: seal}, nil
}

// move is the only code that changes a signing key's state. The audit event
// shares its transaction, so the trail can never disagree with the table. It
// refuses a move that the table does not list, to sign before the lead is over
// (unless overridden), and to withdraw a key while a token of it may live.
func (c *change) move(ctx context.Context, k Key, to State) error {
	now, from := c.tx.Now, k.State
	if !slices.Contains(moves[from], to) {
		return fault.New(fault.ErrTransition, "bad_transition", "key %s of keyset %q is %s: it can't become %s", k.Kid, c.set.Name, from, to)
	}
	if from == Pending && to == Active && c.set.leadOver(k).After(now) && !c.override {
		return c.tooYoung(k)
	}
	if w := c.set.withdrawal(k); from == Retiring && to == Retired && w.At.After(now) {
		return fault.New(fault.ErrTransition, "tokens_alive", "key %s of keyset %q can't be withdrawn before %s: it %s", k.Kid, c.set.Name, stamp(w.At), w.Why)
	}

	detail := map[string]any{"kid": k.Kid, "algorithm": string(k.Algorithm), "version": c.set.Version + 1}
	if from != unborn {
		detail["from"] = string(from)
	}
	if c.override {
		detail["override"] = true
	}
	if c.reason != "" {
		k.Reason = c.reason
	}
	k.State, k.Since = to, now
	switch to {
	case Pending:
		k.ServedSince = now
	case Active:
		k.ActivatedAt = now
		if k.ServedSince.IsZero() {
			k.ServedSince = now
		}
	case Retiring:
		k.DemotedAt = now
		if k.ServedSince.IsZero() {
			k.ServedSince = now
		}
	case Retired, Revoked:
		k.WithdrawnAt, k.Home, k.Private = now, noHome, nil
	case unborn: // no move leads there
	}
	if err := c.put(ctx, k, from); err != nil {
		return err
	}
	return audit.Record(ctx, c.tx, audit.Event{Action: "signing_key." + string(to), Resource: c.set.resource(k.Kid), Reason: c.reason, Detail: detail})
}

// put writes a key that left state from, and keeps the loaded keyset true.
func (c *change) put(ctx context.Context, k Key, from State) error {
	k.Seal = c.seal.ofKey(k)
	var err error
	if from == unborn {
		_, err = c.tx.Exec(ctx, `INSERT INTO signing_keys (`+keyColumns+`)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)`,
			k.KeysetID, k.Kid, k.State, k.Algorithm, string(k.Public), k.Home, k.Private, k.Origin, k.Reason, k.MaxTokenLife.Microseconds(),
			store.Micros(k.CreatedAt), store.Micros(k.Since), store.Micros(k.ServedSince), store.Micros(k.ActivatedAt), store.Micros(k.DemotedAt), store.Micros(k.WithdrawnAt), k.Seal)
		if store.IsUnique(err, "signing_keys.keyset_id, signing_keys.kid", "signing_keys_pkey") {
			return fault.New(fault.ErrExists, "kid_used", "keyset %q has or had a key %s: a kid is never used twice", c.set.Name, k.Kid).On("kid")
		}
	} else {
		err = c.tx.Swap(ctx, `UPDATE signing_keys SET state = $1, since = $2, home = $3, private = $4, reason = $5, served_since = $6, activated_at = $7, demoted_at = $8, withdrawn_at = $9, seal = $10
			WHERE keyset_id = $11 AND kid = $12 AND state = $13`,
			k.State, store.Micros(k.Since), k.Home, k.Private, k.Reason, store.Micros(k.ServedSince), store.Micros(k.ActivatedAt), store.Micros(k.DemotedAt), store.Micros(k.WithdrawnAt), k.Seal,
			k.KeysetID, k.Kid, from)
	}
	if err != nil {
		return fmt.Errorf("key %s of keyset %q to %s: %w", k.Kid, c.set.Name, k.State, err)
	}
	same := func(o Key) bool { return o.Kid == k.Kid }
	c.set.Keys, c.set.Tampered = slices.DeleteFunc(c.set.Keys, same), slices.DeleteFunc(c.set.Tampered, same)
	if k.State.Published() {
		c.set.Keys = append(c.set.Keys, k)
		c.set.arrange()
	}
	return nil
}

// born returns a key that does not exist yet, for move.
func (c *change) born(m Made, origin string) Key {
	return Key{KeysetID: c.set.ID, Kid: m.Kid, Algorithm: c.set.Algorithm, Public: m.Public, Home: m.home, Private: m.Private, Origin: origin, CreatedAt: c.tx.Now}
}

func (c *change) tooYoung(k Key) error {
	lead := span(c.set.leadOver(k).Sub(k.ServedSince))
	return fault.New(fault.ErrTransition, "lead_not_over",
		"standby %s has been served for %s and must be served for %s before it signs, so that every consumer has it: rotate after %s, or override the lead with a reason",
		k.Kid, c.tx.Now.Sub(k.ServedSince).Truncate(time.Second), lead, stamp(c.set.leadOver(k)))
}

// end makes the moves visible as one new version of the published set, and
// writes down when the keyset must be looked at again.
func (c *change) end(ctx context.Context) error {
	c.set.NextAt = c.set.nextAt(c.tx.Now)
	was := c.set.Version
	c.set.Version++
	_, members, seal, err := c.seal.sealed(c.set)
	if err != nil {
		return err
	}
	err = c.tx.Swap(ctx, `UPDATE keysets SET version = $1, next_at = $2, fallback_since = $3, members = $4, seal = $5 WHERE id = $6 AND version = $7`,
		c.set.Version, store.Micros(c.set.NextAt), store.Micros(c.set.FallbackSince), members, seal, c.set.ID, was)
	if err != nil {
		return fmt.Errorf("change keyset %q: %w", c.set.Name, err)
	}
	return nil
}

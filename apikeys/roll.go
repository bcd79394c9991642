package apikeys

import (
	"context"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	defaultGrace = 72 * time.Hour
	maxGrace     = 90 * 24 * time.Hour
	minQuiet     = 5 * time.Minute

	// maxRetiring bounds how many keys of one line are inside their grace: rolling
	// needs no room among a partner's keys.
	maxRetiring = 10
)

// Roll says how a key is rolled.
type Roll struct {
	Kind      Kind
	Partner   string
	ID        string         // of an API key
	Name      string         // of a request secret
	Grace     *time.Duration // nil: 72 h; 0: the old one ends at once; at most 90 days
	Quiet     time.Duration  // 0: the grace ends by the clock only; else 5 minutes at least
	ExpiresIn time.Duration  // life of the new one; 0: it ends when the old one would have
	PublicKey string         // the new one, of a request secret that is a public key
	Once      store.Once
}

func (r *Roll) grace() time.Duration {
	if r.Grace == nil {
		return defaultGrace
	}
	return *r.Grace
}

func (r *Roll) check() error {
	if g := r.grace(); g < 0 || g > maxGrace {
		return fault.Invalid("grace", "duration_range", "grace %s is outside 0 to %s", g, maxGrace)
	}
	if r.Quiet != 0 && (r.Quiet < minQuiet || r.Quiet > maxGrace) {
		return fault.Invalid("quiet", "duration_range", "quiet %s is neither 0 nor %s to %s", r.Quiet, minQuiet, maxGrace)
	}
	if r.Kind == RequestSecret && r.Partner == "" {
		return fault.Invalid("partner", "partner_missing", "a request secret is rolled by its name: say of which partner")
	}
	return nil
}

// Roll makes a successor with the same attributes, and puts the old key into its
// grace. It never lengthens the old key's life, and never revives one: what is not
// active is refused with fault.ErrTransition.
//
// The successor ends when the old key would have, unless ExpiresIn is given; then
// its life is bounded as that of a new key. That of an imported key that is too easy
// to guess gets the life of a new key in any case. It is a key of Rotunda's own form.
func (ks *Keys) Roll(ctx context.Context, r Roll) (made New, old *Key, err error) {
	made, old, err = ks.roll(ctx, r)
	if err != nil {
		made.Value.Destroy()
		return New{}, nil, fmt.Errorf("roll %s: %w", r.Kind.words(), err)
	}
	return made, old, nil
}

func (ks *Keys) roll(ctx context.Context, r Roll) (made New, old *Key, err error) {
	if err := r.check(); err != nil {
		return New{}, nil, err
	}
	// What must not be done twice, nor inside of the transaction, needs to know
	// what the key is; the transaction looks again.
	var first *Key
	err = ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		first, err = ks.rolled(ctx, tx, r)
		return err
	})
	if err != nil {
		return New{}, nil, err
	}
	next, v, err := ks.successor(ctx, first, r.PublicKey)
	if err != nil {
		return New{}, nil, err
	}
	made.Value = v
	err = ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		k := *next
		p, err := ks.partners.lockActive(ctx, tx, k.Partner)
		if err != nil {
			return err
		}
		prior, err := ks.once(ctx, tx, r.Once, &k)
		if err != nil {
			return err
		}
		if prior != nil {
			made.Key = prior
			old, err = ks.readKey(ctx, tx, k.Kind, k.Partner, prior.Replaces)
			return err
		}
		seen, err := ks.rolled(ctx, tx, r)
		if err != nil {
			return err
		}
		if seen.ID != first.ID {
			return fault.New(fault.ErrChanged, "rolled_meanwhile", "it was rolled meanwhile: read it again")
		}
		if k.ExpiresAt, err = p.successorEnds(seen, r.ExpiresIn, tx.Now); err != nil {
			return err
		}
		k.inherit(seen)
		if old, err = ks.retire(ctx, tx, seen, &k, r); err != nil {
			return err
		}
		made.Key = &k
		return ks.add(ctx, tx, &k)
	})
	return made, old, err
}

// rolled reads the key that a roll is about. It must be active.
func (ks *Keys) rolled(ctx context.Context, tx *store.Tx, r Roll) (*Key, error) {
	var k *Key
	var err error
	if r.Kind == APIKey {
		k, err = ks.readKey(ctx, tx, r.Kind, r.Partner, r.ID)
	} else {
		k, err = ks.latest(ctx, tx, r.Partner, r.Name)
	}
	return k, err
}

// latest is the version of a request secret that was not rolled yet, or the newest
// when all were.
func (ks *Keys) latest(ctx context.Context, tx *store.Tx, partner, name string) (*Key, error) {
	list, err := ks.versions(ctx, tx, partner, name)
	if err != nil {
		return nil, err
	}
	for _, k := range list {
		if k.ReplacedBy == "" && !k.Ended() {
			return k, nil
		}
	}
	return list[0], nil
}

// successor makes the key that follows another, without what it inherits.
func (ks *Keys) successor(ctx context.Context, old *Key, publicKey string) (*Key, secret.Value, error) {
	k := &Key{
		ID: ks.peppers.newID(), Kind: old.Kind, Partner: old.Partner, Environment: old.Environment, Class: old.Class, Stored: Active,
		Origin: OriginRotunda, Version: 1,
	}
	if old.Kind == RequestSecret && (old.PublicKey != "") != (publicKey != "") {
		return nil, secret.Value{}, fault.Invalid("public_key", "public_key_and_secret", "a public key is rolled to a public key, and a secret to a secret: to change that, create one under another name")
	}
	v, err := ks.fill(ctx, k, publicKey)
	return k, v, err
}

// inherit copies what a successor has from its predecessor.
func (k *Key) inherit(old *Key) {
	k.Name, k.Environment, k.Class = old.Name, old.Environment, old.Class
	k.Scopes, k.CIDRs, k.Rate, k.Metadata = old.Scopes, old.CIDRs, old.Rate, old.Metadata
	k.Lineage, k.Replaces = old.Lineage, old.ID
}

// successorEnds is when the successor of a key ends; zero: never.
func (p *Partner) successorEnds(old *Key, asked time.Duration, now time.Time) (time.Time, error) {
	if asked == 0 && !old.Weak {
		return old.ExpiresAt, nil
	}
	return p.lifeOf(asked, now)
}

// retire puts a key that is rolled into its grace, or ends it at once.
func (ks *Keys) retire(ctx context.Context, tx *store.Tx, seen, next *Key, r Roll) (*Key, error) {
	if err := seen.genuine(); err != nil {
		return nil, err
	}
	if state := seen.State(tx.Now); state != Active || seen.ReplacedBy != "" {
		return nil, over(seen, state, "rolled")
	}
	ends := tx.Now.Add(r.grace()).Truncate(time.Microsecond)
	if !seen.ExpiresAt.IsZero() && seen.ExpiresAt.Before(ends) {
		ends = seen.ExpiresAt
	}
	s := step{action: "roll", edit: func(k *Key) { k.ReplacedBy, k.GraceEndsAt, k.Quiet = next.ID, ends, r.Quiet.Truncate(time.Microsecond) }}
	s.detail = map[string]any{"replaced_by": next.ID, "grace_ends_at": ends.Format(time.RFC3339)}
	if r.Quiet > 0 {
		s.detail["quiet"] = r.Quiet.String()
	}
	to := Retiring
	if !ends.After(tx.Now) {
		to = Retired
	} else if err := ks.slot(ctx, tx, seen); err != nil {
		return nil, err
	}
	return ks.move(ctx, tx, seen, to, s)
}

// "grace_ends_at > 0" is there for the index: SQLite does not see that $2 is no less.
const slotSQL = `SELECT COUNT(*), COALESCE(MIN(grace_ends_at), 0) FROM partner_keys
	WHERE lineage = $1 AND state IN ('retiring', 'suspended') AND grace_ends_at > 0 AND grace_ends_at > $2`

// slot fails when too many keys of a line are inside their grace.
func (ks *Keys) slot(ctx context.Context, tx *store.Tx, k *Key) error {
	var n, soonest int64
	err := tx.QueryRow(ctx, slotSQL, k.Lineage, store.Micros(tx.Now)).Scan(&n, &soonest)
	if err == nil && n >= maxRetiring {
		err = fault.New(fault.ErrTransition, "too_many_retiring", "%d of its predecessors are inside their grace, and no more can be: the first ends at %s; revoke one, or roll with grace 0",
			n, store.Time(soonest).Format(time.RFC3339))
	}
	return err
}

// rehash writes what an API key is hashed as under a newer pepper, after a use that
// showed its value. hash and lookup are those of apiKeyHash, or of an imported key
// those of foreignHash and foreignLookup, or weakHash and weakBucket. It fails with
// fault.ErrChanged when somebody was faster or the key is not usable any more.
func (ks *Keys) rehash(ctx context.Context, tx *store.Tx, id string, from, to int64, hash, lookup []byte) error {
	k, err := ks.readKey(ctx, tx, APIKey, "", id)
	if err != nil {
		return err
	}
	if err := k.genuine(); err != nil {
		return err
	}
	if state := k.State(tx.Now); k.PepperGen != from || from >= to || state != Active && state != Retiring || (k.lookup == nil) != (lookup == nil) {
		return fault.New(fault.ErrChanged, "key_changed", "key %s is %s under pepper generation %d", k.ID, state, k.PepperGen)
	}
	if err := ks.peppers.check(ctx, tx, to); err != nil {
		return err
	}
	k.PepperGen, k.hash, k.lookup = to, hash, lookup
	return ks.writeKey(ctx, tx, k)
}

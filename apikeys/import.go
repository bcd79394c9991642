package apikeys

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	maxItems   = 500
	minForeign = 8
	maxForeign = 512

	defaultWeakTTL = 30 * 24 * time.Hour
	minWeakTTL     = time.Hour
	maxWeakTTL     = 90 * 24 * time.Hour

	// maxWeak bounds the weak keys of a database: a key that is presented is
	// compared slowly with each of its bucket, and there are 65,536 buckets.
	maxWeak = 1000

	importedName = "imported"
)

// ImportItem is a key that a partner holds already.
type ImportItem struct {
	Value       secret.Value // the key, or its SHA-256 in hex or base64
	Name        string       // default: "imported"
	Environment string
	Scopes      []string
	CIDRs       []string
	Rate        RateLimit
	Metadata    map[string]string
	ExpiresAt   time.Time // zero: after the partner's longest life, or never
}

// Imported tells what became of an item. Err is nil, fault.ErrExists or fault.ErrInvalid.
type Imported struct {
	ID   string // also of the key that held the value already, if it is the same partner's
	Weak bool
	Err  error
}

// incoming is an item on its way in. Its value and digest never leave memory.
type incoming struct {
	key       *Key
	value     string // "": only the digest is known
	digest    [sha256.Size]byte
	expiresAt time.Time
}

// Import takes over up to 500 keys, in one transaction. Items that can't be taken
// over don't keep the others back.
//
// origin is OriginSHA256 or OriginRaw. A raw key of less than 80 bits (see
// strength) is marked weak: it lives for weakTTL at most (0: 30 days), is hashed
// slowly, and there are at most 1,000 such keys in a database. How strong a key
// is of which only the SHA-256 is given nobody knows: import values where you
// have them.
//
// A value that somebody holds already is fault.ErrExists, also when that key has
// ended. Two things can't be seen: that a hash is that of a weak key, and a value
// whose key ended under a generation of the pepper that was retired since.
func (ks *Keys) Import(ctx context.Context, partner, origin string, weakTTL time.Duration, items []ImportItem) ([]Imported, error) {
	results, err := ks.importAll(ctx, partner, origin, weakTTL, items)
	if err != nil {
		return nil, fmt.Errorf("import API keys: %w", err)
	}
	return results, nil
}

func (ks *Keys) importAll(ctx context.Context, partner, origin string, weakTTL time.Duration, items []ImportItem) ([]Imported, error) {
	if weakTTL == 0 {
		weakTTL = defaultWeakTTL
	}
	switch {
	case len(items) < 1 || len(items) > maxItems:
		return nil, fault.Invalid("items", "too_many", "there are %d items: give 1 to %d", len(items), maxItems)
	case origin != OriginSHA256 && origin != OriginRaw:
		return nil, fault.Invalid("form", "bad_form", "keys are imported as %s or as %s", OriginSHA256, OriginRaw)
	case weakTTL < minWeakTTL || weakTTL > maxWeakTTL:
		return nil, fault.Invalid("weak_ttl", "duration_range", "weak_ttl %s is outside %s to %s", weakTTL, minWeakTTL, maxWeakTTL)
	case !isSlug(partner):
		return nil, partnerNotFound(partner)
	}
	// Slow hashes are made before the transaction, which holds locks, and no more of
	// them than there is room for.
	places, err := ks.weakPlaces(ctx, partner)
	if err != nil {
		return nil, err
	}
	drafts := make([]*incoming, len(items))
	refused := make([]error, len(items))
	for i := range items {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		drafts[i], refused[i] = ks.incoming(partner, origin, &items[i], &places)
		if refused[i] != nil && !errors.Is(refused[i], fault.ErrInvalid) {
			return nil, refused[i]
		}
	}
	var results []Imported
	err = ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		results = make([]Imported, len(items))
		// Else the same value could come in twice.
		if err := takeTurns(ctx, tx); err != nil {
			return err
		}
		p, err := ks.partners.lockActive(ctx, tx, partner)
		if err != nil {
			return err
		}
		// Counted once: to count is to look at each of the partner's keys.
		left, err := ks.room(ctx, tx, p)
		if err != nil && !errors.Is(err, fault.ErrLimited) {
			return err
		}
		for i, f := range drafts {
			if refused[i] != nil {
				results[i].Err = refused[i]
				continue
			}
			if results[i], err = ks.takeOver(ctx, tx, p, f, weakTTL, left > 0); err != nil {
				return fmt.Errorf("item %d: %w", i+1, err)
			}
			if results[i].Err == nil {
				left--
			}
		}
		return nil
	})
	return results, err
}

// weakPlaces returns how many weak keys may still be made. It fails before any work
// when the partner can't have keys.
func (ks *Keys) weakPlaces(ctx context.Context, partner string) (n int, err error) {
	err = ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := havePartner(ctx, tx, partner); err != nil {
			return err
		}
		n, err = countWeak(ctx, tx)
		return err
	})
	return maxWeak - n, err
}

const countWeakSQL = `SELECT COUNT(*) FROM partner_keys WHERE weak AND state IN ('active', 'retiring', 'suspended') AND (expires_at = 0 OR expires_at > $1)`

func countWeak(ctx context.Context, tx *store.Tx) (n int, err error) {
	err = tx.QueryRow(ctx, countWeakSQL, store.Micros(tx.Now)).Scan(&n)
	return n, err
}

// incoming checks an item and hashes its value.
func (ks *Keys) incoming(partner, origin string, item *ImportItem, places *int) (*incoming, error) {
	name := item.Name
	if name == "" {
		name = importedName
	}
	k, err := ks.draft(APIKey, KeySpec{
		Partner: partner, Name: name, Environment: item.Environment, Scopes: item.Scopes, CIDRs: item.CIDRs, Rate: item.Rate, Metadata: item.Metadata,
	})
	if err != nil {
		return nil, err
	}
	f := &incoming{key: k, expiresAt: item.ExpiresAt.Truncate(time.Microsecond)}
	k.Origin = origin
	gen, pepper := ks.peppers.current()
	k.PepperGen = gen
	text := item.Value.RevealString()
	if origin == OriginSHA256 {
		if f.digest, err = parseDigest(text); err != nil {
			return nil, err
		}
	} else {
		if err := ks.checkForeign(text); err != nil {
			return nil, err
		}
		f.value, f.digest = text, foreignDigest(text)
		k.Weak = strength(text) < strongEnough
	}
	if !k.Weak {
		k.hash, k.lookup = foreignHash(pepper, partner, f.digest), foreignLookup(pepper, f.digest)
		return f, nil
	}
	if *places--; *places < 0 {
		return nil, tooManyWeak()
	}
	k.salt = make([]byte, saltSize)
	_, _ = rand.Read(k.salt)
	k.hash, k.lookup = weakHash(pepper, partner, text, k.salt), weakBucket(pepper, f.digest)
	return f, nil
}

func tooManyWeak() error {
	return fault.Invalid("items", "too_many_weak", "there are %d keys that are too easy to guess already: roll or revoke some of them first", maxWeak)
}

func (ks *Keys) checkForeign(s string) error {
	if len(s) < minForeign || len(s) > maxForeign || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fault.Invalid("items", "bad_key", "a key to be imported has %d to %d characters of printable ASCII and no spaces", minForeign, maxForeign)
	}
	if own(s, ks.brand) {
		return fault.Invalid("items", "own_key", "the key begins as Rotunda's own do, and would never be found: give its holder a new one")
	}
	return nil
}

// parseDigest reads a SHA-256 in hex or base64 (either alphabet, padded or not).
func parseDigest(s string) (out [sha256.Size]byte, err error) {
	decode := []func(string) ([]byte, error){
		hex.DecodeString, base64.StdEncoding.DecodeString, base64.RawStdEncoding.DecodeString, base64.URLEncoding.DecodeString, base64.RawURLEncoding.DecodeString,
	}
	if len(s) == 2*len(out) {
		decode = decode[:1]
	}
	for _, f := range decode {
		if b, err := f(s); err == nil && len(b) == len(out) && !strings.ContainsAny(s, "\r\n") {
			return [sha256.Size]byte(b), nil
		}
	}
	return out, fault.Invalid("items", "bad_hash", "the hash of a key to be imported is a SHA-256: 64 hex digits, or 43 or 44 characters of base64")
}

// takeOver makes a key of an item. An error is the transaction's; what is wrong
// with the item is in the result.
func (ks *Keys) takeOver(ctx context.Context, tx *store.Tx, p *Partner, f *incoming, weakTTL time.Duration, room bool) (Imported, error) {
	item := func(err error) (Imported, error) { return Imported{Err: err}, nil }
	holder, err := ks.holder(ctx, tx, f)
	if err != nil {
		return Imported{}, err
	}
	if holder != nil {
		r := Imported{Err: fault.New(fault.ErrExists, "exists", "this key was imported before")}
		if holder.Partner == p.Name {
			r.ID, r.Weak = holder.ID, holder.Weak
		}
		return r, nil
	}
	k := *f.key
	if k.ExpiresAt, err = p.lifeOf(0, tx.Now); err != nil {
		return item(err)
	}
	if !f.expiresAt.IsZero() {
		switch {
		case !f.expiresAt.After(tx.Now):
			return item(fault.Invalid("expires_at", "expired", "the key has expired at %s", f.expiresAt.UTC().Format(time.RFC3339)))
		case f.expiresAt.After(tx.Now.Add(maxLife)) || !k.ExpiresAt.IsZero() && f.expiresAt.After(k.ExpiresAt):
			return item(fault.Invalid("expires_at", "life_too_long", "the key would live longer than keys of the partner may"))
		}
		k.ExpiresAt = f.expiresAt.UTC()
	}
	if k.Weak {
		if n, err := countWeak(ctx, tx); err != nil {
			return Imported{}, err
		} else if n >= maxWeak {
			return item(tooManyWeak())
		}
		if end := tx.Now.Add(weakTTL).Truncate(time.Microsecond); k.ExpiresAt.IsZero() || end.Before(k.ExpiresAt) {
			k.ExpiresAt = end
		}
	}
	if err := p.allow(&k); err != nil {
		return item(err)
	}
	if !room {
		return item(fault.Invalid("items", "max_keys", "partner %q has as many keys as it may: revoke those that nobody needs, or raise its max_keys", p.Name))
	}
	if err := ks.add(ctx, tx, &k); err != nil {
		return Imported{}, err
	}
	// Some replica may remember that nobody holds it.
	if err := ks.partners.changes.tell(ctx, tx, k.Partner, k.ID); err != nil {
		return Imported{}, err
	}
	return Imported{ID: k.ID, Weak: k.Weak}, nil
}

// holder returns the imported key that has an item's value already.
func (ks *Keys) holder(ctx context.Context, tx *store.Tx, f *incoming) (*Key, error) {
	const bucketMost = 32 // more than a thousand keys in 65,536 buckets ever give
	full, buckets := ks.peppers.lookups(f.digest)
	for i := range full {
		list, err := ks.collect(ctx, tx, `SELECT `+keyColumns+` FROM partner_keys WHERE lookup = $1 LIMIT 1`, full[i])
		if err != nil {
			return nil, err
		}
		if len(list) > 0 {
			return list[0], nil
		}
		if f.value == "" {
			continue
		}
		if list, err = ks.collect(ctx, tx, `SELECT `+keyColumns+` FROM partner_keys WHERE lookup = $1 AND weak ORDER BY created_at DESC LIMIT $2`, buckets[i], bucketMost); err != nil {
			return nil, err
		}
		for _, k := range list {
			if pepper, ok := ks.peppers.get(k.PepperGen); ok && k.matchWeak(pepper, f.value) {
				return k, nil
			}
		}
	}
	return nil, nil
}

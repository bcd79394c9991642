package apikeys

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	usesAtOnce = 500    // rows of one transaction
	usesAPass  = 20     // transactions of one pass
	maxRehash  = 10_000 // keys that wait to be hashed anew
)

// uses are what this process has still to write of keys: when they were used, and
// their hashes under the newest pepper. They are lost with the process; the counts
// of uses, which are evidence, go through audit.Usage.
type uses struct {
	writing sync.Mutex // one writer at a time

	mu        sync.Mutex
	used      map[string]use
	hashes    map[string]newHash
	due       map[string]use // of used, what is being written; only who writes uses it
	writtenAt time.Time      // only who writes uses it
}

type use struct{ first, last int64 } // Unix microseconds

func (u *uses) init() {
	u.used, u.hashes, u.due = map[string]use{}, map[string]newHash{}, map[string]use{}
}

// collect hands the counts since it was last called to the trail.
func (v *Verifier) collect(now time.Time) {
	v.cache.collect(func(e *entry) {
		k, action := e.key, audit.APIKeyUsage
		if k.Kind == RequestSecret {
			action = audit.RequestSecretUsage
		}
		if n := e.accepted.Swap(0); n > 0 {
			v.cfg.Usage.Count(action, k.Resource(), "", n, now)
			v.uses.put(k.ID, e.usedAt.Load(), max(v.cfg.MaxEntries, usesAtOnce*usesAPass))
		}
		for r := range e.more.denied {
			if n := e.more.denied[r].Swap(0); n > 0 {
				v.cfg.Usage.Count(action, k.Resource(), Reason(r).String(), n, now)
			}
		}
	})
}

// put remembers that a key was used.
func (u *uses) put(id string, at int64, most int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	old, ok := u.used[id]
	switch {
	case !ok && len(u.used) >= most:
	case !ok:
		u.used[id] = use{at, at}
	default:
		u.used[id] = use{min(old.first, at), max(old.last, at)}
	}
}

// Pass writes when keys were used, moves them to the newest pepper and forgets old
// nonces; it is called about once a second.
func (v *Verifier) Pass(ctx context.Context, now time.Time) (time.Time, error) {
	v.collect(now)
	gen, _ := v.peppers.current()
	v.newest.Store(uint32(gen))
	u := &v.uses
	u.writing.Lock()
	defer u.writing.Unlock()
	if len(u.due) == 0 && (now.Sub(u.writtenAt) >= usedEvery || now.Before(u.writtenAt)) {
		u.writtenAt = now
		u.takeDue()
	}
	for range usesAPass {
		if len(u.due) == 0 {
			break
		}
		if err := v.writeUses(ctx); err != nil {
			return time.Time{}, err
		}
	}
	if err := v.writeHashes(ctx); err != nil {
		return time.Time{}, err
	}
	if p, ok := v.cfg.Nonces.(*DBNonces); ok {
		if err := p.prune(ctx, now); err != nil {
			return time.Time{}, err
		}
	}
	if len(u.due) > 0 {
		return now, nil
	}
	return time.Time{}, nil
}

// Flush writes what this process only has in memory.
func (v *Verifier) Flush(ctx context.Context) error {
	v.collect(v.cfg.DB.Now())
	u := &v.uses
	u.writing.Lock()
	defer u.writing.Unlock()
	u.takeDue()
	for len(u.due) > 0 {
		if err := v.writeUses(ctx); err != nil {
			return err
		}
	}
	return v.writeHashes(ctx)
}

// takeDue makes all that was used due.
func (u *uses) takeDue() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, x := range u.used {
		if old, ok := u.due[id]; ok {
			x = use{min(old.first, x.first), max(old.last, x.last)}
		}
		u.due[id] = x
	}
	clear(u.used)
}

// writeUses writes one parcel of what is due.
func (v *Verifier) writeUses(ctx context.Context) error {
	u := &v.uses
	ids := make([]string, 0, usesAtOnce)
	for id := range u.due {
		if ids = append(ids, id); len(ids) == usesAtOnce {
			break
		}
	}
	slices.Sort(ids) // in one order, or two replicas could wait for each other
	err := v.cfg.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		for _, id := range ids {
			x := u.due[id]
			_, err := tx.Exec(ctx, `UPDATE partner_keys SET last_used_at = $1, first_used_at = CASE WHEN first_used_at = 0 THEN $2 ELSE first_used_at END
				WHERE id = $3 AND last_used_at < $4`, x.last, x.first, id, x.last)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write when keys were last used: %w", err)
	}
	for _, id := range ids {
		delete(u.due, id)
	}
	return nil
}

// newHash is the hash of a key under a newer pepper.
type newHash struct {
	from, to     int64
	hash, lookup []byte
}

// putHash remembers a key's hash under the newest pepper, until Pass writes it.
func (u *uses) putHash(id string, h newHash) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.hashes) >= maxRehash {
		return false
	}
	u.hashes[id] = h
	return true
}

// renew hashes a key, whose value was just proven, under the newest pepper.
func (v *Verifier) renew(e *entry, value string) {
	gen, pepper := v.peppers.current()
	seen := e.more.renewed.Load()
	if seen >= gen || e.key.PepperGen >= gen || e.key.Ended() || !e.more.renewed.CompareAndSwap(seen, gen) {
		return
	}
	h := newHash{from: e.key.PepperGen, to: gen}
	switch digest := foreignDigest(value); {
	case e.own:
		k, _ := parseKey(value, v.brand)
		h.hash = apiKeyHash(pepper, e.key.Partner, k.secret)
	case !e.key.Weak:
		h.hash, h.lookup = foreignHash(pepper, e.key.Partner, digest), foreignLookup(pepper, digest)
	default:
		select {
		case v.foreign.one <- struct{}{}: // nobody waits for the slow hash
			h.hash, h.lookup = weakHash(pepper, e.key.Partner, value, e.key.salt), weakBucket(pepper, digest)
			<-v.foreign.one
		default:
			e.more.renewed.Store(seen) // another time
			return
		}
	}
	if !v.uses.putHash(e.key.ID, h) {
		e.more.renewed.Store(seen)
	}
}

// writeHashes moves keys to the newest pepper.
func (v *Verifier) writeHashes(ctx context.Context) error {
	u := &v.uses
	u.mu.Lock()
	hashes := u.hashes
	u.hashes = map[string]newHash{}
	u.mu.Unlock()
	ids := slices.Sorted(maps.Keys(hashes))
	for len(ids) > 0 {
		part := ids[:min(len(ids), usesAtOnce)]
		err := v.rehash(ctx, part, hashes)
		if err != nil && len(part) > 1 && !errors.Is(err, fault.ErrUnavailable) {
			// One of them was changed, or hashed by another replica.
			for _, id := range part {
				if err = v.rehash(ctx, []string{id}, hashes); errors.Is(err, fault.ErrUnavailable) {
					break
				}
			}
		}
		if errors.Is(err, fault.ErrUnavailable) || ctx.Err() != nil {
			u.mu.Lock()
			defer u.mu.Unlock()
			for _, id := range ids {
				u.hashes[id] = hashes[id]
			}
			return fmt.Errorf("hash keys under the newest pepper: %w", err)
		}
		for _, id := range part { // what is in memory is of the old one, whoever wrote the new
			if k, ok := toCacheKey(id); ok {
				v.cache.drop(k)
			}
		}
		ids = ids[len(part):]
	}
	return nil
}

func (v *Verifier) rehash(ctx context.Context, ids []string, hashes map[string]newHash) error {
	return v.cfg.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		for _, id := range ids {
			h := hashes[id]
			if err := v.cfg.Keys.rehash(ctx, tx, id, h.from, h.to, h.hash, h.lookup); err != nil {
				return err
			}
		}
		return nil
	})
}

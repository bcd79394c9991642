package apikeys

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	weakRate      = 20          // slow hashes in a second
	weakWait      = time.Second // for one of them
	maxCandidates = 32          // weak keys in a bucket that are tried
	guessFor      = time.Minute // that a wrong guess is remembered
	idsAtOnce     = 100
)

// foreign knows by what imported keys are found, so that the database need not be
// asked about strings that nobody imported. A key stays known when it has ended.
//
// What it knows of a weak key are two bytes. A string that happens to have them has
// to go through the slow hash of each weak key that has them too.
type foreign struct {
	made    atomic.Int64 // changes that this process has made
	seen    atomic.Int64 // those of them that Refresh has taken in
	version atomic.Int64 // grows whenever something may have been imported

	mu      sync.RWMutex
	full    map[uint64]struct{}
	weak    [1 << (8 * bucketSize)]bool
	anyWeak bool
	live    []int64 // generations of the pepper when everything was read
	guesses map[cacheKey]time.Duration
	cleared uint64 // how often guesses were

	one  chan struct{} // place of the slow hash
	slow gate
}

// imported is what was read of imported keys.
type imported struct {
	everything bool
	full       []uint64
	weak       []uint16
}

func (f *foreign) init() {
	f.full, f.guesses = map[uint64]struct{}{}, map[cacheKey]time.Duration{}
	f.one = make(chan struct{}, 1)
	f.slow = gate{every: time.Second / weakRate, burst: weakRate}
}

// stale reports whether this process has changed something that is not known here
// yet, also while a Refresh is about to take it in.
func (f *foreign) stale() bool { return f.made.Load() != f.seen.Load() }

// madeOf reports whether what is known was read under these generations. When one
// is gone, keys may have been hashed anew by others.
func (f *foreign) madeOf(live []int64) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return !slices.ContainsFunc(f.live, func(gen int64) bool { return !slices.Contains(live, gen) })
}

// read reads what is new: of the resources named, or everything.
func (f *foreign) read(ctx context.Context, tx *store.Tx, changed []string, everything bool) (out imported, err error) {
	out.everything = everything
	if everything {
		rows, err := tx.Query(ctx, `SELECT lookup, weak FROM partner_keys WHERE lookup IS NOT NULL`)
		if err != nil {
			return out, err
		}
		return out, out.scan(rows)
	}
	ids := map[string]struct{}{}
	for _, name := range changed {
		if _, id, ok := strings.Cut(name, "/"+string(APIKey)+"s/"); ok && len(id) == idLength {
			ids[id] = struct{}{}
		}
	}
	for part := range slices.Chunk(slices.Sorted(maps.Keys(ids)), idsAtOnce) {
		args := make([]any, len(part))
		for i, id := range part {
			args[i] = id
		}
		rows, err := tx.Query(ctx, `SELECT lookup, weak FROM partner_keys WHERE lookup IS NOT NULL AND id IN (`+places(len(part))+`)`, args...)
		if err != nil {
			return out, err
		}
		if err := out.scan(rows); err != nil {
			return out, err
		}
	}
	return out, nil
}

// places are n placeholders: "$1, $2".
func places(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "$%d", i+1)
	}
	return b.String()
}

func (i *imported) scan(rows *sql.Rows) error {
	defer rows.Close()
	for rows.Next() {
		var lookup []byte
		var weak bool
		if err := rows.Scan(&lookup, &weak); err != nil {
			return err
		}
		switch {
		case len(lookup) == bucketSize:
			i.weak = append(i.weak, binary.BigEndian.Uint16(lookup))
		case len(lookup) == lookupSize:
			i.full = append(i.full, binary.BigEndian.Uint64(lookup))
		}
	}
	return rows.Err()
}

// add takes in what was read.
func (f *foreign) add(found imported, live []int64) {
	f.version.Add(1)
	if !found.everything && len(found.full)+len(found.weak) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if found.everything {
		f.full, f.live = make(map[uint64]struct{}, len(found.full)), live
		clear(f.weak[:])
		f.anyWeak = false
	}
	for _, l := range found.full {
		f.full[l] = struct{}{}
	}
	for _, b := range found.weak {
		f.weak[b], f.anyWeak = true, true
	}
	clear(f.guesses)
	f.cleared++
}

// clear forgets guesses, which may be keys.
func (f *foreign) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.guesses)
	f.cleared++
}

// knows reports whether a key with one of these lookups may have been imported.
func (f *foreign) knows(full [][]byte) (strong, weak bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, l := range full {
		_, ok := f.full[binary.BigEndian.Uint64(l)]
		strong = strong || ok
		weak = weak || f.anyWeak && f.weak[binary.BigEndian.Uint16(l)]
	}
	return strong, weak
}

// guessed reports whether a value is known to be none of the weak keys.
func (f *foreign) guessed(k cacheKey, tick time.Duration) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	until, ok := f.guesses[k]
	return ok && tick < until
}

// at is what putGuess is told of when a value began to be looked for.
func (f *foreign) at() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.cleared
}

func (f *foreign) putGuess(k cacheKey, until time.Duration, at uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stale() || f.cleared != at {
		return // it may have been imported while it was looked for
	}
	if len(f.guesses) >= maxAbsent {
		clear(f.guesses)
	}
	f.guesses[k] = until
}

// verifyForeign verifies a value that has not the form of Rotunda's own.
func (v *Verifier) verifyForeign(ctx context.Context, value string, need *Need) (Decision, error) {
	digest := v.digest(value)
	if e := v.cache.byValue(digest); e != nil {
		if err := v.fresh(); err != nil {
			return Decision{}, err
		}
		s := v.shardOf(e)
		s.hits.Add(1)
		if e.gen != v.newest.Load() {
			v.renew(e, value)
		}
		return v.decide(ctx, e, s, need)
	}
	if !v.ready.Load() {
		return Decision{}, v.notFresh()
	}
	plain := foreignDigest(value)
	full, buckets := v.peppers.lookups(plain)
	strong, weak := v.foreign.knows(full)
	if !strong && !weak && v.behind() {
		// It may have been imported, or a pepper retired, a moment ago.
		if err := v.catchUp(ctx); err != nil {
			return Decision{}, err
		}
		strong, weak = v.foreign.knows(full)
	}
	if !strong && !weak || v.foreign.guessed(valueKey(digest), v.cfg.DB.Tick()) {
		return v.refuse(ReasonUnknown), nil
	}
	if err := v.fresh(); err != nil {
		return Decision{}, err
	}
	at := v.foreign.at()
	e, err := v.findForeign(ctx, value, plain, full, buckets, strong, weak)
	if err != nil {
		return Decision{}, err
	}
	if e == nil {
		v.foreign.putGuess(valueKey(digest), v.cfg.DB.Tick()+guessFor, at)
		return v.refuse(ReasonUnknown), nil
	}
	e.prove(digest)
	v.cache.putValue(e, digest)
	if e.gen != v.newest.Load() {
		v.renew(e, value)
	}
	return v.decide(ctx, e, v.shardOf(e), need)
}

// findForeign returns the key that has the value, or nil.
func (v *Verifier) findForeign(ctx context.Context, value string, plain [sha256.Size]byte, full, buckets [][]byte, strong, weak bool) (*entry, error) {
	var wanted [][]byte
	if strong {
		wanted = append(wanted, full...)
	}
	if weak {
		wanted = append(wanted, buckets...)
	}
	if !v.loads.misses.wait(ctx, v.cfg.DB.Tick, absentWait) {
		return nil, v.tooMany()
	}
	ids, err := v.idsByLookup(ctx, wanted)
	if err != nil {
		return nil, unavailable("look for an imported key", err)
	}
	for _, id := range ids {
		e, err := v.entry(ctx, id)
		if err != nil {
			return nil, err
		}
		if e == nil || e.key.Kind != APIKey || e.own {
			continue
		}
		pepper, e, err := v.pepper(ctx, e)
		if err != nil {
			return nil, err
		}
		if e == nil {
			continue
		}
		if !e.key.Weak {
			if e.key.matchDigest(pepper, plain) {
				return e, nil
			}
			continue
		}
		ok, err := v.matchWeak(ctx, e, pepper, value)
		if err != nil {
			return nil, err
		}
		if ok {
			return e, nil
		}
	}
	v.loads.misses.charge(v.cfg.DB.Tick())
	return nil, nil
}

// idsByLookup returns the ids of imported keys that may be the one.
func (v *Verifier) idsByLookup(ctx context.Context, lookups [][]byte) ([]string, error) {
	name := make([]byte, 0, 64)
	args := make([]any, len(lookups))
	for i, l := range lookups {
		name = append(append(name, ' '), l...)
		args[i] = l
	}
	// Not shared with who came before: the key may have been imported in between.
	got, err := v.loads.once(ctx, fmt.Sprintf("lookup %s %d", hex.EncodeToString(name), v.foreign.version.Load()), func(ctx context.Context) (any, error) {
		var ids []string
		err := v.cfg.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
			ids = nil
			v.loaded.Add(1)
			rows, err := tx.Query(ctx, `SELECT id FROM partner_keys WHERE lookup IN (`+places(len(args))+fmt.Sprintf(`) ORDER BY weak, id LIMIT %d`, maxCandidates), args...)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id string
				if err := rows.Scan(&id); err != nil {
					return err
				}
				ids = append(ids, id)
			}
			return rows.Err()
		})
		return ids, err
	})
	if err != nil {
		return nil, err
	}
	return got.([]string), nil
}

// matchWeak runs the slow hash, one at a time and a few in a second.
func (v *Verifier) matchWeak(ctx context.Context, e *entry, pepper []byte, value string) (bool, error) {
	f := &v.foreign
	busy := func() (bool, error) {
		v.shed.Add(1)
		return false, fault.New(fault.ErrUnavailable, "too_many_guesses", "verify: too many strings that may be weak keys were looked at: try again in a moment, and replace weak keys by rolling them")
	}
	if !f.slow.wait(ctx, v.cfg.DB.Tick, weakWait) {
		return busy()
	}
	timer := time.NewTimer(weakWait)
	defer timer.Stop()
	select {
	case f.one <- struct{}{}:
		defer func() { <-f.one }()
	case <-timer.C:
		return busy()
	case <-ctx.Done():
		return busy()
	}
	if !f.slow.open(v.cfg.DB.Tick()) {
		return busy() // it was closed by those who came before
	}
	f.slow.charge(v.cfg.DB.Tick())
	return e.key.matchWeak(pepper, value), nil
}

package jwks

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// usage counts signed tokens in memory, once for two readers: signing_counts,
// from which predictions are made, and the trail, as evidence. signing_counts are
// written about every ten seconds, never with a signature; a crash loses the last
// of them, which makes a prediction smaller and nothing wrong.
type usage struct {
	mu    sync.Mutex
	dirty []*signing

	unwritten map[signingCount]int64 // handed to the trail, and not in signing_counts yet
}

// signingCount is a row of signing_counts.
type signingCount struct {
	keysetID, kid string
	minute        int64
}

const (
	usageEvery = 10 * time.Second
	rateWindow = time.Hour // over which the rate of signing is measured
)

func (u *usage) add(s *signing) {
	if s.count.Add(1) == 1 {
		u.mu.Lock()
		u.dirty = append(u.dirty, s)
		u.mu.Unlock()
	}
}

// gatherUsage takes the counts of all keys, and hands them to the trail's.
func (ks *Keysets) gatherUsage(now time.Time) {
	u := &ks.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.unwritten == nil {
		u.unwritten = map[signingCount]int64{}
	}
	for _, s := range u.dirty {
		n := s.count.Swap(0)
		u.unwritten[signingCount{s.keysetID, s.kid, now.Unix() / 60}] += n
		ks.evidence.Count(audit.SigningKeyUsage, s.resource, "", n, now)
	}
	u.dirty = nil
}

// flushUsage writes what was counted.
func (ks *Keysets) flushUsage(ctx context.Context, now time.Time) error {
	ks.gatherUsage(now)
	u := &ks.usage
	u.mu.Lock()
	counts := u.unwritten
	u.unwritten = nil
	u.mu.Unlock()
	if len(counts) == 0 {
		return nil
	}
	err := ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		// In one order, or two replicas could wait for each other.
		for _, c := range slices.SortedFunc(maps.Keys(counts), signingCount.compare) {
			_, err := tx.Exec(ctx, `INSERT INTO signing_counts (keyset_id, kid, minute, count) VALUES ($1, $2, $3, $4)
				ON CONFLICT (keyset_id, kid, minute) DO UPDATE SET count = signing_counts.count + excluded.count`,
				c.keysetID, c.kid, c.minute, counts[c])
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		u.mu.Lock()
		defer u.mu.Unlock()
		for c, n := range u.unwritten {
			counts[c] += n
		}
		u.unwritten = counts
		if len(counts) > maxUnwritten {
			u.unwritten = compact(counts, now)
		}
		return fmt.Errorf("write signing counts: %w", err)
	}
	return nil
}

func (c signingCount) compare(o signingCount) int {
	return cmp.Or(strings.Compare(c.keysetID, o.keysetID), strings.Compare(c.kid, o.kid), cmp.Compare(c.minute, o.minute))
}

// maxUnwritten is how many counts are kept apart by minute while the database
// does not take them.
const maxUnwritten = 100_000

// compact puts the counts of each key into one minute: a prediction that counts
// tokens as younger than they are is on the safe side.
func compact(counts map[signingCount]int64, now time.Time) map[signingCount]int64 {
	out := map[signingCount]int64{}
	for c, n := range counts {
		c.minute = now.Unix() / 60
		out[c] += n
	}
	return out
}

// pruneUsage removes counts that no prediction needs: those older than the
// longest token life of any key, and than the window of the rate.
func (ks *Keysets) pruneUsage(ctx context.Context, now time.Time) error {
	return ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		var life int64
		if err := tx.QueryRow(ctx, `SELECT COALESCE(MAX(max_token_life), 0) FROM signing_keys`).Scan(&life); err != nil {
			return fmt.Errorf("prune signing counts: %w", err)
		}
		keep := max(rateWindow, time.Duration(life)*time.Microsecond) + time.Minute
		if _, err := tx.Exec(ctx, `DELETE FROM signing_counts WHERE minute < $1`, now.Add(-keep).Unix()/60); err != nil {
			return fmt.Errorf("prune signing counts: %w", err)
		}
		return nil
	})
}

// signed returns how many tokens a keyset signed since an instant; kid ""
// counts all its keys.
func signed(ctx context.Context, tx *store.Tx, keysetID, kid string, since time.Time) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT COALESCE(SUM(count), 0) FROM signing_counts WHERE keyset_id = $1 AND minute >= $2 AND (kid = $3 OR $3 = '')`,
		keysetID, since.Unix()/60, kid).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count signed tokens: %w", err)
	}
	return n, nil
}

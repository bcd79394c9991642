package jwks

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

// usage counts signed tokens in memory. Counts are written to signing_counts
// about every ten seconds, never with a signature; a crash loses the last of
// them, which makes a prediction smaller and nothing wrong.
type usage struct {
	mu    sync.Mutex
	dirty []*signing
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

// flushUsage writes what was counted.
func (ks *Keysets) flushUsage(ctx context.Context, now time.Time) error {
	ks.usage.mu.Lock()
	dirty := ks.usage.dirty
	ks.usage.dirty = nil
	ks.usage.mu.Unlock()
	if len(dirty) == 0 {
		return nil
	}
	counts := make([]int64, len(dirty))
	for i, s := range dirty {
		counts[i] = s.count.Swap(0)
	}
	err := ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		for i, s := range dirty {
			if counts[i] == 0 {
				continue
			}
			_, err := tx.Exec(ctx, `INSERT INTO signing_counts (keyset_id, kid, minute, count) VALUES ($1, $2, $3, $4)
				ON CONFLICT (keyset_id, kid, minute) DO UPDATE SET count = signing_counts.count + excluded.count`,
				s.keysetID, s.kid, now.Unix()/60, counts[i])
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		for i, s := range dirty {
			if counts[i] > 0 && s.count.Add(counts[i]) == counts[i] {
				ks.usage.mu.Lock()
				ks.usage.dirty = append(ks.usage.dirty, s)
				ks.usage.mu.Unlock()
			}
		}
		return fmt.Errorf("write signing counts: %w", err)
	}
	return nil
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

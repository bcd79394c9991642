package rotation

import (
	"context"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

// MaxCounted bounds each count of Stats: what is beyond is that much.
const MaxCounted = 10_000

// MaxRecent is how many rotations Stats.Recent is about.
const MaxRecent = 1_000

// Stats is how the work stands, in all replicas. No count is larger than MaxCounted, so
// that looking costs the same with a million credentials.
type Stats struct {
	Steps    map[Step]int64            // rotations that have not ended, by step; StepFailed: those that wait for a person
	Recent   map[RotationOutcome]int64 // of the last MaxRecent rotations that were begun, those that have ended
	Queued   int64                     // webhooks that wait for their next try
	Dead     int64                     // webhooks that were given up
	Drifted  int64                     // credentials
	Overdue  time.Duration             // how long the first schedule has been due that nobody looked at
	Unworked time.Duration             // how long the first rotation has been due that no worker has
}

// Stats looks into the database.
func (rs *Rotations) Stats(ctx context.Context) (st Stats, err error) {
	err = rs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		st = Stats{Steps: map[Step]int64{}, Recent: map[RotationOutcome]int64{}}
		err := countBy(ctx, tx, st.Steps, `SELECT step, COUNT(*) FROM (SELECT step FROM rotations WHERE ended_at = 0 LIMIT $1) AS counted GROUP BY step`, MaxCounted)
		if err != nil {
			return err
		}
		err = countBy(ctx, tx, st.Recent, `SELECT outcome, COUNT(*) FROM (SELECT outcome FROM rotations ORDER BY id DESC LIMIT $1) AS counted WHERE outcome <> '' GROUP BY outcome`, MaxRecent)
		if err != nil {
			return err
		}
		// By an index of its own: the others may be more than are counted.
		failed := int64(0)
		for _, c := range []struct {
			to    *int64
			query string
		}{
			{&failed, `SELECT COUNT(*) FROM (SELECT 1 FROM rotations WHERE step = 'failed' LIMIT $1) AS counted`},
			{&st.Drifted, `SELECT COUNT(*) FROM (SELECT 1 FROM credentials WHERE drift <> '' LIMIT $1) AS counted`},
			{&st.Queued, `SELECT COUNT(*) FROM (SELECT 1 FROM deliveries WHERE next_at > 0 LIMIT $1) AS counted`},
			{&st.Dead, `SELECT COUNT(*) FROM (SELECT 1 FROM deliveries WHERE state = 'dead' LIMIT $1) AS counted`},
		} {
			if err := tx.QueryRow(ctx, c.query, MaxCounted).Scan(c.to); err != nil {
				return err
			}
		}
		st.Steps[StepFailed] = failed
		late := func(query string, args ...any) (time.Duration, error) {
			var at int64
			if err := tx.QueryRow(ctx, query, args...).Scan(&at); err != nil || at == 0 {
				return 0, err
			}
			return max(tx.Now.Sub(store.Time(at)), 0), nil
		}
		if st.Overdue, err = late(`SELECT COALESCE(MIN(next_at), 0) FROM credentials WHERE next_at > 0`); err != nil {
			return err
		}
		for _, priority := range []int{priorityScheduled, priorityManual, priorityEmergency} {
			d, err := late(`SELECT COALESCE(MIN(next_at), 0) FROM (SELECT next_at FROM rotations
				WHERE ended_at = 0 AND next_at > 0 AND priority = $1 AND holder = '' ORDER BY next_at LIMIT 1) AS earliest`, priority)
			if err != nil {
				return err
			}
			st.Unworked = max(st.Unworked, d)
		}
		return nil
	})
	if err != nil {
		return Stats{}, fmt.Errorf("count rotations: %w", err)
	}
	return st, nil
}

// countBy reads counts by what they are of.
func countBy[K ~string](ctx context.Context, tx *store.Tx, into map[K]int64, query string, args ...any) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var of K
		var n int64
		if err := rows.Scan(&of, &n); err != nil {
			return err
		}
		into[of] = n
	}
	return rows.Err()
}

// Busy is how many runs this process is at, and how many it may be at once.
func (rs *Rotations) Busy() (busy, workers int) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return len(rs.active), rs.workers
}

package apikeys

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	passBatch = 200 // keys that one pass looks at

	// flushLag is how much later than a key's use its row may tell of it.
	flushLag = time.Minute

	// The last quarter of a grace, a day at most, is when its use is told of.
	warnShare = 4
	warnMost  = 24 * time.Hour
	warnEvery = 24 * time.Hour

	// clockTolerance and clockSettles: a wall clock that jumps against the
	// monotonic one is wrong before the jump or after it. What ends keys waits
	// until whoever keeps the clock has had time to set it right.
	clockTolerance = 5 * time.Second
	clockSettles   = 2 * time.Minute
)

// verdict is what a pass does with a key.
type verdict struct {
	retire string // why: "grace" or "quiet"; "": not yet
	warn   bool   // tell that it is still used
}

// judge says what is due of a key at now.
func judge(k *Key, now time.Time) verdict {
	if k.Ended() || k.GraceEndsAt.IsZero() {
		return verdict{}
	}
	if !now.Before(k.GraceEndsAt) {
		return verdict{retire: "grace"}
	}
	if k.Stored != Retiring {
		return verdict{}
	}
	if k.Quiet > 0 && !now.Before(k.quietAt()) {
		return verdict{retire: "quiet"}
	}
	from := k.warnFrom()
	return verdict{warn: !now.Before(from) && !now.Before(k.warnAgain()) && !k.LastUsedAt.Before(from) && k.LastUsedAt.After(k.WarnedAt)}
}

// quietAt is when a retiring key was quiet for long enough, unless it is used again.
func (k *Key) quietAt() time.Time {
	last := k.Since
	if k.LastUsedAt.After(last) {
		last = k.LastUsedAt
	}
	return last.Add(k.Quiet + flushLag)
}

// warnFrom is when the last part of a retiring key's grace begins.
func (k *Key) warnFrom() time.Time {
	return k.GraceEndsAt.Add(-min(max(0, k.GraceEndsAt.Sub(k.Since))/warnShare, warnMost))
}

func (k *Key) warnAgain() time.Time {
	if k.WarnedAt.IsZero() {
		return time.Time{}
	}
	return k.WarnedAt.Add(warnEvery)
}

// nextAt is when a pass has to look at a key the next time after it was judged at
// now; zero: never. It is not after the next thing that is due.
func nextAt(k *Key, now time.Time) time.Time {
	if k.Ended() || k.GraceEndsAt.IsZero() {
		return time.Time{}
	}
	next := k.GraceEndsAt
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	if k.Stored != Retiring {
		return next
	}
	if k.Quiet > 0 {
		sooner(k.quietAt())
	}
	from := k.warnFrom()
	switch again := k.warnAgain(); {
	case now.Before(from):
		sooner(from)
	case now.Before(again):
		sooner(again)
	case judge(k, now).warn:
		sooner(now)
	default: // it may be used at any time
		sooner(now.Add(min(max(k.GraceEndsAt.Sub(from)/8, time.Minute), time.Hour)))
	}
	return next
}

// jump notices when the wall clock jumps.
type jump struct {
	at   time.Time
	tick time.Duration
	held time.Duration // until this tick
}

// settling reports whether the wall clock jumped a short while ago.
func (j *jump) settling(now time.Time, tick time.Duration) bool {
	if !j.at.IsZero() {
		if step := now.Sub(j.at) - (tick - j.tick); step.Abs() > clockTolerance {
			j.held = tick + clockSettles
		}
	}
	j.at, j.tick = now, tick
	return tick < j.held
}

// Pass makes the moves that are due, and is called about once a second. One key's
// failure does not stop the others. It returns when the next move is due. When the
// wall clock has jumped it makes none for two minutes: a key whose grace is over is
// refused anyway, and one that was retired too early could not come back.
func (ks *Keys) Pass(ctx context.Context, now time.Time) (time.Time, error) {
	if ks.jump.settling(now, ks.db.Tick()) {
		return time.Time{}, nil
	}
	var due []string
	var next int64
	err := ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		due = nil
		rows, err := tx.Query(ctx, `SELECT id FROM partner_keys WHERE next_at > 0 AND next_at <= $1 ORDER BY next_at LIMIT $2`, store.Micros(now), passBatch)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				return err
			}
			due = append(due, id)
		}
		return rows.Err()
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("find due keys: %w", err)
	}
	var errs []error
	for _, id := range due {
		if err := ks.advance(ctx, id); err != nil && !errors.Is(err, fault.ErrChanged) { // changed: another replica was faster
			errs = append(errs, fmt.Errorf("advance key %s: %w", id, err))
		}
	}
	if len(due) == passBatch {
		return now, errors.Join(errs...)
	}
	err = ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(MIN(next_at), 0) FROM partner_keys WHERE next_at > 0`).Scan(&next)
	})
	if err != nil {
		errs = append(errs, fmt.Errorf("find the next due key: %w", err))
	}
	return store.Time(next), errors.Join(errs...)
}

// advance does what is due of one key.
func (ks *Keys) advance(ctx context.Context, id string) error {
	return ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		k, err := ks.peppers.scanKey(tx.QueryRow(ctx, `SELECT `+keyColumns+` FROM partner_keys WHERE id = $1`, id))
		if err != nil {
			return err
		}
		if k.tampered {
			return ks.lay(ctx, tx, k)
		}
		v := judge(k, tx.Now)
		detail := map[string]any{"replaced_by": k.ReplacedBy}
		if !k.LastUsedAt.IsZero() {
			detail["last_used_at"] = k.LastUsedAt.Format(time.RFC3339)
		}
		if v.retire != "" {
			_, err := ks.move(ctx, tx, k, Retired, step{action: "retire", reason: v.retire, detail: detail})
			return err
		}
		seen := k.NextAt
		if v.warn {
			k.WarnedAt = tx.Now
		}
		if k.NextAt = nextAt(k, tx.Now); !v.warn && k.NextAt.Equal(seen) {
			return nil // another replica was faster
		}
		if err := ks.writeKey(ctx, tx, k); err != nil || !v.warn {
			return err
		}
		detail["grace_ends_at"] = k.GraceEndsAt.Format(time.RFC3339)
		return audit.Record(ctx, tx, audit.Event{Action: string(k.Kind) + ".still_used", Resource: k.Resource(), Partner: k.Partner, Detail: detail})
	})
}

// lay puts a row that was tampered with aside, so that no pass meets it again. It
// is not sealed anew: nobody may rely on it.
func (ks *Keys) lay(ctx context.Context, tx *store.Tx, k *Key) error {
	if err := tx.Swap(ctx, `UPDATE partner_keys SET next_at = 0 WHERE id = $1 AND next_at = $2 AND next_at > 0`, k.ID, store.Micros(k.NextAt)); err != nil {
		return err
	}
	return audit.Record(ctx, tx, audit.Event{Action: string(k.Kind) + ".tampered", Resource: k.Resource(), Partner: k.Partner, Outcome: audit.Denied, Reason: "tampered"})
}

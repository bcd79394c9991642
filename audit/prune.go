package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// Pruning deletes events and keeps the tree: tiles and checkpoints stay, so every
// proof of what is left, and of what somebody kept, holds as before.
//
// The log is pruned from its beginning: trail.pruned is the first leaf that was
// never looked at. It moves forward over events that are older than retention
// allows, up to the first younger one, in leaf order. (Times follow leaf order
// only nearly, and an event that is dated into the future by a wrong clock holds
// pruning up until then.) It passes no durable cursor, so a sink that is dead
// stops pruning until it is back or removed, and no leaf without a checkpoint.
//
// Left behind are events under a legal hold, open intents, and events
// "trail.prune", which are what shows that nothing else was cut out: they are
// kept for ever. What was left behind is looked at again in every later pass, so
// a later trail.prune event may cover a range that an earlier one covered.

const (
	// pruneBatch is how many leaves one transaction goes through. On PostgreSQL the
	// sequencer waits for it, so it is short, and pauses are between two.
	pruneBatch = 2000
	pruneGap   = 200 * time.Millisecond
	pruneEvery = time.Hour
	minKeep    = 24 * time.Hour
)

// prunable is the condition that nothing but its age decides about a row of events.
const prunable = `NOT ` + isOpen + ` AND NOT ` + isHeld + ` AND action <> '` + bundle.PruneAction + `'`

// Pruned is what one step of pruning did, or a plan would do.
type Pruned struct {
	Begin, End int64 // the leaves that were gone through: half open
	Deleted    int64
	Held       int64     // left there: a legal hold covers them
	Open       int64     // left there: intents without an end
	Blocked    string    // the cursor that has not read what is old enough to go, or ""
	More       bool      // there is more to do at once
	Next       time.Time // when the next pass is due, unless there is more
}

// SetRetention sets how long events are kept, and why: 0 is for ever, else whole
// hours, at least 24.
func (t *Trail) SetRetention(ctx context.Context, keep time.Duration, reason string) error {
	if keep != 0 && (keep < minKeep || keep%time.Hour != 0) {
		return fault.Invalid("keep", "retention_range", "keep events for %v: want 0 (for ever), or whole hours and at least %v", keep, minKeep)
	}
	err := t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := lockRetention(ctx, tx); err != nil {
			return err
		}
		r, err := readRetention(ctx, tx)
		if err != nil || r.keep == keep {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE retention SET keep = $1, next_at = 0, set_by = $2, reason = $3 WHERE id = 1`, keep.Microseconds(), clip(ActorOf(ctx).ID), clip(reason)); err != nil {
			return err
		}
		return Record(ctx, tx, Event{Action: "retention.update", Resource: "trail", Reason: reason, Detail: map[string]any{"keep_hours": hours(keep), "was_hours": hours(r.keep)}})
	})
	if err != nil {
		return fmt.Errorf("set retention: %w", err)
	}
	return nil
}

func hours(d time.Duration) int64 { return int64(d / time.Hour) }

// Retention returns how long events are kept; 0 is for ever.
func (t *Trail) Retention(ctx context.Context) (keep time.Duration, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		r, err := readRetention(ctx, tx)
		keep = r.keep
		return err
	})
	return keep, err
}

// retention is its row.
type retention struct {
	keep   time.Duration
	swept  int64
	prunes int64
	nextAt time.Time
	setBy  string // the actor who set keep
	reason string
}

func readRetention(ctx context.Context, tx *store.Tx) (r retention, err error) {
	var keep, next int64
	err = tx.QueryRow(ctx, `SELECT keep, swept, prunes, next_at, set_by, reason FROM retention WHERE id = 1`).Scan(&keep, &r.swept, &r.prunes, &next, &r.setBy, &r.reason)
	if err != nil {
		return r, fmt.Errorf("read retention: %w", err)
	}
	r.keep, r.nextAt = time.Duration(keep)*time.Microsecond, store.Time(next)
	return r, nil
}

// PrunePass is a pass for the scheduler: one step of Prune when one is due. A
// blocked one is logged.
func (t *Trail) PrunePass(ctx context.Context, now time.Time) (next time.Time, err error) {
	var r retention
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		r, err = readRetention(ctx, tx)
		return err
	})
	if err != nil || r.keep == 0 || now.Before(r.nextAt) {
		return r.nextAt, err
	}
	p, err := t.Prune(ctx, now)
	if err != nil {
		return time.Time{}, err
	}
	if p.Blocked != "" {
		t.Log.LogAttrs(ctx, slog.LevelWarn, "events can't be pruned: a follower has not read them: repair or remove it", slog.String("cursor", p.Blocked), slog.Int64("leaf", p.End))
	}
	if p.More {
		return now.Add(pruneGap), nil
	}
	return p.Next, nil
}

// Prune does one step of pruning: at most 2,000 leaves, in one transaction, which
// also records it as trail.prune. now is the time by which events are judged; a
// time later than the database's clock counts as that.
func (t *Trail) Prune(ctx context.Context, now time.Time) (Pruned, error) {
	var p Pruned
	err := t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		p, err = prune(ctx, tx, now)
		return err
	})
	if err != nil {
		return Pruned{}, fmt.Errorf("prune the trail: %w", err)
	}
	return p, nil
}

func prune(ctx context.Context, tx *store.Tx, now time.Time) (Pruned, error) {
	if tx.Now.Before(now) {
		now = tx.Now
	}
	if err := lockRetention(ctx, tx); err != nil {
		return Pruned{}, err
	}
	r, err := readRetention(ctx, tx)
	if err != nil || r.keep == 0 {
		return Pruned{}, err
	}
	s, err := readReach(ctx, tx, now.Add(-r.keep))
	if err != nil {
		return Pruned{}, err
	}
	p, sweep, err := s.step(ctx, tx, r)
	if err != nil {
		return Pruned{}, err
	}
	if !sweep && p.End > p.Begin {
		// Before the deletion: the trigger lets only what is below be deleted.
		if err := tx.Swap(ctx, `UPDATE trail SET pruned = $1 WHERE id = 1 AND pruned = $2 AND stopped = ''`, p.End, p.Begin); err != nil {
			return Pruned{}, err
		}
	}
	first, last, err := s.remove(ctx, tx, &p)
	if err != nil {
		return Pruned{}, err
	}
	next := int64(0)
	if !p.More {
		p.Next = now.Add(pruneEvery)
		next = store.Micros(p.Next)
	}
	swept := r.swept
	if sweep {
		swept = p.End
		if !p.More {
			swept = 0 // the next pass begins anew
		}
	}
	prunes := r.prunes
	if p.Deleted > 0 {
		prunes++
	}
	if _, err := tx.Exec(ctx, `UPDATE retention SET swept = $1, prunes = $2, next_at = $3 WHERE id = 1`, swept, prunes, next); err != nil {
		return Pruned{}, err
	}
	if p.Deleted == 0 {
		return p, nil
	}
	begin, end := p.Begin, p.End
	if sweep {
		begin, end = first, last+1
	}
	return p, Record(ctx, tx, Event{Action: bundle.PruneAction, Resource: "trail", Detail: map[string]any{
		"begin": begin, "end": end, "deleted": p.Deleted, "held": p.Held, "open": p.Open, "keep_hours": hours(r.keep), "before": stamp(s.before),
		"set_by": r.setBy, "why": r.reason,
	}})
}

// reach is how far pruning may go.
type reach struct {
	before time.Time // events from then on are too young
	pruned int64
	limit  int64  // the first leaf that may not go, whatever its age
	cursor string // that sets the limit, or ""
}

func readReach(ctx context.Context, tx *store.Tx, before time.Time) (reach, error) {
	s := reach{before: before}
	h, err := readHead(ctx, tx)
	if err != nil {
		return s, err
	}
	if h.stopped != "" {
		return s, fault.New(fault.ErrUnavailable, "trail_stopped", "the trail is stopped: %s", h.stopped)
	}
	s.pruned, s.limit = h.pruned, h.size
	var signed int64
	if err := tx.QueryRow(ctx, `SELECT COALESCE(MAX(size), 0) FROM checkpoints`).Scan(&signed); err != nil {
		return s, fmt.Errorf("read the newest checkpoint: %w", err)
	}
	s.limit = min(s.limit, signed)
	var name string
	var next int64
	err = tx.QueryRow(ctx, `SELECT name, next FROM cursors ORDER BY next, name LIMIT 1`).Scan(&name, &next)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return s, fmt.Errorf("read the cursors: %w", err)
	}
	if err == nil && next < s.limit {
		s.limit, s.cursor = next, name
	}
	return s, nil
}

// step returns the leaves that one transaction goes through: those behind what
// was pruned, or, when none there is old enough, some of what was left before it.
func (s reach) step(ctx context.Context, tx *store.Tx, r retention) (p Pruned, sweep bool, err error) {
	p = Pruned{Begin: s.pruned, More: true}
	if p.End, err = s.old(ctx, tx, pruneBatch); err != nil {
		return p, false, err
	}
	if p.End > p.Begin {
		return p, false, nil
	}
	if p.Blocked, err = s.blocked(ctx, tx, p.End); err != nil {
		return p, false, err
	}
	end := min(s.pruned, s.limit)
	p.Begin, p.End, p.More = min(r.swept, end), end, false
	var index int64
	err = tx.QueryRow(ctx, fmt.Sprintf(`SELECT leaf_index FROM events WHERE leaf_index >= $1 AND leaf_index < $2 ORDER BY leaf_index LIMIT 1 OFFSET %d`, pruneBatch), p.Begin, p.End).Scan(&index)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return p, false, fmt.Errorf("read what was left: %w", err)
	}
	if err == nil {
		p.End, p.More = index, true
	}
	return p, true, nil
}

// blocked returns the cursor that keeps the leaf at end, which is old enough to
// go, or "".
func (s reach) blocked(ctx context.Context, tx *store.Tx, end int64) (cursor string, err error) {
	if s.cursor == "" || end < s.limit {
		return "", nil
	}
	var old bool
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM events WHERE leaf_index = $1 AND occurred_at < $2)`, end, store.Micros(s.before)).Scan(&old)
	if err != nil || !old {
		return "", err
	}
	return s.cursor, nil
}

// old returns the end of the run of old leaves that begins at s.pruned, at most
// batch of them.
func (s reach) old(ctx context.Context, tx *store.Tx, batch int64) (end int64, err error) {
	end = max(s.pruned, min(s.pruned+batch, s.limit))
	var young int64
	err = tx.QueryRow(ctx, `SELECT leaf_index FROM events WHERE leaf_index >= $1 AND leaf_index < $2 AND occurred_at >= $3 ORDER BY leaf_index LIMIT 1`,
		s.pruned, end, store.Micros(s.before)).Scan(&young)
	if errors.Is(err, sql.ErrNoRows) {
		return end, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for events that are young: %w", err)
	}
	return young, nil
}

// remove deletes what may go of a step's leaves, and counts what stays. It returns
// the first and the last leaf that is gone.
func (s reach) remove(ctx context.Context, tx *store.Tx, p *Pruned) (first, last int64, err error) {
	rows, err := tx.Query(ctx, `DELETE FROM events WHERE leaf_index >= $1 AND leaf_index < $2 AND occurred_at < $3 AND `+prunable+` RETURNING leaf_index`, p.Begin, p.End, store.Micros(s.before))
	if err != nil {
		return 0, 0, fmt.Errorf("delete events: %w", err)
	}
	defer rows.Close()
	first = p.End
	for rows.Next() {
		var index int64
		if err := rows.Scan(&index); err != nil {
			return 0, 0, err
		}
		p.Deleted++
		first, last = min(first, index), max(last, index)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return 0, 0, fmt.Errorf("delete events: %w", err)
	}
	return first, last, s.count(ctx, tx, p)
}

// count counts why leaves stay.
func (s reach) count(ctx context.Context, tx *store.Tx, p *Pruned) error {
	err := tx.QueryRow(ctx, `SELECT COALESCE(SUM(CASE WHEN held THEN 1 ELSE 0 END), 0), COALESCE(SUM(CASE WHEN open THEN 1 ELSE 0 END), 0)
		FROM (SELECT `+isHeld+` AS held, `+isOpen+` AS open FROM events WHERE leaf_index >= $1 AND leaf_index < $2 AND occurred_at < $3) AS left_there`,
		p.Begin, p.End, store.Micros(s.before)).Scan(&p.Held, &p.Open)
	if err != nil {
		return fmt.Errorf("count what stays: %w", err)
	}
	return nil
}

// PrunePlan tells what Prune would do from now on if events were kept for keep, all
// its steps together, and changes nothing; keep 0 is the retention that is set. Begin and End are of the leaves that were not gone through
// before; the counts are of all.
func (t *Trail) PrunePlan(ctx context.Context, now time.Time, keep time.Duration) (Pruned, error) {
	var p Pruned
	err := t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		p = Pruned{}
		r, err := readRetention(ctx, tx)
		if err != nil {
			return err
		}
		if keep != 0 {
			r.keep = keep
		}
		if r.keep == 0 {
			return nil
		}
		if tx.Now.Before(now) {
			now = tx.Now
		}
		s, err := readReach(ctx, tx, now.Add(-r.keep))
		if err != nil {
			return err
		}
		if p.End, err = s.old(ctx, tx, 1<<62); err != nil {
			return err
		}
		if p.Blocked, err = s.blocked(ctx, tx, p.End); err != nil {
			return err
		}
		err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM events WHERE leaf_index >= 0 AND leaf_index < $1 AND occurred_at < $2 AND `+prunable, min(p.End, s.limit), store.Micros(s.before)).Scan(&p.Deleted)
		if err != nil {
			return err
		}
		if err := s.count(ctx, tx, &p); err != nil {
			return err
		}
		p.Begin, p.More, p.Next = s.pruned, p.Deleted > 0, r.nextAt
		return nil
	})
	if err != nil {
		return Pruned{}, fmt.Errorf("plan to prune the trail: %w", err)
	}
	return p, nil
}

// stamp is a time in events and filters: RFC 3339 with microseconds.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00") }

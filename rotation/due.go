package rotation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	dueBatch = 500 // credentials per pass

	// A clock that was set back by no more than this does not make a rotation happen twice.
	maxStepBack = 48 * time.Hour

	// How long a credential that could not start is left alone.
	minWait = time.Minute
	maxWait = time.Hour

	// Windows repeat every week, so openings before this are like those after.
	windowSpan = 15 * 24 * time.Hour
)

// location is the zone of the schedule.
func (c *Credential) location() *time.Location {
	loc, err := schedule.Location(c.Schedule.Zone)
	if err != nil {
		return time.UTC // was checked when it was set; a machine may have lost its zone files
	}
	return loc
}

// reschedule sets the next firing after an instant, or after the last rotation when that is later:
// a clock that was set back does not rotate again what it has rotated already.
func (c *Credential) reschedule(after time.Time) {
	c.DueAt, c.NextAt = time.Time{}, time.Time{}
	if c.State == CredentialActive && !c.Schedule.IsZero() {
		if step := c.RotatedAt.Sub(after); step > 0 && step <= maxStepBack {
			after = c.RotatedAt
		}
		c.NextAt, c.DueAt = c.firing(c.Schedule.Next(after, c.Name))
	}
	c.plan(after)
}

// settle draws what follows when a new value was published at now, for whoever did that: a missed
// firing that waited for a person has had one, a period begins anew, and there is something to probe.
func (c *Credential) settle(now time.Time) {
	if c.RotatedAt.Equal(now) && c.State == CredentialActive && !c.Schedule.IsZero() && (c.NextAt.IsZero() || c.Schedule.Every > 0) {
		c.reschedule(now)
	}
	if c.ProbeAt.IsZero() {
		c.plan(now)
	}
}

// firing is when a firing has to be looked at, and the firing.
func (c *Credential) firing(due time.Time) (next, _ time.Time) {
	if due.IsZero() {
		return due, due
	}
	return schedule.NextOpen(c.Windows, due, c.location()), due
}

// following is the firing after one that was dealt with at now. Those that passed meanwhile are
// dealt with, too.
func (c *Credential) following(firing, now time.Time) (next, due time.Time) {
	due = c.Schedule.Next(firing, c.Name)
	if !due.IsZero() && !due.After(now) {
		due = c.Schedule.Next(now, c.Name)
	}
	return c.firing(due)
}

// decide says what has to happen at now by the schedule of c: whether a run has to start, which
// firing was missed and was not told of yet, and what NextAt and DueAt become.
//
// A firing may start in the first opening of the windows that is not over when it comes; without
// windows, until the next firing. After that it is missed, and Missed says what becomes of it.
func decide(c *Credential, now time.Time) (start bool, missed *time.Time, next, due time.Time) {
	if c.State != CredentialActive || c.Schedule.IsZero() || c.NextAt.IsZero() || now.Before(c.NextAt) {
		return false, nil, c.NextAt, c.DueAt
	}
	loc := c.location()
	firing := c.DueAt
	if !c.RotatedAt.Before(firing) && !c.RotatedAt.After(now) {
		// Somebody has rotated it since.
		next, due = c.following(firing, now)
		return false, nil, next, due
	}
	opens := schedule.NextOpen(c.Windows, firing, loc)
	if now.Before(opens) { // the zone's rules have changed
		return false, nil, opens, firing
	}
	closes := schedule.OpenUntil(c.Windows, opens, loc)
	if closes.IsZero() {
		closes = c.Schedule.Next(firing, c.Name)
	}
	if now.Before(closes) {
		next, due = c.following(firing, now)
		return true, nil, next, due
	}

	if c.NextAt.Before(closes) { // it is seen for the first time since
		was := firing
		missed = &was
	}
	switch c.Missed {
	case MissedAlarm:
		return false, missed, time.Time{}, firing
	case MissedSkip:
		firing = c.successor(now)
		opens = schedule.NextOpen(c.Windows, firing, loc)
	default:
		opens = schedule.NextOpen(c.Windows, now, loc)
	}
	if opens.After(now) {
		return false, missed, opens, firing
	}
	next, due = c.following(firing, now)
	return true, missed, next, due
}

// successor is the first firing whose turn was not over at now.
func (c *Credential) successor(now time.Time) time.Time {
	if len(c.Windows) == 0 {
		// The last one that has come: its turn lasts until the next.
		firing := c.DueAt
		for back := time.Minute; back <= windowSpan; back *= 4 {
			for at := c.Schedule.Next(now.Add(-back), c.Name); !at.IsZero() && !at.After(now); at = c.Schedule.Next(at, c.Name) {
				firing = at
			}
			if firing.After(c.DueAt) {
				break
			}
		}
		return firing
	}
	loc := c.location()
	from := c.DueAt
	if earliest := now.Add(-windowSpan); from.Before(earliest) {
		from = earliest
	}
	over := from // the end of the last opening that is over
	for at := schedule.NextOpen(c.Windows, from, loc); !at.After(now); {
		end := schedule.OpenUntil(c.Windows, at, loc)
		if end.IsZero() || end.After(now) {
			break
		}
		over = end
		at = schedule.NextOpen(c.Windows, end, loc)
	}
	return c.Schedule.Next(over.Add(-time.Microsecond), c.Name)
}

// DuePass starts the runs that are due by their schedules, in their order, up to 500; and tells of
// those that were missed. It may run in several processes at once.
func (cs *Credentials) DuePass(ctx context.Context, now time.Time) (time.Time, error) {
	names, err := cs.dueNames(ctx, now)
	if err != nil {
		return time.Time{}, fmt.Errorf("look for credentials that are due: %w", err)
	}
	var errs []error
	for _, name := range names {
		if err := cs.due(ctx, name, now); err != nil {
			if ctx.Err() != nil {
				return time.Time{}, err
			}
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return time.Time{}, joined("credentials that are due", errs)
	}
	if len(names) == dueBatch {
		return now, nil
	}
	var next int64
	err = cs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(MIN(next_at), 0) FROM credentials WHERE next_at > 0`).Scan(&next)
	})
	return store.Time(next), err
}

// joined is one error for many, of which a few are quoted.
func joined(what string, errs []error) error {
	const most = 5
	shown := errs[:min(most, len(errs))]
	return fmt.Errorf("%d %s failed: %w", len(errs), what, errors.Join(shown...))
}

func (cs *Credentials) dueNames(ctx context.Context, now time.Time) (names []string, err error) {
	err = cs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		names = nil
		rows, err := tx.Query(ctx, `SELECT name FROM credentials WHERE next_at > 0 AND next_at <= $1 ORDER BY next_at LIMIT $2`, store.Micros(now), dueBatch)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			names = append(names, name)
		}
		return rows.Err()
	})
	return names, err
}

// due does what is due of one credential. Its row is locked, so that of two processes the second
// finds that nothing is due any more.
func (cs *Credentials) due(ctx context.Context, name string, now time.Time) error {
	err := cs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, err := cs.systems.lockCredential(ctx, tx, name)
		if errors.Is(err, fault.ErrNotFound) {
			return nil
		}
		if errors.Is(err, fault.ErrDenied) {
			return cs.putOff(ctx, tx, name, now)
		}
		if err != nil {
			return err
		}
		if c.NextAt.IsZero() || c.NextAt.After(now) {
			return nil
		}
		start, missed, next, due := decide(c, now)
		fired := c.DueAt
		if missed != nil {
			if err := cs.tellMissed(ctx, tx, c, *missed, next); err != nil {
				return err
			}
		}
		c.NextAt, c.DueAt = next, due
		if start {
			_, err := cs.runs.start(ctx, tx, c, startSpec{Cause: Scheduled, Reason: "due " + fired.Format(time.RFC3339)})
			if errors.Is(err, fault.ErrTransition) {
				return cs.wait(ctx, tx, c, fired, now, err)
			}
			if err != nil {
				return err
			}
		}
		return cs.systems.writeCredential(ctx, tx, c)
	})
	if err != nil {
		return fmt.Errorf("credential %q: %w", name, err)
	}
	return nil
}

// wait leaves a credential due whose run can't start now, and tells of it the first time.
func (cs *Credentials) wait(ctx context.Context, tx *store.Tx, c *Credential, fired, now time.Time, why error) error {
	late := now.Sub(fired)
	c.NextAt, c.DueAt = now.Add(min(max(late/2, minWait), maxWait)).Truncate(time.Microsecond), fired
	// The row still has what it said before this pass.
	var seen int64
	if err := tx.QueryRow(ctx, `SELECT next_at FROM credentials WHERE name = $1`, c.Name).Scan(&seen); err != nil {
		return err
	}
	if first, _ := c.firing(fired); store.Time(seen).Equal(first) {
		reason := "cannot_start"
		if f, ok := errors.AsType[*fault.Error](why); ok {
			reason = f.Reason
		}
		detail := map[string]any{"due_at": fired.Format(time.RFC3339), "why": reason}
		if err := audit.Record(ctx, tx, audit.Event{Action: "credential.wait", Resource: c.Resource(), Outcome: audit.Failed, Reason: reason, Detail: detail}); err != nil {
			return err
		}
		if err := cs.systems.enqueue(ctx, tx, c, "credential.waiting", detail); err != nil {
			return err
		}
	}
	return cs.systems.writeCredential(ctx, tx, c)
}

func (cs *Credentials) tellMissed(ctx context.Context, tx *store.Tx, c *Credential, firing, next time.Time) error {
	detail := map[string]any{"due_at": firing.Format(time.RFC3339), "rule": string(c.Missed)}
	if !next.IsZero() {
		detail["next_at"] = next.Format(time.RFC3339)
	}
	if err := recordCredential(ctx, tx, c, "missed", string(c.Missed), detail); err != nil {
		return err
	}
	return cs.systems.enqueue(ctx, tx, c, "credential.missed", detail)
}

// putOff keeps a row that was tampered with from being first in every pass. The trail hears of it
// once an hour. Nothing else of the row is touched: its seal stays wrong.
func (cs *Credentials) putOff(ctx context.Context, tx *store.Tx, name string, now time.Time) error {
	if _, err := tx.Exec(ctx, `UPDATE credentials SET next_at = $1 WHERE name = $2`, store.Micros(now.Add(maxWait)), name); err != nil {
		return err
	}
	return audit.Record(ctx, tx, audit.Event{Action: "credential.tampered", Resource: "credentials/" + name, Outcome: audit.Denied, Reason: "tampered"})
}

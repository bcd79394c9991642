package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	// usageBack is how long before an instant evidence looks for processes that
	// may have lived at it. They write at least hourly.
	usageBack = 24 * time.Hour
	// usageSilent is after how long without a word a process counts as gone.
	usageSilent = coverEvery + 5*time.Minute
	maxGaps     = 1000
	usagePage   = 1000
)

// Gap is a time for which a process does not vouch that its counts are in the trail.
type Gap struct {
	Replica string
	From    time.Time
	To      time.Time // zero: to this day, for all that is known
	Lost    int64     // uses that it counted and had to drop; 0: nobody knows how many, if any
}

// Report is what the trail can tell of a resource's use since an instant.
type Report struct {
	Resource string
	Since    time.Time
	Named    bool // an event names the resource, or those that did may be pruned

	// LastAccepted is the last minute with an acceptance, whenever that was
	// (zero: none, or pruned).
	LastAccepted time.Time
	Accepted     int64            // in minutes that began at Since or later
	Boundary     int64            // accepted in the minute that Since lies in: before it, or after
	Denied       map[string]int64 // since then, that minute included, by reason
	Various      int64            // accepted since then of resources that are not told apart

	// Until is until when every process that lived since then, and was not silent
	// for too long, has covered; zero: none has.
	Until    time.Time
	Replicas int   // processes that covered some of the time
	Gaps     []Gap // newest first, at most 1,000
	MoreGaps bool
}

// Unused reports whether the trail proves that the resource was not accepted
// from Since until Until.
func (r Report) Unused() bool {
	return r.Accepted == 0 && r.Boundary == 0 && r.Various == 0 && len(r.Gaps) == 0 && r.Until.After(r.Since)
}

// Evidence tells how a resource was used since an instant, and what is not known.
// Uses are known to the minute: see [Report.Boundary]. A process that ended
// without a last word leaves a gap from then on. Processes are looked for from a
// day before since: one that wrote nothing in all that day, because the trail was
// stopped, and then was killed, is not known.
func Evidence(ctx context.Context, db *store.DB, resource string, since time.Time) (r Report, err error) {
	r = Report{Resource: resource, Since: since.UTC(), Denied: map[string]int64{}}
	err = db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := r.uses(ctx, tx, resource); err != nil {
			return err
		}
		if err := r.uses(ctx, tx, various); err != nil {
			return err
		}
		var h head
		if h, err = readHead(ctx, tx); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM events WHERE resource = $1) OR EXISTS (SELECT 1 FROM event_queue WHERE resource = $2)`, clip(resource), clip(resource)).Scan(&r.Named)
		if err != nil {
			return err
		}
		r.Named = r.Named || h.pruned > 0
		return r.coverage(ctx, tx)
	})
	if err != nil {
		return Report{}, fmt.Errorf("collect evidence on the use of %s: %w", clip(resource), err)
	}
	return r, nil
}

// newest calls f with matching events, in the reverse of the order in which they
// were written, until f returns false.
func newest(ctx context.Context, tx *store.Tx, q Query, f func(Event) (bool, error)) error {
	for _, table := range []struct{ name, index, erased, order string }{
		{"event_queue", "seq", "0", "seq"}, {"events", "leaf_index", "erased", "leaf_index"},
	} {
		for before := int64(1<<63 - 1); ; {
			var w where
			w.add(table.order+" < ?", before)
			w.match(q, table.name == "events")
			events, err := query(ctx, tx, `SELECT `+table.index+`, `+table.erased+`, `+eventColumns+` FROM `+table.name+w.String()+
				fmt.Sprintf(" ORDER BY %s DESC LIMIT %d", table.order, usagePage), w.args)
			if err != nil {
				return err
			}
			for _, e := range events {
				before = e.Index
				if more, err := f(e); err != nil || !more {
					return err
				}
			}
			if len(events) < usagePage {
				break
			}
		}
	}
	return nil
}

// uses adds the uses of a resource, or of those that are not told apart.
func (r *Report) uses(ctx context.Context, tx *store.Tx, resource string) error {
	for _, action := range []string{TokenUsage, SigningKeyUsage, APIKeyUsage, RequestSecretUsage} {
		err := newest(ctx, tx, Query{Action: action, Resource: resource}, func(e Event) (bool, error) {
			minute, err := detailTime(e, "minute")
			if err != nil {
				return false, err
			}
			accepted := max(detailCount(e.Detail["accepted"]), detailCount(e.Detail["signed"]))
			after := minute.Add(time.Minute).After(r.Since)
			if resource == various {
				if after {
					r.Various += accepted
				}
				return e.Time.After(r.Since.Add(-usageBack)), nil
			}
			if accepted > 0 {
				r.LastAccepted = later(r.LastAccepted, minute)
			}
			switch {
			case !after:
				// Older events can only tell when the last acceptance was.
				return r.LastAccepted.IsZero() || e.Time.After(r.Since.Add(-usageBack)), nil
			case minute.Before(r.Since):
				r.Boundary += accepted
			default:
				r.Accepted += accepted
			}
			denied, _ := e.Detail["denied"].(map[string]any)
			for reason, n := range denied {
				r.Denied[reason] += detailCount(n)
			}
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// coverage finds what is covered. Each process's coverages are looked at from
// the last to the first, and next is where the later one begins.
func (r *Report) coverage(ctx context.Context, tx *store.Tx) error {
	next := map[string]time.Time{}
	gap := func(replica string, from, to time.Time, lost int64) {
		if !to.IsZero() && !to.After(r.Since) || !to.IsZero() && !to.After(from) {
			return
		}
		if len(r.Gaps) == maxGaps {
			r.MoreGaps = true
			return
		}
		r.Gaps = append(r.Gaps, Gap{Replica: replica, From: later(from, r.Since), To: to, Lost: lost})
	}
	var ended time.Time
	q := Query{Action: UsageCovered, Since: r.Since.Add(-usageBack)}
	err := newest(ctx, tx, q, func(e Event) (bool, error) {
		from, err := detailTime(e, "from")
		until, uerr := detailTime(e, "until")
		if err := errors.Join(err, uerr); err != nil {
			return false, err
		}
		replica, _ := e.Detail["replica"].(string)
		final, _ := e.Detail["final"].(bool)
		begins, seen := next[replica]
		next[replica] = from
		switch {
		case seen && final, seen && !begins.After(until):
		case seen:
			gap(replica, until, begins, 0)
		case final:
			ended = later(ended, until)
		case tx.Now.Sub(until) > usageSilent:
			gap(replica, until, time.Time{}, 0)
		case r.Until.IsZero() || until.Before(r.Until):
			r.Until = until
		}
		if lost := detailCount(e.Detail["lost"]); lost > 0 {
			gap(replica, from, until.Add(time.Microsecond), lost)
		}
		return true, nil
	})
	r.Replicas = len(next)
	if r.Until.IsZero() {
		r.Until = ended
	}
	return err
}

func detailTime(e Event, name string) (time.Time, error) {
	text, _ := e.Detail[name].(string)
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("event %s: its %s is no time (was its detail erased?)", e.ID, name)
	}
	return t, nil
}

func detailCount(v any) int64 {
	n, _ := v.(float64)
	return int64(n)
}

package builtin

import (
	"context"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	window   = time.Minute // in which equal reads become one event
	maxReads = 10_000      // kinds of reads that are counted at once; more are written one by one
)

// reads writes who read what.
type reads struct {
	mu   sync.Mutex
	seen map[reading]*tally
}

// reading is what makes two reads equal.
type reading struct {
	actor, address, path string
	number               int64
}

type tally struct {
	event audit.Event
	until time.Time
	n     int64 // not written yet
}

func eventOf(ctx context.Context, v Version) (reading, audit.Event) {
	a := audit.ActorOf(ctx)
	return reading{a.ID, a.Address, v.Path, v.Number}, audit.Event{
		Actor: a.ID, Partner: a.Partner, Address: a.Address, RequestID: a.RequestID,
		Action: Read, Resource: resource(v.Path), Outcome: audit.OK, Count: 1,
		Detail: map[string]any{"version": v.Number, "rotation": v.Rotation, "generation": v.Generation, "credential": v.Credential},
	}
}

// record returns nil once the event of a read is committed: this one's, or that of the
// first of its kind within the window, whose count this one then raises.
func (r *reads) record(ctx context.Context, db *store.DB, v Version) error {
	key, e := eventOf(ctx, v)
	now := db.Now()
	r.mu.Lock()
	if t, ok := r.seen[key]; ok && now.Before(t.until) && !now.Before(t.until.Add(-window)) {
		t.n++
		r.mu.Unlock()
		return nil
	}
	r.mu.Unlock()

	if err := write(ctx, db, e); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[reading]*tally{}
	}
	t, ok := r.seen[key]
	switch {
	case ok: // over, and not written by Pass yet; or two first reads at once
		t.until = now.Add(window)
	case len(r.seen) < maxReads:
		r.seen[key] = &tally{event: e, until: now.Add(window)}
	}
	return nil
}

func write(ctx context.Context, db *store.DB, e audit.Event) error {
	return db.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return audit.Record(ctx, tx, e) })
}

// Pass writes the counts of reads whose minute is over, and says when it wants to be
// called again. What can't be written is kept.
func (s *Store) Pass(ctx context.Context, now time.Time) (next time.Time, err error) {
	err = s.reads.flush(ctx, s.db, func(t *tally) bool { return !now.Before(t.until) })
	return now.Add(time.Second), err
}

// Flush writes everything that was counted, at the end of a process.
func (s *Store) Flush(ctx context.Context) error {
	return s.reads.flush(ctx, s.db, func(*tally) bool { return true })
}

func (r *reads) flush(ctx context.Context, db *store.DB, due func(*tally) bool) error {
	type taken struct {
		key reading
		t   *tally
	}
	var list []taken
	r.mu.Lock()
	for key, t := range r.seen {
		if due(t) {
			delete(r.seen, key)
			if t.n > 0 {
				list = append(list, taken{key, t})
			}
		}
	}
	r.mu.Unlock()
	var failed error
	for _, k := range list {
		e := k.t.event
		e.Count, e.RequestID = k.t.n, "" // of several requests
		if failed == nil {
			failed = write(ctx, db, e)
			if failed == nil {
				continue
			}
		}
		r.mu.Lock()
		if t, ok := r.seen[k.key]; ok {
			t.n += k.t.n
		} else {
			r.seen[k.key] = k.t
		}
		r.mu.Unlock()
	}
	return failed
}

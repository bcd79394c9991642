package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	denialWindow = time.Minute // in which equal attempts become one event
	maxDenials   = 10_000      // kinds of attempt that are told apart at once
)

// Denials writes denied attempts. The zero value with DB set is ready.
type Denials struct {
	DB *store.DB

	mu   sync.Mutex
	seen map[denial]*count
}

// denial is what makes two attempts equal.
type denial struct{ actor, address, action, resource, reason string }

type count struct {
	first Event // as it will be written
	until time.Time
	n     int64 // not written yet
}

// Record writes that ctx's actor was denied e. The first of its kind is
// written before Record returns; the error says that it is not written yet
// (it is kept, and Pass writes it).
func (d *Denials) Record(ctx context.Context, e Event) error {
	a := ActorOf(ctx)
	fill(&e.Actor, a.ID)
	fill(&e.Partner, a.Partner)
	fill(&e.Address, a.Address)
	fill(&e.RequestID, a.RequestID)
	e.Outcome, e.Count = Denied, 1
	key := denial{e.Actor, e.Address, e.Action, e.Resource, e.Reason}
	now := d.DB.Now()

	d.mu.Lock()
	if d.seen == nil {
		d.seen = map[denial]*count{}
	}
	c, ok := d.seen[key]
	if !ok && len(d.seen) >= maxDenials {
		// Too many kinds: the rest of this window is told apart by action only.
		key = denial{action: e.Action, reason: e.Reason}
		e.Actor, e.Address, e.Resource, e.Partner, e.RequestID = "various", "", "", "", ""
		c, ok = d.seen[key]
	}
	if ok && now.Before(c.until) {
		c.n++
		d.mu.Unlock()
		return nil
	}
	var held int64
	if ok {
		held = c.n
	}
	d.seen[key] = &count{first: e, until: now.Add(denialWindow)}
	d.mu.Unlock()

	e.Count += held
	if err := d.write(ctx, e); err != nil {
		d.mu.Lock()
		if c := d.seen[key]; c != nil {
			c.n += e.Count
		} else { // flushed meanwhile
			d.seen[key] = &count{first: e, until: now.Add(denialWindow), n: e.Count}
		}
		d.mu.Unlock()
		return err
	}
	return nil
}

// Pass writes the counts of windows that are over, and is called about once a second.
func (d *Denials) Pass(ctx context.Context, now time.Time) (next time.Time, err error) {
	return time.Time{}, d.flush(ctx, func(c *count) bool { return !now.Before(c.until) })
}

// Flush writes everything that was counted, at the end of a process.
func (d *Denials) Flush(ctx context.Context) error {
	return d.flush(ctx, func(*count) bool { return true })
}

func (d *Denials) flush(ctx context.Context, over func(*count) bool) error {
	d.mu.Lock()
	due := map[denial]*count{}
	for key, c := range d.seen {
		if over(c) {
			due[key] = c
			delete(d.seen, key)
		}
	}
	d.mu.Unlock()
	var errs []error
	for key, c := range due {
		if c.n == 0 {
			continue
		}
		e := c.first
		e.Count = c.n
		if err := d.write(ctx, e); err != nil {
			errs = append(errs, err)
			d.mu.Lock()
			if again := d.seen[key]; again != nil {
				again.n += c.n
			} else {
				d.seen[key] = c
			}
			d.mu.Unlock()
		}
	}
	return errors.Join(errs...)
}

// write gives each event a transaction; the request may have been given up by
// its caller, and its denial is written all the same.
func (d *Denials) write(ctx context.Context, e Event) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := d.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return Record(ctx, tx, e) })
	if err != nil {
		return fmt.Errorf("record the denied %s: %w", e.Action, err)
	}
	return nil
}

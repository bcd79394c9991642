package audit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	denialWindow = time.Minute // in which equal attempts become one event
	maxDenials   = 10_000      // kinds of attempt that are told apart at once
	maxShare     = 64          // of them, by one actor at one address

	various      = "various"       // stands for what is not told apart
	variousKinds = "various_kinds" // the reason, then
)

// Denials writes denied attempts. The zero value with DB set is ready.
type Denials struct {
	DB *store.DB

	mu    sync.Mutex
	seen  map[denial]*count
	share map[origin]int // how many of seen are of an origin
}

// origin is whose share an attempt takes from.
type origin struct {
	actor string
	block string // his address; in IPv6 its /64, which is one host's to choose from
}

// denial is what makes two attempts equal.
type denial struct {
	origin
	action, resource, reason string
}

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
	e = own(e)
	now := d.DB.Now()

	d.mu.Lock()
	key, e := d.place(e)
	c, ok := d.seen[key]
	if ok && now.Before(c.until) {
		c.n++
		d.mu.Unlock()
		return nil
	}
	var held int64
	if ok {
		held = c.n
	}
	d.put(key, &count{first: e, until: now.Add(denialWindow)})
	d.mu.Unlock()

	e.Count += held
	if err := d.write(ctx, e); err != nil {
		d.mu.Lock()
		if c := d.seen[key]; c != nil {
			c.n += e.Count
		} else { // flushed meanwhile
			d.put(key, &count{first: e, until: now.Add(denialWindow), n: e.Count})
		}
		d.mu.Unlock()
		return err
	}
	return nil
}

// own returns e with texts that are bounded and share no memory with the
// request that they came in.
func own(e Event) Event {
	for _, s := range []*string{&e.Actor, &e.Action, &e.Resource, &e.Partner, &e.Reason, &e.RequestID, &e.Address} {
		*s = strings.Clone(clip(*s))
	}
	if e.Detail != nil {
		detail := make(map[string]any, len(e.Detail))
		for k, v := range e.Detail {
			if s, ok := v.(string); ok {
				v = strings.Clone(clip(s))
			}
			detail[strings.Clone(clip(k))] = v
		}
		e.Detail = detail
	}
	return e
}

// place finds where an attempt is counted, and as what: by itself, or with
// others when there are too many kinds. The caller holds the lock.
func (d *Denials) place(e Event) (denial, Event) {
	key := denial{origin{e.Actor, block(e.Address)}, e.Action, e.Resource, e.Reason}
	if d.seen[key] != nil {
		return key, e
	}
	if d.share[key.origin] >= maxShare {
		e.Action, e.Resource, e.Partner, e.Reason, e.RequestID, e.Detail = various, "", "", variousKinds, "", nil
		key = denial{key.origin, e.Action, e.Resource, e.Reason}
		if d.seen[key] != nil {
			return key, e
		}
	}
	if len(d.seen) >= maxDenials {
		e.Address, e.Resource, e.Partner, e.RequestID, e.Detail = "", "", "", "", nil
		key = denial{origin{e.Actor, various}, e.Action, "", e.Reason}
		if d.seen[key] != nil {
			return key, e
		}
	}
	if len(d.seen) >= 2*maxDenials {
		e.Actor, e.Action, e.Reason = various, various, variousKinds
		key = denial{origin{various, various}, e.Action, "", e.Reason}
	}
	return key, e
}

func block(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil || a.Unmap().Is4() {
		return address
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return address
	}
	return p.String()
}

// put counts a kind from now on. The caller holds the lock.
func (d *Denials) put(key denial, c *count) {
	if d.seen == nil {
		d.seen, d.share = map[denial]*count{}, map[origin]int{}
	}
	if d.seen[key] == nil {
		d.share[key.origin]++
	}
	d.seen[key] = c
}

// drop forgets a kind. The caller holds the lock.
func (d *Denials) drop(key denial) {
	delete(d.seen, key)
	if d.share[key.origin]--; d.share[key.origin] <= 0 {
		delete(d.share, key.origin)
	}
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
			d.drop(key)
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
				d.put(key, c)
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

package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Source is the sequenced trail, with the cursors of its sinks.
type Source interface {
	// Read returns up to limit records in order, from index on, and waits until there
	// is one or ctx ends. Indexes may have gaps where the trail was pruned.
	Read(ctx context.Context, index int64, limit int) ([]trail.Record, error)
	// Cursor is the index of the first record that a sink has not got; 0 at first.
	Cursor(ctx context.Context, name string) (int64, error)
	// SetCursor moves a cursor from one place to another. fault.ErrChanged: it is not
	// where from says.
	SetCursor(ctx context.Context, name string, from, to int64) error
	// Head is the index that the next record will have.
	Head(ctx context.Context) (int64, error)
}

// The states of a pump.
const (
	StateOK      = "ok"
	StateFailing = "failing" // what was tried last did not work; it is tried again
	StateStopped = "stopped" // Run has returned
)

// Stats is how a pump does. Counters start at 0 with Run.
type Stats struct {
	State     string
	Cursor    int64         // index: all before it are delivered for good
	Position  int64         // index: all before it were sent; more than Cursor while deliveries are held
	LagEvents int64         // events that are in the trail and not sent
	Lag       time.Duration // age of the oldest record that is known and not sent; 0 when there is none
	Delivered int64         // records that the other side took, repeats included
	Rejected  int64         // records that it refused for good
	Failures  int64         // attempts that failed
	LastError string        // of the last failure; "" once something was delivered; holds no secret
}

// Bounds of a batch, and of waiting.
const (
	maxRecords   = 500
	maxBytes     = 1 << 20
	linger       = 200 * time.Millisecond // how long a batch waits for more once it has one record
	idle         = 15 * time.Second       // how often Stats are told when nothing happens
	firstBackoff = time.Second
	lastBackoff  = time.Minute
	maxRefused   = 10 // records refused in a row before it can't be the records
)

// Pump follows the trail and feeds one sink. The exported fields are set before Run
// and not changed after it.
type Pump struct {
	Source Source
	Sink   Sink // Run does not close it
	Name   string
	Log    *slog.Logger
	Now    func() time.Time

	// Rejected is told of a record that the other side refuses for good; it is skipped
	// once Rejected returns nil, and offered again otherwise. It may be told of the same
	// record again after a crash.
	Rejected func(ctx context.Context, record trail.Record, reason string) error
	// Observe is told how the pump does: after each batch, each failure, and every 15 s.
	// It must not block. It may be nil.
	Observe func(Stats)

	stats   Stats
	held    []mark
	refused int // records refused in a row
	oldest  time.Time
}

// mark is a position that the cursor may move to at a time.
type mark struct {
	to int64
	at time.Time
}

// errAgain says that the pump starts again from the durable cursor.
var errAgain = errors.New("start again from the cursor")

// Run feeds the sink until ctx ends, and returns nil then. It fails with
// fault.ErrInvalid only, when a field is missing. Every failure of the source or the
// sink is tried again.
func (p *Pump) Run(ctx context.Context) error {
	if p.Source == nil || p.Sink == nil || p.Name == "" || p.Log == nil || p.Now == nil || p.Rejected == nil {
		return fault.Invalid("pump", "incomplete", "run the sink %q: Source, Sink, Name, Log, Now and Rejected must be set", p.Name)
	}
	p.stats = Stats{State: StateOK}
	defer func() {
		p.stats.State = StateStopped
		p.tell()
	}()
	for attempt := 0; ctx.Err() == nil; {
		moved := p.stats.Delivered + p.stats.Rejected
		err := p.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		if p.stats.Delivered+p.stats.Rejected > moved {
			attempt = 0
		}
		switch {
		case errors.Is(err, errAgain): // was told when it happened
		case errors.Is(err, fault.ErrChanged):
			p.Log.InfoContext(ctx, "another replica moved the sink's cursor; going on from there", "sink", p.Name)
		default:
			p.fail(ctx, err)
		}
		if sleep(ctx, p.pause(err, attempt)) != nil {
			break
		}
		attempt++
	}
	return nil
}

// fail notes an attempt that failed. Of failures in a row only the first is logged.
func (p *Pump) fail(ctx context.Context, err error) {
	p.stats.Failures++
	p.stats.LastError = err.Error()
	if p.stats.State != StateFailing {
		p.Log.WarnContext(ctx, "a sink fails; the trail waits for it", "sink", p.Name, "error", err)
	}
	p.stats.State = StateFailing
	p.measure(ctx)
}

// pause is how long to wait after a failure: 1 s, doubling up to 1 min, between half
// and all of it; what a [Later] asks for, if that is longer.
func (p *Pump) pause(err error, attempt int) time.Duration {
	d := min(firstBackoff<<min(attempt, 10), lastBackoff)
	d = d/2 + rand.N(d/2) //nolint:gosec // spreads retries, guards nothing
	if later, ok := errors.AsType[*Later](err); ok {
		d = max(d, later.After)
	}
	return d
}

// sleep returns early, with an error, when ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// follow reads the cursor and feeds the sink from there, until something fails.
func (p *Pump) follow(ctx context.Context) error {
	p.held = nil
	cursor, err := p.Source.Cursor(ctx, p.Name)
	if err != nil {
		return fmt.Errorf("read the cursor of sink %q: %w", p.Name, err)
	}
	p.stats.Cursor, p.stats.Position = cursor, cursor
	for {
		records, err := p.read(ctx)
		if err != nil {
			return err
		}
		for len(records) > 0 {
			n := batch(records)
			p.oldest = records[0].Time
			if err := p.deliver(ctx, records[:n]); err != nil {
				return err
			}
			records = records[n:]
		}
		p.oldest = time.Time{}
		if err := p.settle(ctx); err != nil {
			return err
		}
		p.measure(ctx)
	}
}

// batch is how many of the records go together.
func batch(records []trail.Record) int {
	bytes := 0
	for i := range records {
		if bytes += size(&records[i]); i > 0 && bytes > maxBytes || i == maxRecords {
			return i
		}
	}
	return len(records)
}

// read waits for records, no longer than something else is due, and gathers a few
// more for a short while. None at all is no error.
func (p *Pump) read(ctx context.Context) ([]trail.Record, error) {
	wait := idle
	if len(p.held) > 0 {
		wait = max(0, min(wait, p.held[0].at.Sub(p.Now())))
	}
	records, err := p.readFor(ctx, wait, p.stats.Position, maxRecords)
	if err != nil || len(records) == 0 || len(records) == maxRecords {
		return records, err
	}
	gather, cancel := context.WithTimeout(ctx, linger)
	defer cancel()
	for len(records) < maxRecords && gather.Err() == nil {
		more, err := p.Source.Read(gather, records[len(records)-1].Index+1, maxRecords-len(records))
		if err != nil {
			break // what there is goes first; a lasting failure shows at the next read
		}
		records = append(records, more...)
	}
	return records, p.inOrder(p.stats.Position, records)
}

func (p *Pump) readFor(ctx context.Context, wait time.Duration, from int64, limit int) ([]trail.Record, error) {
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	records, err := p.Source.Read(within, from, limit)
	if err != nil {
		if within.Err() != nil && ctx.Err() == nil {
			return nil, nil // the wait is over, that is all
		}
		return nil, fmt.Errorf("read the trail for sink %q: %w", p.Name, err)
	}
	return records, p.inOrder(from, records)
}

func (p *Pump) inOrder(from int64, records []trail.Record) error {
	for i := range records {
		if records[i].Index < from {
			return fmt.Errorf("read the trail for sink %q: record %d comes where %d or a later one was asked for", p.Name, records[i].Index, from)
		}
		from = records[i].Index + 1
	}
	return nil
}

// deliver sends records until the other side has each, or refused it for good. It
// sends the same batch again after a failure, so that its name stays the same, unless
// something is held: then all of that must go again.
func (p *Pump) deliver(ctx context.Context, records []trail.Record) error {
	for attempt := 0; ; attempt++ {
		if err := p.alive(ctx); err != nil {
			return err
		}
		err := p.Sink.Send(ctx, records)
		switch {
		case err == nil:
			p.refused = 0
			p.stats.Delivered += int64(len(records))
			p.recovered(ctx)
			return p.passed(ctx, records[len(records)-1])
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fault.ErrRejected):
			if len(records) > 1 {
				half := len(records) / 2
				if err := p.deliver(ctx, records[:half]); err != nil {
					return err
				}
				return p.deliver(ctx, records[half:])
			}
			if err = p.reject(ctx, records[0], err); err == nil {
				return p.passed(ctx, records[0])
			}
		}
		p.fail(ctx, err)
		if sleep(ctx, p.pause(err, attempt)) != nil {
			return ctx.Err()
		}
		if len(p.held) > 0 {
			return errAgain
		}
	}
}

func (p *Pump) recovered(ctx context.Context) {
	if p.stats.State == StateFailing {
		p.Log.InfoContext(ctx, "a sink works again", "sink", p.Name)
	}
	p.stats.State, p.stats.LastError = StateOK, ""
}

// reject hands over a record that the other side refuses. It fails when so many were
// refused in a row that it can't be the records.
func (p *Pump) reject(ctx context.Context, r trail.Record, cause error) error {
	if p.refused >= maxRefused {
		return fmt.Errorf("%d records in a row were refused, and none taken: check the sink's settings and its receiver: %w", p.refused, cause)
	}
	if err := p.Rejected(ctx, r, cause.Error()); err != nil {
		return fmt.Errorf("note that record %d was refused by sink %q: %w", r.Index, p.Name, err)
	}
	p.refused++
	p.stats.Rejected++
	return nil
}

// passed notes that all up to a record is done with, and moves the cursor, or will.
func (p *Pump) passed(ctx context.Context, r trail.Record) error {
	p.stats.Position = r.Index + 1
	p.oldest = time.Time{}
	at := p.Now()
	if h, ok := p.Sink.(Holder); ok {
		at = at.Add(h.Hold())
	}
	p.held = append(p.held, mark{to: r.Index + 1, at: at})
	return p.settle(ctx)
}

// alive returns errAgain when what is held may be lost.
func (p *Pump) alive(ctx context.Context) error {
	h, ok := p.Sink.(Holder)
	if !ok || h.Hold() == 0 || len(p.held) == 0 {
		return nil
	}
	if err := h.Alive(); err != nil {
		p.fail(ctx, err)
		return errAgain
	}
	return nil
}

// settle moves the cursor past what was held for long enough.
func (p *Pump) settle(ctx context.Context) error {
	if err := p.alive(ctx); err != nil {
		return err
	}
	now, due := p.Now(), 0
	for due < len(p.held) && !p.held[due].at.After(now) {
		due++
	}
	if due == 0 {
		return nil
	}
	to := p.held[due-1].to
	if err := p.Source.SetCursor(ctx, p.Name, p.stats.Cursor, to); err != nil {
		return fmt.Errorf("move the cursor of sink %q: %w", p.Name, err)
	}
	p.stats.Cursor, p.held = to, p.held[due:]
	return nil
}

// measure finds the lag and tells it.
func (p *Pump) measure(ctx context.Context) {
	if head, err := p.Source.Head(ctx); err == nil {
		p.stats.LagEvents = max(0, head-p.stats.Position)
	}
	p.tell()
}

func (p *Pump) tell() {
	p.stats.Lag = 0
	if !p.oldest.IsZero() {
		p.stats.Lag = max(0, p.Now().Sub(p.oldest))
	}
	if p.Observe != nil {
		p.Observe(p.stats)
	}
}

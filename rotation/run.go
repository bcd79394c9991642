package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	pollEvery = time.Second // how soon a run is seen that nobody told of
	minPoll   = 20 * time.Millisecond
	stopAfter = 5 * time.Second // how long effects may go on once the process shall stop

	// maxEffects bounds what one claim of a run does, so that a mistake can't spin.
	maxEffects = 200
)

// Run works on the runs that are due until ctx ends. Then effects under way may end, for a
// few seconds, and the runs are given back. Only a mistake in the configuration, or
// effects that ignore the end of their context, make it return an error.
func (rs *Rotations) Run(ctx context.Context) error {
	woken, stop := rs.db.Listen(topicRotations)
	defer stop()
	work, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	p := &pool{rs: rs, ended: make(chan *job, rs.workers)}
	heart := make(chan struct{})
	go func() {
		defer close(heart)
		rs.heartbeat(ctx, work, p)
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-woken:
		case <-timer.C:
		case j := <-p.ended:
			p.forget(j)
		}
		timer.Reset(p.fill(ctx))
	}
	deadline := time.AfterFunc(stopAfter, func() { cut(errors.New("the process stops")) })
	defer deadline.Stop()
	for p.running() > 0 {
		select {
		case j := <-p.ended:
			p.forget(j)
		case <-time.After(stopAfter + rs.timeout):
			return fmt.Errorf("rotations: %d effects still run %s after they were stopped", p.running(), rs.timeout)
		}
	}
	cut(nil)
	<-heart
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopAfter)
	defer cancel()
	if err := rs.leave(last); err != nil {
		rs.log.WarnContext(last, "rotations could not be given back: others wait for the lease", "error", err)
	}
	return nil
}

// heartbeat renews the lease while there is work. A process that can't renew it stops its
// effects before others may take its runs.
func (rs *Rotations) heartbeat(ctx, work context.Context, p *pool) {
	tick := time.NewTicker(rs.lease / 4)
	defer tick.Stop()
	told := false
	for beaten := time.Duration(-1); ; {
		limited, cancel := context.WithTimeout(work, rs.lease/4)
		err := rs.beat(limited)
		cancel()
		now := rs.db.Tick()
		switch {
		case err == nil:
			beaten = now
			p.live(work)
			told = false
		case work.Err() != nil:
		case beaten < 0 || now-beaten > rs.lease/2:
			p.dead(fmt.Errorf("the lease of this process can't be renewed: %w", err))
			if !told {
				rs.log.ErrorContext(ctx, "rotations stop: the heartbeat does not reach the database", "error", err)
				told = true
			}
		}
		select {
		case <-work.Done():
			return
		case <-tick.C:
		}
	}
}

// pool is the workers of one Run.
type pool struct {
	rs    *Rotations
	ended chan *job

	mu    sync.Mutex
	ctx   context.Context // of effects; nil while there is no lease
	stop  context.CancelCauseFunc
	jobs  map[string]*job
	plain int // of them, those that are no emergencies
	told  bool
}

func (p *pool) live(work context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx == nil {
		p.ctx, p.stop = context.WithCancelCause(work)
	}
}

func (p *pool) dead(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx != nil {
		p.stop(why)
		p.ctx = nil
	}
}

func (p *pool) running() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.jobs)
}

func (p *pool) forget(j *job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.jobs[j.ID] == nil {
		return
	}
	if !p.jobs[j.ID].urgent {
		p.plain--
	}
	delete(p.jobs, j.ID)
}

// fill gives work to those who have none, and says when to look again.
func (p *pool) fill(ctx context.Context) time.Duration {
	rs := p.rs
	p.mu.Lock()
	effects, free, plain := p.ctx, rs.workers-len(p.jobs), p.plain
	p.mu.Unlock()
	if effects == nil {
		return minPoll
	}
	if free <= 0 {
		return pollEvery
	}
	room := free
	if rs.workers > 1 {
		room = min(free, rs.workers-1-plain) // one is for emergencies
	}
	jobs, err := rs.claim(ctx, free, room)
	if err != nil && ctx.Err() == nil && !p.told {
		rs.log.ErrorContext(ctx, "rotations that are due can't be claimed", "error", err)
	}
	p.told = err != nil
	for _, j := range jobs {
		j.urgent = j.Priority >= priorityEmergency
		p.mu.Lock()
		if p.jobs == nil {
			p.jobs = map[string]*job{}
		}
		p.jobs[j.ID] = j
		if !j.urgent {
			p.plain++
		}
		p.mu.Unlock()
		go func() {
			defer func() { p.ended <- j }()
			defer rs.release(j)
			if _, err := rs.work(effects, ctx, j); err != nil && !errors.Is(err, fault.ErrChanged) {
				later := rs.putOff(ctx, j)
				rs.log.ErrorContext(ctx, "a rotation could not be recorded: it is taken up again", "rotation", j.ID, "error", err, "put_off", later == nil)
			}
		}()
	}
	if err != nil {
		return pollEvery
	}
	return rs.soon(ctx)
}

// soon is how long until the next run is due, at most pollEvery.
func (rs *Rotations) soon(ctx context.Context) time.Duration {
	next, err := rs.nextAt(ctx)
	if err != nil || next.IsZero() {
		return pollEvery
	}
	return min(max(next.Sub(rs.db.Now()), minPoll), pollEvery)
}

// nextAt is when the next run that nobody is at is due.
func (rs *Rotations) nextAt(ctx context.Context) (next time.Time, err error) {
	err = rs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		var least int64
		for p := priorityScheduled; p <= priorityEmergency; p++ {
			var at *int64
			if err := tx.QueryRow(ctx, `SELECT MIN(next_at) FROM rotations WHERE ended_at = 0 AND next_at > 0 AND priority = $1 AND next_at > $2`, p, store.Micros(tx.Now)).Scan(&at); err != nil {
				return err
			}
			if at != nil && (least == 0 || *at < least) {
				least = *at
			}
		}
		next = store.Time(least)
		return nil
	})
	return next, err
}

// work advances a claimed run until it waits, ends, or the process shall stop.
func (rs *Rotations) work(effects, stop context.Context, j *job) (did int, err error) {
	defer func() {
		if p := recover(); p != nil {
			rs.log.ErrorContext(stop, "a rotation panicked", "rotation", j.ID, "panic", fmt.Sprint(p), slog.String("stack", string(debug.Stack())))
			err = fmt.Errorf("%w: %v", ErrPanic, p)
		}
	}()
	for again := true; again; did++ {
		if did == maxEffects || stop.Err() != nil || effects.Err() != nil {
			return did, rs.putBack(stop, j)
		}
		if again, err = rs.advance(effects, j); err != nil {
			return did, err
		}
	}
	return did, nil
}

// putBack gives one run back as it is.
func (rs *Rotations) putBack(ctx context.Context, j *job) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitWithin)
	defer cancel()
	return rs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.Swap(ctx, `UPDATE rotations SET holder = '', version = version + 1 WHERE id = $1 AND holder = $2 AND epoch = $3`, j.ID, j.Holder, j.Epoch)
	})
}

// putOff gives back a run whose effect could not be recorded, for later: what stands against it
// may stand for long, and effects are not repeated all the time meanwhile.
func (rs *Rotations) putOff(ctx context.Context, j *job) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitWithin)
	defer cancel()
	return rs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.Swap(ctx, `UPDATE rotations SET holder = '', next_at = $1, attempt = attempt + 1, error = 'what the last try did could not be recorded: see the log', error_reason = 'not_recorded', version = version + 1
			WHERE id = $2 AND holder = $3 AND epoch = $4`, store.Micros(tx.Now.Add(maxHurried)), j.ID, j.Holder, j.Epoch)
	})
}

// passBatch is how many runs one Pass takes on.
const passBatch = 64

// Pass works on what is due, once, in the caller's goroutine: each run as far as it goes. It
// says when the next one is due; zero: none waits. Run does the same all the time, with
// many workers; the two go together.
func (rs *Rotations) Pass(ctx context.Context, _ time.Time) (next time.Time, err error) {
	if err := rs.beat(ctx); err != nil {
		return time.Time{}, err
	}
	jobs, err := rs.claim(ctx, passBatch, passBatch)
	if err != nil {
		return time.Time{}, err
	}
	var errs []error
	for _, j := range jobs {
		if _, err := rs.work(ctx, ctx, j); err != nil && !errors.Is(err, fault.ErrChanged) {
			errs = append(errs, fmt.Errorf("rotation %s: %w", j.ID, errors.Join(err, rs.putOff(ctx, j))))
		}
		rs.release(j)
	}
	if len(jobs) > 0 {
		return rs.db.Now(), errors.Join(errs...)
	}
	next, err = rs.nextAt(ctx)
	return next, errors.Join(append(errs, err)...)
}

// Step does one effect of the one run that is first, and gives it back. It says whether there
// was one.
func (rs *Rotations) Step(ctx context.Context) (bool, error) {
	if err := rs.beat(ctx); err != nil {
		return false, err
	}
	jobs, err := rs.claim(ctx, 1, 1)
	if err != nil || len(jobs) == 0 {
		return false, err
	}
	j := jobs[0]
	defer rs.release(j)
	again, err := rs.advance(ctx, j)
	if err == nil && again {
		err = rs.putBack(ctx, j)
	}
	return true, err
}

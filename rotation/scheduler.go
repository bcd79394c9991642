package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// What a Scheduler does unless told otherwise, and what it never exceeds.
const (
	DefaultEvery     = time.Second
	DefaultTimeout   = time.Minute
	DefaultTolerance = 2 * time.Second

	minRetry = 500 * time.Millisecond
	maxRetry = 15 * time.Second

	// A pass that always answers "again, now" must not take a whole core.
	minGap = 10 * time.Millisecond

	// How long Run waits, once its context has ended, for passes to return.
	stopGrace = 10 * time.Second
)

// ErrPanic is wrapped by the error of a pass that panicked.
var ErrPanic = errors.New("pass panicked")

// ErrOverdue is wrapped by the error reported for a pass that is still running
// though its context ended.
var ErrOverdue = errors.New("pass ignores its deadline")

// Pass is one domain's periodic work.
type Pass struct {
	// Name tells passes apart in logs and metrics: "signing_keys".
	Name string

	// Run looks at what is due at now, does it, and says when it wants to run
	// again; zero means that nothing is waiting. It must be safe to repeat, do a
	// bounded amount of work, and return soon after ctx ends. When more is due than
	// it took on, it returns next = now.
	Run func(ctx context.Context, now time.Time) (next time.Time, err error)
}

// Outcome describes one run of a pass.
type Outcome struct {
	Pass     string
	At       time.Time     // wall clock when it started
	Took     time.Duration // by the monotonic clock
	Next     time.Time     // what the pass asked for; zero when nothing is waiting, or on failure
	Err      error         // nil when it succeeded
	Failures int           // failures in a row, this one included; 0 when it succeeded
	Running  bool          // Err wraps ErrOverdue and the pass has not returned yet

	// Step is how far the wall clock moved against the monotonic clock since any
	// pass last started, when that is more than Tolerance: positive is forward.
	// A machine that was suspended shows as a step forward. It is reported by the
	// one outcome that saw it first.
	Step time.Duration
}

// Scheduler calls passes when they are due. Set the fields, then call Run; they
// must not change afterwards. All methods are safe for concurrent use.
type Scheduler struct {
	Passes []Pass

	// Now is the wall clock. Required.
	Now func() time.Time

	// Tick is a clock that nobody sets: the time since some fixed instant. Required.
	Tick func() time.Duration

	// Every is the longest sleep between two runs of a pass that succeeds.
	// Default: DefaultEvery.
	Every time.Duration

	// Timeout ends the context of one run. Default: DefaultTimeout.
	Timeout time.Duration

	// Tolerance is the wall-clock step that goes unreported. Default: DefaultTolerance.
	Tolerance time.Duration

	// Log receives failures, recoveries and clock steps. Default: nowhere.
	Log *slog.Logger

	// Observe is told of every run, from many goroutines; it must return at once.
	Observe func(Outcome)

	start sync.Once
	bad   error
	loops []*loop
	clock clock
}

// loop is the state of one pass.
type loop struct {
	Pass
	wake chan struct{} // holds at most one request
	busy chan struct{} // holds one token while the pass runs

	failures int // guarded by busy
}

func (s *Scheduler) init() error {
	s.start.Do(func() {
		if s.Now == nil || s.Tick == nil {
			s.bad = fault.Invalid("now", "clock_required", "scheduler: Now or Tick is nil: set both clocks")
			return
		}
		var names []string
		for _, p := range s.Passes {
			switch {
			case p.Name == "" || p.Run == nil:
				s.bad = fault.Invalid("passes", "pass_incomplete", "scheduler: pass %q needs both a name and a function", p.Name)
				return
			case slices.Contains(names, p.Name):
				s.bad = fault.Invalid("passes", "pass_repeated", "scheduler: two passes are named %q: give each its own name", p.Name)
				return
			}
			names = append(names, p.Name)
			s.loops = append(s.loops, &loop{Pass: p, wake: make(chan struct{}, 1), busy: make(chan struct{}, 1)})
		}
		if s.Every <= 0 {
			s.Every = DefaultEvery
		}
		if s.Timeout <= 0 {
			s.Timeout = DefaultTimeout
		}
		if s.Tolerance <= 0 {
			s.Tolerance = DefaultTolerance
		}
		if s.Log == nil {
			s.Log = slog.New(slog.DiscardHandler)
		}
		if s.Observe == nil {
			s.Observe = func(Outcome) {}
		}
	})
	return s.bad
}

// Run calls every pass at once and then whenever it is due, until ctx ends. It
// returns nil when all passes have stopped, and an error that names those which
// had not 10 seconds after ctx ended.
func (s *Scheduler) Run(ctx context.Context) error {
	if err := s.init(); err != nil {
		return err
	}
	var running sync.WaitGroup
	for _, l := range s.loops {
		running.Go(func() { s.loop(ctx, l) })
	}
	stopped := make(chan struct{})
	go func() { running.Wait(); close(stopped) }()
	select {
	case <-stopped:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-stopped:
		return nil
	case <-time.After(stopGrace):
		return fmt.Errorf("scheduler: still running %v after it was stopped: %s", stopGrace, strings.Join(s.busyNames(), ", "))
	}
}

func (s *Scheduler) loop(ctx context.Context, l *loop) {
	for ctx.Err() == nil {
		out, err := s.once(ctx, l, s.report)
		if err != nil {
			return // ctx ended while a run by hand held the pass
		}
		wait := s.wait(out)
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-time.After(wait):
		}
	}
}

// Wake makes every pass run soon, without waiting for it. Requests that arrive
// before a pass starts count as one; a request during a pass makes it run again.
func (s *Scheduler) Wake() {
	if s.init() != nil {
		return // Run reports it
	}
	for _, l := range s.loops {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// RunOnce runs every pass once, now, and returns what failed. It may be called
// beside Run or without it: a pass that is running is waited for, then run again.
// Failures are returned and observed, not logged.
func (s *Scheduler) RunOnce(ctx context.Context) error {
	if err := s.init(); err != nil {
		return err
	}
	errs := make([]error, len(s.loops))
	var running sync.WaitGroup
	for i, l := range s.loops {
		running.Go(func() {
			out, err := s.once(ctx, l, s.observe)
			if err == nil {
				err = out.Err
			}
			if err != nil {
				errs[i] = fmt.Errorf("pass %s: %w", l.Name, err)
			}
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// once runs a pass once, alone. Its error says that ctx ended before the turn came.
func (s *Scheduler) once(ctx context.Context, l *loop, tell func(context.Context, Outcome, []byte)) (Outcome, error) {
	select {
	case l.busy <- struct{}{}:
	case <-ctx.Done():
		return Outcome{}, context.Cause(ctx)
	}
	defer func() { <-l.busy }()

	now := s.Now()
	out := Outcome{Pass: l.Name, At: now, Step: s.clock.step(now, s.Tick(), s.Tolerance)}
	bounded, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()

	began := s.Tick()
	overdue := time.AfterFunc(s.Timeout+minRetry, func() {
		o := out
		o.Step, o.Running, o.Took = 0, true, s.Tick()-began
		o.Err = fmt.Errorf("%w: still running after %v", ErrOverdue, s.Timeout)
		tell(ctx, o, nil)
	})
	next, stack, err := call(bounded, l.Pass, now)
	overdue.Stop()
	out.Took = s.Tick() - began

	switch {
	case err == nil:
		out.Next = next
		if l.failures > 0 {
			s.Log.InfoContext(ctx, "pass recovered", "pass", l.Name, "failures", l.failures)
		}
		l.failures = 0
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		// Stopping is not a failure of the pass.
		out.Err, out.Failures = err, l.failures
		return out, nil
	default:
		l.failures++
		out.Err, out.Failures = err, l.failures
	}
	tell(ctx, out, stack)
	return out, nil
}

// call runs the pass and turns a panic into an error with its stack.
func call(ctx context.Context, p Pass, now time.Time) (next time.Time, stack []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			next, stack = time.Time{}, debug.Stack()
			err = fmt.Errorf("%w: %v", ErrPanic, r)
		}
	}()
	next, err = p.Run(ctx, now)
	return next, nil, err
}

// observe is for runs by hand, whose errors are returned.
func (s *Scheduler) observe(_ context.Context, out Outcome, _ []byte) { s.Observe(out) }

// report is for runs by the loop, where an error has nowhere else to go.
func (s *Scheduler) report(ctx context.Context, out Outcome, stack []byte) {
	if out.Step != 0 {
		s.Log.WarnContext(ctx, "wall clock stepped", "pass", out.Pass, "by", out.Step, "now", out.At)
	}
	if out.Err != nil {
		attrs := []any{"pass", out.Pass, "err", out.Err, "failures", out.Failures, "took", out.Took}
		if stack != nil {
			attrs = append(attrs, "stack", string(stack))
		}
		s.Log.ErrorContext(ctx, "pass failed", attrs...)
	}
	s.Observe(out)
}

// wait is how long the loop sleeps after a run.
func (s *Scheduler) wait(out Outcome) time.Duration {
	if out.Err != nil {
		return retryAfter(out.Failures)
	}
	if out.Next.IsZero() {
		return s.Every
	}
	return min(max(out.Next.Sub(s.Now()), minGap), s.Every)
}

// retryAfter is the delay after so many failures in a row: it doubles up to
// maxRetry, and its upper half is random so that replicas do not retry together.
func retryAfter(failures int) time.Duration {
	d := min(minRetry<<min(max(failures-1, 0), 16), maxRetry)
	return d/2 + rand.N(d/2+1) //nolint:gosec // jitter is no secret
}

func (s *Scheduler) busyNames() []string {
	var names []string
	for _, l := range s.loops {
		if len(l.busy) > 0 {
			names = append(names, l.Name)
		}
	}
	return names
}

// clock compares the wall clock with the monotonic clock.
type clock struct {
	mu   sync.Mutex
	seen bool
	wall time.Time
	tick time.Duration
}

// step returns how far the wall clock moved against the monotonic clock since it
// was last called, or zero when that is within the tolerance.
func (c *clock) step(now time.Time, tick, tolerance time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now = now.Round(0) // only the wall reading may count
	var by time.Duration
	if c.seen {
		by = now.Sub(c.wall) - (tick - c.tick)
	}
	c.seen, c.wall, c.tick = true, now, tick
	if by.Abs() <= tolerance {
		return 0
	}
	return by
}

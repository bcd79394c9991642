package rotation

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// bench is a scheduler under observation.
type bench struct {
	*Scheduler
	log guarded

	mu       sync.Mutex
	outcomes []Outcome
}

func newBench(t *testing.T, passes ...Pass) *bench {
	t.Helper()
	b := new(bench)
	b.Scheduler = &Scheduler{
		Passes: passes,
		Now:    func() time.Time { return time.Now().UTC().Truncate(time.Microsecond) },
		Tick:   stopwatch(),
		Log:    slog.New(slog.NewTextHandler(&b.log, nil)),
		Observe: func(o Outcome) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.outcomes = append(b.outcomes, o)
		},
	}
	return b
}

func (b *bench) seen() []Outcome {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Outcome(nil), b.outcomes...)
}

// guarded is a buffer that is written while it is read.
type guarded struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (g *guarded) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.b.Write(p)
}

func (g *guarded) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.b.String()
}

// run starts the scheduler and stops it when the test ends.
func (b *bench) run(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
}

func idle(context.Context, time.Time) (time.Time, error) { return time.Time{}, nil }

func counting(n *atomic.Int64, run func(context.Context, time.Time) (time.Time, error)) func(context.Context, time.Time) (time.Time, error) {
	return func(ctx context.Context, now time.Time) (time.Time, error) {
		n.Add(1)
		return run(ctx, now)
	}
}

func TestSchedulerWhenNothingIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		b := newBench(t, Pass{"idle", counting(&n, idle)})
		b.run(t)
		time.Sleep(10*time.Second + time.Millisecond)
		if got := n.Load(); got != 11 {
			t.Errorf("ran %d times in ten seconds, want at once and then each second: 11", got)
		}
	})
}

func TestSchedulerWhenPassAsksForAnInstant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var at []time.Time
		ran := func() []time.Time {
			mu.Lock()
			defer mu.Unlock()
			return at
		}
		start := time.Now()
		b := newBench(t, Pass{"due", func(_ context.Context, now time.Time) (time.Time, error) {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, now)
			return start.Add(300 * time.Millisecond), nil
		}})
		b.run(t)
		time.Sleep(300*time.Millisecond + time.Microsecond)
		synctest.Wait()
		if at := ran(); len(at) != 2 || at[1].Sub(start) != 300*time.Millisecond {
			t.Errorf("ran at %v, want at once and 300ms later", at)
		}
		// The instant is over and the pass still asks for it: that must not spin.
		time.Sleep(time.Second)
		if n := len(ran()); n < 50 || n > 110 {
			t.Errorf("ran %d times in a second, want about 100", n)
		}
	})
}

func TestSchedulerWhenWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		release := make(chan struct{})
		b := newBench(t, Pass{"slow", counting(&n, func(context.Context, time.Time) (time.Time, error) {
			<-release
			return time.Time{}, nil
		})})
		b.Every = time.Hour
		b.run(t)
		for range 5 {
			b.Wake() // during the pass: once more, not five times
		}
		release <- struct{}{}
		synctest.Wait()
		if n.Load() != 2 {
			t.Fatalf("ran %d times, want a second time after being woken", n.Load())
		}
		release <- struct{}{}
		time.Sleep(time.Minute)
		if n.Load() != 2 {
			t.Fatalf("ran %d times, want 2: requests were not coalesced", n.Load())
		}
		b.Wake()
		synctest.Wait()
		if n.Load() != 3 {
			t.Fatal("Wake does not end a sleep")
		}
		close(release)
	})
}

func TestSchedulerWhenPassFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad, good atomic.Int64
		var healed atomic.Bool
		b := newBench(t,
			Pass{"bad", counting(&bad, func(context.Context, time.Time) (time.Time, error) {
				if healed.Load() {
					return time.Time{}, nil
				}
				return time.Time{}, errors.New("disk on fire")
			})},
			Pass{"good", counting(&good, idle)})
		b.run(t)
		time.Sleep(10 * time.Minute)
		if n := good.Load(); n < 599 {
			t.Errorf("the healthy pass ran %d times, want each second", n)
		}
		// 15 s at most and half of it at least, after a few short ones.
		n := bad.Load()
		if n < 40 || n > 90 {
			t.Errorf("the failing pass ran %d times in ten minutes, want 40 to 90", n)
		}
		if logged := strings.Count(b.log.String(), "disk on fire"); int64(logged) != n {
			t.Errorf("%d failures were logged %d times", n, logged)
		}
		healed.Store(true)
		time.Sleep(maxRetry)
		synctest.Wait()
		if !strings.Contains(b.log.String(), "pass recovered") {
			t.Error("the recovery is not logged")
		}
		var failures int
		for _, o := range b.seen() {
			if o.Pass != "bad" {
				continue
			}
			if o.Err != nil && o.Failures != failures+1 {
				t.Fatalf("failure %d in a row is observed as %d", failures+1, o.Failures)
			}
			failures = o.Failures
		}
		if failures != 0 {
			t.Errorf("after recovery the pass counts %d failures", failures)
		}
	})
}

func TestRetryAfterWhenFailuresGoOn(t *testing.T) {
	for failures, limit := range []time.Duration{minRetry, minRetry, 2 * minRetry, 4 * minRetry, 8 * minRetry, 16 * minRetry, maxRetry, maxRetry} {
		for range 100 {
			if d := retryAfter(failures); d < limit/2 || d > limit {
				t.Fatalf("after %d failures: %v, want %v to %v", failures, d, limit/2, limit)
			}
		}
	}
	if d := retryAfter(1 << 40); d > maxRetry || d < maxRetry/2 {
		t.Errorf("after very many failures: %v", d)
	}
}

func TestSchedulerWhenPassPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n, good atomic.Int64
		b := newBench(t,
			Pass{"bad", counting(&n, func(context.Context, time.Time) (time.Time, error) { panic("boom") })},
			Pass{"good", counting(&good, idle)})
		b.run(t)
		time.Sleep(time.Minute)
		if n.Load() < 4 || good.Load() < 59 {
			t.Errorf("after a panic the passes ran %d and %d times", n.Load(), good.Load())
		}
		if log := b.log.String(); !strings.Contains(log, "boom") || !strings.Contains(log, "scheduler_test.go") {
			t.Errorf("the log lacks the panic or its stack:\n%.300s", log)
		}
		if err := b.RunOnce(t.Context()); !errors.Is(err, ErrPanic) || !strings.Contains(err.Error(), "pass bad") {
			t.Errorf("by hand: %v", err)
		}
	})
}

func TestSchedulerWhenPassHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var polite, good atomic.Int64
		release := make(chan struct{})
		b := newBench(t,
			Pass{"polite", counting(&polite, func(ctx context.Context, _ time.Time) (time.Time, error) {
				<-ctx.Done()
				return time.Time{}, ctx.Err()
			})},
			Pass{"deaf", func(context.Context, time.Time) (time.Time, error) { <-release; return time.Time{}, nil }},
			Pass{"good", counting(&good, idle)})
		b.Timeout = 5 * time.Second
		b.run(t)
		time.Sleep(time.Minute)
		if good.Load() < 59 || polite.Load() < 4 {
			t.Errorf("beside a pass that hangs the others ran %d and %d times", good.Load(), polite.Load())
		}
		var timeouts, overdue int
		for _, o := range b.seen() {
			if o.Pass == "polite" && errors.Is(o.Err, context.DeadlineExceeded) {
				timeouts++
			}
			if o.Running && o.Pass == "deaf" && errors.Is(o.Err, ErrOverdue) {
				overdue++
			}
		}
		if timeouts == 0 || overdue != 1 {
			t.Errorf("observed %d timeouts (want some) and %d overdue passes (want 1)", timeouts, overdue)
		}
		close(release)
	})
}

func TestRunWhenPassDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		b := newBench(t,
			Pass{"deaf", func(context.Context, time.Time) (time.Time, error) { <-release; return time.Time{}, nil }},
			Pass{"good", idle})
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		err := b.Run(ctx)
		if err == nil || !strings.Contains(err.Error(), "deaf") || strings.Contains(err.Error(), "good") {
			t.Errorf("got %v, want an error that names the pass", err)
		}
		close(release)
	})
}

func TestSchedulerWhenWallClockSteps(t *testing.T) {
	for _, by := range []time.Duration{-48 * time.Hour, -3 * time.Second, 3 * time.Second, 10 * 365 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			var n, offset atomic.Int64
			b := newBench(t, Pass{"a", func(_ context.Context, now time.Time) (time.Time, error) {
				n.Add(1)
				return now.Add(time.Hour), nil
			}}, Pass{"b", idle})
			b.Now = func() time.Time { return time.Now().UTC().Truncate(0).Add(time.Duration(offset.Load())) }
			b.run(t)
			time.Sleep(10 * time.Second)
			offset.Store(int64(by))
			before := n.Load()
			time.Sleep(10*time.Second + time.Millisecond)
			if ran := n.Load() - before; ran < 10 {
				t.Errorf("step %v: the loop ran %d times in ten seconds", by, ran)
			}
			var steps []time.Duration
			for _, o := range b.seen() {
				if o.Step != 0 {
					steps = append(steps, o.Step)
				}
			}
			if len(steps) != 1 || (steps[0]-by).Abs() > time.Millisecond {
				t.Errorf("step %v was observed as %v, want once", by, steps)
			}
			if got := strings.Count(b.log.String(), "wall clock stepped"); got != 1 {
				t.Errorf("step %v was logged %d times", by, got)
			}
		})
	}
}

func TestRunOnceWhenLoopIsRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var inside, n atomic.Int64
		b := newBench(t, Pass{"one", counting(&n, func(context.Context, time.Time) (time.Time, error) {
			if inside.Add(1) != 1 {
				t.Error("the pass overlaps itself")
			}
			time.Sleep(700 * time.Millisecond)
			inside.Add(-1)
			return time.Time{}, nil
		})})
		b.run(t)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := b.RunOnce(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n.Load() < 4 {
			t.Errorf("ran %d times, want the loop's and three by hand", n.Load())
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.RunOnce(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
	})
}

func TestRunOnceWhenPassFails(t *testing.T) {
	b := newBench(t, Pass{"bad", func(context.Context, time.Time) (time.Time, error) {
		return time.Time{}, fault.New(fault.ErrUnavailable, "down", "database is down")
	}}, Pass{"good", idle})
	err := b.RunOnce(t.Context())
	if !errors.Is(err, fault.ErrUnavailable) || !strings.Contains(err.Error(), "pass bad: database is down") {
		t.Errorf("got %v", err)
	}
	if b.log.String() != "" || len(b.seen()) != 2 {
		t.Errorf("by hand an error is returned and observed, not logged: %q, %d outcomes", b.log.String(), len(b.seen()))
	}
}

func TestRunWhenSetUpWrong(t *testing.T) {
	for name, s := range map[string]*Scheduler{
		"no clock":  {Passes: []Pass{{"a", idle}}},
		"no name":   {Now: time.Now, Tick: stopwatch(), Passes: []Pass{{"", idle}}},
		"no func":   {Now: time.Now, Tick: stopwatch(), Passes: []Pass{{"a", nil}}},
		"same name": {Now: time.Now, Tick: stopwatch(), Passes: []Pass{{"a", idle}, {"a", idle}}},
	} {
		if err := s.Run(t.Context()); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: Run: %v", name, err)
		}
		if err := s.RunOnce(t.Context()); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: RunOnce: %v", name, err)
		}
		s.Wake()
	}
}

// stopwatch tells the monotonic time since this call.
func stopwatch() func() time.Duration {
	began := time.Now()
	return func() time.Duration { return time.Since(began) }
}

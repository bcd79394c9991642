package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// script is the other side: it takes what its function allows.
type script struct {
	got   []int64 // the indexes that arrived, in order
	calls []string
	send  func(call int, records []trail.Record) error // nil error: it takes them
	lost  func(call int, records []trail.Record) bool  // true: taken, and the reply is lost
	hold  time.Duration
	dead  atomic.Bool // what was held is lost
}

func (s *script) Send(ctx context.Context, records []trail.Record) error {
	call := len(s.calls)
	s.calls = append(s.calls, fmt.Sprintf("%d-%d", records[0].Index, records[len(records)-1].Index))
	if s.send != nil {
		if err := s.send(call, records); err != nil {
			return err
		}
	}
	for _, r := range records {
		s.got = append(s.got, r.Index)
	}
	if s.lost != nil && s.lost(call, records) {
		return errors.New("the reply was lost")
	}
	return ctx.Err()
}

func (s *script) Close() error        { return nil }
func (s *script) Hold() time.Duration { return s.hold }

func (s *script) Alive() error {
	if s.dead.Load() {
		return errors.New("connection lost")
	}
	return nil
}

type run struct {
	*Pump
	stats    []Stats
	rejected []int64
	cancel   context.CancelFunc
	done     chan error
}

// start runs a pump until stop. It is used inside of a synctest bubble.
func start(t *testing.T, source Source, sink Sink) *run {
	t.Helper()
	r := &run{done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	r.Pump = &Pump{
		Source: source, Sink: sink, Name: "siem", Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Rejected: func(_ context.Context, rec trail.Record, _ string) error {
			r.rejected = append(r.rejected, rec.Index)
			return nil
		},
		Observe: func(s Stats) { r.stats = append(r.stats, s) },
	}
	go func() { r.done <- r.Run(ctx) }()
	return r
}

func (r *run) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if last := r.last(); last.State != StateStopped {
		t.Errorf("the last state is %q", last.State)
	}
}

func (r *run) last() Stats { return r.stats[len(r.stats)-1] }

// wantAll checks that all of 0 to n-1 arrived, first arrivals in order, and how many
// arrived more than once.
func wantAll(t *testing.T, got []int64, n int64, repeats int) {
	t.Helper()
	seen := map[int64]bool{}
	var first []int64
	for _, i := range got {
		if !seen[i] {
			seen[i] = true
			first = append(first, i)
		}
	}
	if int64(len(first)) != n || !slices.IsSorted(first) {
		t.Errorf("%d of %d records arrived (in order: %v)", len(first), n, slices.IsSorted(first))
	}
	if len(got)-len(first) != repeats {
		t.Errorf("%d records arrived again, want %d", len(got)-len(first), repeats)
	}
}

// Promise: nothing is lost, whatever fails, and what is repeated is at most one batch.
func TestPumpWhenTheOtherSideFails(t *testing.T) {
	down := fault.New(fault.ErrUnavailable, "unreachable", "connection refused")
	tests := map[string]struct {
		sink     *script
		took     time.Duration // at least, and less than twice that
		repeats  int
		failures int64
	}{
		"nothing fails": {sink: &script{}},
		"refused twice": {
			sink: &script{send: func(call int, _ []trail.Record) error {
				if call == 1 || call == 2 {
					return down
				}
				return nil
			}},
			took: 1500 * time.Millisecond, failures: 2,
		},
		"done but the reply is lost": {
			sink: &script{lost: func(call int, _ []trail.Record) bool { return call == 0 }},
			took: 500 * time.Millisecond, repeats: 500, failures: 1,
		},
		"slow": {
			sink: &script{send: func(int, []trail.Record) error { time.Sleep(9 * time.Second); return nil }},
			took: 27 * time.Second,
		},
		"busy, says when": {
			sink: &script{send: func(call int, _ []trail.Record) error {
				if call == 0 {
					return &Later{After: 4 * time.Minute, Err: down}
				}
				return nil
			}},
			took: 4 * time.Minute, failures: 1,
		},
		"dead for long": {
			sink: &script{send: func(call int, _ []trail.Record) error {
				if call < 60 {
					return down
				}
				return nil
			}},
			// 1+2+4+8+16+32 s and 54 minutes, each between half and all of it.
			took: 54*30*time.Second + 31*time.Second, failures: 60,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newMemory(newRecords(t, 0, 1200)...)
				begin := time.Now()
				r := start(t, source, test.sink)
				for source.cursor() < 1200 {
					time.Sleep(10 * time.Millisecond)
				}
				took := time.Since(begin)
				synctest.Wait()
				last := r.last()
				r.stop(t)
				wantAll(t, test.sink.got, 1200, test.repeats)
				if took < test.took || took > 2*test.took+2*time.Second {
					t.Errorf("took %v, want from %v to twice that", took, test.took)
				}
				want := Stats{State: StateOK, Cursor: 1200, Position: 1200, Delivered: 1200, Failures: test.failures}
				if diff := cmp.Diff(want, last); diff != "" {
					t.Errorf("stats (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestPumpWhenTheSinkIsDeadTellsHowFarBehindItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := newRecords(t, 0, 40)
		for i := range records {
			records[i].Time = time.Now().Add(-time.Minute)
		}
		source := newMemory(records...)
		r := start(t, source, &script{send: func(int, []trail.Record) error {
			return fault.New(fault.ErrUnavailable, "unreachable", "connection refused")
		}})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		last := r.last()
		if last.State != StateFailing || last.LagEvents != 40 || last.Lag < 10*time.Minute || last.LastError != "connection refused" || last.Delivered != 0 {
			t.Errorf("stats: %+v", last)
		}
		r.stop(t)
	})
}

func TestPumpWhenRecordsAreRefused(t *testing.T) {
	refuse := func(bad ...int64) func(int, []trail.Record) error {
		return func(_ int, records []trail.Record) error {
			for _, r := range records {
				if slices.Contains(bad, r.Index) {
					return fault.New(fault.ErrRejected, "refused", "400")
				}
			}
			return nil
		}
	}
	t.Run("two of them", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			source, sink := newMemory(newRecords(t, 0, 700)...), &script{send: refuse(17, 699)}
			r := start(t, source, sink)
			for source.cursor() < 700 {
				time.Sleep(10 * time.Millisecond)
			}
			r.stop(t)
			if diff := cmp.Diff([]int64{17, 699}, r.rejected); diff != "" {
				t.Errorf("rejected (-want +got):\n%s", diff)
			}
			wantAll(t, sink.got, 698, 0)
			if len(sink.calls) > 2+2*2*9 {
				t.Errorf("%d requests to find two records", len(sink.calls))
			}
			if last := r.last(); last.Rejected != 2 || last.Delivered != 698 {
				t.Errorf("stats: %+v", last)
			}
		})
	})
	t.Run("the note of it fails at first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			source, sink := newMemory(newRecords(t, 0, 3)...), &script{send: refuse(1)}
			r := &Pump{Source: source, Sink: sink, Name: "siem", Log: slog.New(slog.DiscardHandler), Now: time.Now}
			told := 0
			r.Rejected = func(_ context.Context, rec trail.Record, reason string) error {
				if told++; told < 3 {
					return errors.New("the trail can't be written")
				}
				if rec.Index != 1 || reason != "400" {
					t.Errorf("rejected %d: %q", rec.Index, reason)
				}
				return nil
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- r.Run(ctx) }()
			for source.cursor() < 3 {
				time.Sleep(10 * time.Millisecond)
			}
			cancel()
			<-done
			if told != 3 {
				t.Errorf("told %d times", told)
			}
			wantAll(t, sink.got, 2, 0)
		})
	})
	// A receiver that refuses everything is set up wrongly: the trail waits.
	t.Run("all of them, then none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var repaired atomic.Bool
			source, sink := newMemory(newRecords(t, 0, 600)...), &script{}
			sink.send = func(_ int, records []trail.Record) error {
				if repaired.Load() {
					return nil
				}
				return fault.New(fault.ErrRejected, "refused", "400")
			}
			r := start(t, source, sink)
			time.Sleep(time.Hour)
			synctest.Wait()
			if last := r.last(); last.State != StateFailing || !strings.Contains(last.LastError, "10 records in a row") || source.cursor() != maxRefused {
				t.Errorf("cursor %d, stats: %+v", source.cursor(), last)
			}
			repaired.Store(true)
			for source.cursor() < 600 {
				time.Sleep(10 * time.Millisecond)
			}
			r.stop(t)
			if len(r.rejected) != maxRefused || len(sink.got) != 600-maxRefused {
				t.Errorf("%d rejected, %d arrived", len(r.rejected), len(sink.got))
			}
		})
	})
}

// A batch that cannot be delivered keeps its bounds, and so its name.
func TestPumpWhenABatchIsSentAgainKeepsItsBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newMemory(newRecords(t, 0, 10)...)
		sink := &script{send: func(call int, _ []trail.Record) error {
			if call == 0 {
				source.add(newRecords(t, 10, 5)...)
				return errors.New("refused")
			}
			return nil
		}}
		r := start(t, source, sink)
		for source.cursor() < 15 {
			time.Sleep(10 * time.Millisecond)
		}
		r.stop(t)
		if diff := cmp.Diff([]string{"0-9", "0-9", "10-14"}, sink.calls); diff != "" {
			t.Errorf("batches (-want +got):\n%s", diff)
		}
	})
}

func TestPumpWhenRecordsAreLargeBoundsTheBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := newRecords(t, 5, 200) // the first five were pruned
		for i := range records {
			records[i].Detail = `{"x":"` + strings.Repeat("x", trail.MaxDetail-8) + `"}`
		}
		source := newMemory(records...)
		sink := &script{send: func(_ int, records []trail.Record) error {
			total := 0
			for i := range records {
				total += size(&records[i])
			}
			if total > maxBytes {
				t.Errorf("a batch of %d bytes", total)
			}
			return nil
		}}
		r := start(t, source, sink)
		for source.cursor() < 205 {
			time.Sleep(10 * time.Millisecond)
		}
		r.stop(t)
		if len(sink.calls) != 4 || len(sink.got) != 200 {
			t.Errorf("%d records in batches %v", len(sink.got), sink.calls)
		}
	})
}

func TestPumpWhenAnotherReplicaMovesTheCursor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newMemory(newRecords(t, 0, 1500)...)
		sink := &script{}
		sink.send = func(call int, _ []trail.Record) error {
			if call == 1 { // after 0-499: the other replica has delivered up to 1200
				source.mu.Lock()
				source.cursors["siem"] = 1200
				source.mu.Unlock()
			}
			return nil
		}
		r := start(t, source, sink)
		for source.cursor() < 1500 {
			time.Sleep(10 * time.Millisecond)
		}
		r.stop(t)
		if diff := cmp.Diff([]string{"0-499", "500-999", "1200-1499"}, sink.calls); diff != "" {
			t.Errorf("batches (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([][2]int64{{0, 500}, {1200, 1500}}, source.sets); diff != "" {
			t.Errorf("cursor moves (-want +got):\n%s", diff)
		}
	})
}

func TestPumpWhenKilledBetweenSendAndCursor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, sink := newMemory(newRecords(t, 0, 1200)...), &script{}
		killed := errors.New("killed")
		source.setErr = func(from, _ int64) error {
			if from == 500 {
				return killed
			}
			return nil
		}
		r := start(t, source, sink)
		time.Sleep(300 * time.Millisecond)
		r.stop(t)
		if got := source.cursor(); got != 500 {
			t.Fatalf("the cursor is %d", got)
		}
		source.setErr = nil
		r = start(t, source, sink)
		for source.cursor() < 1200 {
			time.Sleep(10 * time.Millisecond)
		}
		r.stop(t)
		wantAll(t, sink.got, 1200, 500)
	})
}

// What the other side may still lose is sent again once the connection breaks.
func TestPumpWhenDeliveriesAreHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, sink := newMemory(newRecords(t, 0, 1000)...), &script{hold: 10 * time.Second}
		sink.send = func(int, []trail.Record) error { sink.dead.Store(false); return nil }
		r := start(t, source, sink)
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if source.cursor() != 0 || len(sink.got) != 1000 {
			t.Fatalf("cursor %d, %d arrived", source.cursor(), len(sink.got))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if source.cursor() != 1000 {
			t.Fatalf("cursor %d after the hold", source.cursor())
		}
		source.add(newRecords(t, 1000, 300)...)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		sink.dead.Store(true)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if source.cursor() != 1300 {
			t.Errorf("cursor %d at the end", source.cursor())
		}
		r.stop(t)
		wantAll(t, sink.got, 1300, 300)
	})
}

func TestPumpWhenIncomplete(t *testing.T) {
	if err := (&Pump{Name: "siem"}).Run(t.Context()); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("Run: %v", err)
	}
}

package apikeys

import (
	"fmt"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// modelLimit is GCRA with fractions: the debt in nanoseconds is any rational number.
type modelLimit struct {
	debt big.Rat
	at   time.Time
}

func ratio(a, b int64) *big.Rat { return big.NewRat(a, b) }

func ceil(r *big.Rat) time.Duration {
	q, m := new(big.Int).DivMod(r.Num(), r.Denom(), new(big.Int))
	if m.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	return time.Duration(q.Int64())
}

func (m *modelLimit) take(limit RateLimit, cost int64, now time.Time) (RateState, bool) {
	if gone := now.Sub(m.at); gone > 0 {
		m.debt.Sub(&m.debt, ratio(int64(gone), 1))
		if m.debt.Sign() < 0 {
			m.debt.SetInt64(0)
		}
		m.at = now
	}
	each := ratio(int64(limit.Window), limit.Quota)
	most := new(big.Rat).Mul(each, ratio(limit.burst(), 1))
	then := new(big.Rat).Add(&m.debt, new(big.Rat).Mul(each, ratio(cost, 1)))
	state := RateState{Limit: limit}
	ok := then.Cmp(most) <= 0
	if ok {
		m.debt.Set(then)
	} else if cost <= limit.burst() {
		state.RetryAfter = ceil(new(big.Rat).Sub(then, most))
	} else {
		state.RetryAfter = ceil(&m.debt)
	}
	state.Reset = ceil(&m.debt)
	left := new(big.Rat).Quo(new(big.Rat).Sub(most, &m.debt), each)
	state.Remaining = new(big.Int).Quo(left.Num(), left.Denom()).Int64()
	return state, ok
}

// Promise: a limit whose burst takes longer to earn than can be counted lets no
// more through for it.
func TestLimiterWhenTheBurstIsLongerThanCanBeCounted(t *testing.T) {
	l := NewLocalLimiter(0)
	limit := RateLimit{Quota: 1, Window: maxWindow, Burst: maxQuota}
	if err := checkRate(limit); err == nil {
		t.Error("no key should have it")
	}
	for i, want := range []bool{true, false, false, false} {
		got, ok, err := l.Take(t.Context(), "k", limit, 1_000_000, epoch)
		if err != nil || ok != want || got.Reset <= 0 || got.Remaining != 0 {
			t.Fatalf("%d: %+v, %t, %v", i, got, ok, err)
		}
	}
}

// Promise: the limiter is GCRA to the nanosecond, whatever the limit, the costs and
// the times between requests.
func TestLimiterWhenComparedWithFractions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := RateLimit{
			Quota:  rapid.OneOf(rapid.Int64Range(1, 20), rapid.Int64Range(1, 1_000_000_000)).Draw(t, "quota"),
			Window: time.Duration(rapid.OneOf(rapid.Int64Range(1e6, 1e9), rapid.Int64Range(1e6, 24*3600*1e9)).Draw(t, "window")),
			Burst:  rapid.OneOf(rapid.Int64Range(0, 5), rapid.Int64Range(0, 1_000_000)).Draw(t, "burst"),
		}
		if whole, _ := scale(limit.burst(), limit); whole == forever {
			t.Skip("a burst of 146 years")
		}
		l, m, now := NewLocalLimiter(0), &modelLimit{}, epoch
		var state RateState
		for i := range rapid.IntRange(1, 60).Draw(t, "requests") {
			switch rapid.IntRange(0, 4).Draw(t, "pause") {
			case 0:
			case 1:
				now = now.Add(state.RetryAfter) // exactly when it says
			case 2:
				now = now.Add(max(0, state.RetryAfter-1)) // and a moment too early
			case 3:
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(limit.Window)).Draw(t, "gap")))
			case 4:
				now = now.Add(state.Reset)
			}
			cost := rapid.OneOf(rapid.Just(int64(1)), rapid.Int64Range(0, limit.burst()+1)).Draw(t, "cost")
			got, ok, err := l.Take(t.Context(), "lineage", limit, cost, now)
			if err != nil {
				t.Fatal(err)
			}
			want, wantOK := m.take(limit, cost, now)
			if diff := cmp.Diff(want, got); diff != "" || ok != wantOK {
				t.Fatalf("request %d of cost %d: ok %v, want %v; (-want +got):\n%s", i, cost, ok, wantOK, diff)
			}
			state = got
		}
	})
}

// Promise: of n requests at one instant exactly the burst is let through, and then
// one for each part of the window.
func TestLimiterWhenManyAskAtOnce(t *testing.T) {
	l := NewLocalLimiter(0)
	limit := RateLimit{Quota: 3, Window: time.Second, Burst: 100}
	ask := func(n int, now time.Time) int64 {
		var let atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range n / 8 {
					if _, ok, err := l.Take(t.Context(), "a", limit, 1, now); err != nil {
						t.Error(err)
					} else if ok {
						let.Add(1)
					}
				}
			})
		}
		wg.Wait()
		return let.Load()
	}
	if n := ask(4000, epoch); n != 100 {
		t.Errorf("%d of a burst of 100", n)
	}
	if n := ask(800, epoch.Add(time.Second)); n != 3 {
		t.Errorf("%d in the second after it, want 3", n)
	}
	if n := ask(800, epoch.Add(time.Second+333_333_333)); n != 0 {
		t.Errorf("%d a nanosecond before the next third of a second, want 0", n)
	}
	if n := ask(800, epoch.Add(time.Second+333_333_334)); n != 1 {
		t.Errorf("%d after a third of a second, want 1", n)
	}
}

// A clock that is set back locks nobody out, and one that is set forward and back
// gives a burst, not more.
func TestLimiterWhenTheClockIsSet(t *testing.T) {
	limit := RateLimit{Quota: 10, Window: time.Second}
	l := NewLocalLimiter(0)
	drain := func(now time.Time) (n int64) {
		for {
			_, ok, err := l.Take(t.Context(), "a", limit, 1, now)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return n
			}
			n++
		}
	}
	if n := drain(epoch); n != 10 {
		t.Fatalf("burst of %d", n)
	}
	back := epoch.Add(-24 * time.Hour)
	if n := drain(back); n != 0 {
		t.Errorf("%d for nothing when the clock went back", n)
	}
	if n := drain(back.Add(500 * time.Millisecond)); n != 5 {
		t.Errorf("%d half a second after the clock went back, want 5", n)
	}
	for i := range 5 { // to and fro, by less than what counts as being set
		if n := drain(back.Add(500*time.Millisecond - time.Duration(i%2)*time.Second)); n != 0 {
			t.Errorf("%d for instants in the wrong order", n)
		}
	}
	if n := drain(back.Add(48 * time.Hour)); n != 10 {
		t.Errorf("%d after a jump forward, want one burst", n)
	}
}

// Limits that are full again are forgotten, and those that are not are bounded.
func TestLimiterWhenThereAreManyKeys(t *testing.T) {
	l := NewLocalLimiter(limitShards * 100)
	limit := RateLimit{Quota: 1, Window: time.Second}
	take := func(key string, now time.Time) bool {
		_, ok, err := l.Take(t.Context(), key, limit, 1, now)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	for i := range 100_000 {
		if !take(fmt.Sprint("long ago ", i), epoch) {
			t.Fatalf("key %d was denied", i)
		}
	}
	if n := l.Len(); n > limitShards*100 {
		t.Errorf("%d keys are remembered, of %d", n, limitShards*100)
	}
	later := epoch.Add(time.Minute)
	for i := range 3000 {
		take(fmt.Sprint("now ", i), later)
	}
	for i := range 3000 {
		if take(fmt.Sprint("now ", i), later) {
			t.Fatalf("key %d was forgotten in favour of one that was full again", i)
		}
	}
}

// When a limit is changed what was used stays used, as far as the new one goes.
func TestLimiterWhenTheLimitChanges(t *testing.T) {
	l := NewLocalLimiter(0)
	take := func(limit RateLimit, now time.Time) (RateState, bool) {
		state, ok, err := l.Take(t.Context(), "a", limit, 1, now)
		if err != nil {
			t.Fatal(err)
		}
		return state, ok
	}
	slow := RateLimit{Quota: 1, Window: time.Hour}
	if _, ok := take(slow, epoch); !ok {
		t.Fatal("the first was denied")
	}
	fast := RateLimit{Quota: 7, Window: time.Second}
	if state, ok := take(fast, epoch); ok || state.Reset != time.Second {
		t.Errorf("let through with a debt of %s", state.Reset)
	}
	if _, ok := take(fast, epoch.Add(time.Second/7+1)); !ok {
		t.Error("denied when a seventh of a second has gone by")
	}
	if _, _, err := l.Take(t.Context(), "a", RateLimit{Quota: 1}, 1, epoch); err == nil {
		t.Error("a limit without a window was taken")
	}
}

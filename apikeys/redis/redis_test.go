package redis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// server is a real redis-server that a test may kill and start again.
type server struct {
	folder string
	port   int
	cmd    *exec.Cmd
}

func newServer(t testing.TB) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{folder: t.TempDir(), port: l.Addr().(*net.TCPAddr).Port}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	t.Cleanup(func() { s.kill(t) })
	return s
}

func (s *server) start(t testing.TB) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("this test needs redis-server: run `make setup`")
	}
	s.cmd = exec.Command(path, "--bind", "127.0.0.1", "--port", strconv.Itoa(s.port), "--dir", s.folder, "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--requirepass", "swordfish")
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	client := goredis.NewClient(&goredis.Options{Addr: s.addr(), Password: "swordfish"})
	defer client.Close()
	for deadline := time.Now().Add(30 * time.Second); client.Ping(t.Context()).Err() != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("redis-server does not answer")
		}
	}
}

// kill kills the server as kill -9 does.
func (s *server) kill(t testing.TB) {
	t.Helper()
	if s.cmd == nil {
		return
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = s.cmd.Wait()
	s.cmd = nil
}

func (s *server) addr() string { return "127.0.0.1:" + strconv.Itoa(s.port) }

// clock is the one of the process, in the test's hand.
type clock struct{ at atomic.Int64 }

func (c *clock) pass(d time.Duration) { c.at.Add(int64(d)) }

func (s *server) open(t testing.TB, c *clock, fail string, log *bytes.Buffer) *Store {
	t.Helper()
	if log == nil {
		log = new(bytes.Buffer)
	}
	store, err := Open(Config{
		URL: "redis://:swordfish@" + s.addr(), Fail: fail, Now: time.Now, Tick: func() time.Duration { return time.Duration(c.at.Load()) }, Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

// Promise: two replicas share one limit: of all requests at once exactly the burst is
// let through, though their clocks differ by an hour.
func TestTakeWhenTwoReplicasShareALimit(t *testing.T) {
	s := newServer(t)
	all := []*Store{s.open(t, new(clock), "", nil), s.open(t, new(clock), "", nil)}
	limit := apikeys.RateLimit{Quota: 1, Window: time.Hour, Burst: 100}
	var let atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				now := time.Now().Add(time.Duration(i%2) * time.Hour)
				state, ok, err := all[i%2].Take(t.Context(), "lineage", limit, 1, now)
				if err != nil || ok != (state.RetryAfter == 0) || state.Remaining < 0 {
					t.Error(state, ok, err)
				}
				if ok {
					let.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := let.Load(); n != 100 {
		t.Errorf("%d of a burst of 100 were let through", n)
	}
	if n := all[0].Missed() + all[1].Missed(); n != 0 {
		t.Errorf("Redis did not answer %d times", n)
	}
	if state, ok, err := all[0].Take(t.Context(), "another", limit, 100, time.Now()); err != nil || !ok || state.Remaining != 0 {
		t.Error(state, ok, err)
	}
	if state, ok, err := all[1].Take(t.Context(), "another", limit, 101, time.Now()); err != nil || ok || state.RetryAfter <= 0 {
		t.Error(state, ok, err)
	}
}

// Promise: the script is the GCRA of the process: over any requests it lets through
// what the time that went by allows, to the microsecond of the server's clock.
func TestTakeWhenComparedWithTime(t *testing.T) {
	s := newServer(t)
	store := s.open(t, new(clock), "", nil)
	for _, limit := range []apikeys.RateLimit{
		{Quota: 3, Window: 10 * time.Millisecond}, {Quota: 7, Window: 100 * time.Millisecond, Burst: 2}, {Quota: 1000, Window: time.Second, Burst: 1}, {Quota: 999_983, Window: 24 * time.Hour, Burst: 3},
	} {
		name := fmt.Sprint(limit)
		burst := max(limit.Burst, 1)
		if limit.Burst == 0 {
			burst = limit.Quota
		}
		begun := time.Now()
		let := int64(0)
		var state apikeys.RateState
		for range 300 {
			var ok bool
			var err error
			if state, ok, err = store.Take(t.Context(), name, limit, 1, time.Time{}); err != nil {
				t.Fatal(err)
			}
			if ok {
				let++
			}
		}
		gone := time.Since(begun)
		// burst + gone · quota / window, and one microsecond of doubt.
		most := new(big.Rat).SetFrac64(int64(gone)+1000, int64(limit.Window))
		most.Mul(most, new(big.Rat).SetInt64(limit.Quota)).Add(most, new(big.Rat).SetInt64(burst))
		if new(big.Rat).SetInt64(let).Cmp(most) > 0 {
			t.Errorf("%s: %d let through in %s", name, let, gone)
		}
		// Nor is any lost: when it is full again the whole burst is there, and no more.
		time.Sleep(min(state.Reset, 100*time.Millisecond) + time.Millisecond)
		if state.Reset > 100*time.Millisecond {
			continue
		}
		if state, ok, err := store.Take(t.Context(), name, limit, burst, time.Time{}); err != nil || !ok || state.Remaining != 0 {
			t.Errorf("%s: after its reset %+v, %v, %v", name, state, ok, err)
		}
	}
}

// Promise: each way to fail does what it says; a dead Redis is asked once in a
// second; when it is back its limits are shared again.
func TestTakeWhenRedisIsKilled(t *testing.T) {
	s := newServer(t)
	var c clock
	var log bytes.Buffer
	stores := map[string]*Store{FailLocal: s.open(t, &c, "", &log), FailOpen: s.open(t, &c, FailOpen, nil), FailClosed: s.open(t, &c, FailClosed, nil)}
	limit := apikeys.RateLimit{Quota: 1, Window: time.Hour, Burst: 3}
	take := func(fail string) (bool, error) {
		_, ok, err := stores[fail].Take(t.Context(), fail, limit, 1, time.Now())
		return ok, err
	}
	for fail := range stores {
		for i := range 4 {
			if ok, err := take(fail); err != nil || ok != (i < 3) {
				t.Fatalf("%s: request %d: %v, %v", fail, i, ok, err)
			}
		}
	}
	s.kill(t)
	for i := range 5 {
		if ok, err := take(FailLocal); err != nil || ok != (i < 3) {
			t.Errorf("local: request %d: %v, %v", i, ok, err)
		}
		if ok, err := take(FailOpen); err != nil || !ok {
			t.Errorf("open: request %d: %v, %v", i, ok, err)
		}
		if ok, err := take(FailClosed); !errors.Is(err, fault.ErrUnavailable) || ok {
			t.Errorf("closed: request %d: %v, %v", i, ok, err)
		}
		if fresh, err := stores[FailOpen].Spend(t.Context(), "key", "nonce", time.Now().Add(time.Minute)); !errors.Is(err, fault.ErrUnavailable) || fresh {
			t.Errorf("a nonce without Redis: %v, %v", fresh, err)
		}
	}
	s.start(t)
	// It is not asked before the pause is over, so it does not answer either.
	if ok, err := take(FailClosed); !errors.Is(err, fault.ErrUnavailable) || ok {
		t.Errorf("within the pause: %v, %v", ok, err)
	}
	c.pass(pause)
	for fail, store := range stores {
		missed := store.Missed()
		if ok, err := take(fail); err != nil || ok {
			t.Errorf("%s: it forgot its limits over the kill: %v, %v", fail, ok, err)
		}
		if store.Missed() != missed {
			t.Errorf("%s: Redis was not asked", fail)
		}
	}
	if n := strings.Count(log.String(), "does not answer"); n != 1 || !strings.Contains(log.String(), "answers again") || strings.Contains(log.String(), "swordfish") {
		t.Errorf("%d lines in the log:\n%s", n, log.String())
	}
}

// Promise: of all who spend a nonce at the same time, at any replica, one is told
// that it is fresh, and it stays spent when Redis is killed.
func TestSpendWhenManySpendAtOnce(t *testing.T) {
	s := newServer(t)
	var c clock
	all := []*Store{s.open(t, &c, "", nil), s.open(t, &c, "", nil)}
	const nonces = 50
	var fresh [nonces]atomic.Int64
	var wg sync.WaitGroup
	for i := range nonces * 6 {
		wg.Go(func() {
			ok, err := all[i%2].Spend(context.WithoutCancel(t.Context()), "key", fmt.Sprint(i%nonces), time.Now().Add(time.Hour))
			if err != nil {
				t.Error(err)
			}
			if ok {
				fresh[i%nonces].Add(1)
			}
		})
	}
	wg.Wait()
	for i := range fresh {
		if n := fresh[i].Load(); n != 1 {
			t.Errorf("nonce %d was fresh %d times", i, n)
		}
	}
	s.kill(t)
	s.start(t)
	for _, store := range all {
		ok, err := store.Spend(t.Context(), "key", "1", time.Now().Add(time.Hour))
		if err != nil { // its connection was one to the old server
			c.pass(pause)
			ok, err = store.Spend(t.Context(), "key", "1", time.Now().Add(time.Hour))
		}
		if err != nil || ok {
			t.Errorf("after the kill: fresh %v, %v", ok, err)
		}
	}
	if ok, err := all[0].Spend(t.Context(), "other", "1", time.Now().Add(-time.Hour)); err != nil || !ok {
		t.Errorf("the nonce of another key: fresh %v, %v", ok, err)
	}
}

// A caller who goes away does not make Redis look dead.
func TestTakeWhenTheCallerHasGone(t *testing.T) {
	s := newServer(t)
	store := s.open(t, new(clock), FailOpen, nil)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	limit := apikeys.RateLimit{Quota: 1, Window: time.Hour}
	if _, ok, err := store.Take(gone, "a", limit, 1, time.Now()); !errors.Is(err, fault.ErrUnavailable) || ok {
		t.Errorf("%v, %v", ok, err)
	}
	if _, ok, err := store.Take(t.Context(), "a", limit, 1, time.Now()); err != nil || !ok || store.Missed() != 0 {
		t.Errorf("%v, %v, missed %d", ok, err, store.Missed())
	}
	if _, ok, err := store.Take(t.Context(), "a", limit, 1, time.Now()); err != nil || ok {
		t.Errorf("the second one: %v, %v", ok, err)
	}
}

// No error of a bad URL holds the password in it.
func TestOpenWhenTheConfigIsBad(t *testing.T) {
	for _, cfg := range []Config{
		{URL: "redis://:swordfish@host:port"}, {URL: "http://:swordfish@host"}, {URL: "://swordfish"}, {URL: "redis://:swordfish@host/x"}, {URL: "redis://localhost", Fail: "sometimes"},
	} {
		cfg.Now, cfg.Tick, cfg.Log = time.Now, func() time.Duration { return 0 }, slog.New(slog.DiscardHandler)
		if _, err := Open(cfg); !errors.Is(err, fault.ErrInvalid) || strings.Contains(err.Error(), "swordfish") {
			t.Errorf("%v", err)
		}
	}
}

// BenchmarkTake is a request counted in Redis on this machine.
func BenchmarkTake(b *testing.B) {
	store := newServer(b).open(b, new(clock), FailClosed, nil)
	limit := apikeys.RateLimit{Quota: 1_000_000, Window: time.Second}
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, _, err := store.Take(context.Background(), strconv.Itoa(i%1000), limit, 1, time.Time{}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

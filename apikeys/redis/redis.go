// Package redis shares rate limits and nonces between replicas through Redis, which
// must be of version 6.2 or later. Rotunda works without it.
//
// # Rate limits
//
// [Store.Take] is the GCRA of [apikeys.LocalLimiter], as one script that runs in
// Redis by the clock of Redis, so that neither two replicas at the same time nor
// clocks that differ let more through than a key's burst and quota. It counts in
// whole microseconds and parts of one; the numbers of a Redis script are exact as
// long as burst · window (in microseconds) is less than 2^53, which is to say always,
// but for limits that let through a hundred thousand requests at once in a day.
//
// What happens while Redis does not answer is [Config].Fail. Each call waits for a
// tenth of a second at most; after one that failed none is tried for a second, so
// that a dead Redis slows down one request in a second, not all.
//
// # Nonces
//
// [Store.Spend] never accepts a nonce that Redis did not answer for: without an
// answer it is fault.ErrUnavailable. But Redis forgets: a server without an
// append-only file loses the nonces at a restart, and a replica that is promoted
// those of the last moment, and one with a maxmemory-policy other than noeviction those
// that it has no room for, so that requests that are not too old could be replayed.
// The database, which is the default, never forgets; use Redis for nonces where its
// writes are too slow, with `appendfsync always` or knowing this.
package redis

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// What a limiter does while Redis does not answer.
const (
	FailLocal  = "local"  // count in this process: n replicas let n times as much through at most
	FailOpen   = "open"   // let all requests through
	FailClosed = "closed" // answer fault.ErrUnavailable
)

const (
	timeout  = 100 * time.Millisecond
	pause    = time.Second // without calls, after one that failed
	minNonce = time.Second // that a nonce is remembered at least
)

// Config says which Redis, and what to do without it.
type Config struct {
	// URL is redis://user:password@host:6379/0, rediss:// for TLS, or unix://.
	URL string

	// Fail is FailLocal, FailOpen or FailClosed. Default: FailLocal.
	Fail string

	// Prefix is what names in Redis begin with. Default: "rotunda:".
	Prefix string

	Now  func() time.Time     // store.DB.Now
	Tick func() time.Duration // store.DB.Tick
	Log  *slog.Logger
}

// Store is the [apikeys.Limiter] and the [apikeys.Nonces] of all replicas that use
// one Redis. Its methods may be called from many goroutines.
type Store struct {
	cfg    Config
	client *goredis.Client
	script *goredis.Script // is sent by its hash
	local  *apikeys.LocalLimiter

	closedUntil atomic.Int64 // Tick until which Redis is not asked; 0: it answers
	probing     atomic.Bool  // somebody finds out whether it is back
	missed      atomic.Int64 // calls that it did not answer
}

//go:embed take.lua
var takeText string

// Open returns a store. It does not wait for Redis, which may come later.
func Open(cfg Config) (*Store, error) {
	if cfg.Fail == "" {
		cfg.Fail = FailLocal
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "rotunda:"
	}
	if cfg.Fail != FailLocal && cfg.Fail != FailOpen && cfg.Fail != FailClosed {
		return nil, fault.Invalid("redis.fail", "bad_fail", "open Redis: what to do without it is %s, %s or %s, not %q", FailLocal, FailOpen, FailClosed, cfg.Fail)
	}
	if cfg.Now == nil || cfg.Tick == nil || cfg.Log == nil {
		return nil, errors.New("open Redis: Now, Tick and Log are needed")
	}
	opt, err := goredis.ParseURL(cfg.URL)
	if err != nil {
		// The error may hold the URL, and the URL a password.
		return nil, fault.Invalid("redis.url", "bad_url", "open Redis: the URL is not one: use redis://user:password@host:6379/0, with rediss:// for TLS")
	}
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout, opt.PoolTimeout = timeout, timeout, timeout, timeout
	opt.MaxRetries, opt.DialerRetries, opt.ContextTimeoutEnabled = -1, 1, true // a second try would have to wait, too
	return &Store{cfg: cfg, client: goredis.NewClient(opt), script: goredis.NewScript(takeText), local: apikeys.NewLocalLimiter(0)}, nil
}

// Close ends all connections.
func (s *Store) Close() error {
	if err := s.client.Close(); err != nil {
		return fmt.Errorf("close Redis: %w", err)
	}
	return nil
}

// Missed is how many calls Redis did not answer, those included that were not made
// because it did not answer the one before.
func (s *Store) Missed() int64 { return s.missed.Load() }

// Take implements [apikeys.Limiter].
func (s *Store) Take(ctx context.Context, key string, limit apikeys.RateLimit, cost int64, now time.Time) (apikeys.RateState, bool, error) {
	burst := limit.Burst
	if burst == 0 {
		burst = limit.Quota
	}
	if limit.Quota <= 0 || limit.Window < time.Microsecond || burst <= 0 || cost < 0 {
		return apikeys.RateState{}, false, fault.Invalid("rate", "bad_rate", "take %d of a limit of %d in %s with a burst of %d: all of them must be positive", cost, limit.Quota, limit.Window, limit.Burst)
	}
	var out []int64
	err := s.call(ctx, func(ctx context.Context) (err error) {
		out, err = s.script.Run(ctx, s.client, []string{s.cfg.Prefix + "rate:" + key}, limit.Quota, limit.Window.Microseconds(), burst, cost).Int64Slice()
		if err == nil && len(out) != 4 {
			err = fmt.Errorf("the script answered %d numbers", len(out))
		}
		return err
	})
	if err == nil {
		us := func(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
		return apikeys.RateState{Limit: limit, Remaining: out[1], Reset: us(out[2]), RetryAfter: us(out[3])}, out[0] == 1, nil
	}
	if ctx.Err() != nil {
		return apikeys.RateState{}, false, fault.New(fault.ErrUnavailable, "gave_up", "count a request in Redis: %w", ctx.Err())
	}
	switch s.cfg.Fail {
	case FailOpen:
		return apikeys.RateState{Limit: limit, Remaining: burst}, true, nil
	case FailClosed:
		return apikeys.RateState{}, false, fault.New(fault.ErrUnavailable, "redis_unavailable", "count a request in Redis: %w", err)
	}
	return s.local.Take(ctx, key, limit, cost, now)
}

// Spend implements [apikeys.Nonces].
func (s *Store) Spend(ctx context.Context, keyID, nonce string, until time.Time) (fresh bool, err error) {
	life := max(until.Sub(s.cfg.Now()), minNonce)
	err = s.call(ctx, func(ctx context.Context) error {
		err := s.client.SetArgs(ctx, s.cfg.Prefix+"nonce:"+keyID+":"+nonce, "", goredis.SetArgs{Mode: "NX", TTL: life.Truncate(time.Millisecond)}).Err()
		fresh = err == nil
		if errors.Is(err, goredis.Nil) {
			return nil
		}
		return err
	})
	if err != nil {
		return false, fault.New(fault.ErrUnavailable, "redis_unavailable", "spend a nonce in Redis: %w", err)
	}
	return fresh, nil
}

var errClosed = errors.New("it did not answer a moment ago")

// call asks Redis, unless it did not answer a moment ago. One caller at a time finds
// out whether it is back.
func (s *Store) call(ctx context.Context, f func(ctx context.Context) error) error {
	closed := s.closedUntil.Load()
	if closed != 0 {
		if int64(s.cfg.Tick()) < closed || !s.probing.CompareAndSwap(false, true) {
			s.missed.Add(1)
			return errClosed
		}
		defer s.probing.Store(false)
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := f(limited)
	switch {
	case err == nil:
		if closed != 0 && s.closedUntil.CompareAndSwap(closed, 0) {
			s.cfg.Log.Info("Redis answers again", "missed", s.missed.Load())
		}
	case ctx.Err() != nil: // the caller went away, which says nothing about Redis
	default:
		s.missed.Add(1)
		if s.closedUntil.Swap(int64(s.cfg.Tick()+pause)) == 0 {
			s.cfg.Log.Error("Redis does not answer: rate limits "+s.without()+", and nonces are refused", "asked_again_after", pause, "error", err)
		}
	}
	return err
}

func (s *Store) without() string {
	switch s.cfg.Fail {
	case FailOpen:
		return "are off"
	case FailClosed:
		return "refuse all requests"
	}
	return "are counted by each replica for itself (" + strconv.Quote(FailLocal) + ")"
}

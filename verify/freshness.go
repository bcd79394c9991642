package verify

import (
	"context"
	"fmt"
	"time"
)

// key finds the key of a key id, fetching the set when it must.
func (t *Tokens) key(ctx context.Context, kid string) (*publicKey, error) {
	began := t.cfg.Now()
	set, err := t.current(ctx)
	if err != nil {
		return nil, err
	}
	if k := set.keys[kid]; k != nil {
		return k, nil
	}
	unknown := &Denied{ReasonUnknown, "the key id " + quote(kid) + " is not in the JWKS"}
	if !set.fetched.Before(began) {
		return nil, unknown // it was fetched just for this call
	}
	// A fetch that was under way may have begun before the key was published: the
	// second time round it is one that this call began.
	for range 2 {
		mine, err := t.learn(ctx)
		if err != nil {
			return nil, err
		}
		// What was fetched meanwhile may be too old by now, as in current.
		if set, err = t.current(ctx); err != nil {
			return nil, err
		}
		if k := set.keys[kid]; k != nil {
			return k, nil
		}
		if mine {
			break
		}
	}
	return nil, unknown
}

// current returns a set that may be used now.
func (t *Tokens) current(ctx context.Context) (*keySet, error) {
	now := t.cfg.Now()
	set := t.set.Load()
	if set != nil && now.Before(set.refreshAt) {
		return set, nil
	}
	t.mu.Lock()
	f := t.flight
	if f == nil && !now.Before(t.retryAt) {
		f = t.fetch(ctx, false)
	}
	// While fetches fail, nobody waits for the next one to fail.
	failing, lastErr := t.failures > 0, t.lastErr
	t.mu.Unlock()

	usable := t.usable(set, now)
	if usable && (now.Before(set.expiresAt) || failing) {
		return set, nil
	}
	if f == nil {
		return nil, unavailable(lastErr)
	}
	err := t.wait(ctx, f)
	// With an error, what there is will do if it does.
	if set = t.set.Load(); t.usable(set, t.cfg.Now()) {
		return set, nil
	}
	return nil, unavailable(err)
}

// usable says that a set is fresh, or stale within MaxStale.
func (t *Tokens) usable(set *keySet, now time.Time) bool {
	return set != nil && now.Before(set.expiresAt.Add(t.cfg.MaxStale))
}

// learn waits for a fetch that may bring an unknown key id. It begins one itself at
// most every ten seconds, whatever has been fetched for other reasons and whoever
// asks: a stranger with made-up key ids can neither cause more, nor keep the next
// one from a key id that is real.
func (t *Tokens) learn(ctx context.Context) (mine bool, err error) {
	now := t.cfg.Now()
	t.mu.Lock()
	f := t.flight
	if f == nil {
		if now.Before(t.unknownNext) {
			failures, lastErr := t.failures, t.lastErr
			t.mu.Unlock()
			if failures > 0 {
				return false, unavailable(lastErr)
			}
			return true, nil
		}
		t.unknownNext = now.Add(unknownEvery)
		f, mine = t.fetch(ctx, true), true
	}
	t.mu.Unlock()
	if err := t.wait(ctx, f); err != nil {
		return mine, unavailable(err)
	}
	return mine, nil
}

// wait waits for a fetch, as one of a bounded number: a flood during a slow fetch
// must not pile up.
func (t *Tokens) wait(ctx context.Context, f *flight) error {
	t.mu.Lock()
	if t.waiting >= maxWaiting {
		t.mu.Unlock()
		return fmt.Errorf("%d calls wait for the JWKS already", maxWaiting)
	}
	t.waiting++
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		t.waiting--
		t.mu.Unlock()
	}()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fetch begins a fetch; t.mu is held and none is under way. It goes on when the
// call that began it is cancelled, because others may wait for it. revalidate makes
// caches on the way ask the server.
func (t *Tokens) fetch(ctx context.Context, revalidate bool) *flight {
	f := &flight{done: make(chan struct{})}
	t.flight = f
	old := t.set.Load()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.cfg.FetchTimeout)
	go func() {
		defer cancel()
		set, err := t.docs.fetch(ctx, old, revalidate)
		if err != nil {
			t.cfg.Report(err) // now, so that reports come one at a time
		}
		t.mu.Lock()
		if err != nil {
			f.err, t.lastErr = err, err
			pause := maxRetryPause
			if t.failures < 4 {
				pause = min(pause, time.Second<<t.failures)
			}
			t.retryAt = t.cfg.Now().Add(pause)
			t.failures++
		} else {
			t.set.Store(set)
			t.failures, t.lastErr, t.retryAt = 0, nil, time.Time{}
		}
		t.flight = nil
		close(f.done)
		t.mu.Unlock()
	}()
	return f
}

func unavailable(err error) error {
	if err == nil {
		return fmt.Errorf("%w: the JWKS has not been fetched yet", ErrUnavailable)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// Refresh fetches the JWKS now, or joins a fetch that is under way. Call it at the
// start, to learn of a wrong URL then and not with the first request.
func (t *Tokens) Refresh(ctx context.Context) error {
	t.mu.Lock()
	f := t.flight
	if f == nil {
		f = t.fetch(ctx, true)
	}
	t.mu.Unlock()
	if err := t.wait(ctx, f); err != nil {
		return unavailable(err)
	}
	return nil
}

// Run keeps the JWKS fresh until ctx is done, so that no call waits after a quiet
// time. It returns the cause of the end. Failures go to TokensConfig.Report.
func (t *Tokens) Run(ctx context.Context) error {
	for {
		t.mu.Lock()
		at := t.retryAt
		if t.failures == 0 {
			if set := t.set.Load(); set != nil {
				at = set.refreshAt
			}
		}
		f := t.flight
		pause := at.Sub(t.cfg.Now())
		if f == nil && pause <= 0 {
			f = t.fetch(ctx, false)
		}
		t.mu.Unlock()
		if f != nil {
			select {
			case <-f.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// Status is how fresh the keys are.
type Status struct {
	Keys      int
	FetchedAt time.Time // zero: never
	ExpiresAt time.Time // then a fetch is overdue
	UsableTo  time.Time // then nothing is accepted
	Err       error     // of the last fetch; nil when it succeeded
}

// Status is for health checks and alarms: a fetch that keeps failing is seen here
// MaxStale before it does harm.
func (t *Tokens) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Status{Err: t.lastErr}
	if set := t.set.Load(); set != nil {
		s.Keys, s.FetchedAt, s.ExpiresAt = len(set.keys), set.fetched, set.expiresAt
		s.UsableTo = set.expiresAt.Add(t.cfg.MaxStale)
	}
	return s
}

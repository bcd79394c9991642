package verify

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The tests of this file run in bubbles, where hours pass at once.

// bubble gives fetches that are under way the time to end. One that does not is a
// leak, over which the bubble panics.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(2 * defaultTimeout)
		f(t)
	})
}

func verifies(t *testing.T, tokens *Tokens, token, want string) {
	t.Helper()
	_, err := tokens.Verify(t.Context(), token)
	wantReason(t, err, want)
}

func forever(_ map[jose.HeaderKey]any, c map[string]any) {
	c["exp"] = time.Now().Add(1000 * time.Hour).Unix()
}

// While the JWKS can be fetched, a withdrawn key is refused within its max-age,
// busy or not.
func TestWithdrawnKeyWhenTheServerIsUp(t *testing.T) {
	for _, busy := range []bool{true, false} {
		for name, tc := range map[string]struct {
			cache string
			most  time.Duration
		}{
			"of the server":  {"max-age=60", time.Minute},
			"of the client":  {"max-age=86400", defaultMaxAge},
			"not below ten":  {"no-store", minAge},
			"when it's mute": {"", noHeaderAge},
		} {
			t.Run(fmt.Sprintf("%s, busy %t", name, busy), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					i := newIssuer(t, "old", "new")
					if tc.cache != "" {
						i.header.Set("Cache-Control", tc.cache)
					}
					tokens := i.tokens(t)
					token := i.sign(t, "old", forever)
					verifies(t, tokens, token, "accepted")
					i.withdraw("old")
					verifies(t, tokens, token, "accepted")
					begin := time.Now()
					pause := 100 * time.Millisecond
					if !busy {
						pause = tc.most
					}
					for {
						time.Sleep(pause)
						synctest.Wait()
						if _, err := tokens.Verify(t.Context(), token); err != nil {
							wantReason(t, err, "unknown")
							break
						}
						if time.Since(begin) >= tc.most {
							t.Fatalf("accepted %s after it was withdrawn, and %s is the bound", time.Since(begin), tc.most)
						}
					}
				})
			})
		}
	}
}

// Calls with a known key never wait while they come often enough.
func TestKnownKeyWhenFetchesAreSlow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i := newIssuer(t, "k1")
		i.header.Set("Cache-Control", "max-age=60")
		tokens := i.tokens(t)
		token := i.sign(t, "k1", forever)
		verifies(t, tokens, token, "accepted")
		i.set(func() { i.delay = 4 * time.Second })
		begin := time.Now()
		for time.Since(begin) < time.Hour {
			time.Sleep(time.Second)
			before := time.Now()
			verifies(t, tokens, token, "accepted")
			if waited := time.Since(before); waited > 0 {
				t.Fatalf("a call waited for %s", waited)
			}
		}
		if n := i.count(); n < 60 || n > 80 {
			t.Errorf("%d fetches in an hour at max-age 60 s", n)
		}
	})
}

// A set that can't be fetched again is used for MaxStale, and no longer; and nobody
// waits for the fetches that fail meanwhile.
func TestStaleSetWhenTheServerIsDown(t *testing.T) {
	for name, down := range map[string]func(*issuer){
		"refuses": func(i *issuer) { i.fail = errors.New("connection refused") },
		"hangs":   func(i *issuer) { i.delay = time.Hour },
		"500":     func(i *issuer) { i.status = http.StatusInternalServerError },
		"rubbish": func(i *issuer) { i.body = []byte("<html>") },
		"404":     func(i *issuer) { i.status = http.StatusNotFound },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				i := newIssuer(t, "k1")
				i.header.Set("Cache-Control", "max-age=60")
				failed := 0
				tokens := i.tokens(t, func(c *TokensConfig) { c.MaxStale = 10 * time.Minute; c.Report = func(error) { failed++ } })
				token := i.sign(t, "k1", forever)
				verifies(t, tokens, token, "accepted")
				begin := time.Now()
				i.set(func() { down(i) })
				bound := time.Minute + 10*time.Minute
				for time.Since(begin) < bound-2*time.Second {
					time.Sleep(time.Second)
					before := time.Now()
					verifies(t, tokens, token, "accepted")
					if waited := time.Since(before); waited > 0 {
						t.Fatalf("a call waited for %s", waited)
					}
				}
				if s := tokens.Status(); s.Err == nil || s.Keys != 1 || !s.UsableTo.Equal(begin.Add(bound)) {
					t.Errorf("status %+v", s)
				}
				time.Sleep(time.Until(begin.Add(bound)))
				verifies(t, tokens, token, "unavailable")
				if failed < 20 || failed > 90 {
					t.Errorf("%d failed fetches in %s", failed, bound)
				}
				// It comes back, and so do the tokens.
				i.set(func() { i.fail, i.delay, i.status, i.body = nil, 0, 0, nil })
				time.Sleep(maxRetryPause + defaultTimeout)
				synctest.Wait()
				verifies(t, tokens, token, "accepted")
				verifies(t, tokens, token, "accepted")
				if s := tokens.Status(); s.Err != nil {
					t.Errorf("status %+v", s)
				}
			})
		})
	}
}

func TestStaleSetWhenItIsNotAllowed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i := newIssuer(t, "k1")
		i.header.Set("Cache-Control", "max-age=60")
		tokens := i.tokens(t, func(c *TokensConfig) { c.MaxStale = -1 })
		token := i.sign(t, "k1", forever)
		verifies(t, tokens, token, "accepted")
		i.set(func() { i.fail = errors.New("gone") })
		time.Sleep(time.Minute - time.Second)
		verifies(t, tokens, token, "accepted")
		time.Sleep(time.Second)
		verifies(t, tokens, token, "unavailable")
	})
}

// The first call after a quiet time must not use a set that ran out meanwhile.
func TestQuietTimeWhenAKeyWasWithdrawn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i := newIssuer(t, "old", "new")
		tokens := i.tokens(t)
		token := i.sign(t, "old", forever)
		verifies(t, tokens, token, "accepted")
		i.withdraw("old")
		i.set(func() { i.delay = 2 * time.Second })
		time.Sleep(8 * time.Hour)
		verifies(t, tokens, token, "unknown")
		// The server hangs: the call waits as long as a fetch may take, and then a stale
		// set would do, but this one is older than MaxStale.
		i.set(func() { i.delay = time.Hour })
		time.Sleep(8 * time.Hour)
		begin := time.Now()
		verifies(t, tokens, i.sign(t, "new"), "unavailable")
		if waited := time.Since(begin); waited != defaultTimeout {
			t.Errorf("waited for %s, want %s", waited, defaultTimeout)
		}
	})
}

// A new key id is found within ten seconds, whoever else makes up key ids, and
// these cause one fetch in ten seconds.
func TestNewKeyWhenAFloodOfUnknownKeyIDs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i := newIssuer(t, "k1")
		i.header.Set("Cache-Control", "max-age=600")
		tokens := i.tokens(t)
		verifies(t, tokens, i.sign(t, "k1"), "accepted")
		stranger := newIssuer(t)
		stranger.private["x"] = i.private["k1"]
		flood := func(n int) {
			for range n {
				kid := fmt.Sprintf("made-up-%d-%d", time.Now().UnixNano(), n)
				k := stranger.private["x"]
				k.KeyID = kid
				verifies(t, tokens, signed(t, k, nil, []byte(`{}`)), "unknown")
			}
		}
		begin := time.Now()
		before := i.count()
		for time.Since(begin) < time.Minute {
			flood(3)
			time.Sleep(500 * time.Millisecond)
		}
		if n := i.count() - before; n > 7 {
			t.Errorf("%d fetches in a minute for made-up key ids", n)
		}
		i.add(t, "k2", jose.ES256)
		token := i.sign(t, "k2")
		begin = time.Now()
		for {
			flood(3)
			if _, err := tokens.Verify(t.Context(), token); err == nil {
				break
			}
			if time.Since(begin) > unknownEvery {
				t.Fatalf("the new key is not found after %s", time.Since(begin))
			}
			time.Sleep(500 * time.Millisecond)
		}
	})
}

// A periodic refresh does not use up the fetch that a new key id needs.
func TestNewKeyWhenASetWasJustFetched(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i := newIssuer(t, "k1")
		tokens := i.tokens(t)
		if err := tokens.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		i.add(t, "k2", jose.ES256)
		verifies(t, tokens, i.sign(t, "k2"), "accepted")
		if n := i.count(); n != 2 {
			t.Errorf("%d fetches, want 2", n)
		}
		if got := i.requests[1].Get("Cache-Control"); got != "no-cache" {
			t.Errorf("a fetch for a new key id lets caches answer: Cache-Control %q", got)
		}
	})
}

// A fetch that began before the key was published does not speak for it.
func TestNewKeyWhenAnEarlierFetchIsUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i := newIssuer(t, "k1")
		tokens := i.tokens(t)
		verifies(t, tokens, i.sign(t, "k1"), "accepted")
		time.Sleep(time.Second)
		old := i.document()
		i.set(func() { i.delay, i.body = 3*time.Second, old })
		done := make(chan error)
		go func() { done <- tokens.Refresh(t.Context()) }()
		synctest.Wait()
		i.add(t, "k2", jose.ES256)
		i.set(func() { i.delay, i.body = 0, nil })
		verifies(t, tokens, i.sign(t, "k2"), "accepted")
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Many calls, one fetch.
func TestFetchWhenManyCallsNeedIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i := newIssuer(t, "k1")
		i.delay = time.Second
		tokens := i.tokens(t)
		token := i.sign(t, "k1", forever)
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() { verifies(t, tokens, token, "accepted") })
		}
		wg.Wait()
		if n := i.count(); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

// Calls that wait are bounded, and a call that gives up leaves the fetch to the others.
func TestFetchWhenTheServerHangsUnderAFlood(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i := newIssuer(t, "k1")
		i.delay = 4 * time.Second
		tokens := i.tokens(t)
		token := i.sign(t, "k1")
		first, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := tokens.Verify(first, token)
			if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnavailable) {
				t.Errorf("the call that was cancelled: %v", err)
			}
		})
		synctest.Wait()
		refused := make(chan error, 2*maxWaiting)
		for range maxWaiting {
			wg.Go(func() {
				_, err := tokens.Verify(t.Context(), token)
				refused <- err
			})
		}
		synctest.Wait()
		if err := <-refused; !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "wait") {
			t.Errorf("one too many: %v", err)
		}
		cancel()
		wg.Wait()
		for range maxWaiting - 1 {
			if err := <-refused; err != nil {
				t.Fatal(err)
			}
		}
		if n := i.count(); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

func TestETagWhenNothingChanged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i := newIssuer(t, "k1")
		i.header.Set("Cache-Control", "max-age=60")
		i.header.Set("ETag", `"one"`)
		tokens := i.tokens(t)
		token := i.sign(t, "k1", forever)
		for range 100 {
			verifies(t, tokens, token, "accepted")
			time.Sleep(30 * time.Second)
			synctest.Wait()
		}
		if i.notMod != i.fetches-1 || i.fetches < 40 {
			t.Errorf("%d fetches, %d not modified", i.fetches, i.notMod)
		}
		// A tag that changes each time costs the document each time, and no more.
		for n := range 10 {
			i.set(func() { i.header.Set("ETag", fmt.Sprintf(`"changing-%d"`, n)) })
			if err := tokens.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			verifies(t, tokens, token, "accepted")
		}
		if got := i.requests[len(i.requests)-1].Get("If-None-Match"); got != `"changing-8"` {
			t.Errorf("If-None-Match %s", got)
		}
	})
}

func TestRunWhenNobodyAsks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		i := newIssuer(t, "k1", "k2")
		i.header.Set("Cache-Control", "max-age=60")
		tokens := i.tokens(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error)
		go func() { ended <- tokens.Run(ctx) }()
		token, gone := i.sign(t, "k1", forever), i.sign(t, "k2", forever)
		time.Sleep(8 * time.Hour)
		i.withdraw("k2")
		time.Sleep(time.Minute)
		i.set(func() { i.delay = time.Second })
		begin := time.Now()
		verifies(t, tokens, token, "accepted")
		if waited := time.Since(begin); waited > 0 {
			t.Errorf("waited for %s", waited)
		}
		verifies(t, tokens, gone, "unknown")
		// It outlives failures without a fetch storm.
		before := i.count()
		i.set(func() { i.fail = errors.New("gone") })
		time.Sleep(10 * time.Minute)
		if n := i.count() - before; n < 30 || n > 80 {
			t.Errorf("%d fetches in ten minutes of failure", n)
		}
		i.set(func() { i.fail = nil })
		time.Sleep(20 * time.Second)
		if s := tokens.Status(); s.Err != nil || time.Since(s.FetchedAt) > time.Minute {
			t.Errorf("status %+v", s)
		}
		stop := errors.New("stop")
		cancel(stop)
		if err := <-ended; !errors.Is(err, stop) {
			t.Errorf("ended with %v", err)
		}
	})
}

package consumers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// pool holds the tokens that a keyset's tokens are drawn from.
type pool struct {
	mu     sync.Mutex
	tokens []signed
	kids   []string             // in the order in which they signed
	first  map[string]time.Time // when each kid signed first
}

func newPool() *pool { return &pool{first: map[string]time.Time{}} }

func (p *pool) add(s signed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tokens = append(p.tokens, s)
	if _, ok := p.first[s.kid]; !ok {
		p.kids = append(p.kids, s.kid)
		p.first[s.kid] = s.at
	}
}

// sample gives the newest token, the oldest that is still good for margin, and
// up to n between them. Tokens that are not good for margin are dropped.
func (p *pool) sample(margin time.Duration, n int) []signed {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tokens = slices.DeleteFunc(p.tokens, func(s signed) bool { return time.Until(s.exp) < margin })
	last := len(p.tokens) - 1
	if last < 0 {
		return nil
	}
	out := []signed{p.tokens[last]}
	if last > 0 {
		out = append(out, p.tokens[0])
	}
	for range n {
		if last > 1 {
			out = append(out, p.tokens[1+rand.IntN(last-1)])
		}
	}
	return out
}

// rotations gives how many times the signing key has changed, and when it last did.
func (p *pool) rotations() (int, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.kids) == 0 {
		return 0, time.Time{}
	}
	return len(p.kids) - 1, p.first[p.kids[len(p.kids)-1]]
}

// TestRotationWhenConsumersAreReal is the promise "no gap": a token signed under
// a keyset is accepted, for its whole life, by every verifier that behaves as
// its consumer profile says. Real verifiers are asked for new and old tokens,
// twice a second each, while two scheduled rotations happen and the first key is
// withdrawn. One more verifier for each keyset restarts every few seconds, for
// a cache hides a key that was withdrawn too early, and a cold start does not.
// Not one good token may be refused.
func TestRotationWhenConsumersAreReal(t *testing.T) {
	if testing.Short() {
		t.Skip("two scheduled rotations take three minutes")
	}
	t.Parallel()
	const (
		// The lead of these profiles is 62 s: 60 s between two forced fetches of
		// mod_auth_openidc, 1 s of propagation and 1 s of skew.
		rotateEvery = 65 * time.Second
		// A key is withdrawn 57 s after it stops signing: 45 s, 10 s for signers
		// on other replicas, twice the skew. So the first is gone before the end.
		tokenTTL = 45 * time.Second
		every    = 500 * time.Millisecond
		restart  = 3 * time.Second
		margin   = 2 * time.Second // a token this near its end may end while it is verified
		want     = 2
	)
	r := newRotunda(t)
	algorithms := map[string]string{"real-es256": "ES256", "real-rs256": "RS256"}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()

	var fleets []*member
	pools := map[string]*pool{}
	for name, algorithm := range algorithms {
		r.create(t, name, algorithm, rotateEvery, tokenTTL)
	}
	for name := range algorithms {
		first, err := r.sign(ctx, name, tokenTTL)
		if err != nil {
			t.Fatal(err)
		}
		pools[name] = newPool()
		pools[name].add(first)
		fleets = append(fleets, newFleet(t, r, name, first)...)
	}

	var running sync.WaitGroup
	for name := range algorithms {
		running.Go(func() {
			each(ctx, every, func() {
				s, err := r.sign(ctx, name, tokenTTL)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					t.Errorf("a token of %s was not signed: %v", name, err)
					cancel()
					return
				}
				pools[name].add(s)
			})
		})
	}
	for _, m := range fleets {
		running.Go(func() {
			each(ctx, every, func() {
				for _, s := range pools[m.keyset].sample(margin, 2) {
					if !m.ask(ctx, t, r, s, margin) {
						cancel() // one refusal breaks the promise; more add nothing
						return
					}
				}
			})
		})
	}

	for name := range algorithms {
		m := &member{name: Starters()[0].Name + ", restarting", keyset: name, kids: map[string]bool{}}
		fleets = append(fleets, m)
		url := r.proxy(t, &m.fetches) + "/keysets/" + name + "/jwks.json"
		running.Go(func() {
			each(ctx, restart, func() {
				if !m.restart(ctx, t, r, Starters()[0], url, pools[name].sample(margin, 8), margin) {
					cancel()
				}
			})
		})
	}

	// Until every keyset has rotated twice and the last token of its second key
	// has lived its whole life.
	each(ctx, every, func() {
		for _, p := range pools {
			n, last := p.rotations()
			if n < want || time.Since(last) < tokenTTL+2*margin {
				return
			}
		}
		cancel()
	})
	running.Wait()

	for name, p := range pools {
		if n, _ := p.rotations(); n < want {
			t.Errorf("%s rotated %d times, want %d", name, n, want)
		}
		for i, kid := range p.kids {
			t.Logf("%s: key %d %s signed first at %s", name, i+1, kid, p.first[kid].Format(time.TimeOnly))
		}
	}
	for _, m := range fleets {
		if !t.Failed() && (m.verified == 0 || len(m.kids) <= want) {
			t.Errorf("%s of %s verified %d tokens of %d keys: it was not there for %d rotations", m.name, m.keyset, m.verified, len(m.kids), want)
		}
	}
	printFleets(t, fleets)
}

// ask verifies a good token and records the answer; false is a refusal.
func (m *member) ask(ctx context.Context, t *testing.T, r *rotunda, s signed, margin time.Duration) bool {
	began := time.Now()
	ok, why, err := m.Verify(ctx, s.token)
	took := time.Since(began)
	if ctx.Err() != nil {
		return true
	}
	if err != nil {
		t.Errorf("%s could not be asked: %v", m.name, err)
		return false
	}
	m.slowest = max(m.slowest, took)
	if ok {
		m.verified++
		m.kids[s.kid] = true
		return true
	}
	// A verifier may wait for a fetch before it answers; what it says after the
	// token's end is right.
	if took > margin/2 && !time.Now().Before(s.exp) {
		return true
	}
	m.refused++
	t.Errorf("%s refused a good token of %s: %s\n\ttoken %s old, good for %s more; kid %s; %s", m.name, m.keyset, why,
		time.Since(s.at).Round(time.Millisecond), time.Until(s.exp).Round(time.Millisecond), s.kid, r.describe(ctx, m.keyset, s.kid))
	return false
}

// restart asks a new verifier, whose cache is empty, for tokens.
func (m *member) restart(ctx context.Context, t *testing.T, r *rotunda, s Starter, jwksURL string, tokens []signed, margin time.Duration) bool {
	c, err := s.Start(ctx, Config{JWKSURL: jwksURL, Issuer: testIssuer, Audience: testAudience, CAFile: r.ca.caFile})
	if err != nil {
		if ctx.Err() == nil {
			t.Error(err)
		}
		return ctx.Err() != nil
	}
	defer c.Close()
	m.Consumer = c
	for _, token := range tokens {
		if !m.ask(ctx, t, r, token, margin) {
			return false
		}
	}
	return true
}

// each calls f at once and then at every tick, until ctx ends.
func each(ctx context.Context, every time.Duration, f func()) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil {
		f()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func printFleets(t *testing.T, fleets []*member) {
	t.Helper()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "consumer\tkeyset\tverified\trefused\tkeys\tfetches\tslowest")
	for _, m := range fleets {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", m.name, m.keyset, m.verified, m.refused, len(m.kids), m.fetches.Load(), m.slowest.Round(time.Millisecond))
	}
	w.Flush()
	t.Logf("consumers through the rotations\n%s", &b)
}

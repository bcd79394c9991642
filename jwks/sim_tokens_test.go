package jwks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// everyone checks a token of each keyset with every verifier.
func (w *simWorld) everyone() {
	for _, s := range w.sets {
		if tok := w.token(s, 0); tok != nil {
			for _, v := range s.verifiers {
				w.check(v, tok)
			}
		}
	}
}

func (w *simWorld) violate(rule, format string, args ...any) {
	text := fmt.Sprintf("%s: ", simAt(w.now).Format("2006-01-02 15:04:05.000")) + fmt.Sprintf(format, args...)
	w.stats.violations[rule] = append(w.stats.violations[rule], text)
}

// token signs a token with a keyset and checks what can be checked at once. It
// is nil when the keyset could not sign for a good reason.
func (w *simWorld) token(s *simSet, ttl vt) *simToken {
	r := w.up()
	if r == nil {
		return nil
	}
	return w.tokenBy(s, ttl, r)
}

func (w *simWorld) tokenBy(s *simSet, ttl vt, r *simReplica) *simToken {
	var out Signed
	err, crashed := w.do(r, "sign", func(ctx context.Context, ks *Keysets) (err error) {
		out, err = ks.Sign(ctx, Sign{Name: s.name, Claims: []byte(`{"sub":"order-7"}`), TTL: ttl})
		return err
	})
	if crashed {
		return nil
	}
	if err != nil {
		refused := errors.Is(err, fault.ErrInvalid) && ttl > s.policy.TokenTTL && s.policy.Overlong == OverlongRefuse
		unreachable := errors.Is(err, fault.ErrUnavailable) && len(w.dark) > 0
		if !refused && !unreachable {
			w.violate("error", "sign: %v", err)
		}
		return nil
	}
	tok := &simToken{kid: w.kid(out.Kid), issued: w.now, expires: out.ExpiresAt.Sub(epoch), leeway: s.policy.Leeway, skew: s.policy.Skew}
	s.checkIssued(w, r, tok, out)
	s.tokens = append(s.tokens, tok)
	w.stats.tokens++
	life := tok.expires - w.now
	late := tok.expires - time.Second
	for _, at := range []vt{w.between(w.now, tok.expires), w.between(w.now, tok.expires), late, tok.expires + s.policy.Leeway/2} {
		if life > 0 {
			w.at(at, func() { w.sample(s, tok, 8) })
		}
	}
	return tok
}

// sample checks a token with some of a keyset's verifiers.
func (w *simWorld) sample(s *simSet, tok *simToken, n int) {
	for range n {
		if len(s.verifiers) > 0 {
			w.check(s.verifiers[w.rng.IntN(len(s.verifiers))], tok)
		}
	}
}

// check lets a verifier look at a token that is good as long as its key is not revoked.
func (w *simWorld) check(v *simVerifier, tok *simToken) {
	s := v.set
	skew := min(max(v.clock, -tok.skew/2), tok.skew/2)
	if w.now+skew >= tok.expires+min(tok.leeway, s.policy.Leeway) {
		return
	}
	if _, revoked := s.revoked[tok.kid]; revoked {
		return
	}
	w.stats.checks++
	if v.knows(w, tok.kid, w.now) {
		return
	}
	if why := v.excused(w, w.now); why != "" {
		w.stats.excused[why]++
		return
	}
	if soft, ok := s.soft[tok.kid]; ok && soft.covers(v, w.now) {
		w.stats.excused["emergency"]++
		return
	}
	w.violate("I8", "seed %d: keyset %s: %s (eager %t, worst %t, clock %s, fetched %s ago, missed %s ago, failing %v) refuses a token of %s issued %s ago; born %s ago, active %s ago; cdn %t, max-age %s, F %s, P %s, S %s",
		w.seed, s.name, v.name, v.eager, v.worst, v.clock, w.now-v.fetched, w.now-v.lastMiss, v.failRun, w.names[tok.kid], w.now-tok.issued,
		w.now-s.born0[tok.kid], w.now-s.signs[tok.kid], s.policy.CDN, s.policy.MaxAge, s.policy.FetchFailure, s.policy.Propagation, s.policy.Skew)
}

// String is the table of a finished simulation.
func (s *simStats) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "virtual time %.2f years, %d rotations (%d asked for), %d removals, %d revocations, %d imports, %d policy changes, %d crashes, %s without service\n",
		s.virtual.Hours()/24/365.25, s.rotations, s.ops["rotate"]+s.ops["override"], s.removals, s.revocations, s.imports, s.policies, s.crashes, s.outage.Truncate(time.Second))
	fmt.Fprintf(&b, "%d tokens, %d verifications, %d versions served, %d forged tokens tried; refused for reasons outside the promise: %v\n", s.tokens, s.checks, s.versions, s.forged, s.excused)
	fmt.Fprintf(&b, "calls: %v\n", s.ops)
	names := make([]string, 0, len(s.kinds))
	for n := range s.kinds {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(&b, "  %-18s %9d verifications %9d fetches\n", n, s.kinds[n].checks, s.kinds[n].fetches)
	}
	for rule, v := range s.violations {
		fmt.Fprintf(&b, "  VIOLATED %s: %d times, first: %s\n", rule, len(v), v[0])
	}
	return b.String()
}

// simStats is what happened.
type simStats struct {
	virtual, outage                  vt
	rotations, removals, revocations int
	imports, policies, crashes       int
	tokens, checks, forged, versions int
	fewest, most                     int // verifiers at once
	kinds                            map[string]*simKindStats
	ops, excused                     map[string]int
	violations                       map[string][]string
}

type simKindStats struct{ checks, fetches int }

func (s *simStats) kind(name string) *simKindStats {
	k := s.kinds[name]
	if k == nil {
		k = &simKindStats{}
		s.kinds[name] = k
	}
	return k
}

package jwks

import (
	"context"
	"database/sql"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotunda-dev/rotunda/internal/store"
)

// The rules that the simulation checks at every step:
//
//	I1  the key of every unexpired token is in the served set, unless revoked
//	I2  nothing signs before its lead is over, unless somebody asked for that
//	I3  exactly one key of a keyset is active, and only it signs
//	I4  a revoked key is not served again and signs nothing
//	I5  the version grows with every change of the set, and never falls
//	I6  a kid is never used twice
//	I7  max-age keeps to the policy and does not reach beyond a removal
//	I8  no verifier refuses a good token
//	I9  no verifier accepts a revoked key for longer than was predicted
//	I10 every transition is in the trail exactly once

// simSet is what the simulation knows of a keyset, from what it sees.
type simSet struct {
	name, id  string
	algorithm Algorithm
	policy    Policy
	since     vt // of the policy
	born      vt
	change    int64

	states    map[string]State
	born0     map[int32]vt // when it was published
	served    map[int32]vt // since when without a break that the policy does not cover
	signs     map[int32]vt // when it became active
	lastSigns vt           // when the present active key became active
	demoted   map[int32]vt
	withdrawn map[int32]vt
	cached    map[int32]vt // until when a copy with a retiring key may be used
	revoked   map[int32]*simRevoked
	soft      map[int32]*simSoft
	etags     map[int64]string
	caps      []simCap
	expected  map[[2]string]int // events by resource and action

	history   [][]simServed
	tokens    []*simToken
	verifiers []*simVerifier
	floor     vt // until then, documents with a longer max-age may be cached
	intent    *simIntent
}

type simToken struct {
	kid             int32
	issued, expires vt
	leeway, skew    vt // the least that a policy had since it was issued
}

// alive is until when a verifier may hold the token for good.
func (t *simToken) alive() vt { return t.expires + t.leeway + t.skew/2 }

type simCap struct {
	from vt
	cap  vt
}

// simRevoked is a revocation with what was predicted of it.
type simRevoked struct {
	at       vt
	exposure map[string]vt
	policy   vt // since when the policy holds that it was predicted from
	fresh    bool
}

// simSoft is a key that began to sign before its lead was over.
type simSoft struct {
	from, all vt
	until     map[string]vt
	slack     vt // a failure to fetch, of which the prediction does not tell
}

func (s *simSoft) covers(v *simVerifier, now vt) bool {
	limit := s.all
	if l, ok := s.until[v.name]; ok {
		limit = max(limit, l)
	}
	switch {
	case limit == never || now <= limit:
		return true
	case v.lastFail >= s.from-s.slack-v.retry && now <= limit+s.slack+v.retry+v.throttle:
		return true
	}
	return v.behind && v.lastMiss == now // the first request that meets the kid
}

// simIntent is what somebody is asking for, so that its moves are expected.
type simIntent struct {
	kind string // "first", "override", "import", "standby", "fresh", "withdraw"
	plan *ModePlan
}

// lead is the rule of research, written down again: propagation, cache (and
// the copy in between), failure and retry, skew.
func (s *simSet) lead() vt {
	p := s.policy
	longest := vt(0)
	for _, k := range s.consumers() {
		cache := k.cache
		if k.honours {
			cache = min(max(s.maxAge(), k.least), k.most)
		}
		between := vt(0)
		if p.CDN {
			between = s.maxAge()
		}
		need := vt(0)
		switch {
		case cache == never:
			need = k.throttle + between
		case p.FetchFailure == 0 && k.refetch && !k.behind:
			need = min(k.throttle, cache) + between
		case p.FetchFailure == 0:
			need = cache + between
		default:
			retry := k.retry
			if k.backoff {
				retry = min(retry, p.FetchFailure+time.Minute)
			}
			need = cache + between + p.FetchFailure + retry
		}
		longest = max(longest, need)
	}
	return max(p.Propagation+longest+p.Skew, p.PublishAhead)
}

func (s *simSet) consumers() []simKind {
	list := s.policy.Consumers
	if len(list) == 0 {
		list = []Consumer{{Name: "unknown"}}
	}
	out := make([]simKind, len(list))
	for i, c := range list {
		out[i] = simKindOf(c)
	}
	return out
}

// reconcile finds out which moves were made since the last look, and whether they may be.
func (w *simWorld) reconcile() {
	type row struct {
		set     int
		kid     string
		state   State
		changed int64
	}
	var changed []row
	var rows []row
	w.read(func(ctx context.Context, tx *store.Tx) error {
		changed, rows = nil, nil
		var changes int64
		if err := tx.QueryRow(ctx, `SELECT COALESCE(SUM(version + policy_version), 0) FROM keysets`).Scan(&changes); err != nil || changes == w.changes {
			return err
		}
		w.changes = changes
		for i, s := range w.sets {
			var now int64
			if err := tx.QueryRow(ctx, `SELECT version + policy_version FROM keysets WHERE name = $1`, s.name).Scan(&now); err != nil {
				return err
			}
			if now == s.change {
				continue
			}
			changed = append(changed, row{set: i, changed: now})
			keys, err := tx.Query(ctx, `SELECT kid, state FROM signing_keys WHERE keyset_id = $1 AND (state IN ('pending', 'active', 'retiring') OR since > $2) ORDER BY created_at, kid`,
				s.id, store.Micros(simAt(w.now-3*time.Hour)))
			if err != nil {
				return err
			}
			err = each(keys, func() error {
				r := row{set: i}
				rows = append(rows, r)
				return keys.Scan(&rows[len(rows)-1].kid, &rows[len(rows)-1].state)
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	for _, r := range changed {
		w.sets[r.set].change = r.changed
		w.hear(w.sets[r.set])
	}
	// Withdrawals first: what a revocation promotes is then known as its consequence.
	for _, withdrawals := range []bool{true, false} {
		for _, r := range rows {
			s := w.sets[r.set]
			if was := s.states[r.kid]; was != r.state && withdrawals != r.state.Published() {
				s.states[r.kid] = r.state
				s.moved(w, r.kid, was, r.state)
			}
		}
	}
	for _, r := range changed {
		s, active, pending := w.sets[r.set], 0, 0
		for _, st := range s.states {
			if st == Active {
				active++
			}
			if st == Pending {
				pending++
			}
		}
		if active != 1 || pending > 1 {
			w.violate("I3", "keyset %s has %d active and %d pending keys", s.name, active, pending)
		}
	}
	w.observe()
}

// moved takes note of one transition and checks its time.
func (s *simSet) moved(w *simWorld, name string, from, to State) {
	kid := w.kid(name)
	s.expected[[2]string{"keysets/" + s.name + "/keys/" + name, "signing_key." + string(to)}]++
	intent := s.intent
	if intent == nil {
		intent = &simIntent{}
	}
	if _, gone := s.withdrawn[kid]; gone {
		w.violate("I6", "keyset %s: key %s was withdrawn and is %s now", s.name, name, to)
	}
	if from == unborn && to.Published() {
		s.born0[kid], s.served[kid] = w.now, w.now
		w.worst(s, 70)
	}
	switch to {
	case unborn, Pending:
	case Active:
		s.signs[kid], s.lastSigns = w.now, w.now
		w.stats.rotations++
		early := s.served[kid] + s.lead() - s.policy.Skew - w.now // the clocks of two replicas
		switch {
		case intent.kind == "fresh" || intent.kind == "standby":
			soft := &simSoft{from: w.now, until: map[string]vt{}, slack: s.policy.FetchFailure}
			for _, p := range intent.plan.Predictions {
				limit := never
				if p.Refusal != Forever {
					limit = w.now + p.Refusal
				}
				soft.until[p.Consumer] = max(soft.until[p.Consumer], limit)
			}
			s.soft[kid] = soft
		case intent.kind != "":
			s.soft[kid] = &simSoft{from: w.now, all: max(s.floor, s.served[kid]+s.lead()), slack: s.policy.FetchFailure}
		case early > 0:
			w.violate("I2", "seed %d: keyset %s: key %s signs %s before its lead of %s is over; outages %v, F %s", w.seed, s.name, name, early, s.lead(), w.outages[max(0, len(w.outages)-3):], s.policy.FetchFailure)
		}
		w.promoted(s)
	case Retiring:
		s.demoted[kid] = w.now
		if w.plant == plantRetire {
			w.write(`UPDATE signing_keys SET max_token_life = 0 WHERE keyset_id = $1 AND kid = $2`, s.id, name)
			w.write(`UPDATE keysets SET next_at = $1 WHERE id = $2`, store.Micros(simAt(w.now+5*time.Minute)), s.id)
		}
	case Retired:
		s.withdrawn[kid] = w.now
		w.stats.removals++
		if until := s.cached[kid]; until > w.now+s.policy.Skew+time.Second && w.now > s.since+10*time.Minute+s.policy.Propagation {
			w.violate("I7", "seed %d: keyset %s: key %s is removed, but was served with a max-age that ends %s later", w.seed, s.name, name, until-w.now)
		}
		w.at(w.now, func() { w.removed(s) })
	case Revoked:
		s.withdrawn[kid] = w.now
		w.stats.revocations++
		r := &simRevoked{at: w.now, exposure: map[string]vt{}, policy: s.since, fresh: intent.kind == "fresh"}
		if intent.plan != nil {
			for _, p := range intent.plan.Predictions {
				r.exposure[p.Consumer] = max(r.exposure[p.Consumer], p.Exposure)
			}
		}
		s.revoked[kid] = r
		w.worst(s, 50)
		w.follow(s, kid)
	}
}

// checkServed looks at a document that a replica begins to serve.
func (s *simSet) checkServed(w *simWorld, replica int, d *simDoc) {
	w.stats.versions++
	if h := s.history[replica]; len(h) > 0 {
		last := h[len(h)-1].doc
		if d.Version < last.Version || d.Version == last.Version && d.ETag != last.ETag {
			w.violate("I5", "keyset %s: version %d follows version %d", s.name, d.Version, last.Version)
		}
	}
	if tag, ok := s.etags[d.Version]; ok && tag != d.ETag {
		w.violate("I5", "keyset %s: version %d is two documents", s.name, d.Version)
	}
	s.etags[d.Version] = d.ETag
	for _, kid := range d.kids {
		if _, ok := s.revoked[kid]; ok {
			w.violate("I4", "keyset %s: revoked key %s is served", s.name, w.names[kid])
		} else if _, ok := s.withdrawn[kid]; ok {
			w.violate("I6", "keyset %s: withdrawn key %s is served", s.name, w.names[kid])
		}
	}
	published := 0
	for name, st := range s.states {
		if st.Published() {
			published++
			if !slices.Contains(d.kids, w.kid(name)) {
				w.violate("document", "keyset %s: %s key %s is missing in version %d", s.name, st, name, d.Version)
			}
		}
	}
	if published != len(d.kids) {
		w.violate("document", "keyset %s: version %d has %d keys, not %d", s.name, d.Version, len(d.kids), published)
	}
	s.tokens = slices.DeleteFunc(s.tokens, func(t *simToken) bool { return t.alive() <= w.now })
	for _, t := range s.tokens {
		if _, revoked := s.revoked[t.kid]; !revoked && !slices.Contains(d.kids, t.kid) {
			w.violate("I1", "seed %d: keyset %s: version %d lacks key %s, of which a token lives for another %s", w.seed, s.name, d.Version, w.names[t.kid], t.alive()-w.now)
			break
		}
	}
}

// checkIssued looks at a token at the instant of its signing.
func (s *simSet) checkIssued(w *simWorld, r *simReplica, t *simToken, out Signed) {
	name := out.Kid
	switch st := s.states[name]; {
	case st == Active:
	case st == Pending:
		if early := s.served[t.kid] + s.lead() - s.policy.Skew - w.now; early > 0 {
			w.violate("I2", "seed %d: keyset %s: standby %s stands in %s before its lead is over", w.seed, s.name, name, early)
		}
		if len(w.dark) == 0 {
			w.violate("I3", "keyset %s: standby %s signs without need", s.name, name)
		}
	case st == Retiring && w.now-s.demoted[t.kid] <= SignerLease:
	case st == Revoked && w.now-s.revoked[t.kid].at <= SignerLease:
	case st == Revoked:
		w.violate("I4", "keyset %s: key %s signs %s after its revocation", s.name, name, w.now-s.revoked[t.kid].at)
	default:
		w.violate("I3", "keyset %s: key %s signs and is %q", s.name, name, st)
	}
	i := slices.Index(w.replicas, r)
	h := s.history[i]
	if len(h) == 0 || !slices.Contains(h[len(h)-1].doc.kids, t.kid) {
		w.violate("I1", "keyset %s: a replica signs with key %s and does not serve it", s.name, name)
		return
	}
	if w.rng.IntN(8) > 0 {
		return
	}
	jws, err := jose.ParseSignedCompact(out.Token, []jose.SignatureAlgorithm{s.algorithm.JWS()})
	if err == nil {
		_, err = jws.Verify(h[len(h)-1].doc.jwks.Key(name)[0])
	}
	if err != nil {
		w.violate("signature", "keyset %s: key %s: %v", s.name, name, err)
	}
}

// checkMaxAge looks at what was said at an instant about the use of a document.
func (s *simSet) checkMaxAge(w *simWorld, d *simDoc, at, age vt, r *simReplica) {
	limit := vt(0)
	for i := len(s.caps) - 1; i >= 0; i-- {
		if c := s.caps[i]; c.from <= at {
			limit = max(limit, c.cap)
			if c.from+time.Minute*2 <= at { // no replica serves under an older policy
				break
			}
		}
	}
	if age < time.Second || age > max(limit, time.Second) || age%time.Second != 0 {
		w.violate("I7", "keyset %s: max-age %s is over %s", s.name, age, limit)
	}
	for _, kid := range d.kids {
		if _, ok := s.demoted[kid]; ok {
			s.cached[kid] = max(s.cached[kid], at+age)
		}
	}
}

// outage is told of how long nothing was served, at its end.
func (s *simSet) outage(w *simWorld, long vt) {
	for name, st := range s.states {
		// A gap is measured by the clocks of two replicas.
		if st == Pending && long > s.policy.FetchFailure+s.policy.Skew && long > 2*minGap {
			s.served[w.kid(name)] = w.now
		}
	}
	for _, soft := range s.soft {
		if soft.all < never {
			soft.all += long
		}
		for name, until := range soft.until {
			if until < never {
				soft.until[name] = until + long
			}
		}
	}
}

// trail compares the trail with the transitions that were seen.
func (w *simWorld) trail() {
	found := map[[2]string]int{}
	w.read(func(ctx context.Context, tx *store.Tx) error {
		clear(found)
		rows, err := tx.Query(ctx, `SELECT resource, action, COUNT(*) FROM event_queue WHERE action LIKE 'signing_key.%' GROUP BY resource, action`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var key [2]string
			var n int
			if err := rows.Scan(&key[0], &key[1], &n); err != nil {
				return err
			}
			if key[1] != "signing_key.lead_restarted" {
				found[key] = n
			}
		}
		return rows.Err()
	})
	expected := 0
	for _, s := range w.sets {
		for key, n := range s.expected {
			expected += n
			if found[key] != n {
				w.violate("I10", "%s on %s happened %d times and is %d times in the trail", key[1], key[0], n, found[key])
			}
			delete(found, key)
		}
	}
	for key, n := range found {
		w.violate("I10", "%s on %s is %d times in the trail and never happened", key[1], key[0], n)
	}
	if expected == 0 {
		w.violate("I10", "no transition was seen")
	}
}

// each calls f for each row and closes them.
func each(rows *sql.Rows, f func() error) error {
	defer rows.Close()
	for rows.Next() {
		if err := f(); err != nil {
			return err
		}
	}
	return rows.Err()
}

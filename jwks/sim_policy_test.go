package jwks

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/schedule"
)

// randomPolicy is a policy that is safe for an algorithm.
func (w *simWorld) randomPolicy(alg Algorithm) Policy {
	for {
		p := DefaultPolicy()
		p.Rotate = w.randomSchedule()
		p.TokenTTL = pick(w, 5*time.Minute, time.Hour, time.Hour, 12*time.Hour, 36*time.Hour)
		p.MaxAge = pick(w, time.Second, 5*time.Second, time.Minute, 5*time.Minute, 5*time.Minute)
		p.Leeway = pick(w, 0, 30*time.Second, time.Minute, 5*time.Minute)
		p.Skew = pick(w, time.Second, 5*time.Second, 30*time.Second, 2*time.Minute)
		p.Propagation = pick(w, 0, time.Second, 10*time.Second, time.Minute)
		p.FetchFailure = pick(w, 0, 30*time.Second, 5*time.Minute, 5*time.Minute, 2*time.Hour)
		p.CDN = w.chance(30)
		p.Fallback = pick(w, FallbackNone, FallbackStandby)
		p.Overlong = pick(w, OverlongClamp, OverlongRefuse)
		for range w.rng.IntN(4) {
			c := Consumer{Name: Profiles[w.rng.IntN(len(Profiles))].Name}
			if w.chance(20) {
				d := pick(w, time.Minute, 30*time.Minute, 3*time.Hour)
				if simKindOf(c).honours {
					c.MinInterval = &d
				} else {
					c.Cache = &d
				}
			}
			p.Consumers = append(p.Consumers, c)
		}
		w.spice(&p)
		if _, err := p.Check(alg); err == nil {
			return p
		}
	}
}

func (w *simWorld) randomSchedule() schedule.Schedule {
	if w.calm > 1 && w.chance(30) {
		return schedule.Schedule{Cron: pick(w, "0 3 * * 1", "15 4 1 * *"), Zone: pick(w, "", "Europe/Berlin", "America/New_York")}
	}
	if w.calm <= 1 && w.chance(30) {
		return schedule.Schedule{Cron: pick(w, "30 2 * * *", "0 3 * * 1", "15 4 1 * *", "0 */12 * * *"), Zone: pick(w, "", "Europe/Berlin", "America/New_York")}
	}
	return schedule.Schedule{Every: pick(w, 26*time.Hour, 3*day, 7*day, 14*day, 30*day) * vt(max(1, w.calm))}
}

// spice sets what few policies set.
func (w *simWorld) spice(p *Policy) {
	if w.chance(15) {
		p.PublishAhead = pick(w, time.Hour, 26*time.Hour)
	}
	if w.chance(15) {
		p.RetireAfter = pick(w, 2*time.Hour, 3*day)
	}
	if w.chance(10) {
		p.EmergencyTarget = pick(w, 2*time.Minute, 30*time.Minute, day)
	}
}

// create makes a keyset and its verifiers.
func (w *simWorld) create(i int) {
	s := &simSet{
		name: fmt.Sprintf("set-%d", i), algorithm: pick(w, ES256, Ed25519, ES256), states: map[string]State{}, born0: map[int32]vt{}, served: map[int32]vt{}, signs: map[int32]vt{},
		demoted: map[int32]vt{}, withdrawn: map[int32]vt{}, cached: map[int32]vt{}, revoked: map[int32]*simRevoked{}, soft: map[int32]*simSoft{}, etags: map[int64]string{},
		expected: map[[2]string]int{}, history: make([][]simServed, len(w.replicas)), intent: &simIntent{kind: "first"},
	}
	s.policy = w.randomPolicy(s.algorithm)
	if w.plant != plantNone {
		s.policy = simPlantPolicy(w.plant, i)
	}
	s.caps = []simCap{{0, s.maxAge()}}
	ctx := context.Background()
	set, err := w.replicas[0].ks.Create(ctx, Create{Name: s.name, Issuer: "https://auth.example.com/" + s.name, Algorithm: string(s.algorithm), Policy: s.policy})
	if err != nil {
		w.t.Fatalf("seed %d: create keyset %s with policy %+v: %v", w.seed, s.name, s.policy, err)
	}
	s.id = set.ID
	w.sets = append(w.sets, s)
	for _, r := range w.replicas {
		if err := r.ks.Refresh(ctx); err != nil {
			w.t.Fatal(err)
		}
	}
	w.reconcile()
	s.intent = nil
	w.look()
	w.populate(s)
}

func (s *simSet) maxAge() vt {
	age := s.policy.MaxAge
	if t := s.policy.EmergencyTarget; t > 0 {
		age = min(age, t)
	}
	return age
}

// populate gives a keyset the verifiers that its policy names, and keeps those it has.
func (w *simWorld) populate(s *simSet) {
	old := s.verifiers
	s.verifiers = nil
	kinds := s.consumers()
	each := max(w.verifiers, (w.least+len(kinds)-1)/len(kinds))
	for _, k := range kinds {
		kept := 0
		for i, v := range old {
			if v == nil || v.name != k.name {
				continue
			}
			old[i] = nil
			kept++
			v.simKind = k // its owner has changed it as the policy says
			v.setClock(w.rng)
			if k.cache != never && !k.honours && v.expires > v.fetched+k.cache {
				v.expires = v.fetched + k.cache
				v.next = min(v.next, max(v.expires, w.now))
			}
			for kid, until := range v.perKids {
				v.perKids[kid] = min(until, w.now+k.cache)
			}
			v.fault.to = min(v.fault.to, v.fault.from+s.policy.FetchFailure)
			if !s.policy.CDN {
				v.edge.doc = nil
			}
			s.verifiers = append(s.verifiers, v)
		}
		for range each - kept {
			s.verifiers = append(s.verifiers, newSimVerifier(w.rng, s, k, w.chance(40), w.now))
		}
	}
	if len(w.sets) == w.keysets {
		n := 0
		for _, s := range w.sets {
			n += len(s.verifiers)
		}
		if w.stats.fewest == 0 || n < w.stats.fewest {
			w.stats.fewest = n
		}
		w.stats.most = max(w.stats.most, n)
	}
}

// update changes a keyset's policy in a few places.
func (w *simWorld) update(s *simSet) {
	r := w.actor()
	if r == nil {
		return
	}
	old := s.policy
	next := old
	for {
		p, fresh := old, w.randomPolicy(s.algorithm)
		p.Consumers = slices.Clone(old.Consumers)
		for range 1 + w.rng.IntN(3) {
			switch w.rng.IntN(12) {
			case 0:
				p.TokenTTL = fresh.TokenTTL
			case 1, 2:
				p.MaxAge = fresh.MaxAge
			case 3:
				p.Consumers = fresh.Consumers
			case 4:
				if len(p.Consumers) > 1 {
					p.Consumers = p.Consumers[:len(p.Consumers)-1]
				}
			case 5:
				p.Skew, p.Leeway = fresh.Skew, fresh.Leeway
			case 6:
				p.Rotate = fresh.Rotate
			case 7:
				p.FetchFailure = fresh.FetchFailure
			case 8:
				p.CDN = !p.CDN
			case 9:
				p.Propagation = fresh.Propagation
			case 10:
				p.PublishAhead, p.RetireAfter, p.EmergencyTarget = fresh.PublishAhead, fresh.RetireAfter, fresh.EmergencyTarget
			case 11:
				p.Fallback, p.Overlong = fresh.Fallback, fresh.Overlong
			}
		}
		if _, err := p.Check(s.algorithm); err == nil {
			next = p
			break
		}
	}
	before := s.change
	err, crashed := w.do(r, "policy", func(ctx context.Context, ks *Keysets) error {
		_, err := ks.UpdatePolicy(ctx, UpdatePolicy{Name: s.name, Policy: next})
		return err
	})
	if err != nil {
		w.violate("error", "update the policy: %v", err)
		return
	}
	if crashed && s.change == before {
		return
	}
	w.stats.policies++
	longest := s.policy
	s.policy = next
	if longest.MaxAge > next.MaxAge || longest.CDN && !next.CDN {
		longest = next
		longest.MaxAge, longest.CDN = max(old.MaxAge, next.MaxAge), old.CDN || next.CDN
		s.policy = longest
		s.floor = max(s.floor, w.now+s.lead())
		s.policy = next
	}
	s.since = w.now
	s.caps = append(s.caps, simCap{w.now, s.maxAge()})
	for _, t := range s.tokens {
		t.leeway, t.skew = min(t.leeway, next.Leeway), min(t.skew, next.Skew)
	}
	for _, soft := range s.soft {
		if soft.all > w.now || len(soft.until) > 0 {
			soft.all = max(soft.all, w.now+s.lead(), s.floor)
			soft.slack = max(soft.slack, next.FetchFailure)
		}
	}
	w.setClocks()
	w.populate(s)
	if next.Propagation < old.Propagation {
		for _, o := range w.replicas {
			if o.ks != nil {
				w.must(o, "hear", func(ctx context.Context, ks *Keysets) error { return ks.Refresh(ctx) })
			}
		}
	}
}

// simPlantPolicy is a policy under which a planted bug must show.
func simPlantPolicy(plant simPlant, i int) Policy {
	p := DefaultPolicy()
	p.Rotate = schedule.Schedule{Every: []vt{2 * day, 5 * day}[i%2]}
	p.TokenTTL = 12 * time.Hour
	p.Consumers = []Consumer{{Name: "envoy"}, {Name: "auth0-go"}, {Name: "jose"}, {Name: "pyjwt"}}
	if plant == plantOutage {
		p.PublishAhead, p.FetchFailure = 46*time.Hour, 30*time.Second
	}
	return p
}

package jwks

import (
	"math/rand/v2"
	"slices"
	"time"
)

// The simulation's consumers. They are written from the words of [Profile] (what
// its fields say a consumer does), and use none of its arithmetic: what they
// refuse is what a consumer of that kind refuses.

// vt is virtual time since the start of a simulation.
type vt = time.Duration

const never = vt(1<<63 - 1)

// simKind is how one kind of consumer behaves.
type simKind struct {
	name             string
	cache            vt // never: no expiry
	honours          bool
	least, most      vt // clamp of max-age
	refetch          bool
	throttle         vt
	stale            bool
	retry            vt
	backoff          bool
	perKid           bool
	tokens           bool // accepts a token that it has seen without a look at the keys
	behind           bool // a refetch happens behind the request that causes it, which is refused
	wipes            bool // a failed refetch loses the good set
	throttledByFetch bool // any fetch that worked starts the throttle; else each attempt on an unknown kid
}

func simKindOf(c Consumer) simKind {
	i := slices.IndexFunc(Profiles, func(p Profile) bool { return p.Name == c.Name })
	p := Profiles[i]
	k := simKind{
		name: p.Name, cache: p.Cache, honours: p.HonoursMaxAge, least: p.MinInterval, most: p.MaxInterval,
		refetch: p.Refetch, throttle: p.Throttle, stale: p.Stale, retry: p.Retry, backoff: p.Backoff, perKid: p.PerKid, tokens: p.TokenCache,
	}
	// What the notes of the profiles say in words.
	k.behind = p.Name == "dotnet"
	k.wipes = p.Name == "pyjwt"
	k.throttledByFetch = p.Name == "jose"
	if c.Cache != nil {
		k.cache, k.retry = *c.Cache, min(k.retry, *c.Cache)
	}
	if c.Throttle != nil {
		k.throttle = *c.Throttle
	}
	if c.MinInterval != nil {
		k.least, k.retry = *c.MinInterval, min(k.retry, *c.MinInterval)
	}
	if c.MaxInterval != nil {
		k.most = *c.MaxInterval
	}
	return k
}

// simVerifier is one consumer: a process with a cache, somewhere.
type simVerifier struct {
	simKind
	set   *simSet
	eager bool // fetches on a timer; else when a request finds the cache too old
	worst bool // the simulation times its fetches as badly as its kind allows
	clock vt   // what its clock shows more than the true time

	kids     []int32 // of the cached set
	has      bool    // whether there is a usable set
	fetched  vt      // when the last fetch worked
	expires  vt
	next     vt // eager: the next fetch; lazy: no fetch before
	fails    int
	failRun  simSpan // span of no service in which the present run of failures began; zero when the last fetch worked
	idle     bool    // nobody asked it for anything between the end of its cache and that run
	broken   bool    // the run of failures is longer than the policy covers
	lastFail vt
	lastMiss vt
	perKids  map[int32]vt

	fault simSpan // in which its fetches fail
	edge  struct {
		doc    *simDoc
		at     vt
		maxAge vt
	}
}

// simSpan is [from, to).
type simSpan struct{ from, to vt }

func (s simSpan) holds(at vt) bool { return at >= s.from && at < s.to }

func newSimVerifier(rng *rand.Rand, set *simSet, k simKind, worst bool, now vt) *simVerifier {
	v := &simVerifier{simKind: k, set: set, eager: rng.IntN(2) == 0, worst: worst, lastMiss: -never / 2, lastFail: -never / 2, next: now, perKids: map[int32]vt{}}
	v.setClock(rng)
	return v
}

func (v *simVerifier) setClock(rng *rand.Rand) {
	s := v.set.policy.Skew / 2
	switch {
	case v.worst && rng.IntN(2) == 0:
		v.clock = -s // holds tokens for good for longest
	default:
		v.clock = vt(rng.Float64()*2*float64(s)) - s
	}
}

// life is how long a set that came with maxAge is used.
func (v *simVerifier) life(maxAge vt) vt {
	if v.honours {
		return min(max(maxAge, v.least), v.most)
	}
	return v.cache
}

// fetch asks for the document at an instant, through the edge cache if there is one.
func (v *simVerifier) fetch(w *simWorld, at vt) (*simDoc, vt, bool) {
	w.stats.kind(v.name).fetches++
	if v.fault.holds(at) || w.noService(at) != (simSpan{}) {
		return nil, 0, false
	}
	if !v.set.policy.CDN {
		doc, maxAge := w.serve(v.set, at, -1)
		return doc, maxAge, doc != nil
	}
	e := &v.edge
	if e.doc == nil || at >= e.at+e.maxAge {
		// Somebody else's request may have filled the edge before ours.
		o := at
		for range 3 {
			if ago := at - vt(w.rng.Float64()*float64(v.set.policy.MaxAge)); (e.doc == nil || ago >= e.at+e.maxAge) && ago >= v.set.born && w.noService(ago) == (simSpan{}) {
				if doc, maxAge := w.serve(v.set, ago, -1); doc != nil && ago+maxAge > at {
					o = ago
					break
				}
			}
		}
		doc, maxAge := w.serve(v.set, o, -1)
		if doc == nil {
			return nil, 0, false
		}
		e.doc, e.at, e.maxAge = doc, o, maxAge
	}
	return e.doc, e.maxAge, true
}

// try makes one fetch and does with its outcome what this kind does.
func (v *simVerifier) try(w *simWorld, at vt) bool {
	doc, maxAge, ok := v.fetch(w, at)
	if !ok {
		span := v.fault
		if !span.holds(at) {
			span = w.noService(at)
		}
		if v.failRun == (simSpan{}) {
			v.failRun, v.idle = span, v.has && !v.eager && at > v.expires+time.Second
		} else if v.failRun.from != span.from {
			v.broken = true // two failures in a row: more than the policy covers
		}
		v.lastFail = at
		wait := v.retry
		if v.backoff {
			wait = min(v.retry, time.Minute<<min(v.fails, 20))
		}
		v.fails++
		if over := min(span.to, w.now+1) - at; v.eager && !v.backoff && wait < over {
			// All the tries in between fail too.
			if wait > 0 {
				over = (over + wait - 1) / wait * wait
			}
			wait = over
		}
		v.next = at + wait
		if !v.stale && at >= v.expires {
			v.has = false
		}
		return false
	}
	v.accept(w, at, doc, maxAge)
	return true
}

// accept stores a document that was fetched at an instant.
func (v *simVerifier) accept(w *simWorld, at vt, doc *simDoc, maxAge vt) {
	v.kids, v.has, v.fetched = doc.kids, true, at
	v.fails, v.failRun, v.broken = 0, simSpan{}, false
	life := v.life(maxAge)
	v.expires, v.next = never, never
	if life == never {
		return
	}
	v.expires = at + life
	v.next = v.expires
	if v.eager && !v.worst && w.rng.IntN(3) == 0 {
		v.next = at + vt(float64(life)*(0.5+w.rng.Float64()/2))
	}
}

// advance makes the fetches that come before an instant.
func (v *simVerifier) advance(w *simWorld, at vt) {
	if !v.eager {
		if (!v.has || at >= v.expires) && (at >= v.next || !v.has) && !v.perKid {
			v.try(w, at)
		}
		return
	}
	if v.perKid {
		return
	}
	if idle := at - v.next; v.has && idle > 3*max(v.expires-v.fetched, time.Minute) && v.life(0) != never {
		// Nobody looked for a long time. Where in its cycle it is now is chance.
		life := float64(max(v.expires-v.fetched, time.Second))
		v.next = at - vt(w.rng.Float64()*life)
		for range 4 { // the fetch before a failure worked
			span := w.noService(v.next)
			if span == (simSpan{}) && v.fault.holds(v.next) {
				span = v.fault
			}
			if span == (simSpan{}) {
				break
			}
			v.next = span.from - 1 - vt(w.rng.Float64()*life)
		}
		v.next = max(v.next, v.fetched)
		v.fails, v.failRun, v.broken = 0, simSpan{}, false
	}
	for n := 0; v.next <= at; n++ {
		from := v.next
		v.try(w, from)
		if v.next <= from {
			v.next = from + time.Second
		}
		if n > 1000 && v.next <= at {
			v.next = at // a short cycle that nobody looked at for long
			v.try(w, at)
			v.next = max(v.next, at+1)
		}
	}
}

// knows says whether the consumer accepts a key at an instant.
func (v *simVerifier) knows(w *simWorld, kid int32, at vt) bool {
	w.stats.kind(v.name).checks++
	v.advance(w, at)
	if v.perKid {
		if until, ok := v.perKids[kid]; ok && at < until {
			return true
		}
		if v.throttle > 0 && at-v.lastMiss < v.throttle {
			return false
		}
		v.lastMiss = at
		doc, _, ok := v.fetch(w, at)
		if !ok {
			v.lastFail = at
			v.failRun, v.has = w.noService(at), false
			if v.fault.holds(at) {
				v.failRun = v.fault
			}
			return false
		}
		v.failRun, v.has, v.broken = simSpan{}, true, false
		if slices.Contains(doc.kids, kid) {
			v.perKids[kid] = at + v.cache
			return true
		}
		return false
	}
	if v.has && slices.Contains(v.kids, kid) {
		return true
	}
	if !v.refetch {
		return false
	}
	since := v.lastMiss
	if v.throttledByFetch && v.has {
		since = v.fetched
	}
	if at-since < v.throttle {
		return false
	}
	v.lastMiss = at
	if !v.try(w, at) {
		if v.wipes {
			v.has = false
		}
		return false
	}
	return !v.behind && slices.Contains(v.kids, kid)
}

// seize times a verifier as badly as it can be: it fetched just before at from
// the replica that is behind (through an edge, as late as that copy lives), and
// its next fetches fail for as long as the policy says must do no harm.
func (v *simVerifier) seize(w *simWorld, at vt, faulty bool) {
	at -= time.Millisecond
	if at < v.set.born || w.noService(at) != (simSpan{}) || v.fault.holds(at) {
		return
	}
	doc, maxAge := w.serve(v.set, at, w.behind)
	if doc == nil {
		return
	}
	take := func() {
		v.lastMiss = w.now
		if !v.perKid {
			v.accept(w, w.now, doc, maxAge)
		} else {
			for _, k := range doc.kids {
				v.perKids[k] = w.now + v.cache
			}
		}
		if f := v.set.policy.FetchFailure; faulty && f > 0 && !v.fault.holds(w.now) {
			from := w.now + time.Millisecond
			if v.expires != never && w.rng.IntN(3) > 0 {
				from = v.expires - time.Millisecond
			}
			v.fault = simSpan{from, from + f}
			w.at(v.fault.from+2*time.Millisecond, func() { v.poke(w) })
			w.at(v.fault.to-2*time.Millisecond, func() { v.poke(w) })
		}
	}
	if v.set.policy.CDN && maxAge > time.Millisecond {
		v.edge.doc, v.edge.at, v.edge.maxAge = doc, at, maxAge
		w.at(at+maxAge-time.Millisecond, func() {
			if v.edge.at == at && v.set.policy.CDN && !v.fault.holds(w.now) && w.noService(w.now) == (simSpan{}) {
				take()
			}
		})
		return
	}
	take()
}

// poke is a request that only makes an expired cache fetch.
func (v *simVerifier) poke(w *simWorld) {
	if !v.perKid {
		v.advance(w, w.now)
	}
}

// excused says why the refusal of a good token at an instant is no fault of the
// issuer; "" when it is one.
func (v *simVerifier) excused(w *simWorld, at vt) string {
	if v.failRun == (simSpan{}) {
		return ""
	}
	end := min(v.failRun.to, at)
	switch {
	case v.broken || end-v.failRun.from > v.set.policy.FetchFailure:
		return "outage" // longer than the policy covers
	case !v.has:
		return "closed" // this kind has no keys at all while its fetches fail
	case v.idle:
		return "idle" // its first request for long meets a failure: no lead helps
	case v.cache == never && !v.honours && v.lastFail == at:
		return "unprotected" // fetches only when it meets the kid: no lead helps
	}
	return ""
}

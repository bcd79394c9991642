package jwks

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// simOptions is what a simulation is made from. Equal options give equal runs,
// but for the key material, which is random.
type simOptions struct {
	seed      uint64
	years     float64
	keysets   int
	verifiers int // of each consumer that a policy names
	calm      int // how many times rarer everything is
	plant     simPlant
	deadline  time.Time // wall clock; zero: none
}

// simPlant is a bug that the simulation puts in, to see that it is noticed.
type simPlant string

const (
	plantNone    simPlant = ""
	plantLead    simPlant = "a key signs as soon as it is published"
	plantRetire  simPlant = "the longest issued life is forgotten when a key is demoted"
	plantMaxAge  simPlant = "max-age is not shaped by the next removal"
	plantNothing simPlant = "nothing: the same world without a bug"
	plantOutage  simPlant = "time without service counts as served"
)

// simWorld is everything there is in a simulation.
type simWorld struct {
	simOptions
	t     testing.TB
	rng   *rand.Rand
	db    *store.DB
	local *Local

	now    vt
	clock  vt // what the acting replica's clock shows more
	crash  int
	queue  simQueue
	seq    int
	passAt vt
	hung   bool // nobody runs passes, though documents are served
	lastUp vt   // when served_at was last known to be written
	passed bool // whether there was a pass since nothing was served

	replicas []*simReplica
	behind   int // the replica that hears last of what happens
	outages  []simSpan
	down     vt // since when nothing is served; -1: it is

	changes int64 // of publication, at the last look
	sets    []*simSet
	kids    map[string]int32
	names   []string
	docs    map[*Document]*simDoc
	dark    map[string]bool // kids whose signer is out of reach

	stats simStats
}

type simReplica struct {
	ks    *Keysets
	heard int64 // change up to which it is known to have refreshed
	clock vt
	down  []simSpan // the last one may be open
}

// simDoc is a served document, read once.
type simDoc struct {
	*Document
	kids []int32
	jwks jose.JSONWebKeySet
}

type simServed struct {
	from vt
	doc  *simDoc
}

type simCrash struct{}

func simAt(t vt) time.Time { return epoch.Add(t) }

type simEvent struct {
	at  vt
	seq int
	do  func()
}

type simQueue []simEvent

func (q simQueue) Len() int { return len(q) }
func (q simQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q simQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simQueue) Push(e any)   { *q = append(*q, e.(simEvent)) }
func (q *simQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

func (w *simWorld) at(at vt, do func()) {
	w.seq++
	at = max(at, w.now)
	at = (at + time.Microsecond - 1).Truncate(time.Microsecond) // what the database can hold
	heap.Push(&w.queue, simEvent{at, w.seq, do})
}

// after schedules something at a random instant with the given mean distance,
// again and again.
func (w *simWorld) often(mean vt, do func()) {
	w.at(w.now+vt(w.rng.ExpFloat64()*float64(mean)*float64(max(1, w.calm))), func() { do(); w.often(mean, do) })
}

func (w *simWorld) between(from, to vt) vt {
	if to <= from {
		return from
	}
	return from + vt(w.rng.Int64N(int64(to-from)))
}

func (w *simWorld) chance(percent int) bool { return w.rng.IntN(100) < percent }

func pick[T any](w *simWorld, from ...T) T { return from[w.rng.IntN(len(from))] }

// newSimWorld makes a world on a database, whose clocks it takes over.
func newSimWorld(t testing.TB, db *store.DB, o simOptions) *simWorld {
	t.Helper()
	w := &simWorld{
		simOptions: o, t: t, rng: rand.New(rand.NewPCG(o.seed, 0x526f74756e6461)), db: db, local: newLocal(t),
		kids: map[string]int32{}, docs: map[*Document]*simDoc{}, dark: map[string]bool{}, down: -1, behind: -1,
		stats: simStats{kinds: map[string]*simKindStats{}, violations: map[string][]string{}, excused: map[string]int{}, ops: map[string]int{}},
	}
	db.Now = func() time.Time {
		if w.crash > 0 {
			if w.crash--; w.crash == 0 {
				panic(simCrash{})
			}
		}
		return simAt(w.now + w.clock)
	}
	db.Tick = func() time.Duration { return w.now }
	n := 1
	if o.seed%3 != 0 {
		n = 2
	}
	for range n {
		w.replicas = append(w.replicas, &simReplica{ks: w.process()})
	}
	if n > 1 {
		w.behind = 1
	}
	for i := range o.keysets {
		w.create(i)
	}
	w.setClocks()
	w.begin()
	return w
}

// process is a fresh process.
func (w *simWorld) process() *Keysets {
	ks := New(Config{DB: w.db, Local: w.local})
	ks.homes = map[string]Home{LocalHome: simHome{w.local, w}}
	return ks
}

// simHome is the local home, whose signers can be out of reach.
type simHome struct {
	*Local
	w *simWorld
}

type simSigner struct {
	Signer
	kid string
	w   *simWorld
}

func (h simHome) Open(ctx context.Context, k Key) (Signer, error) {
	s, err := h.Local.Open(ctx, k)
	return simSigner{s, k.Kid, h.w}, err
}

func (s simSigner) Sign(ctx context.Context, in []byte) ([]byte, error) {
	if s.w.dark[s.kid] {
		return nil, fault.New(fault.ErrUnavailable, "signer_unreachable", "the simulation has put out key %s", s.kid)
	}
	return s.Signer.Sign(ctx, in)
}

// setClocks keeps the clocks of all replicas within the smallest skew that a policy allows.
func (w *simWorld) setClocks() {
	least := time.Hour
	for _, s := range w.sets {
		least = min(least, s.policy.Skew/2)
	}
	for i, r := range w.replicas {
		r.clock = least
		if i%2 == 1 {
			r.clock = -least
		}
	}
}

// run lets the world go on until its end.
func (w *simWorld) run() {
	end := vt(w.years * 365.25 * 24 * float64(time.Hour))
	for w.now < end && len(w.stats.violations) < 200 {
		if !w.deadline.IsZero() && time.Now().After(w.deadline) {
			break
		}
		if w.down < 0 && !w.hung && (len(w.queue) == 0 || w.passAt <= w.queue[0].at) {
			w.now = max(w.now, w.passAt)
			w.pass()
			continue
		}
		e := heap.Pop(&w.queue).(simEvent)
		w.now = max(w.now, e.at)
		e.do()
	}
	w.stats.virtual = w.now
	w.trail()
}

// up is a random replica that runs, or nil.
func (w *simWorld) up() *simReplica {
	var up []*simReplica
	for _, r := range w.replicas {
		if r.ks != nil {
			up = append(up, r)
		}
	}
	if len(up) == 0 {
		return nil
	}
	return up[w.rng.IntN(len(up))]
}

// do lets a replica act. A crash is a panic at the start of one of its
// transactions; the replica is gone then.
func (w *simWorld) do(r *simReplica, name string, act func(ctx context.Context, ks *Keysets) error) (err error, crashed bool) {
	w.stats.ops[name]++
	if w.chance(3) && w.plant == plantNone {
		w.crash = 1 + w.rng.IntN(10)
	}
	w.clock = r.clock
	func() {
		defer func() {
			if p := recover(); p != nil {
				if _, ok := p.(simCrash); !ok {
					panic(p)
				}
				crashed = true
			}
		}()
		err = act(context.Background(), r.ks)
	}()
	w.crash, w.clock = 0, 0
	if crashed {
		w.kill(r)
	}
	switch {
	case !crashed && (name == "hear" || name == "plan" || name == "sign" && len(w.dark) == 0):
		w.observe() // nothing has moved
	default:
		w.reconcile()
		if w.down < 0 {
			w.look()
		}
	}
	return err, crashed
}

// must is do for what can't be refused.
func (w *simWorld) must(r *simReplica, name string, act func(ctx context.Context, ks *Keysets) error) bool {
	err, crashed := w.do(r, name, act)
	if err != nil {
		w.violate("error", "%s: %v", name, err)
	}
	return !crashed && err == nil
}

// look asks the database when the next pass is due.
func (w *simWorld) look() {
	var at int64
	w.read(func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(MIN(next_at), 0) FROM keysets`).Scan(&at)
	})
	w.passAt = store.Time(at).Sub(epoch)
	if w.chance(25) {
		w.passAt += w.between(0, time.Second) // passes come about once a second
	}
	w.passAt = max(w.passAt, w.now).Truncate(time.Microsecond) + time.Microsecond
	if !w.passed {
		w.passAt = w.now // a process that starts begins with a pass
	}
}

// read looks into the database from outside of the world.
func (w *simWorld) read(f func(context.Context, *store.Tx) error) {
	crash := w.crash
	w.crash = 0
	if err := w.db.View(context.Background(), f); err != nil {
		w.t.Fatalf("seed %d, %s: read the database: %v", w.seed, simAt(w.now), err)
	}
	w.crash = crash
}

// write changes the database from outside of the world.
func (w *simWorld) write(query string, args ...any) {
	if err := exec(w.t, w.db, query, args...); err != nil {
		w.t.Fatalf("seed %d, %s: %s: %v", w.seed, simAt(w.now), query, err)
	}
}

// idle makes up for the passes that nobody simulated because nothing was due:
// all that they would have left behind is served_at.
func (w *simWorld) idle() {
	if w.hung || w.down >= 0 || !w.passed || w.now-w.lastUp < servedGap {
		return
	}
	w.lastUp = max(w.lastUp, w.now-w.between(0, servedGap))
	ahead := vt(-1 << 62)
	for _, r := range w.replicas {
		if r.ks != nil {
			ahead = max(ahead, r.clock) // the time of the clock that is ahead stands
		}
	}
	w.write(`UPDATE publication SET served_at = $1 WHERE id = 1`, store.Micros(simAt(w.lastUp+ahead)))
}

// pass is what the scheduler does.
func (w *simWorld) pass() {
	r := w.up()
	w.idle()
	began := w.now
	done := w.must(r, "pass", func(ctx context.Context, ks *Keysets) error {
		_, err := ks.Pass(ctx, simAt(w.now+w.clock)) // look asks the database when the next is due
		return err
	})
	if done {
		w.lastUp, w.passed = w.now, true
	}
	if w.passAt <= began {
		w.passAt = began + time.Second
	}
}

// kill ends one replica, and perhaps all.
func (w *simWorld) kill(r *simReplica) {
	w.stats.crashes++
	w.idle()
	all := w.chance(50)
	for _, o := range w.replicas {
		if o.ks != nil && (all || o == r) {
			o.ks = nil
			o.down = append(o.down, simSpan{w.now, never})
		}
	}
	if w.up() == nil && w.down < 0 {
		w.down = w.now
		w.outages = append(w.outages, simSpan{w.now, never})
	}
	var off vt
	switch n := w.rng.IntN(100); {
	case n < 60:
		off = w.between(0, 30*time.Second)
	case n < 85:
		off = w.between(0, 6*time.Minute)
	case n < 97:
		off = w.between(0, 3*time.Hour)
	default:
		off = w.between(0, 72*time.Hour)
	}
	w.at(w.now+off, w.restart)
}

// restart starts every replica that is not running.
func (w *simWorld) restart() {
	was := w.down
	for _, r := range w.replicas {
		if r.ks != nil {
			continue
		}
		r.ks = w.process()
		r.down[len(r.down)-1].to = w.now
		if w.down >= 0 {
			w.outages[len(w.outages)-1].to = w.now
			w.down, w.passed = -1, false
		}
		if !w.must(r, "start", func(ctx context.Context, ks *Keysets) error { return ks.Refresh(ctx) }) {
			return // it crashed again
		}
	}
	if was < 0 {
		return
	}
	w.stats.outage += w.now - was
	for _, s := range w.sets {
		s.outage(w, w.now-was)
	}
	if w.plant == plantOutage {
		w.write(`UPDATE publication SET served_at = $1 WHERE id = 1`, store.Micros(simAt(w.now)))
	}
	if w.chance(30) && w.plant == plantNone {
		// A request that comes before the first pass.
		for _, s := range w.sets {
			w.rotate(s)
			w.token(s, 0)
		}
	}
	w.at(w.now+time.Second, func() { w.everyone() })
}

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

// noService is the outage that an instant lies in, or nothing.
func (w *simWorld) noService(at vt) simSpan {
	for i := len(w.outages) - 1; i >= 0; i-- {
		if w.outages[i].holds(at) {
			return w.outages[i]
		}
		if w.outages[i].to < at {
			break
		}
	}
	return simSpan{}
}

// serve is what a replica answered at an instant, and for how long the answer
// may be cached: -1 is any replica.
func (w *simWorld) serve(s *simSet, at vt, replica int) (*simDoc, vt) {
	if replica < 0 {
		replica = w.rng.IntN(len(w.replicas))
	}
	for range w.replicas {
		r := w.replicas[replica]
		if n := len(r.down); n == 0 || !slices.ContainsFunc(r.down[max(0, n-4):], func(o simSpan) bool { return o.holds(at) }) {
			h := s.history[replica]
			for i := len(h) - 1; i >= 0; i-- {
				if h[i].from <= at {
					return h[i].doc, w.maxAge(s, h[i].doc, at, r)
				}
			}
		}
		replica = (replica + 1) % len(w.replicas)
	}
	return nil, 0
}

// maxAge is the header that goes with a document.
func (w *simWorld) maxAge(s *simSet, d *simDoc, at vt, r *simReplica) vt {
	age := d.MaxAge(simAt(at + r.clock))
	if w.plant == plantMaxAge {
		age = d.maxAge
	}
	s.checkMaxAge(w, d, at, age, r)
	return age
}

// observe writes down what each replica serves now.
func (w *simWorld) observe() {
	for i, r := range w.replicas {
		if r.ks == nil {
			continue
		}
		for _, s := range w.sets {
			d := r.ks.Document(s.name)
			h := s.history[i]
			if d == nil || len(h) > 0 && h[len(h)-1].doc.Document == d {
				continue
			}
			doc := w.docs[d]
			if doc == nil {
				doc = w.readDoc(d)
				w.docs[d] = doc
			}
			s.checkServed(w, i, doc)
			s.history[i] = append(h, simServed{w.now, doc})
		}
	}
}

func (w *simWorld) readDoc(d *Document) *simDoc {
	doc := &simDoc{Document: d}
	if err := json.Unmarshal(d.Body, &doc.jwks); err != nil {
		w.violate("document", "keyset %s version %d: %v", d.Name, d.Version, err)
	}
	for _, k := range doc.jwks.Keys {
		doc.kids = append(doc.kids, w.kid(k.KeyID))
		if !k.IsPublic() || !k.Valid() {
			w.violate("document", "keyset %s publishes a private or bad key %s", d.Name, k.KeyID)
		}
	}
	return doc
}

func (w *simWorld) kid(name string) int32 {
	n, ok := w.kids[name]
	if !ok {
		n = int32(len(w.names))
		w.kids[name] = n
		w.names = append(w.names, name)
	}
	return n
}

// hear lets the other replicas know of a change, as late as the policy allows.
func (w *simWorld) hear(s *simSet) {
	for _, r := range w.replicas {
		lag := s.policy.Propagation
		if w.chance(30) {
			lag = w.between(0, lag)
		}
		w.at(w.now+lag, func() {
			if r.ks != nil && r.heard != w.changes {
				w.must(r, "hear", func(ctx context.Context, ks *Keysets) error { return ks.Refresh(ctx) })
				r.heard = w.changes
			}
		})
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

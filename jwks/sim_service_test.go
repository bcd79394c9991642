package jwks

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

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

package jwks

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

const day = 24 * time.Hour

// begin puts everything into the queue that happens without being due.
func (w *simWorld) begin() {
	for _, s := range w.sets {
		w.often(2*day, func() { w.token(s, pick(w, 0, 0, time.Minute, s.policy.TokenTTL/2, 2*s.policy.TokenTTL)) })
		w.often(3*day, func() {
			if len(s.tokens) > 0 {
				w.sample(s, s.tokens[len(s.tokens)-1], 20)
			}
		})
		if w.plant == plantLead {
			w.often(3*day, func() {
				w.override(s)
				w.at(w.now+30*time.Second, func() { w.override(s) })
			})
		}
		if w.plant != plantNone {
			continue
		}
		w.often(20*day, func() { w.rotate(s) })
		w.often(70*day, func() { w.override(s) })
		w.often(50*day, func() { w.revoke(s) })
		w.often(60*day, func() { w.bring(s) })
		w.often(15*day, func() { w.update(s) })
		w.often(30*day, func() { w.darken(s) })
		// A consumer's own trouble.
		w.often(day, func() {
			v := s.verifiers[w.rng.IntN(len(s.verifiers))]
			if f := s.policy.FetchFailure; f > 0 && v.fault.to < w.now {
				v.fault = simSpan{w.now, w.now + w.between(0, f)}
			}
		})
	}
	if w.plant == plantNone || w.plant == plantOutage {
		w.often(6*day, func() {
			if r := w.up(); r != nil {
				w.kill(r)
			}
		})
	}
	if w.plant == plantNone {
		w.often(15*day, w.hang)
	}
}

// hang stops passes for a while, though documents are served.
func (w *simWorld) hang() {
	if w.hung {
		return
	}
	w.idle()
	w.hung = true
	w.at(w.now+w.between(0, pick(w, 15*time.Second, time.Minute, time.Hour, 12*time.Hour)), func() {
		w.hung = false
		w.passAt = max(w.passAt, w.now)
	})
}

// worst times the fetches of some verifiers badly against what has just changed.
func (w *simWorld) worst(s *simSet, faulty int) {
	if s.policy.Propagation > 0 && w.behind >= 0 && w.replicas[w.behind].ks == nil {
		return
	}
	for _, v := range s.verifiers {
		if v.worst {
			bad := w.chance(faulty)
			w.at(w.now+s.policy.Propagation-time.Millisecond, func() { v.seize(w, w.now+time.Millisecond, bad) })
		}
	}
}

// promoted looks closely at the first minutes of a key.
func (w *simWorld) promoted(s *simSet) {
	for i, d := range []vt{0, time.Second, 5 * time.Second, 40 * time.Second, 2 * time.Minute, 10 * time.Minute} {
		w.at(w.now+d, func() {
			tok := w.token(s, 0)
			if tok == nil {
				return
			}
			for j, v := range s.verifiers {
				if i%2 == 0 || j%4 == 0 {
					w.check(v, tok)
				}
			}
		})
	}
	// A replica that has not heard signs with the old key.
	for _, r := range w.replicas {
		w.at(w.now+w.between(0, SignerLease), func() {
			if r.ks == nil {
				return
			}
			if tok := w.tokenBy(s, 0, r); tok != nil {
				w.at(tok.alive()-2*time.Millisecond, func() { w.holdouts(s, tok) })
			}
		})
	}
	if w.plant == plantLead {
		return
	}
	// Somebody asks for the next rotation as soon as it is possible.
	if w.chance(40 / max(1, w.calm)) {
		w.at(w.now, func() { w.soon(s) })
	}
}

// holdouts are the verifiers that hold a token for good for longest.
func (w *simWorld) holdouts(s *simSet, tok *simToken) {
	for _, v := range s.verifiers {
		if v.worst {
			w.check(v, tok)
		}
	}
}

// soon asks for a rotation at the first instant at which it is not refused.
func (w *simWorld) soon(s *simSet) {
	r := w.up()
	if r == nil {
		return
	}
	set, err := r.ks.Get(context.Background(), s.name)
	if err != nil || set.Standby() == nil {
		return
	}
	w.at(set.leadOver(*set.Standby()).Sub(epoch)-r.clock, func() { w.rotateBy(s, r) })
}

// removed looks closely at what may still be accepted after a removal.
func (w *simWorld) removed(s *simSet) {
	for _, tok := range s.tokens {
		w.sample(s, tok, 10)
		w.holdouts(s, tok)
	}
}

// actor is a replica that runs, with served_at up to date, or nil.
func (w *simWorld) actor() *simReplica {
	r := w.up()
	if r != nil {
		w.idle()
	}
	return r
}

// rotate asks for a rotation, which may be refused.
func (w *simWorld) rotate(s *simSet) {
	if r := w.actor(); r != nil {
		w.rotateBy(s, r)
	}
}

func (w *simWorld) rotateBy(s *simSet, r *simReplica) {
	if r.ks == nil {
		return
	}
	err, _ := w.do(r, "rotate", func(ctx context.Context, ks *Keysets) error {
		_, err := ks.Rotate(ctx, Rotate{Name: s.name})
		return err
	})
	if err != nil && !errors.Is(err, fault.ErrTransition) {
		w.violate("error", "rotate: %v", err)
	}
}

// override rotates although the lead is not over.
func (w *simWorld) override(s *simSet) {
	r := w.actor()
	if r == nil {
		return
	}
	if w.plant == plantNone {
		s.intent = &simIntent{kind: "override"}
	}
	err, _ := w.do(r, "override", func(ctx context.Context, ks *Keysets) error {
		_, err := ks.Rotate(ctx, Rotate{Name: s.name, Override: true, Reason: "simulated"})
		return err
	})
	s.intent = nil
	if err != nil && !errors.Is(err, fault.ErrTransition) {
		w.violate("error", "override: %v", err)
	}
}

// revoke withdraws a random key in a random mode.
func (w *simWorld) revoke(s *simSet) {
	r := w.actor()
	if r == nil {
		return
	}
	set, err := r.ks.Get(context.Background(), s.name)
	if err != nil || len(set.Keys) == 0 {
		w.violate("error", "revoke: get: %v", err)
		return
	}
	k := set.Keys[0]
	if w.chance(40) {
		k = set.Keys[w.rng.IntN(len(set.Keys))]
	}
	mode := pick(w, ModeStandby, ModeFresh)
	if k.State != Active {
		mode = pick(w, modeNone, ModeFresh)
	}
	req := Revoke{Name: s.name, Kid: k.Kid, Mode: mode, Reason: "key_compromise"}
	var plan *RevokePlan
	err, crashed := w.do(r, "plan", func(ctx context.Context, ks *Keysets) (err error) {
		dry := req
		dry.DryRun = true
		plan, _, err = ks.Revoke(ctx, dry)
		return err
	})
	if crashed || err != nil {
		if err != nil {
			w.violate("error", "plan a revocation: %v", err)
		}
		return
	}
	i := 0
	kind := "withdraw"
	switch mode {
	case ModeFresh:
		i, kind = 1, "fresh"
	case ModeStandby:
		kind = "standby"
	case modeNone:
	}
	if !plan.Modes[i].Possible {
		return
	}
	s.intent = &simIntent{kind: kind, plan: &plan.Modes[i]}
	err, _ = w.do(r, "revoke", func(ctx context.Context, ks *Keysets) error {
		_, _, err := ks.Revoke(ctx, req)
		return err
	})
	s.intent = nil
	if err != nil {
		w.violate("error", "revoke: %v", err)
	}
}

// follow tries forged tokens of a revoked key on verifiers with steady traffic.
func (w *simWorld) follow(s *simSet, kid int32) {
	r := s.revoked[kid]
	horizon := vt(0)
	for _, e := range r.exposure {
		if e != Forever {
			horizon = max(horizon, e)
		}
	}
	for _, soft := range s.soft {
		if soft.from == w.now {
			for _, until := range soft.until {
				if until != never {
					horizon = max(horizon, until-w.now)
				}
			}
		}
	}
	horizon += 5 * time.Minute
	var watched []*simVerifier
	for _, v := range s.verifiers {
		if v.worst || w.chance(20) {
			watched = append(watched, v)
		}
	}
	if len(watched) > 60 {
		w.rng.Shuffle(len(watched), func(i, j int) { watched[i], watched[j] = watched[j], watched[i] })
		watched = watched[:60]
	}
	var tok *simToken
	n, outages := 0, len(w.outages)
	var step func()
	step = func() {
		gap := max(5*time.Second, (w.now-r.at)/50)
		if s.since != r.policy || w.now > r.at+horizon || len(w.outages) > outages || len(w.dark) > 0 || s.lastSigns > r.at {
			return // what was predicted has passed, or no longer holds: the fresh key must sign
		}
		if tok == nil || n%12 == 0 || s.revoked[tok.kid] != nil || tok.expires <= w.now+time.Second {
			tok = w.token(s, 0)
		}
		if r.fresh && (tok == nil || s.born0[tok.kid] < r.at) {
			return // a key that consumers know stands in: nothing makes them refetch
		}
		n++
		for _, v := range watched {
			if tok != nil {
				w.check(v, tok)
			}
			limit, ok := r.exposure[v.name]
			if !ok || limit == Forever {
				continue
			}
			w.stats.forged++
			// A consumer refetches when a fresh token arrives, and here one does so only now and then.
			if v.knows(w, kid, w.now) && w.now > r.at+limit+gap && !v.broken && v.excused(w, w.now) != "outage" {
				w.violate("I9", "seed %d: keyset %s: %s (eager %t, fetched %s ago, missed %s ago, failing %v) accepts a key that was revoked %s ago, predicted %s; cdn %t, max-age %s, F %s, P %s",
					w.seed, s.name, v.name, v.eager, w.now-v.fetched, w.now-v.lastMiss, v.failRun, w.now-r.at, limit, s.policy.CDN, s.policy.MaxAge, s.policy.FetchFailure, s.policy.Propagation)
			}
		}
		w.at(w.now+gap, step)
	}
	w.at(w.now+time.Second, step)
}

// bring imports a key of another issuer.
func (w *simWorld) bring(s *simSet) {
	r := w.actor()
	if r == nil {
		return
	}
	var key crypto.PrivateKey
	var err error
	if s.algorithm == Ed25519 {
		_, key, err = ed25519.GenerateKey(crand.Reader)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		w.t.Fatal(err)
	}
	req := Import{Name: s.name, State: pick(w, Active, Retiring), MaxTokenLife: pick(w, time.Hour, 3*day), Reason: "simulated",
		Key: secret.New(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
	if req.State == Active {
		s.intent = &simIntent{kind: "import"}
	}
	err, crashed := w.do(r, "import", func(ctx context.Context, ks *Keysets) error {
		_, _, err := ks.Import(ctx, req)
		return err
	})
	s.intent = nil
	if err != nil && !errors.Is(err, fault.ErrInvalid) {
		w.violate("error", "import: %v", err)
	}
	if err == nil && !crashed {
		w.stats.imports++
	}
}

// darken puts the active key's signer out of reach for a while.
func (w *simWorld) darken(s *simSet) {
	r := w.up()
	if r == nil {
		return
	}
	set, err := r.ks.Get(context.Background(), s.name)
	if err != nil || set.Active() == nil {
		return
	}
	kid := set.Active().Kid
	w.dark[kid] = true
	for range 3 {
		w.at(w.now+w.between(0, 10*time.Minute), func() { w.everyoneOf(s) })
	}
	w.at(w.now+10*time.Minute, func() {
		delete(w.dark, kid)
		w.everyoneOf(s)
	})
}

func (w *simWorld) everyoneOf(s *simSet) {
	if tok := w.token(s, 0); tok != nil {
		for _, v := range s.verifiers {
			w.check(v, tok)
		}
	}
}

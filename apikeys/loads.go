package apikeys

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

const (
	loadLimit   = 5 * time.Second // for one read, waiting included
	loadsAtOnce = 16
	absentRate  = 200                    // reads in a second that find nothing
	absentWait  = 250 * time.Millisecond // for one of them
	tellEvery   = time.Minute            // about a tampered row
	maxTold     = 1000
)

// loads reads keys and partners that are not in memory: each once, however many ask
// for it, and not too many at a time.
type loads struct {
	flights singleflight.Group
	places  chan struct{}
	misses  gate // reads of keys that find nothing
	names   gate // looks for names of request secrets that find nothing, of partners that are not in memory

	mu   sync.Mutex
	told map[string]time.Duration // DB.Tick when a tampered row was last logged
}

func (l *loads) init() {
	l.places = make(chan struct{}, loadsAtOnce)
	l.misses = gate{every: time.Second / absentRate, burst: absentRate}
	l.names = gate{every: time.Second / absentRate, burst: absentRate}
	l.told = map[string]time.Duration{}
}

// once calls f in one goroutine for all who give the same name, and returns what it
// returned. Who no longer waits doesn't stop it for the others.
func (l *loads) once(ctx context.Context, name string, f func(ctx context.Context) (any, error)) (any, error) {
	ch := l.flights.DoChan(name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadLimit)
		defer cancel()
		select {
		case l.places <- struct{}{}:
			defer func() { <-l.places }()
		case <-ctx.Done():
			return nil, fault.New(fault.ErrUnavailable, "too_many_loads", "read a key: the database did not answer earlier reads in %s", loadLimit)
		}
		return f(ctx)
	})
	select {
	case r := <-ch:
		return r.Val, r.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// entry returns the key of an id, from memory or from its row; nil when there is
// none, or none that can be believed.
func (v *Verifier) entry(ctx context.Context, id string) (*entry, error) {
	k, ok := toCacheKey(id)
	if !ok {
		return nil, nil
	}
	e, s := v.cache.get(k)
	if e != nil {
		s.hits.Add(1)
		return e, nil
	}
	missing, epoch := v.cache.missing(k, v.cfg.DB.Tick())
	if missing {
		s.hits.Add(1)
		return nil, nil
	}
	if !v.loads.misses.wait(ctx, v.cfg.DB.Tick, absentWait) {
		return nil, v.tooMany()
	}
	// Who asks after a drop must not get what was read before it.
	got, err := v.loads.once(ctx, fmt.Sprintf("key %s %d", id, epoch), func(ctx context.Context) (any, error) {
		return v.readEntry(ctx, k, id, epoch)
	})
	if err != nil {
		return nil, unavailable("read key "+id, err)
	}
	return got.(*entry), nil
}

// tooMany is the answer when a read would be one too many.
func (v *Verifier) tooMany() error {
	v.shed.Add(1)
	return fault.New(fault.ErrUnavailable, "too_many_unknown", "verify: too many keys that are not in the database were looked for: try again in a moment")
}

func (v *Verifier) readEntry(ctx context.Context, k cacheKey, id string, epoch uint64) (*entry, error) {
	// Who came just after a read finds what it left.
	if e, _ := v.cache.get(k); e != nil {
		return e, nil
	}
	if missing, _ := v.cache.missing(k, v.cfg.DB.Tick()); missing {
		return nil, nil
	}
	if !v.loads.misses.open(v.cfg.DB.Tick()) {
		return nil, v.tooMany() // it was closed by those who came before
	}
	var key *Key
	err := v.cfg.DB.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		v.loaded.Add(1)
		key, err = v.peppers.scanKey(tx.QueryRow(ctx, `SELECT `+keyColumns+` FROM partner_keys WHERE id = $1`, id))
		return err
	})
	absent := func() (*entry, error) {
		tick := v.cfg.DB.Tick()
		v.loads.misses.charge(tick)
		v.cache.putAbsent(k, epoch, tick+absentFor)
		return nil, nil
	}
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return absent()
	case err != nil:
		return nil, err
	}
	if err := key.genuine(); err != nil {
		v.tellTampered(id, err)
		return absent()
	}
	var sign *signing
	if key.Kind == RequestSecret && !key.Ended() {
		if sign, err = v.openSecret(ctx, key); err != nil {
			return nil, err
		}
	}
	e := newEntry(key, v.owners.get(key.Partner), sign)
	if v.local != nil {
		e.limitShard = v.local.place(newLimitKey(key.Lineage))
	}
	return v.cache.put(k, e, epoch), nil
}

// openSecret makes what verifies signatures.
func (v *Verifier) openSecret(ctx context.Context, key *Key) (*signing, error) {
	s := &signing{}
	if key.PublicKey != "" {
		block, _ := pem.Decode([]byte(key.PublicKey))
		if block == nil {
			return nil, fmt.Errorf("the public key of request secret %s is not PEM", key.ID)
		}
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read the public key of request secret %s: %w", key.ID, err)
		}
		if raw, ok := public.(ed25519.PublicKey); ok {
			if s.hook, err = webhook.ParseSecret("whpk_" + base64.StdEncoding.EncodeToString(raw)); err != nil {
				return nil, err
			}
		}
		s.key, err = httpsig.NewPublicKey(public)
		return s, err
	}
	value, err := v.cfg.Sealer.Open(ctx, secretPlace(key.ID), key.sealed)
	if err != nil {
		return nil, fmt.Errorf("open request secret %s: %w", key.ID, err)
	}
	defer value.Destroy()
	b := value.Reveal()
	defer clear(b)
	if s.hook, err = webhook.SecretFrom(b); err != nil {
		return nil, err
	}
	s.key, err = httpsig.NewHMACKey(b)
	return s, err
}

// partner returns the present state of a partner; nil when it is not there, or not
// to be believed.
func (v *Verifier) partner(ctx context.Context, o *owner) (*partnerView, error) {
	epoch := o.at()
	got, err := v.loads.once(ctx, fmt.Sprintf("partner %s %d", o.name, epoch), func(ctx context.Context) (any, error) {
		if view := o.view.Load(); view != nil {
			return view, nil
		}
		var p *Partner
		err := v.cfg.DB.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
			v.loaded.Add(1)
			p, err = v.peppers.readPartner(ctx, tx, o.name)
			return err
		})
		if errors.Is(err, fault.ErrNotFound) {
			return (*partnerView)(nil), nil
		}
		if err != nil {
			return nil, err
		}
		if err := p.genuine(); err != nil {
			v.tellTampered("partner "+o.name, err)
			return (*partnerView)(nil), nil
		}
		p.seal = nil
		view := newPartnerView(p)
		o.put(view, epoch)
		return view, nil
	})
	if err != nil {
		return nil, unavailable("read partner "+o.name, err)
	}
	return got.(*partnerView), nil
}

func newPartnerView(p *Partner) *partnerView {
	return &partnerView{partner: p, policy: p.Signing.policy()}
}

// policy is the partner's over the default.
func (s SigningPolicy) policy() httpsig.Policy {
	p := httpsig.DefaultPolicy()
	if len(s.Components) > 0 {
		p.Required = s.Components
	}
	if s.MaxAge > 0 {
		p.MaxAge = s.MaxAge
	}
	if s.Skew > 0 {
		p.Skew = s.Skew
	}
	p.Tag = s.Tag
	return p
}

// tellTampered logs that a row was changed by somebody else, now and then.
func (v *Verifier) tellTampered(what string, err error) {
	l, tick := &v.loads, v.cfg.DB.Tick()
	l.mu.Lock()
	last, told := l.told[what]
	tell := !told || tick-last >= tellEvery
	if tell {
		if len(l.told) >= maxTold {
			clear(l.told)
		}
		l.told[what] = tick
	}
	l.mu.Unlock()
	if tell {
		v.cfg.Log.Error("a row was changed behind Rotunda's back, and counts as not there", "row", what, "error", err)
	}
}

// gate lets through so many in a time, GCRA as in LocalLimiter but by DB.Tick, and
// without a lock. What goes through is charged afterwards, when it is known to count.
type gate struct {
	every time.Duration
	burst int
	debt  atomic.Int64 // DB.Tick when all is paid
}

// open reports whether one more may go through now.
func (g *gate) open(tick time.Duration) bool {
	return time.Duration(g.debt.Load())-tick < g.every*time.Duration(g.burst)
}

// charge counts one.
func (g *gate) charge(tick time.Duration) {
	for {
		old := g.debt.Load()
		if g.debt.CompareAndSwap(old, int64(max(time.Duration(old), tick)+g.every)) {
			return
		}
	}
}

// wait waits until the gate is open, for a bounded time.
func (g *gate) wait(ctx context.Context, tick func() time.Duration, most time.Duration) bool {
	if g.open(tick()) {
		return true
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	look := time.NewTicker(g.every)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return g.open(tick())
		case <-look.C:
			if g.open(tick()) {
				return true
			}
		}
	}
}

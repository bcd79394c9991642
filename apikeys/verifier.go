package apikeys

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// Reason is why a key or request is accepted or denied.
type Reason uint8

// The reasons.
const (
	ReasonOK         Reason = iota + 1
	ReasonMalformed         // not in the form of a key, or of a signature
	ReasonUnknown           // nobody holds it
	ReasonExpired           //
	ReasonRevoked           // or retired
	ReasonSuspended         // the key, or its partner
	ReasonScope             //
	ReasonAddress           //
	ReasonRate              //
	ReasonSignature         // not that of the key over this request
	ReasonComponents        // the signature does not cover what it must
	ReasonWindow            // too old, or from the future
	ReasonReplay            // the nonce was seen before
	ReasonDigest            // the body is not the one that Content-Digest names
	reasons
)

var reasonNames = [reasons]string{
	"", "ok", "malformed", "unknown", "expired", "revoked", "suspended", "scope", "address", "rate", "signature", "components", "window", "replay", "digest",
}

func (r Reason) String() string { return reasonNames[min(r, reasons-1)] }

// Need is what a request demands of a key.
type Need struct {
	Scopes      []string   // all of them
	Address     netip.Addr // the client's; the zero value is in no range
	Partner     string     // "": any; else others' keys are unknown
	Environment string     // "": any; else other keys are unknown
	Cost        int64      // of the rate limit; 0: 1
}

// Decision says whether a key is accepted, and whose it is. Key and Partner are nil
// when it is malformed or unknown; they are shared, and not to be changed.
type Decision struct {
	Reason  Reason
	Key     *Key
	Partner *Partner
	Scopes  []string // those in force
	Rate    RateState
}

// VerifierConfig is what a Verifier needs.
type VerifierConfig struct {
	DB       *store.DB
	Keys     *Keys
	Partners *Partners
	Sealer   *secret.Sealer
	Usage    *audit.Usage // nil: nobody is told
	Limiter  Limiter      // nil: in memory
	Nonces   Nonces       // nil: in the database
	Log      *slog.Logger

	// StaleFor is how long keys are accepted without hearing of changes, while the
	// database is out of reach. Default: a minute.
	StaleFor time.Duration

	// MaxEntries bounds the cache. Default: 2,000,000.
	MaxEntries int
}

// Verifier verifies API keys and signed requests from memory. Its methods may be
// called from many goroutines.
//
// # Freshness
//
// After a change that takes something away (a revocation, a suspension, fewer
// scopes or ranges) has returned, keys are judged by it:
//
//   - in the process that made it, at once: by every verification that begins after it;
//   - in every other one after a NOTIFY and one query. Should the NOTIFY be lost, after
//     a second and one query (the commit's outcome being unknown counts as another process);
//   - in a process that is cut off from the database, after [VerifierConfig].StaleFor:
//     from then on nothing that needs the database's word is answered, with
//     fault.ErrUnavailable, until changes are heard again.
//
// What ends by the clock (a life, a grace) is compared with [store.DB].Now at every
// verification.
//
// Rows are read when their keys are first presented, many who ask at once being one
// read, and what was read before a change was heard does not stay.
//
// # Order
//
// A key that nobody holds, whose secret is wrong, that is another partner's or of
// another environment, or whose row was tampered with is "unknown", and nothing else
// is told. Of a key that is known it is looked at in this order: revoked or retired,
// expired, suspended (itself or its partner), address, scope, rate. So a request
// that is denied takes nothing from a rate limit. Keys of one line of rolls share
// their limit. Each outcome is counted for the trail before the caller learns it,
// but for unknown ones, which are nobody's.
//
// Of a signed request: its form, the secret (as above), policy and window, the
// signature, Content-Digest, address, scope, nonce, rate. Before the signature is
// right nothing is counted, spent or written.
//
// # Memory
//
// A known key is compared with a salted SHA-256 of the one string that is its value;
// neither that string nor a secret of an API key is kept. Request secrets are kept
// open. At a million keys a verification waits for memory five times, a key takes
// about a kilobyte, and [VerifierConfig].MaxEntries bounds it: what is too much is
// forgotten, at random, and read again.
//
// # Guessing
//
// A string without the checksum of a key, or with an id that was never given out
// (ids carry a MAC), is unknown without a look at the database, and leaves nothing
// in memory. So does a wrong secret of a key that is in memory, and a string that
// was never imported, as long as there are no weak keys. Weak keys, which can be
// guessed at all, are answered from memory once they are proven; guesses are
// limited to a few in a second, and what is more is fault.ErrUnavailable.
type Verifier struct {
	cfg     VerifierConfig
	peppers *Peppers
	brand   string
	salt    [sha256.Size]byte // of the digests in the cache
	cache   *cache
	local   *LocalLimiter // cfg.Limiter, if it is one
	owners  owners
	foreign foreign
	uses    uses
	loads   loads
	bases   sync.Pool // of *[]byte, for signature bases

	other  stats        // of what is no key that we know
	loaded atomic.Int64 // reads of the database
	shed   atomic.Int64
	heard  atomic.Int64  // DB.Tick when what is heard last was asked for
	ready  atomic.Bool   // Refresh was called
	newest atomic.Uint32 // generation of the pepper
	turn   chan struct{} // of Refresh
	next   int64         // leaf of the trail; of who has the turn
	known  int64         // generation of the pepper when Refresh was last called; the same
}

// NewVerifier returns a Verifier. Call Refresh once before use, and run Follow.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) {
	if cfg.DB == nil || cfg.Keys == nil || cfg.Partners == nil || cfg.Sealer == nil || cfg.Log == nil {
		return nil, errors.New("new verifier: DB, Keys, Partners, Sealer and Log are needed")
	}
	cfg.StaleFor = cmp.Or(cfg.StaleFor, time.Minute)
	cfg.MaxEntries = cmp.Or(cfg.MaxEntries, 2_000_000)
	v := &Verifier{cfg: cfg, peppers: cfg.Keys.peppers, brand: cfg.Keys.brand, cache: newCache(cfg.MaxEntries), turn: make(chan struct{}, 1)}
	_, _ = rand.Read(v.salt[:]) // never fails
	if v.cfg.Limiter == nil {
		v.cfg.Limiter = NewLocalLimiter(cfg.MaxEntries)
	}
	v.local, _ = v.cfg.Limiter.(*LocalLimiter)
	if v.cfg.Nonces == nil {
		v.cfg.Nonces = NewNonces(cfg.DB)
	}
	v.bases.New = func() any { return new(make([]byte, 0, 2048)) }
	v.loads.init()
	v.foreign.init()
	gen, _ := v.peppers.current()
	v.newest.Store(uint32(gen))
	cfg.Partners.changes.listen(v.changed)
	cfg.Usage.Source(v.collect)
	v.uses.init()
	return v, nil
}

// changed is called when this process has changed a key or, with id "", a partner.
func (v *Verifier) changed(partner, id string) {
	v.foreign.version.Add(1)
	v.foreign.made.Add(1)
	if id == "" {
		if o := v.owners.find(partner); o != nil {
			o.drop()
		}
		return
	}
	v.dropKey(partner, id)
}

func (v *Verifier) dropKey(partner, id string) {
	if k, ok := toCacheKey(id); ok {
		v.cache.drop(k)
	}
	if o := v.owners.find(partner); o != nil {
		o.dropSecrets()
	}
}

// Verify decides about an API key. An error is fault.ErrUnavailable: nobody knows.
func (v *Verifier) Verify(ctx context.Context, value string, need *Need) (Decision, error) {
	const tail = 1 + secretLength + sumLength
	if at := len(value) - tail - idLength; at > 0 && len(value) <= maxValue {
		k := cacheKey([]byte(value[at : at+idLength]))
		if e, s := v.cache.get(k); e != nil && e.own && e.holds(v.digest(value)) {
			// The string is, to the last byte, one that was accepted: it need not be parsed.
			if err := v.fresh(); err != nil {
				return Decision{}, err
			}
			s.hits.Add(1)
			if e.gen != v.newest.Load() {
				v.renew(e, value)
			}
			return v.decide(ctx, e, s, need)
		}
	}
	return v.verifyNew(ctx, value, need)
}

// digest is what the cache knows a value by. The salt makes it useless outside of
// this process.
func (v *Verifier) digest(value string) [sha256.Size]byte {
	var buf [sha256.Size + maxValue]byte
	n := copy(buf[:], v.salt[:])
	n += copy(buf[n:], value)
	return sha256.Sum256(buf[:n])
}

// fresh fails when changes were not heard for too long.
func (v *Verifier) fresh() error {
	if v.ready.Load() && v.cfg.DB.Tick()-time.Duration(v.heard.Load()) <= v.cfg.StaleFor {
		return nil
	}
	return v.notFresh()
}

func (v *Verifier) notFresh() error {
	if !v.ready.Load() {
		return fault.New(fault.ErrUnavailable, "not_ready", "verify: the keys' changes were not read yet: try again in a moment")
	}
	return fault.New(fault.ErrUnavailable, "stale", "verify: the database is out of reach, and whether keys were revoked meanwhile was not heard for more than %s", v.cfg.StaleFor)
}

// verifyNew verifies a value that is not in memory.
func (v *Verifier) verifyNew(ctx context.Context, value string, need *Need) (Decision, error) {
	if !wellFormed(value) {
		return v.refuse(ReasonMalformed), nil
	}
	k, ok := parseKey(value, v.brand)
	if !ok {
		if own(value, v.brand) {
			return v.refuse(ReasonUnknown), nil
		}
		return v.verifyForeign(ctx, value, need)
	}
	if !v.given(k.id) {
		return v.refuse(ReasonUnknown), nil
	}
	if err := v.fresh(); err != nil {
		return Decision{}, err
	}
	e, err := v.entry(ctx, k.id)
	if err != nil {
		return Decision{}, err
	}
	if e == nil || e.key.Kind != APIKey || e.key.Environment != k.env || (e.key.Class == ClassPublishable) != k.public {
		return v.refuse(ReasonUnknown), nil
	}
	pepper, e, err := v.pepper(ctx, e)
	if err != nil {
		return Decision{}, err
	}
	if e == nil || !e.key.matchSecret(pepper, k.secret) {
		return v.refuse(ReasonUnknown), nil
	}
	e.prove(v.digest(value))
	if e.gen != v.newest.Load() {
		v.renew(e, value)
	}
	return v.decide(ctx, e, v.shardOf(e), need)
}

// maxValue is how long a key may be, imported ones too.
const maxValue = 512

// wellFormed reports whether a string can be a key at all.
func wellFormed(value string) bool {
	if value == "" || len(value) > maxValue {
		return false
	}
	for i := range len(value) {
		if c := value[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// pepper returns the pepper of a key. One that was retired is that of a key that was
// hashed anew since it was read.
func (v *Verifier) pepper(ctx context.Context, e *entry) ([]byte, *entry, error) {
	for range 2 {
		pepper, err := v.peppers.find(ctx, e.key.PepperGen)
		if err == nil {
			return pepper, e, nil
		}
		if !errors.Is(err, fault.ErrNotFound) {
			return nil, nil, unavailable("read the pepper of a key", err)
		}
		v.cache.dropEntry(e)
		if e, err = v.entry(ctx, e.key.ID); e == nil || err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, nil
}

// refuse is the answer about what is no key that we know.
func (v *Verifier) refuse(r Reason) Decision {
	v.other.decisions[r].Add(1)
	return Decision{Reason: r}
}

func (v *Verifier) shardOf(e *entry) *shard {
	k, _ := toCacheKey(e.key.ID)
	return &v.cache.shards[k.shard()]
}

// decide judges a key whose value was presented.
func (v *Verifier) decide(ctx context.Context, e *entry, s *shard, need *Need) (Decision, error) {
	now := v.cfg.DB.Now()
	d, err := v.judge(ctx, e, need, now)
	if err != nil {
		return Decision{}, err
	}
	if d.Reason == ReasonOK {
		if err := v.take(ctx, e, need.cost(), now, &d); err != nil {
			return Decision{}, err
		}
	}
	s.decisions[d.Reason].Add(1)
	if d.Key != nil {
		v.cache.count(e, d.Reason, now)
	}
	return d, nil
}

// judge decides about all but the rate.
func (v *Verifier) judge(ctx context.Context, e *entry, need *Need, now time.Time) (Decision, error) {
	d, err := v.standing(ctx, e, need, now)
	if d.Reason == ReasonOK {
		d.Reason = e.access(d.Scopes, need)
	}
	return d, err
}

// standing decides whether a key is accepted at all.
func (v *Verifier) standing(ctx context.Context, e *entry, need *Need, now time.Time) (Decision, error) {
	if need != nil && (need.Partner != "" && need.Partner != e.owner.name || need.Environment != "" && need.Environment != e.key.Environment) {
		return Decision{Reason: ReasonUnknown}, nil
	}
	view := e.owner.view.Load()
	if view == nil {
		var err error
		if view, err = v.partner(ctx, e.owner); err != nil {
			return Decision{}, err
		}
		if view == nil {
			return Decision{Reason: ReasonUnknown}, nil
		}
	}
	d := Decision{Reason: ReasonRevoked, Key: e.key, Partner: view.partner, Scopes: e.scopes(view)}
	switch e.state(now) {
	case Active, Retiring:
		d.Reason = ReasonOK
		if view.partner.State != Active {
			d.Reason = ReasonSuspended
		}
	case Expired:
		d.Reason = ReasonExpired
	case Suspended:
		d.Reason = ReasonSuspended
	case Retired, Revoked:
	default: // a state that we don't know lets nobody in
	}
	return d, nil
}

// access decides whether a key that is accepted may do what is needed, from where
// it comes.
func (e *entry) access(scopes []string, need *Need) Reason {
	var none Need
	if need == nil {
		need = &none
	}
	if e.ranged && !inRanges(e.key.CIDRs, need.Address) {
		return ReasonAddress
	}
	if !hasAll(scopes, need.Scopes) {
		return ReasonScope
	}
	return ReasonOK
}

// take takes from the rate limit. It comes last, so that a request that is denied
// for another reason costs nothing.
func (v *Verifier) take(ctx context.Context, e *entry, cost int64, now time.Time, d *Decision) error {
	if e.rate == nil {
		return nil
	}
	var state RateState
	var ok bool
	var err error
	if v.local != nil {
		state, ok, err = v.local.takeFor(e, cost, now)
	} else {
		state, ok, err = v.cfg.Limiter.Take(ctx, e.key.Lineage, e.key.Rate, cost, now)
	}
	if err != nil {
		return unavailable("count a request against its rate limit", err)
	}
	d.Rate = state
	if !ok {
		d.Reason = ReasonRate
	}
	return nil
}

// cost is what a request takes from the rate limit.
func (n *Need) cost() int64 {
	if n == nil || n.Cost == 0 {
		return 1
	}
	return n.Cost
}

func inRanges(ranges []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap()
	if a.Zone() != "" {
		a = a.WithZone("")
	}
	for i := range ranges {
		if ranges[i].Contains(a) {
			return true
		}
	}
	return false
}

func hasAll(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

// unavailable makes every failure one that callers may retry.
func unavailable(what string, err error) error {
	if errors.Is(err, fault.ErrUnavailable) {
		return err
	}
	return fault.New(fault.ErrUnavailable, "verify_failed", "%s: %w", what, err)
}

// VerifierStats are figures of a Verifier, for metrics.
type VerifierStats struct {
	Entries  int           // keys in memory
	Hits     int64         // answered from memory
	Loads    int64         // read from the database
	Shed     int64         // unknown ones answered without a look, because there were too many
	Behind   time.Duration // since changes were last heard
	Decision [reasons]int64
}

// Stats returns the present figures.
func (v *Verifier) Stats() VerifierStats {
	out := VerifierStats{Entries: v.cache.len(), Loads: v.loaded.Load(), Shed: v.shed.Load()}
	if v.ready.Load() {
		out.Behind = v.cfg.DB.Tick() - time.Duration(v.heard.Load())
	}
	add := func(s *stats) {
		out.Hits += s.hits.Load()
		for i := range s.decisions {
			out.Decision[i] += s.decisions[i].Load()
		}
	}
	add(&v.other)
	for i := range v.cache.shards {
		add(&v.cache.shards[i].stats)
	}
	return out
}

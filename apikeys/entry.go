package apikeys

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotunda-dev/rotunda/verify/httpsig"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// entry is a key in memory, and what was counted of it. What most verifications
// need of it has 128 bytes, two lines of a processor's cache: at a million keys it
// is waiting for memory that takes the time.
type entry struct {
	key    *Key
	owner  *owner
	grants *grants
	rate   *RateLimit // nil: none
	debt   *debt      // of its lineage; guarded by the shard of the LocalLimiter
	until  int64      // Unix microseconds: before it the key is accepted, as far as its row says
	digest [sha256.Size]byte

	accepted atomic.Int64
	usedAt   atomic.Int64 // Unix microseconds
	next     *entry       // in cache.dirty
	more     *rarely

	proof      atomic.Uint32 // says whether digest is that of the key's value
	listed     atomic.Bool   // in cache.dirty
	gen        uint32        // of the pepper
	own        bool          // of Rotunda's own form
	ranged     bool          // only accepted from some addresses
	limitShard uint8
}

// rarely is what most verifications don't need of an entry.
type rarely struct {
	denied  [reasons]atomic.Int64
	renewed atomic.Int64 // generation of the pepper under which its hash is about to be written
	sign    *signing     // of a request secret
}

// What is known of the value of an entry.
const (
	unproven = iota
	proving
	proven
	dropped // it may not be used any more
)

// signing is what verifies requests.
type signing struct {
	key  *httpsig.Key
	hook webhook.Secret // zero when it can't verify webhooks
}

// grants are scopes that keys of a partner were given, and which of them are in force.
type grants struct {
	scopes []string
	class  Class
	view   atomic.Pointer[scopeView]
}

// scopeView is what Partner.Effective gives for one state of the partner.
type scopeView struct {
	of     *partnerView
	scopes []string
}

// partnerView is one state of a partner.
type partnerView struct {
	partner *Partner
	policy  httpsig.Policy
}

// owner is a partner in memory. Its view is nil when it has to be read.
type owner struct {
	name  string
	view  atomic.Pointer[partnerView]
	names gate // looks for names of its request secrets that find nothing

	mu      sync.Mutex
	epoch   uint64              // grows whenever view is dropped
	secrets map[string]versions // by name
	shared  map[string]any      // what many keys have in common: *grants and *RateLimit
}

// versions are the ids of the versions of a request secret that had not ended.
type versions struct {
	ids  []string
	read time.Duration // DB.Tick
}

// holds reports whether a digest is that of the key's value. It says no when the
// value is not proven yet.
func (e *entry) holds(digest [sha256.Size]byte) bool {
	return e.proof.Load() == proven && subtle.ConstantTimeCompare(e.digest[:], digest[:]) == 1
}

// prove remembers the digest of the key's value.
func (e *entry) prove(digest [sha256.Size]byte) {
	if e.proof.CompareAndSwap(unproven, proving) {
		e.digest = digest
		e.proof.CompareAndSwap(proving, proven)
	}
}

// scopes are those of the key that are in force.
func (e *entry) scopes(v *partnerView) []string {
	w := e.grants.view.Load()
	if w == nil || w.of != v {
		k := &Key{Scopes: e.grants.scopes, Class: e.grants.class}
		w = &scopeView{of: v, scopes: slices.Clip(v.partner.Effective(k))}
		e.grants.view.Store(w)
	}
	return w.scopes
}

// state is the key's state at now.
func (e *entry) state(now time.Time) State {
	if now.UnixMicro() < e.until {
		return Active // or retiring
	}
	return e.key.State(now)
}

// newEntry makes an entry. It changes the key, which nobody else has yet, so that
// what many keys say is in memory once.
func newEntry(key *Key, o *owner, sign *signing) *entry {
	e := &entry{key: key, owner: o, gen: uint32(key.PepperGen), own: key.Origin == OriginRotunda, ranged: len(key.CIDRs) > 0, more: &rarely{sign: sign}}
	if key.tampered {
		e.until = 0
	} else if key.Stored == Active || key.Stored == Retiring {
		e.until = forever
		for _, end := range []time.Time{key.ExpiresAt, key.GraceEndsAt} {
			if !end.IsZero() {
				e.until = min(e.until, end.UnixMicro())
			}
		}
	}
	e.grants = shared(o, "scopes "+string(key.Class)+" "+strings.Join(key.Scopes, " "), func() *grants {
		return &grants{scopes: key.Scopes, class: key.Class}
	})
	if !key.Rate.None() {
		e.rate = shared(o, fmt.Sprint("rate ", key.Rate), func() *RateLimit { return new(key.Rate) })
	}
	key.Scopes, key.Partner, key.seal, key.lookup, key.sealed = e.grants.scopes, o.name, nil, nil, nil
	if len(key.Metadata) == 0 {
		key.Metadata = nil
	}
	if key.Lineage == key.ID {
		key.Lineage = key.ID // one string, not two that are equal
	}
	key.Kind = constant(key.Kind, APIKey, RequestSecret)
	key.Stored = constant(key.Stored, Active, Retiring, Retired, Revoked, Suspended)
	key.Class = constant(key.Class, ClassSecret, ClassPublishable)
	key.Origin = constant(key.Origin, OriginRotunda, OriginSHA256, OriginRaw)
	key.Environment = shared(o, "environment "+key.Environment, func() string { return key.Environment })
	return e
}

// constant returns the one of the constants that s is equal to.
func constant[T ~string](s T, constants ...T) T {
	for _, c := range constants {
		if s == c {
			return c
		}
	}
	return s
}

// shared returns what was first made under a name for keys of a partner.
func shared[T any](o *owner, name string, make func() T) T {
	const most = 10_000
	o.mu.Lock()
	defer o.mu.Unlock()
	if x, ok := o.shared[name]; ok {
		return x.(T)
	}
	if o.shared == nil || len(o.shared) >= most {
		o.shared = map[string]any{}
	}
	x := make()
	o.shared[name] = x
	return x
}

// owners holds partners by name. Only partners that are there get a place.
type owners struct {
	mu sync.RWMutex
	of map[string]*owner
}

// get returns the place of a partner that is known to be there.
func (o *owners) get(name string) *owner {
	if p := o.find(name); p != nil {
		return p
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.of[name]
	if p == nil {
		if o.of == nil {
			o.of = map[string]*owner{}
		}
		p = &owner{name: name, names: gate{every: time.Second / absentRate, burst: absentRate}}
		o.of[name] = p
	}
	return p
}

// find returns the place of a partner, or nil.
func (o *owners) find(name string) *owner {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.of[name]
}

// dropAll has all partners read again.
func (o *owners) dropAll() {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, p := range o.of {
		p.drop()
	}
}

// drop has the partner read again when it is next needed.
func (o *owner) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.epoch++
	o.view.Store(nil)
	clear(o.secrets)
}

// put keeps what was read of the partner in an epoch.
func (o *owner) put(view *partnerView, epoch uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.epoch == epoch {
		o.view.Store(view)
	}
}

// at returns the present epoch.
func (o *owner) at() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.epoch
}

// dropSecrets has the versions of request secrets found again.
func (o *owner) dropSecrets() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.epoch++ // of what is being read
	clear(o.secrets)
}

package apikeys

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"hash/maphash"
	"math/bits"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

const (
	limitShards = 64
	limitMax    = 2_000_000       // limits with something used up that are remembered
	limitSweep  = 4               // that are looked at for each new one
	limitIdle   = time.Minute     // without a request, and nothing used up: forgotten
	limitJitter = 2 * time.Second // by which instants of one clock may come in the wrong order
)

// RateState is what is left of a rate limit.
type RateState struct {
	Limit      RateLimit
	Remaining  int64
	Reset      time.Duration // until all of it is there again
	RetryAfter time.Duration // of a denied request
}

// Limiter counts requests against rate limits, in this process or for all replicas.
type Limiter interface {
	// Take takes cost from the limit of a key ("lineage") at now, or nothing when
	// that is too much: then ok is false. An error is fault.ErrUnavailable.
	Take(ctx context.Context, key string, limit RateLimit, cost int64, now time.Time) (state RateState, ok bool, err error)
}

// LocalLimiter is the [Limiter] of one process. It never fails.
//
// It is GCRA, kept as a debt: the time that must go by until the whole burst is
// there again. Each request adds cost · Window / Quota to it, and is let through
// when the debt is then not more than Burst · Window / Quota. That is computed
// without rounding, up to 146 years. A debt that has gone by is forgotten, which changes nothing.
//
// When the clock goes back debts stop for at most two seconds; when it goes
// forward what is gained is one burst at most. When too many keys are in debt at
// once, the smallest debts of a sample are forgotten.
type LocalLimiter struct {
	max    int
	seed   maphash.Seed
	shards [limitShards]limitShard
}

type limitShard struct {
	mu    sync.Mutex
	debts map[limitKey]*debt
	_     [40]byte // keeps the locks of two shards on two cache lines
}

type limitKey [16]byte

// debt is exact: whole nanoseconds, and parts of one out of quota.
type debt struct {
	at    int64 // Unix time in nanoseconds
	whole int64
	part  int64
	quota int64 // 0: part is 0
	gone  bool  // forgotten: who still holds it has to look for the new one
}

// NewLocalLimiter returns a limiter that remembers up to max keys; 0 is 2,000,000.
func NewLocalLimiter(max int) *LocalLimiter {
	l := &LocalLimiter{max: cmp.Or(max, limitMax), seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].debts = map[limitKey]*debt{}
	}
	return l
}

func (r RateLimit) burst() int64 { return cmp.Or(r.Burst, r.Quota) }

// Take implements [Limiter].
func (l *LocalLimiter) Take(_ context.Context, key string, limit RateLimit, cost int64, now time.Time) (RateState, bool, error) {
	if err := checkTake(limit, cost); err != nil {
		return RateState{}, false, err
	}
	k := newLimitKey(key)
	s := &l.shards[l.place(k)]
	s.mu.Lock()
	defer s.mu.Unlock()
	state, ok := s.find(k, now.UnixNano(), l.most()).take(limit, cost, now.UnixNano())
	return state, ok, nil
}

// takeFor is Take for an entry, which keeps its debt at hand.
func (l *LocalLimiter) takeFor(e *entry, cost int64, now time.Time) (RateState, bool, error) {
	if err := checkTake(*e.rate, cost); err != nil {
		return RateState{}, false, err
	}
	s := &l.shards[e.limitShard]
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.debt == nil || e.debt.gone {
		k := newLimitKey(e.key.Lineage)
		if l.place(k) != e.limitShard {
			return RateState{}, false, fmt.Errorf("the entry of %s is another limiter's", e.key.ID)
		}
		e.debt = s.find(k, now.UnixNano(), l.most())
	}
	state, ok := e.debt.take(*e.rate, cost, now.UnixNano())
	return state, ok, nil
}

func (l *LocalLimiter) place(k limitKey) uint8 {
	return uint8(maphash.Bytes(l.seed, k[:]) % limitShards)
}

func (l *LocalLimiter) most() int { return max(1, l.max/limitShards) }

// find returns the debt of a key. The caller holds the lock.
func (s *limitShard) find(k limitKey, at int64, most int) *debt {
	if d := s.debts[k]; d != nil {
		return d
	}
	return s.make(k, at, most)
}

func checkTake(limit RateLimit, cost int64) error {
	if limit.Quota <= 0 || limit.Window <= 0 || limit.burst() <= 0 || cost < 0 {
		return badRate(limit, cost)
	}
	return nil
}

func badRate(limit RateLimit, cost int64) error {
	return fault.Invalid("rate", "bad_rate", "take %d of a limit of %d in %s with a burst of %d: all of them must be positive", cost, limit.Quota, limit.Window, limit.Burst)
}

// newLimitKey makes a key of fixed size. Lineages, which have 16 characters, are
// taken as they are.
func newLimitKey(s string) (k limitKey) {
	if len(s) == len(k) {
		copy(k[:], s)
		return k
	}
	sum := sha256.Sum256([]byte(s))
	copy(k[:], sum[:])
	return k
}

// make makes a debt of nothing. It forgets some others that are paid, and when
// there are too many one that is not. The caller holds the lock.
func (s *limitShard) make(k limitKey, at int64, most int) *debt {
	seen, least := 0, debt{}
	var of limitKey
	for other, d := range s.debts { // begins anywhere
		if seen++; seen > limitSweep {
			break
		}
		left := *d
		left.pay(at)
		if left.whole == 0 && left.part == 0 && at-d.at >= int64(limitIdle) {
			d.gone = true
			delete(s.debts, other)
		} else if of == (limitKey{}) || left.whole < least.whole {
			least, of = left, other
		}
	}
	if len(s.debts) >= most && of != (limitKey{}) {
		s.debts[of].gone = true
		delete(s.debts, of)
	}
	d := &debt{at: at}
	s.debts[k] = d
	return d
}

// pay takes off what has gone by.
func (d *debt) pay(at int64) {
	gone := at - d.at
	switch {
	case gone < -int64(limitJitter):
		d.at = at // the clock was set back
		return
	case gone <= 0:
		return
	case gone > d.whole || gone == d.whole && d.part == 0:
		d.whole, d.part = 0, 0
	default:
		d.whole -= gone
	}
	d.at = at
}

func (d *debt) take(limit RateLimit, cost, at int64) (RateState, bool) {
	d.pay(at)
	if d.quota != limit.Quota {
		d.quota, d.part = limit.Quota, 0 // the limit was changed
	}
	most, mostPart := scale(limit.burst(), limit)
	if d.whole > most {
		d.whole, d.part = most, mostPart
	}
	state := RateState{Limit: limit}
	ok := false
	if cost <= limit.burst() { // else there is never enough
		add, addPart := scale(cost, limit)
		whole, part := d.whole+add, d.part+addPart
		if part >= limit.Quota {
			whole, part = whole+1, part-limit.Quota
		}
		if ok = whole < most || whole == most && part <= mostPart; ok {
			d.whole, d.part = whole, part
		} else {
			over := whole - most
			if part > mostPart {
				over++
			}
			state.RetryAfter = time.Duration(over)
		}
	}
	state.Reset = time.Duration(d.whole)
	if d.part > 0 {
		state.Reset++
	}
	if cost > limit.burst() {
		state.RetryAfter = state.Reset
	}
	state.Remaining = d.remaining(limit, most, mostPart)
	return state, ok
}

// remaining is how many requests of cost 1 would be let through now.
func (d *debt) remaining(limit RateLimit, most, mostPart int64) int64 {
	whole, part := most-d.whole, mostPart-d.part
	if part < 0 {
		whole, part = whole-1, part+limit.Quota
	}
	if whole < 0 {
		return 0
	}
	// (whole + part/Quota) / (Window/Quota) = (whole·Quota + part) / Window
	hi, lo := bits.Mul64(uint64(whole), uint64(limit.Quota))
	lo, carry := bits.Add64(lo, uint64(part), 0)
	n, _ := bits.Div64(hi+carry, lo, uint64(limit.Window))
	return int64(n)
}

// scale is n · Window / Quota: nanoseconds, and parts of one out of Quota. It is
// at most 146 years.
func scale(n int64, limit RateLimit) (whole, part int64) {
	hi, lo := bits.Mul64(uint64(n), uint64(limit.Window))
	if hi >= uint64(limit.Quota) {
		return forever, 0
	}
	q, r := bits.Div64(hi, lo, uint64(limit.Quota))
	if q >= forever {
		return forever, 0
	}
	return int64(q), int64(r)
}

const forever = 1<<62 - 1 // nanoseconds: two of them, and one for their parts, can be added

// Len returns how many keys are remembered.
func (l *LocalLimiter) Len() (n int) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		n += len(s.debts)
		s.mu.Unlock()
	}
	return n
}

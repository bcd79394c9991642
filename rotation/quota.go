package rotation

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"time"
)

// quotas spreads the writes of this process to each store over time, by the store's quota.
// Other processes have quotas of their own: what they exceed together the store throttles,
// and that is tried again like any throttled effect.
type quotas struct {
	mu     sync.Mutex
	next   map[string]time.Duration // by store: when its next write is due
	waits  map[string]time.Duration // by effect: the instant that it was given
	pruned time.Duration
}

const (
	quotaBurst = time.Second      // of writes that may come at once
	quotaKeep  = 10 * time.Minute // for effects that never come back
)

// quotaError says that an effect was not tried yet.
type quotaError struct {
	store string
	wait  time.Duration
}

func (e *quotaError) Error() string {
	return fmt.Sprintf("store %s: by its quota it is the turn of others for %s", e.store, e.wait)
}

// take gives an effect its turn: zero is now; later it comes back, and the turn is its own.
func (q *quotas) take(store, key string, perSecond float64, now time.Duration) (wait time.Duration) {
	if perSecond <= 0 {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if at, ok := q.waits[key]; ok {
		if at > now {
			return at - now
		}
		delete(q.waits, key)
		return 0
	}
	if q.next == nil {
		q.next, q.waits = map[string]time.Duration{}, map[string]time.Duration{}
	}
	if now-q.pruned > quotaKeep {
		for k, at := range q.waits {
			if now-at > quotaKeep {
				delete(q.waits, k)
			}
		}
		q.pruned = now
	}
	at := max(q.next[store], now-quotaBurst) + time.Duration(float64(time.Second)/perSecond)
	q.next[store] = at
	if at <= now {
		return 0
	}
	q.waits[key] = at
	return at - now
}

// freshID is another id for a run's value, in the form of a UUID (RFC 9562, version 8): the same
// whoever asks.
func freshID(run string, generation int64) string {
	b := sha256.Sum256(fmt.Appendf(nil, "%s/%d", run, generation))
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

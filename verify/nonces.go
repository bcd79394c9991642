package verify

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Errors of a [NonceStore].
var (
	ErrReplay      = errors.New("the nonce was used before")
	ErrBeforeStart = errors.New("the signature is older than what this process remembers, and so may have been used: sign the request anew")
	ErrFull        = errors.New("the store of nonces is full")
)

// NoncesConfig bounds a store in memory.
type NoncesConfig struct {
	// Max is how many nonces are remembered. 0: 1,000,000, which is about 100 MB and
	// 3,300 requests a second for five minutes. When it is full, requests are
	// refused: to forget one would be to allow its replay.
	Max int
	// MaxPerKey is how many of them one key may take, so that one signer does not
	// shut out the others. 0: a quarter of Max.
	MaxPerKey int
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Nonces is a [NonceStore] in memory, for a service of one process. A signature
// made before the store was is refused, because it may have been used already; and so
// is one whose nonce may have been forgotten, should the clock be set back.
type Nonces struct {
	max, perKey int
	now         func() time.Time
	start       time.Time

	mu     sync.Mutex
	used   map[nonceID]bool
	counts map[string]int
	expire map[int64][]expiring // by slot of their end
	swept  int64                // slots before this one are gone
}

type nonceID [16]byte

type expiring struct {
	id  nonceID
	key string
}

const nonceSlot = 5 * time.Second

// NewNonces makes a store.
func NewNonces(cfg NoncesConfig) *Nonces {
	if cfg.Max <= 0 {
		cfg.Max = 1_000_000
	}
	if cfg.MaxPerKey <= 0 {
		cfg.MaxPerKey = max(cfg.Max/4, 1)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	n := &Nonces{
		max: cfg.Max, perKey: cfg.MaxPerKey, now: cfg.Now, start: cfg.Now().Truncate(time.Second),
		used: map[nonceID]bool{}, counts: map[string]int{}, expire: map[int64][]expiring{},
	}
	n.swept = slotOf(n.start)
	return n
}

func slotOf(t time.Time) int64 { return t.Unix() / int64(nonceSlot/time.Second) }

// Use implements [NonceStore].
func (n *Nonces) Use(_ context.Context, u Nonce) error {
	if u.Created.Before(n.start) {
		return ErrBeforeStart
	}
	// The length keeps the two apart; half a SHA-256 has no collisions that anybody finds.
	b := binary.BigEndian.AppendUint64(nil, uint64(len(u.KeyID)))
	sum := sha256.Sum256(append(append(b, u.KeyID...), u.Value...))
	id := nonceID(sum[:16])
	now := n.now()

	n.mu.Lock()
	defer n.mu.Unlock()
	n.sweep(slotOf(now))
	slot := slotOf(u.Until)
	switch {
	case n.used[id]:
		return ErrReplay
	case slot < n.swept:
		// The clock was set back: this one may have been used, and forgotten.
		return ErrBeforeStart
	case len(n.used) >= n.max:
		return fmt.Errorf("%w: it holds %d", ErrFull, n.max)
	case n.counts[u.KeyID] >= n.perKey:
		return fmt.Errorf("%w: one key has %d in it", ErrFull, n.perKey)
	}
	n.used[id] = true
	n.counts[u.KeyID]++
	n.expire[slot] = append(n.expire[slot], expiring{id, u.KeyID})
	return nil
}

// sweep forgets the nonces that ended in slots before this one. A nonce stays to
// the end of its slot, which is late and never early.
func (n *Nonces) sweep(slot int64) {
	if slot <= n.swept {
		return
	}
	for s, list := range n.expire {
		if s >= slot {
			continue
		}
		for _, e := range list {
			delete(n.used, e.id)
			if n.counts[e.key]--; n.counts[e.key] == 0 {
				delete(n.counts, e.key)
			}
		}
		delete(n.expire, s)
	}
	n.swept = slot
}

package apikeys

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"
)

const (
	cacheShards  = 256
	maxAbsent    = 10_000          // ids that are remembered not to be there
	absentFor    = 5 * time.Second // at most, however nobody says that they are there now
	digestPrefix = 16
)

// cache holds keys by id, and imported ones by a digest of their value too.
//
// What is dropped while it is read must not come in afterwards: each shard has an
// epoch that grows with every drop in it, and put takes only what was read within
// one epoch.
type cache struct {
	shards [cacheShards]shard
	values [cacheShards]valueShard
	most   int // entries of a shard
	dirty  atomic.Pointer[entry]
}

// cacheKey is an id, or the beginning of a digest.
type cacheKey [idLength]byte

type shard struct {
	mu      sync.RWMutex
	entries map[cacheKey]*entry
	absent  map[cacheKey]absence
	epoch   uint64
	stats
}

// stats are counted in the shard of a key, so that two processors seldom write to
// the same place.
type stats struct {
	hits      atomic.Int64
	decisions [reasons]atomic.Int64
}

// absence is that a row was not there, or not to be believed.
type absence struct {
	until time.Duration // DB.Tick
}

type valueShard struct {
	mu      sync.RWMutex
	entries map[cacheKey]*entry
}

func newCache(most int) *cache {
	c := &cache{most: max(1, most/cacheShards)}
	for i := range c.shards {
		c.shards[i].entries = map[cacheKey]*entry{}
		c.shards[i].absent = map[cacheKey]absence{}
		c.values[i].entries = map[cacheKey]*entry{}
	}
	return c
}

// toCacheKey takes an id; longer and shorter strings are no ids.
func toCacheKey(id string) (k cacheKey, ok bool) {
	return k, copy(k[:], id) == len(k) && len(id) == len(k)
}

func (k *cacheKey) shard() int {
	// Base62 digits, all of them random or made of random ones.
	return int(binary.LittleEndian.Uint64(k[4:])*0x9e3779b97f4a7c15>>56) % cacheShards
}

// get returns the entry of an id.
func (c *cache) get(k cacheKey) (e *entry, s *shard) {
	s = &c.shards[k.shard()]
	s.mu.RLock()
	e = s.entries[k]
	s.mu.RUnlock()
	return e, s
}

// missing reports whether an id is known not to be there, and in which epoch of
// its shard.
func (c *cache) missing(k cacheKey, tick time.Duration) (yes bool, epoch uint64) {
	s := &c.shards[k.shard()]
	s.mu.RLock()
	defer s.mu.RUnlock()
	a, ok := s.absent[k]
	return ok && tick < a.until, s.epoch
}

// put keeps what was read in an epoch of its shard. It returns the entry that is
// there: an older one when it was put by somebody else.
func (c *cache) put(k cacheKey, e *entry, epoch uint64) *entry {
	s := &c.shards[k.shard()]
	s.mu.Lock()
	if s.epoch != epoch {
		s.mu.Unlock()
		e.proof.Store(dropped) // good for those who wait for it, and nobody else
		return e
	}
	if old := s.entries[k]; old != nil {
		s.mu.Unlock()
		return old
	}
	var out *entry
	if len(s.entries) >= c.most {
		for other, old := range s.entries { // begins anywhere
			delete(s.entries, other)
			out = old
			break
		}
	}
	delete(s.absent, k)
	s.entries[k] = e
	s.mu.Unlock()
	if out != nil {
		c.forget(out)
	}
	return e
}

// putAbsent remembers that there is no such row, or none to be believed.
func (c *cache) putAbsent(k cacheKey, epoch uint64, until time.Duration) {
	s := &c.shards[k.shard()]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != epoch {
		return
	}
	if len(s.absent) >= maxAbsent/cacheShards+1 {
		clear(s.absent)
	}
	s.absent[k] = absence{until: until}
}

// drop forgets an id, and refuses what is being read of it.
func (c *cache) drop(k cacheKey) {
	s := &c.shards[k.shard()]
	s.mu.Lock()
	s.epoch++
	e := s.entries[k]
	delete(s.entries, k)
	delete(s.absent, k)
	s.mu.Unlock()
	if e != nil {
		c.forget(e)
	}
}

// dropEntry forgets an entry, if it is still the one of its id.
func (c *cache) dropEntry(e *entry) {
	k, _ := toCacheKey(e.key.ID)
	s := &c.shards[k.shard()]
	s.mu.Lock()
	if s.entries[k] == e {
		s.epoch++
		delete(s.entries, k)
	}
	s.mu.Unlock()
	c.forget(e)
}

// dropAll forgets everything.
func (c *cache) dropAll() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.epoch++
		old := s.entries
		s.entries, s.absent = map[cacheKey]*entry{}, map[cacheKey]absence{}
		s.mu.Unlock()
		for _, e := range old {
			c.forget(e)
		}
	}
}

// forget takes an entry that is no more in its shard out of reach. What was counted
// of it is still in cache.dirty.
func (c *cache) forget(e *entry) {
	if e.proof.Swap(dropped) != proven || e.own {
		return
	}
	k := valueKey(e.digest)
	s := &c.values[k.shard()]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[k] == e {
		delete(s.entries, k)
	}
}

func valueKey(digest [sha256.Size]byte) cacheKey { return cacheKey(digest[:digestPrefix]) }

// byValue returns the imported key with a digest.
func (c *cache) byValue(digest [sha256.Size]byte) *entry {
	k := valueKey(digest)
	s := &c.values[k.shard()]
	s.mu.RLock()
	e := s.entries[k]
	s.mu.RUnlock()
	if e == nil || !e.holds(digest) {
		return nil
	}
	return e
}

// putValue lets an imported key be found by the digest of its value.
func (c *cache) putValue(e *entry, digest [sha256.Size]byte) {
	k := valueKey(digest)
	s := &c.values[k.shard()]
	s.mu.Lock()
	defer s.mu.Unlock()
	if !e.holds(digest) { // asked under the lock, which forget takes after it has said so
		return
	}
	if len(s.entries) >= c.most {
		for other := range s.entries {
			delete(s.entries, other)
			break
		}
	}
	s.entries[k] = e
}

// len returns how many keys are in memory.
func (c *cache) len() (n int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		n += len(s.entries)
		s.mu.RUnlock()
	}
	return n
}

// count counts a verification. It must be called before the caller learns of it.
func (c *cache) count(e *entry, r Reason, now time.Time) {
	if r == ReasonOK {
		e.accepted.Add(1)
		at := now.UnixMicro()
		for old := e.usedAt.Load(); at > old && !e.usedAt.CompareAndSwap(old, at); old = e.usedAt.Load() {
		}
	} else {
		e.more.denied[r].Add(1)
	}
	// Counted first, listed then: collect does it the other way round, so nothing
	// is counted in an entry that nobody will look at.
	if !e.listed.Load() && e.listed.CompareAndSwap(false, true) {
		for {
			head := c.dirty.Load()
			e.next = head
			if c.dirty.CompareAndSwap(head, e) {
				return
			}
		}
	}
}

// collect calls f with each entry that was used since it was last called.
func (c *cache) collect(f func(e *entry)) {
	for e := c.dirty.Swap(nil); e != nil; {
		next := e.next
		e.next = nil
		e.listed.Store(false) // from here on it may be listed anew
		f(e)
		e = next
	}
}

package server

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	maxClients = 50_000 // told apart at once by one limiter
	shards     = 16
)

// limiter bounds requests per client address; an IPv6 client is its /64. When
// it keeps as many clients as it can, the others pass: what it guards is cheap,
// and one bound for all of them would let a flood of addresses shut everybody out.
type limiter struct {
	rate  rate.Limit
	burst int
	part  [shards]shard
}

type shard struct {
	mu      sync.Mutex
	clients map[netip.Addr]*rate.Limiter
	swept   time.Time
}

// sweep forgets clients that have been quiet for long enough to have all of
// their burst again. It runs at most once a second, so that a flood of
// addresses can't make every request pay for it.
func (s *shard) sweep(now time.Time, burst int) {
	if now.Sub(s.swept) < time.Second && !now.Before(s.swept) {
		return
	}
	s.swept = now
	for a, c := range s.clients {
		if c.TokensAt(now) >= float64(burst) {
			delete(s.clients, a)
		}
	}
}

func newLimiter(perSecond float64, burst int) *limiter {
	l := &limiter{rate: rate.Limit(perSecond), burst: burst}
	for i := range l.part {
		l.part[i].clients = map[netip.Addr]*rate.Limiter{}
	}
	return l
}

// shard returns the part that keeps a client, and what it is kept as.
func (l *limiter) shard(client netip.Addr) (*shard, netip.Addr) {
	if client.Is6() && !client.Is4In6() {
		if p, err := client.Prefix(64); err == nil {
			client = p.Addr()
		}
	}
	b := client.As16()
	return &l.part[(b[15]^b[14]^b[7]^b[6])%shards], client
}

// allow takes one request of a client at now.
func (l *limiter) allow(client netip.Addr, now time.Time) bool {
	p, client := l.shard(client)
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.clients[client]
	if c == nil {
		if len(p.clients) >= maxClients/shards {
			p.sweep(now, l.burst)
		}
		if len(p.clients) >= maxClients/shards {
			return true
		}
		c = rate.NewLimiter(l.rate, l.burst)
		p.clients[client] = c
	}
	return c.AllowN(now, 1)
}

// peek reports whether a client has anything left, without taking it.
func (l *limiter) peek(client netip.Addr, now time.Time) bool {
	p, client := l.shard(client)
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.clients[client]
	return c == nil || c.TokensAt(now) >= 1
}

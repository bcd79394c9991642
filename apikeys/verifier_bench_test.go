package apikeys

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// crowd is a verifier with n keys in memory, all proven, and their values.
func crowd(b testing.TB, n int) (*desk, []string) {
	b.Helper()
	d := newDesk(b, storetest.SQLite(b))
	d.start(b, VerifierConfig{StaleFor: 1 << 62})
	d.db.Now, d.db.Tick = time.Now, func() time.Duration { return time.Since(epoch) }
	d.refresh(b)
	p := &Partner{Name: "acme", State: Active, Scopes: []string{"orders:read", "orders:write", "invoices:read"}}
	o := d.owners.get("acme")
	o.put(newPartnerView(p), o.at())
	gen, pepper := d.peppers.current()
	values := make([]string, n)
	for i := range values {
		s, v := writeKey(brand, keyString{env: "live", id: d.peppers.newID(), secret: random(secretLength, 32)})
		values[i] = v.RevealString()
		k := &Key{
			ID: s.id, Kind: APIKey, Partner: "acme", Name: fmt.Sprint("key ", i), Scopes: []string{"orders:read", "orders:write"}, Environment: "live", Class: ClassSecret, Stored: Active,
			Rate: RateLimit{Quota: 1_000_000, Window: 100 * time.Millisecond}, Origin: OriginRotunda, Lineage: s.id, PepperGen: gen, hash: apiKeyHash(pepper, "acme", s.secret), CreatedAt: epoch, ExpiresAt: epoch.AddDate(10, 0, 0),
		}
		id, _ := toCacheKey(k.ID)
		_, epoch := d.cache.missing(id, 0)
		e := newEntry(k, o, nil)
		e.limitShard = d.local.place(newLimitKey(k.Lineage))
		e = d.cache.put(id, e, epoch)
		e.prove(d.digest(values[i]))
	}
	return d, values
}

// BenchmarkVerify is the verification of a key in memory, each time another one, all
// checks and its rate limit included, beside the floor: one SHA-256 of the value.
func BenchmarkVerify(b *testing.B) {
	need := &Need{Scopes: []string{"orders:read"}, Address: here}
	for _, n := range []int{1, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) {
			d, values := crowd(b, n)
			verify := func(i int) {
				got, err := d.Verify(context.Background(), values[i], need)
				if err != nil || got.Reason != ReasonOK {
					b.Fatal(got.Reason, err)
				}
			}
			for i := range values {
				verify(i) // its debt is there
			}
			runtime.GC()
			b.Run("one", func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					i = (i + 7919) % n
					verify(i)
				}
			})
			b.Run("parallel", func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for i := 0; pb.Next(); {
						i = (i + 7919) % n
						verify(i)
					}
				})
			})
			b.Run("floor", func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					i = (i + 7919) % n
					var buf [128]byte
					if sha256.Sum256(buf[:copy(buf[:], values[i])])[0] == 1 && n == 0 {
						b.Fatal()
					}
				}
			})
		})
	}
}

// memoryNonces are nonces without a database.
type memoryNonces struct {
	mu    sync.Mutex
	spent map[string]struct{}
}

func (m *memoryNonces) Spend(_ context.Context, keyID, nonce string, _ time.Time) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := keyID + nonce
	if _, old := m.spent[name]; old {
		return false, nil
	}
	if len(m.spent) > 100_000 {
		clear(m.spent)
	}
	m.spent[name] = struct{}{}
	return true, nil
}

// BenchmarkVerifyRequest is the verification of a signed request of 1 KiB (RFC 9421,
// HMAC-SHA-256), everything included but for the database of nonces, beside the
// floor: the HMAC of its base and the SHA-256 of its body.
func BenchmarkVerifyRequest(b *testing.B) {
	d := newDesk(b, storetest.SQLite(b))
	d.start(b, VerifierConfig{Nonces: &memoryNonces{spent: map[string]struct{}{}}})
	d.partner(b, "acme", "a")
	k, key, _ := d.secret(b, KeySpec{Partner: "acme", Scopes: []string{"a"}, Rate: RateLimit{Quota: 1_000_000_000, Window: time.Second}})
	requests := make([]*Request, 256)
	for i := range requests {
		requests[i] = signed(b, k.ID, key, d.clock.Now(), nil)
		requests[i].Need.Scopes = []string{"a"}
	}
	b.Run("all", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if i%len(requests) == 0 {
				clear(d.cfg.Nonces.(*memoryNonces).spent)
			}
			got, _, err := d.VerifyRequest(context.Background(), requests[i%len(requests)])
			if err != nil || got.Reason != ReasonOK {
				b.Fatal(got.Reason, err)
			}
		}
	})
	b.Run("floor", func(b *testing.B) {
		sig, err := httpsig.Parse(&requests[0].Message, "")
		if err != nil {
			b.Fatal(err)
		}
		base, err := sig.Base(nil, &requests[0].Message)
		if err != nil {
			b.Fatal(err)
		}
		h := hmac.New(sha256.New, make([]byte, 64))
		sum := make([]byte, 0, sha256.Size)
		b.ReportAllocs()
		for b.Loop() {
			digest := sha256.Sum256(requests[0].Body)
			h.Reset()
			h.Write(base)
			if hmac.Equal(h.Sum(sum), digest[:]) {
				b.Fatal("equal")
			}
		}
	})
}

// BenchmarkMemory is what a million keys in memory take, read from the database as
// keys with a name, two scopes and an end are.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		before := heap()
		const n = 1_000_000
		d, values := crowd(b, n)
		clear(values)
		b.ReportMetric(float64(heap()-before-16*n)/n, "B/key")
		if d.Stats().Entries != n {
			b.Fatal(d.Stats().Entries)
		}
	}
}

package audit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// usageBed is a database whose clocks the test moves.
type usageBed struct {
	db    *store.DB
	clock *storetest.Clock
	tick  *atomic.Int64
}

func newUsageBed(db *store.DB) *usageBed {
	b := &usageBed{db: db, clock: newClock(db), tick: new(atomic.Int64)}
	db.Tick = func() time.Duration { return time.Duration(b.tick.Load()) }
	return b
}

// replica is a process that has started.
func (b *usageBed) replica(t testing.TB, name string) *Usage {
	t.Helper()
	u := &Usage{DB: b.db, Replica: name}
	b.pass(t, u)
	return u
}

func (b *usageBed) pass(t testing.TB, us ...*Usage) {
	t.Helper()
	for _, u := range us {
		for {
			next, err := u.Pass(t.Context(), b.clock.Now())
			if err != nil {
				t.Fatal(err)
			}
			if next.IsZero() {
				break
			}
		}
	}
}

// walk lets time go by with a pass each second.
func (b *usageBed) walk(t testing.TB, d time.Duration, us ...*Usage) {
	t.Helper()
	for ; d > 0; d -= time.Second {
		b.clock.Advance(time.Second)
		b.tick.Add(int64(time.Second))
		b.pass(t, us...)
	}
}

// skip lets time go by without a pass.
func (b *usageBed) skip(d time.Duration) {
	b.clock.Advance(d)
	b.tick.Add(int64(d))
}

func (b *usageBed) flush(t testing.TB, u *Usage) {
	t.Helper()
	if err := u.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (b *usageBed) use(u *Usage, resource, reason string, n int64) {
	u.Count(TokenUsage, resource, reason, n, b.clock.Now())
}

func (b *usageBed) evidence(t testing.TB, resource string, since time.Time) Report {
	t.Helper()
	r, err := Evidence(t.Context(), b.db, resource, since)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func at(d time.Duration) time.Time { return epoch.Add(d) }

// Promise: uses are in the trail once each minute, by reason, and never before
// the minute is over; the coverages of a process have no hole between them.
func TestUsageIsWrittenByTheMinute(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newUsageBed(db)
		b.skip(10 * time.Second)
		u := b.replica(t, "r1")
		b.use(u, "tokens/a", "", 2)
		b.use(u, "tokens/a", "expired", 1)
		b.use(u, "tokens/b", "", 1)
		u.Count(SigningKeyUsage, "keysets/k/keys/x", "", 7, b.clock.Now())
		b.walk(t, 49*time.Second, u)
		if got := list(t, db, Query{}); len(got) != 1 || got[0].Action != UsageCovered {
			t.Fatalf("within the minute: %+v", got)
		}
		b.walk(t, time.Second, u)
		b.use(u, "tokens/a", "address", 3)
		b.walk(t, time.Second, u)
		b.flush(t, u)
		type line struct {
			Action, Resource string
			Count            int64
			Detail           map[string]any
		}
		var got []line
		for _, e := range list(t, db, Query{}) {
			got = append(got, line{e.Action, e.Resource, e.Count, e.Detail})
		}
		covered := func(from, until string, final bool) line {
			return line{UsageCovered, "usage/r1", 1, map[string]any{"replica": "r1", "from": from, "until": until, "final": final, "lost": 0.0}}
		}
		const first, second = "2026-01-05T00:00:00Z", "2026-01-05T00:01:00Z"
		want := []line{
			covered("2026-01-05T00:00:59Z", "2026-01-05T00:01:01Z", true),
			{TokenUsage, "tokens/a", 3, map[string]any{"minute": second, "replica": "r1", "accepted": 0.0, "denied": map[string]any{"address": 3.0}}},
			covered("2026-01-05T00:00:10Z", "2026-01-05T00:00:59Z", false),
			{TokenUsage, "tokens/b", 1, map[string]any{"minute": first, "replica": "r1", "accepted": 1.0}},
			{TokenUsage, "tokens/a", 3, map[string]any{"minute": first, "replica": "r1", "accepted": 2.0, "denied": map[string]any{"expired": 1.0}}},
			{SigningKeyUsage, "keysets/k/keys/x", 7, map[string]any{"minute": first, "replica": "r1", "signed": 7.0}},
			covered("2026-01-05T00:00:10Z", "2026-01-05T00:00:10Z", false),
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("events, newest first (-want +got):\n%s", diff)
		}
	})
}

// An idle process writes once an hour, and nothing else.
func TestUsageWhenIdle(t *testing.T) {
	b := newUsageBed(storetest.SQLite(t))
	u := b.replica(t, "r1")
	for range 24 * 60 {
		b.skip(time.Minute)
		b.pass(t, u)
	}
	if n := len(list(t, b.db, Query{Limit: 1000})); n < 24 || n > 26 {
		t.Errorf("%d events of an idle day, want one an hour and one at the start", n)
	}
	if r := b.evidence(t, "tokens/a", epoch); !r.Unused() || r.Replicas != 1 || b.clock.Now().Sub(r.Until) > coverEvery+2*time.Minute {
		t.Errorf("evidence %+v", r)
	}
}

// Promise: each use is counted once, however many count and write at once, and
// whatever fails on the way.
func TestUsageWhenCountedAtOnce(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newUsageBed(db)
		us := []*Usage{b.replica(t, "r1"), b.replica(t, "r2")}
		const workers, rounds = 4, 500
		var own atomic.Int64 // counted by a source
		var handed atomic.Int64
		us[0].Source(func(now time.Time) { us[0].Count(SigningKeyUsage, "keysets/k/keys/x", "", own.Swap(0), now) })
		var wg sync.WaitGroup
		for _, u := range us {
			for w := range workers {
				wg.Go(func() {
					for i := range rounds {
						reason := ""
						if i%5 == 0 {
							reason = "expired"
						}
						b.use(u, fmt.Sprintf("tokens/%d", (i+w)%7), reason, 1)
						own.Add(1)
						handed.Add(1)
						if i%10 == 0 {
							b.skip(100 * time.Millisecond)
						}
					}
				})
			}
			wg.Go(func() {
				for i := range 30 {
					ctx, cancel := context.WithCancel(t.Context())
					if i%3 == 0 {
						cancel() // a write that fails
					}
					_, err := u.Pass(ctx, b.clock.Now())
					cancel()
					if err != nil && i%3 != 0 {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		for _, u := range us {
			b.flush(t, u)
		}
		var accepted, denied int64
		for i := range 7 {
			r := b.evidence(t, fmt.Sprintf("tokens/%d", i), epoch)
			accepted += r.Accepted
			denied += r.Denied["expired"]
			if len(r.Gaps) != 0 || r.Replicas != 2 {
				t.Errorf("evidence %+v", r)
			}
		}
		if want := int64(2 * workers * rounds); denied != want/5 || accepted != want-want/5 {
			t.Errorf("%d accepted and %d denied, want %d and %d", accepted, denied, want-want/5, want/5)
		}
		if r := b.evidence(t, "keysets/k/keys/x", epoch); r.Accepted != handed.Load() {
			t.Errorf("%d signed, want %d", r.Accepted, handed.Load())
		}
		if us[0].kept != 0 || len(us[0].tallies) != 0 || len(us[0].minutes) != 0 {
			t.Errorf("%d tallies are kept after everything was written", us[0].kept)
		}
	})
}

// While the trail can't be written counts wait, and nothing is said of that
// time; a write whose outcome was unknown is not made twice.
func TestUsageWhenTheTrailIsAway(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newUsageBed(db)
		u := b.replica(t, "r1")
		b.use(u, "tokens/a", "", 5)
		exec1 := func(query string) {
			t.Helper()
			if err := exec(t, db, query); err != nil {
				t.Fatal(err)
			}
		}
		exec1(`UPDATE trail SET stopped = 'by the test'`)
		for range 3 {
			b.skip(time.Minute)
			b.use(u, "tokens/a", "", 1)
			if _, err := u.Pass(t.Context(), b.clock.Now()); err == nil {
				t.Fatal("a pass without a trail succeeded")
			}
		}
		if r := b.evidence(t, "tokens/a", at(time.Minute)); r.Accepted != 0 || r.Until.After(at(time.Minute)) || r.Unused() {
			t.Errorf("while the trail was away: %+v", r)
		}
		exec1(`UPDATE trail SET stopped = ''`)
		// The outcome of this commit was lost.
		p := u.parcels[0]
		if _, err := u.write(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		u.parcels = append([]*parcel{p}, u.parcels...)
		u.kept += p.tallies
		b.walk(t, time.Minute, u)
		if r := b.evidence(t, "tokens/a", epoch); r.Accepted != 8 || len(r.Gaps) != 0 || r.Until.Before(at(3*time.Minute)) {
			t.Errorf("afterwards: %+v", r)
		}
	})
}

// A flood of resources fills neither the memory nor the trail, and what is not
// known because of it is told.
func TestUsageWhenFlooded(t *testing.T) {
	b := newUsageBed(storetest.SQLite(t))
	u := b.replica(t, "r1")
	for i := range maxPerMinute + 500 {
		b.use(u, fmt.Sprintf("tokens/%d", i), "", 1)
	}
	for i := range 100 {
		b.use(u, "tokens/0", fmt.Sprintf("reason-%d", i), 1)
	}
	if n := len(u.tallies); n != maxPerMinute+1 {
		t.Errorf("%d tallies of a minute, want %d and one for the rest", n, maxPerMinute)
	}
	b.walk(t, time.Minute, u)
	r := b.evidence(t, "tokens/0", epoch)
	if r.Accepted != 1 || r.Various != 500 || len(r.Denied) != maxUsageReason+1 || r.Denied[various] != 100-maxUsageReason || r.Unused() {
		t.Errorf("evidence %+v", r)
	}

	// The trail is away for long.
	if err := exec(t, b.db, `UPDATE trail SET stopped = 'by the test'`); err != nil {
		t.Fatal(err)
	}
	from := b.clock.Now()
	for minute := range 50 {
		for i := range 2000 {
			b.use(u, fmt.Sprintf("tokens/%d-%d", minute, i), "", 1)
		}
		b.skip(time.Minute)
		if _, err := u.Pass(t.Context(), b.clock.Now()); err == nil {
			t.Fatal("a pass without a trail succeeded")
		}
	}
	if u.kept > maxTallies+100 || len(u.parcels) > maxParcels {
		t.Errorf("%d tallies and %d parcels are kept", u.kept, len(u.parcels))
	}
	u.kept = 2 * maxTallies // as if "various" had filled up as well
	b.use(u, "tokens/lost", "", 3)
	u.kept = len(u.tallies)
	for _, p := range u.parcels {
		u.kept += p.tallies
	}
	if err := exec(t, b.db, `UPDATE trail SET stopped = ''`); err != nil {
		t.Fatal(err)
	}
	b.skip(time.Minute)
	b.pass(t, u)
	b.flush(t, u)
	r = b.evidence(t, "tokens/0-0", from)
	if r.Accepted != 1 || r.Various != 50*2000-maxTallies {
		t.Errorf("%d accepted, %d various, want 1 and %d", r.Accepted, r.Various, 50*2000-maxTallies)
	}
	if len(r.Gaps) != 1 || r.Gaps[0].Lost != 3 || r.Unused() {
		t.Errorf("gaps %+v", r.Gaps)
	}
}

// Promise: that a key was not used after an instant is proved, or who can't
// vouch for it is named.
func TestEvidenceWhenProcessesEnd(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newUsageBed(db)
		u1, u2 := b.replica(t, "r1"), b.replica(t, "r2")
		b.use(u1, "tokens/a", "", 1)
		b.walk(t, 90*time.Second, u1, u2)
		b.use(u2, "tokens/a", "", 2) // in the minute of the revocation
		b.walk(t, 5*time.Second, u1, u2)
		revoked := b.clock.Now()
		b.use(u2, "tokens/a", "revoked", 4)
		b.walk(t, time.Minute, u1, u2)
		next := revoked.Truncate(time.Minute).Add(time.Minute)

		r := b.evidence(t, "tokens/a", revoked)
		if r.Accepted != 0 || r.Boundary != 2 || r.Denied["revoked"] != 4 || !r.LastAccepted.Equal(at(time.Minute)) || r.Unused() {
			t.Errorf("in the minute of the revocation: %+v", r)
		}
		if r := b.evidence(t, "tokens/a", next); r.Unused() || r.Until.After(next) {
			t.Errorf("proved by processes that have not covered so far: %+v", r)
		}
		// r2 ends well, r1 lives on.
		b.flush(t, u2)
		b.walk(t, coverEvery+time.Minute, u1)
		r = b.evidence(t, "tokens/a", next)
		if !r.Unused() || r.Replicas != 2 || r.LastAccepted.After(next) {
			t.Errorf("after everybody covered: %+v", r)
		}
		vouched := r.Until

		// r3 is killed with a use that nobody else knows.
		u3 := b.replica(t, "r3")
		started := b.clock.Now()
		b.use(u3, "tokens/a", "", 1)
		b.walk(t, 2*usageSilent, u1)
		r = b.evidence(t, "tokens/a", next)
		if diff := cmp.Diff([]Gap{{Replica: "r3", From: started}}, r.Gaps); diff != "" || r.Unused() || !r.Until.After(vouched) {
			t.Errorf("after a kill: %+v, gaps (-want +got):\n%s", r, diff)
		}
		// It starts again under its name.
		u3 = b.replica(t, "r3")
		again := b.clock.Now()
		b.walk(t, coverEvery+2*time.Minute, u1, u3)
		r = b.evidence(t, "tokens/a", next)
		if diff := cmp.Diff([]Gap{{Replica: "r3", From: started, To: again}}, r.Gaps); diff != "" {
			t.Errorf("after its start: %+v, gaps (-want +got):\n%s", r, diff)
		}
		if r := b.evidence(t, "tokens/a", again); !r.Unused() {
			t.Errorf("since its start: %+v", r)
		}
		// Sequenced events tell the same as those that wait.
		tr := newTrail(t, db)
		before := b.evidence(t, "tokens/a", next)
		sequence(t, tr)
		if diff := cmp.Diff(before, b.evidence(t, "tokens/a", next)); diff != "" {
			t.Errorf("sequenced (-before +after):\n%s", diff)
		}
	})
}

// Evidence is had of every sort of thing whose uses are counted, and those of a
// partner's things are events of the partner.
func TestEvidenceOfEachAction(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newUsageBed(db)
		u := b.replica(t, "r1")
		began := b.clock.Now()
		partners := map[string]string{
			TokenUsage: "", SigningKeyUsage: "", APIKeyUsage: "acme", RequestSecretUsage: "globex",
		}
		resources := map[string]string{
			TokenUsage: "tokens/a", SigningKeyUsage: "keysets/k/keys/x", APIKeyUsage: "partners/acme/api_keys/a", RequestSecretUsage: "partners/globex/request_secrets/s",
		}
		for action, resource := range resources {
			u.Count(action, resource, "", 3, b.clock.Now())
			u.Count(action, resource, "revoked", 2, b.clock.Now())
		}
		b.walk(t, 2*time.Minute, u)
		for action, resource := range resources {
			if r := b.evidence(t, resource, began); r.Accepted != 3 || r.Denied["revoked"] != 2 || r.Unused() {
				t.Errorf("%s: %+v", action, r)
			}
			if got := list(t, db, Query{Action: action}); len(got) != 1 || got[0].Partner != partners[action] {
				t.Errorf("%s: %+v, want one event of partner %q", action, got, partners[action])
			}
		}
	})
}

// When the clock goes back no use seems older than it is, and when it jumps
// nobody vouches for the time between.
func TestUsageWhenTheClockSteps(t *testing.T) {
	b := newUsageBed(storetest.SQLite(t))
	u := b.replica(t, "r1")
	b.walk(t, 90*time.Second, u)
	revoked := at(2 * time.Minute)

	// Back by an hour, and a use: it must count as one after the revocation.
	b.walk(t, time.Minute, u)
	b.clock.Advance(-time.Hour)
	b.use(u, "tokens/a", "", 1)
	b.walk(t, 2*time.Minute, u)
	if r := b.evidence(t, "tokens/a", revoked); r.Accepted != 1 {
		t.Errorf("a use by a clock that went back looks old: %+v", r)
	}
	// It was told that the time is lived again: a kill now leaves a gap.
	if r := b.evidence(t, "tokens/b", at(-time.Hour)); r.Until.After(b.clock.Now()) {
		t.Errorf("at %s somebody vouches until %s", b.clock.Now(), r.Until)
	}

	// Forward again.
	lived := b.clock.Now()
	b.clock.Advance(time.Hour)
	b.use(u, "tokens/c", "", 1)
	b.pass(t, u)
	jumped := b.clock.Now()
	b.walk(t, 2*time.Minute, u)
	b.flush(t, u)
	r := b.evidence(t, "tokens/c", lived.Add(-time.Minute))
	if diff := cmp.Diff([]Gap{{Replica: "r1", From: lived, To: jumped}}, r.Gaps); diff != "" || r.Accepted != 1 {
		t.Errorf("%+v, gaps (-want +got):\n%s", r, diff)
	}
}

// Whatever clocks do, no use is lost or counted twice, and none seems older than
// an instant at which the process already was.
func TestUsageWhenTheClockIsWild(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 0))
		b := newUsageBed(storetest.SQLite(t))
		u := b.replica(t, "r1")
		latest := b.clock.Now()
		var want, since int64
		var mark time.Time
		for step := range 300 {
			b.skip(time.Duration(rng.Int64N(int64(40 * time.Second))))
			if rng.IntN(10) == 0 {
				b.clock.Advance(time.Duration(rng.Int64N(int64(4*time.Hour))) - 2*time.Hour)
			}
			b.pass(t, u)
			if latest.Before(b.clock.Now()) {
				latest = b.clock.Now()
			}
			if step == 150 {
				mark = latest.Truncate(time.Minute)
			}
			n := rng.Int64N(3)
			b.use(u, "tokens/a", "", n)
			want += n
			if step >= 150 {
				since += n
			}
		}
		b.flush(t, u)
		if r := b.evidence(t, "tokens/a", epoch.Add(-1000*time.Hour)); r.Accepted != want || u.kept != 0 {
			t.Errorf("seed %d: %d uses, want %d; %d tallies left", seed, r.Accepted, want, u.kept)
		}
		if r := b.evidence(t, "tokens/a", mark); r.Accepted < since {
			t.Errorf("seed %d: %d uses since %s, want at least %d", seed, r.Accepted, mark, since)
		}
	}
}

func BenchmarkUsageCount(b *testing.B) {
	u := &Usage{}
	resources := make([]string, 1000)
	for i := range resources {
		resources[i] = fmt.Sprintf("tokens/%016d", i)
	}
	now := epoch
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		u.Count(TokenUsage, resources[i%len(resources)], "", 1, now)
	}
}

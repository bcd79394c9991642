package apikeys

import (
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func TestPassWhenGraceIsOver(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		b.advance(t) // sees the clocks
		used, usedValue := b.key(t, KeySpec{Name: "used"})
		unused, _ := b.key(t, KeySpec{Name: "unused"})
		asleep, _ := b.key(t, KeySpec{Name: "asleep"})
		hook, _ := b.signing(t, KeySpec{Name: "hook"})
		for _, r := range []Roll{{Kind: APIKey, ID: used.ID}, {Kind: APIKey, ID: unused.ID}, {Kind: APIKey, ID: asleep.ID}, {Kind: RequestSecret, Partner: "acme", Name: "hook"}} {
			r.Grace = grace(8 * time.Hour)
			if _, _, err := b.keys.Roll(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.keys.Suspend(t.Context(), APIKey, "", asleep.ID, ""); err != nil {
			t.Fatal(err)
		}
		step := func(to time.Duration) time.Time {
			t.Helper()
			b.pass(after(to).Sub(b.clock.Now()))
			return b.advance(t)
		}
		if next := b.advance(t); !next.Equal(after(6 * time.Hour)) {
			t.Errorf("the next pass is due after %s, want 6h", next.Sub(epoch))
		}
		step(6 * time.Hour)
		b.pass(time.Minute)
		b.use(t, used)
		step(6*time.Hour + 15*time.Minute)
		step(7 * time.Hour)
		b.use(t, used)
		step(8*time.Hour - time.Microsecond)
		for _, k := range []*Key{used, unused, hook} {
			if got := b.get(t, k); got.Stored != Retiring {
				t.Errorf("%s is %s inside its grace", k.Name, got.Stored)
			}
		}
		if !b.accepts(t, used, usedValue) {
			t.Error("a key is refused inside its grace")
		}
		b.clock.Advance(time.Microsecond)
		if b.accepts(t, used, usedValue) {
			t.Error("a key is accepted when its grace is over, before the pass")
		}
		b.clock.Advance(-time.Microsecond)
		step(8 * time.Hour)
		for _, k := range []*Key{used, unused, hook, asleep} {
			if got := b.get(t, k); got.Stored != Retired || got.sealed != nil || !got.NextAt.IsZero() || !got.Since.Equal(after(8*time.Hour)) {
				t.Errorf("%s after its grace: %+v", k.Name, got)
			}
		}
		if diff := cmp.Diff([]string{"api_key.create", "api_key.roll", "api_key.still_used", "api_key.retire grace"}, b.events(t, used.Resource()), cmpSort); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"request_secret.create", "request_secret.roll", "request_secret.retire grace"}, b.events(t, hook.Resource()), cmpSort); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
		events, _, err := audit.List(t.Context(), db, audit.Query{Resource: used.Resource(), Limit: 1})
		if err != nil || events[0].Detail["last_used_at"] != after(7*time.Hour).Format(time.RFC3339) || events[0].Actor != audit.Rotunda {
			t.Errorf("%+v, %v", events[0], err)
		}
		if next := b.advance(t); !next.IsZero() {
			t.Errorf("another pass is due at %s", next)
		}
	})
}

// A grace ends when the old key was quiet for so long, and not while it is used.
func TestPassWhenQuiet(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		b.advance(t)
		k, _ := b.key(t, KeySpec{})
		if _, _, err := b.keys.Roll(t.Context(), Roll{Kind: APIKey, ID: k.ID, Grace: grace(48 * time.Hour), Quiet: 30 * time.Minute}); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			b.pass(30 * time.Minute)
			b.use(t, k)
			b.pass(time.Minute)
			b.advance(t)
			if got := b.get(t, k); got.Stored != Retiring {
				t.Fatalf("a key in use is %s", got.Stored)
			}
		}
		b.pass(30*time.Minute - time.Microsecond)
		b.advance(t)
		if got := b.get(t, k); got.Stored != Retiring {
			t.Fatalf("it is %s too early", got.Stored)
		}
		b.pass(time.Microsecond)
		b.advance(t)
		if got := b.get(t, k); got.Stored != Retired {
			t.Fatalf("a quiet key is %s", got.Stored)
		}
		if diff := cmp.Diff([]string{"api_key.create", "api_key.roll", "api_key.retire quiet"}, b.events(t, k.Resource()), cmpSort); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
	})
}

// A wall clock that jumps ends no key before it had time to be set right.
func TestPassWhenClockJumps(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		k, _ := b.key(t, KeySpec{})
		if _, _, err := b.keys.Roll(t.Context(), Roll{Kind: APIKey, ID: k.ID}); err != nil {
			t.Fatal(err)
		}
		b.advance(t)
		b.clock.Advance(100 * time.Hour)
		b.advance(t)
		b.clock.Advance(-100 * time.Hour)
		b.tick.Add(int64(time.Second))
		b.clock.Advance(time.Second)
		b.advance(t)
		if got := b.get(t, k); got.Stored != Retiring {
			t.Errorf("it is %s because the clock was wrong for a second", got.Stored)
		}
		b.clock.Advance(100 * time.Hour) // and stays there
		b.advance(t)
		b.pass(clockSettles)
		b.advance(t)
		if got := b.get(t, k); got.Stored != Retired {
			t.Errorf("it is %s though the clock was right", got.Stored)
		}
	})
}

// A row that was tampered with is told of once, and holds up no other.
func TestPassWhenRowIsTampered(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		b.advance(t)
		bad, value := b.key(t, KeySpec{})
		good, _ := b.key(t, KeySpec{})
		for _, k := range []*Key{bad, good} {
			if _, _, err := b.keys.Roll(t.Context(), Roll{Kind: APIKey, ID: k.ID, Grace: grace(time.Hour)}); err != nil {
				t.Fatal(err)
			}
		}
		exec(t, db, `UPDATE partner_keys SET grace_ends_at = grace_ends_at + 3600000000 WHERE id = $1`, bad.ID)
		b.pass(time.Hour)
		b.advance(t)
		b.pass(time.Hour)
		b.advance(t)
		if got := b.get(t, good); got.Stored != Retired {
			t.Errorf("the other key is %s", got.Stored)
		}
		if diff := cmp.Diff([]string{"api_key.create", "api_key.roll", "api_key.tampered tampered"}, b.events(t, bad.Resource()), cmpSort); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
		if got, err := b.keys.Get(t.Context(), APIKey, "", bad.ID); err != nil || !got.Tampered() || b.accepts(t, bad, value) {
			t.Errorf("it is sealed anew, or accepted: %+v, %v", got, err)
		}
	})
}

// More keys than one pass takes, and two replicas that pass at once: each is
// retired, with one event.
func TestPassWhenMany(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		replicas := []*bed{b, b.other(t)}
		b.partner(t, "acme", PartnerSpec{})
		const n = passBatch + 10
		for range n {
			k, _ := b.key(t, KeySpec{})
			if _, _, err := b.keys.Roll(t.Context(), Roll{Kind: APIKey, ID: k.ID, Grace: grace(time.Hour)}); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range replicas {
			r.advance(t)
		}
		b.pass(time.Hour)
		var wg sync.WaitGroup
		for _, r := range replicas {
			wg.Go(func() {
				for {
					next, err := r.keys.Pass(t.Context(), b.clock.Now())
					if err != nil {
						t.Error(err)
						return
					}
					if next.IsZero() {
						return
					}
				}
			})
		}
		wg.Wait()
		retired := number(t, db, `SELECT COUNT(*) FROM partner_keys WHERE state = 'retired'`)
		events := number(t, db, `SELECT COUNT(*) FROM event_queue WHERE action = 'api_key.retire'`)
		if retired != n || events != n {
			t.Errorf("%d keys are retired, with %d events, want %d", retired, events, n)
		}
	})
}

package jwks

import (
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func TestSignWhenSignerIsAwayAndNothingMayStandIn(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		home := b.away()
		set := b.create(t, "payments", ES256, quick())
		b.walk(t, quickLead)
		home.set(set.Active().Kid, true)
		_, err := b.Sign(t.Context(), Sign{Name: "payments"})
		wantFault(t, err, fault.ErrUnavailable, "signer_unreachable", "")
		home.set(set.Active().Kid, false)
		b.sign(t, "payments")
		home.set(set.Active().Kid, true) // also after it was opened
		_, err = b.Sign(t.Context(), Sign{Name: "payments"})
		wantFault(t, err, fault.ErrUnavailable, "signer_unreachable", "")
		if n := len(b.events(t, "keyset.")); n != 1 {
			t.Errorf("%d events of the keyset, want its creation", n)
		}
	})
}

// Promise: the standby stands in only once its lead is over; the switch is one
// event each way, however many replicas find out.
func TestSignWhenStandbyStandsIn(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		home := b.away()
		p := quick()
		p.Fallback = FallbackStandby
		set := b.create(t, "payments", ES256, p)
		active, standby := set.Active().Kid, set.Standby().Kid
		other := New(Config{DB: db, Local: b.local})
		other.homes[LocalHome] = home
		both := []*Keysets{b.Keysets, other}
		home.set(active, true)
		b.walk(t, quickLead-us)
		for _, ks := range both {
			if err := ks.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, err := ks.Sign(t.Context(), Sign{Name: "payments"})
			wantFault(t, err, fault.ErrUnavailable, "signer_unreachable", "")
		}
		if n := len(b.events(t, "keyset.fallback_start")); n != 0 {
			t.Fatalf("%d events before anything stood in", n)
		}
		b.clock.Advance(us)
		began := b.clock.Now()
		for range 2 {
			for _, ks := range both {
				s, err := ks.Sign(t.Context(), Sign{Name: "payments"})
				if err != nil {
					t.Fatal(err)
				}
				if s.Kid != standby || !s.Fallback {
					t.Errorf("signed by %s, fallback %v", s.Kid, s.Fallback)
				}
				if err := b.accepted(t, "payments", s.Token); err != nil {
					t.Error(err)
				}
			}
		}
		got := b.get(t, "payments")
		if !got.FallbackSince.Equal(began) || got.Active().Kid != active || got.Standby().MaxTokenLife != 10*time.Minute {
			t.Errorf("fallback since %s, standby's life %s", got.FallbackSince, got.Standby().MaxTokenLife)
		}
		starts := b.events(t, "keyset.fallback_start")
		if len(starts) != 1 || starts[0].Reason != "signer_unreachable" || starts[0].Detail["active"] != active || starts[0].Detail["standby"] != standby {
			t.Fatalf("events %+v", starts)
		}
		// It comes back, but not for long enough to be believed.
		home.set(active, false)
		b.walk(t, minFallback-us)
		if s := b.sign(t, "payments"); s.Kid != active || s.Fallback {
			t.Errorf("signed by %s after it came back", s.Kid)
		}
		if b.get(t, "payments").FallbackSince.IsZero() {
			t.Error("the switch back was written down within a minute")
		}
		b.clock.Advance(us)
		for range 2 {
			for _, ks := range both {
				if s, err := ks.Sign(t.Context(), Sign{Name: "payments"}); err != nil || s.Kid != active {
					t.Errorf("signed by %s: %v", s.Kid, err)
				}
			}
		}
		if !b.get(t, "payments").FallbackSince.IsZero() {
			t.Error("the row still says that the standby signs")
		}
		if starts, ends := b.events(t, "keyset.fallback_start"), b.events(t, "keyset.fallback_end"); len(starts) != 1 || len(ends) != 1 {
			t.Errorf("%d starts, %d ends", len(starts), len(ends))
		}
		// Both away: nothing signs.
		home.set(active, true)
		home.set(standby, true)
		_, err := b.Sign(t.Context(), Sign{Name: "payments"})
		if err == nil || !strings.Contains(err.Error(), active) || !strings.Contains(err.Error(), standby) {
			t.Errorf("with both away: %v", err)
		}
	})
}

// The switch is not written down: then no token leaves.
func TestSignWhenSwitchCannotBeWritten(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		home := b.away()
		p := quick()
		p.Fallback = FallbackStandby
		set := b.create(t, "payments", ES256, p)
		b.walk(t, quickLead)
		home.set(set.Active().Kid, true)
		mend := breakWrites(t, db, "event_queue", "INSERT", "NEW.action = 'keyset.fallback_start'")
		s, err := b.Sign(t.Context(), Sign{Name: "payments"})
		if err == nil || s.Token != "" {
			t.Errorf("a token of the standby left: %v", err)
		}
		if !b.get(t, "payments").FallbackSince.IsZero() {
			t.Error("the row says that the standby signs, the trail does not")
		}
		mend()
		if s := b.sign(t, "payments"); s.Kid != set.Standby().Kid {
			t.Errorf("signed by %s", s.Kid)
		}
	})
}

// Withdrawing a key that has nothing to do with the switch does not end it.
func TestFallbackWhenRetiringKeyIsRevoked(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		home := b.away()
		p := quick()
		p.Fallback = FallbackStandby
		old := b.create(t, "payments", ES256, p).Active().Kid
		b.walk(t, quickLead)
		set, err := b.Rotate(t.Context(), Rotate{Name: "payments"})
		if err != nil {
			t.Fatal(err)
		}
		b.walk(t, quickLead)
		home.set(set.Active().Kid, true)
		b.sign(t, "payments")
		b.clock.Advance(time.Second)
		b.revoke(t, Revoke{Name: "payments", Kid: old})
		b.sign(t, "payments")
		if n := len(b.events(t, "keyset.fallback_start")); n != 1 {
			t.Errorf("the switch is in the trail %d times", n)
		}
	})
}

// A lead counts only time in which consumers could fetch.
func TestLeadWhenNothingWasServed(t *testing.T) {
	for _, tc := range []struct {
		name      string
		failure   time.Duration
		down      time.Duration
		restarted bool
	}{
		{"longer than the policy covers", time.Minute, time.Minute + us, true},
		{"exactly what the policy covers", time.Minute, time.Minute, false},
		{"much longer", time.Minute, 48 * time.Hour, true},
		{"no failure is covered", 0, minGap + us, true},
		{"too short to be told from a slow pass", 0, minGap, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				b := newBed(t, db)
				p := quick()
				p.FetchFailure = tc.failure
				set := b.create(t, "payments", ES256, p)
				b.pass(t)
				b.clock.Advance(tc.down)
				restart := New(Config{DB: db, Local: b.local}) // the process comes back
				for range 2 {
					if _, err := restart.Pass(t.Context(), b.clock.Now()); err != nil {
						t.Fatal(err)
					}
				}
				got := b.get(t, "payments")
				want := epoch
				if tc.restarted {
					want = b.clock.Now()
				}
				if !got.Standby().ServedSince.Equal(want) {
					t.Errorf("served since %s, want %s", got.Standby().ServedSince, want)
				}
				if got.Standby().Kid != set.Standby().Kid {
					t.Error("the standby is another key")
				}
				events := b.events(t, "signing_key.lead_restarted")
				if (len(events) == 1) != tc.restarted || len(events) > 1 {
					t.Errorf("events %+v", events)
				}
			})
		})
	}
}

// Two replicas that come back together restart a lead once, and neither fails.
func TestLeadWhenTwoReplicasComeBack(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		for _, name := range []string{"a", "b", "c", "d"} {
			b.create(t, name, ES256, quick())
		}
		b.pass(t)
		const rounds = 10
		for range rounds {
			b.clock.Advance(time.Hour / 2)
			errs := make(chan error)
			for range 4 {
				replica := New(Config{DB: db, Local: b.local})
				go func() {
					_, err := replica.Pass(t.Context(), b.clock.Now())
					errs <- err
				}()
			}
			for range 4 {
				if err := <-errs; err != nil {
					t.Errorf("a pass failed: %v", err)
				}
			}
		}
		if n := len(b.events(t, "signing_key.lead_restarted")); n != 4*rounds {
			t.Errorf("%d leads were restarted, want %d", n, 4*rounds)
		}
	})
}

// While it can't be known whether documents were served, nothing moves.
func TestPassWhenServingCannotBeNoted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		b.walk(t, time.Hour-time.Second)
		mend := breakWrites(t, db, "publication", "UPDATE", "NEW.served_at <> OLD.served_at")
		b.clock.Advance(servedGap)
		before := dump(t, db)
		if _, err := b.Pass(t.Context(), b.clock.Now()); err == nil {
			t.Error("the failure is not reported")
		}
		if dump(t, db) != before {
			t.Error("something moved")
		}
		mend()
		b.pass(t)
		if n := len(b.get(t, "payments").Keys); n != 3 {
			t.Errorf("%d keys after the database was mended", n)
		}
	})
}

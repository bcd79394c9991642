package jwks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// sequencer gives the events of a bed their leaf indexes when it is called.
func (b *bed) sequencer(t *testing.T) (sequence func()) {
	t.Helper()
	tr, err := audit.Open(t.Context(), audit.Config{DB: b.db, Sealer: b.local.Sealer})
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if _, err := tr.Sequence(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *bed) refresh(t *testing.T) {
	t.Helper()
	if err := b.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A change of another process is served after one refresh, whether its event
// waits for its leaf index, has got it meanwhile, or got it between two looks.
func TestRefreshWhenAnotherProcessChanged(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		sequence := b.sequencer(t)
		b.create(t, "payments", ES256, quick())
		b.create(t, "orders", ES256, quick())
		other := New(Config{DB: db, Local: b.local})
		if err := other.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		for round := range 6 {
			if round%3 == 1 {
				sequence() // what other has seen waiting
			}
			kid := b.get(t, "payments").Active().Kid
			b.revoke(t, Revoke{Name: "payments", Kid: kid, Mode: ModeFresh, Reason: "superseded"})
			if round%3 == 2 {
				sequence()
			}
			untouched := other.Document("orders")
			if err := other.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(other.Document("payments").Body), kid) {
				t.Fatalf("round %d: the revoked key is still published", round)
			}
			if round > 3 && other.Document("orders") != untouched {
				t.Errorf("round %d: a keyset without an event was read again", round)
			}
		}
	})
}

// Whatever is written of a keyset without an event of it changes neither a
// document nor who signs, and next_at is read again once it is past.
func TestRefreshWhenThereIsNoEvent(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		sequence := b.sequencer(t)
		b.create(t, "payments", ES256, quick())
		sequence()
		other := New(Config{DB: db, Local: b.local})
		if err := other.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		// This process signs: max_token_life grows. The other one has not heard of
		// it, and writes it once more.
		b.sign(t, "payments")
		if err := other.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		e, _ := other.view.entry("payments")
		if life := e.active.life.Load(); life != 0 {
			t.Fatalf("the other process knows a life of %s: the test shows nothing", time.Duration(life))
		}
		if _, err := other.Sign(t.Context(), Sign{Name: "payments"}); err != nil {
			t.Fatal(err)
		}
		// From the demotion on, the life is final, and the event of the demotion
		// makes everybody read it: documents go by retiring keys only.
		b.walk(t, 2*quickLead)
		if _, err := b.Rotate(t.Context(), Rotate{Name: "payments"}); err != nil {
			t.Fatal(err)
		}
		if err := other.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := other.Document("payments").removal, b.clock.Now().Add(quickRetire); !got.Equal(want) {
			t.Errorf("the other process expects the removal at %s, want %s", got, want)
		}
		// next_at moves alone.
		sequence()
		if err := other.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		var at time.Time
		other.Published(func(s *Keyset) bool { at = s.NextAt; return true })
		later := at.Add(time.Hour)
		mustExec(t, db, `UPDATE keysets SET next_at = $1`, store.Micros(later))
		b.clock.Set(at)
		other.view.whole = other.db.Tick() // it is not everything that is read again
		if err := other.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		other.Published(func(s *Keyset) bool { at = s.NextAt; return true })
		if !at.Equal(later) {
			t.Errorf("the other process takes the keyset for overdue since %s", at)
		}
	})
}

// When an older copy of the database takes over, as after a failover to a
// standby that was behind, a replica reads everything again: a revocation that
// is acknowledged after it holds.
func TestRefreshWhenDatabaseIsOlder(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		var log bytes.Buffer
		b.log = slog.New(slog.NewTextHandler(&log, nil))
		sequence := b.sequencer(t)
		kid := b.create(t, "payments", ES256, quick()).Active().Kid
		b.create(t, "orders", ES256, quick())
		sequence()
		b.sign(t, "payments")
		before := count(t, db, `SELECT size FROM trail`)
		for range 5 {
			if _, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "orders", Policy: quick()}); err != nil {
				t.Fatal(err)
			}
		}
		sequence()
		b.refresh(t)
		// The older copy, in which the next change got an index that was seen before.
		b.revokeElsewhere(t, "payments", kid)
		sequence()
		mustExec(t, db, `UPDATE trail SET size = $1`, before+1)
		if strings.Contains(log.String(), "older") {
			t.Fatal(log.String())
		}
		b.refresh(t)
		if !strings.Contains(log.String(), "the database is older") {
			t.Errorf("nobody is told: %s", log.String())
		}
		if d := b.Document("payments"); strings.Contains(string(d.Body), kid) {
			t.Error("the revoked key is still published")
		}
		if s := b.sign(t, "payments"); s.Kid == kid {
			t.Error("the revoked key still signs")
		}
	})
}

// revokeElsewhere revokes a key in another process.
func (b *bed) revokeElsewhere(t *testing.T, name, kid string) {
	t.Helper()
	other := New(Config{DB: b.db, Local: b.local})
	if err := other.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.Revoke(t.Context(), Revoke{Name: name, Kid: kid, Mode: ModeFresh, Reason: "key_compromise"}); err != nil {
		t.Fatal(err)
	}
}

// A token's life that was committed to a database which is lost is committed
// again to the older copy that took over, before a token has it: else the key
// would be withdrawn too early.
func TestSignWhenDatabaseForgotTokenLife(t *testing.T) {
	for _, tc := range []struct {
		name string
		anew bool                       // nothing in memory is believed
		turn func(t *testing.T, b *bed) // what the process notices of it
	}{
		{"tree is smaller", true, func(t *testing.T, b *bed) {
			mustExec(t, b.db, `UPDATE trail SET size = size - 1`)
		}},
		{"database was away", true, func(t *testing.T, b *bed) {
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			if err := b.Keysets.refresh(gone); err == nil {
				t.Fatal("a refresh without a database succeeded")
			}
		}},
		{"keyset changed", false, func(t *testing.T, b *bed) {
			if _, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: quick()}); err != nil {
				t.Fatal(err)
			}
		}},
		{"time went by", false, func(t *testing.T, b *bed) { b.clock.Advance(resyncEvery) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				b := newBed(t, db)
				sequence := b.sequencer(t)
				b.create(t, "payments", ES256, quick())
				sequence()
				s := b.sign(t, "payments")
				b.refresh(t)
				known, _ := b.view.entry("payments")
				mustExec(t, db, `UPDATE signing_keys SET max_token_life = 0`)
				tc.turn(t, b)
				b.refresh(t)
				if e, _ := b.view.entry("payments"); e == known || (e.active != known.active) != tc.anew {
					t.Errorf("the opened key was dropped: %t, want %t", e.active != known.active, tc.anew)
				}
				if again := b.sign(t, "payments"); again.Kid != s.Kid {
					t.Fatal("another key signs: the test shows nothing")
				}
				if got, want := b.row(t, "payments", s.Kid).MaxTokenLife, quick().TokenTTL; got != want {
					t.Errorf("a token of %s was signed, and the key's row says %s", want, got)
				}
			})
		})
	}
}

// The first keysets of a database, made at once, all have genuine rows.
func TestCreateWhenTheFirstKeysetsAreMadeAtOnce(t *testing.T) {
	b, all := replicas(t, 2)
	done := make(chan error)
	const n = 8
	for i := range n {
		go func() {
			_, err := all[i%2].Create(t.Context(), Create{Name: fmt.Sprintf("set-%d", i), Issuer: "https://a.b", Policy: quick()})
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	fresh := New(Config{DB: b.db, Local: b.local})
	sets, _, err := fresh.List(t.Context(), "", n+1)
	if err != nil || len(sets) != n {
		t.Fatalf("%d keysets, %v", len(sets), err)
	}
	for _, s := range sets {
		if s.Foreign || len(s.Tampered) > 0 || s.Active() == nil || s.Standby() == nil {
			t.Errorf("keyset %q: %+v", s.Name, s)
		}
	}
}

// Follow serves a change of another process without any pass.
func TestFollowWhenAnotherProcessChanged(t *testing.T) {
	b, all := replicas(t, 2)
	sequence := b.sequencer(t)
	kid := b.create(t, "payments", ES256, quick()).Active().Kid
	if err := all[1].Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan error, 1)
	ended := make(chan struct{}, 2)
	go func() {
		all[1].db.Relay(ctx, func(error) {})
		ended <- struct{}{}
	}()
	go func() {
		all[1].Follow(ctx)
		ended <- struct{}{}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		<-ended
	})
	go func() {
		heard <- all[1].Watch(ctx, "payments", all[1].Document("payments").Version, func(d *Document) error {
			if strings.Contains(string(d.Body), kid) {
				return nil
			}
			return context.Canceled
		})
	}()
	b.revoke(t, Revoke{Name: "payments", Kid: kid, Mode: ModeFresh, Reason: "superseded"})
	for range 60 {
		sequence()
		select {
		case err := <-heard:
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			return
		case <-time.After(time.Second): // the relay may not have been connected yet
			if _, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: quick()}); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Error("it was not heard within a minute")
}

package jwks

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Promise: what can't be written to the trail does not happen.
func TestChangeWhenItsEventCannotBeWritten(t *testing.T) {
	imported := pkcs8(t, p256(t))
	type work func(b *bed, set *Keyset) error
	rotate := func(b *bed, _ *Keyset) error {
		_, err := b.Rotate(t.Context(), Rotate{Name: "payments"})
		return err
	}
	revoke := func(mode Mode) work {
		return func(b *bed, set *Keyset) error {
			_, _, err := b.Revoke(t.Context(), Revoke{Name: "payments", Kid: set.Active().Kid, Mode: mode, Reason: "superseded"})
			return err
		}
	}
	bring := func(state State) work {
		return func(b *bed, _ *Keyset) error {
			_, _, err := b.Import(t.Context(), Import{Name: "payments", Key: secret.FromString(imported), State: state, MaxTokenLife: time.Hour, Reason: "known"})
			return err
		}
	}
	create := func(b *bed, _ *Keyset) error {
		_, err := b.Create(t.Context(), Create{Name: "orders", Issuer: "https://a.b", Policy: quick(), Once: store.Once{Scope: "s", Key: "k", Fingerprint: "f"}})
		return err
	}
	for _, tc := range []struct {
		name   string
		action string
		do     work
	}{
		{"create", "keyset.create", create},
		{"create, first key", "signing_key.active", create},
		{"create, standby", "signing_key.pending", create},
		{"rotate, demotion", "signing_key.retiring", rotate},
		{"rotate, promotion", "signing_key.active", rotate},
		{"rotate, new standby", "signing_key.pending", rotate},
		{"revoke, withdrawal", "signing_key.revoked", revoke(ModeStandby)},
		{"revoke, promotion", "signing_key.active", revoke(ModeFresh)},
		{"revoke, whole", "keyset.revoke_key", revoke(ModeStandby)},
		{"import, demotion", "signing_key.retiring", bring(Active)},
		{"import, key", "signing_key.active", bring(Active)},
		{"import, whole", "keyset.import_key", bring(Retiring)},
		{"policy", "keyset.update_policy", func(b *bed, _ *Keyset) error {
			p := quick()
			p.MaxAge = time.Second
			_, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: p})
			return err
		}},
		{"schedule", "signing_key.retiring", func(b *bed, _ *Keyset) error {
			b.clock.Set(epoch.Add(time.Hour))
			_, err := b.advance(t.Context(), "payments", asked{})
			return err
		}},
		{"lead restarted", "signing_key.lead_restarted", func(b *bed, _ *Keyset) error {
			b.clock.Advance(time.Hour)
			return b.served(t.Context())
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				b := newBed(t, db)
				set := b.create(t, "payments", ES256, quick())
				b.walk(t, quickLead)
				mend := breakWrites(t, db, "event_queue", "INSERT", "NEW.action = '"+tc.action+"'")
				before, document := dump(t, db), string(b.Document("payments").Body)
				at := b.clock.Now()
				if err := tc.do(b, set); err == nil {
					t.Fatal("it was done without its event")
				}
				if after := dump(t, db); after != before {
					t.Errorf("the change is there without its event:\n%s\n\n%s", before, after)
				}
				if got := string(b.Document("payments").Body); got != document {
					t.Error("a document that was never committed is served")
				}
				mend()
				b.clock.Set(at)
				b.sequencer(t)() // what was before is no news
				other := New(Config{DB: db, Local: b.local})
				if err := other.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				before = dump(t, db)
				if err := tc.do(b, set); err != nil {
					t.Fatalf("after the trail was mended: %v", err)
				}
				if dump(t, db) == before {
					t.Error("nothing was done")
				}
				wantLearned(t, other)
			})
		})
	}
}

// wantLearned fails unless a process that refreshes now learns all that one learns
// which starts now.
func wantLearned(t *testing.T, ks *Keysets) {
	t.Helper()
	ks.view.whole = ks.db.Tick() // by the trail, and not because it is time to read everything
	fresh := New(Config{DB: ks.db, Local: ks.local})
	if err := errors.Join(ks.Refresh(t.Context()), fresh.Refresh(t.Context())); err != nil {
		t.Fatal(err)
	}
	fresh.Published(func(want *Keyset) bool {
		e, ok := ks.view.entry(want.Name)
		if !ok || !reflect.DeepEqual(e.set, want) || string(e.doc.Body) != string(fresh.Document(want.Name).Body) {
			t.Errorf("another process did not learn of the change of keyset %q: it has %+v, want %+v", want.Name, e, want)
		}
		return true
	})
}

// Each event says who, from where and on which request.
func TestEventsNameTheirActor(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		ctx := audit.WithActor(t.Context(), audit.Actor{ID: "token/ada", Address: "192.0.2.7", RequestID: "req-1"})
		if _, err := b.Create(ctx, Create{Name: "payments", Issuer: "https://a.b", Policy: quick()}); err != nil {
			t.Fatal(err)
		}
		b.walk(t, time.Hour)
		for _, e := range b.events(t, "") {
			want := audit.Actor{ID: audit.Rotunda}
			if e.Time.Equal(epoch) {
				want = audit.Actor{ID: "token/ada", Address: "192.0.2.7", RequestID: "req-1"}
			}
			if e.Actor != want.ID || e.Address != want.Address || e.RequestID != want.RequestID {
				t.Errorf("%s at %s is put down to %q at %q, request %q", e.Action, e.Time, e.Actor, e.Address, e.RequestID)
			}
		}
	})
}

package audit

import (
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Who holds two tokens can't use one to wipe out what the other did to the trail.
func TestEraseWhenItIsOfTheTrailItself(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newPruneBed(t, db)
		stolen := WithActor(t.Context(), Actor{ID: "token/stolen", Address: "192.0.2.66"})
		if err := b.SetRetention(stolen, 48*time.Hour, "less to read"); err != nil {
			t.Fatal(err)
		}
		record(t, db, Event{Action: "keyset.create", Actor: "token/stolen", Detail: map[string]any{"a": 1.0}}, Event{Action: "x", Actor: "token/ada"})
		sequence(t, b.Trail)
		// The first erasure is itself an event, of the token that made it.
		if done, err := b.Erase(stolen, Erase{Fields: []trail.Field{trail.Actor}, Actor: "token/ada", Reason: "ticket 1"}); err != nil || done.Events != 1 {
			t.Fatalf("erased %+v, %v", done, err)
		}
		other := WithActor(t.Context(), asAdmin)
		all := []trail.Field{trail.Actor, trail.Reason, trail.Address, trail.Detail}
		done, err := b.Erase(other, Erase{Fields: all, Actor: "token/stolen", Reason: "ticket 2"})
		if err != nil || done.Events != 3 {
			t.Fatalf("erased %+v, %v", done, err)
		}
		// Nothing that can be erased is left of it: the call ends.
		if done, err := b.Erase(other, Erase{Fields: all, Actor: "token/stolen", Reason: "ticket 3"}); err != nil || done.Events != 0 {
			t.Errorf("erased again %+v, %v", done, err)
		}
		sequence(t, b.Trail)
		verify(t, b.Trail)
		kept := 0
		for _, r := range b.records(t) {
			switch r.Action {
			case "retention.update", "trail.erase":
				if r.IsErased(trail.Actor) || r.IsErased(trail.Detail) {
					t.Errorf("%s: actor or detail is erased", r.Action)
				}
				if r.Actor == "token/stolen" {
					if kept++; !r.IsErased(trail.Reason) || !r.IsErased(trail.Address) {
						t.Errorf("%s: reason or address is not erased", r.Action)
					}
				}
			case "keyset.create":
				if !r.IsErased(trail.Actor) || !r.IsErased(trail.Detail) {
					t.Error("the other event is not erased")
				}
			}
		}
		if kept != 2 {
			t.Errorf("%d events about the trail name the token, want 2", kept)
		}
	})
}

package jwks

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Promise: keys rotate on schedule, a token is accepted for its whole life, and
// a key is withdrawn when its last token has expired and not before.
func TestPassThroughTwoRotations(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		first, second := set.Active().Kid, set.Standby().Kid
		b.walk(t, time.Hour-time.Second)
		if got := b.get(t, "payments"); got.Version != set.Version {
			t.Fatalf("something moved before the schedule: %v", kids(got))
		}
		token := b.sign(t, "payments") // by the first key, a second before its end
		etag, body := b.Document("payments").ETag, string(b.Document("payments").Body)
		b.clock.Advance(time.Second - us)
		b.pass(t)
		if got := b.get(t, "payments"); got.Active().Kid != first {
			t.Fatal("rotated a microsecond early")
		}
		b.clock.Advance(us)
		b.pass(t)
		got := b.get(t, "payments")
		third := got.Standby().Kid
		want := map[State][]string{Active: {second}, Pending: {third}, Retiring: {first}}
		if diff := cmp.Diff(want, kids(got)); diff != "" {
			t.Fatalf("after the rotation (-want +got):\n%s", diff)
		}
		if third == first || third == second {
			t.Error("a kid came back")
		}
		if got.Version != set.Version+1 {
			t.Errorf("version %d after %d", got.Version, set.Version)
		}
		d := b.Document("payments")
		if d.Version != got.Version || d.ETag == etag || string(d.Body) == body {
			t.Error("the document is not that of the new version")
		}
		if s := b.sign(t, "payments"); s.Kid != second {
			t.Errorf("%s signs after the rotation, want %s", s.Kid, second)
		}
		// The token of the first key lives 10 minutes less the second that it was signed earlier.
		for b.clock.Now().Before(token.ExpiresAt.Add(-time.Second)) {
			if err := b.accepted(t, "payments", token.Token); err != nil {
				t.Fatalf("at %s: %v", b.clock.Now(), err)
			}
			b.walk(t, 9*time.Second)
		}
		removal := epoch.Add(time.Hour + quickRetire)
		b.walk(t, removal.Sub(b.clock.Now())-us)
		if got := b.get(t, "payments"); got.key(first) == nil {
			t.Fatal("withdrawn a microsecond early")
		}
		b.clock.Advance(us)
		b.pass(t)
		got = b.get(t, "payments")
		if got.key(first) != nil || strings.Contains(string(b.Document("payments").Body), first) {
			t.Fatal("not withdrawn in time")
		}
		history, next, err := b.History(t.Context(), "payments", "", 10)
		if err != nil || next != "" || len(history) != 1 {
			t.Fatalf("history: %v %q %v", history, next, err)
		}
		k := history[0]
		if k.Kid != first || k.State != Retired || k.Home != noHome || k.Private != nil || !k.WithdrawnAt.Equal(removal) || len(k.Public) == 0 {
			t.Errorf("the withdrawn key is %+v", k)
		}
		b.walk(t, epoch.Add(2*time.Hour).Sub(b.clock.Now()))
		if got := b.get(t, "payments"); got.Active().Kid != third {
			t.Errorf("the second rotation made %v", kids(got))
		}
		for action, want := range map[string]int{"signing_key.active": 3, "signing_key.pending": 3, "signing_key.retiring": 2, "signing_key.retired": 1, "signing_key.lead_restarted": 0} {
			if got := b.events(t, action); len(got) != want {
				t.Errorf("%d events %s, want %d", len(got), action, want)
			}
		}
	})
}

func TestRotateWhenLeadIsNotOver(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		before := dump(t, db)
		b.clock.Advance(quickLead - us)
		_, err := b.Rotate(t.Context(), Rotate{Name: "payments"})
		wantFault(t, err, fault.ErrTransition, "lead_not_over", "", set.Standby().Kid, "1m39s", "1m40s", "2026-01-05 00:01:40Z")
		_, err = b.Rotate(t.Context(), Rotate{Name: "payments", Override: true})
		wantFault(t, err, fault.ErrInvalid, "reason_required", "reason")
		if after := dump(t, db); after != before {
			t.Error("the refused rotation changed the database")
		}
		b.clock.Advance(us)
		got, err := b.Rotate(t.Context(), Rotate{Name: "payments", Reason: "drill"})
		if err != nil {
			t.Fatal(err)
		}
		if got.Active().Kid != set.Standby().Kid || got.Standby() == nil || got.key(set.Active().Kid).State != Retiring {
			t.Errorf("rotated to %v", kids(got))
		}
		if diff := cmp.Diff(got, b.get(t, "payments")); diff != "" {
			t.Errorf("rotated and read differ (-returned +read):\n%s", diff)
		}
		if e := b.events(t, "signing_key.active")[1]; e.Reason != "drill" || e.Detail["override"] != nil {
			t.Errorf("event %+v", e)
		}
		// The new standby is young again.
		_, err = b.Rotate(t.Context(), Rotate{Name: "payments"})
		wantFault(t, err, fault.ErrTransition, "lead_not_over", "")
	})
}

func TestRotateWhenOverridden(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		b.clock.Advance(time.Second)
		got, err := b.Rotate(t.Context(), Rotate{Name: "payments", Override: true, Reason: "only verifier restarted"})
		if err != nil {
			t.Fatal(err)
		}
		if got.Active().Kid != set.Standby().Kid || got.Active().Reason != "only verifier restarted" {
			t.Errorf("rotated to %+v", got.Active())
		}
		e := b.events(t, "signing_key.active")[1]
		if e.Detail["override"] != true || e.Reason != "only verifier restarted" {
			t.Errorf("the override is not in the trail: %+v", e)
		}
	})
}

// A rotation never waits for a search for primes: it is made at once, and the
// next standby follows when there is a spare.
func TestRotateWhenNoSpareExists(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", RS256, quick())
		b.walk(t, quickLead)
		got, err := b.Rotate(t.Context(), Rotate{Name: "payments"})
		if err != nil {
			t.Fatal(err)
		}
		if got.Active().Kid != set.Standby().Kid || got.Standby() != nil {
			t.Fatalf("rotated to %v, want no standby yet", kids(got))
		}
		if want := b.clock.Now().Add(time.Second); !got.NextAt.Equal(want) {
			t.Errorf("looked at again at %s, want %s", got.NextAt, want)
		}
		_, err = b.Rotate(t.Context(), Rotate{Name: "payments"})
		wantFault(t, err, fault.ErrTransition, "no_standby", "")
		b.walk(t, time.Second)
		if b.get(t, "payments").Standby() != nil {
			t.Fatal("a pass searched for primes")
		}
		if _, err := b.PreparePass(t.Context(), b.clock.Now()); err != nil {
			t.Fatal(err)
		}
		b.walk(t, time.Second)
		got = b.get(t, "payments")
		if got.Standby() == nil || !got.Standby().ServedSince.Equal(b.clock.Now()) {
			t.Fatalf("no standby after a spare was made: %v", kids(got))
		}
		b.walk(t, quickLead-time.Second)
		_, err = b.Rotate(t.Context(), Rotate{Name: "payments"})
		wantFault(t, err, fault.ErrTransition, "lead_not_over", "")
	})
}

func TestPassReportsNextInstant(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		if next := b.pass(t); !next.IsZero() {
			t.Errorf("nothing is due, but next is %s", next)
		}
		b.create(t, "payments", ES256, quick())
		b.clock.Advance(time.Second)
		b.create(t, "orders", ES256, quick())
		if next := b.pass(t); !next.Equal(epoch.Add(time.Hour)) {
			t.Errorf("next is %s", next)
		}
	})
}

// One keyset that can't be moved does not stop the others.
func TestPassWhenOneKeysetFails(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "bad", ES256, quick())
		b.create(t, "good", ES256, quick())
		b.walk(t, time.Hour-time.Second)
		mustExec(t, db, `UPDATE keysets SET policy = '{' WHERE name = 'bad'`)
		b.clock.Advance(time.Second)
		_, err := b.Pass(t.Context(), b.clock.Now())
		if err == nil || !strings.Contains(err.Error(), `"bad"`) {
			t.Errorf("the failure is reported as %v", err)
		}
		if set := b.get(t, "good"); len(set.Keys) != 3 {
			t.Errorf("the good keyset did not rotate: %v", kids(set))
		}
	})
}

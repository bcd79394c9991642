package apikeys

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Promise: a verification writes nothing; when a key was used is written at most
// every half minute, and never goes back.
func TestUsesWhenKeysAreUsed(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		other := d.replica(t, db, VerifierConfig{})
		d.partner(t, "acme", "a")
		k, value := d.key(t, KeySpec{Partner: "acme"})
		used := func() (first, last time.Time) {
			t.Helper()
			got, err := d.keys.Get(t.Context(), APIKey, "acme", k.ID)
			if err != nil {
				t.Fatal(err)
			}
			if got.Version != k.Version {
				t.Error("a use changed the key's version")
			}
			return got.FirstUsedAt, got.LastUsedAt
		}
		pass := func(d *desk) {
			t.Helper()
			if _, err := d.Pass(t.Context(), d.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		pass(d)
		d.pass(time.Second)
		d.want(t, value, &Need{Scopes: []string{"a"}}, ReasonScope)
		pass(d)
		d.pass(usedEvery)
		pass(d)
		if first, last := used(); !first.IsZero() || !last.IsZero() {
			t.Errorf("a denied key was used at %s, %s", first, last)
		}
		begun := d.clock.Now()
		d.want(t, value, nil, ReasonOK)
		for range 3 {
			pass(d)
			d.pass(usedEvery / 4)
		}
		if _, last := used(); !last.IsZero() {
			t.Errorf("written at once: %s", last)
		}
		d.want(t, value, nil, ReasonOK)
		newest := d.clock.Now()
		d.pass(usedEvery / 4)
		pass(d)
		if first, last := used(); !first.Equal(begun) || !last.Equal(newest) {
			t.Errorf("used from %s to %s, want %s to %s", first, last, begun, newest)
		}
		// A replica that is behind with its writing does not turn it back.
		d.clock.Advance(-10 * time.Second)
		other.refresh(t)
		other.want(t, value, nil, ReasonOK)
		if err := other.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, last := used(); !last.Equal(newest) {
			t.Errorf("last used %s, want %s", last, newest)
		}
		d.clock.Advance(time.Minute)
		other.want(t, value, nil, ReasonOK)
		if err := other.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if first, last := used(); !first.Equal(begun) || !last.Equal(d.clock.Now()) {
			t.Errorf("used from %s to %s, want %s to %s", first, last, begun, d.clock.Now())
		}
	})
}

// Promise: each verification of a key is in the trail by its outcome, and whoever has
// not its value, or no right signature, counts for none.
func TestUsesWhenTheyAreCounted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		if _, err := d.usage.Pass(t.Context(), d.clock.Now()); err != nil {
			t.Fatal(err)
		}
		d.partner(t, "acme", "a")
		k, value := d.key(t, KeySpec{Partner: "acme", CIDRs: []string{here.String()}, Rate: RateLimit{Quota: 2, Window: time.Hour}})
		s, key, _ := d.secret(t, KeySpec{Partner: "acme"})
		for range 2 {
			d.want(t, value, &Need{Address: here}, ReasonOK)
		}
		d.want(t, value, &Need{Address: here}, ReasonRate)
		d.want(t, value, &Need{Address: there}, ReasonAddress)
		d.want(t, value, &Need{Address: here, Partner: "other"}, ReasonUnknown)
		body := brand + "_live_" + k.ID + "_" + random(secretLength, 32)
		d.want(t, body+checksum(body), &Need{Address: here}, ReasonUnknown)
		r := signed(t, s.ID, key, d.clock.Now(), nil)
		d.wantRequest(t, r, ReasonOK)
		d.wantRequest(t, r, ReasonReplay)
		r.Message.Path = "/"
		d.wantRequest(t, r, ReasonSignature)
		r.Explain = true
		d.wantRequest(t, r, ReasonSignature)
		if _, err := d.keys.Revoke(t.Context(), APIKey, "acme", k.ID, "", ""); err != nil {
			t.Fatal(err)
		}
		d.want(t, value, nil, ReasonRevoked)
		d.pass(time.Minute)
		if err := d.usage.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		accepted, denied := counted(t, db, audit.APIKeyUsage, k.Resource())
		if diff := cmp.Diff(map[string]int64{"rate": 1, "address": 1, "revoked": 1}, denied); accepted != 2 || diff != "" {
			t.Errorf("API key: accepted %d, denied (-want +got):\n%s", accepted, diff)
		}
		accepted, denied = counted(t, db, audit.RequestSecretUsage, s.Resource())
		if diff := cmp.Diff(map[string]int64{"replay": 1}, denied); accepted != 1 || diff != "" {
			t.Errorf("request secret: accepted %d, denied (-want +got):\n%s", accepted, diff)
		}
		if n := d.Stats().Decision; n[ReasonUnknown] != 2 || n[ReasonSignature] != 1 || n[ReasonOK] != 3 {
			t.Errorf("%v", n)
		}
	})
}

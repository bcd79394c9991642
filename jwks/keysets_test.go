package jwks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// checkDocument fails when a document holds anything but public halves.
func checkDocument(t testing.TB, d *Document, alg string) {
	t.Helper()
	var doc map[string][]map[string]any
	if err := json.Unmarshal(d.Body, &doc); err != nil || len(doc) != 1 || len(doc["keys"]) == 0 {
		t.Fatalf("no JWK set: %v: %s", err, d.Body)
	}
	for _, k := range doc["keys"] {
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "k", "oth"} {
			if _, there := k[private]; there {
				t.Fatalf("key %v has the private member %q", k["kid"], private)
			}
		}
		if k["alg"] != alg || k["use"] != "sig" || k["kid"] == "" {
			t.Errorf("key %v has alg %v and use %v", k["kid"], k["alg"], k["use"])
		}
	}
}

// Promise: what Rotunda signs, its own document verifies, in every algorithm.
func TestCreateWithEveryAlgorithm(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		for _, alg := range Algorithms {
			t.Run(string(alg), func(t *testing.T) {
				name := strings.ToLower(string(alg))
				set := b.create(t, name, alg, quick())
				if len(set.Keys) != 2 || set.Active() == nil || set.Standby() == nil {
					t.Fatalf("a new keyset has %v", kids(set))
				}
				jws := string(alg)
				if alg == Ed25519 {
					jws = "EdDSA"
				}
				checkDocument(t, b.Document(name), jws)
				s := b.sign(t, name)
				if err := b.accepted(t, name, s.Token); err != nil {
					t.Fatal(err)
				}
				if s.Kid != set.Active().Kid {
					t.Errorf("signed by %s, the active key is %s", s.Kid, set.Active().Kid)
				}
				payload := []byte(s.Token)
				payload[len(payload)-10] ^= 1 // a byte of the signature
				if b.accepted(t, name, string(payload)) == nil {
					t.Error("a damaged token is accepted")
				}
			})
		}
	})
}

func TestCreateStoresWhatItReturns(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		p := quick()
		p.Rotate = schedule.Schedule{Cron: "0 3 * * 1", Zone: "Europe/Berlin", Jitter: time.Hour}
		p.Consumers = []Consumer{{Name: "envoy", Cache: ptr(time.Duration(0))}, {Name: "jose", Throttle: ptr(time.Minute)}}
		p.EmergencyTarget = time.Hour
		got := b.create(t, "payments", "", p)
		if got.Algorithm != ES256 {
			t.Errorf("the algorithm is %s by default", got.Algorithm)
		}
		if diff := cmp.Diff(got, b.get(t, "payments")); diff != "" {
			t.Errorf("created and read differ (-created +read):\n%s", diff)
		}
		if want := got.Outlook()[got.Standby().Kid].At; !got.NextAt.Equal(want) {
			t.Errorf("it is looked at again at %s, want %s", got.NextAt, want)
		}
		var actions []string
		for _, e := range b.events(t, "") {
			actions = append(actions, e.Action+" "+e.Outcome)
		}
		if diff := cmp.Diff([]string{"keyset.create ok", "signing_key.active ok", "signing_key.pending ok"}, actions); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

func TestCreateWhenRefused(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "taken", ES256, quick())
		before := dump(t, db)
		good := Create{Name: "payments", Issuer: "https://a.b", Policy: quick()}
		for _, tc := range []struct {
			name          string
			change        func(*Create)
			kind          error
			reason, field string
		}{
			{"unknown algorithm", func(c *Create) { c.Algorithm = "HS256" }, fault.ErrInvalid, "unknown_algorithm", "algorithm"},
			{"no algorithm", func(c *Create) { c.Algorithm = "none" }, fault.ErrInvalid, "unknown_algorithm", "algorithm"},
			{"bad name", func(c *Create) { c.Name = "Payments" }, fault.ErrInvalid, "bad_name", "name"},
			{"bad issuer", func(c *Create) { c.Issuer = "http://a.b" }, fault.ErrInvalid, "bad_issuer", "issuer"},
			{"unsafe policy", func(c *Create) { c.Policy.PublishAhead = time.Second }, fault.ErrInvalid, "lead_too_short", "policy.publish_ahead"},
			{"duplicate name", func(c *Create) { c.Name = "taken" }, fault.ErrExists, "name_taken", "name"},
			{"duplicate name, dry run", func(c *Create) { c.Name, c.DryRun = "taken", true }, fault.ErrExists, "name_taken", "name"},
			{"bad idempotency key", func(c *Create) { c.Once.Key = "a\x00b" }, fault.ErrInvalid, "idempotency_key_invalid", "idempotency_key"},
		} {
			req := good
			tc.change(&req)
			_, err := b.Create(t.Context(), req)
			t.Run(tc.name, func(t *testing.T) { wantFault(t, err, tc.kind, tc.reason, tc.field) })
		}
		req := good
		req.DryRun = true
		set, err := b.Create(t.Context(), req)
		if err != nil || set.Name != "payments" || set.Algorithm != ES256 {
			t.Errorf("dry run: %v, %v", set, err)
		}
		if after := dump(t, db); after != before {
			t.Error("a refused or dry create changed the database")
		}
	})
}

func TestCreateWhenRepeated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		req := Create{Name: "payments", Issuer: "https://a.b", Policy: quick(), Once: store.Once{Scope: "ada/create", Key: "k1", Fingerprint: "f1"}}
		first, err := b.Create(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		before := dump(t, db)
		again, err := b.Create(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first, again); diff != "" {
			t.Errorf("the repetition returned something else:\n%s", diff)
		}
		other := req
		other.Name, other.Once.Fingerprint = "orders", "f2"
		_, err = b.Create(t.Context(), other)
		wantFault(t, err, fault.ErrInvalid, "idempotency_key_reused", "idempotency_key")
		other = req
		other.Once.Key = "k2"
		_, err = b.Create(t.Context(), other)
		wantFault(t, err, fault.ErrExists, "name_taken", "name")
		if after := dump(t, db); after != before {
			t.Error("repetitions changed the database")
		}
	})
}

func TestKeysetWhenUnknown(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		for _, name := range []string{"", "nobody", "a\x00b", "\xff", strings.Repeat("x", 10_000)} {
			_, err := b.Get(t.Context(), name)
			wantFault(t, err, fault.ErrNotFound, "keyset_not_found", "name")
			_, _, err = b.History(t.Context(), name, "", 10)
			wantFault(t, err, fault.ErrNotFound, "keyset_not_found", "name")
			_, err = b.Rotate(t.Context(), Rotate{Name: name})
			wantFault(t, err, fault.ErrNotFound, "keyset_not_found", "name")
			_, _, err = b.Revoke(t.Context(), Revoke{Name: name, Kid: "x", Reason: "superseded"})
			wantFault(t, err, fault.ErrNotFound, "keyset_not_found", "name")
			_, err = b.UpdatePolicy(t.Context(), UpdatePolicy{Name: name, Policy: quick()})
			wantFault(t, err, fault.ErrNotFound, "keyset_not_found", "name")
			_, err = b.Sign(t.Context(), Sign{Name: name})
			wantFault(t, err, fault.ErrNotFound, "keyset_not_found", "name")
			if d := b.Document(name); d != nil {
				t.Errorf("keyset %q has a document", name)
			}
			if len(err.Error()) > 400 {
				t.Errorf("a message of %d bytes", len(err.Error()))
			}
		}
	})
}

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

// The ETag changes exactly when the body does.
func TestETagFollowsBody(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		b.create(t, "orders", ES256, quick())
		seen := map[string]string{}
		look := func() {
			d := b.Document("payments")
			if body, ok := seen[d.ETag]; ok && body != string(d.Body) {
				t.Fatal("two bodies with one ETag")
			}
			for etag, body := range seen {
				if body == string(d.Body) && etag != d.ETag {
					t.Fatal("one body with two ETags")
				}
			}
			if !strings.HasPrefix(d.ETag, `"`) || !strings.HasSuffix(d.ETag, `"`) || len(d.ETag) < 20 {
				t.Fatalf("ETag %s is not strong and quoted", d.ETag)
			}
			seen[d.ETag] = string(d.Body)
		}
		look()
		if b.Document("payments").ETag == b.Document("orders").ETag {
			t.Error("two keysets have one ETag")
		}
		p := quick()
		p.MaxAge = 30 * time.Second
		if _, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: p}); err != nil {
			t.Fatal(err)
		}
		look()
		if len(seen) != 1 {
			t.Error("a policy changed the ETag")
		}
		if got := b.Document("payments").MaxAge(b.clock.Now()); got != 30*time.Second {
			t.Errorf("max-age %s after the policy changed", got)
		}
		for range 3 {
			b.walk(t, quickLead)
			if _, err := b.Rotate(t.Context(), Rotate{Name: "payments"}); err != nil {
				t.Fatal(err)
			}
			look()
		}
		if len(seen) != 4 {
			t.Errorf("%d ETags after three rotations, want 4", len(seen))
		}
	})
}

// What is served is never cached beyond the removal of a key.
func TestMaxAgeAroundRemoval(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		p := quick()
		p.MaxAge = 5 * time.Minute
		b.create(t, "payments", ES256, p)
		b.sign(t, "payments")
		b.walk(t, time.Hour)
		removal := b.clock.Now().Add(quickRetire)
		for b.clock.Now().Before(removal) {
			want := max(time.Second, min(p.MaxAge, removal.Sub(b.clock.Now())).Truncate(time.Second))
			if got := b.Document("payments").MaxAge(b.clock.Now()); got != want {
				t.Fatalf("%s before the removal: max-age %s, want %s", removal.Sub(b.clock.Now()), got, want)
			}
			b.clock.Advance(7500 * time.Millisecond)
			if b.clock.Now().Before(removal) {
				b.pass(t)
			}
		}
		if got := b.Document("payments").MaxAge(b.clock.Now()); got != time.Second {
			t.Errorf("max-age %s while a removal is due", got)
		}
		b.pass(t)
		if got := b.Document("payments").MaxAge(b.clock.Now()); got != p.MaxAge {
			t.Errorf("max-age %s after the removal", got)
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

func TestUpdatePolicy(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		before := dump(t, db)
		longer := quick()
		longer.Consumers, longer.MaxAge = named("envoy"), 30*time.Second // lead 10m40s
		dry, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: longer, Version: 1, DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		if dry.Policy.Lead() != 640*time.Second || dry.PolicyVersion != 1 {
			t.Errorf("the dry run shows %+v", dry)
		}
		unsafe := quick()
		unsafe.PublishAhead = time.Second
		for _, dryRun := range []bool{true, false} {
			_, err = b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: unsafe, DryRun: dryRun})
			wantFault(t, err, fault.ErrInvalid, "lead_too_short", "policy.publish_ahead", "1s", "1m40s")
			_, err = b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: longer, Version: 2, DryRun: dryRun})
			wantFault(t, err, fault.ErrChanged, "policy_changed", "policy_version", "version 1", "not 2")
		}
		if after := dump(t, db); after != before {
			t.Error("a dry or refused update changed the database")
		}
		b.walk(t, quickLead)
		got, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: longer, Version: 1})
		if err != nil {
			t.Fatal(err)
		}
		if got.PolicyVersion != 2 || got.Version != set.Version {
			t.Errorf("policy version %d, version %d", got.PolicyVersion, got.Version)
		}
		if diff := cmp.Diff(got, b.get(t, "payments")); diff != "" {
			t.Errorf("updated and read differ (-returned +read):\n%s", diff)
		}
		// The old lead is over, the new one is not; and documents with the longer
		// max-age may be cached for as long again from now: 1m40s + 10m40s.
		_, err = b.Rotate(t.Context(), Rotate{Name: "payments"})
		wantFault(t, err, fault.ErrTransition, "lead_not_over", "", "12m20s")
		_, err = b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: quick(), Version: 1})
		wantFault(t, err, fault.ErrChanged, "policy_changed", "policy_version")
		b.clock.Advance(time.Second) // events of one instant have no order
		if _, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: quick()}); err != nil {
			t.Errorf("version 0 does not overwrite: %v", err)
		}
		events := b.events(t, "keyset.update_policy")
		if len(events) != 2 || events[0].Detail["policy_version"] != 2.0 {
			t.Fatalf("events %+v", events)
		}
		to := events[0].Detail["to"].(map[string]any)
		if to["max_age"] != float64(30*time.Second) {
			t.Errorf("the event says %v", to)
		}
	})
}

// A dry run shows the keyset that the real update would make.
func TestUpdatePolicyDryRunIsHonest(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		p := quick()
		p.Consumers = named("step-ca")
		p.MaxAge = 5 * time.Minute
		b.create(t, "payments", ES256, p)
		p.MaxAge = time.Minute
		p.Rotate.Every = 10 * time.Minute
		dry, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: p, DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		got, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: p})
		if err != nil {
			t.Fatal(err)
		}
		if !got.LeadUntil.Equal(epoch.Add(340*time.Second)) || !got.NextAt.Equal(epoch.Add(10*time.Minute)) {
			t.Errorf("LeadUntil %s, NextAt %s", got.LeadUntil, got.NextAt)
		}
		if !dry.LeadUntil.Equal(got.LeadUntil) || !dry.NextAt.Equal(got.NextAt) {
			t.Errorf("the dry run said %s and %s, the update %s and %s", dry.LeadUntil, dry.NextAt, got.LeadUntil, got.NextAt)
		}
		b.walk(t, 340*time.Second-us)
		_, err = b.Rotate(t.Context(), Rotate{Name: "payments"})
		wantFault(t, err, fault.ErrTransition, "lead_not_over", "")
		b.clock.Advance(us)
		if _, err := b.Rotate(t.Context(), Rotate{Name: "payments"}); err != nil {
			t.Error(err)
		}
	})
}

func TestListPages(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		var want []string
		for i := range 7 {
			name := fmt.Sprintf("set-%d", i)
			want = append(want, name)
			b.create(t, name, ES256, quick())
		}
		for limit := 1; limit <= 8; limit++ {
			var got []string
			pages, after := 0, ""
			for {
				sets, next, err := b.List(t.Context(), after, limit)
				if err != nil {
					t.Fatal(err)
				}
				pages++
				for _, s := range sets {
					if len(s.Keys) != 2 {
						t.Errorf("%s is listed with %d keys", s.Name, len(s.Keys))
					}
					got = append(got, s.Name)
				}
				if after = next; after == "" {
					break
				}
			}
			if !slices.Equal(got, want) || pages != (7+limit-1)/limit {
				t.Errorf("limit %d: %v in %d pages", limit, got, pages)
			}
		}
	})
}

func TestHistoryPages(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		var want []string
		for range 5 { // two keys at each instant
			set := b.get(t, "payments")
			for _, kid := range []string{set.Standby().Kid, set.Active().Kid} {
				if _, _, err := b.Revoke(t.Context(), Revoke{Name: "payments", Kid: kid, Mode: ModeFresh, Reason: "superseded"}); err != nil {
					t.Fatal(err)
				}
				if now := b.get(t, "payments"); now.Standby() == nil {
					b.clock.Advance(time.Second)
					b.pass(t)
				}
			}
			b.clock.Advance(time.Second)
		}
		for limit := 1; limit <= 11; limit++ {
			var got []string
			page := ""
			for n := 0; ; n++ {
				keys, next, err := b.History(t.Context(), "payments", page, limit)
				if err != nil {
					t.Fatal(err)
				}
				for i, k := range keys {
					got = append(got, k.Kid)
					if k.State != Revoked || i > 0 && k.WithdrawnAt.After(keys[i-1].WithdrawnAt) {
						t.Errorf("key %d of the page is %s, withdrawn at %s", i, k.State, k.WithdrawnAt)
					}
				}
				if page = next; page == "" {
					break
				}
			}
			if want == nil {
				want = got
				if n := int(count(t, db, `SELECT COUNT(*) FROM signing_keys WHERE state = 'revoked'`)); n != len(want) || n < 10 {
					t.Fatalf("%d keys in the history, %d in the table", len(want), n)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("limit %d: %d keys, want %d", limit, len(got), len(want))
			}
		}
		for _, page := range []string{"!", "AAAA", "eHg", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OSBr" /* 99…9 k */, "NSAA" /* 5, NUL */, "NSD_" /* 5, 0xff */} {
			_, _, err := b.History(t.Context(), "payments", page, 10)
			t.Run(page, func(t *testing.T) { wantFault(t, err, fault.ErrInvalid, "bad_page_token", "page_token") })
		}
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

func TestWatch(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		versions := make(chan int64)
		ended := make(chan error, 1)
		go func() {
			ended <- b.Watch(ctx, "payments", 0, func(d *Document) error {
				versions <- d.Version
				return nil
			})
		}()
		if v := <-versions; v != set.Version {
			t.Errorf("began with version %d, want %d", v, set.Version)
		}
		b.create(t, "orders", ES256, quick()) // another keyset wakes nobody's f
		b.walk(t, quickLead)
		if _, err := b.Rotate(t.Context(), Rotate{Name: "payments"}); err != nil {
			t.Fatal(err)
		}
		if v := <-versions; v != set.Version+1 {
			t.Errorf("told of version %d, want %d", v, set.Version+1)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		wantFault(t, b.Watch(t.Context(), "nobody", 0, nil), fault.ErrNotFound, "keyset_not_found", "name")
		stop := errors.New("stop")
		if err := b.Watch(t.Context(), "payments", 0, func(*Document) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("f's error became %v", err)
		}
	})
}

// A fresh process serves what the database holds.
func TestRefreshInNewProcess(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		b.create(t, "orders", Ed25519, quick())
		token := b.sign(t, "orders")
		other := New(Config{DB: db, Local: b.local})
		if other.Loaded() || other.Document("payments") != nil {
			t.Error("a new process has documents before it has read any")
		}
		if err := other.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !other.Loaded() || string(other.Document("payments").Body) != string(b.Document("payments").Body) {
			t.Error("the new process serves something else")
		}
		if err := verify(other.Document("orders").Body, token.Token, b.clock.Now()); err != nil {
			t.Error(err)
		}
		s, err := other.Sign(t.Context(), Sign{Name: "orders"})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.accepted(t, "orders", s.Token); err != nil {
			t.Error(err)
		}
	})
}

package jwks

import (
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

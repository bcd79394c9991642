package jwks

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func (b *bed) revoke(t testing.TB, req Revoke) *Keyset {
	t.Helper()
	if req.Reason == "" {
		req.Reason = "key_compromise"
	}
	_, set, err := b.Revoke(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// gone fails unless a key is withdrawn, everywhere.
func (b *bed) gone(t testing.TB, name, kid string) {
	t.Helper()
	if n := count(t, b.db, `SELECT COUNT(*) FROM signing_keys WHERE kid = $1 AND state = 'revoked' AND home = 'none' AND private IS NULL AND withdrawn_at > 0`, kid); n != 1 {
		t.Errorf("key %s is not withdrawn", kid)
	}
	if k := b.get(t, name).key(kid); k != nil {
		t.Errorf("key %s is still %s", kid, k.State)
	}
	var set struct{ Keys []struct{ Kid string } }
	unmarshal(t, b.Document(name).Body, &set)
	for _, k := range set.Keys {
		if k.Kid == kid {
			t.Errorf("key %s is still served", kid)
		}
	}
}

func TestRevokeActiveKey(t *testing.T) {
	for _, mode := range []Mode{ModeStandby, ModeFresh} {
		t.Run(string(mode), func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				b := newBed(t, db)
				set := b.create(t, "payments", ES256, quick())
				old, standby := set.Active().Kid, set.Standby().Kid
				token := b.sign(t, "payments")
				b.clock.Advance(time.Second)
				got := b.revoke(t, Revoke{Name: "payments", Kid: old, Mode: mode, Comment: "laptop stolen"})
				if diff := cmp.Diff(got, b.get(t, "payments")); diff != "" {
					t.Errorf("returned and read differ (-returned +read):\n%s", diff)
				}
				b.gone(t, "payments", old)
				if b.accepted(t, "payments", token.Token) == nil {
					t.Error("a token of the revoked key is accepted by the new document")
				}
				s := b.sign(t, "payments")
				if err := b.accepted(t, "payments", s.Token); err != nil {
					t.Error(err)
				}
				if (s.Kid == standby) != (mode == ModeStandby) || s.Kid == old {
					t.Errorf("%s signs; the standby was %s", s.Kid, standby)
				}
				if now := got.Standby(); now == nil || (now.Kid == standby) != (mode == ModeFresh) {
					t.Errorf("after the revocation: %v", kids(got))
				}
				if got.Version != set.Version+1 {
					t.Errorf("version %d after %d", got.Version, set.Version)
				}
				e := b.events(t, "keyset.revoke_key")
				if len(e) != 1 || e[0].Reason != "key_compromise" || e[0].Detail["comment"] != "laptop stolen" || e[0].Detail["was"] != "active" || e[0].Detail["outstanding_tokens"] != 1.0 {
					t.Errorf("events %+v", e)
				}
				if e := b.events(t, "signing_key.revoked"); len(e) != 1 || e[0].Reason != "key_compromise" {
					t.Errorf("events %+v", e)
				}
				// Neither the kid nor the key comes back.
				_, _, err := b.Revoke(t.Context(), Revoke{Name: "payments", Kid: old, Mode: mode, Reason: "key_compromise"})
				wantFault(t, err, fault.ErrNotFound, "kid_not_found", "kid")
			})
		})
	}
}

func TestRevokeKeyThatDoesNotSign(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		active, pending := set.Active().Kid, set.Standby().Kid
		got := b.revoke(t, Revoke{Name: "payments", Kid: pending})
		b.gone(t, "payments", pending)
		if got.Active().Kid != active || got.Standby() == nil || got.Standby().Kid == pending {
			t.Errorf("after the pending key: %v", kids(got))
		}
		b.walk(t, quickLead)
		if _, err := b.Rotate(t.Context(), Rotate{Name: "payments"}); err != nil {
			t.Fatal(err)
		}
		before := b.get(t, "payments")
		got = b.revoke(t, Revoke{Name: "payments", Kid: active})
		b.gone(t, "payments", active)
		if got.Active().Kid != before.Active().Kid || got.Standby().Kid != before.Standby().Kid || len(got.Keys) != 2 {
			t.Errorf("after the retiring key: %v", kids(got))
		}
		// fresh also replaces the active key: some consumers drop a key only then.
		b.clock.Advance(time.Second)
		got = b.revoke(t, Revoke{Name: "payments", Kid: got.Standby().Kid, Mode: ModeFresh})
		if got.Active().Kid == before.Active().Kid || got.key(before.Active().Kid).State != Retiring {
			t.Errorf("after fresh: %v", kids(got))
		}
	})
}

func TestRevokeWhenRefused(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		active := set.Active().Kid
		before := dump(t, db)
		for _, tc := range []struct {
			name          string
			req           Revoke
			kind          error
			reason, field string
		}{
			{"unknown kid", Revoke{Name: "payments", Kid: "nobody", Mode: ModeFresh, Reason: "superseded"}, fault.ErrNotFound, "kid_not_found", "kid"},
			{"unknown kid, dry run", Revoke{Name: "payments", Kid: "nobody", DryRun: true}, fault.ErrNotFound, "kid_not_found", "kid"},
			{"odd kid", Revoke{Name: "payments", Kid: "\xff\x00\n", Mode: ModeFresh, Reason: "superseded"}, fault.ErrNotFound, "kid_not_found", "kid"},
			{"no kid", Revoke{Name: "payments", Reason: "superseded"}, fault.ErrNotFound, "kid_not_found", "kid"},
			{"unknown keyset", Revoke{Name: "orders", Kid: active, Mode: ModeFresh, Reason: "superseded"}, fault.ErrNotFound, "keyset_not_found", "name"},
			{"no mode", Revoke{Name: "payments", Kid: active, Reason: "superseded"}, fault.ErrInvalid, "mode_required", "mode"},
			{"unknown mode", Revoke{Name: "payments", Kid: active, Mode: "soft", Reason: "superseded"}, fault.ErrInvalid, "unknown_mode", "mode"},
			{"no reason", Revoke{Name: "payments", Kid: active, Mode: ModeFresh}, fault.ErrInvalid, "unknown_reason", "reason"},
			{"unknown reason", Revoke{Name: "payments", Kid: active, Mode: ModeFresh, Reason: "because"}, fault.ErrInvalid, "unknown_reason", "reason"},
		} {
			_, _, err := b.Revoke(t.Context(), tc.req)
			t.Run(tc.name, func(t *testing.T) { wantFault(t, err, tc.kind, tc.reason, tc.field) })
		}
		if after := dump(t, db); after != before {
			t.Error("a refused revocation changed the database")
		}
	})
}

func TestRevokeWhenNoStandbyIsThere(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.local.spares = map[int][]*rsaKey{2048: {rsaKeys()[0], rsaKeys()[1]}}
		set := b.create(t, "payments", RS256, quick())
		got := b.revoke(t, Revoke{Name: "payments", Kid: set.Standby().Kid}) // no spare is left
		if got.Standby() != nil {
			t.Fatalf("after the standby: %v", kids(got))
		}
		before := dump(t, db)
		plan, _, err := b.Revoke(t.Context(), Revoke{Name: "payments", Kid: set.Active().Kid, DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		if plan.Modes[0].Possible || plan.Modes[0].Why == "" || !plan.Modes[1].Possible {
			t.Errorf("the plan says %+v", plan.Modes)
		}
		_, _, err = b.Revoke(t.Context(), Revoke{Name: "payments", Kid: set.Active().Kid, Mode: ModeStandby, Reason: "key_compromise"})
		wantFault(t, err, fault.ErrTransition, "no_standby", "mode")
		if after := dump(t, db); after != before {
			t.Error("the refused revocation changed the database")
		}
		// fresh makes a key, however long that takes: nothing may sign with the revoked one.
		got = b.revoke(t, Revoke{Name: "payments", Kid: set.Active().Kid, Mode: ModeFresh})
		if got.Active() == nil || got.Standby() != nil {
			t.Errorf("after fresh: %v", kids(got))
		}
	})
}

// The figures are worked out by hand, from P = 10s, F = 5m, and 120 tokens.
func TestRevokePredictions(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		p := DefaultPolicy()
		p.Consumers = named("envoy", "go-oidc", "jose", "jwks-rsa")
		set := b.create(t, "payments", ES256, p)
		for range 120 {
			b.sign(t, "payments")
		}
		type row struct{ exposure, refusal string }
		fresh := []row{{"15m11s", "10m10s"}, {"5m10s", "10s"}, {"6m10s", "40s"}, {"10m10s", "10s"}}
		for _, tc := range []struct {
			at          time.Duration
			rate        float64
			outstanding int64
			standby     []row
		}{
			// Somebody may know the standby already, however young it is: no refetch is counted on.
			{5 * time.Second, 2, 120, []row{{"15m11s", "10m5s"}, {"forever", "5s"}, {"10m10s", "35s"}, {"10m10s", "5s"}}},
			{time.Minute, 2, 120, []row{{"15m11s", "9m10s"}, {"forever", "0s"}, {"10m10s", "0s"}, {"10m10s", "0s"}}},
			{20 * time.Minute, 0.1, 120, []row{{"15m11s", "0s"}, {"forever", "0s"}, {"10m10s", "0s"}, {"10m10s", "0s"}}},
			// Beyond the window of the rate and the life of the tokens.
			{2 * time.Hour, 0, 0, []row{{"15m11s", "0s"}, {"forever", "0s"}, {"10m10s", "0s"}, {"10m10s", "0s"}}},
		} {
			b.walk(t, epoch.Add(tc.at).Sub(b.clock.Now()))
			if err := b.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := dump(t, db)
			plan, changed, err := b.Revoke(t.Context(), Revoke{Name: "payments", Kid: set.Active().Kid, DryRun: true})
			if err != nil {
				t.Fatal(err)
			}
			if changed != nil || dump(t, db) != before {
				t.Error("the dry run changed something")
			}
			if math.Abs(plan.SignRate-tc.rate) > 1e-9 || plan.Outstanding != tc.outstanding {
				t.Errorf("at %s: rate %g, outstanding %d, want %g and %d", tc.at, plan.SignRate, plan.Outstanding, tc.rate, tc.outstanding)
			}
			for m, want := range map[int][]row{0: tc.standby, 1: fresh} {
				for i, pr := range plan.Modes[m].Predictions {
					if pr.Exposure != dur(t, want[i].exposure) || pr.Refusal != dur(t, want[i].refusal) || math.Abs(pr.Refused-tc.rate*dur(t, want[i].refusal).Seconds()) > 1e-9 {
						t.Errorf("at %s, mode %s, %s: exposed %s, refused for %s (%g tokens), want %v", tc.at, plan.Modes[m].Mode, pr.Consumer, spell(pr.Exposure), pr.Refusal, pr.Refused, want[i])
					}
				}
			}
			if plan.Modes[0].Mode != ModeStandby || plan.Modes[1].Mode != ModeFresh || !plan.Modes[0].Possible || !plan.Modes[1].Possible {
				t.Errorf("modes %+v", plan.Modes)
			}
		}
		// The standby signs nothing: withdrawing it refuses nothing.
		plan, _, err := b.Revoke(t.Context(), Revoke{Name: "payments", Kid: set.Standby().Kid, DryRun: true})
		if err != nil {
			t.Fatal(err)
		}
		if plan.Modes[0].Mode != modeNone || plan.Outstanding != 0 {
			t.Errorf("the standby's plan: %+v", plan)
		}
		for _, pr := range plan.Modes[0].Predictions {
			if pr.Refusal != 0 || pr.Refused != 0 {
				t.Errorf("withdrawing the standby would refuse %+v", pr)
			}
		}
	})
}

// Counts survive a database that can't be written for a while.
func TestSigningCountsWhenWriteFails(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		for range 3 {
			b.sign(t, "payments")
		}
		mend := breakWrites(t, db, "signing_counts", "INSERT", "NEW.count > 0")
		if err := b.Flush(t.Context()); err == nil {
			t.Fatal("the write did not fail")
		}
		b.sign(t, "payments")
		mend()
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.sign(t, "payments")
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, db, `SELECT SUM(count) FROM signing_counts`); n != 5 {
			t.Errorf("%d tokens are counted, 5 were signed", n)
		}
		b.walk(t, 3*time.Hour)
		if n := count(t, db, `SELECT COUNT(*) FROM signing_counts`); n != 0 {
			t.Errorf("%d counts are kept after their last use", n)
		}
	})
}

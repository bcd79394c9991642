package apikeys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func after(d time.Duration) time.Time { return epoch.Add(d) }

// use writes what the verifier writes.
func (b *bed) use(t testing.TB, k *Key) {
	t.Helper()
	exec(t, b.db, `UPDATE partner_keys SET last_used_at = $1 WHERE id = $2`, store.Micros(b.clock.Now()), k.ID)
}

func (b *bed) advance(t testing.TB) time.Time {
	t.Helper()
	next, err := b.keys.Pass(t.Context(), b.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func grace(d time.Duration) *time.Duration { return &d }

// The rules of time, to the microsecond.
func TestJudgeAndNextAt(t *testing.T) {
	const us = time.Microsecond
	const day, hour, minute = 24 * time.Hour, time.Hour, time.Minute
	retiring := Key{Stored: Retiring, Since: epoch, GraceEndsAt: after(8 * hour)} // warns from 6 h on
	quiet := retiring
	quiet.Quiet = 10 * minute
	suspended := quiet
	suspended.Stored = Suspended
	long := Key{Stored: Retiring, Since: epoch, GraceEndsAt: after(40 * day)} // warns from 39 d on
	used := func(k Key, at time.Duration) Key { k.LastUsedAt = after(at); return k }
	warned := func(k Key, at time.Duration) Key { k.WarnedAt = after(at); return k }
	for _, c := range []struct {
		what string
		k    Key
		at   time.Duration
		want verdict
		next time.Duration // after epoch; 0: never
	}{
		{"active", Key{Stored: Active}, day, verdict{}, 0},
		{"expired", Key{Stored: Active, ExpiresAt: after(hour)}, day, verdict{}, 0},
		{"suspended", Key{Stored: Suspended}, day, verdict{}, 0},
		{"retired", Key{Stored: Retired, GraceEndsAt: after(hour)}, day, verdict{}, 0},
		{"revoked", Key{Stored: Revoked, GraceEndsAt: after(hour)}, day, verdict{}, 0},

		{"rolled now", retiring, 0, verdict{}, 6 * hour},
		{"just before the last quarter", retiring, 6*hour - us, verdict{}, 6 * hour},
		{"unused in the last quarter", retiring, 6 * hour, verdict{}, 6*hour + 15*minute},
		{"used before the last quarter", used(retiring, 6*hour-us), 6 * hour, verdict{}, 6*hour + 15*minute},
		{"used in the last quarter", used(retiring, 6*hour), 6 * hour, verdict{warn: true}, 6 * hour},
		{"used, and told", warned(used(retiring, 6*hour), 6*hour), 6*hour + us, verdict{}, 8 * hour},
		{"near the end", retiring, 8*hour - 3*minute, verdict{}, 8 * hour},
		{"at the end but for a moment", used(retiring, 8*hour-us), 8*hour - us, verdict{warn: true}, 8*hour - us},
		{"at the end", retiring, 8 * hour, verdict{retire: "grace"}, 8 * hour},
		{"used at the end", used(retiring, 8*hour), 8 * hour, verdict{retire: "grace"}, 8 * hour},
		{"long after the end", retiring, day, verdict{retire: "grace"}, 8 * hour},
		{"the clock was set back", retiring, -day, verdict{}, 6 * hour},

		{"a day before the end of a long grace", long, 39 * day, verdict{}, 39*day + hour},
		{"used there", used(long, 39*day), 39 * day, verdict{warn: true}, 39 * day},
		{"told a day ago, and used since", warned(used(long, 39*day+2), 39*day+1), 40*day - us, verdict{}, 40 * day},

		{"quiet from the start", quiet, 0, verdict{}, 11 * minute},
		{"quiet but for a moment", quiet, 11*minute - us, verdict{}, 11 * minute},
		{"quiet", quiet, 11 * minute, verdict{retire: "quiet"}, 11 * minute},
		{"used meanwhile", used(quiet, 10*minute), 11 * minute, verdict{}, 21 * minute},
		{"used before it was rolled", used(quiet, -hour), 11 * minute, verdict{retire: "quiet"}, 11 * minute},
		{"quiet, after the end", used(quiet, 8*hour-us), 8 * hour, verdict{retire: "grace"}, 8 * hour},
		{"quiet while suspended", suspended, hour, verdict{}, 8 * hour},
		{"suspended at the end", suspended, 8 * hour, verdict{retire: "grace"}, 8 * hour},
	} {
		now := after(c.at)
		if got := judge(&c.k, now); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.what, got, c.want)
		}
		next := nextAt(&c.k, now)
		if want := after(c.next); c.next == 0 && !next.IsZero() || c.next != 0 && !next.Equal(want) {
			t.Errorf("%s: looks again after %s, want %s", c.what, next.Sub(epoch), c.next)
		}
	}
}

// Every move there is, and every one there is not, from every state.
func TestMoveWhenAllowed(t *testing.T) {
	states := []State{Active, Retiring, Suspended, Retired, Revoked}
	do := map[string]func(b *bed, ctx context.Context, k *Key) (*Key, error){
		"suspend": func(b *bed, ctx context.Context, k *Key) (*Key, error) {
			return b.keys.Suspend(ctx, k.Kind, "", k.ID, "why")
		},
		"resume": func(b *bed, ctx context.Context, k *Key) (*Key, error) {
			return b.keys.Resume(ctx, k.Kind, "", k.ID, "why")
		},
		"revoke": func(b *bed, ctx context.Context, k *Key) (*Key, error) {
			return b.keys.Revoke(ctx, k.Kind, "", k.ID, KeyCompromise, "seen on a forum")
		},
		"roll": func(b *bed, ctx context.Context, k *Key) (*Key, error) {
			_, old, err := b.keys.Roll(ctx, Roll{Kind: k.Kind, Partner: k.Partner, ID: k.ID, Name: k.Name})
			return old, err
		},
	}
	// What a key is after each act; "": refused, for the reason.
	type outcome struct {
		to     State
		reason string
	}
	want := map[string]map[string]outcome{
		"active":           {"suspend": {Suspended, ""}, "resume": {"", "is_active"}, "revoke": {Revoked, ""}, "roll": {Retiring, ""}},
		"retiring":         {"suspend": {Suspended, ""}, "resume": {"", "is_retiring"}, "revoke": {Revoked, ""}, "roll": {"", "is_retiring"}},
		"suspended":        {"suspend": {"", "is_suspended"}, "resume": {Active, ""}, "revoke": {Revoked, ""}, "roll": {"", "is_suspended"}},
		"rolled suspended": {"suspend": {"", "is_suspended"}, "resume": {Retiring, ""}, "revoke": {Revoked, ""}, "roll": {"", "is_suspended"}},
		"retired":          {"suspend": {"", "already_retired"}, "resume": {"", "already_retired"}, "revoke": {"", "already_retired"}, "roll": {"", "already_retired"}},
		"grace over":       {"suspend": {"", "already_retired"}, "resume": {"", "already_retired"}, "revoke": {"", "already_retired"}, "roll": {"", "already_retired"}},
		"revoked":          {"suspend": {"", "already_revoked"}, "resume": {"", "already_revoked"}, "revoke": {"", "already_revoked"}, "roll": {"", "already_revoked"}},
		"expired":          {"suspend": {"", "already_expired"}, "resume": {"", "already_expired"}, "revoke": {Revoked, ""}, "roll": {"", "already_expired"}},
		"expired asleep":   {"suspend": {"", "already_expired"}, "resume": {"", "already_expired"}, "revoke": {Revoked, ""}, "roll": {"", "already_expired"}},
	}
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		bring := func(t *testing.T, kind Kind, state, name string) *Key {
			t.Helper()
			must := func(k *Key, err error) *Key {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
				return k
			}
			k, _ := b.made(t, kind, KeySpec{Name: name, ExpiresIn: 2 * time.Hour})
			roll := func(g time.Duration) *Key {
				t.Helper()
				_, old, err := b.keys.Roll(t.Context(), Roll{Kind: kind, Partner: "acme", ID: k.ID, Name: name, Grace: grace(g)})
				if err != nil {
					t.Fatal(err)
				}
				if kind == RequestSecret { // so that the name leads to the old one
					list, err := b.keys.Versions(t.Context(), "acme", name)
					if err != nil {
						t.Fatal(err)
					}
					for _, v := range list {
						if v.ID != old.ID {
							exec(t, db, `DELETE FROM partner_keys WHERE id = $1`, v.ID)
						}
					}
				}
				return old
			}
			switch state {
			case "retiring":
				return roll(time.Hour)
			case "suspended":
				return must(b.keys.Suspend(t.Context(), kind, "acme", k.ID, ""))
			case "rolled suspended":
				roll(time.Hour)
				return must(b.keys.Suspend(t.Context(), kind, "acme", k.ID, ""))
			case "retired":
				return roll(0)
			case "grace over":
				k = roll(time.Hour)
				b.pass(time.Hour)
			case "revoked":
				return must(b.keys.Revoke(t.Context(), kind, "acme", k.ID, "", ""))
			case "expired":
				b.pass(2 * time.Hour)
			case "expired asleep":
				must(b.keys.Suspend(t.Context(), kind, "acme", k.ID, ""))
				b.pass(2 * time.Hour)
			}
			return k
		}
		n := 0
		for _, kind := range []Kind{APIKey, RequestSecret} {
			for state, acts := range want {
				for act, o := range acts {
					n++
					k := bring(t, kind, state, fmt.Sprint("k", n))
					before := b.get(t, k)
					b.pass(time.Second)
					got, err := do[act](b, t.Context(), k)
					after := b.get(t, k)
					if o.to == "" {
						f, ok := errors.AsType[*fault.Error](err)
						if !ok || !errors.Is(err, fault.ErrTransition) || f.Reason != o.reason || got != nil {
							t.Errorf("%s %s %s: got %v, want %s", act, state, kind, err, o.reason)
						}
						if diff := cmp.Diff(before, after, sameKey); diff != "" {
							t.Errorf("%s %s %s: it was changed:\n%s", act, state, kind, diff)
						}
						continue
					}
					if err != nil {
						t.Errorf("%s %s %s: %v", act, state, kind, err)
						continue
					}
					if diff := cmp.Diff(got, after, sameKey); diff != "" {
						t.Errorf("%s %s %s: what is returned and what is read differ:\n%s", act, state, kind, diff)
					}
					if after.Stored != o.to || !slices.Contains(states, after.Stored) || after.Version != before.Version+1 || !after.Since.Equal(b.clock.Now()) {
						t.Errorf("%s %s %s: %+v", act, state, kind, after)
					}
					if kind == RequestSecret && (after.sealed == nil) != after.Ended() {
						t.Errorf("%s %s: the secret is there: %v", act, state, after.sealed != nil)
					}
				}
			}
		}
		// An expired key that was rolled is retired by the pass, though nothing else may be done with it.
		k, _ := b.key(t, KeySpec{ExpiresIn: time.Hour})
		if _, _, err := b.keys.Roll(t.Context(), Roll{Kind: APIKey, ID: k.ID}); err != nil {
			t.Fatal(err)
		}
		b.pass(time.Hour)
		if got := b.get(t, k).State(b.clock.Now()); got != Expired {
			t.Errorf("it is %s", got)
		}
		b.advance(t)
		if got := b.get(t, k); got.Stored != Retired {
			t.Errorf("it is %s", got.Stored)
		}
	})
	// The table that move obeys leads nowhere from an end, and names known states.
	for from, to := range moves {
		if (from == Retired || from == Revoked) != (len(to) == 0) || !slices.Contains(states, from) {
			t.Errorf("%s leads to %v", from, to)
		}
	}
}

func TestRevokeWhenReasonIsGiven(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBed(t, db)
	b.partner(t, "acme", PartnerSpec{})
	for _, reason := range []string{"", KeyCompromise, AffiliationChanged, Superseded, CessationOfOperation, PrivilegeWithdrawn, Unspecified} {
		k, _ := b.key(t, KeySpec{})
		got, err := b.keys.Revoke(t.Context(), APIKey, "acme", k.ID, reason, "text")
		if reason == "" {
			reason = Unspecified
		}
		if err != nil || got.Reason != reason || got.ReasonText != "text" {
			t.Errorf("%s: %+v, %v", reason, got, err)
		}
		if got, want := b.events(t, k.Resource()), []string{"api_key.create", "api_key.revoke " + reason}; !slices.Contains(got, want[1]) || len(got) != 2 {
			t.Errorf("the trail has %v, want %v", got, want)
		}
	}
	k, _ := b.key(t, KeySpec{})
	for _, reason := range []string{"keyCompromise", "remove_from_crl", "x"} {
		_, err := b.keys.Revoke(t.Context(), APIKey, "acme", k.ID, reason, "")
		wantFault(t, err, fault.ErrInvalid, "bad_reason")
	}
	_, err := b.keys.Revoke(t.Context(), APIKey, "acme", k.ID, "", strings.Repeat("x", 201))
	wantFault(t, err, fault.ErrInvalid, "bad_reason")
	_, err = b.keys.Suspend(t.Context(), APIKey, "acme", k.ID, "a\nb")
	wantFault(t, err, fault.ErrInvalid, "bad_reason")
	_, err = b.keys.Resume(t.Context(), APIKey, "acme", k.ID, "a\nb")
	wantFault(t, err, fault.ErrInvalid, "bad_reason")
}

// Every change that takes away is told to the caches of this process after it is
// there, and announced to others.
func TestChangesAreTold(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		woken, stop := db.Listen(TopicKeys)
		defer stop()
		var heard []string
		b.partners.changes.listen(func(partner, id string) {
			k, err := b.keys.Get(context.WithoutCancel(t.Context()), APIKey, partner, id)
			if err != nil {
				t.Error(err)
				return
			}
			heard = append(heard, string(k.Stored))
		})
		k, _ := b.key(t, KeySpec{})
		if heard != nil {
			t.Errorf("a new key was told of: %v", heard)
		}
		do := func(_ *Key, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-woken:
			case <-time.After(30 * time.Second):
				t.Fatal("it was not announced")
			}
		}
		do(b.keys.Suspend(t.Context(), APIKey, "", k.ID, ""))
		do(b.keys.Resume(t.Context(), APIKey, "", k.ID, ""))
		do(b.keys.Update(t.Context(), k.ID, 3, KeySpec{Name: "x"}))
		_, _, err := b.keys.Roll(t.Context(), Roll{Kind: APIKey, ID: k.ID, Grace: grace(time.Hour)})
		do(nil, err)
		b.pass(time.Hour)
		b.advance(t)
		do(nil, nil)
		if got := strings.Join(heard, " "); got != "suspended active active retiring retired" {
			t.Errorf("heard %q", got)
		}
	})
}

// Of replicas that revoke one key at once, one does.
func TestRevokeWhenAtOnce(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		replicas := []*bed{b, b.other(t)}
		b.partner(t, "acme", PartnerSpec{})
		for range 5 {
			k, _ := b.key(t, KeySpec{})
			var wg sync.WaitGroup
			var mu sync.Mutex
			won := 0
			for i := range 4 {
				wg.Go(func() {
					_, err := replicas[i%2].keys.Revoke(t.Context(), APIKey, "", k.ID, "", "")
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						won++
					} else if !errors.Is(err, fault.ErrChanged) && !errors.Is(err, fault.ErrTransition) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if events := len(b.events(t, k.Resource())); won != 1 || events != 2 || b.get(t, k).Stored != Revoked {
				t.Fatalf("%d won, %d events", won, events)
			}
		}
	})
}

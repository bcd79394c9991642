package apikeys

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// rowOf is what one version of a key's row says; ownerOf the same of a partner.
type rowOf struct {
	stored         State
	expires, grace time.Time
	scopes         []string
	ranged         bool
}

type ownerOf struct {
	suspended bool
	scopes    []string
}

// judged is the decision by these rows, as the package's comment has it.
func (k rowOf) judged(p ownerOf, need *Need, now time.Time) Reason {
	over := func(end time.Time) bool { return !end.IsZero() && !now.Before(end) }
	switch {
	case k.stored == Revoked || k.stored == Retired:
		return ReasonRevoked
	case over(k.expires):
		return ReasonExpired
	case over(k.grace):
		return ReasonRevoked
	case k.stored == Suspended || p.suspended:
		return ReasonSuspended
	case k.ranged && need.Address != here:
		return ReasonAddress
	}
	for _, s := range need.Scopes {
		if !slices.Contains(k.scopes, s) || !slices.Contains(p.scopes, s) {
			return ReasonScope
		}
	}
	return ReasonOK
}

// modelKey is all that a key was, and from which version on each replica knows.
type modelKey struct {
	id, value string
	rows      []rowOf
	floor     [2]int
}

func (m *modelKey) now() rowOf { return m.rows[len(m.rows)-1] }

// Promise: a cache never outlives a grace, an expiry, a revocation, a suspension or
// a scope. Two replicas change, verify and hear of changes in any order: each one
// judges by a state that is at least as new as its own last change and as what was
// committed when it last called Refresh, and by the time that it is.
func TestCacheWhenTwoReplicasChangeKeys(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		far := VerifierConfig{StaleFor: 1 << 62}
		desks := [2]*desk{d.replica(t, db, far), d.replica(t, db, far)}
		all := []string{"a", "b", "c"}
		run := 0
		outcomes := map[Reason]int{}
		property := func(t *rapid.T) {
			run++
			name := fmt.Sprintf("p%d", run)
			p, err := d.partners.Create(t.Context(), name, PartnerSpec{Scopes: all}, store.Once{})
			if err != nil {
				t.Fatal(err)
			}
			owners := []ownerOf{{scopes: all}}
			ownerFloor := [2]int{}
			var keys []*modelKey
			fatal := func(err error) {
				if err != nil {
					t.Fatal(err)
				}
			}
			add := func(made New) {
				k := made.Key
				keys = append(keys, &modelKey{id: k.ID, value: made.Value.RevealString(), rows: []rowOf{{Active, k.ExpiresAt, k.GraceEndsAt, k.Scopes, len(k.CIDRs) > 0}}})
			}
			some := func(label string) []string {
				return rapid.SliceOfNDistinct(rapid.SampledFrom(all), 0, 3, rapid.ID).Draw(t, label)
			}
			change := func(at int, k *modelKey, edit func(r *rowOf)) {
				r := k.now()
				edit(&r)
				k.rows = append(k.rows, r)
				k.floor[at] = len(k.rows) - 1
			}
			live := func() *modelKey { // not ended, and its row is not over
				now := d.clock.Now()
				var out []*modelKey
				for _, k := range keys {
					r := k.now()
					if over := r.judged(ownerOf{scopes: all}, &Need{Address: here}, now); over == ReasonOK || over == ReasonSuspended {
						out = append(out, k)
					}
				}
				if len(out) == 0 {
					return nil
				}
				return rapid.SampledFrom(out).Draw(t, "key")
			}
			for range rapid.IntRange(5, 60).Draw(t, "steps") {
				at := rapid.IntRange(0, 1).Draw(t, "replica")
				r := desks[at]
				switch rapid.SampledFrom([]string{"create", "verify", "verify", "verify", "verify", "verify", "revoke", "suspend", "resume", "roll", "update", "partner", "partner state", "time", "refresh"}).Draw(t, "step") {
				case "create":
					if len(keys) > 8 || owners[len(owners)-1].suspended {
						continue
					}
					spec := KeySpec{Partner: name, Name: "k", ExpiresIn: time.Duration(rapid.IntRange(1, 20).Draw(t, "life")) * time.Minute}
					for _, s := range some("scopes") {
						if slices.Contains(owners[len(owners)-1].scopes, s) {
							spec.Scopes = append(spec.Scopes, s)
						}
					}
					if rapid.Bool().Draw(t, "ranged") {
						spec.CIDRs = []string{here.String()}
					}
					made, err := r.keys.Create(t.Context(), APIKey, spec)
					fatal(err)
					add(made)
				case "verify":
					if len(keys) == 0 {
						continue
					}
					k := rapid.SampledFrom(keys).Draw(t, "key")
					need := &Need{Address: rapid.SampledFrom([]netip.Addr{here, there}).Draw(t, "address"), Scopes: some("needed")}
					got, err := r.Verify(t.Context(), k.value, need)
					fatal(err)
					may := map[Reason]bool{}
					for _, row := range k.rows[k.floor[at]:] {
						for _, o := range owners[ownerFloor[at]:] {
							may[row.judged(o, need, d.clock.Now())] = true
						}
					}
					if !may[got.Reason] {
						t.Fatalf("replica %d says %s of key %s, want one of %v", at, got.Reason, k.id, slices.Collect(maps.Keys(may)))
					}
					outcomes[got.Reason]++
				case "revoke":
					if k := live(); k != nil {
						_, err := r.keys.Revoke(t.Context(), APIKey, name, k.id, "", "")
						fatal(err)
						change(at, k, func(r *rowOf) { r.stored = Revoked })
					}
				case "suspend":
					if k := live(); k != nil && k.now().stored != Suspended {
						_, err := r.keys.Suspend(t.Context(), APIKey, name, k.id, "")
						fatal(err)
						change(at, k, func(r *rowOf) { r.stored = Suspended })
					}
				case "resume":
					if k := live(); k != nil && k.now().stored == Suspended {
						_, err := r.keys.Resume(t.Context(), APIKey, name, k.id, "")
						fatal(err)
						change(at, k, func(r *rowOf) { r.stored = Active })
					}
				case "roll":
					k := live()
					if k == nil || k.now().stored != Active || !k.now().grace.IsZero() || owners[len(owners)-1].suspended || len(keys) > 8 {
						continue
					}
					grace := time.Duration(rapid.IntRange(0, 5).Draw(t, "grace")) * time.Minute
					made, old, err := r.keys.Roll(t.Context(), Roll{Kind: APIKey, Partner: name, ID: k.id, Grace: &grace})
					if err != nil {
						continue // its scopes are more than the partner's; nothing was changed
					}
					change(at, k, func(r *rowOf) { r.stored, r.grace = old.Stored, old.GraceEndsAt })
					add(made)
				case "update":
					k := live()
					if k == nil {
						continue
					}
					seen, err := r.keys.Get(t.Context(), APIKey, name, k.id)
					fatal(err)
					spec := KeySpec{Name: "k", Scopes: some("scopes")}
					if rapid.Bool().Draw(t, "ranged") {
						spec.CIDRs = []string{here.String()}
					}
					if _, err := r.keys.Update(t.Context(), k.id, seen.Version, spec); err == nil {
						change(at, k, func(r *rowOf) { r.scopes, r.ranged = spec.Scopes, len(spec.CIDRs) > 0 })
					}
				case "partner":
					seen, err := r.partners.Get(t.Context(), name)
					fatal(err)
					o := owners[len(owners)-1]
					o.scopes = some("allowed")
					_, err = r.partners.Update(t.Context(), p.Name, seen.Version, PartnerSpec{Scopes: o.scopes})
					fatal(err)
					owners = append(owners, o)
					ownerFloor[at] = len(owners) - 1
				case "partner state":
					o := owners[len(owners)-1]
					if o.suspended = !o.suspended; o.suspended {
						_, err = r.partners.Suspend(t.Context(), name, "")
					} else {
						_, err = r.partners.Resume(t.Context(), name, "")
					}
					fatal(err)
					owners = append(owners, o)
					ownerFloor[at] = len(owners) - 1
				case "time":
					d.pass(time.Duration(rapid.IntRange(1, 240).Draw(t, "seconds")) * time.Second)
				case "refresh":
					fatal(r.Refresh(t.Context()))
					for _, k := range keys {
						k.floor[at] = len(k.rows) - 1
					}
					ownerFloor[at] = len(owners) - 1
				}
			}
		}
		// A short run may not draw each outcome: it proves nothing of those it has not met.
		unmet := []Reason{ReasonOK, ReasonExpired, ReasonRevoked, ReasonSuspended, ReasonScope, ReasonAddress}
		for more := 50; len(unmet) > 0 && more > 0; more-- {
			rapid.Check(t, property)
			unmet = slices.DeleteFunc(unmet, func(r Reason) bool { return outcomes[r] > 0 })
		}
		if len(unmet) > 0 {
			t.Errorf("no verification said %v: %v", unmet, outcomes)
		}
		t.Logf("outcomes: %v", outcomes)
	})
}

// Promise: what was counted of a key reaches the trail, also when the key has left
// the cache meanwhile.
func TestCacheWhenEntriesAreEvicted(t *testing.T) {
	db := storetest.SQLite(t)
	d := newDesk(t, db)
	d.start(t, VerifierConfig{MaxEntries: cacheShards}) // one in each shard
	if _, err := d.usage.Pass(t.Context(), d.clock.Now()); err != nil {
		t.Fatal(err)
	}
	d.partner(t, "acme", "a")
	const keys, rounds = 400, 3
	values, ids := make([]string, keys), make([]string, keys)
	for i := range keys {
		k, v := d.key(t, KeySpec{Partner: "acme"})
		values[i], ids[i] = v, k.ID
	}
	for range rounds {
		for _, v := range values {
			d.want(t, v, nil, ReasonOK)
			d.want(t, v, &Need{Scopes: []string{"a"}}, ReasonScope)
		}
	}
	if n := d.Stats().Entries; n > cacheShards {
		t.Errorf("%d entries, at most %d", n, cacheShards)
	}
	if n := d.Stats().Loads; n <= keys {
		t.Errorf("%d loads of %d keys: nothing was evicted", n, keys)
	}
	d.pass(time.Second)
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.usage.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		accepted, denied := counted(t, db, audit.APIKeyUsage, "partners/acme/api_keys/"+id)
		if diff := cmp.Diff(map[string]int64{"scope": rounds}, denied); accepted != rounds || diff != "" {
			t.Fatalf("key %s: accepted %d, denied %v", id, accepted, denied)
		}
	}
	if n := number(t, db, `SELECT COUNT(*) FROM partner_keys WHERE last_used_at = $1 AND first_used_at = $2`, store.Micros(epoch), store.Micros(epoch)); n != keys {
		t.Errorf("%d of %d keys were used as their rows say", n, keys)
	}
}

// A row that is read while it is changed does not stay in memory.
func TestCacheWhenAKeyIsDroppedWhileItIsRead(t *testing.T) {
	c := newCache(1000)
	k, _ := toCacheKey("0123456789abcdef")
	o := &owner{name: "acme"}
	made := func() *entry {
		return newEntry(&Key{ID: "0123456789abcdef", Stored: Active, Origin: OriginRotunda}, o, nil)
	}
	_, epoch := c.missing(k, 0)
	c.drop(k)
	e := c.put(k, made(), epoch)
	if got, _ := c.get(k); got != nil {
		t.Error("it is in memory, as it was before the drop")
	}
	if e.prove([32]byte{1}); e.holds([32]byte{1}) {
		t.Error("it can be proven")
	}
	c.putAbsent(k, epoch, time.Hour)
	if missing, _ := c.missing(k, 0); missing {
		t.Error("it is known not to be there, as it was before the drop")
	}
	_, epoch = c.missing(k, 0)
	first := c.put(k, made(), epoch)
	if second := c.put(k, made(), epoch); first != second {
		t.Error("the second reader has an entry of its own, whose counts nobody sees")
	}
	first.prove([32]byte{1})
	if !first.holds([32]byte{1}) || first.holds([32]byte{2}) {
		t.Error("the digest is not compared")
	}
	c.dropAll()
	if got, _ := c.get(k); got != nil || first.holds([32]byte{1}) {
		t.Error("it is still there")
	}
}

package apikeys

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func full() PartnerSpec {
	return PartnerSpec{
		Scopes: []string{"orders:read", "a.b_c/d-e:F9", strings.Repeat("s", 64)}, PublishableScopes: []string{"orders:read"},
		MaxKeys: 7, MaxKeyTTL: 90*24*time.Hour + 1,
		Signing:  SigningPolicy{Components: []string{"@method", "content-digest", `@query-param;name="id"`}, MaxAge: time.Hour, Skew: 5 * time.Minute, Tag: "orders"},
		Metadata: map[string]string{"tier": "gold", "owner": "Zoë <z@example.com>"},
	}
}

func TestPartnerWhenMade(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		made := b.partner(t, "acme", full())
		got, err := b.other(t).partners.Get(t.Context(), "acme")
		if err != nil || got.Tampered() {
			t.Fatalf("%v, tampered %v", err, got.Tampered())
		}
		if diff := cmp.Diff(made, got, cmpopts.IgnoreUnexported(Partner{})); diff != "" {
			t.Errorf("what was made and what is read differ (-made +read):\n%s", diff)
		}
		want := full()
		if got.MaxKeyTTL != 90*24*time.Hour || got.MaxKeys != 7 || got.State != Active || got.Version != 1 || cmp.Diff(want.Signing, got.Signing) != "" || cmp.Diff(want.Metadata, got.Metadata) != "" {
			t.Errorf("%+v", got)
		}
		if got := b.partner(t, strings.Repeat("x", 63), PartnerSpec{}); got.MaxKeys != 1000 || got.MaxKeyTTL != 0 {
			t.Errorf("the defaults are %+v", got)
		}
		_, err = b.partners.Create(t.Context(), "acme", PartnerSpec{}, store.Once{})
		wantFault(t, err, fault.ErrExists, "partner_exists")
		_, err = b.partners.Get(t.Context(), "nobody")
		wantFault(t, err, fault.ErrNotFound, "partner_not_found")
		once := store.Once{Scope: "s", Key: "k", Fingerprint: "f"}
		first, err := b.partners.Create(t.Context(), "twice", full(), once)
		if err != nil {
			t.Fatal(err)
		}
		again, err := b.partners.Create(t.Context(), "twice", full(), once)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first, again, cmpopts.IgnoreUnexported(Partner{})); diff != "" {
			t.Errorf("the repeated request got something else (-first +again):\n%s", diff)
		}
		if got, want := b.events(t, "partners/twice"), []string{"partner.create"}; !cmp.Equal(got, want) {
			t.Errorf("the trail has %v, want %v", got, want)
		}
	})
}

func TestPartnerWhenRefused(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBed(t, db)
	for _, name := range []string{"", "-a", "A", "a_b", "ü", strings.Repeat("x", 64), "a b", "a\x00"} {
		_, err := b.partners.Create(t.Context(), name, PartnerSpec{}, store.Once{})
		wantFault(t, err, fault.ErrInvalid, "bad_name")
	}
	many := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprint("s", i))
		}
		return out
	}
	pairs := map[string]string{}
	for i := range 33 {
		pairs[fmt.Sprint(i)] = ""
	}
	for what, c := range map[string]struct {
		edit   func(*PartnerSpec)
		field  string
		reason string
	}{
		"a wildcard":             {func(s *PartnerSpec) { s.Scopes = []string{"orders:*"} }, "scopes", "bad_scope"},
		"an empty scope":         {func(s *PartnerSpec) { s.Scopes = []string{""} }, "scopes", "bad_scope"},
		"a long scope":           {func(s *PartnerSpec) { s.Scopes = []string{strings.Repeat("s", 65)} }, "scopes", "bad_scope"},
		"a space":                {func(s *PartnerSpec) { s.Scopes = []string{"a b"} }, "scopes", "bad_scope"},
		"a scope twice":          {func(s *PartnerSpec) { s.Scopes = []string{"a", "b", "a"} }, "scopes", "scope_twice"},
		"257 scopes":             {func(s *PartnerSpec) { s.Scopes = many(257) }, "scopes", "too_many"},
		"more published":         {func(s *PartnerSpec) { s.PublishableScopes = []string{"x"} }, "publishable_scopes", "scope_not_allowed"},
		"-1 keys":                {func(s *PartnerSpec) { s.MaxKeys = -1 }, "max_keys", "max_keys_range"},
		"a million and one":      {func(s *PartnerSpec) { s.MaxKeys = 1_000_001 }, "max_keys", "max_keys_range"},
		"a negative life":        {func(s *PartnerSpec) { s.MaxKeyTTL = -1 }, "max_key_ttl", "duration_range"},
		"a microsecond":          {func(s *PartnerSpec) { s.MaxKeyTTL = 1000 }, "max_key_ttl", "duration_range"},
		"more than ten years":    {func(s *PartnerSpec) { s.MaxKeyTTL = maxLife + 1 }, "max_key_ttl", "duration_range"},
		"33 pairs":               {func(s *PartnerSpec) { s.Metadata = pairs }, "metadata", "too_many"},
		"an empty metadata key":  {func(s *PartnerSpec) { s.Metadata = map[string]string{"": "x"} }, "metadata", "bad_metadata"},
		"a long metadata key":    {func(s *PartnerSpec) { s.Metadata = map[string]string{strings.Repeat("k", 65): "x"} }, "metadata", "bad_metadata"},
		"a long metadata value":  {func(s *PartnerSpec) { s.Metadata = map[string]string{"k": strings.Repeat("x", 257)} }, "metadata", "bad_metadata"},
		"a line in metadata":     {func(s *PartnerSpec) { s.Metadata = map[string]string{"k": "a\r\nb"} }, "metadata", "bad_metadata"},
		"an old signature":       {func(s *PartnerSpec) { s.Signing.MaxAge = time.Hour + 1 }, "signing_policy.max_age", "duration_range"},
		"a signature of 1 ns":    {func(s *PartnerSpec) { s.Signing.MaxAge = 1 }, "signing_policy.max_age", "duration_range"},
		"a wide skew":            {func(s *PartnerSpec) { s.Signing.Skew = 5*time.Minute + 1 }, "signing_policy.skew", "duration_range"},
		"a negative skew":        {func(s *PartnerSpec) { s.Signing.Skew = -1 }, "signing_policy.skew", "duration_range"},
		"33 components":          {func(s *PartnerSpec) { s.Signing.Components = many(33) }, "signing_policy.components", "too_many"},
		"an unknown component":   {func(s *PartnerSpec) { s.Signing.Components = []string{"@colour"} }, "signing_policy.components", "bad_component"},
		"a component twice":      {func(s *PartnerSpec) { s.Signing.Components = []string{"@path", "@path"} }, "signing_policy.components", "component_twice"},
		"two in one":             {func(s *PartnerSpec) { s.Signing.Components = []string{`a" "b`} }, "signing_policy.components", "bad_component"},
		"two in one, hidden":     {func(s *PartnerSpec) { s.Signing.Components = []string{`a;sf "b"`} }, "signing_policy.components", "bad_component"},
		"the end of the list":    {func(s *PartnerSpec) { s.Signing.Components = []string{`a;sf);x=("b"`} }, "signing_policy.components", "bad_component"},
		"a capital in a field":   {func(s *PartnerSpec) { s.Signing.Components = []string{"Content-Digest"} }, "signing_policy.components", "bad_component"},
		"nothing to cover":       {func(s *PartnerSpec) { s.Signing.Components = []string{""} }, "signing_policy.components", "bad_component"},
		"a part of the response": {func(s *PartnerSpec) { s.Signing.Components = []string{"@status"} }, "signing_policy.components", "bad_component"},
		"the request line":       {func(s *PartnerSpec) { s.Signing.Components = []string{"@request-target"} }, "signing_policy.components", "bad_component"},
		"of another request":     {func(s *PartnerSpec) { s.Signing.Components = []string{"@path;req"} }, "signing_policy.components", "bad_component"},
		"a long tag":             {func(s *PartnerSpec) { s.Signing.Tag = strings.Repeat("t", 65) }, "signing_policy.tag", "bad_tag"},
		"a tag in UTF-8":         {func(s *PartnerSpec) { s.Signing.Tag = "é" }, "signing_policy.tag", "bad_tag"},
	} {
		spec := full()
		c.edit(&spec)
		_, err := b.partners.Create(t.Context(), "acme", spec, store.Once{})
		f, ok := errors.AsType[*fault.Error](err)
		if !ok || !errors.Is(err, fault.ErrInvalid) || f.Reason != c.reason || f.Field != c.field || len(err.Error()) > 600 {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if n := number(t, db, `SELECT COUNT(*) FROM partners`); n != 0 {
		t.Errorf("%d partners were made", n)
	}
	// The most that is allowed is, and its event fits into the trail.
	spec := full()
	spec.Scopes = nil
	for i := range 256 {
		spec.Scopes = append(spec.Scopes, fmt.Sprintf("%064d", i))
	}
	spec.PublishableScopes = spec.Scopes
	b.partner(t, "big", spec)
}

func TestPartnerWhenChanged(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", full())
		var heard []string
		b.partners.changes.listen(func(partner, id string) { heard = append(heard, partner+"/"+id) })
		b.pass(time.Minute)
		changed, err := b.partners.Update(t.Context(), "acme", 1, PartnerSpec{Scopes: []string{"x"}, MaxKeys: 3})
		if err != nil {
			t.Fatal(err)
		}
		if changed.Version != 2 || len(changed.PublishableScopes) != 0 || changed.MaxKeys != 3 || changed.Signing.MaxAge != 0 || len(changed.Metadata) != 0 || !changed.Since.Equal(epoch) {
			t.Errorf("%+v", changed)
		}
		_, err = b.partners.Update(t.Context(), "acme", 1, PartnerSpec{})
		wantFault(t, err, fault.ErrChanged, "version_changed")
		_, err = b.partners.Update(t.Context(), "nobody", 1, PartnerSpec{})
		wantFault(t, err, fault.ErrNotFound, "partner_not_found")
		_, err = b.partners.Resume(t.Context(), "acme", "")
		wantFault(t, err, fault.ErrTransition, "already_active")
		b.pass(time.Minute)
		down, err := b.partners.Suspend(t.Context(), "acme", "unpaid")
		if err != nil {
			t.Fatal(err)
		}
		if down.State != Suspended || down.Reason != "unpaid" || !down.Since.Equal(epoch.Add(2*time.Minute)) || down.Version != 3 {
			t.Errorf("%+v", down)
		}
		b.pass(time.Second)
		_, err = b.partners.Suspend(t.Context(), "acme", "again")
		wantFault(t, err, fault.ErrTransition, "already_suspended")
		_, err = b.partners.Suspend(t.Context(), "acme", strings.Repeat("x", 201))
		wantFault(t, err, fault.ErrInvalid, "bad_reason")
		if _, err := b.partners.Update(t.Context(), "acme", 3, full()); err != nil { // as is
			t.Fatal(err)
		}
		b.pass(time.Second)
		up, err := b.partners.Resume(t.Context(), "acme", "paid")
		if err != nil || up.State != Active {
			t.Fatalf("%+v, %v", up, err)
		}
		want := []string{"partner.create", "partner.update", "partner.suspend unpaid", "partner.update", "partner.resume paid"}
		if diff := cmp.Diff(want, b.events(t, "partners/acme")); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
		if got := strings.Join(heard, " "); got != "acme/ acme/ acme/ acme/" {
			t.Errorf("the caches heard %q", got)
		}
		events, _, err := audit.List(t.Context(), db, audit.Query{Partner: "acme"})
		if err != nil || len(events) != 5 {
			t.Errorf("%d events are put down to the partner, want 5 (%v)", len(events), err)
		}
	})
}

// A suspended partner has no key, makes no key, and its managers are nobody.
func TestPartnerWhenSuspended(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		b.partner(t, "other", PartnerSpec{})
		k, _ := b.key(t, KeySpec{})
		b.signing(t, KeySpec{Name: "hook"})
		token, value := b.create(t, Create{Role: Manager, Partner: "acme"})
		_, others := b.create(t, Create{Role: Manager, Partner: "other"})
		mustVerify(t, b.Tokens, value, here)
		replica := b.replica(t, db)
		if _, err := b.partners.Suspend(t.Context(), "acme", "unpaid"); err != nil {
			t.Fatal(err)
		}
		wantDenied(t, replica, value, here, "suspended")
		wantFault(t, replica.Usable(t.Context(), token.ID), fault.ErrDenied, "suspended")
		if replica.Remembers(value) {
			t.Error("a suspended partner's token counts as one that would be let in")
		}
		b.pass(FreshFor)
		wantDenied(t, b.Tokens, value, here, "suspended")
		mustVerify(t, b.Tokens, others, here)

		_, err := b.keys.Create(t.Context(), APIKey, KeySpec{Partner: "acme", Name: "x"})
		wantFault(t, err, fault.ErrTransition, "partner_suspended")
		_, err = b.keys.Create(t.Context(), RequestSecret, KeySpec{Partner: "acme", Name: "x"})
		wantFault(t, err, fault.ErrTransition, "partner_suspended")
		_, _, err = b.keys.Roll(t.Context(), Roll{Kind: APIKey, Partner: "acme", ID: k.ID})
		wantFault(t, err, fault.ErrTransition, "partner_suspended")
		_, _, err = b.keys.Roll(t.Context(), Roll{Kind: RequestSecret, Partner: "acme", Name: "hook"})
		wantFault(t, err, fault.ErrTransition, "partner_suspended")
		_, err = b.keys.Import(t.Context(), "acme", OriginRaw, 0, items("f3b1c0d9e8a7465b9c2d1e0f3a4b5c6d"))
		wantFault(t, err, fault.ErrTransition, "partner_suspended")
		// What takes away works still.
		if _, err := b.keys.Revoke(t.Context(), APIKey, "acme", k.ID, "", ""); err != nil {
			t.Error(err)
		}
		if _, err := b.partners.Resume(t.Context(), "acme", ""); err != nil {
			t.Fatal(err)
		}
		b.pass(FreshFor)
		mustVerify(t, b.Tokens, value, here)
		mustVerify(t, replica, value, here)
	})
}

func TestPartnersListWhenManyPages(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		want := []string{"a", "a-b", "b", "b0", "z"}
		for _, i := range []int{3, 0, 4, 1, 2} {
			b.partner(t, want[i], PartnerSpec{})
		}
		var got []string
		for page := ""; ; {
			list, next, err := b.partners.List(t.Context(), page, 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				got = append(got, p.Name)
			}
			if page = next; page == "" {
				break
			}
		}
		if diff := cmp.Diff(want, got, cmpopts.SortSlices(strings.Compare)); diff != "" {
			t.Errorf("the pages together (-want +got):\n%s", diff)
		}
		_, _, err := b.partners.List(t.Context(), "X", 2)
		wantFault(t, err, fault.ErrInvalid, "bad_page_token")
	})
}

// Whoever can write to the database, but has no key of Rotunda's, can widen nothing.
func TestPartnerWhenRowIsTampered(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "rich", PartnerSpec{Scopes: []string{"admin"}, MaxKeys: 9})
		for i, tamper := range []string{
			`UPDATE partners SET scopes = '["admin"]' WHERE name = $1`,
			`UPDATE partners SET publishable_scopes = '["orders:read"]' WHERE name = $1`,
			`UPDATE partners SET max_keys = 8 WHERE name = $1`,
			`UPDATE partners SET max_key_ttl = 1 WHERE name = $1`,
			`UPDATE partners SET signing_policy = '{"tag":"x"}' WHERE name = $1`,
			`UPDATE partners SET signing_policy = '{"components":["@method"]}' WHERE name = $1`,
			`UPDATE partners SET signing_policy = '{"max_age":1}' WHERE name = $1`,
			`UPDATE partners SET signing_policy = '{"skew":1}' WHERE name = $1`,
			`UPDATE partners SET metadata = '{"tier":"gold"}' WHERE name = $1`,
			`UPDATE partners SET metadata = 'nothing' WHERE name = $1`,
			`UPDATE partners SET created_at = created_at + 1 WHERE name = $1`,
			`UPDATE partners SET since = since + 1 WHERE name = $1`,
			`UPDATE partners SET version = version + 1 WHERE name = $1`,
			`UPDATE partners SET reason = 'x' WHERE name = $1`,
			`UPDATE partners SET seal = (SELECT seal FROM partners WHERE name = 'rich') WHERE name = $1`,
			`UPDATE partners SET (scopes, publishable_scopes, max_keys, seal) = (SELECT scopes, publishable_scopes, max_keys, seal FROM partners WHERE name = 'rich') WHERE name = $1`,
			`UPDATE partners SET state = 'active' WHERE name = $1`, // the last one was suspended
		} {
			name := fmt.Sprint("poor-", i)
			b.partner(t, name, PartnerSpec{})
			k, _ := b.key(t, KeySpec{Partner: name, Name: "before"})
			_, value := b.create(t, Create{Role: Manager, Partner: name})
			if strings.Contains(tamper, "state =") {
				if _, err := b.partners.Suspend(t.Context(), name, ""); err != nil {
					t.Fatal(err)
				}
			}
			exec(t, db, tamper, name)
			p, err := b.partners.Get(t.Context(), name)
			if err != nil || !p.Tampered() {
				t.Errorf("%s: not noticed (%v)", tamper, err)
				continue
			}
			wantDenied(t, b.replica(t, db), value, here, "tampered")
			version := p.Version
			for what, do := range map[string]func() error{
				"create": func() error {
					_, err := b.keys.Create(t.Context(), APIKey, KeySpec{Partner: name, Name: "x"})
					return err
				},
				"roll": func() error { _, _, err := b.keys.Roll(t.Context(), Roll{Kind: APIKey, ID: k.ID}); return err },
				"update key": func() error {
					_, err := b.keys.Update(t.Context(), k.ID, k.Version, KeySpec{Name: "x"})
					return err
				},
				"import": func() error {
					_, err := b.keys.Import(t.Context(), name, OriginRaw, 0, items("f3b1c0d9e8a7465b9c2d1e0f3a4b5c6d"))
					return err
				},
				"update":  func() error { _, err := b.partners.Update(t.Context(), name, version, full()); return err },
				"suspend": func() error { _, err := b.partners.Suspend(t.Context(), name, ""); return err },
				"resume":  func() error { _, err := b.partners.Resume(t.Context(), name, ""); return err },
			} {
				if err := do(); !errors.Is(err, fault.ErrDenied) {
					t.Errorf("%s: %s: %v", tamper, what, err)
				}
			}
		}
		b.key(t, KeySpec{Partner: "rich", Scopes: []string{"admin"}}) // the others are untouched
	})
}

// Of replicas that change a partner at once, from the same version, one wins.
func TestPartnerWhenChangedAtOnce(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		replicas := []*bed{b, b.other(t)}
		b.partner(t, "acme", PartnerSpec{})
		for version := int64(1); version <= 5; version++ {
			var wg sync.WaitGroup
			var mu sync.Mutex
			won := 0
			for i := range 4 {
				wg.Go(func() {
					_, err := replicas[i%2].partners.Update(t.Context(), "acme", version, PartnerSpec{Scopes: []string{fmt.Sprint(i)}})
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						won++
					} else if !errors.Is(err, fault.ErrChanged) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if won != 1 {
				t.Fatalf("%d won, want 1", won)
			}
		}
	})
}

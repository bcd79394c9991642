package apikeys

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// desk is one replica with its verifier, on a database whose clocks are in the
// test's hand.
type desk struct {
	*Verifier
	db       *store.DB
	keys     *Keys
	partners *Partners
	peppers  *Peppers
	usage    *audit.Usage
	sealer   *secret.Sealer
	clock    *storetest.Clock
	tick     *atomic.Int64
}

var there = netip.MustParseAddr("203.0.113.9")

func newDesk(t testing.TB, db *store.DB) *desk {
	t.Helper()
	d := &desk{db: db, clock: storetest.NewClock(epoch), tick: new(atomic.Int64), sealer: newSealer(t)}
	d.start(t, VerifierConfig{})
	return d
}

// start makes the replica's parts.
func (d *desk) start(t testing.TB, cfg VerifierConfig) {
	t.Helper()
	d.db.Now = d.clock.Now
	d.db.Tick = func() time.Duration { return time.Duration(d.tick.Load()) }
	var err error
	if d.peppers, err = OpenPeppers(t.Context(), d.db, d.sealer); err != nil {
		t.Fatal(err)
	}
	d.partners = NewPartners(d.db, d.peppers)
	if d.keys, err = NewKeys(KeysConfig{DB: d.db, Peppers: d.peppers, Partners: d.partners, Sealer: d.sealer}); err != nil {
		t.Fatal(err)
	}
	cfg.DB, cfg.Keys, cfg.Partners, cfg.Sealer = d.db, d.keys, d.partners, d.sealer
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d.usage = &audit.Usage{DB: d.db}
	cfg.Usage = d.usage
	if d.Verifier, err = NewVerifier(cfg); err != nil {
		t.Fatal(err)
	}
	if err := d.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// replica is another process on the database at url, with the same clocks.
func (d *desk) replica(t testing.TB, db *store.DB, cfg VerifierConfig) *desk {
	t.Helper()
	other := &desk{db: db, clock: d.clock, tick: d.tick, sealer: d.sealer}
	other.start(t, cfg)
	return other
}

// pass lets time go by, on both clocks.
func (d *desk) pass(by time.Duration) {
	d.clock.Advance(by)
	d.tick.Add(int64(by))
}

func (d *desk) refresh(t testing.TB) {
	t.Helper()
	if err := d.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (d *desk) partner(t testing.TB, name string, scopes ...string) *Partner {
	t.Helper()
	p, err := d.partners.Create(t.Context(), name, PartnerSpec{Scopes: scopes}, store.Once{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (d *desk) key(t testing.TB, spec KeySpec) (*Key, string) {
	t.Helper()
	if spec.Name == "" {
		spec.Name = "ci"
	}
	made, err := d.keys.Create(t.Context(), APIKey, spec)
	if err != nil {
		t.Fatal(err)
	}
	return made.Key, made.Value.RevealString()
}

// want verifies and fails unless the reason is the wanted one.
func (d *desk) want(t testing.TB, value string, need *Need, r Reason) Decision {
	t.Helper()
	got, err := d.Verify(context.WithoutCancel(t.Context()), value, need)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	if got.Reason != r {
		t.Fatalf("verify: %s, want %s", got.Reason, r)
	}
	if known := r != ReasonMalformed && r != ReasonUnknown; known != (got.Key != nil) || known != (got.Partner != nil) {
		t.Fatalf("verify: %s with key %v and partner %v", r, got.Key != nil, got.Partner != nil)
	}
	return got
}

func TestVerifierWhenKeysArePresented(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		d.partner(t, "acme", "orders:read", "orders:write")
		d.partner(t, "other", "orders:read")
		k, value := d.key(t, KeySpec{Partner: "acme", Scopes: []string{"orders:read"}, CIDRs: []string{"192.0.2.0/24", "2001:db8::/32"}, ExpiresIn: time.Hour})
		need := func(f func(n *Need)) *Need {
			n := &Need{Address: here, Scopes: []string{"orders:read"}}
			f(n)
			return n
		}
		for range 2 { // from the row, then from memory
			got := d.want(t, value, need(func(*Need) {}), ReasonOK)
			if got.Key.ID != k.ID || got.Partner.Name != "acme" || len(got.Scopes) != 1 {
				t.Errorf("%+v", got)
			}
			d.want(t, value, need(func(n *Need) { n.Address = netip.MustParseAddr("::ffff:192.0.2.7") }), ReasonOK)
			d.want(t, value, need(func(n *Need) { n.Address = netip.MustParseAddr("2001:db8::1%eth0") }), ReasonOK)
			d.want(t, value, need(func(n *Need) { n.Address = netip.MustParseAddr("2001:db9::1") }), ReasonAddress)
			d.want(t, value, need(func(n *Need) { n.Address = netip.Addr{} }), ReasonAddress)
			d.want(t, value, nil, ReasonAddress)
			d.want(t, value, need(func(n *Need) { n.Scopes = []string{"orders:read", "orders:write"} }), ReasonScope)
			d.want(t, value, need(func(n *Need) { n.Partner = "acme"; n.Environment = "live" }), ReasonOK)
			d.want(t, value, need(func(n *Need) { n.Partner = "other" }), ReasonUnknown)
			d.want(t, value, need(func(n *Need) { n.Environment = "test" }), ReasonUnknown)
			// The same id and secret in another key string are no key.
			parsed, ok := parseKey(value, brand)
			if !ok {
				t.Fatal("the key can't be parsed")
			}
			for _, other := range []keyString{{env: "test", id: parsed.id, secret: parsed.secret}, {env: "live", id: parsed.id, secret: parsed.secret, public: true}} {
				_, v := writeKey(brand, other)
				d.want(t, v.RevealString(), need(func(*Need) {}), ReasonUnknown)
			}
			d.want(t, value+"0", need(func(*Need) {}), ReasonUnknown)
		}
		d.pass(time.Hour)
		d.refresh(t)
		d.want(t, value, need(func(*Need) {}), ReasonExpired)
	})
}

// counted returns what the trail says of the uses of a key.
func counted(t testing.TB, db *store.DB, action, resource string) (accepted int64, denied map[string]int64) {
	t.Helper()
	events, _, err := audit.List(t.Context(), db, audit.Query{Action: action, Resource: resource, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	denied = map[string]int64{}
	for _, e := range events {
		var d struct {
			Accepted int64
			Denied   map[string]int64
		}
		text, err := json.Marshal(e.Detail)
		if err == nil {
			err = json.Unmarshal(text, &d)
		}
		if err != nil {
			t.Fatal(err)
		}
		accepted += d.Accepted
		for r, n := range d.Denied {
			denied[r] += n
		}
	}
	return accepted, denied
}

// Promise: a key that is denied for its address or scope, or is not accepted at all,
// takes nothing from its rate limit; and keys of one line share theirs.
func TestVerifierWhenDenialsMeetARateLimit(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	d.partner(t, "acme", "a", "b")
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		limit := RateLimit{Quota: rapid.Int64Range(1, 20).Draw(rt, "quota"), Window: time.Duration(rapid.IntRange(1, 60).Draw(rt, "window")) * time.Second, Burst: rapid.Int64Range(0, 10).Draw(rt, "burst")}
		k, value := d.key(t, KeySpec{Partner: "acme", Name: fmt.Sprint("k", run), Scopes: []string{"a"}, CIDRs: []string{here.String()}, Rate: limit})
		values := []string{value}
		if rapid.Bool().Draw(rt, "rolled") {
			grace := time.Hour
			made, _, err := d.keys.Roll(t.Context(), Roll{Kind: APIKey, Partner: "acme", ID: k.ID, Grace: &grace})
			if err != nil {
				rt.Fatal(err)
			}
			values = append(values, made.Value.RevealString())
		}
		model := &modelLimit{}
		for range rapid.IntRange(1, 40).Draw(rt, "requests") {
			value := rapid.SampledFrom(values).Draw(rt, "value")
			need := &Need{Address: here, Scopes: []string{"a"}, Cost: rapid.Int64Range(0, 3).Draw(rt, "cost")}
			want := ReasonOK
			switch rapid.IntRange(0, 5).Draw(rt, "request") {
			case 0:
				need.Address, want = there, ReasonAddress
			case 1:
				need.Scopes, want = []string{"a", "b"}, ReasonScope
			case 2:
				need.Partner, want = "other", ReasonUnknown
			case 3:
				d.clock.Advance(time.Duration(rapid.IntRange(0, 5000).Draw(rt, "pause")) * time.Millisecond)
			}
			var state RateState
			if want == ReasonOK {
				var ok bool
				if state, ok = model.take(limit, max(1, need.Cost), d.clock.Now()); !ok {
					want = ReasonRate
				}
			}
			got, err := d.Verify(t.Context(), value, need)
			if err != nil {
				rt.Fatal(err)
			}
			if diff := cmp.Diff(state, got.Rate); got.Reason != want || diff != "" {
				rt.Fatalf("%s, want %s; (-want +got):\n%s", got.Reason, want, diff)
			}
		}
	})
}

// Whoever can write to the database, but has no pepper, lets nobody in, and is seen.
func TestVerifierWhenARowIsTamperedWith(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		var log bytes.Buffer
		d := newDesk(t, db)
		d.start(t, VerifierConfig{Log: slog.New(slog.NewTextHandler(&log, nil)), StaleFor: time.Hour})
		d.partner(t, "acme", "a", "b")
		d.partner(t, "other", "a", "b")
		k, value := d.key(t, KeySpec{Partner: "acme", Scopes: []string{"a"}})
		k2, value2 := d.key(t, KeySpec{Partner: "other", Scopes: []string{"a"}})
		exec(t, db, `UPDATE partner_keys SET scopes = '["a","b"]' WHERE id = $1`, k.ID)
		exec(t, db, `UPDATE partners SET state = 'suspended' WHERE name = 'other'`)
		for range 3 {
			d.want(t, value, nil, ReasonUnknown)
			d.want(t, value2, nil, ReasonUnknown)
		}
		for _, what := range []string{k.ID, "partner other"} {
			if n := strings.Count(log.String(), what+" ") + strings.Count(log.String(), what+"\""); n < 1 || n > 2 {
				t.Errorf("%d lines about %s in the log:\n%s", n, what, log.String())
			}
		}
		if strings.Contains(log.String(), value) || strings.Contains(log.String(), value2) {
			t.Error("a key is in the log")
		}
		// Put back, it is accepted soon.
		exec(t, db, `UPDATE partner_keys SET scopes = '["a"]' WHERE id = $1`, k.ID)
		d.pass(absentFor)
		d.want(t, value, nil, ReasonOK)
		exec(t, db, `UPDATE partners SET state = 'active' WHERE name = 'other'`)
		if got := d.want(t, value2, nil, ReasonOK); got.Key.ID != k2.ID {
			t.Errorf("%+v", got.Key)
		}
		// Nor does the hash of one key open another.
		exec(t, db, `UPDATE partner_keys SET hash = (SELECT hash FROM partner_keys WHERE id = $1) WHERE id = $2`, k2.ID, k.ID)
		d.cache.dropAll()
		d.want(t, value, nil, ReasonUnknown)
	})
}

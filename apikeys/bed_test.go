package apikeys

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

var (
	epoch = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)
	here  = netip.MustParseAddr("192.0.2.7")
)

// bed is a database with both of its clocks in the test's hand, and one replica.
type bed struct {
	*Tokens
	peppers  *Peppers
	partners *Partners
	keys     *Keys
	db       *store.DB
	sealer   *secret.Sealer
	clock    *storetest.Clock
	tick     *atomic.Int64
}

func newBed(t testing.TB, db *store.DB) *bed {
	t.Helper()
	b := &bed{db: db, clock: storetest.NewClock(epoch), tick: new(atomic.Int64), sealer: newSealer(t)}
	b.follow(db)
	b.Tokens = b.replica(t, db)
	b.peppers = b.Tokens.peppers
	b.keys = newKeys(t, db, b.peppers, b.sealer)
	b.partners = b.keys.partners
	return b
}

// other is another process on the database, with everything.
func (b *bed) other(t testing.TB) *bed {
	t.Helper()
	o := *b
	o.Tokens = b.replica(t, b.db)
	o.peppers = o.Tokens.peppers
	o.keys = newKeys(t, b.db, o.peppers, b.sealer)
	o.partners = o.keys.partners
	return &o
}

func newKeys(t testing.TB, db *store.DB, peppers *Peppers, sealer *secret.Sealer) *Keys {
	t.Helper()
	ks, err := NewKeys(KeysConfig{DB: db, Peppers: peppers, Partners: NewPartners(db, peppers), Sealer: sealer})
	if err != nil {
		t.Fatal(err)
	}
	return ks
}

// partner makes a partner; one without scopes gets two, and a publishable one.
func (b *bed) partner(t testing.TB, name string, spec PartnerSpec) *Partner {
	t.Helper()
	if spec.Scopes == nil {
		spec.Scopes, spec.PublishableScopes = []string{"orders:read", "orders:write", "catalog:read"}, []string{"catalog:read"}
	}
	p, err := b.partners.Create(t.Context(), name, spec, store.Once{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// key makes an API key of partner acme, unless spec says otherwise, and returns it
// with its value.
func (b *bed) key(t testing.TB, spec KeySpec) (*Key, string) {
	t.Helper()
	return b.made(t, APIKey, spec)
}

// signing makes a request secret.
func (b *bed) signing(t testing.TB, spec KeySpec) (*Key, string) {
	t.Helper()
	return b.made(t, RequestSecret, spec)
}

func (b *bed) made(t testing.TB, kind Kind, spec KeySpec) (*Key, string) {
	t.Helper()
	if spec.Partner == "" {
		spec.Partner = "acme"
	}
	if spec.Name == "" {
		spec.Name = "ci"
	}
	made, err := b.keys.Create(t.Context(), kind, spec)
	if err != nil {
		t.Fatal(err)
	}
	return made.Key, made.Value.RevealString()
}

// get reads a key of any partner, whose row must be genuine.
func (b *bed) get(t testing.TB, k *Key) *Key {
	t.Helper()
	got, err := b.keys.Get(context.WithoutCancel(t.Context()), k.Kind, "", k.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.Tampered() {
		t.Fatalf("the row of %s is not sealed as it is", k.ID)
	}
	return got
}

// accepts reports whether a value is that of an API key, as its row is now.
func (b *bed) accepts(t testing.TB, k *Key, value string) bool {
	t.Helper()
	got, err := b.keys.Get(context.WithoutCancel(t.Context()), APIKey, "", k.ID)
	if err != nil {
		t.Fatal(err)
	}
	if state := got.State(b.clock.Now()); got.genuine() != nil || state != Active && state != Retiring {
		return false
	}
	pepper, err := b.peppers.find(t.Context(), got.PepperGen)
	if err != nil {
		return false
	}
	parsed, ok := parseKey(value, b.keys.brand)
	switch {
	case ok:
		return got.matchSecret(pepper, parsed.secret) && parsed.env == got.Environment && parsed.public == (got.Class == ClassPublishable)
	case got.Weak:
		return got.matchWeak(pepper, value)
	}
	return got.matchDigest(pepper, foreignDigest(value))
}

// events are the actions of a resource, oldest first.
func (b *bed) events(t testing.TB, resource string) (actions []string) {
	t.Helper()
	list, _, err := audit.List(context.WithoutCancel(t.Context()), b.db, audit.Query{Resource: resource, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range slices.Backward(list) {
		action := e.Action
		if e.Reason != "" {
			action += " " + e.Reason
		}
		actions = append(actions, action)
	}
	return actions
}

func newSealer(t testing.TB) *secret.Sealer {
	t.Helper()
	kek, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	return sealer
}

// follow makes both clocks of a database the test's.
func (b *bed) follow(db *store.DB) {
	db.Now = b.clock.Now
	db.Tick = func() time.Duration { return time.Duration(b.tick.Load()) }
}

// replica is another process on a database of the bed.
func (b *bed) replica(t testing.TB, db *store.DB) *Tokens {
	t.Helper()
	ts, err := openTokens(t.Context(), db, b.sealer)
	if err != nil {
		t.Fatal(err)
	}
	return ts
}

func openTokens(ctx context.Context, db *store.DB, sealer *secret.Sealer) (*Tokens, error) {
	peppers, err := OpenPeppers(ctx, db, sealer)
	if err != nil {
		return nil, err
	}
	return NewTokens(db, peppers), nil
}

// pass lets time go by, on both clocks.
func (b *bed) pass(d time.Duration) {
	b.clock.Advance(d)
	b.tick.Add(int64(d))
}

// create makes a token and returns it with its value.
func (b *bed) create(t testing.TB, req Create) (*Token, string) {
	t.Helper()
	if req.Name == "" {
		req.Name = "edge-1"
	}
	token, v, err := b.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return token, v.RevealString()
}

func mustVerify(t testing.TB, ts *Tokens, value string, from netip.Addr) *Token {
	t.Helper()
	token, err := ts.Verify(context.WithoutCancel(t.Context()), value, from)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	return token
}

// wantDenied fails unless the token is denied for the reason.
func wantDenied(t testing.TB, ts *Tokens, value string, from netip.Addr, reason string) {
	t.Helper()
	token, err := ts.Verify(context.WithoutCancel(t.Context()), value, from)
	if token != nil {
		t.Fatalf("accepted, want denied: %s", reason)
	}
	wantFault(t, err, fault.ErrDenied, reason)
}

func wantFault(t testing.TB, err, kind error, reason string) {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || !errors.Is(err, kind) || f.Reason != reason {
		t.Fatalf("got error %v, want kind %v with reason %s", err, kind, reason)
	}
}

// exec runs SQL behind the back of the package, as whoever can write to the
// database. It must hit rows.
func exec(t testing.TB, db *store.DB, query string, args ...any) {
	t.Helper()
	err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		res, err := tx.Exec(ctx, query, args...)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			t.Errorf("%s: hit %d rows (%v)", query, n, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// number returns the single number that a query gives.
func number(t testing.TB, db *store.DB, query string, args ...any) (n int64) {
	t.Helper()
	err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, query, args...).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// eventually waits, for at most half a minute, until cond is true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("waited half a minute for: %s", what)
			return
		}
	}
}

// cmpSort compares lists of texts in any order: events of one instant have none.
var cmpSort = cmpopts.SortSlices(strings.Compare)

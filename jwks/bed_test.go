package jwks

import (
	"context"
	"crypto/rsa"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// epoch is a Monday, and a whole second.
var epoch = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

// bed is a database with a clock that only the test moves, and one replica.
type bed struct {
	*Keysets
	db    *store.DB
	clock *storetest.Clock
	local *Local
}

func newBed(t testing.TB, db *store.DB) *bed {
	t.Helper()
	clock := storetest.NewClock(epoch)
	follow(db, clock)
	b := &bed{db: db, clock: clock, local: newLocal(t)}
	b.Keysets = New(Config{DB: db, Local: b.local})
	return b
}

// follow makes both clocks of a database the test's.
func follow(db *store.DB, clock *storetest.Clock) {
	db.Now = clock.Now
	db.Tick = func() time.Duration { return clock.Now().Sub(epoch) }
}

func newLocal(t testing.TB) *Local {
	t.Helper()
	kek, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	return &Local{Sealer: sealer}
}

// quick is a policy with round figures: lead 1m40s (envoy with a cache of a
// minute: 10s + 1m + 30s), retire delay 12m10s (10s + 10m + 1m + 2 × 30s).
func quick() Policy {
	p := DefaultPolicy()
	p.Rotate = schedule.Schedule{Every: time.Hour}
	p.TokenTTL = 10 * time.Minute
	p.FetchFailure = 0
	p.MaxAge = time.Minute
	minute := time.Minute
	p.Consumers = []Consumer{{Name: "envoy", Cache: &minute}}
	return p
}

const (
	quickLead   = 100 * time.Second
	quickRetire = 12*time.Minute + 10*time.Second
)

func (b *bed) create(t testing.TB, name string, alg Algorithm, p Policy) *Keyset {
	t.Helper()
	s, err := b.Create(t.Context(), Create{Name: name, Issuer: "https://auth.example.com/" + name, Algorithm: string(alg), Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (b *bed) get(t testing.TB, name string) *Keyset {
	t.Helper()
	s, err := b.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (b *bed) pass(t testing.TB) time.Time {
	t.Helper()
	next, err := b.Pass(t.Context(), b.clock.Now())
	if err != nil {
		t.Fatalf("pass at %s: %v", b.clock.Now(), err)
	}
	return next
}

// walk moves the clock by d in steps that are too short to be taken for a
// downtime, with a pass after each.
func (b *bed) walk(t testing.TB, d time.Duration) {
	t.Helper()
	for d > 0 {
		step := min(d, servedGap)
		b.clock.Advance(step)
		b.pass(t)
		d -= step
	}
}

func (b *bed) sign(t testing.TB, name string) Signed {
	t.Helper()
	s, err := b.Sign(t.Context(), Sign{Name: name, Claims: []byte(`{"sub":"order-7"}`)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// accepted says whether a verifier with the present document, and a clock that
// is right, accepts a token.
func (b *bed) accepted(t testing.TB, name, token string) error {
	t.Helper()
	d := b.Document(name)
	if d == nil {
		return errors.New("no document")
	}
	return verify(d.Body, token, b.clock.Now())
}

func verify(body []byte, token string, now time.Time) error {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(body, &set); err != nil {
		return err
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{
		jose.ES256, jose.ES384, jose.ES512, jose.EdDSA, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	})
	if err != nil {
		return err
	}
	found := set.Key(jws.Signatures[0].Header.KeyID)
	if len(found) != 1 {
		return fmt.Errorf("%d keys with kid %s", len(found), jws.Signatures[0].Header.KeyID)
	}
	if got := jws.Signatures[0].Header.Algorithm; got != found[0].Algorithm {
		return fmt.Errorf("alg %s, but the key is for %s", got, found[0].Algorithm)
	}
	payload, err := jws.Verify(found[0])
	if err != nil {
		return err
	}
	var c struct{ Exp, Iat int64 }
	if err := json.Unmarshal(payload, &c); err != nil {
		return err
	}
	if now.Unix() >= c.Exp || c.Iat > now.Unix() {
		return fmt.Errorf("iat %d and exp %d do not enclose %d", c.Iat, c.Exp, now.Unix())
	}
	return nil
}

// kids lists the published keys as "state kid".
func kids(s *Keyset) map[State][]string {
	out := map[State][]string{}
	for _, k := range s.Keys {
		out[k.State] = append(out[k.State], k.Kid)
	}
	return out
}

func (b *bed) events(t testing.TB, action string) []audit.Event {
	t.Helper()
	var all []audit.Event
	for page := ""; ; {
		events, next, err := audit.List(t.Context(), b.db, audit.Query{Action: action, Limit: 1000, Page: page})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, events...)
		if page = next; page == "" {
			slices.Reverse(all) // oldest first
			return all
		}
	}
}

// exec runs SQL behind the back of the package.
func exec(t testing.TB, db *store.DB, query string, args ...any) error {
	t.Helper()
	return db.Update(context.WithoutCancel(t.Context()), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
}

func mustExec(t testing.TB, db *store.DB, query string, args ...any) {
	t.Helper()
	if err := exec(t, db, query, args...); err != nil {
		t.Fatal(err)
	}
}

// dump is every row of every table, sorted, as text.
func dump(t testing.TB, db *store.DB) string {
	t.Helper()
	var out []string
	err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		out = nil
		for _, table := range []string{"keysets", "signing_keys", "signing_counts", "publication", "event_queue", "idempotency", "leases", "access_tokens", "peppers"} {
			columns := "*"
			if table == "publication" {
				columns = "seal_key" // served_at tells of time, not of a change
			}
			rows, err := tx.Query(ctx, `SELECT `+columns+` FROM `+table)
			if err != nil {
				return err
			}
			err = eachRow(rows, func(values []any) {
				line := table
				for _, v := range values {
					if b, ok := v.([]byte); ok {
						v = fmt.Sprintf("%x", b)
					}
					line += fmt.Sprintf("|%v", v)
				}
				out = append(out, line)
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func eachRow(rows *sql.Rows, f func([]any)) error {
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	for rows.Next() {
		values, dest := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			dest[i] = &values[i]
		}
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		f(values)
	}
	return rows.Err()
}

// count returns the single number that a query gives.
func count(t testing.TB, db *store.DB, query string, args ...any) (n int64) {
	t.Helper()
	err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, query, args...).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// wantFault fails unless err has the kind, the reason, the field, and a
// message with all the words.
func wantFault(t testing.TB, err, kind error, reason, field string, words ...string) {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		t.Fatalf("got error %v, want %v with reason %s", err, kind, reason)
	}
	if !errors.Is(err, kind) || f.Reason != reason || f.Field != field {
		t.Fatalf("got kind %v, reason %q, field %q (%v), want %v, %q, %q", f.Kind, f.Reason, f.Field, err, kind, reason, field)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("message %q lacks %q", err, w)
		}
	}
}

type rsaKey = rsa.PrivateKey

func unmarshal(t testing.TB, b []byte, to any) {
	t.Helper()
	if err := json.Unmarshal(b, to); err != nil {
		t.Fatal(err)
	}
}

// row is a key as its row has it, with what its home needs to sign.
func (b *bed) row(t testing.TB, name, kid string) *Key {
	t.Helper()
	var k Key
	err := b.db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		s, err := b.load(ctx, tx, name)
		if err != nil {
			return err
		}
		k = *s.key(kid)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return &k
}

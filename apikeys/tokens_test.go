package apikeys

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func TestCreateWhenRefused(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		for _, c := range []struct {
			req           Create
			reason, field string
		}{
			{Create{Name: " ", Role: Admin}, "bad_name", "name"},
			{Create{Name: strings.Repeat("x", 129), Role: Admin}, "bad_name", "name"},
			{Create{Name: "a\nb", Role: Admin}, "bad_name", "name"},
			{Create{Name: "a\xffb", Role: Admin}, "bad_name", "name"},
			{Create{Name: "x", Role: "root"}, "unknown_role", "role"},
			{Create{Name: "x", Role: Auditor, Keysets: []string{"payments"}}, "keysets_not_for_role", "keysets"},
			{Create{Name: "x", Role: Signer, Keysets: []string{""}}, "bad_name", "keysets"},
			{Create{Name: "x", Role: Signer, Keysets: []string{"\xff"}}, "bad_name", "keysets"},
			{Create{Name: "x", Role: Signer, Keysets: slices.Repeat([]string{"k"}, 65)}, "too_many", "cidrs"},
			{Create{Name: "x", Role: Admin, ExpiresIn: -1}, "duration_range", "expires_in"},
			{Create{Name: "x", Role: Admin, ExpiresIn: maxLife + 1}, "duration_range", "expires_in"},
			{Create{Name: "x", Role: Admin, CIDRs: []string{"10.0.0.0/33"}}, "bad_cidr", "cidrs"},
			{Create{Name: "x", Role: Admin, CIDRs: []string{"fe80::1%eth0"}}, "bad_cidr", "cidrs"},
			{Create{Name: "x", Role: Admin, CIDRs: []string{"::ffff:10.0.0.0/104"}}, "bad_cidr", "cidrs"},
			{Create{Name: "x", Role: Admin, CIDRs: []string{"gateway.example"}}, "bad_cidr", "cidrs"},
		} {
			_, v, err := b.Create(t.Context(), c.req)
			wantFault(t, err, fault.ErrInvalid, c.reason)
			if f, _ := errors.AsType[*fault.Error](err); f.Field != c.field || !v.IsZero() {
				t.Errorf("%s: field %q, want %q; a value came with it: %v", c.reason, f.Field, c.field, !v.IsZero())
			}
		}
		if n := number(t, db, `SELECT COUNT(*) FROM access_tokens`); n != 0 {
			t.Errorf("%d tokens were made", n)
		}
	})
}

func TestCreateWhenRepeated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		req := Create{Name: "edge", Role: Gateway, Once: store.Once{Scope: "s", Key: "k", Fingerprint: "f"}}
		first, _ := b.create(t, req)
		_, v, err := b.Create(t.Context(), req)
		wantFault(t, err, fault.ErrExists, "value_shown_once")
		if !strings.Contains(err.Error(), first.ID) || !v.IsZero() {
			t.Errorf("the refusal does not name the first token, or brings a value: %v", err)
		}
		if n := number(t, db, `SELECT COUNT(*) FROM access_tokens`); n != 1 {
			t.Errorf("there are %d tokens, want 1", n)
		}
	})
}

func TestListWhenManyPages(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		var want []string
		for i := range 7 {
			b.pass(time.Duration(i%2) * time.Microsecond) // pairs are made in the same instant
			made, _ := b.create(t, Create{Name: fmt.Sprint(i), Role: Gateway})
			want = append(want, made.ID)
		}
		var got []string
		for page := ""; ; {
			tokens, next, err := b.List(t.Context(), page, 2)
			if err != nil {
				t.Fatal(err)
			}
			for i, token := range tokens {
				if i > 0 && token.CreatedAt.After(tokens[i-1].CreatedAt) {
					t.Error("an older token stands before a newer one")
				}
				got = append(got, token.ID)
			}
			if page = next; page == "" {
				break
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the pages together (-want +got):\n%s", diff)
		}
		for _, page := range []string{"!", "eA", "MTIz"} {
			_, _, err := b.List(t.Context(), page, 2)
			wantFault(t, err, fault.ErrInvalid, "bad_page_token")
		}
	})
}

func TestRevokeWhenRefused(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		admin, value := b.create(t, Create{Role: Admin})
		gateway, _ := b.create(t, Create{Role: Gateway})
		_, err := b.Revoke(t.Context(), "nobody", "")
		wantFault(t, err, fault.ErrNotFound, "token_not_found")

		// None of these could act as an admin, so the last one stays the last.
		b.create(t, Create{Role: Operator})
		short, _ := b.create(t, Create{Role: Admin, ExpiresIn: time.Second})
		gone, _ := b.create(t, Create{Role: Admin})
		if _, err := b.Revoke(t.Context(), gone.ID, ""); err != nil {
			t.Fatal(err)
		}
		b.pass(time.Second)
		_, err = b.Revoke(t.Context(), admin.ID, "")
		wantFault(t, err, fault.ErrTransition, "last_admin")
		mustVerify(t, b.Tokens, value, here)

		for _, id := range []string{short.ID, gateway.ID} {
			if _, err := b.Revoke(t.Context(), id, ""); err != nil {
				t.Errorf("revoke one that is no usable admin: %v", err)
			}
		}
		_, err = b.Revoke(t.Context(), gateway.ID, "")
		wantFault(t, err, fault.ErrTransition, "already_revoked")
	})
}

// However many admins are revoked at the same time, by however many replicas,
// one is left.
func TestRevokeWhenAllAdminsAtOnce(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		replicas := []*Tokens{b.Tokens, b.replica(t, db)}
		for range 5 {
			var ids []string
			for range 4 {
				token, _ := b.create(t, Create{Role: Admin})
				ids = append(ids, token.ID)
			}
			var wg sync.WaitGroup
			for i, id := range ids {
				wg.Go(func() {
					_, err := replicas[i%2].Revoke(t.Context(), id, "superseded")
					if err != nil && !errors.Is(err, fault.ErrTransition) {
						t.Errorf("revoke: %v", err)
					}
				})
			}
			wg.Wait()
			if n := number(t, db, `SELECT COUNT(*) FROM access_tokens WHERE role = 'admin' AND state = 'active'`); n != 1 {
				t.Fatalf("%d admins are left, want 1", n)
			}
		}
	})
}

// Two replicas find no token at the same moment. The second stands at the lock
// while the first one's value is already kept.
func TestBootstrapWhenTwoReplicasStart(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		other := b.replica(t, db)
		type outcome struct {
			made bool
			kept int
			err  error
		}
		second := make(chan outcome, 1)
		var value string
		made, err := b.Bootstrap(t.Context(), func(v secret.Value) error {
			value = v.RevealString()
			go func() {
				var o outcome
				o.made, o.err = other.Bootstrap(context.WithoutCancel(t.Context()), func(secret.Value) error { o.kept++; return nil })
				second <- o
			}()
			if db.Dialect() == "postgres" {
				eventually(t, "the second replica to stand at the lock", func() bool {
					return number(t, db, `SELECT COUNT(*) FROM pg_locks WHERE NOT granted`) == 1
				})
			}
			return nil
		})
		if err != nil || !made {
			t.Fatalf("the first replica: made %v, %v", made, err)
		}
		if o := <-second; o != (outcome{}) {
			t.Errorf("the second replica: %+v, want that it has nothing to do", o)
		}
		if n := number(t, db, `SELECT COUNT(*) FROM access_tokens`); n != 1 {
			t.Errorf("%d tokens were made, want 1", n)
		}
		if token := mustVerify(t, other, value, here); token.Role != Admin {
			t.Errorf("the first token has role %s", token.Role)
		}
	})
}

func TestBootstrapWhenItCrashes(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		var values []string
		keep := func(v secret.Value) error {
			values = append(values, v.RevealString())
			return nil
		}
		// The value is kept, and then the commit does not happen.
		ctx, crash := context.WithCancel(t.Context())
		made, err := b.Bootstrap(ctx, func(v secret.Value) error {
			crash()
			return keep(v)
		})
		if made || !errors.Is(err, context.Canceled) {
			t.Fatalf("made %v, %v, want that it fails", made, err)
		}
		// The value can't be kept.
		full := errors.New("no space left")
		if made, err := b.Bootstrap(t.Context(), func(secret.Value) error { return full }); made || !errors.Is(err, full) {
			t.Fatalf("made %v, %v, want %v", made, err, full)
		}
		if n := number(t, db, `SELECT COUNT(*) FROM access_tokens`); n != 0 {
			t.Fatalf("%d tokens were made", n)
		}
		next := b.replica(t, db)
		if made, err := next.Bootstrap(t.Context(), keep); !made || err != nil {
			t.Fatalf("the next start: made %v, %v", made, err)
		}
		if len(values) != 2 || values[0] == values[1] {
			t.Fatalf("%d values were kept, want two different ones", len(values))
		}
		wantDenied(t, next, values[0], here, "unknown")
		mustVerify(t, next, values[1], here)
		if made, err := b.replica(t, db).Bootstrap(t.Context(), keep); made || err != nil || len(values) != 2 {
			t.Errorf("a third start: made %v, %v, %d values", made, err, len(values))
		}
	})
}

// Replicas that start together end up with one pepper.
func TestPepperWhenReplicasStartTogether(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := &bed{db: db, sealer: newSealer(t)}
		replicas := make([]*Tokens, 4)
		var wg sync.WaitGroup
		for i := range replicas {
			wg.Go(func() {
				var err error
				if replicas[i], err = openTokens(t.Context(), db, b.sealer); err != nil {
					t.Errorf("start: %v", err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		b.Tokens = replicas[0]
		_, value := b.create(t, Create{Role: Admin})
		for _, r := range replicas {
			mustVerify(t, r, value, here)
		}
		// Without the key file nothing can be verified, and nothing is made anew.
		_, err := openTokens(t.Context(), db, newSealer(t))
		if err == nil {
			t.Error("started with a foreign key file")
		}
		if n := number(t, db, `SELECT COUNT(*) FROM peppers`); n != 2 {
			t.Errorf("there are %d peppers, want the root and one generation", n)
		}
	})
}

func TestTrailWhenTokensChange(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, Create{Role: Admin})
		token, _ := b.create(t, Create{Name: "edge", Role: Gateway, CIDRs: []string{"10.0.0.0/8"}})
		b.pass(time.Second)
		if _, err := b.Revoke(t.Context(), token.ID, "superseded"); err != nil {
			t.Fatal(err)
		}
		events, _, err := audit.List(t.Context(), db, audit.Query{Resource: "tokens/" + token.ID})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range events {
			got = append(got, fmt.Sprint(e.Action, " ", e.Reason, " ", e.Detail))
		}
		want := []string{"token.revoke superseded map[name:edge role:gateway]", "token.create  map[cidrs:[10.0.0.0/8] name:edge role:gateway]"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
	})
}

// Neither a token, nor a key, nor a secret, nor a pepper is anywhere in what a thief
// of the database gets.
func TestDatabaseHoldsNoToken(t *testing.T) {
	steal := func(t *testing.T, db *store.DB, contents func() string) {
		b := newBed(t, db)
		token, value := b.create(t, Create{Name: "canary-name", Role: Admin, Once: store.Once{Scope: "s", Key: "k", Fingerprint: "f"}})
		var first string
		if _, err := b.replica(t, db).Bootstrap(t.Context(), func(v secret.Value) error { first = v.RevealString(); return nil }); err != nil {
			t.Fatal(err)
		}
		if first != "" {
			t.Fatal("a bootstrap token was made beside another")
		}
		mustVerify(t, b.Tokens, value, here)
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		k, _ := parseKeyString(value)
		_, pepper := b.peppers.current()
		stolen := b.canaries(t)
		haystack := contents()
		for _, there := range []string{token.ID, "canary-name"} {
			if !strings.Contains(haystack, there) {
				t.Fatalf("the search does not even find %q", there)
			}
		}
		for what, needle := range map[string]string{
			"the value":             value,
			"its secret":            k.secret,
			"half of the secret":    k.secret[:20],
			"its other half":        k.secret[20:],
			"the secret in hex":     hex.EncodeToString([]byte(k.secret)),
			"the pepper":            string(pepper),
			"the pepper in hex":     hex.EncodeToString(pepper),
			"the root":              string(b.peppers.gens[rootGen]),
			"the key of seals":      string(b.peppers.sealKey),
			"the key of ids":        string(b.peppers.idKey),
			"the checksum with key": value[len(value)-sumLength-4:],
		} {
			if strings.Contains(haystack, needle) {
				t.Errorf("the database holds %s", what)
			}
		}
		for what, needle := range stolen {
			for form, needle := range map[string]string{"": needle, " in hex": hex.EncodeToString([]byte(needle)), " in base64": base64.StdEncoding.EncodeToString([]byte(needle))} {
				if len(needle) < 8 || strings.Contains(haystack, needle) {
					t.Errorf("the database holds %s%s, or nothing was searched for", what, form)
				}
			}
		}
	}
	t.Run("sqlite", func(t *testing.T) {
		url := storetest.SQLiteURL(t)
		steal(t, storetest.Open(t, url), func() string {
			var all strings.Builder
			files, err := filepath.Glob(strings.TrimPrefix(url, "sqlite:") + "*") // with the write-ahead log
			if err != nil || len(files) < 2 {
				t.Fatalf("found the files %v (%v), want the database and its log", files, err)
			}
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				all.Write(b)
			}
			return all.String()
		})
	})
	t.Run("postgres", func(t *testing.T) {
		db := storetest.Open(t, storetest.Postgres(t))
		steal(t, db, func() string { return dump(t, db) })
	})
}

// canaries makes one of everything that is secret, and returns what must be nowhere.
func (b *bed) canaries(t *testing.T) map[string]string {
	t.Helper()
	b.partner(t, "acme", PartnerSpec{})
	out := map[string]string{}
	key := func(what, value string) {
		t.Helper()
		k, ok := parseKey(value, brand)
		if !ok {
			t.Fatal("a key does not parse")
		}
		out[what], out["the secret of "+what], out["half of "+what] = value, k.secret, k.secret[20:]
	}
	hook := func(what, value string) {
		t.Helper()
		raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(value, secretPrefix))
		if err != nil {
			t.Fatal(err)
		}
		out[what], out["the bytes of "+what] = value, string(raw)
	}
	k, value := b.key(t, KeySpec{Once: store.Once{Scope: "s", Key: "k2", Fingerprint: "f"}})
	key("an API key", value)
	_, _, value = b.roll(t, Roll{Kind: APIKey, ID: k.ID})
	key("its successor", value)
	_, value = b.signing(t, KeySpec{Name: "hook"})
	hook("a request secret", value)
	_, _, value = b.roll(t, Roll{Kind: RequestSecret, Partner: "acme", Name: "hook"})
	hook("its next version", value)
	strong, hashed, weak := strongKey(), strongKey(), "opensesame1"
	digests := map[string][32]byte{}
	for what, v := range map[string]string{"a strong imported key": strong, "a hashed imported key": hashed, "a weak imported key": weak} {
		out[what], digests[what] = v, foreignDigest(v)
		d := digests[what]
		out["the digest of "+what] = string(d[:])
	}
	d := digests["a hashed imported key"]
	b.imports(t, "acme", OriginRaw, items(strong, weak, strong)...)
	b.imports(t, "acme", OriginSHA256, items(hex.EncodeToString(d[:]))...)
	b.rotate(t)
	_, newest := b.peppers.current()
	out["the newest pepper"] = string(newest)
	return out
}

// dump is every row of every table of a PostgreSQL database as text, bytes in hex.
func dump(t *testing.T, db *store.DB) string {
	t.Helper()
	column := func(query string) (out []string) {
		err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			rows, err := tx.Query(ctx, query)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var s string
				if err := rows.Scan(&s); err != nil {
					return err
				}
				out = append(out, s)
			}
			return rows.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	var all []string
	for _, table := range column(`SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'`) {
		all = append(all, column(`SELECT x::text FROM `+table+` x`)...)
	}
	return strings.Join(all, "\n")
}

// All bits of the secret and of the id vary: no part is constant or counts up.
func TestKeysLookRandom(t *testing.T) {
	const n = 4000
	var counts [idLength + secretLength]map[byte]int
	for i := range counts {
		counts[i] = map[byte]int{}
	}
	for range n {
		k, _ := newKeyString("x")
		for i, c := range []byte(k.id + k.secret) {
			counts[i][c]++
		}
	}
	for i, c := range counts {
		if i == 0 || i == idLength {
			continue // the leading digits carry less than a whole digit of entropy
		}
		for digit, times := range c {
			if mean := n / 62.0; float64(times) > mean+8*math.Sqrt(mean) {
				t.Errorf("digit %q stands %d times at place %d, want about %.0f", digit, times, i, mean)
			}
		}
		if len(c) < 62 {
			t.Errorf("only %d digits occur at place %d", len(c), i)
		}
	}
}

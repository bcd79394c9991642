package apikeys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// run runs statements, such as DDL, that hit no rows.
func run(t testing.TB, db *store.DB, statements ...string) {
	t.Helper()
	err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		for _, s := range statements {
			if _, err := tx.Exec(ctx, s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// breakEvents makes the database refuse events of an action, until the returned
// function is called.
func breakEvents(t testing.TB, db *store.DB, action string) (mend func()) {
	t.Helper()
	if db.Dialect() == "postgres" {
		run(t, db,
			`CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'broken by the test'; END $$`,
			fmt.Sprintf(`CREATE TRIGGER broken BEFORE INSERT ON event_queue FOR EACH ROW WHEN (NEW.action = '%s') EXECUTE FUNCTION broken()`, action))
		return func() {
			t.Helper()
			run(t, db, `DROP TRIGGER broken ON event_queue`, `DROP FUNCTION broken()`)
		}
	}
	run(t, db, fmt.Sprintf(`CREATE TRIGGER broken BEFORE INSERT ON event_queue WHEN NEW.action = '%s' BEGIN SELECT RAISE(ABORT, 'broken by the test'); END`, action))
	return func() {
		t.Helper()
		run(t, db, `DROP TRIGGER broken`)
	}
}

// tables is every row that the package and what it calls can write, sorted, as text.
func tables(t testing.TB, db *store.DB) string {
	t.Helper()
	var out []string
	err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		out = nil
		for _, table := range []string{"access_tokens", "peppers", "partners", "partner_keys", "event_queue", "idempotency"} {
			rows, err := tx.Query(ctx, `SELECT * FROM `+table)
			if err != nil {
				return err
			}
			defer rows.Close()
			columns, err := rows.Columns()
			if err != nil {
				return err
			}
			values, into := make([]any, len(columns)), make([]any, len(columns))
			for i := range values {
				into[i] = &values[i]
			}
			for rows.Next() {
				if err := rows.Scan(into...); err != nil {
					return err
				}
				out = append(out, fmt.Sprintf("%s %x", table, values))
			}
			if err := rows.Err(); err != nil {
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

// Promise: what can't be written to the trail does not happen.
func TestChangeWhenItsEventCannotBeWritten(t *testing.T) {
	once := store.Once{Scope: "s", Key: "k", Fingerprint: "f"}
	for _, tc := range []struct {
		name   string
		action string
		empty  bool // there is no token yet
		do     func(ctx context.Context, b *bed, id string) (*Token, secret.Value, error)
		undone func(t *testing.T, b *bed, value string) // what else shows that it did not happen
	}{
		{"create", "token.create", false, func(ctx context.Context, b *bed, _ string) (*Token, secret.Value, error) {
			return b.Create(ctx, Create{Name: "new", Role: Signer, Once: once})
		}, nil},
		{"bootstrap", "token.create", true, func(ctx context.Context, b *bed, _ string) (*Token, secret.Value, error) {
			var kept string
			made, err := b.Bootstrap(ctx, func(v secret.Value) error {
				kept = v.RevealString()
				return nil
			})
			switch {
			case err != nil && made:
				err = errors.Join(err, errors.New("it says that a token was made"))
			case err == nil && !made:
				err = errors.New("it says that there was nothing to do")
			}
			return nil, secret.FromString(kept), err
		}, func(t *testing.T, b *bed, value string) {
			wantDenied(t, b.Tokens, value, here, "unknown")
		}},
		{"revoke", "token.revoke", false, func(ctx context.Context, b *bed, id string) (*Token, secret.Value, error) {
			token, err := b.Revoke(ctx, id, "superseded")
			return token, secret.Value{}, err
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				b := newBed(t, db)
				var id, held string
				if !tc.empty {
					var token *Token
					token, held = b.create(t, Create{Role: Signer})
					id = token.ID
				}
				mend := breakEvents(t, db, tc.action)
				before := tables(t, db)
				token, v, err := tc.do(t.Context(), b, id)
				if err == nil || token != nil {
					t.Fatalf("it was done without its event: %+v, %v", token, err)
				}
				if !strings.Contains(err.Error(), "broken by the test") || strings.Contains(err.Error(), "it says") {
					t.Fatal(err)
				}
				if after := tables(t, db); after != before {
					t.Errorf("the change is there without its event:\n%s\n\n%s", before, after)
				}
				if tc.undone != nil {
					tc.undone(t, b, v.RevealString())
				}
				if held != "" {
					mustVerify(t, b.Tokens, held, here)         // from the cache of this replica
					mustVerify(t, b.replica(t, db), held, here) // from the database
					if tokens, _, err := b.List(t.Context(), "", 10); err != nil || len(tokens) != 1 {
						t.Errorf("%d tokens are listed, want 1 (%v)", len(tokens), err)
					}
				}
				mend()
				if _, _, err := tc.do(t.Context(), b, id); err != nil {
					t.Fatalf("after the trail was mended: %v", err)
				}
				if n := number(t, db, `SELECT COUNT(*) FROM event_queue WHERE action = $1`, tc.action); tables(t, db) == before || n == 0 {
					t.Errorf("nothing was done, or with %d events", n)
				}
			})
		})
	}
}

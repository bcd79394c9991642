package jwks

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Somebody with write access to the database, who has not got the KEK, can't
// publish a key of his own, revive one, or change what a key may do: such a row
// is not published, whatever the process already had goes on, and the key can
// be revoked.
func TestDocumentWhenKeyRowIsTampered(t *testing.T) {
	for _, tc := range []struct{ name, query string }{
		{"a public key of his own", `UPDATE signing_keys SET public_jwk = replace(public_jwk, 'a', 'b') WHERE kid = $1`},
		{"state", `UPDATE signing_keys SET state = 'retiring' WHERE kid = $1`},
		{"served for longer", `UPDATE signing_keys SET served_since = served_since - 3600000000 WHERE kid = $1`},
		{"another algorithm", `UPDATE signing_keys SET algorithm = 'RS256' WHERE kid = $1`},
		{"another private half", `UPDATE signing_keys SET private = (SELECT private FROM signing_keys WHERE state = 'active') WHERE kid = $1`},
		{"no seal", `UPDATE signing_keys SET seal = CAST('' AS BYTEA) WHERE kid = $1`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				b := newBed(t, db)
				set := b.create(t, "payments", ES256, quick())
				kid := set.Standby().Kid
				query := tc.query
				if db.Dialect() == "sqlite" {
					query = strings.Replace(query, "CAST('' AS BYTEA)", "x''", 1)
				}
				mustExec(t, db, query, kid)

				other := New(Config{DB: db, Local: b.local}) // a replica that starts now
				if err := other.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				if d := other.Document("payments"); d == nil || strings.Contains(string(d.Body), kid) {
					t.Errorf("the tampered key is published: %v", d)
				}
				got := b.get(t, "payments")
				if got.Standby() != nil || len(got.Tampered) != 1 || got.Tampered[0].Kid != kid {
					t.Errorf("tampered keys: %+v", got.Tampered)
				}
				b.clock.Advance(time.Hour)
				if _, err := b.Rotate(t.Context(), Rotate{Name: "payments"}); !errors.Is(err, fault.ErrTransition) {
					t.Errorf("rotated to a tampered key: %v", err)
				}
				if _, _, err := b.Revoke(t.Context(), Revoke{Name: "payments", Kid: kid, Reason: "key_compromise"}); err != nil {
					t.Errorf("a tampered key can't be revoked: %v", err)
				}
				b.pass(t)
				if s := b.get(t, "payments"); s.Standby() == nil || len(s.Tampered) != 0 {
					t.Errorf("after the revocation: %+v", s)
				}
			})
		})
	}
}

// A key that was revoked stays revoked, and a row that was copied from another
// keyset is no key of this one.
func TestDocumentWhenKeyRowIsRevivedOrCopied(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		old := b.create(t, "payments", ES256, quick()).Active().Kid
		theirs := b.create(t, "staging", ES256, quick())
		b.revoke(t, Revoke{Name: "payments", Kid: old, Mode: ModeFresh, Reason: "key_compromise"})
		mustExec(t, db, `UPDATE signing_keys SET state = 'retiring' WHERE kid = $1`, old)
		mustExec(t, db, `INSERT INTO signing_keys (`+keyColumns+`)
			SELECT (SELECT id FROM keysets WHERE name = 'payments'), `+strings.TrimPrefix(strings.Replace(keyColumns, "state,", "'retiring',", 1), "keyset_id, ")+`
			FROM signing_keys WHERE keyset_id = $1 AND state = 'active'`, theirs.ID)
		if got := b.get(t, "payments"); len(got.Tampered) != 2 || len(got.Keys) != 2 {
			t.Errorf("published %d keys, tampered %d, want 2 and 2", len(got.Keys), len(got.Tampered))
		}
	})
}

// A keyset's name, issuer and policy are what they were when Rotunda wrote them.
func TestKeysetWhenRowIsTampered(t *testing.T) {
	for _, tc := range []struct{ name, query string }{
		{"issuer", `UPDATE keysets SET issuer = 'https://evil.example.com' WHERE name = 'staging'`},
		{"policy", `UPDATE keysets SET policy = replace(policy, '"token_ttl":', '"token_ttl":1') WHERE name = 'staging'`},
		{"name", `UPDATE keysets SET name = 'prod' WHERE name = 'staging'`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				b := newBed(t, db)
				b.create(t, "payments", ES256, quick())
				b.create(t, "staging", ES256, quick())
				before := b.Document("staging")
				mustExec(t, db, tc.query)
				err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					// So that the row is read under its new name.
					return audit.Record(ctx, tx, audit.Event{Action: "keyset.get", Resource: "keysets/prod", Outcome: audit.Denied})
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := b.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				if b.Document("staging") != before || b.Document("prod") != nil {
					t.Error("the tampered row took effect")
				}
				name := "staging"
				if tc.name == "name" {
					name = "prod"
				}
				_, err = b.Get(t.Context(), name)
				wantFault(t, err, fault.ErrRejected, "tampered", "name")
				sets, _, err := b.List(t.Context(), "", 10)
				if err != nil || len(sets) != 2 || sets[0].Foreign || !sets[1].Foreign {
					t.Errorf("listed %v, %v", sets, err)
				}
				// The others are not held up.
				b.sign(t, "payments")
				b.pass(t)
			})
		})
	}
}

// A key's row that is put back as it was before its revocation is not the row
// that the keyset knows.
func TestDocumentWhenOldKeyRowIsPutBack(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		kid := b.create(t, "payments", ES256, quick()).Active().Kid
		mustExec(t, db, `CREATE TABLE kept AS SELECT * FROM signing_keys WHERE kid = '`+kid+`'`)
		b.revoke(t, Revoke{Name: "payments", Kid: kid, Mode: ModeFresh, Reason: "key_compromise"})
		mustExec(t, db, `DELETE FROM signing_keys WHERE kid = $1`, kid)
		mustExec(t, db, `UPDATE kept SET state = 'retiring'`)
		mustExec(t, db, `INSERT INTO signing_keys SELECT * FROM kept`)
		mustExec(t, db, `DELETE FROM signing_keys WHERE kid = $1`, kid)
		mustExec(t, db, `UPDATE signing_keys SET state = 'retiring' WHERE state = 'active'`) // makes room
		mustExec(t, db, `UPDATE kept SET state = 'active'`)
		mustExec(t, db, `INSERT INTO signing_keys SELECT * FROM kept`)
		set := b.get(t, "payments")
		if set.Active() != nil || len(set.Tampered) != 2 {
			t.Errorf("the old row counts: %+v", set)
		}
		if err := b.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := b.Document("payments"); strings.Contains(string(d.Body), kid) {
			t.Error("the revoked key is published again")
		}
	})
}

// One row that nobody can read stops no other keyset.
func TestRefreshWhenOneRowIsDamaged(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "damaged", ES256, quick())
		b.create(t, "payments", ES256, quick())
		before := b.Document("damaged")
		mustExec(t, db, `UPDATE keysets SET policy = '{' WHERE name = 'damaged'`)
		b.clock.Advance(SignerLease)
		b.pass(t)
		b.sign(t, "payments")
		if b.Document("damaged") != before {
			t.Error("the damaged keyset's document changed")
		}
	})
}

// Claims that some readers would take for registered ones are refused.
func TestSignWhenClaimNamesFold(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.create(t, "payments", ES256, quick())
	for _, claims := range []string{`{"ISS":"https://other.example"}`, `{"iſs":"https://other.example"}`, `{"Exp":1}`,
		`{"a":` + strings.Repeat("[", 65) + strings.Repeat("]", 65) + `}`} {
		_, err := b.Sign(t.Context(), Sign{Name: "payments", Claims: []byte(claims)})
		wantFault(t, err, fault.ErrInvalid, "bad_claims", "claims")
	}
	s, err := b.Sign(t.Context(), Sign{Name: "payments", Claims: []byte(`{"x":"` + strings.Repeat("<", 12000) + `"}`)})
	if err != nil || len(s.Token) > 20000 {
		t.Errorf("%d bytes of token, %v", len(s.Token), err)
	}
}

package apikeys

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Who can write to the database, and holds a token of his own, gets nothing by
// changing rows.
func TestVerifyWhenRowIsTampered(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		victim, _ := b.create(t, Create{Role: Admin, Name: "victim"})
		revive := func(t *testing.T, id string) {
			if _, err := b.Revoke(t.Context(), id, ""); err != nil {
				t.Fatal(err)
			}
			exec(t, db, `UPDATE access_tokens SET state = 'active', revoked_at = 0 WHERE id = $1`, id)
		}
		written := func(role Role, id, value string) string {
			k, _ := parseKeyString(value)
			body := "rk_" + string(role) + "_" + id + "_" + k.secret
			return body + checksum(body)
		}
		for _, c := range []struct {
			what   string
			tamper func(t *testing.T, id string)
			role   Role   // that the attacker's key says
			id     string // "": his own
		}{
			{what: "another role", role: Admin, tamper: func(t *testing.T, id string) {
				exec(t, db, `UPDATE access_tokens SET role = 'admin' WHERE id = $1`, id)
			}},
			{what: "every keyset", tamper: func(t *testing.T, id string) {
				exec(t, db, `UPDATE access_tokens SET keysets = '[]' WHERE id = $1`, id)
			}},
			{what: "another keyset", tamper: func(t *testing.T, id string) {
				exec(t, db, `UPDATE access_tokens SET keysets = '["payments"]' WHERE id = $1`, id)
			}},
			{what: "every address", tamper: func(t *testing.T, id string) {
				exec(t, db, `UPDATE access_tokens SET cidrs = '[]' WHERE id = $1`, id)
			}},
			{what: "no end", tamper: func(t *testing.T, id string) {
				exec(t, db, `UPDATE access_tokens SET expires_at = 0 WHERE id = $1`, id)
			}},
			{what: "a microsecond more", tamper: func(t *testing.T, id string) {
				exec(t, db, `UPDATE access_tokens SET expires_at = expires_at + 1 WHERE id = $1`, id)
			}},
			{what: "another name", tamper: func(t *testing.T, id string) {
				exec(t, db, `UPDATE access_tokens SET name = 'victim' WHERE id = $1`, id)
			}},
			{what: "revoked, and active again", tamper: revive},
			{what: "his hash in the admin's row", role: Admin, id: victim.ID, tamper: func(t *testing.T, id string) {
				exec(t, db, `UPDATE access_tokens SET hash = (SELECT hash FROM access_tokens WHERE id = $1) WHERE id = $2`, id, victim.ID)
			}},
			{what: "his row under the admin's id", role: Admin, id: victim.ID, tamper: func(t *testing.T, id string) {
				exec(t, db, `UPDATE access_tokens SET id = 'gone' WHERE id = $1`, victim.ID)
				exec(t, db, `UPDATE access_tokens SET id = $1, role = 'admin' WHERE id = $2`, victim.ID, id)
			}},
			{what: "a hash without a seal", tamper: func(t *testing.T, id string) {
				var hash []byte
				err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					return tx.QueryRow(ctx, `SELECT hash FROM access_tokens WHERE id = $1`, id).Scan(&hash)
				})
				if err != nil {
					t.Fatal(err)
				}
				exec(t, db, `UPDATE access_tokens SET hash = $1, seal = $2 WHERE id = $3`, hash, []byte{}, id)
			}},
			{what: "no hash", tamper: func(t *testing.T, id string) {
				exec(t, db, `UPDATE access_tokens SET hash = $1 WHERE id = $2`, []byte{}, id)
			}},
		} {
			t.Run(c.what, func(t *testing.T) {
				own, value := b.create(t, Create{Role: Signer, Keysets: []string{"own"}, CIDRs: []string{"192.0.2.0/24"}, ExpiresIn: time.Hour})
				mustVerify(t, b.Tokens, value, here)
				other := b.replica(t, db)
				c.tamper(t, own.ID)
				role, id := c.role, c.id
				if role == "" {
					role = Signer
				}
				if id == "" {
					id = own.ID
				}
				wantDenied(t, other, written(role, id, value), here, "tampered")
				wantFault(t, other.Usable(t.Context(), id), fault.ErrDenied, "tampered")
				b.pass(FreshFor)
				wantDenied(t, b.Tokens, written(role, id, value), here, "tampered") // remembered no longer than a revocation
			})
		}

		// What Rotunda itself writes keeps the seal whole.
		own, value := b.create(t, Create{Role: Gateway})
		mustVerify(t, b.Tokens, value, here)
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, b.replica(t, db), value, here)
		b.create(t, Create{Role: Admin})
		if _, err := b.Revoke(t.Context(), own.ID, "superseded"); err != nil {
			t.Fatal(err)
		}
		wantDenied(t, b.replica(t, db), value, here, "revoked")
	})
}

// A pepper can't be replaced by one that somebody knows.
func TestPepperWhenRowIsTampered(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		foreign := newSealer(t)
		exec(t, db, `UPDATE peppers SET sealed = $1 WHERE gen = 1`, []byte("known"))
		if _, err := openTokens(t.Context(), db, b.sealer); err == nil {
			t.Error("started with a pepper that is not sealed")
		}
		if _, err := openTokens(t.Context(), db, foreign); err == nil {
			t.Error("started with a pepper that is not sealed")
		}
		// A row that names a generation nobody has is out of reach, not accepted.
		token, value := b.create(t, Create{Role: Admin})
		exec(t, db, `UPDATE access_tokens SET pepper_gen = 2 WHERE id = $1`, token.ID)
		_, err := b.Verify(t.Context(), value, here)
		wantFault(t, err, fault.ErrUnavailable, "pepper_missing")
	})
}

func TestGatewayRangesWhenRowsDiffer(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, Create{Role: Gateway, CIDRs: []string{"10.0.0.0/8", "2001:db8::/32"}})
		b.create(t, Create{Role: Gateway})
		b.create(t, Create{Role: Signer, CIDRs: []string{"172.16.0.0/12"}})
		revoked, _ := b.create(t, Create{Role: Gateway, CIDRs: []string{"198.51.100.1"}})
		if _, err := b.Revoke(t.Context(), revoked.ID, ""); err != nil {
			t.Fatal(err)
		}
		widened, _ := b.create(t, Create{Role: Gateway, CIDRs: []string{"198.51.100.2"}})
		exec(t, db, `UPDATE access_tokens SET cidrs = '["0.0.0.0/0"]' WHERE id = $1`, widened.ID)
		b.create(t, Create{Role: Gateway, CIDRs: []string{"198.51.100.3"}, ExpiresIn: time.Minute})

		get := func() (out []string) {
			t.Helper()
			ranges, err := b.GatewayRanges(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range ranges {
				out = append(out, p.String())
			}
			slices.Sort(out)
			return out
		}
		if got, want := get(), []string{"10.0.0.0/8", "198.51.100.3/32", "2001:db8::/32"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		b.pass(time.Minute)
		if got, want := get(), []string{"10.0.0.0/8", "2001:db8::/32"}; !slices.Equal(got, want) {
			t.Errorf("after one has expired: got %v, want %v", got, want)
		}
	})
}

// A row that was made an admin's by hand is no reason to give up the last real one.
func TestRevokeWhenOtherAdminIsTampered(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		admin, _ := b.create(t, Create{Role: Admin})
		fake, _ := b.create(t, Create{Role: Operator})
		exec(t, db, `UPDATE access_tokens SET role = 'admin' WHERE id = $1`, fake.ID)
		_, err := b.Revoke(t.Context(), admin.ID, "")
		wantFault(t, err, fault.ErrTransition, "last_admin")
		if _, err := b.Revoke(t.Context(), fake.ID, "tampered"); err != nil {
			t.Errorf("the tampered row can't be revoked: %v", err)
		}
	})
}

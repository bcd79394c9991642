package apikeys

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Whoever can write to the database, but has no key of Rotunda's, gets nothing by
// changing rows: no value is accepted, and nothing can be done with the key.
func TestKeyWhenRowIsTampered(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		b.partner(t, "rich", PartnerSpec{})
		victim, _ := b.key(t, KeySpec{Partner: "rich", Scopes: []string{"orders:write"}, Name: "victim"})
		all := ""
		for _, column := range slices.Sorted(strings.SplitSeq(strings.ReplaceAll(keyColumns, "\n\t", " "), ", ")) {
			if column == "id" {
				continue
			}
			change, ok := map[string]string{
				"kind":    "", // the schema ties it to the hash
				"partner": "'rich'", "name": "'x'", "environment": "'test'", "class": "'publishable'", "state": "'active'", "scopes": `'["orders:write"]'`,
				"cidrs": "'[]'", "rate_quota": "0", "rate_window": "1", "rate_burst": "9", "metadata": `'{"a":"b"}'`, "origin": "'raw'", "weak": "TRUE", "algorithm": "'ed25519'",
				"hash": "(SELECT hash FROM partner_keys WHERE name = 'victim')", "lookup": "(SELECT hash FROM partner_keys WHERE name = 'victim')",
				"salt": "(SELECT hash FROM partner_keys WHERE name = 'victim')", "sealed": "", "public_key": "'x'", "pepper_gen": "0",
				"lineage": "(SELECT id FROM partner_keys WHERE name = 'victim')", "replaces": "'x'", "replaced_by": "'x'", "reason": "'x'", "reason_text": "'x'", "created_at": "created_at + 1",
				"since": "since + 1", "expires_at": "expires_at + 1", "grace_ends_at": "1", "quiet": "1", "warned_at": "1", "next_at": "1", "version": "version + 1",
				"seal":          "(SELECT seal FROM partner_keys WHERE name = 'victim')",
				"first_used_at": "-", "last_used_at": "-",
			}[column]
			switch {
			case !ok:
				t.Errorf("column %s is not tried", column)
			case change == "-", change == "":
			default:
				k, value := b.key(t, KeySpec{Name: "own-" + column, Scopes: []string{"orders:read"}, CIDRs: []string{"192.0.2.0/24"}, Rate: RateLimit{1, time.Second, 0}, ExpiresIn: time.Hour})
				if column == "state" {
					if _, err := b.keys.Suspend(t.Context(), APIKey, "", k.ID, ""); err != nil {
						t.Fatal(err)
					}
				}
				exec(t, db, `UPDATE partner_keys SET `+column+` = `+change+` WHERE id = $1`, k.ID)
				wantUseless(t, b, column, k, value)
				all += column + " "
			}
		}
		if len(strings.Fields(all)) != 33 {
			t.Errorf("tried %s", all)
		}

		// Whole rows, too.
		own, value := b.key(t, KeySpec{Scopes: []string{"orders:read"}})
		exec(t, db, `UPDATE partner_keys SET (hash, seal) = (SELECT hash, seal FROM partner_keys WHERE id = $1) WHERE id = $2`, own.ID, victim.ID)
		wantUseless(t, b, "his hash and seal in another's row", victim, value)
		own, value = b.key(t, KeySpec{Scopes: []string{"orders:read"}})
		other, _ := b.key(t, KeySpec{Partner: "rich", Name: "other"})
		exec(t, db, `DELETE FROM partner_keys WHERE id = $1`, other.ID)
		exec(t, db, `UPDATE partner_keys SET id = $1 WHERE id = $2`, other.ID, own.ID)
		other.Partner = "acme"
		wantUseless(t, b, "his row under another's id", other, value)
		own, value = b.key(t, KeySpec{})
		if _, err := b.keys.Revoke(t.Context(), APIKey, "", own.ID, "", ""); err != nil {
			t.Fatal(err)
		}
		exec(t, db, `UPDATE partner_keys SET state = 'active', reason = '', since = created_at, version = 1 WHERE id = $1`, own.ID)
		wantUseless(t, b, "revoked, and active again", own, value)

		// Use is not under the seal.
		own, value = b.key(t, KeySpec{})
		exec(t, db, `UPDATE partner_keys SET first_used_at = 5, last_used_at = 6 WHERE id = $1`, own.ID)
		if got := b.get(t, own); !b.accepts(t, own, value) || got.LastUsedAt.UnixMicro() != 6 || got.FirstUsedAt.UnixMicro() != 5 {
			t.Errorf("a key is not accepted after its use was written: %+v", got)
		}

		// A sealed secret moved to another row opens nowhere.
		s, _ := b.signing(t, KeySpec{Name: "mine"})
		rich, _ := b.signing(t, KeySpec{Name: "theirs", Partner: "rich"})
		exec(t, db, `UPDATE partner_keys SET sealed = (SELECT sealed FROM partner_keys WHERE id = $1) WHERE id = $2`, s.ID, rich.ID)
		wantUseless(t, b, "a secret of his own for another", rich, "")
		got, err := b.keys.Get(t.Context(), RequestSecret, "", rich.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.sealer.Open(t.Context(), secretPlace(rich.ID), got.sealed); err == nil {
			t.Error("it opens there")
		}
	})
}

// wantUseless fails unless a key is shown as tampered, accepted for nothing, and
// refused by everything that would change it.
func wantUseless(t *testing.T, b *bed, what string, k *Key, value string) {
	t.Helper()
	got, err := b.keys.Get(t.Context(), k.Kind, "", k.ID)
	if err != nil || !got.Tampered() {
		t.Errorf("%s: not noticed (%v)", what, err)
		return
	}
	if state := got.State(b.clock.Now()); state == Active || state == Retiring {
		t.Errorf("%s: it is %s", what, state)
	}
	if k.Kind == APIKey && b.accepts(t, k, value) {
		t.Errorf("%s: it is accepted", what)
	}
	for action, do := range map[string]func() error{
		"suspend": func() error { _, err := b.keys.Suspend(t.Context(), k.Kind, "", k.ID, ""); return err },
		"revoke":  func() error { _, err := b.keys.Revoke(t.Context(), k.Kind, "", k.ID, "", ""); return err },
		"roll": func() error {
			_, _, err := b.keys.Roll(t.Context(), Roll{Kind: k.Kind, Partner: got.Partner, ID: k.ID, Name: got.Name})
			return err
		},
		"rehash": func() error {
			return b.db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				return b.keys.rehash(ctx, tx, k.ID, got.PepperGen, got.PepperGen+1, got.hash, got.lookup)
			})
		},
		"update": func() error {
			_, err := b.keys.Update(t.Context(), k.ID, got.Version, KeySpec{Name: "x"})
			return err
		},
	} {
		if k.Kind == RequestSecret && (action == "update" || action == "rehash") {
			continue
		}
		if err := do(); !errors.Is(err, fault.ErrDenied) {
			t.Errorf("%s: %s: %v", what, action, err)
		}
	}
}

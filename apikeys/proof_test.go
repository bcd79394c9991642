package apikeys

import (
	"context"
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// Promise: that a token's value was proven once lets in that value and no other, and
// only as long as the row is fresh in which it was read.
func TestTokenWhenItsValueWasProven(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		from := netip.MustParseAddr("203.0.113.9")
		token, v, err := b.Tokens.Create(t.Context(), Create{Name: "ci", Role: Gateway})
		if err != nil {
			t.Fatal(err)
		}
		value := v.RevealString()
		k, ok := parseKeyString(value)
		if !ok {
			t.Fatal("the value can't be read")
		}
		denied := func(what, value string) {
			t.Helper()
			if _, err := b.Tokens.Verify(t.Context(), value, from); err == nil {
				t.Errorf("%s is accepted", what)
			}
		}
		accepted := func(what string) {
			t.Helper()
			for range 2 { // the second time by its digest
				if got, err := b.Tokens.Verify(t.Context(), value, from); err != nil || got.ID != token.ID {
					t.Errorf("%s is denied: %v", what, err)
				}
			}
		}
		_, other := writeKey(brand, keyString{env: k.env, id: k.id, secret: random(secretLength, 32)})
		_, lifted := writeKey(brand, keyString{env: "admin", id: k.id, secret: k.secret})
		accepted("the token")
		for range 2 {
			denied("another secret", other.RevealString())
			denied("the secret under another role", lifted.RevealString())
		}
		accepted("the token, after others were tried")

		// Another process gives the token another secret: the old one ends with its row.
		gen, pepper := b.peppers.current()
		changed := *token
		changed.gen, changed.hash = gen, mac(pepper, "", rand.Text())
		changed.sealed = changed.seal(b.peppers.sealKey)
		err = b.db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			return tx.Swap(ctx, `UPDATE access_tokens SET hash = $1, seal = $2 WHERE id = $3`, changed.hash, changed.sealed, token.ID)
		})
		if err != nil {
			t.Fatal(err)
		}
		b.pass(FreshFor - time.Millisecond)
		accepted("the token in a fresh row")
		b.pass(time.Millisecond)
		denied("the old secret", value)
	})
}

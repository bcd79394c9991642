package apikeys

import (
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

func TestSigningSecretsWhenRolled(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		b.partner(t, "other", PartnerSpec{})
		// opens has each secret sign, and the receiver verify with its value.
		opens := func(values ...string) {
			t.Helper()
			secrets, err := b.keys.SigningSecrets(t.Context(), "acme", "hooks")
			if err != nil {
				t.Fatal(err)
			}
			if len(secrets) != len(values) {
				t.Fatalf("%d secrets sign, want %d", len(secrets), len(values))
			}
			for i, v := range values {
				want, err := webhook.ParseSecret(v)
				if err != nil {
					t.Fatal(err)
				}
				h, err := webhook.Sign("msg_1", b.clock.Now(), []byte("{}"), secrets[i])
				if err != nil {
					t.Fatal(err)
				}
				header := map[string][]string{}
				h.Set(header)
				if _, _, err := webhook.Verify(header, []byte("{}"), b.clock.Now(), time.Minute, want); err != nil {
					t.Errorf("secret %d: %v", i, err)
				}
			}
		}
		_, err := b.keys.SigningSecrets(t.Context(), "acme", "hooks")
		wantFault(t, err, fault.ErrNotFound, "request_secret_not_found")
		_, one := b.signing(t, KeySpec{Name: "hooks"})
		opens(one)
		_, err = b.keys.SigningSecrets(t.Context(), "other", "hooks") // another partner's is not found
		wantFault(t, err, fault.ErrNotFound, "request_secret_not_found")
		b.pass(time.Second)
		grace := time.Hour
		made, _, err := b.keys.Roll(t.Context(), Roll{Kind: RequestSecret, Partner: "acme", Name: "hooks", Grace: &grace})
		if err != nil {
			t.Fatal(err)
		}
		two := made.Value.RevealString()
		opens(two, one)
		b.pass(time.Hour)
		opens(two) // the old one is retired
		if _, err := b.partners.Suspend(t.Context(), "acme", "unpaid"); err != nil {
			t.Fatal(err)
		}
		_, err = b.keys.SigningSecrets(t.Context(), "acme", "hooks")
		wantFault(t, err, fault.ErrTransition, "partner_suspended")
		if _, err := b.partners.Resume(t.Context(), "acme", ""); err != nil {
			t.Fatal(err)
		}
		opens(two)
		if _, err := b.keys.Revoke(t.Context(), RequestSecret, "acme", made.Key.ID, "key_compromise", ""); err != nil {
			t.Fatal(err)
		}
		_, err = b.keys.SigningSecrets(t.Context(), "acme", "hooks")
		wantFault(t, err, fault.ErrTransition, "no_signing_secret")
		if err == nil || strings.Contains(err.Error(), one) || strings.Contains(err.Error(), two) {
			t.Error("the error holds a secret")
		}
	})
}

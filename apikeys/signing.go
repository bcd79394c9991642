package apikeys

import (
	"context"
	"fmt"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// maxSigning bounds the secrets that one webhook is signed with: receivers read no more.
const maxSigning = 10

// SigningSecrets opens the versions of a partner's request secret that are accepted now, active
// and retiring, newest first, to sign webhooks to the partner with all of them: so that a roll
// breaks no receiver. No such secret is fault.ErrNotFound; one without a version that can sign,
// and one of a suspended partner, is fault.ErrTransition; a row that was tampered with is
// fault.ErrDenied.
func (ks *Keys) SigningSecrets(ctx context.Context, partner, name string) ([]webhook.Secret, error) {
	var usable []*Key
	err := ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		usable = nil
		p, err := ks.peppers.readPartner(ctx, tx, partner)
		if err != nil {
			return err
		}
		if err := p.genuine(); err != nil {
			return err
		}
		if p.State != Active {
			return fault.New(fault.ErrTransition, "partner_suspended", "partner %q is %s: resume it first", p.Name, p.State)
		}
		list, err := ks.versions(ctx, tx, partner, name)
		if err != nil {
			return err
		}
		public := false
		for _, k := range list {
			if err := k.genuine(); err != nil {
				return err
			}
			switch s := k.State(tx.Now); {
			case s != Active && s != Retiring:
			case k.PublicKey != "":
				public = true
			default:
				usable = append(usable, k)
			}
		}
		switch {
		case len(usable) == 0 && public:
			return fault.New(fault.ErrTransition, "only_public_key", "request secret %q is a public key of the partner's: we can't sign with it: make one that has a value", clip(name))
		case len(usable) == 0:
			return fault.New(fault.ErrTransition, "no_signing_secret", "request secret %q has no version that is accepted: make one, or resume it", clip(name))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sign with request secret %q of partner %q: %w", clip(name), clip(partner), err)
	}
	usable = usable[:min(len(usable), maxSigning)]
	secrets := make([]webhook.Secret, len(usable))
	for i, k := range usable {
		raw, err := ks.sealer.Open(ctx, secretPlace(k.ID), k.sealed)
		if err != nil {
			return nil, fmt.Errorf("sign with request secret %q of partner %q: %w", clip(name), clip(partner), err)
		}
		b := raw.Reveal()
		secrets[i], err = webhook.SecretFrom(b)
		clear(b)
		raw.Destroy()
		if err != nil {
			return nil, fmt.Errorf("sign with request secret %q of partner %q: %w", clip(name), clip(partner), err)
		}
	}
	return secrets, nil
}

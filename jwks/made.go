package jwks

import (
	"crypto"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// NewMade describes a key pair whose private half lives elsewhere: the public half
// as it stands in documents, under its RFC 7638 thumbprint. private is what the home
// needs to sign again; it must hold no secret unless the home has sealed it.
func NewMade(pub crypto.PublicKey, alg Algorithm, private []byte) (Made, error) {
	if err := alg.fits(pub); err != nil {
		return Made{}, fault.New(fault.ErrInvalid, "wrong_key_type", "%w", err)
	}
	public, kid, err := publicJWK(pub, alg, "")
	if err != nil {
		return Made{}, err
	}
	return Made{Kid: kid, Public: public, Private: private}, nil
}

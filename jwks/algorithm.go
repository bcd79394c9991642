package jwks

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Algorithm is a JWS signature algorithm (RFC 7518, section 3.1; RFC 8037).
// Ed25519 carries its fully-specified name (RFC 9864) here and in the API; in
// tokens and JWKS documents it is written "EdDSA", the only spelling that the
// verifiers which support it at all understand.
type Algorithm string

// The algorithms that a keyset may have.
const (
	ES256   Algorithm = "ES256"
	ES384   Algorithm = "ES384"
	ES512   Algorithm = "ES512"
	Ed25519 Algorithm = "Ed25519"
	RS256   Algorithm = "RS256"
	RS384   Algorithm = "RS384"
	RS512   Algorithm = "RS512"
	PS256   Algorithm = "PS256"
	PS384   Algorithm = "PS384"
	PS512   Algorithm = "PS512"
)

// Algorithms lists every algorithm, the default first.
var Algorithms = []Algorithm{ES256, ES384, ES512, Ed25519, RS256, RS384, RS512, PS256, PS384, PS512}

// ParseAlgorithm accepts a name of the list above; "" is ES256 and "EdDSA" is Ed25519.
func ParseAlgorithm(s string) (Algorithm, error) {
	switch a := Algorithm(s); {
	case s == "":
		return ES256, nil
	case s == "EdDSA":
		return Ed25519, nil
	case slices.Contains(Algorithms, a):
		return a, nil
	}
	return "", fault.Invalid("algorithm", "unknown_algorithm", "algorithm %q is unknown: use one of %v", s, Algorithms)
}

// JWS is the algorithm's name in the alg header and in JWKS documents.
func (a Algorithm) JWS() jose.SignatureAlgorithm {
	if a == Ed25519 {
		return jose.EdDSA
	}
	return jose.SignatureAlgorithm(a)
}

// bits is the modulus size of new RSA keys, 0 for others. The sizes follow the
// strength of the hash (NIST SP 800-57 part 1, table 2) as far as signing speed allows.
func (a Algorithm) bits() int {
	switch a {
	case RS256, PS256:
		return 2048
	case RS384, PS384:
		return 3072
	case RS512, PS512:
		return 4096
	default:
		return 0
	}
}

func (a Algorithm) curve() elliptic.Curve {
	switch a {
	case ES256:
		return elliptic.P256()
	case ES384:
		return elliptic.P384()
	case ES512:
		return elliptic.P521()
	default:
		return nil
	}
}

// generate makes a new private key. RSA takes from a tenth of a second to several.
func (a Algorithm) generate() (crypto.Signer, error) {
	switch {
	case a.bits() > 0:
		return rsa.GenerateKey(rand.Reader, a.bits())
	case a.curve() != nil:
		return ecdsa.GenerateKey(a.curve(), rand.Reader)
	case a == Ed25519:
		_, k, err := ed25519.GenerateKey(rand.Reader)
		return k, err
	}
	return nil, fmt.Errorf("generate a key: algorithm %q is unknown", a)
}

// fits reports whether a public key can be used with a. RSA keys under 2048
// bits are refused (RFC 7518, section 3.3).
func (a Algorithm) fits(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if a.bits() == 0 {
			return fmt.Errorf("an RSA key can't sign %s", a)
		}
		if k.N.BitLen() < 2048 || k.N.BitLen() > 8192 {
			return fmt.Errorf("an RSA key of %d bits is outside 2048 to 8192", k.N.BitLen())
		}
		if k.E < 65537 {
			return fmt.Errorf("an RSA key with the public exponent %d is weak", k.E)
		}
	case *ecdsa.PublicKey:
		if a.curve() != k.Curve {
			return fmt.Errorf("a key on %s can't sign %s", k.Curve.Params().Name, a)
		}
	case ed25519.PublicKey:
		if a != Ed25519 {
			return fmt.Errorf("an Ed25519 key can't sign %s", a)
		}
	default:
		return fmt.Errorf("a key of type %T can't sign %s", pub, a)
	}
	return nil
}

package httpsig

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"fmt"
	"hash"
	"math/big"
	"sync"
)

// Algorithm is a name of the HTTP Signature Algorithms registry (RFC 9421 section 6.2).
type Algorithm string

// The algorithms that are known here.
const (
	HMACSHA256 Algorithm = "hmac-sha256"
	Ed25519    Algorithm = "ed25519"
	ECDSAP256  Algorithm = "ecdsa-p256-sha256"
	RSAPSS512  Algorithm = "rsa-pss-sha512"
)

// Key verifies signatures, and makes them unless it is a public key. It has one
// algorithm, which no message can change. It is safe for concurrent use, and
// prints as its algorithm only.
type Key struct {
	alg    Algorithm
	macs   sync.Pool // of *mac
	public crypto.PublicKey
	signer func() crypto.Signer // nil: none. Reflection, and so fmt, can't reach into a closure
}

// mac is a keyed HMAC, kept: setting one up costs as much as using it.
type mac struct {
	hash.Hash
	sum [sha256.Size]byte
}

// NewHMACKey makes a key for hmac-sha256 from a shared secret of 24 bytes to 1 KiB.
func NewHMACKey(secret []byte) (*Key, error) {
	const least, most = 24, 1 << 10
	if len(secret) < least || len(secret) > most {
		return nil, refuse(ReasonAlgorithm, "a shared secret has %d to %d bytes, not %d", least, most, len(secret))
	}
	// What anybody may know is no secret, however it got here.
	if bytes.HasPrefix(bytes.TrimLeft(secret, " \t\r\n"), []byte("-----BEGIN ")) {
		return nil, refuse(ReasonAlgorithm, "a PEM file is no shared secret: use NewPublicKey or NewPrivateKey")
	}
	secret = bytes.Clone(secret)
	k := &Key{alg: HMACSHA256}
	k.macs.New = func() any { return &mac{Hash: hmac.New(sha256.New, secret)} }
	return k, nil
}

// NewPublicKey makes a key from an ed25519.PublicKey, an *ecdsa.PublicKey on
// P-256, or an *rsa.PublicKey of 2,048 to 8,192 bits.
func NewPublicKey(public crypto.PublicKey) (*Key, error) {
	const least, most = 2048, 8192
	switch p := public.(type) {
	case ed25519.PublicKey:
		if len(p) != ed25519.PublicKeySize {
			return nil, refuse(ReasonAlgorithm, "an Ed25519 public key has %d bytes, not %d", ed25519.PublicKeySize, len(p))
		}
		return &Key{alg: Ed25519, public: ed25519.PublicKey(bytes.Clone(p))}, nil
	case *ecdsa.PublicKey:
		if p == nil || p.Curve != elliptic.P256() {
			return nil, refuse(ReasonAlgorithm, "an ECDSA key must be on the curve P-256")
		}
		if _, err := p.ECDH(); err != nil {
			return nil, refuse(ReasonAlgorithm, "the ECDSA key is not a point of P-256")
		}
		return &Key{alg: ECDSAP256, public: p}, nil
	case *rsa.PublicKey:
		if p == nil || p.N == nil || p.N.BitLen() < least || p.N.BitLen() > most || p.E < 3 || p.E%2 == 0 {
			return nil, refuse(ReasonAlgorithm, "an RSA key has %d to %d bits and an odd exponent", least, most)
		}
		return &Key{alg: RSAPSS512, public: p}, nil
	}
	return nil, refuse(ReasonAlgorithm, "a key of type %T can't be used: Ed25519, ECDSA on P-256 and RSA can", public)
}

// NewPrivateKey makes a key that also signs. The signer may be a device or a
// service; its public key decides on the algorithm.
func NewPrivateKey(signer crypto.Signer) (*Key, error) {
	if signer == nil {
		return nil, refuse(ReasonAlgorithm, "there is no private key")
	}
	k, err := NewPublicKey(signer.Public())
	if err != nil {
		return nil, err
	}
	k.signer = func() crypto.Signer { return signer }
	return k, nil
}

// Algorithm is the only algorithm that the key is used with.
func (k *Key) Algorithm() Algorithm { return k.alg }

// String names the algorithm, never the key.
func (k *Key) String() string { return "httpsig.Key(" + string(k.alg) + ")" }

// Format makes every verb print what String does.
func (k *Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }

// Verify says whether signature is that of base under this key. HMACs are
// compared in constant time.
func (k *Key) Verify(base, signature []byte) bool {
	switch p := k.public.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(p, base, signature)
	case *ecdsa.PublicKey:
		if len(signature) != 2*p256Size {
			return false
		}
		digest := sha256.Sum256(base)
		r := new(big.Int).SetBytes(signature[:p256Size])
		s := new(big.Int).SetBytes(signature[p256Size:])
		return ecdsa.Verify(p, digest[:], r, s)
	case *rsa.PublicKey:
		digest := sha512.Sum512(base)
		// RFC 9421 says a salt of 64 bytes, and that is what sign makes. OpenSSL's
		// default, and so that of most JavaScript signers, is the longest salt; it
		// is no weaker.
		return rsa.VerifyPSS(p, crypto.SHA512, digest[:], signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: crypto.SHA512}) == nil
	}
	if k.alg != HMACSHA256 {
		return false
	}
	h := k.macs.Get().(*mac)
	h.Write(base)
	ok := hmac.Equal(h.Sum(h.sum[:0]), signature)
	clear(h.sum[:]) // the right MAC of a wrong message stays nowhere
	h.Reset()
	k.macs.Put(h)
	return ok
}

const p256Size = 32

// sign makes the signature of base.
func (k *Key) sign(base []byte) ([]byte, error) {
	if k.signer == nil && k.alg != HMACSHA256 {
		return nil, refuse(ReasonAlgorithm, "signing needs a private key or a shared secret")
	}
	switch k.alg {
	case HMACSHA256:
		h := k.macs.Get().(*mac)
		defer k.macs.Put(h)
		defer h.Reset()
		h.Write(base)
		return h.Sum(nil), nil
	case Ed25519:
		return k.signer().Sign(rand.Reader, base, crypto.Hash(0))
	case RSAPSS512:
		digest := sha512.Sum512(base)
		return k.signer().Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: sha512.Size, Hash: crypto.SHA512})
	case ECDSAP256:
		digest := sha256.Sum256(base)
		der, err := k.signer().Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			return nil, err
		}
		var rs struct{ R, S *big.Int }
		if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) > 0 || rs.R.Sign() <= 0 || rs.S.Sign() <= 0 ||
			rs.R.BitLen() > 8*p256Size || rs.S.BitLen() > 8*p256Size {
			return nil, refuse(ReasonAlgorithm, "the signer made something that is not an ECDSA signature on P-256")
		}
		out := make([]byte, 2*p256Size)
		rs.R.FillBytes(out[:p256Size])
		rs.S.FillBytes(out[p256Size:])
		return out, nil
	}
	return nil, refuse(ReasonAlgorithm, "the key has no algorithm")
}

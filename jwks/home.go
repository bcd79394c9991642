package jwks

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"fmt"
	"math/big"
	"sync"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

// Home is where private halves live. They may never leave it: a home hands
// out signatures, not keys.
//
// Contract: Create may leave an unused key behind when its outcome is unknown,
// never one that signs. Everything a later Open needs is in the returned
// Private, which is committed before the key is published. Destroy is called
// after a withdrawal is committed and may be repeated. An error that is
// fault.ErrUnavailable means "out of reach, ask again": the policy's fallback
// applies. Any other error is final.
type Home interface {
	// Create makes a key pair, or hands out one that an earlier Create left
	// behind. taken are the kids that it must not hand out: all that the keyset
	// has or had. It may take seconds.
	Create(ctx context.Context, keysetID string, alg Algorithm, taken []string) (Made, error)
	// Open readies a key for signing.
	Open(ctx context.Context, k Key) (Signer, error)
	// Destroy makes the private half of a withdrawn key unusable for good.
	// signing are the keys of its keyset that sign or may come to sign.
	Destroy(ctx context.Context, k Key, signing []Key) error
	// Ready reports whether Create would return at once. A rotation never
	// waits for one that would not.
	Ready(alg Algorithm) bool
	// Prepare makes ahead of time what Create would have to search for, and
	// returns how many keys it made ready.
	Prepare(ctx context.Context, algs []Algorithm) (int, error)
}

// Made is a new key pair: the public half, and what its home needs to sign.
type Made struct {
	Kid     string
	Public  json.RawMessage
	Private []byte

	home string // set by Keysets: the policy may name another one by the time of the commit
}

// Signer signs with one key.
type Signer interface {
	// Sign returns the JWS signature (RFC 7518, section 3) of a signing input.
	// Safe for concurrent use.
	Sign(ctx context.Context, input []byte) ([]byte, error)
}

// Local is the home of keys that are sealed in the database. Its Private is
// the sealed PKCS #8 form, bound to the row of its key.
type Local struct {
	Sealer *secret.Sealer

	mu     sync.Mutex
	spares map[int][]*rsa.PrivateKey // by modulus size
}

// LocalHome is the name of Local in a key's row.
const LocalHome = "local"

func place(keysetID, kid string) secret.Place {
	return secret.Place{Table: "signing_keys", Row: keysetID + "/" + kid, Column: "private"}
}

// Create makes a key pair and seals the private half. RSA keys come from the
// spares when there is one.
func (l *Local) Create(ctx context.Context, keysetID string, alg Algorithm, _ []string) (Made, error) {
	var key crypto.Signer
	if spare := l.takeSpare(alg.bits()); spare != nil {
		key = spare
	} else {
		var err error
		if key, err = alg.generate(); err != nil {
			return Made{}, fmt.Errorf("generate a %s key: %w", alg, err)
		}
	}
	return l.adopt(ctx, keysetID, alg, "", key)
}

// adopt seals a private key that exists already. An empty kid becomes its thumbprint.
func (l *Local) adopt(ctx context.Context, keysetID string, alg Algorithm, kid string, key crypto.Signer) (Made, error) {
	public, kid, err := publicJWK(key.Public(), alg, kid)
	if err != nil {
		return Made{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Made{}, fmt.Errorf("encode key %s: %w", kid, err)
	}
	v := secret.New(der)
	defer v.Destroy()
	clear(der)
	sealed, err := l.Sealer.Seal(ctx, place(keysetID, kid), v)
	if err != nil {
		return Made{}, fmt.Errorf("seal key %s: %w", kid, err)
	}
	return Made{Kid: kid, Public: public, Private: sealed}, nil
}

// Open unseals the private half and keeps it in memory for as long as the Signer is used.
func (l *Local) Open(ctx context.Context, k Key) (Signer, error) {
	if len(k.Private) == 0 {
		return nil, fmt.Errorf("open key %s: its private half is destroyed", k.Kid)
	}
	v, err := l.Sealer.Open(ctx, place(k.KeysetID, k.Kid), k.Private)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", k.Kid, err)
	}
	defer v.Destroy()
	der := v.Reveal()
	defer clear(der)
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("open key %s: the sealed value is no PKCS #8 key", k.Kid)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("open key %s: a key of type %T can't sign", k.Kid, key)
	}
	public, _, err := publicJWK(signer.Public(), k.Algorithm, k.Kid)
	if err != nil || !bytes.Equal(public, k.Public) {
		return nil, fmt.Errorf("open key %s: its public half is not the one that is published", k.Kid)
	}
	return localSigner{k.Algorithm, signer}, nil
}

// Destroy has nothing to do: the row lost the sealed value in the transaction
// that withdrew the key.
func (l *Local) Destroy(context.Context, Key, []Key) error { return nil }

// takeSpare returns a spare of the given modulus size, or nil.
func (l *Local) takeSpare(bits int) *rsa.PrivateKey {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.spares[bits])
	if n == 0 {
		return nil
	}
	k := l.spares[bits][n-1]
	l.spares[bits] = l.spares[bits][:n-1]
	return k
}

// Ready reports whether Create returns without a search for primes.
func (l *Local) Ready(alg Algorithm) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return alg.bits() == 0 || len(l.spares[alg.bits()]) > 0
}

// Prepare makes a spare RSA key of each size that has none.
func (l *Local) Prepare(ctx context.Context, algs []Algorithm) (made int, err error) {
	for _, alg := range algs {
		if ctx.Err() != nil {
			return made, ctx.Err()
		}
		if l.Ready(alg) {
			continue
		}
		k, err := rsa.GenerateKey(rand.Reader, alg.bits())
		if err != nil {
			return made, fmt.Errorf("make a spare %s key: %w", alg, err)
		}
		l.mu.Lock()
		if l.spares == nil {
			l.spares = map[int][]*rsa.PrivateKey{}
		}
		l.spares[alg.bits()] = append(l.spares[alg.bits()], k)
		l.mu.Unlock()
		made++
	}
	return made, nil
}

// localSigner signs with a key in memory.
type localSigner struct {
	alg Algorithm
	key crypto.Signer
}

func (s localSigner) Sign(_ context.Context, input []byte) ([]byte, error) {
	switch s.alg {
	case Ed25519:
		return s.key.Sign(nil, input, crypto.Hash(0))
	case ES256:
		return s.ecdsa(crypto.SHA256, input)
	case ES384:
		return s.ecdsa(crypto.SHA384, input)
	case ES512:
		return s.ecdsa(crypto.SHA512, input)
	case RS256:
		return s.rsa(crypto.SHA256, input, false)
	case RS384:
		return s.rsa(crypto.SHA384, input, false)
	case RS512:
		return s.rsa(crypto.SHA512, input, false)
	case PS256:
		return s.rsa(crypto.SHA256, input, true)
	case PS384:
		return s.rsa(crypto.SHA384, input, true)
	case PS512:
		return s.rsa(crypto.SHA512, input, true)
	}
	return nil, fmt.Errorf("sign: algorithm %q is unknown", s.alg)
}

func digest(h crypto.Hash, input []byte) []byte {
	d := h.New()
	d.Write(input)
	return d.Sum(nil)
}

func (s localSigner) rsa(h crypto.Hash, input []byte, pss bool) ([]byte, error) {
	var opts crypto.SignerOpts = h
	if pss {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
	}
	return s.key.Sign(rand.Reader, digest(h, input), opts)
}

// ecdsa returns R and S as two integers of the curve's size (RFC 7518, section 3.4).
func (s localSigner) ecdsa(h crypto.Hash, input []byte) ([]byte, error) {
	der, err := s.key.Sign(rand.Reader, digest(h, input), h)
	if err != nil {
		return nil, err
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		return nil, fmt.Errorf("read an ECDSA signature: %w", err)
	}
	size := (s.alg.curve().Params().BitSize + 7) / 8
	out := make([]byte, 2*size)
	rs.R.FillBytes(out[:size])
	rs.S.FillBytes(out[size:])
	return out, nil
}

// opaque makes a Signer usable by go-jose for one call.
type opaque struct {
	ctx context.Context
	alg jose.SignatureAlgorithm
	kid string
	s   Signer
}

// Public gives nothing: go-jose would only take the kid from it, and refuses a
// JWK without a key.
func (o opaque) Public() *jose.JSONWebKey        { return nil }
func (o opaque) Algs() []jose.SignatureAlgorithm { return []jose.SignatureAlgorithm{o.alg} }
func (o opaque) SignPayload(in []byte, alg jose.SignatureAlgorithm) ([]byte, error) {
	if alg != o.alg {
		return nil, fault.Invalid("algorithm", "unknown_algorithm", "key %s signs %s, not %s", o.kid, o.alg, alg)
	}
	return o.s.Sign(o.ctx, in)
}

var (
	_ Home          = (*Local)(nil)
	_ crypto.Signer = (*ecdsa.PrivateKey)(nil)
	_ crypto.Signer = ed25519.PrivateKey(nil)
)

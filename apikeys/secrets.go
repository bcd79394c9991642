package apikeys

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

const (
	// Standard Webhooks allows 24 to 64 bytes, and some libraries for RFC 9421
	// take no fewer than 64.
	requestSecretSize = 64

	secretPrefix = "whsec_" // of Standard Webhooks
	maxPublicKey = 4096
)

// secretPlace is where a request secret is sealed for.
func secretPlace(id string) secret.Place {
	return secret.Place{Table: "partner_keys", Row: id, Column: "sealed"}
}

// fill gives a key a value, or a request secret the partner's public key.
func (ks *Keys) fill(ctx context.Context, k *Key, publicKey string) (secret.Value, error) {
	if k.Kind == APIKey {
		if publicKey != "" {
			return secret.Value{}, fault.Invalid("public_key", "public_key_not_for_kind", "only a request secret may be a public key")
		}
		s, v := writeKey(ks.brand, keyString{env: k.Environment, id: k.ID, secret: random(secretLength, 32), public: k.Class == ClassPublishable})
		gen, pepper := ks.peppers.current()
		k.PepperGen, k.hash = gen, apiKeyHash(pepper, k.Partner, s.secret)
		return v, nil
	}
	if publicKey != "" {
		var err error
		k.PublicKey, k.Algorithm, err = parsePublicKey(publicKey)
		return secret.Value{}, err
	}
	b := make([]byte, requestSecretSize)
	_, _ = rand.Read(b)
	raw := secret.New(b)
	defer raw.Destroy()
	defer clear(b)
	sealed, err := ks.sealer.Seal(ctx, secretPlace(k.ID), raw)
	if err != nil {
		return secret.Value{}, err
	}
	k.Algorithm, k.sealed = httpsig.HMACSHA256, sealed
	return secret.FromString(secretPrefix + base64.StdEncoding.EncodeToString(b)), nil
}

// parsePublicKey reads a PEM SubjectPublicKeyInfo of an algorithm of RFC 9421, and
// returns it in the one form in which it is stored.
func parsePublicKey(text string) (string, httpsig.Algorithm, error) {
	fail := func(why string) (string, httpsig.Algorithm, error) {
		return "", "", fault.Invalid("public_key", "bad_public_key", "public_key: %s: give the PEM (\"-----BEGIN PUBLIC KEY-----\") of one Ed25519, P-256 or RSA key (2048 to 8192 bits)", why)
	}
	if len(text) > maxPublicKey {
		return fail("it is too long")
	}
	block, rest := pem.Decode([]byte(text))
	switch {
	case block == nil:
		return fail("it is no PEM")
	case strings.Contains(block.Type, "PRIVATE"):
		return fail("it is a private key: it was sent to where it must never be, so make a new one")
	case block.Type != "PUBLIC KEY" || len(block.Headers) > 0:
		return fail("it is PEM of something else")
	case strings.TrimSpace(string(rest)) != "":
		return fail("something follows it")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return fail("it can't be read")
	}
	key, err := httpsig.NewPublicKey(public)
	if err != nil {
		return fail(err.Error())
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return fail("it can't be read")
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), key.Algorithm(), nil
}

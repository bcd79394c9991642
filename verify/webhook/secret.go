package webhook

import (
	"bytes"
	"crypto/ed25519"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
)

type kind uint8

const (
	symmetric kind = iota
	private        // Ed25519, of 64 bytes
	public         // Ed25519, of 32 bytes
)

const (
	prefixSymmetric = "whsec_"
	prefixPrivate   = "whsk_"
	prefixPublic    = "whpk_"

	minSecret = 24 // bytes
	maxSecret = 64
)

// Secret signs or verifies webhooks: a shared secret, or one half of an Ed25519
// key pair. It prints as its kind only. The zero Secret is refused everywhere.
type Secret struct {
	kind kind
	key  *[]byte // behind a pointer, where no verb of fmt prints it
}

// ParseSecret reads whsec_ and base64 of 24 to 64 bytes, the same without prefix,
// whsk_ and base64 of an Ed25519 private key (its seed of 32 bytes, or seed and
// public key of 64), or whpk_ and base64 of an Ed25519 public key.
func ParseSecret(text string) (Secret, error) {
	if rest, ok := strings.CutPrefix(text, prefixPrivate); ok {
		raw, err := decode(rest)
		if err != nil {
			return Secret{}, err
		}
		switch len(raw) {
		case ed25519.SeedSize:
			raw = ed25519.NewKeyFromSeed(raw)
		case ed25519.PrivateKeySize:
			// The public half is hashed when signing: a wrong one gives the seed away.
			if k := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize]); subtle.ConstantTimeCompare(k, raw) == 0 {
				return Secret{}, refuse(ReasonMalformed, "the two halves of the private key %s… do not belong together", prefixPrivate)
			}
		default:
			return Secret{}, refuse(ReasonMalformed, "a private key %s… has 32 or 64 bytes, not %d", prefixPrivate, len(raw))
		}
		return Secret{kind: private, key: &raw}, nil
	}
	if rest, ok := strings.CutPrefix(text, prefixPublic); ok {
		raw, err := decode(rest)
		if err != nil {
			return Secret{}, err
		}
		if len(raw) != ed25519.PublicKeySize {
			return Secret{}, refuse(ReasonMalformed, "a public key %s… has 32 bytes, not %d", prefixPublic, len(raw))
		}
		return Secret{kind: public, key: &raw}, nil
	}
	raw, err := decode(strings.TrimPrefix(text, prefixSymmetric))
	if err != nil {
		return Secret{}, err
	}
	return SecretFrom(raw)
}

func decode(text string) ([]byte, error) {
	const most = 128
	// The decoder skips line ends, which a secret read from a file often has.
	if len(text) > most || !visible(text) {
		return nil, refuse(ReasonMalformed, "a secret is %s and base64, without spaces and line ends", prefixSymmetric)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, refuse(ReasonMalformed, "a secret is %s and base64 with padding", prefixSymmetric)
	}
	return raw, nil
}

// SecretFrom makes a shared secret of 24 to 64 bytes.
func SecretFrom(raw []byte) (Secret, error) {
	if len(raw) < minSecret || len(raw) > maxSecret {
		return Secret{}, refuse(ReasonMalformed, "a shared secret has %d to %d bytes, not %d", minSecret, maxSecret, len(raw))
	}
	raw = bytes.Clone(raw)
	return Secret{kind: symmetric, key: &raw}, nil
}

// Encode is the secret as text that ParseSecret reads: whsec_…, whsk_… or whpk_….
func (s Secret) Encode() string {
	if s.key == nil {
		return ""
	}
	var prefix string
	switch s.kind {
	case symmetric:
		prefix = prefixSymmetric
	case private:
		prefix = prefixPrivate
	case public:
		prefix = prefixPublic
	}
	return prefix + base64.StdEncoding.EncodeToString(*s.key)
}

// Public is the public half of an Ed25519 key pair, for receivers, and the zero
// Secret of a shared secret, which has none.
func (s Secret) Public() Secret {
	if s.key == nil || s.kind == symmetric {
		return Secret{}
	}
	raw := bytes.Clone(s.public())
	return Secret{kind: public, key: &raw}
}

func (s Secret) public() ed25519.PublicKey {
	k := *s.key
	return ed25519.PublicKey(k[len(k)-ed25519.PublicKeySize:])
}

// String says what kind of secret it is, never the secret.
func (s Secret) String() string {
	switch {
	case s.key == nil:
		return "webhook.Secret(none)"
	case s.kind == symmetric:
		return "webhook.Secret(" + prefixSymmetric + "[redacted])"
	case s.kind == private:
		return "webhook.Secret(" + prefixPrivate + "[redacted])"
	}
	return "webhook.Secret(" + prefixPublic + "…)"
}

// Format makes every verb print what String does.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// MarshalText refuses: only Encode hands the secret out.
func (s Secret) MarshalText() ([]byte, error) {
	return nil, refuse(ReasonMalformed, "a secret is written with Encode")
}

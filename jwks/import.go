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
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// Import describes a key of another issuer.
type Import struct {
	Name         string       // of the keyset
	Key          secret.Value // JWK or PEM
	State        State        // Active or Retiring
	Kid          string       // "": the JWK's own, else the thumbprint
	MaxTokenLife time.Duration
	Reason       string // required for Active
	Once         store.Once
}

// Import brings in a key of another issuer. As Retiring it only verifies what
// that issuer signed, and a private half is not kept. As Active it signs at
// once, which is safe only if verifiers know it already: the reason says why
// the caller is sure. The key that was active becomes retiring.
func (ks *Keysets) Import(ctx context.Context, req Import) (*Keyset, string, error) {
	fail := func(err error) (*Keyset, string, error) {
		return nil, "", fmt.Errorf("import a key into keyset %q: %w", clip(req.Name), err)
	}
	if req.State != Active && req.State != Retiring {
		return fail(fault.Invalid("state", "import_state", "a key can be imported as %q or %q, not %q", Active, Retiring, clip(string(req.State))))
	}
	if req.State == Active && req.Reason == "" {
		return fail(fault.Invalid("reason", "reason_required", "an imported active key signs without a lead, so all verifiers must know it already: give the reason why they do"))
	}
	if req.MaxTokenLife <= 0 || req.MaxTokenLife > maxDuration {
		return fail(fault.Invalid("max_token_life", "duration_range", "max_token_life %s is outside 0 to %s: give the longest life of the tokens that were signed with this key", req.MaxTokenLife, maxDuration))
	}
	raw := req.Key.Reveal()
	defer clear(raw)
	key, err := parseKey(raw)
	if err != nil {
		return fail(fault.Invalid("key", "bad_key", "%v", err))
	}
	if req.State == Active && key.private == nil {
		return fail(fault.Invalid("key", "private_half_missing", "the key has no private half, so it can't sign: import it as %q", Retiring))
	}
	kid := req.Kid
	if kid == "" {
		kid = key.kid
	}
	if err := checkKid(kid); err != nil {
		return fail(err)
	}
	set, err := ks.Get(ctx, req.Name)
	if err != nil {
		return fail(err)
	}
	if err := set.Algorithm.fits(key.pub); err != nil {
		return fail(fault.Invalid("key", "wrong_key_type", "%v", err))
	}
	if alg, err := ParseAlgorithm(key.alg); key.alg != "" && (err != nil || alg != set.Algorithm) {
		// It would be published for another algorithm than its tokens have.
		return fail(fault.Invalid("key", "wrong_key_type", "the JWK is for %q, and the keyset signs %s", clip(key.alg), set.Algorithm))
	}

	var made Made
	home := noHome
	if req.State == Active {
		home = LocalHome
		made, err = ks.local.adopt(ctx, set.ID, set.Algorithm, kid, key.private)
	} else {
		made.Public, made.Kid, err = publicJWK(key.pub, set.Algorithm, kid)
	}
	if err != nil {
		return fail(err)
	}
	made.home = home
	// Another name for a key that Rotunda has under its own kid would let a
	// revoked key live on.
	thumbprint, err := thumbprint(key.pub)
	if err != nil {
		return fail(err)
	}

	var prior string
	err = ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		var err error
		if prior, err = tx.Once(ctx, req.Once, made.Kid); err != nil || prior != "" {
			return err
		}
		c, err := ks.begin(ctx, tx, req.Name)
		if err != nil {
			return err
		}
		set, c.reason = c.set, req.Reason
		if err := c.refuseTwin(ctx, thumbprint); err != nil {
			return err
		}
		k := c.born(made, Imported)
		k.MaxTokenLife = req.MaxTokenLife
		if a := set.Active(); a != nil && req.State == Active {
			if err := c.move(ctx, *a, Retiring); err != nil {
				return err
			}
		}
		if err := c.move(ctx, k, req.State); err != nil {
			return err
		}
		if n := len(set.Keys); n > maxPublished {
			return fault.Invalid("name", "too_many_keys", "the keyset would publish %d keys, more than %d", n, maxPublished)
		}
		err = audit.Record(ctx, tx, audit.Event{Action: "keyset.import_key", Resource: set.resource(made.Kid), Reason: req.Reason,
			Detail: map[string]any{"kid": made.Kid, "state": string(req.State), "max_token_life": req.MaxTokenLife.String()}})
		if err != nil {
			return err
		}
		return c.end(ctx)
	})
	if err != nil {
		return fail(err)
	}
	if prior != "" {
		set, err = ks.Get(ctx, req.Name)
		return set, prior, err
	}
	ks.refreshAfterChange(ctx)
	return set.forDisplay(), made.Kid, nil
}

// refuseTwin refuses key material that the keyset has or had under any kid.
func (c *change) refuseTwin(ctx context.Context, thumb string) error {
	rows, err := c.tx.Query(ctx, `SELECT kid, public_jwk FROM signing_keys WHERE keyset_id = $1`, c.set.ID)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var kid, public string
		if err := rows.Scan(&kid, &public); err != nil {
			return err
		}
		var jwk jose.JSONWebKey
		if err := jwk.UnmarshalJSON([]byte(public)); err != nil {
			return fmt.Errorf("read key %s: %w", kid, err)
		}
		t, err := thumbprint(jwk.Key)
		if err != nil {
			return fmt.Errorf("read key %s: %w", kid, err)
		}
		if t == thumb {
			return fault.New(fault.ErrExists, "key_used", "keyset %q has or had this key as %s", c.set.Name, kid).On("key")
		}
	}
	return rows.Err()
}

func thumbprint(pub crypto.PublicKey) (string, error) {
	sum, err := (&jose.JSONWebKey{Key: pub}).Thumbprint(crypto.SHA256)
	return string(sum), err
}

func checkKid(kid string) error {
	ok := len(kid) <= 256 && utf8.ValidString(kid)
	for _, r := range kid {
		ok = ok && r > ' ' && r != 0x7f && r != '"' && r != '\\'
	}
	if !ok {
		return fault.Invalid("kid", "bad_kid", "kid %q must be up to 256 printable characters without spaces, quotes and backslashes", clip(kid))
	}
	return nil
}

// parsed is a key that came from outside.
type parsed struct {
	pub      crypto.PublicKey
	private  crypto.Signer // nil when there is only a public half
	kid, alg string        // the JWK's own
}

// parseKey reads a JWK (RFC 7517) or one PEM block (PKCS #8, PKCS #1, SEC 1,
// PKIX). No error quotes the input.
func parseKey(raw []byte) (parsed, error) {
	raw = bytes.TrimSpace(raw)
	var key any
	var p parsed
	var err error
	switch {
	case len(raw) > 32<<10:
		return parsed{}, errors.New("the key is longer than 32 KiB")
	case bytes.HasPrefix(raw, []byte("{")):
		key, p.kid, p.alg, err = parseJWK(raw)
	case bytes.HasPrefix(raw, []byte("-----BEGIN ")):
		key, err = parsePEM(raw)
	default:
		return parsed{}, errors.New("the key is neither a JWK (a JSON object) nor a PEM block")
	}
	if err != nil {
		return parsed{}, err
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if err := signsRSA(k); err != nil {
			return parsed{}, err
		}
		p.pub, p.private = &k.PublicKey, k
	case *ecdsa.PrivateKey:
		if err := pairs(k); err != nil {
			return parsed{}, err
		}
		p.pub, p.private = &k.PublicKey, k
	case ed25519.PrivateKey:
		p.pub, p.private = k.Public(), k
	case *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey:
		p.pub = k
	default:
		return parsed{}, errors.New("the key is of no kind that signs: use RSA, ECDSA (P-256, P-384, P-521) or Ed25519")
	}
	return p, nil
}

// signsRSA makes sure that an RSA private key belongs together and signs.
func signsRSA(k *rsa.PrivateKey) error {
	if n := k.N.BitLen(); n < 2048 || n > 8192 {
		return fmt.Errorf("an RSA key of %d bits is outside 2048 to 8192", n)
	}
	sum := make([]byte, 32)
	if err := k.Validate(); err == nil {
		if sig, err := rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum); err == nil && rsa.VerifyPKCS1v15(&k.PublicKey, crypto.SHA256, sum, sig) == nil {
			return nil
		}
	}
	return errors.New("the RSA key's parts do not belong together")
}

// pairs makes sure that an EC private key belongs to its public half.
func pairs(k *ecdsa.PrivateKey) error {
	_, err := k.ECDH() // refuses curves without ECDH and points off the curve
	if err != nil {
		return errors.New("the EC key is not on P-256, P-384 or P-521")
	}
	sum := make([]byte, 32)
	sig, err := ecdsa.SignASN1(rand.Reader, k, sum)
	if err != nil || !ecdsa.VerifyASN1(&k.PublicKey, sum, sig) {
		return errors.New("the EC key's halves do not belong together")
	}
	return nil
}

func parseJWK(raw []byte) (key any, kid, alg string, err error) {
	var has map[string]json.RawMessage
	if json.Unmarshal(raw, &has) != nil {
		return nil, "", "", errors.New("the key is no JWK: it is not a JSON object")
	}
	if _, set := has["keys"]; set {
		return nil, "", "", errors.New("this is a JWK set: give one JWK of it")
	}
	if string(has["kty"]) == `"oct"` {
		return nil, "", "", errors.New("the key is symmetric: a keyset signs with private keys")
	}
	var jwk jose.JSONWebKey
	if jwk.UnmarshalJSON(raw) != nil || !jwk.Valid() {
		return nil, "", "", errors.New("the key is no valid JWK (RFC 7517)")
	}
	if jwk.Use != "" && jwk.Use != "sig" {
		return nil, "", "", errors.New("the JWK's use is not \"sig\"")
	}
	return jwk.Key, jwk.KeyID, jwk.Algorithm, nil
}

func parsePEM(raw []byte) (any, error) {
	block, rest := pem.Decode(raw)
	if block == nil {
		return nil, errors.New("the PEM block is damaged")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("there is more than one PEM block: give one key")
	}
	if strings.Contains(block.Type, "ENCRYPTED") || block.Headers["DEK-Info"] != "" {
		return nil, errors.New("the PEM key is encrypted with a password: decrypt it first")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		return nil, fmt.Errorf("a PEM block %q holds no signing key", clip(block.Type))
	}
	if err != nil {
		return nil, fmt.Errorf("the PEM block %q can't be read", block.Type)
	}
	return key, nil
}

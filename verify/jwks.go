package verify

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

// Bounds of what a JWKS may hold.
const (
	maxDocument = 1 << 20
	maxKeys     = 256
	maxKeyID    = 256
	minRSA      = 2048
	maxRSA      = 8192 // a larger one costs more to check than a token is worth
)

// keySet is a JWKS at one time. It does not change.
type keySet struct {
	keys map[string]*publicKey
	etag string
	url  string

	fetched   time.Time // when the request began that confirmed it
	refreshAt time.Time // from then on it is fetched ahead
	expiresAt time.Time // then it is stale
}

type publicKey struct {
	key  any
	algs []jose.SignatureAlgorithm
}

// parseSet reads a JWKS (RFC 7517, section 5). Keys that are not for signatures, of
// a type that is not known, or that can't be used are left out, because a new kind
// of key must not take the others with it. A key id that is there twice means that
// nobody knows which key is meant: then the document is refused.
func parseSet(body []byte) (map[string]*publicKey, error) {
	var doc struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if nesting(body) > 16 {
		return nil, errors.New("it is nested more than 16 deep")
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, errors.New("it is not JSON, or has a name twice")
	}
	if doc.Keys == nil {
		return nil, errors.New("it has no list of keys")
	}
	if n := len(*doc.Keys); n > maxKeys {
		return nil, fmt.Errorf("it has %d keys, and at most %d are read", n, maxKeys)
	}
	keys := make(map[string]*publicKey, len(*doc.Keys))
	for _, raw := range *doc.Keys {
		kid, key := parseKey(raw)
		if key == nil {
			continue
		}
		if keys[kid] != nil {
			return nil, fmt.Errorf("the key id %q is there twice", kid)
		}
		keys[kid] = key
	}
	return keys, nil
}

// parseKey returns nil for a key that verifies nothing here.
func parseKey(raw []byte) (string, *publicKey) {
	var about struct {
		Kid    string          `json:"kid"`
		Use    string          `json:"use"`
		Alg    string          `json:"alg"`
		KeyOps []string        `json:"key_ops"`
		D      json.RawMessage `json:"d"`
	}
	if json.Unmarshal(raw, &about) != nil {
		return "", nil
	}
	switch {
	case about.Kid == "" || len(about.Kid) > maxKeyID,
		about.Use != "" && about.Use != "sig",
		len(about.KeyOps) > 0 && !slices.Contains(about.KeyOps, "verify"),
		about.D != nil: // everybody could sign with it
		return "", nil
	}
	var jwk jose.JSONWebKey
	if json.Unmarshal(raw, &jwk) != nil || !jwk.Valid() {
		return "", nil
	}
	algs := algorithmsOf(jwk.Key)
	if about.Alg == "Ed25519" { // RFC 9864 calls it so; a token's header says EdDSA
		about.Alg = string(jose.EdDSA)
	}
	if about.Alg != "" {
		if !slices.Contains(algs, jose.SignatureAlgorithm(about.Alg)) {
			return "", nil
		}
		algs = []jose.SignatureAlgorithm{jose.SignatureAlgorithm(about.Alg)}
	}
	if len(algs) == 0 {
		return "", nil
	}
	return about.Kid, &publicKey{key: jwk.Key, algs: algs}
}

// algorithmsOf is what a key may be used with. A symmetric key is no key of a JWKS
// that strangers read, so no HMAC is in it.
func algorithmsOf(key any) []jose.SignatureAlgorithm {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits >= minRSA && bits <= maxRSA && k.E >= 3 && k.E%2 == 1 {
			return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
		}
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 256:
			return []jose.SignatureAlgorithm{jose.ES256}
		case 384:
			return []jose.SignatureAlgorithm{jose.ES384}
		case 521:
			return []jose.SignatureAlgorithm{jose.ES512}
		}
	case ed25519.PublicKey:
		return []jose.SignatureAlgorithm{jose.EdDSA}
	}
	return nil
}

// nesting is how deep brackets go, strings aside. The decoder is recursive.
func nesting(b []byte) int {
	depth, deepest := 0, 0
	inString := false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}

package transit

import (
	"encoding/json"
	"testing"

	"github.com/rotunda-dev/rotunda/jwks"
)

// FuzzPublicKey: whatever Vault shows, nothing but a key that fits its algorithm is published.
func FuzzPublicKey(f *testing.F) {
	const p256 = `{"public_key":"-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n-----END PUBLIC KEY-----\n"}`
	const ed25519 = `{"public_key":"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="}`
	if pub, err := publicKey(json.RawMessage(p256), jwks.ES256); err != nil {
		f.Fatalf("a P-256 key: %v", err)
	} else if m, err := jwks.NewMade(pub, jwks.ES256, nil); err != nil || m.Kid == "" {
		f.Fatalf("a P-256 key: %v", err)
	}
	if _, err := publicKey(json.RawMessage(ed25519), jwks.Ed25519); err != nil {
		f.Fatalf("an Ed25519 key: %v", err)
	}
	for _, alg := range jwks.Algorithms {
		for _, text := range []string{p256, ed25519, `{}`, `1716000000`, ``, `{"public_key":"-----BEGIN PUBLIC KEY-----\n\n-----END PUBLIC KEY-----"}`} {
			f.Add(text, string(alg))
		}
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		alg, err := jwks.ParseAlgorithm(name)
		if err != nil {
			return
		}
		pub, err := publicKey(json.RawMessage(text), alg)
		if err != nil {
			return
		}
		m, err := jwks.NewMade(pub, alg, nil)
		if err != nil {
			return
		}
		var jwk struct {
			Kty, Alg, Use, D string
		}
		if err := json.Unmarshal(m.Public, &jwk); err != nil || jwk.Alg != string(alg.JWS()) || jwk.Use != "sig" || jwk.D != "" {
			t.Fatalf("published as %s", m.Public)
		}
	})
}

package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"math/big"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// BenchmarkTokens compares Verify with go-jose alone, which checks the signature and
// reads no claim, and with the bare primitive.
func BenchmarkTokens(b *testing.B) {
	for _, alg := range []jose.SignatureAlgorithm{jose.ES256, jose.RS256} {
		i := newIssuer(b)
		i.add(b, "k1", alg)
		tokens := i.tokens(b)
		token := i.sign(b, "k1")
		if _, err := tokens.Verify(b.Context(), token); err != nil {
			b.Fatal(err)
		}
		public := i.keys[0].Key
		b.Run(string(alg)+"/Verify", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tokens.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(string(alg)+"/go-jose", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{alg})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := jws.Verify(public); err != nil {
					b.Fatal(err)
				}
			}
		})
		signed := token[:strings.LastIndexByte(token, '.')]
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{alg})
		if err != nil {
			b.Fatal(err)
		}
		signature := jws.Signatures[0].Signature
		b.Run(string(alg)+"/crypto", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				digest := sha256.Sum256([]byte(signed))
				ok := false
				switch k := public.(type) {
				case *ecdsa.PublicKey:
					ok = ecdsa.Verify(k, digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
				case *rsa.PublicKey:
					ok = rsa.VerifyPKCS1v15(k, crypto.SHA256, digest[:], signature) == nil
				}
				if !ok {
					b.Fatal("refused")
				}
			}
		})
	}
}

// BenchmarkTokensParallel shows that calls don't wait for each other.
func BenchmarkTokensParallel(b *testing.B) {
	i := newIssuer(b, "k1")
	tokens := i.tokens(b)
	token := i.sign(b, "k1")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := tokens.Verify(b.Context(), token); err != nil {
				b.Error(err)
			}
		}
	})
}

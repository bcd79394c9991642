package bench

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"syscall"
	"testing"
	"time"
)

// BenchmarkCrypto is the ceiling for signing tokens: the signature alone, on
// all cores, over an input of a token's size.
func BenchmarkCrypto(b *testing.B) {
	es256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	rs256, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	input := make([]byte, 300)
	for _, c := range []struct {
		name string
		key  crypto.Signer
		hash crypto.Hash
	}{{"ES256", es256, crypto.SHA256}, {"RS256", rs256, crypto.SHA256}, {"Ed25519", ed, 0}} {
		b.Run(c.name, func(b *testing.B) {
			before := cpu(b)
			defer func() { b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/op") }()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					in := input
					if c.hash != 0 {
						sum := sha256.Sum256(input)
						in = sum[:]
					}
					if _, err := c.key.Sign(rand.Reader, in, c.hash); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// cpu is the CPU time that this process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

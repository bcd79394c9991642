package httpsig

import (
	"crypto/hmac"
	"crypto/sha256"
	"slices"
	"testing"
	"time"
)

// verification is the whole check of a POST of 1 KiB with the components of the
// default policy: parse, policy, base, signature, Content-Digest.
func verification(b *testing.B, k *Key) func() {
	m, body := signedRequest(b, k, Params{})
	policy := DefaultPolicy()
	buf := make([]byte, 0, 1024)
	return func() {
		s, err := Parse(m, "")
		if err != nil {
			b.Fatal(err)
		}
		if err := policy.Check(s, m, true, now); err != nil {
			b.Fatal(err)
		}
		if _, err := Verify(s, m, k, buf[:0]); err != nil {
			b.Fatal(err)
		}
		if err := s.CheckBody(m, body); err != nil {
			b.Fatal(err)
		}
	}
}

// floor is the cryptography of a verification with hmac-sha256 alone: SHA-256 over
// the body, and HMAC-SHA-256 over the signature base with a keyed state that is
// used again.
func floor(b *testing.B) func() {
	m, body := signedRequest(b, rfcSigner(b, "test-shared-secret"), Params{})
	s, err := Parse(m, "")
	if err != nil {
		b.Fatal(err)
	}
	base, err := s.Base(nil, m)
	if err != nil {
		b.Fatal(err)
	}
	h := hmac.New(sha256.New, sharedSecret(b))
	sum := make([]byte, 0, sha256.Size)
	want := sha256.Sum256(body)
	return func() {
		h.Reset()
		h.Write(base)
		if sha256.Sum256(body) != want || !hmac.Equal(h.Sum(sum), s.Value) {
			b.Fatal("the digest or the MAC differs")
		}
	}
}

func benchmark(b *testing.B, once func()) {
	b.ReportAllocs()
	for b.Loop() {
		once()
	}
}

func BenchmarkVerifyHMAC1KiB(b *testing.B) {
	benchmark(b, verification(b, rfcSigner(b, "test-shared-secret")))
}
func BenchmarkVerifyEd25519_1KiB(b *testing.B) {
	benchmark(b, verification(b, rfcSigner(b, "test-key-ed25519")))
}
func BenchmarkVerifyECDSA1KiB(b *testing.B) {
	benchmark(b, verification(b, rfcSigner(b, "test-key-ecc-p256")))
}
func BenchmarkVerifyRSA1KiB(b *testing.B) {
	benchmark(b, verification(b, rfcSigner(b, "test-key-rsa-pss")))
}
func BenchmarkFloorHMAC1KiB(b *testing.B) { benchmark(b, floor(b)) }

// BenchmarkVerifyHMAC1KiBOverFloor reports the verification's time divided by the
// floor's, as x/floor: the median over pairs of short turns, one of each right
// after the other, so that what else runs on the machine falls on both.
func BenchmarkVerifyHMAC1KiBOverFloor(b *testing.B) {
	const turn = 100
	verify, floor := verification(b, rfcSigner(b, "test-shared-secret")), floor(b)
	var ratios []float64
	for b.Loop() {
		start := time.Now()
		for range turn {
			verify()
		}
		middle := time.Now()
		for range turn {
			floor()
		}
		ratios = append(ratios, float64(middle.Sub(start))/float64(time.Since(middle)))
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "x/floor")
	b.ReportMetric(0, "ns/op")
}

func BenchmarkSignHMAC1KiB(b *testing.B) {
	k := rfcSigner(b, "test-shared-secret")
	m, _ := signedRequest(b, k, Params{})
	p := Params{Components: DefaultPolicy().Required, Created: time.Unix(1_700_000_000, 0), KeyID: "sec_4fzyo82mVPmRLkDS", Nonce: "b3k2pp5k7z50gnwpyemd"}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Sign(m, k, p); err != nil {
			b.Fatal(err)
		}
	}
}

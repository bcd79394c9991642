package oracles

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	remitly "github.com/remitly-oss/httpsig-go"
	"github.com/remitly-oss/httpsig-go/keyman"
	"github.com/yaronf/httpsign"

	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// BenchmarkVerifyHMAC1KiB verifies one POST of 1 KiB, its body's digest included,
// with each implementation. The request is made and signed once.
func BenchmarkVerifyHMAC1KiB(b *testing.B) {
	k := newKeyPair(b, "test-shared-secret")
	body := bytes.Repeat([]byte("0123456789abcdef"), 64)
	components := []string{"@method", "@authority", "@path", "@query", "content-digest"}
	signed := func(b *testing.B) *http.Request {
		r := request(b, "POST", "https://api.example.com/v1/orders?limit=10&sort=created", string(body))
		sign(b, r, k, components)
		b.ReportAllocs()
		return r
	}
	b.Run("rotunda", func(b *testing.B) {
		m := message(signed(b))
		policy, now, buf := httpsig.DefaultPolicy(), time.Now(), make([]byte, 0, 1024)
		for b.Loop() {
			s, err := httpsig.Parse(m, "")
			if err != nil {
				b.Fatal(err)
			}
			if err := policy.Check(s, m, true, now); err != nil {
				b.Fatal(err)
			}
			if _, err := httpsig.Verify(s, m, k.verifies, buf[:0]); err != nil {
				b.Fatal(err)
			}
			if err := s.CheckBody(m, body); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("yaronf", func(b *testing.B) {
		r := signed(b)
		v, err := httpsign.NewHMACSHA256Verifier(k.secret, httpsign.NewVerifyConfig().SetNotOlderThan(5*time.Minute), httpsign.Headers(components...))
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if err := httpsign.VerifyRequest(label, *v, r); err != nil {
				b.Fatal(err)
			}
			reader := io.NopCloser(bytes.NewReader(body))
			if err := httpsign.ValidateContentDigestHeader(r.Header["Content-Digest"], &reader, []string{httpsign.DigestSha256}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("remitly", func(b *testing.B) {
		r := signed(b)
		keys := keyman.NewKeyFetchInMemory(map[string]remitly.KeySpec{k.id: {KeyID: k.id, Algo: remitly.Algo_HMAC_SHA256, Secret: k.secret}})
		v, err := remitly.NewVerifier(keys, remitly.VerifyProfile{
			SignatureLabel: label, AllowedAlgorithms: []remitly.Algorithm{remitly.Algo_HMAC_SHA256}, CreatedValidDuration: 5 * time.Minute,
			RequiredFields: remitly.Fields(components...),
		})
		if err != nil {
			b.Fatal(err)
		}
		r = r.WithContext(context.Background())
		for b.Loop() {
			r.Body = io.NopCloser(bytes.NewReader(body))
			if _, err := v.Verify(r); err != nil {
				b.Fatal(err)
			}
		}
	})
}

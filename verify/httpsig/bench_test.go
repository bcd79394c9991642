package httpsig

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"testing"
	"time"
)

// signedRequest is a POST of 1 KiB with the default policy's components, signed
// with the key.
func signedRequest(t testing.TB, k *Key, now time.Time) (*Message, []byte) {
	t.Helper()
	body := bytes.Repeat([]byte("0123456789abcdef"), 64)
	m := &Message{
		Method: "POST", Scheme: "https", Authority: "api.example.com", Path: "/v1/orders", Query: "limit=10&sort=created", HasQuery: true,
		Header: map[string][]string{
			"Content-Type":   {"application/json"},
			"Content-Digest": {Digest(body)},
			"User-Agent":     {"acme/1.0"},
			"Accept":         {"application/json"},
		},
	}
	input, signature, err := Sign(m, k, Params{
		Components: []string{"@method", "@authority", "@path", "@query", "content-digest"},
		Created:    now, KeyID: "sec_4fzyo82mVPmRLkDS", Nonce: "b3k2pp5k7z50gnwpyemd",
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Header["Signature-Input"], m.Header["Signature"] = []string{input}, []string{signature}
	return m, body
}

// BenchmarkVerify has the whole check of a request of 1 KiB (parse, policy, base,
// signature, Content-Digest) beside the floor: the same cryptography, done with
// nothing around it.
func BenchmarkVerify(b *testing.B) {
	now := time.Unix(1_700_000_000, 0)
	k, err := NewHMACKey(bytes.Repeat([]byte{7}, 64))
	if err != nil {
		b.Fatal(err)
	}
	policy := DefaultPolicy()
	for _, v := range []struct {
		name string
		key  *Key
	}{{"HMAC1KiB", k}, {"Ed25519-1KiB", rfcSigner(b, "test-key-ed25519")}, {"ECDSA1KiB", rfcSigner(b, "test-key-ecc-p256")}, {"RSA1KiB", rfcSigner(b, "test-key-rsa-pss")}} {
		b.Run(v.name, func(b *testing.B) {
			m, body := signedRequest(b, v.key, now)
			buf := make([]byte, 0, 1024)
			b.ReportAllocs()
			for b.Loop() {
				s, err := Parse(m, "")
				if err != nil {
					b.Fatal(err)
				}
				if err := policy.Check(s, m, true, now); err != nil {
					b.Fatal(err)
				}
				if _, err := Verify(s, m, v.key, buf[:0]); err != nil {
					b.Fatal(err)
				}
				if err := CheckDigest(m.Header["Content-Digest"], body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("FloorHMAC1KiB", func(b *testing.B) {
		m, body := signedRequest(b, k, now)
		s, err := Parse(m, "")
		if err != nil {
			b.Fatal(err)
		}
		base, err := s.Base(nil, m)
		if err != nil {
			b.Fatal(err)
		}
		h := hmac.New(sha256.New, bytes.Repeat([]byte{7}, 64))
		sum := make([]byte, 0, sha256.Size)
		b.ReportAllocs()
		for b.Loop() {
			digest := sha256.Sum256(body)
			h.Reset()
			h.Write(base)
			if !hmac.Equal(h.Sum(sum), s.Value) || digest[0] == 1 && digest[1] == 0 {
				b.Fatal("the MAC differs")
			}
		}
	})
}

package httpsig

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

// reason is the reason of an error, or "ok".
func reason(err error) string {
	if err == nil {
		return "ok"
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return err.Error()
}

// signedRequest is a POST of 1 KiB, signed by the key. What p leaves out is that
// of a request the default policy accepts.
func signedRequest(t testing.TB, k *Key, p Params) (*Message, []byte) {
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
	if p.Components == nil {
		p.Components = DefaultPolicy().Required
	}
	if p.Created.IsZero() {
		p.Created = now
	}
	if p.KeyID == "" {
		p.KeyID = "sec_4fzyo82mVPmRLkDS"
	}
	if p.Nonce == "" {
		p.Nonce = "b3k2pp5k7z50gnwpyemd"
	}
	sign(t, m, k, p)
	return m, body
}

// now is when the requests of these tests are made and checked.
var now = time.Unix(1_700_000_000, 0)

func sign(t testing.TB, m *Message, k *Key, p Params) {
	t.Helper()
	input, signature, err := Sign(m, k, p)
	if err != nil {
		t.Fatal(err)
	}
	m.Header["Signature-Input"], m.Header["Signature"] = []string{input}, []string{signature}
}

// accept does all that a receiver does.
func accept(m *Message, k *Key, body []byte, policy Policy) error {
	s, err := Parse(m, "")
	if err != nil {
		return err
	}
	if err := policy.Check(s, m, len(body) > 0, now); err != nil {
		return err
	}
	if _, err := Verify(s, m, k, nil); err != nil {
		return err
	}
	return s.CheckBody(m, body)
}

func hmacKey(t testing.TB, secret []byte) *Key {
	t.Helper()
	k, err := NewHMACKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

package httpsig_test

import (
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// A caller signs a request with the secret it shares with the receiver. With
// net/http, Header is the request's own.
func ExampleSign() {
	key, err := httpsig.NewHMACKey([]byte("an example, not a secret: use 64 random bytes"))
	if err != nil {
		panic(err)
	}
	body := []byte(`{"item": 7}`)
	m := &httpsig.Message{
		Method: "POST", Scheme: "https", Authority: "api.example.com", Path: "/orders", Query: "dry_run=1", HasQuery: true,
		Header: map[string][]string{"Content-Digest": {httpsig.Digest(body)}},
	}
	input, signature, err := httpsig.Sign(m, key, httpsig.Params{
		Components: []string{"@method", "@authority", "@path", "@query", "content-digest"},
		Created:    time.Unix(1_700_000_000, 0), // the time now
		KeyID:      "sec_1",
		Nonce:      "K7wUZo2QmW5yRb1c", // random, new for each request
	})
	if err != nil {
		panic(err)
	}
	fmt.Println("Content-Digest:", m.Header["Content-Digest"][0])
	fmt.Println("Signature-Input:", input)
	fmt.Println("Signature:", signature)
	// Output:
	// Content-Digest: sha-256=:KddzZeC0Wz4KWvVUOssYdOaLShO/ffiRUDORoCaKagI=:
	// Signature-Input: sig1=("@method" "@authority" "@path" "@query" "content-digest");created=1700000000;keyid="sec_1";nonce="K7wUZo2QmW5yRb1c"
	// Signature: sig1=:ARw7I1m8l60E093f3HnUJpdSQVOV2bxlUTPJmG8pgAI=:
}

// A receiver verifies a request.
func ExampleVerify() {
	key, err := httpsig.NewHMACKey([]byte("an example, not a secret: use 64 random bytes"))
	if err != nil {
		panic(err)
	}
	body := []byte(`{"item": 7}`)
	m := &httpsig.Message{
		Method: "POST", Scheme: "https", Authority: "api.example.com", Path: "/orders", Query: "dry_run=1", HasQuery: true,
		Header: map[string][]string{
			"Content-Digest":  {httpsig.Digest(body)},
			"Signature-Input": {`sig1=("@method" "@authority" "@path" "@query" "content-digest");created=1700000000;keyid="sec_1";nonce="K7wUZo2QmW5yRb1c"`},
			"Signature":       {"sig1=:ARw7I1m8l60E093f3HnUJpdSQVOV2bxlUTPJmG8pgAI=:"},
		},
	}
	policy := httpsig.DefaultPolicy()
	verify := func(m *httpsig.Message, body []byte) error {
		s, err := httpsig.Parse(m, "")
		if err != nil {
			return err
		}
		// Here the key is looked up by s.KeyID.
		if err := policy.Check(s, m, len(body) > 0, time.Unix(1_700_000_010, 0)); err != nil {
			return err
		}
		if _, err := httpsig.Verify(s, m, key, nil); err != nil {
			return err
		}
		if err := s.CheckBody(m, body); err != nil {
			return err
		}
		// Here s.Nonce is put into a store, and refused if it is in there.
		return nil
	}
	fmt.Println(verify(m, body))
	fmt.Println(verify(m, []byte(`{"item": 8}`)))
	fmt.Println(verify(m, nil))
	m.Path = "/refunds"
	fmt.Println(verify(m, body))
	// Output:
	// <nil>
	// request signature: Content-Digest: sha-256 is not that of the body of 11 bytes that arrived: digest exactly the bytes that are sent
	// request signature: Content-Digest: sha-256 is not that of the body of 0 bytes that arrived: digest exactly the bytes that are sent
	// request signature: the signature is not that of this message under the key "sec_1": compare what was signed with the signature base
}

// A signature that fails is explained to the partner who made it: the first line
// of what he signed that differs from what arrived.
func ExampleFirstDifference() {
	here := []byte("\"@method\": POST\n\"@path\": /orders\n\"@signature-params\": (\"@method\" \"@path\")")
	sent := []byte("\"@method\": POST\n\"@path\": /v1/orders\n\"@signature-params\": (\"@method\" \"@path\")")
	component, server, client := httpsig.FirstDifference(here, sent)
	fmt.Println(component)
	fmt.Println("here:", server)
	fmt.Println("sent:", client)
	// Output:
	// @path
	// here: "@path": /orders
	// sent: "@path": /v1/orders
}

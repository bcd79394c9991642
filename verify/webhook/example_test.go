package webhook_test

import (
	"fmt"
	"net/http"
	"time"

	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// A sender signs with every secret that has not expired, the newest first.
func ExampleSign() {
	current, err := webhook.ParseSecret("whsec_ZXhhbXBsZSBvbmx5LCBuZXZlciB1c2UgdGhpcyBvbmU=")
	if err != nil {
		panic(err)
	}
	old, err := webhook.ParseSecret("whsec_dGhlIG9uZSBiZWZvcmUsIHdoaWNoIGlzIHJldGlyaW5n")
	if err != nil {
		panic(err)
	}
	h, err := webhook.Sign("msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", time.Unix(1_700_000_000, 0), []byte(`{"type":"key.rolled"}`), current, old)
	if err != nil {
		panic(err)
	}
	fmt.Println("webhook-id:", h.ID)
	fmt.Println("webhook-timestamp:", h.Timestamp)
	fmt.Println("webhook-signature:", h.Signature)
	// Output:
	// webhook-id: msg_2KWPBgLlAfxdpx2AI54pPJ85f4W
	// webhook-timestamp: 1700000000
	// webhook-signature: v1,CUCKjXAtDcAXDHnqProtXQ0kLwhHWQO5yK17OBvGf5U= v1,GC8uuTYWFG4DweDFeI6g3B02k/I/TlHliAI3x3hRz+c=
}

// A receiver verifies the bytes that arrived, before they are parsed. Then it
// looks whether the id was seen before.
func ExampleVerify() {
	secret, err := webhook.ParseSecret("whsec_ZXhhbXBsZSBvbmx5LCBuZXZlciB1c2UgdGhpcyBvbmU=")
	if err != nil {
		panic(err)
	}
	body := []byte(`{"type":"key.rolled"}`)
	h, err := webhook.Sign("msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", time.Unix(1_700_000_000, 0), body, secret)
	if err != nil {
		panic(err)
	}
	header := http.Header{} // the request's
	h.Set(header)

	now := time.Unix(1_700_000_010, 0) // the time now
	index, id, err := webhook.Verify(header, body, now, 5*time.Minute, secret)
	fmt.Println(index, id, err)
	_, _, err = webhook.Verify(header, []byte(`{"type":"key.revoked"}`), now, 5*time.Minute, secret)
	fmt.Println(err)
	// Output:
	// 0 msg_2KWPBgLlAfxdpx2AI54pPJ85f4W <nil>
	// webhook: no signature of the header is that of this webhook: check that the secret is the right one and that the body is the bytes that arrived
}

package oracles

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/http"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/rotunda-dev/rotunda/verify/webhook"
)

func newSecret(t testing.TB, size int) webhook.Secret {
	t.Helper()
	raw := make([]byte, size)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	s, err := webhook.SecretFrom(raw)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// webhookPeer is somebody else's implementation of Standard Webhooks.
type webhookPeer struct {
	name   string
	sign   func(t testing.TB, secret, id string, at time.Time, body []byte) (string, error)
	verify func(t testing.TB, secret string, h http.Header, body []byte) error
}

func webhookPeers(n *node) []webhookPeer {
	return []webhookPeer{
		{"standard-webhooks, Go", func(t testing.TB, secret, id string, at time.Time, body []byte) (string, error) {
			w, err := standardwebhooks.NewWebhook(secret)
			if err != nil {
				return "", err
			}
			return w.Sign(id, at, body)
		}, func(t testing.TB, secret string, h http.Header, body []byte) error {
			w, err := standardwebhooks.NewWebhook(secret)
			if err != nil {
				return err
			}
			return w.Verify(body, h)
		}},
		{"standardwebhooks, JavaScript", func(t testing.TB, secret, id string, at time.Time, body []byte) (signature string, err error) {
			err = n.ask(t, map[string]any{"op": "webhookSign", "secret": secret, "id": id, "timestamp": at.Unix(), "body": string(body)}, &signature)
			return signature, err
		}, func(t testing.TB, secret string, h http.Header, body []byte) error {
			headers := map[string]string{}
			for name := range h {
				headers[name] = h.Get(name)
			}
			var ok bool
			return n.ask(t, map[string]any{"op": "webhookVerify", "secret": secret, "headers": headers, "body": string(body)}, &ok)
		}},
	}
}

func TestWebhooksBothWays(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	bodies := [][]byte{[]byte(`{"test": 2432232314}`), []byte(`{}`), []byte("not JSON, ünïcode ✓\n"), bytes.Repeat([]byte("x"), 100_000)}
	for _, p := range webhookPeers(newNode(t)) {
		for i, body := range bodies {
			for _, size := range []int{24, 32, 64} {
				t.Run(fmt.Sprintf("%s/body %d/secret of %d bytes", p.name, i, size), func(t *testing.T) {
					secret, other := newSecret(t, size), newSecret(t, size)
					id := "msg_" + rand.Text()
					ours, err := webhook.Sign(id, now, body, secret)
					if err != nil {
						t.Fatal(err)
					}
					theirs, err := p.sign(t, secret.Encode(), id, now, body)
					if err != nil {
						t.Fatal(err)
					}
					if ours.Signature != theirs {
						t.Errorf("we sign %s, the peer signs %s", ours.Signature, theirs)
					}
					h := http.Header{}
					webhook.Headers{ID: id, Timestamp: ours.Timestamp, Signature: theirs}.Set(h)
					if _, _, err := webhook.Verify(h, body, now, time.Minute, secret); err != nil {
						t.Errorf("of the peer's: %v", err)
					}
					if _, _, err := webhook.Verify(h, append(bytes.Clone(body), 'x'), now, time.Minute, secret); err == nil {
						t.Error("of the peer's, with another body: accepted")
					}

					// Signed with two secrets, as while one is being replaced.
					both, err := webhook.Sign(id, now, body, other, secret)
					if err != nil {
						t.Fatal(err)
					}
					both.Set(h)
					for _, s := range []webhook.Secret{secret, other} {
						if err := p.verify(t, s.Encode(), h, body); err != nil {
							t.Errorf("the peer refuses ours: %v", err)
						}
					}
					if err := p.verify(t, newSecret(t, size).Encode(), h, body); err == nil {
						t.Error("the peer accepts a signature of another secret: it proves nothing")
					}
				})
			}
		}
	}
}

package verify

import (
	"encoding/base64"
	"errors"
	"strings"

	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// sharedSecret takes the bytes out of a shared secret.
func sharedSecret(s webhook.Secret) ([]byte, error) {
	text, ok := strings.CutPrefix(s.Encode(), "whsec_")
	if !ok {
		return nil, errors.New("reading a request secret: it is a key pair of webhooks: a request secret begins with whsec_")
	}
	return base64.StdEncoding.DecodeString(text)
}

// Package webhook signs and verifies webhooks as the Standard Webhooks
// specification says (standardwebhooks.com, version 1).
//
// # Model
//
// A webhook carries three headers. The signature covers the first two and the
// body, as "id.timestamp.body":
//
//	webhook-id         one id per event, the same when it is sent again
//	webhook-timestamp  when this attempt was made, in Unix seconds
//	webhook-signature  "v1,<base64>" for each secret, with spaces in between
//
// v1 is HMAC-SHA-256 with a secret written as whsec_…, v1a is Ed25519 with a key
// pair written as whsk_… (private) and whpk_… (public). A sender signs with every
// secret that has not expired and a receiver accepts one of several, so that
// neither has to change at the same moment as the other.
//
// # What is refused
//
// An id or a timestamp that holds a dot, because then "id.timestamp.body" has two
// readings; a header that is there twice, because the next reader may take the
// other one; a timestamp that is out of the tolerance; more signatures or secrets
// than a sender with ten old secrets has. Signatures of versions that are not
// known are passed over, as the specification says.
//
// # What is left to the receiver
//
// Within the tolerance a webhook can be replayed: remember the ids that were seen.
//
// Comparisons take the same time whichever secret and signature match, and all of
// them are always compared. No error holds a secret or an expected signature.
package webhook

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The reasons of an [Error].
const (
	ReasonMissing   = "missing"   // a header is not there
	ReasonMalformed = "malformed" // a header or a secret can't be read, or could be read in two ways
	ReasonWindow    = "window"    // the timestamp is too old, or in the future
	ReasonSignature = "signature" // no signature is that of this webhook under one of the secrets
)

// Error says why a webhook, or a secret, was refused.
type Error struct {
	Reason  string // one of the Reason constants
	Message string // what is wrong, and what to do
}

func (e *Error) Error() string { return "webhook: " + e.Message }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Bounds on what is read.
const (
	maxID            = 256
	maxSignatures    = 20
	maxSecrets       = 20
	maxHeader        = 4 << 10 // bytes of the signatures
	maxEd25519Checks = 64      // one takes about 50 µs
	maxTime          = 253_402_300_799
)

// Headers are the values of the three headers of a webhook.
type Headers struct {
	ID        string // webhook-id
	Timestamp string // webhook-timestamp
	Signature string // webhook-signature
}

// Set puts the headers into an http.Header.
func (h Headers) Set(header map[string][]string) {
	header["Webhook-Id"] = []string{h.ID}
	header["Webhook-Timestamp"] = []string{h.Timestamp}
	header["Webhook-Signature"] = []string{h.Signature}
}

// Sign signs a webhook with each of the secrets, the newest first by custom. The id
// is printable ASCII without spaces and without a dot, at most 256 characters.
func Sign(id string, at time.Time, body []byte, secrets ...Secret) (Headers, error) {
	if err := checkID(id); err != nil {
		return Headers{}, err
	}
	if t := at.Unix(); t < 0 || t > maxTime {
		return Headers{}, refuse(ReasonMalformed, "the time of a webhook is between 1970 and 9999, not %s", at.UTC().Format(time.RFC3339))
	}
	if err := checkSecrets(secrets); err != nil {
		return Headers{}, err
	}
	h := Headers{ID: id, Timestamp: strconv.FormatInt(at.Unix(), 10)}
	signed := content(h.ID, h.Timestamp, body)
	var b strings.Builder
	for i, s := range secrets {
		if i > 0 {
			b.WriteByte(' ')
		}
		switch s.kind {
		case symmetric:
			b.WriteString("v1," + base64.StdEncoding.EncodeToString(s.mac(signed)))
		case private:
			b.WriteString("v1a," + base64.StdEncoding.EncodeToString(ed25519.Sign(ed25519.PrivateKey(*s.key), signed)))
		default:
			return Headers{}, refuse(ReasonMalformed, "secret %d is a public key: sign with the whsk_ half of the pair", i)
		}
	}
	h.Signature = b.String()
	return h, nil
}

// Verifier verifies webhooks.
type Verifier struct {
	Secrets   []Secret
	Tolerance time.Duration // how far the timestamp may be from now, either way
	// Svix also accepts the headers svix-id, svix-timestamp and svix-signature,
	// when none of the standard three is there.
	Svix bool
}

// Verify verifies a webhook with the standard headers. It returns the index of the
// secret that matched, the first if several did, and the webhook's id.
// Header has canonical keys, as http.Header has.
func Verify(header map[string][]string, body []byte, now time.Time, tolerance time.Duration, secrets ...Secret) (index int, id string, err error) {
	v := Verifier{Secrets: secrets, Tolerance: tolerance}
	return v.Verify(header, body, now)
}

// Verify verifies a webhook. It returns the index of the secret that matched, the
// first if several did, and the webhook's id; and -1 with an error.
func (v *Verifier) Verify(header map[string][]string, body []byte, now time.Time) (index int, id string, err error) {
	h, err := v.headers(header)
	if err != nil {
		return -1, "", err
	}
	if err := checkID(h.ID); err != nil {
		return -1, "", err
	}
	if err := v.window(h.Timestamp, now); err != nil {
		return -1, "", err
	}
	if err := checkSecrets(v.Secrets); err != nil {
		return -1, "", err
	}
	macs, signatures, err := parseSignatures(h.Signature)
	if err != nil {
		return -1, "", err
	}
	index, err = v.match(content(h.ID, h.Timestamp, body), macs, signatures)
	if err != nil {
		return -1, "", err
	}
	return index, h.ID, nil
}

// match compares every signature with every secret of its kind, whatever matches.
func (v *Verifier) match(signed []byte, macs, signatures [][]byte) (int, error) {
	pairs := 0
	for _, s := range v.Secrets {
		if s.kind != symmetric {
			pairs += len(signatures)
		}
	}
	if pairs > maxEd25519Checks {
		return -1, refuse(ReasonMalformed, "%d signatures of version v1a are too many for the keys there are", len(signatures))
	}
	found := -1
	for i := len(v.Secrets) - 1; i >= 0; i-- {
		s, ok := v.Secrets[i], 0
		if s.kind == symmetric {
			want := s.mac(signed)
			for _, m := range macs {
				ok |= subtle.ConstantTimeCompare(want, m)
			}
		} else {
			for _, sig := range signatures {
				if ed25519.Verify(s.public(), signed, sig) {
					ok = 1
				}
			}
		}
		found = subtle.ConstantTimeSelect(ok, i, found)
	}
	if found < 0 {
		return -1, refuse(ReasonSignature, "no signature of the header is that of this webhook: check that the secret is the right one and that the body is the bytes that arrived")
	}
	return found, nil
}

func (v *Verifier) headers(header map[string][]string) (Headers, error) {
	names := [...]string{"Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"}
	if v.Svix && len(header[names[0]]) == 0 && len(header[names[1]]) == 0 && len(header[names[2]]) == 0 {
		names = [...]string{"Svix-Id", "Svix-Timestamp", "Svix-Signature"}
	}
	var values [len(names)]string
	for i, name := range names {
		switch lines := header[name]; {
		case len(lines) > 1:
			return Headers{}, refuse(ReasonMalformed, "the header %s is there %d times", strings.ToLower(name), len(lines))
		case len(lines) == 0 || lines[0] == "":
			return Headers{}, refuse(ReasonMissing, "the header %s is missing", strings.ToLower(name))
		default:
			values[i] = lines[0]
		}
	}
	return Headers{ID: values[0], Timestamp: values[1], Signature: values[2]}, nil
}

func (v *Verifier) window(timestamp string, now time.Time) error {
	t, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || t < 0 || t > maxTime || strconv.FormatInt(t, 10) != timestamp {
		return refuse(ReasonMalformed, "webhook-timestamp is a whole number of seconds since 1970, without sign or leading zero")
	}
	at := time.Unix(t, 0)
	if age := now.Sub(at); age > v.Tolerance {
		return refuse(ReasonWindow, "the webhook is %s old, and at most %s is accepted: sign each attempt anew, and set the clock", age.Round(time.Second), v.Tolerance)
	}
	if early := at.Sub(now); early > v.Tolerance {
		return refuse(ReasonWindow, "the webhook is from %s in the future, and at most %s is accepted: set the clock", early.Round(time.Second), v.Tolerance)
	}
	return nil
}

// parseSignatures returns the values of versions v1 and v1a.
func parseSignatures(header string) (macs, signatures [][]byte, err error) {
	if len(header) > maxHeader || strings.Count(header, " ") >= maxSignatures {
		return nil, nil, refuse(ReasonMalformed, "webhook-signature has at most %d signatures and %d bytes", maxSignatures, maxHeader)
	}
	for part := range strings.SplitSeq(header, " ") {
		version, text, ok := strings.Cut(part, ",")
		if !ok || version == "" || text == "" || !visible(part) {
			return nil, nil, refuse(ReasonMalformed, "webhook-signature is a list of version,signature with one space in between")
		}
		size := 0
		switch version {
		case "v1":
			size = sha256.Size
		case "v1a":
			size = ed25519.SignatureSize
		default:
			continue
		}
		value, err := base64.StdEncoding.Strict().DecodeString(text)
		if err != nil || len(value) != size {
			return nil, nil, refuse(ReasonMalformed, "a signature of version %s is %d bytes in base64 with padding", version, size)
		}
		if version == "v1" {
			macs = append(macs, value)
		} else {
			signatures = append(signatures, value)
		}
	}
	return macs, signatures, nil
}

func checkID(id string) error {
	if id == "" || len(id) > maxID || strings.Contains(id, ".") || !visible(id) {
		return refuse(ReasonMalformed, "webhook-id is 1 to %d characters of ASCII, without space and without a dot", maxID)
	}
	return nil
}

func checkSecrets(secrets []Secret) error {
	if len(secrets) == 0 || len(secrets) > maxSecrets {
		return refuse(ReasonMalformed, "there are 1 to %d secrets, not %d", maxSecrets, len(secrets))
	}
	for i, s := range secrets {
		if s.key == nil {
			return refuse(ReasonMalformed, "secret %d is empty: use ParseSecret or SecretFrom", i)
		}
	}
	return nil
}

// visible says that s is printable ASCII without space.
func visible(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func content(id, timestamp string, body []byte) []byte {
	b := make([]byte, 0, len(id)+len(timestamp)+len(body)+2)
	b = append(append(b, id...), '.')
	b = append(append(b, timestamp...), '.')
	return append(b, body...)
}

func (s Secret) mac(signed []byte) []byte {
	h := hmac.New(sha256.New, *s.key)
	h.Write(signed)
	return h.Sum(nil)
}

package awstest

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// maxSkew is how old or early a signature may be (AWS General Reference, Signature
// Version 4: five minutes).
const maxSkew = 5 * time.Minute

var authorization = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=([A-Za-z0-9]+)/([0-9]{8})/([a-z0-9-]+)/([a-z]+)/aws4_request, ?SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{64})$`)

// authenticate says who signed r. It signs the same request again with the secret that
// it knows for the key, and compares.
func (s *Sim) authenticate(r *http.Request, body []byte, m *model, now time.Time) (*keyRecord, error) {
	query := m.Metadata.Protocol != "json"
	no := func(jsonCode, queryCode, message string) error {
		if query {
			return &refusal{queryCode, message, http.StatusForbidden}
		}
		return refuse(jsonCode, "%s", message)
	}
	mismatch := func(message string) error {
		return no("InvalidSignatureException", "SignatureDoesNotMatch", message)
	}
	unknown := func() error {
		return no("UnrecognizedClientException", "InvalidClientTokenId", "The security token included in the request is invalid.")
	}
	if r.Header.Get("Authorization") == "" {
		return nil, no("MissingAuthenticationTokenException", "MissingAuthenticationToken", "Request is missing Authentication Token")
	}
	a := authorization.FindStringSubmatch(r.Header.Get("Authorization"))
	if a == nil {
		return nil, no("IncompleteSignatureException", "IncompleteSignature", "Authorization header is malformed.")
	}
	id, day, region, service, signed, signature := a[1], a[2], a[3], a[4], strings.Split(a[5], ";"), a[6]

	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || at.Format("20060102") != day {
		return nil, mismatch("Credential should be scoped with the date of the request.")
	}
	if service != m.service || (m.service == "secretsmanager" && region != s.Region) {
		return nil, mismatch("Credential should be scoped to a valid region and to the correct service.")
	}
	if d := now.Sub(at); d > maxSkew || d < -maxSkew {
		return nil, mismatch("Signature expired or not yet current: " + at.Format("20060102T150405Z") + " is more than 5 min. from " + now.UTC().Format("20060102T150405Z"))
	}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !slices.Contains(signed, name) {
			return nil, mismatch("The header " + name + " is not signed.")
		}
	}
	key := s.keys[id]
	if key == nil || !key.active || key.hiddenFromLogin(now) {
		return nil, unknown()
	}
	if subtle.ConstantTimeCompare([]byte(key.token), []byte(r.Header.Get("X-Amz-Security-Token"))) != 1 {
		return nil, unknown()
	}
	want, err := sign(r, body, key, signed, service, region, at)
	if err != nil || subtle.ConstantTimeCompare([]byte(want), []byte(signature)) != 1 {
		return nil, mismatch("The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method.")
	}
	if !key.expires.IsZero() && !now.Before(key.expires) {
		return nil, expired(m)
	}
	return key, nil
}

// sign returns the signature of the headers that the caller says it signed.
func sign(r *http.Request, body []byte, key *keyRecord, signed []string, service, region string, at time.Time) (string, error) {
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+r.Host+"/", http.NoBody)
	if err != nil {
		return "", err
	}
	again.Header = http.Header{}
	again.ContentLength = 0
	for _, name := range signed {
		switch name {
		case "host", "x-amz-date", "x-amz-security-token":
			// The signer sets them.
		case "content-length":
			again.ContentLength = int64(len(body))
		default:
			again.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
		}
	}
	sum := sha256.Sum256(body)
	creds := aws.Credentials{AccessKeyID: key.id, SecretAccessKey: key.secret, SessionToken: key.token}
	if err := v4.NewSigner().SignHTTP(r.Context(), creds, again, hex.EncodeToString(sum[:]), service, region, at); err != nil {
		return "", err
	}
	a := authorization.FindStringSubmatch(again.Header.Get("Authorization"))
	if a == nil || a[5] != strings.Join(signed, ";") {
		return "", http.ErrNotSupported
	}
	return a[6], nil
}

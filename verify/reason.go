package verify

import (
	"errors"
	"net/http"
	"time"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// Reason is why a credential is accepted or denied.
type Reason string

// The reasons. Those from ReasonAlgorithm on are of this package only; the others
// are the server's too.
const (
	ReasonOK         Reason = "ok"
	ReasonMalformed  Reason = "malformed"  // not the form of a key, token or signature
	ReasonUnknown    Reason = "unknown"    // nobody holds it; a token's key id is in no JWKS
	ReasonExpired    Reason = "expired"    //
	ReasonRevoked    Reason = "revoked"    // or retired
	ReasonSuspended  Reason = "suspended"  // the key or its partner
	ReasonScope      Reason = "scope"      // a scope that the request needs is not there
	ReasonAddress    Reason = "address"    // the client's address is in none of the key's ranges
	ReasonRate       Reason = "rate"       // the rate limit is used up
	ReasonSignature  Reason = "signature"  // not that of the key over this request or token
	ReasonComponents Reason = "components" // the signature does not cover what it must
	ReasonWindow     Reason = "window"     // too old, or from the future
	ReasonReplay     Reason = "replay"     // the nonce was seen before
	ReasonDigest     Reason = "digest"     // the body is not the one that Content-Digest names

	ReasonAlgorithm Reason = "algorithm" // an algorithm that is not accepted, or not with this key
	ReasonIssuer    Reason = "issuer"    // a token of somebody else
	ReasonAudience  Reason = "audience"  // a token for somebody else
	ReasonType      Reason = "type"      // a token for another purpose
	ReasonTooLarge  Reason = "too_large" // a body above the limit
	ReasonMissing   Reason = "missing"   // no credential at all
)

var reasons = map[rotundav1.VerifyReason]Reason{
	rotundav1.VerifyReason_VERIFY_REASON_OK:         ReasonOK,
	rotundav1.VerifyReason_VERIFY_REASON_MALFORMED:  ReasonMalformed,
	rotundav1.VerifyReason_VERIFY_REASON_UNKNOWN:    ReasonUnknown,
	rotundav1.VerifyReason_VERIFY_REASON_EXPIRED:    ReasonExpired,
	rotundav1.VerifyReason_VERIFY_REASON_REVOKED:    ReasonRevoked,
	rotundav1.VerifyReason_VERIFY_REASON_SUSPENDED:  ReasonSuspended,
	rotundav1.VerifyReason_VERIFY_REASON_SCOPE:      ReasonScope,
	rotundav1.VerifyReason_VERIFY_REASON_ADDRESS:    ReasonAddress,
	rotundav1.VerifyReason_VERIFY_REASON_RATE:       ReasonRate,
	rotundav1.VerifyReason_VERIFY_REASON_SIGNATURE:  ReasonSignature,
	rotundav1.VerifyReason_VERIFY_REASON_COMPONENTS: ReasonComponents,
	rotundav1.VerifyReason_VERIFY_REASON_WINDOW:     ReasonWindow,
	rotundav1.VerifyReason_VERIFY_REASON_REPLAY:     ReasonReplay,
	rotundav1.VerifyReason_VERIFY_REASON_DIGEST:     ReasonDigest,
}

// status is the HTTP status with which a request is answered.
func (r Reason) status() int {
	switch r {
	case ReasonOK:
		return http.StatusOK
	case ReasonScope, ReasonAddress:
		return http.StatusForbidden
	case ReasonRate:
		return http.StatusTooManyRequests
	case ReasonTooLarge:
		return http.StatusRequestEntityTooLarge
	default:
		return http.StatusUnauthorized
	}
}

// ErrUnavailable says that a credential could not be looked at. It is neither good
// nor bad, and the request must not go on; it may be tried again.
var ErrUnavailable = errors.New("verification is unavailable")

// Denied is the error of a token that is not accepted. Message is for logs: it
// holds no part of the token but its key id.
type Denied struct {
	Reason  Reason
	Message string
}

func (d *Denied) Error() string { return "token denied (" + string(d.Reason) + "): " + d.Message }

// Decision is the answer about an API key or a signed request. The zero value
// denies.
type Decision struct {
	Reason  Reason
	Message string // for logs, of a denial that was decided here

	// Who it is. Empty when the key is malformed or unknown.
	Partner     string
	KeyID       string
	Name        string
	Environment string
	Publishable bool // the key may be in a browser or an app
	Scopes      []string
	Metadata    map[string]string
	ExpiresAt   time.Time // zero: no end

	// Of a key that was rolled: until when it still works, and its successor.
	Retiring    bool
	GraceEndsAt time.Time
	ReplacedBy  string

	Rate *Rate // nil: no limit

	// Status and Header are for the response to the client: RateLimit,
	// RateLimit-Policy, Retry-After, Deprecation, Sunset, WWW-Authenticate.
	Status int
	Header http.Header
}

// OK says that the credential is accepted.
func (d *Decision) OK() bool { return d.Reason == ReasonOK }

// Rate is what is left of a rate limit.
type Rate struct {
	Quota      int64
	Window     time.Duration
	Remaining  int64
	Reset      time.Duration // until all of it is there again
	RetryAfter time.Duration // of a denied request
}

func denied(r Reason, message string) Decision {
	return Decision{Reason: r, Message: message, Status: r.status()}
}

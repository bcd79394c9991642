package apikeys

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// Reason is why a key or request is accepted or denied.
type Reason uint8

// The reasons.
const (
	ReasonOK         Reason = iota + 1
	ReasonMalformed         // not in the form of a key, or of a signature
	ReasonUnknown           // nobody holds it
	ReasonExpired           //
	ReasonRevoked           // or retired
	ReasonSuspended         // the key, or its partner
	ReasonScope             //
	ReasonAddress           //
	ReasonRate              //
	ReasonSignature         // not that of the key over this request
	ReasonComponents        // the signature does not cover what it must
	ReasonWindow            // too old, or from the future
	ReasonReplay            // the nonce was seen before
	ReasonDigest            // the body is not the one that Content-Digest names
	reasons
)

var reasonNames = [reasons]string{
	"", "ok", "malformed", "unknown", "expired", "revoked", "suspended", "scope", "address", "rate", "signature", "components", "window", "replay", "digest",
}

func (r Reason) String() string { return reasonNames[min(r, reasons-1)] }

// Need is what a request demands of a key.
type Need struct {
	Scopes      []string   // all of them
	Address     netip.Addr // the client's; the zero value is in no range
	Partner     string     // "": any; else others' keys are unknown
	Environment string     // "": any; else other keys are unknown
	Cost        int64      // of the rate limit; 0: 1
}

// Decision says whether a key is accepted, and whose it is. Key and Partner are nil
// when it is malformed or unknown; they are shared, and not to be changed.
type Decision struct {
	Reason  Reason
	Key     *Key
	Partner *Partner
	Scopes  []string // those in force
	Rate    RateState
}

// RateState is what is left of a rate limit.
type RateState struct {
	Limit      RateLimit
	Remaining  int64
	Reset      time.Duration // until all of it is there again
	RetryAfter time.Duration // of a denied request
}

// Limiter counts requests against rate limits, in this process or for all replicas.
type Limiter interface {
	// Take takes cost from the limit of a key ("lineage") at now, or nothing when
	// that is too much: then ok is false. An error is fault.ErrUnavailable.
	Take(ctx context.Context, key string, limit RateLimit, cost int64, now time.Time) (state RateState, ok bool, err error)
}

// Nonces remembers nonces, for all replicas.
type Nonces interface {
	// Spend remembers a nonce of a key until an instant. fresh is false when it was
	// spent before. It returns nil only when every replica would see it.
	Spend(ctx context.Context, keyID, nonce string, until time.Time) (fresh bool, err error)
}

// VerifierConfig is what a Verifier needs.
type VerifierConfig struct {
	DB       *store.DB
	Keys     *Keys
	Partners *Partners
	Sealer   *secret.Sealer
	Usage    *audit.Usage // nil: nobody is told
	Limiter  Limiter      // nil: in memory
	Nonces   Nonces       // nil: in the database
	Log      *slog.Logger

	// StaleFor is how long keys are accepted without hearing of changes, while the
	// database is out of reach. Default: a minute.
	StaleFor time.Duration

	// MaxEntries bounds the cache. Default: 2,000,000.
	MaxEntries int
}

// Verifier verifies API keys and signed requests from memory. Its methods may be
// called from many goroutines.
type Verifier struct{ cfg VerifierConfig }

// NewVerifier returns a Verifier. Call Refresh once before use, and run Follow.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) { return nil, errSkeleton }

// Verify decides about an API key. An error is fault.ErrUnavailable: nobody knows.
func (v *Verifier) Verify(ctx context.Context, value string, need *Need) (Decision, error) {
	return Decision{}, errSkeleton
}

// Request is a signed request as the gateway got it.
type Request struct {
	Message        httpsig.Message
	Body           []byte
	BodyOmitted    bool   // the body was not handed over
	DigestVerified bool   // the gateway has compared it with Content-Digest
	Label          string // "": there is exactly one signature
	Webhook        bool   // Standard Webhooks, in place of RFC 9421
	Secret         string // with Webhook: its name; Need.Partner says whose
	Explain        bool   // tell why it failed; nothing is counted, no nonce is spent
	SignerBase     []byte // with Explain: the base that the signer made
	Need           Need
}

// Explanation tells a partner why its signature was refused.
type Explanation struct {
	Message                           string
	Base                              string
	Component, ServerLine, SignerLine string
}

// VerifyRequest decides about a signed request.
func (v *Verifier) VerifyRequest(ctx context.Context, r *Request) (Decision, *Explanation, error) {
	return Decision{}, nil, errSkeleton
}

// Refresh hears of all changes since it was last called.
func (v *Verifier) Refresh(ctx context.Context) error { return errSkeleton }

// Follow calls Refresh whenever a change is announced, and once a second, until ctx ends.
func (v *Verifier) Follow(ctx context.Context) {}

// Pass writes when keys were used, moves them to the newest pepper and forgets old
// nonces; it is called about once a second.
func (v *Verifier) Pass(ctx context.Context, now time.Time) (time.Time, error) {
	return time.Time{}, errSkeleton
}

// Flush writes what this process only has in memory.
func (v *Verifier) Flush(ctx context.Context) error { return errSkeleton }

// VerifierStats are figures of a Verifier, for metrics.
type VerifierStats struct {
	Entries  int           // keys in memory
	Hits     int64         // answered from memory
	Loads    int64         // read from the database
	Shed     int64         // unknown ones answered without a look, because there were too many
	Behind   time.Duration // since changes were last heard
	Decision [reasons]int64
}

// Stats returns the present figures.
func (v *Verifier) Stats() VerifierStats { return VerifierStats{} }

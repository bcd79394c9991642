package apikeys

import (
	"net/netip"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// Kind tells API keys and request secrets apart. They share one lifecycle.
type Kind string

// The kinds.
const (
	APIKey        Kind = "api_key"
	RequestSecret Kind = "request_secret"
)

// State is what a key may do. Expired is computed, not stored.
type State string

// The states of a key.
const (
	Active    State = "active"    // accepted
	Retiring  State = "retiring"  // accepted until its grace ends: it has a successor
	Retired   State = "retired"   // ended: its grace is over
	Revoked   State = "revoked"   // ended early
	Suspended State = "suspended" // not accepted until it is resumed
	Expired   State = "expired"   // not accepted: its life is over
)

// moves are all changes of state that there are. Resuming goes back to active, or
// to retiring when the key was rolled.
var moves = map[State][]State{
	Active:    {Retiring, Retired, Revoked, Suspended},
	Retiring:  {Retired, Revoked, Suspended},
	Suspended: {Active, Retiring, Retired, Revoked},
	Retired:   nil,
	Revoked:   nil,
}

// Class says where a key may be.
type Class string

// The classes.
const (
	ClassSecret      Class = "secret"      // held by servers only
	ClassPublishable Class = "publishable" // may be in a browser or an app
)

// Where a key comes from.
const (
	OriginRotunda = "rotunda"
	OriginSHA256  = "sha256" // imported as a hash
	OriginRaw     = "raw"    // imported as a value
)

// The reasons of a revocation (RFC 5280, section 5.3.1).
const (
	KeyCompromise        = "key_compromise"
	AffiliationChanged   = "affiliation_changed"
	Superseded           = "superseded"
	CessationOfOperation = "cessation_of_operation"
	PrivilegeWithdrawn   = "privilege_withdrawn"
	Unspecified          = "unspecified"
)

// Key is an API key, or one version of a request secret, without its value. It is
// never changed once others have it.
type Key struct {
	ID          string
	Kind        Kind
	Partner     string
	Name        string
	Environment string
	Class       Class
	Stored      State // state in its row
	Scopes      []string
	CIDRs       []netip.Prefix // from which it is accepted; empty: any
	Rate        RateLimit
	Metadata    map[string]string
	Origin      string
	Weak        bool              // imported, and too easy to guess
	Algorithm   httpsig.Algorithm // of a request secret
	PublicKey   string            // PEM; in place of a secret
	PepperGen   int64             // of an API key

	Lineage    string // id of the first key of a line of rolls
	Replaces   string
	ReplacedBy string
	Reason     string // of a revocation
	ReasonText string

	CreatedAt   time.Time
	Since       time.Time // when it came into its state
	ExpiresAt   time.Time // zero: no end
	GraceEndsAt time.Time // zero: was not rolled; never after ExpiresAt
	Quiet       time.Duration
	WarnedAt    time.Time
	NextAt      time.Time
	FirstUsedAt time.Time
	LastUsedAt  time.Time // to about half a minute
	Version     int64

	hash, lookup, salt, sealed, seal []byte

	tampered bool // the seal is not that of the row
}

// State is the key's state at now. A key whose row was tampered with is suspended.
func (k *Key) State(now time.Time) State {
	switch k.Stored {
	case Active, Retiring, Suspended:
		if k.tampered {
			return Suspended
		}
	case Retired, Revoked, Expired:
	}
	switch k.Stored {
	case Active, Retiring, Suspended:
		if !k.ExpiresAt.IsZero() && !now.Before(k.ExpiresAt) {
			return Expired
		}
		if !k.GraceEndsAt.IsZero() && !now.Before(k.GraceEndsAt) {
			return Retired // the next pass writes it
		}
	case Retired, Revoked, Expired:
	}
	return k.Stored
}

// Ended reports whether a key never comes back.
func (k *Key) Ended() bool { return k.Stored == Retired || k.Stored == Revoked }

// Resource is the key's name in the trail: "partners/acme/api_keys/ID".
func (k *Key) Resource() string {
	return "partners/" + k.Partner + "/" + string(k.Kind) + "s/" + k.ID
}

// Partner is a company or team that holds keys.
type Partner struct {
	Name              string
	State             State // Active or Suspended
	Reason            string
	Scopes            []string
	PublishableScopes []string
	MaxKeys           int
	MaxKeyTTL         time.Duration // 0: no bound
	Signing           SigningPolicy
	Metadata          map[string]string
	CreatedAt         time.Time
	Since             time.Time
	Version           int64

	seal     []byte
	tampered bool
}

// Resource is the partner's name in the trail: "partners/acme".
func (p *Partner) Resource() string { return "partners/" + p.Name }

// Effective returns those scopes of a key that its partner has (still).
func (p *Partner) Effective(k *Key) []string {
	allowed := p.Scopes
	if k.Class == ClassPublishable {
		allowed = p.PublishableScopes
	}
	if !slices.ContainsFunc(k.Scopes, func(s string) bool { return !slices.Contains(allowed, s) }) {
		return k.Scopes
	}
	return slices.DeleteFunc(slices.Clone(k.Scopes), func(s string) bool { return !slices.Contains(allowed, s) })
}

// SigningPolicy says which signatures of a partner's requests are accepted. The
// zero value is [httpsig.DefaultPolicy].
type SigningPolicy struct {
	Components []string      `json:"components,omitempty"`
	MaxAge     time.Duration `json:"max_age,omitempty"`
	Skew       time.Duration `json:"skew,omitempty"`
	Tag        string        `json:"tag,omitempty"`
}

// RateLimit lets Quota requests through in a Window, evenly (GCRA), and up to Burst
// at once. The zero value is no limit.
type RateLimit struct {
	Quota  int64
	Window time.Duration // 1 ms to 24 h
	Burst  int64         // 0: Quota
}

// None reports whether there is no limit.
func (r RateLimit) None() bool { return r.Quota == 0 }

// New is a key as it was made, with its value, which is nowhere else. Who has it
// destroys the value.
type New struct {
	Key   *Key
	Value secret.Value // zero for a registered public key
}

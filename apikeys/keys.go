package apikeys

import (
	"context"
	"time"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// Keys keeps API keys and request secrets. A partner that is named limits a method
// to that partner's keys: those of others are not found. Its methods may be called
// from many goroutines.
type Keys struct {
	db       *store.DB
	peppers  *Peppers
	partners *Partners
	sealer   *secret.Sealer
	brand    string
}

// KeysConfig is what Keys needs.
type KeysConfig struct {
	DB       *store.DB
	Peppers  *Peppers
	Partners *Partners
	Sealer   *secret.Sealer

	// Brand is what key strings begin with: 2 to 12 lower-case letters. Default: "rk".
	Brand string
}

// NewKeys returns the keys of a database.
func NewKeys(cfg KeysConfig) (*Keys, error) { return nil, errSkeleton }

// KeySpec is what a key is made with.
type KeySpec struct {
	Partner     string
	Name        string
	Environment string // default: "live"
	Class       Class  // default: secret
	Scopes      []string
	CIDRs       []string
	Rate        RateLimit
	Metadata    map[string]string
	ExpiresIn   time.Duration // 0: the partner's longest life
	PublicKey   string        // of a request secret: PEM, in place of a secret
	Once        store.Once
}

// Create makes an API key, or the first version of a request secret under a name.
func (ks *Keys) Create(ctx context.Context, kind Kind, spec KeySpec) (New, error) {
	return New{}, errSkeleton
}

// Get returns a key of a partner, or fault.ErrNotFound. partner "" is any.
func (ks *Keys) Get(ctx context.Context, kind Kind, partner, id string) (*Key, error) {
	return nil, errSkeleton
}

// Versions returns the versions of a request secret, newest first (at most 100); fault.ErrNotFound when there is none.
func (ks *Keys) Versions(ctx context.Context, partner, name string) ([]*Key, error) {
	return nil, errSkeleton
}

// ListKeys says which keys List returns.
type ListKeys struct {
	Kind    Kind
	Partner string // "": of all
	Ended   bool   // retired and revoked ones too
	Page    string
	Limit   int
}

// List returns keys, newest first, and the page to continue at.
func (ks *Keys) List(ctx context.Context, q ListKeys) (keys []*Key, next string, err error) {
	return nil, "", errSkeleton
}

// Update replaces the name, scopes, CIDRs, rate and metadata of an API key, if it
// still has the version.
func (ks *Keys) Update(ctx context.Context, id string, version int64, spec KeySpec) (*Key, error) {
	return nil, errSkeleton
}

// Roll says how a key is rolled.
type Roll struct {
	Kind      Kind
	Partner   string
	ID        string         // of an API key
	Name      string         // of a request secret
	Grace     *time.Duration // nil: 72 h; 0: the old one ends at once; at most 90 days
	Quiet     time.Duration  // 0: the grace ends by the clock only; else 5 minutes at least
	ExpiresIn time.Duration  // life of the new one; 0: it ends when the old one would have
	PublicKey string
	Once      store.Once
}

// Roll makes a successor with the same attributes, and puts the old key into its
// grace. It never lengthens the old key's life, and never revives one.
func (ks *Keys) Roll(ctx context.Context, r Roll) (made New, old *Key, err error) {
	return New{}, nil, errSkeleton
}

// Suspend stops a key until Resume.
func (ks *Keys) Suspend(ctx context.Context, kind Kind, partner, id, reason string) (*Key, error) {
	return nil, errSkeleton
}

// Resume undoes Suspend: the key is active or retiring as before.
func (ks *Keys) Resume(ctx context.Context, kind Kind, partner, id, reason string) (*Key, error) {
	return nil, errSkeleton
}

// Revoke ends a key for good. reason is one of the names of RFC 5280; "" is Unspecified.
func (ks *Keys) Revoke(ctx context.Context, kind Kind, partner, id, reason, text string) (*Key, error) {
	return nil, errSkeleton
}

// ImportItem is a key that a partner holds already.
type ImportItem struct {
	Value       secret.Value // the key, or its SHA-256 in hex or base64
	Name        string
	Environment string
	Scopes      []string
	CIDRs       []string
	Rate        RateLimit
	Metadata    map[string]string
	ExpiresAt   time.Time
}

// Imported tells what became of an item. Err is nil, fault.ErrExists or fault.ErrInvalid.
type Imported struct {
	ID   string
	Weak bool
	Err  error
}

// Import takes over up to 500 keys, in one transaction. Items that can't be taken
// over don't keep the others back.
func (ks *Keys) Import(ctx context.Context, partner, origin string, weakTTL time.Duration, items []ImportItem) ([]Imported, error) {
	return nil, errSkeleton
}

// Pass makes the moves that are due, and is called about once a second.
func (ks *Keys) Pass(ctx context.Context, now time.Time) (time.Time, error) {
	return time.Time{}, errSkeleton
}

// Pepper is a generation, and what still needs it.
type Pepper struct {
	Gen       int64
	CreatedAt time.Time
	RetiredAt time.Time
	Keys      int64
	Tokens    int64
}

// List returns the generations, newest first.
func (p *Peppers) List(ctx context.Context) ([]Pepper, error) { return nil, errSkeleton }

// Rotate makes a new generation.
func (p *Peppers) Rotate(ctx context.Context, reason string) (Pepper, error) {
	return Pepper{}, errSkeleton
}

// Straggler is a usable key or token of an old generation.
type Straggler struct {
	Kind, ID, Partner, Name string // Kind: "api_key" or "token"
	LastUsedAt, ExpiresAt   time.Time
}

// Stragglers returns the usable keys and tokens of a generation.
func (p *Peppers) Stragglers(ctx context.Context, gen int64, page string, limit int) (list []Straggler, next string, err error) {
	return nil, "", errSkeleton
}

// Retire destroys a generation. It is refused while a usable key or token needs it,
// or while a replica may still hash under it.
func (p *Peppers) Retire(ctx context.Context, gen int64, reason string) (Pepper, error) {
	return Pepper{}, errSkeleton
}

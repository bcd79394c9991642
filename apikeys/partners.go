package apikeys

import (
	"context"
	"errors"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

var errSkeleton = errors.New("apikeys: not written yet")

// Partners keeps partners. Its methods may be called from many goroutines.
type Partners struct {
	db      *store.DB
	peppers *Peppers
	changes changes
}

// NewPartners returns the partners of a database.
func NewPartners(db *store.DB, peppers *Peppers) *Partners {
	return &Partners{db: db, peppers: peppers}
}

// PartnerSpec is what may change of a partner.
type PartnerSpec struct {
	Scopes            []string
	PublishableScopes []string
	MaxKeys           int           // 0: 1,000
	MaxKeyTTL         time.Duration // 0: no bound
	Signing           SigningPolicy
	Metadata          map[string]string
}

// Create makes a partner, active at once.
func (ps *Partners) Create(ctx context.Context, name string, spec PartnerSpec, once store.Once) (*Partner, error) {
	return nil, errSkeleton
}

// Get returns a partner, or fault.ErrNotFound.
func (ps *Partners) Get(ctx context.Context, name string) (*Partner, error) { return nil, errSkeleton }

// List returns up to limit partners by name, and the page to continue at.
func (ps *Partners) List(ctx context.Context, page string, limit int) (list []*Partner, next string, err error) {
	return nil, "", errSkeleton
}

// Update replaces what may change of a partner, if it still has the version.
func (ps *Partners) Update(ctx context.Context, name string, version int64, spec PartnerSpec) (*Partner, error) {
	return nil, errSkeleton
}

// Suspend stops all keys, secrets and tokens of a partner until Resume.
func (ps *Partners) Suspend(ctx context.Context, name, reason string) (*Partner, error) {
	return nil, errSkeleton
}

// Resume undoes Suspend.
func (ps *Partners) Resume(ctx context.Context, name, reason string) (*Partner, error) {
	return nil, errSkeleton
}

// havePartner fails with fault.ErrNotFound when there is no such partner.
func havePartner(ctx context.Context, tx *store.Tx, name string) error { return errSkeleton }

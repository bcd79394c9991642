package apikeys

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

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
	Scopes            []string      // at most 256
	PublishableScopes []string      // some of Scopes
	MaxKeys           int           // usable keys and secrets without those retiring; 0: 1,000
	MaxKeyTTL         time.Duration // 0: no bound
	Signing           SigningPolicy
	Metadata          map[string]string
}

func (s PartnerSpec) checked() (PartnerSpec, error) {
	if err := checkScopes("scopes", s.Scopes, maxPartnerScopes); err != nil {
		return s, err
	}
	if err := checkScopes("publishable_scopes", s.PublishableScopes, maxPartnerScopes); err != nil {
		return s, err
	}
	if err := within("publishable_scopes", s.PublishableScopes, s.Scopes, "its scopes"); err != nil {
		return s, err
	}
	if s.MaxKeys == 0 {
		s.MaxKeys = defaultMaxKeys
	}
	if s.MaxKeys < 0 || s.MaxKeys > mostMaxKeys {
		return s, fault.Invalid("max_keys", "max_keys_range", "max_keys %d is outside 1 to %d", s.MaxKeys, mostMaxKeys)
	}
	if s.MaxKeyTTL != 0 && (s.MaxKeyTTL < minLife || s.MaxKeyTTL > maxLife) {
		return s, fault.Invalid("max_key_ttl", "duration_range", "max_key_ttl %s is outside %s to %s", s.MaxKeyTTL, minLife, maxLife)
	}
	s.MaxKeyTTL = s.MaxKeyTTL.Truncate(time.Microsecond)
	if err := checkPolicy(s.Signing); err != nil {
		return s, err
	}
	return s, checkMetadata(s.Metadata)
}

func (p *Partner) take(s PartnerSpec) {
	p.Scopes, p.PublishableScopes = append([]string{}, s.Scopes...), append([]string{}, s.PublishableScopes...)
	p.MaxKeys, p.MaxKeyTTL, p.Signing = s.MaxKeys, s.MaxKeyTTL, s.Signing
	p.Signing.Components = slices.Clone(s.Signing.Components)
	p.Metadata = map[string]string{}
	for k, v := range s.Metadata {
		p.Metadata[k] = v
	}
}

// Create makes a partner, active at once.
func (ps *Partners) Create(ctx context.Context, name string, spec PartnerSpec, once store.Once) (p *Partner, err error) {
	if !isSlug(name) {
		return nil, fmt.Errorf("create partner: %w", fault.Invalid("name", "bad_name", "a partner's name is 1 to 63 lower-case letters, digits and hyphens, and no hyphen first"))
	}
	if spec, err = spec.checked(); err != nil {
		return nil, fmt.Errorf("create partner %q: %w", name, err)
	}
	err = ps.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		prior, err := tx.Once(ctx, once, name)
		if err != nil {
			return err
		}
		if prior != "" {
			p, err = ps.peppers.readPartner(ctx, tx, prior)
			return err
		}
		a := &Partner{Name: name, State: Active, CreatedAt: tx.Now, Since: tx.Now, Version: 1}
		a.take(spec)
		if err := ps.insert(ctx, tx, a); err != nil {
			return err
		}
		p = a
		return ps.record(ctx, tx, a, "create", "", a.detail())
	})
	if err != nil {
		return nil, fmt.Errorf("create partner %q: %w", name, err)
	}
	return p, nil
}

// Get returns a partner, or fault.ErrNotFound.
func (ps *Partners) Get(ctx context.Context, name string) (p *Partner, err error) {
	err = ps.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		p, err = ps.peppers.readPartner(ctx, tx, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read partner %q: %w", clip(name), err)
	}
	return p, nil
}

// List returns up to limit partners by name, and the page to continue at.
func (ps *Partners) List(ctx context.Context, page string, limit int) (list []*Partner, next string, err error) {
	if page != "" && !isSlug(page) {
		return nil, "", fault.Invalid("page_token", "bad_page_token", "list partners: the page token is not one that Rotunda gave: start from the first page")
	}
	err = ps.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		list = nil
		rows, err := tx.Query(ctx, `SELECT `+partnerColumns+` FROM partners WHERE name > $1 ORDER BY name LIMIT $2`, page, limit+1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			p, err := ps.peppers.scanPartner(rows)
			if err != nil {
				return err
			}
			list = append(list, p)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list partners: %w", err)
	}
	if len(list) > limit {
		list = list[:limit]
		next = list[limit-1].Name
	}
	return list, next, nil
}

// Update replaces what may change of a partner, if it still has the version. A
// scope that is taken away is at once taken from all of its keys.
func (ps *Partners) Update(ctx context.Context, name string, version int64, spec PartnerSpec) (*Partner, error) {
	spec, err := spec.checked()
	if err != nil {
		return nil, fmt.Errorf("update partner %q: %w", clip(name), err)
	}
	return ps.change(ctx, name, "update", "", func(p *Partner) error {
		if p.Version != version {
			return fault.New(fault.ErrChanged, "version_changed", "it has version %d, not %d: read it again", p.Version, version)
		}
		p.take(spec)
		return nil
	})
}

// Suspend stops all keys, secrets and tokens of a partner until Resume.
func (ps *Partners) Suspend(ctx context.Context, name, reason string) (*Partner, error) {
	return ps.turn(ctx, name, "suspend", Suspended, reason)
}

// Resume undoes Suspend.
func (ps *Partners) Resume(ctx context.Context, name, reason string) (*Partner, error) {
	return ps.turn(ctx, name, "resume", Active, reason)
}

func (ps *Partners) turn(ctx context.Context, name, action string, to State, reason string) (*Partner, error) {
	if err := checkReason("reason", reason); err != nil {
		return nil, fmt.Errorf("%s partner %q: %w", action, clip(name), err)
	}
	return ps.change(ctx, name, action, reason, func(p *Partner) error {
		if p.State == to {
			return fault.New(fault.ErrTransition, "already_"+string(to), "it is %s since %s", to, p.Since.Format(time.RFC3339))
		}
		p.State = to
		return nil
	})
}

// change is the only code that changes a partner. The event shares its
// transaction.
func (ps *Partners) change(ctx context.Context, name, action, reason string, edit func(*Partner) error) (p *Partner, err error) {
	err = ps.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		a, err := ps.lock(ctx, tx, name)
		if err != nil {
			return err
		}
		state := a.State
		if err := edit(a); err != nil {
			return err
		}
		if a.State != state {
			a.Since, a.Reason = tx.Now, reason
		}
		if err := ps.write(ctx, tx, a); err != nil {
			return err
		}
		var detail map[string]any
		if action == "update" {
			detail = a.detail()
		}
		p = a
		if err := ps.changes.tell(ctx, tx, a.Name, ""); err != nil {
			return err
		}
		return ps.record(ctx, tx, a, action, reason, detail)
	})
	if err != nil {
		return nil, fmt.Errorf("%s partner %q: %w", action, clip(name), err)
	}
	return p, nil
}

// lock reads a partner for a decision that must stay right until the transaction
// ends: others who lock it wait. A row that was tampered with is a denial.
func (ps *Partners) lock(ctx context.Context, tx *store.Tx, name string) (*Partner, error) {
	res, err := tx.Exec(ctx, `UPDATE partners SET version = version WHERE name = $1`, name)
	if err != nil {
		return nil, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		if err == nil {
			err = partnerNotFound(name)
		}
		return nil, err
	}
	// A statement of its own: one that had waited for the lock would not see what
	// the other committed meanwhile.
	p, err := ps.peppers.readPartner(ctx, tx, name)
	if err != nil {
		return nil, err
	}
	return p, p.genuine()
}

// lockActive is lock for whoever makes something of the partner's.
func (ps *Partners) lockActive(ctx context.Context, tx *store.Tx, name string) (*Partner, error) {
	p, err := ps.lock(ctx, tx, name)
	if err == nil && p.State != Active {
		err = fault.New(fault.ErrTransition, "partner_suspended", "partner %q is %s since %s: resume it first", p.Name, p.State, p.Since.Format(time.RFC3339))
	}
	return p, err
}

func (p *Partner) json() (texts [4]string, err error) {
	for i, x := range []any{p.Scopes, p.PublishableScopes, p.Signing, p.Metadata} {
		b, err := json.Marshal(x)
		if err != nil {
			return texts, fmt.Errorf("encode partner %s: %w", p.Name, err)
		}
		texts[i] = string(b)
	}
	return texts, nil
}

func (ps *Partners) insert(ctx context.Context, tx *store.Tx, p *Partner) error {
	j, err := p.json()
	if err != nil {
		return err
	}
	p.seal = p.sealed256(ps.peppers.sealKey)
	_, err = tx.Exec(ctx, `INSERT INTO partners (`+partnerColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		p.Name, p.State, p.Reason, j[0], j[1], p.MaxKeys, p.MaxKeyTTL.Microseconds(), j[2], j[3], store.Micros(p.CreatedAt), store.Micros(p.Since), p.Version, p.seal)
	if store.IsUnique(err, "partners_pkey", "partners.name") {
		return fault.New(fault.ErrExists, "partner_exists", "there is a partner of this name").On("name")
	}
	return err
}

func (ps *Partners) write(ctx context.Context, tx *store.Tx, p *Partner) error {
	j, err := p.json()
	if err != nil {
		return err
	}
	seen := p.Version
	p.Version++
	p.seal = p.sealed256(ps.peppers.sealKey)
	return tx.Swap(ctx, `UPDATE partners SET state = $1, reason = $2, scopes = $3, publishable_scopes = $4, max_keys = $5, max_key_ttl = $6,
			signing_policy = $7, metadata = $8, since = $9, version = $10, seal = $11 WHERE name = $12 AND version = $13`,
		p.State, p.Reason, j[0], j[1], p.MaxKeys, p.MaxKeyTTL.Microseconds(), j[2], j[3], store.Micros(p.Since), p.Version, p.seal, p.Name, seen)
}

func (ps *Partners) record(ctx context.Context, tx *store.Tx, p *Partner, action, reason string, detail map[string]any) error {
	return audit.Record(ctx, tx, audit.Event{Action: "partner." + action, Resource: p.Resource(), Partner: p.Name, Reason: reason, Detail: detail})
}

// detail is what an event says of a partner. Metadata is left out: it is not for
// the trail, which can't forget.
func (p *Partner) detail() map[string]any {
	d := map[string]any{"max_keys": p.MaxKeys, "version": p.Version}
	put(d, "scopes", p.Scopes)
	put(d, "publishable_scopes", p.PublishableScopes)
	put(d, "signing_components", p.Signing.Components)
	if p.MaxKeyTTL > 0 {
		d["max_key_ttl"] = p.MaxKeyTTL.String()
	}
	if p.Signing.MaxAge > 0 {
		d["signing_max_age"] = p.Signing.MaxAge.String()
	}
	if p.Signing.Skew > 0 {
		d["signing_skew"] = p.Signing.Skew.String()
	}
	if p.Signing.Tag != "" {
		d["signing_tag"] = p.Signing.Tag
	}
	return d
}

// put writes a list into an event's detail; a list too long for it as its length
// and the SHA-256 of its lines.
func put(d map[string]any, name string, list []string) {
	const most = 4096 // bytes; events have room for 16 KiB
	if len(list) == 0 {
		return
	}
	text := strings.Join(list, "\n")
	if len(text) <= most {
		d[name] = list
		return
	}
	sum := sha256.Sum256([]byte(text))
	d[name+"_count"], d[name+"_sha256"] = len(list), hex.EncodeToString(sum[:])
}

package apikeys

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	defaultEnv  = "live"
	maxVersions = 100
)

// Keys keeps API keys and request secrets. A partner that is named limits a method
// to that partner's keys: those of others are not found. Its methods may be called
// from many goroutines, but Pass from one.
type Keys struct {
	db       *store.DB
	peppers  *Peppers
	partners *Partners
	sealer   *secret.Sealer
	brand    string

	jump jump // only Pass uses it
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
func NewKeys(cfg KeysConfig) (*Keys, error) {
	if cfg.Brand == "" {
		cfg.Brand = brand
	}
	if !checkBrand(cfg.Brand) {
		return nil, fault.Invalid("brand", "bad_brand", "the brand %q of key strings is not 2 to 12 lower-case letters", clip(cfg.Brand))
	}
	return &Keys{db: cfg.DB, peppers: cfg.Peppers, partners: cfg.Partners, sealer: cfg.Sealer, brand: cfg.Brand}, nil
}

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

// draft checks all of a spec that needs no partner, and makes a key of it that
// has no value yet.
func (ks *Keys) draft(kind Kind, spec KeySpec) (*Key, error) {
	k := &Key{
		ID: ks.peppers.newID(), Kind: kind, Partner: spec.Partner, Environment: spec.Environment, Class: spec.Class, Stored: Active,
		Origin: OriginRotunda, Version: 1,
	}
	k.Lineage = k.ID
	if k.Environment == "" {
		k.Environment = defaultEnv
	}
	if k.Class == "" {
		k.Class = ClassSecret
	}
	if !isSlug(k.Partner) {
		return nil, fault.Invalid("partner", "bad_name", "name the partner that the key is for: 1 to 63 lower-case letters, digits and hyphens")
	}
	if !checkEnvironment(k.Environment) {
		return nil, fault.Invalid("environment", "bad_environment", "environment %q is not 1 to %d lower-case letters and digits, or is the name of a role", clip(k.Environment), maxEnv)
	}
	if k.Class != ClassSecret && (k.Class != ClassPublishable || kind != APIKey) {
		return nil, fault.Invalid("class", "bad_class", "the class is %s, or for an API key %s", ClassSecret, ClassPublishable)
	}
	if kind == RequestSecret && !isSlug(spec.Name) {
		return nil, fault.Invalid("name", "bad_name", "the name of a request secret is 1 to 63 lower-case letters, digits and hyphens, and no hyphen first")
	}
	return k, k.take(spec)
}

// take sets what may change of a key at any time.
func (k *Key) take(spec KeySpec) error {
	if k.Kind == APIKey {
		if err := checkName(spec.Name); err != nil {
			return err
		}
	}
	if err := checkScopes("scopes", spec.Scopes, maxKeyScopes); err != nil {
		return err
	}
	ranges, err := parseRanges(spec.CIDRs)
	if err != nil {
		return err
	}
	if err := checkRate(spec.Rate); err != nil {
		return err
	}
	if err := checkMetadata(spec.Metadata); err != nil {
		return err
	}
	k.Name, k.Scopes, k.CIDRs, k.Rate = spec.Name, append([]string{}, spec.Scopes...), ranges, spec.Rate
	k.Metadata = map[string]string{}
	for name, v := range spec.Metadata {
		k.Metadata[name] = v
	}
	return nil
}

// allow fails unless a key's scopes are among those that its partner has for it.
func (p *Partner) allow(k *Key) error {
	if k.Class == ClassPublishable {
		return within("scopes", k.Scopes, p.PublishableScopes, "the publishable scopes of partner "+p.Name)
	}
	return within("scopes", k.Scopes, p.Scopes, "the scopes of partner "+p.Name)
}

// room fails when a partner has as many keys as it may. Keys that were rolled
// don't count, so that a roll never needs room; nor do those that have expired. The
// partner is locked, or two replicas would both find the last place.
func (ks *Keys) room(ctx context.Context, tx *store.Tx, p *Partner) (left int, err error) {
	var n int
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM partner_keys WHERE partner = $1 AND state IN ('active', 'suspended') AND grace_ends_at = 0 AND (expires_at = 0 OR expires_at > $2)`,
		p.Name, store.Micros(tx.Now)).Scan(&n)
	if err == nil && n >= p.MaxKeys {
		err = fault.New(fault.ErrLimited, "max_keys", "partner %q has %d keys and secrets, and may have %d: revoke those that nobody needs, or raise its max_keys", p.Name, n, p.MaxKeys)
	}
	return max(0, p.MaxKeys-n), err
}

// Create makes an API key, or the first version of a request secret under a name.
func (ks *Keys) Create(ctx context.Context, kind Kind, spec KeySpec) (New, error) {
	made, err := ks.create(ctx, kind, spec)
	if err != nil {
		return New{}, fmt.Errorf("create %s: %w", kind.words(), err)
	}
	return made, nil
}

func (ks *Keys) create(ctx context.Context, kind Kind, spec KeySpec) (New, error) {
	k, err := ks.draft(kind, spec)
	if err != nil {
		return New{}, err
	}
	v, err := ks.fill(ctx, k, spec.PublicKey)
	if err != nil {
		return New{}, err
	}
	made := New{Key: k, Value: v}
	err = ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		k := *k // Update may call this more than once
		p, err := ks.partners.lockActive(ctx, tx, k.Partner)
		if err != nil {
			return err
		}
		prior, err := ks.once(ctx, tx, spec.Once, &k)
		if err != nil || prior != nil {
			made.Key = prior
			return err
		}
		if k.ExpiresAt, err = p.lifeOf(spec.ExpiresIn, tx.Now); err != nil {
			return err
		}
		if err := p.allow(&k); err != nil {
			return err
		}
		if kind == RequestSecret {
			if err := ks.freeName(ctx, tx, k.Partner, k.Name); err != nil {
				return err
			}
		}
		if _, err := ks.room(ctx, tx, p); err != nil {
			return err
		}
		made.Key = &k
		return ks.add(ctx, tx, &k)
	})
	if err != nil {
		v.Destroy()
		return New{}, err
	}
	return made, nil
}

// once spends an idempotency key. A key that an earlier request made is returned
// when it has no value; else it is an error: the value is nowhere any more.
func (ks *Keys) once(ctx context.Context, tx *store.Tx, o store.Once, k *Key) (*Key, error) {
	prior, err := tx.Once(ctx, o, k.ID)
	if err != nil || prior == "" {
		return nil, err
	}
	if k.PublicKey == "" {
		return nil, fault.New(fault.ErrExists, "value_shown_once", "an earlier request with this idempotency key made %s %s, whose value is shown once: if it was lost, revoke it and create another", k.Kind.words(), prior).On("idempotency_key")
	}
	return ks.readKey(ctx, tx, k.Kind, k.Partner, prior)
}

// add writes a new key and its event.
func (ks *Keys) add(ctx context.Context, tx *store.Tx, k *Key) error {
	k.CreatedAt, k.Since = tx.Now, tx.Now
	k.NextAt = nextAt(k, tx.Now)
	if k.PepperGen != 0 {
		if err := ks.peppers.check(ctx, tx, k.PepperGen); err != nil {
			return err
		}
	}
	if err := ks.insertKey(ctx, tx, k); err != nil {
		return err
	}
	action := ".create"
	if k.Origin != OriginRotunda {
		action = ".import"
	}
	return audit.Record(ctx, tx, audit.Event{Action: string(k.Kind) + action, Resource: k.Resource(), Partner: k.Partner, Detail: k.detail()})
}

// detail is what an event says of a key. Metadata is left out: it is not for the
// trail, which can't forget.
func (k *Key) detail() map[string]any {
	d := map[string]any{"name": k.Name, "environment": k.Environment, "version": k.Version}
	if k.Kind == APIKey {
		d["class"] = string(k.Class)
	} else {
		d["algorithm"] = string(k.Algorithm)
	}
	put(d, "scopes", k.Scopes)
	ranges := make([]string, len(k.CIDRs))
	for i, p := range k.CIDRs {
		ranges[i] = p.String()
	}
	put(d, "cidrs", ranges)
	if !k.Rate.None() {
		d["rate"] = fmt.Sprintf("%d/%s burst %d", k.Rate.Quota, k.Rate.Window, k.Rate.Burst)
	}
	if !k.ExpiresAt.IsZero() {
		d["expires_at"] = k.ExpiresAt.Format(time.RFC3339)
	}
	if k.Replaces != "" {
		d["replaces"] = k.Replaces
	}
	if k.Origin != OriginRotunda {
		d["origin"], d["weak"] = k.Origin, k.Weak
	}
	return d
}

// Get returns a key of a partner, or fault.ErrNotFound. partner "" is any.
func (ks *Keys) Get(ctx context.Context, kind Kind, partner, id string) (k *Key, err error) {
	err = ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		k, err = ks.readKey(ctx, tx, kind, partner, id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", kind.words(), err)
	}
	return k, nil
}

// Versions returns the versions of a request secret, newest first (at most 100); fault.ErrNotFound when there is none.
func (ks *Keys) Versions(ctx context.Context, partner, name string) (list []*Key, err error) {
	err = ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		list, err = ks.versions(ctx, tx, partner, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read request secret: %w", err)
	}
	return list, nil
}

func (ks *Keys) versions(ctx context.Context, tx *store.Tx, partner, name string) ([]*Key, error) {
	list, err := ks.collect(ctx, tx, `SELECT `+keyColumns+` FROM partner_keys
		WHERE partner = $1 AND name = $2 AND kind = 'request_secret' ORDER BY created_at DESC, grace_ends_at, id LIMIT $3`, partner, name, maxVersions)
	if err == nil && len(list) == 0 {
		err = fault.New(fault.ErrNotFound, "request_secret_not_found", "request secret %q does not exist: see `rotunda secret list`", clip(name)).On("name")
	}
	return list, err
}

// freeName fails when a version under the name was neither rolled nor ended. One
// that has expired is retired to make room: it never comes back.
func (ks *Keys) freeName(ctx context.Context, tx *store.Tx, partner, name string) error {
	list, err := ks.collect(ctx, tx, `SELECT `+keyColumns+` FROM partner_keys
		WHERE partner = $1 AND name = $2 AND kind = 'request_secret' AND state IN ('active', 'suspended') AND grace_ends_at = 0`, partner, name)
	if err != nil {
		return err
	}
	for _, k := range list {
		if err := k.genuine(); err != nil {
			return err
		}
		if k.State(tx.Now) != Expired {
			return nameTaken(name)
		}
		if _, err := ks.move(ctx, tx, k, Retired, step{action: "retire", reason: "expired"}); err != nil {
			return err
		}
	}
	return nil
}

func (ks *Keys) collect(ctx context.Context, tx *store.Tx, query string, args ...any) (list []*Key, err error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		k, err := ks.peppers.scanKey(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, k)
	}
	return list, rows.Err()
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
	from, err := parsePage(q.Page)
	if err != nil {
		return nil, "", fmt.Errorf("list keys: %w", err)
	}
	err = ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		// "created_at <= $2" by itself is what PostgreSQL begins to read an index at.
		const after = ` AND created_at <= $2 AND (created_at < $2 OR id > $3) AND ($4 OR state IN ('active', 'retiring', 'suspended'))`
		const order = ` ORDER BY created_at DESC, id LIMIT `
		if q.Partner == "" {
			keys, err = ks.collect(ctx, tx, `SELECT `+keyColumns+` FROM partner_keys WHERE kind = $1`+after+order+`$5`, q.Kind, from.at, from.id, q.Ended, q.Limit+1)
		} else {
			keys, err = ks.collect(ctx, tx, `SELECT `+keyColumns+` FROM partner_keys WHERE kind = $1`+after+` AND partner = $5`+order+`$6`, q.Kind, from.at, from.id, q.Ended, q.Partner, q.Limit+1)
		}
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list keys: %w", err)
	}
	if len(keys) > q.Limit {
		keys = keys[:q.Limit]
		last := keys[q.Limit-1]
		next = page{store.Micros(last.CreatedAt), last.ID}.String()
	}
	return keys, next, nil
}

// Update replaces the name, scopes, CIDRs, rate and metadata of an API key, if it
// still has the version. The rest of spec is not looked at, but for the partner.
func (ks *Keys) Update(ctx context.Context, id string, version int64, spec KeySpec) (k *Key, err error) {
	err = ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		old, err := ks.readKey(ctx, tx, APIKey, spec.Partner, id)
		if err != nil {
			return err
		}
		p, err := ks.partners.lock(ctx, tx, old.Partner)
		if err != nil {
			return err
		}
		if err := old.genuine(); err != nil {
			return err
		}
		if old.Version != version {
			return fault.New(fault.ErrChanged, "version_changed", "it has version %d, not %d: read it again", old.Version, version)
		}
		if state := old.State(tx.Now); !slices.Contains([]State{Active, Retiring, Suspended}, state) {
			return over(old, state, "changed")
		}
		changed := *old
		if err := changed.take(spec); err != nil {
			return err
		}
		if err := p.allow(&changed); err != nil {
			return err
		}
		if err := ks.writeKey(ctx, tx, &changed); err != nil {
			return err
		}
		k = &changed
		if err := ks.partners.changes.tell(ctx, tx, k.Partner, k.ID); err != nil {
			return err
		}
		return audit.Record(ctx, tx, audit.Event{Action: "api_key.update", Resource: k.Resource(), Partner: k.Partner, Detail: k.detail()})
	})
	if err != nil {
		return nil, fmt.Errorf("update API key: %w", err)
	}
	return k, nil
}

package jwks

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// Config is what Keysets needs.
type Config struct {
	DB    *store.DB
	Local *Local
	Homes map[string]Home // further homes, by the names that policies and rows have for them
	Log   *slog.Logger    // nil: nowhere
	Usage *audit.Usage    // told how many tokens each key signed; nil: nobody is
}

// Keysets keeps all signing keys. Its methods may be called from many goroutines.
type Keysets struct {
	db       *store.DB
	local    *Local
	homes    map[string]Home
	log      *slog.Logger
	view     *view
	usage    usage
	evidence *audit.Usage
	seal     atomic.Pointer[rowSeal]

	// When Pass last did what it does less often, and what it knows of the
	// clocks; only Pass uses them.
	servedAt, flushedAt, prunedAt time.Time
	passAt                        time.Time
	passTick, heldUntil           time.Duration
}

// New returns the keysets of a database. Load must be called before the first
// document is served or token signed.
func New(cfg Config) *Keysets {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ks := &Keysets{
		db: cfg.DB, local: cfg.Local, homes: map[string]Home{}, log: cfg.Log,
		view: newView(), evidence: cfg.Usage,
	}
	maps.Copy(ks.homes, cfg.Homes)
	ks.homes[LocalHome] = cfg.Local
	cfg.Usage.Source(ks.gatherUsage)
	return ks
}

// home is where new keys of a keyset are made.
func (ks *Keysets) home(p Policy) (string, Home, error) {
	name := cmp.Or(p.Home, LocalHome)
	h, ok := ks.homes[name]
	if !ok {
		return name, nil, fault.Invalid("policy.home", "home_unknown", "home %q is not configured here: there are %q", clip(name), slices.Sorted(maps.Keys(ks.homes)))
	}
	return name, h, nil
}

// ready reports whether make would return at once.
func (ks *Keysets) ready(set *Keyset) bool {
	_, h, err := ks.home(set.Policy)
	return err == nil && h.Ready(set.Algorithm)
}

// make creates a key pair at the home of a keyset's new keys, outside any
// transaction. but is a kid that was made just now, and is not committed.
func (ks *Keysets) make(ctx context.Context, set *Keyset, but ...string) (*Made, error) {
	name, home, err := ks.home(set.Policy)
	if err != nil {
		return nil, err
	}
	taken := but
	if name != LocalHome { // it never hands out a key twice
		kids, err := ks.kids(ctx, set.ID)
		if err != nil {
			return nil, err
		}
		taken = append(kids, but...)
	}
	m, err := home.Create(ctx, set.ID, set.Algorithm, taken)
	if err != nil {
		return nil, fmt.Errorf("make a key at home %q: %w", name, err)
	}
	m.home = name
	return &m, nil
}

// maxKids is more keys than a keyset gets in a century of weekly rotations.
const maxKids = 10000

// kids are those that a keyset has or had, the newest first.
func (ks *Keysets) kids(ctx context.Context, keysetID string) (kids []string, err error) {
	err = ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		kids = nil
		rows, err := tx.Query(ctx, `SELECT kid FROM signing_keys WHERE keyset_id = $1 ORDER BY created_at DESC LIMIT $2`, keysetID, maxKids)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var kid string
			if err := rows.Scan(&kid); err != nil {
				return err
			}
			kids = append(kids, kid)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list the keys that a keyset has or had: %w", err)
	}
	return kids, nil
}

// Create describes a keyset to be made.
type Create struct {
	Name      string
	Issuer    string
	Algorithm string // "" is ES256
	Policy    Policy
	DryRun    bool
	Once      store.Once
}

// Create makes a keyset with an active key and a published standby. The first
// key signs at once: nobody can hold an older document of a new keyset.
func (ks *Keysets) Create(ctx context.Context, req Create) (*Keyset, error) {
	if err := checkName(req.Name); err != nil {
		return nil, fmt.Errorf("create keyset: %w", err)
	}
	alg, err := ParseAlgorithm(req.Algorithm)
	if err == nil {
		err = checkIssuer(req.Issuer)
	}
	if err != nil {
		return nil, fmt.Errorf("create keyset %q: %w", req.Name, err)
	}
	if _, err := req.Policy.Check(alg); err != nil {
		return nil, fmt.Errorf("create keyset %q: %w", req.Name, err)
	}
	if _, _, err := ks.home(req.Policy); err != nil {
		return nil, fmt.Errorf("create keyset %q: %w", req.Name, err)
	}
	policy, err := json.Marshal(req.Policy)
	if err != nil {
		return nil, fmt.Errorf("create keyset %q: encode its policy: %w", req.Name, err)
	}

	// Both keys are made before the transaction, which so stays short; the id
	// that binds them to their keyset comes from a transaction of its own.
	var id string
	var taken bool
	err = ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		id = tx.ID()
		return tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM keysets WHERE name = $1)`, req.Name).Scan(&taken)
	})
	if err != nil {
		return nil, fmt.Errorf("create keyset %q: %w", req.Name, err)
	}
	set := &Keyset{ID: id, Name: req.Name, Issuer: req.Issuer, Algorithm: alg, Policy: req.Policy, PolicyVersion: 1}
	if req.DryRun {
		if taken {
			return nil, nameTaken(req.Name)
		}
		return set, nil
	}
	var keys [2]*Made
	if !taken { // else only an idempotent repetition can succeed, and it makes nothing
		var first []string
		for i := range keys {
			if keys[i], err = ks.make(ctx, set, first...); err != nil {
				return nil, fmt.Errorf("create keyset %q: %w", req.Name, err)
			}
			first = []string{keys[i].Kid}
		}
	}

	var prior string
	err = ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		var err error
		if prior, err = tx.Once(ctx, req.Once, req.Name); err != nil || prior != "" {
			return err
		}
		if taken {
			return nameTaken(req.Name)
		}
		c := &change{tx: tx, set: set}
		set.CreatedAt, set.Keys, set.Version = tx.Now, nil, 0
		if c.seal, err = ks.makeSeal(ctx, tx); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO keysets (`+keysetColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
			set.ID, set.Name, set.Issuer, set.Algorithm, string(policy), set.PolicyVersion, set.Version, store.Micros(set.CreatedAt), 0, 0, 0, "{}", []byte{}) // end writes its members and seal
		if store.IsUnique(err, "keysets.name", "keysets_name_key") {
			return nameTaken(req.Name)
		}
		if err != nil {
			return err
		}
		err = audit.Record(ctx, tx, audit.Event{Action: "keyset.create", Resource: set.resource(""),
			Detail: map[string]any{"issuer": set.Issuer, "algorithm": string(alg), "policy": set.Policy}})
		if err != nil {
			return err
		}
		for i, to := range []State{Active, Pending} {
			if err := c.move(ctx, c.born(*keys[i], Generated), to); err != nil {
				return err
			}
		}
		return c.end(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("create keyset %q: %w", req.Name, err)
	}
	if prior != "" {
		return ks.Get(ctx, prior)
	}
	ks.refreshAfterChange(ctx)
	return set.forDisplay(), nil
}

func nameTaken(name string) error {
	return fault.New(fault.ErrExists, "name_taken", "keyset %q exists already: choose another name (names are never reused)", name).On("name")
}

// Get returns a keyset with its published keys.
func (ks *Keysets) Get(ctx context.Context, name string) (*Keyset, error) {
	var set *Keyset
	err := ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		set, err = ks.load(ctx, tx, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return set.forDisplay(), nil
}

// List returns up to limit keysets in order of name, and the name to continue
// after, "" on the last page.
func (ks *Keysets) List(ctx context.Context, after string, limit int) (sets []*Keyset, next string, err error) {
	err = ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		sets, err = ks.querySets(ctx, tx, `SELECT `+keysetColumns+` FROM keysets WHERE name > $1 ORDER BY name LIMIT $2`, after, limit+1)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list keysets: %w", err)
	}
	if len(sets) > limit {
		sets = sets[:limit]
		next = sets[limit-1].Name
	}
	return sets, next, nil
}

// querySets reads keysets and their published keys.
func (ks *Keysets) querySets(ctx context.Context, tx *store.Tx, query string, args ...any) ([]*Keyset, error) {
	seal, err := ks.readSeal(ctx, tx)
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var sets []*Keyset
	for rows.Next() {
		s, err := scanKeyset(rows, seal)
		if errors.Is(err, fault.ErrRejected) {
			s.Foreign = true
		} else if err != nil {
			return nil, err
		}
		sets = append(sets, s)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	for _, s := range sets {
		if s.Foreign {
			continue
		}
		if err := s.loadKeys(ctx, tx, seal); errors.Is(err, fault.ErrUnavailable) || ctx.Err() != nil {
			return nil, err
		} else if err != nil {
			s.Foreign = true // a row that can't be read was not written by Rotunda
		}
		s.forDisplay()
	}
	return sets, nil
}

// History returns up to limit withdrawn keys of a keyset, newest first, and
// the page to continue at, "" on the last one.
func (ks *Keysets) History(ctx context.Context, name, page string, limit int) (keys []Key, next string, err error) {
	before, beforeKid := int64(1<<63-1), ""
	if page != "" {
		raw, _ := base64.RawURLEncoding.DecodeString(page) // what it can't read is no number either
		at, kid, ok := strings.Cut(string(raw), " ")
		if before, err = strconv.ParseInt(at, 10, 64); err != nil || !ok || checkKid(kid) != nil {
			return nil, "", fault.Invalid("page_token", "bad_page_token", "list history: the page token is not one that Rotunda gave: start from the first page")
		}
		beforeKid = kid
	}
	err = ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		set, err := ks.load(ctx, tx, name)
		if err != nil {
			return err
		}
		keys, err = queryKeys(ctx, tx, `SELECT `+keyColumns+` FROM signing_keys
			WHERE keyset_id = $1 AND state IN ('retired', 'revoked') AND (withdrawn_at < $2 OR withdrawn_at = $2 AND kid > $3)
			ORDER BY withdrawn_at DESC, kid LIMIT $4`, set.ID, before, beforeKid, limit+1)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list the history of keyset %q: %w", clip(name), err)
	}
	if len(keys) > limit {
		keys = keys[:limit]
		last := keys[limit-1]
		next = base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(store.Micros(last.WithdrawnAt), 10) + " " + last.Kid))
	}
	return keys, next, nil
}

// UpdatePolicy describes a change of a keyset's policy.
type UpdatePolicy struct {
	Name    string
	Policy  Policy
	Version int64 // the PolicyVersion that was read; 0 overwrites any
	DryRun  bool
}

// UpdatePolicy replaces a keyset's policy, or with DryRun returns the keyset
// as it would be. A longer lead holds for the present standby too; a token
// life is never counted shorter than one that was issued.
func (ks *Keysets) UpdatePolicy(ctx context.Context, req UpdatePolicy) (*Keyset, error) {
	var set *Keyset
	var seal rowSeal
	work := func(ctx context.Context, tx *store.Tx) (err error) {
		// The row is taken before its version is compared: of two updates that
		// read the same version only one goes on.
		if req.DryRun {
			set, err = ks.load(ctx, tx, req.Name)
		} else {
			var c *change
			if c, err = ks.begin(ctx, tx, req.Name); err == nil {
				set, seal = c.set, c.seal
			}
		}
		if err != nil {
			return err
		}
		if req.Version != 0 && req.Version != set.PolicyVersion {
			return fault.New(fault.ErrChanged, "policy_changed", "the policy is at version %d, not %d: read it again, then repeat the change", set.PolicyVersion, req.Version).On("policy_version")
		}
		if _, err = req.Policy.Check(set.Algorithm); err != nil {
			return err
		}
		if _, _, err = ks.home(req.Policy); err != nil {
			return err
		}
		if req.DryRun {
			set.adopt(req.Policy, tx.Now)
			return nil
		}
		old := set.Policy
		set.adopt(req.Policy, tx.Now)
		was := set.PolicyVersion
		set.PolicyVersion++
		policy, _, sealed, err := seal.sealed(set)
		if err != nil {
			return err
		}
		err = tx.Swap(ctx, `UPDATE keysets SET policy = $1, policy_version = $2, next_at = $3, lead_until = $4, seal = $5 WHERE id = $6 AND policy_version = $7`,
			policy, set.PolicyVersion, store.Micros(set.NextAt), store.Micros(set.LeadUntil), sealed, set.ID, was)
		if err != nil {
			return err
		}
		return audit.Record(ctx, tx, audit.Event{Action: "keyset.update_policy", Resource: set.resource(""),
			Detail: map[string]any{"from": old, "to": req.Policy, "policy_version": set.PolicyVersion}})
	}
	var err error
	if req.DryRun {
		err = ks.db.View(ctx, work)
	} else {
		err = ks.db.Update(ctx, work)
	}
	if err != nil {
		return nil, fmt.Errorf("update the policy of keyset %q: %w", clip(req.Name), err)
	}
	if !req.DryRun {
		ks.refreshAfterChange(ctx)
	}
	return set.forDisplay(), nil
}

// refreshAfterChange makes a committed change visible in this process. If it
// can't now, the next pass does.
func (ks *Keysets) refreshAfterChange(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := ks.Refresh(ctx); err != nil && !errors.Is(err, context.Canceled) {
		ks.log.LogAttrs(ctx, slog.LevelWarn, "a committed change is served late", slog.Any("error", err))
	}
}

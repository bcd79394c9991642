package rotation

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const credentialColumns = `name, target, spec, state, reason, generation, current, next_at, due_at, rotated_at,
	drift, drift_note, drift_since, probe_at, probed_at, created_at, since, version, seal`

// parts are the parts of a credential's row that its seal covers: all of them.
func (c *Credential) parts(spec string) []any {
	return []any{
		c.Name, c.Target, spec, string(c.State), c.Reason, c.Generation, c.Current, c.NextAt, c.DueAt, c.RotatedAt,
		string(c.Drift), c.DriftNote, c.DriftSince, c.ProbeAt, c.ProbedAt, c.CreatedAt, c.Since, c.Version,
	}
}

// Tampered reports whether the row is not as Rotunda wrote it. Such a credential can be looked at,
// and is used for nothing.
func (c *Credential) Tampered() bool { return c.tampered }

func (s *Systems) scanCredential(row interface{ Scan(...any) error }) (*Credential, error) {
	var c Credential
	var target, spec string
	var next, due, rotated, driftSince, probe, probed, created, since int64
	var seal []byte
	err := row.Scan(&c.Name, &target, &spec, &c.State, &c.Reason, &c.Generation, &c.Current, &next, &due, &rotated,
		&c.Drift, &c.DriftNote, &driftSince, &probe, &probed, &created, &since, &c.Version, &seal)
	if err != nil {
		return nil, err
	}
	good := json.Unmarshal([]byte(spec), &c.Spec) == nil && c.Target == target
	c.NextAt, c.DueAt, c.RotatedAt = store.Time(next), store.Time(due), store.Time(rotated)
	c.DriftSince, c.ProbeAt, c.ProbedAt = store.Time(driftSince), store.Time(probe), store.Time(probed)
	c.CreatedAt, c.Since = store.Time(created), store.Time(since)
	c.tampered = !good || !genuineRow(s.key, seal, "credentials", c.parts(spec)...)
	return &c, nil
}

// seeCredential reads a credential's row, also one that was tampered with.
func (s *Systems) seeCredential(ctx context.Context, tx *store.Tx, name string) (*Credential, error) {
	c, err := s.scanCredential(tx.QueryRow(ctx, `SELECT `+credentialColumns+` FROM credentials WHERE name = $1`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.ErrNotFound, "credential_not_found", "there is no credential %q: see `rotunda credential list`", clip(name)).On("credential")
	}
	return c, err
}

// readCredential reads a credential, or fails with fault.ErrNotFound, or fault.ErrDenied when its
// row was tampered with.
func (s *Systems) readCredential(ctx context.Context, tx *store.Tx, name string) (*Credential, error) {
	c, err := s.seeCredential(ctx, tx, name)
	if err != nil {
		return nil, err
	}
	if c.tampered {
		return nil, errTampered("credential", c.Name)
	}
	return c, nil
}

// lockCredential is readCredential for a decision that must stay right until the transaction ends:
// others who lock it wait.
func (s *Systems) lockCredential(ctx context.Context, tx *store.Tx, name string) (*Credential, error) {
	if _, err := tx.Exec(ctx, `UPDATE credentials SET version = version WHERE name = $1`, name); err != nil {
		return nil, err
	}
	// A statement of its own: one that had waited for the lock would not see what the other
	// committed meanwhile.
	return s.readCredential(ctx, tx, name)
}

func (s *Systems) insertCredential(ctx context.Context, tx *store.Tx, c *Credential) error {
	spec, err := json.Marshal(c.Spec)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO credentials (`+credentialColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)`,
		c.Name, c.Target, string(spec), c.State, c.Reason, c.Generation, c.Current, store.Micros(c.NextAt), store.Micros(c.DueAt), store.Micros(c.RotatedAt),
		c.Drift, c.DriftNote, store.Micros(c.DriftSince), store.Micros(c.ProbeAt), store.Micros(c.ProbedAt), store.Micros(c.CreatedAt), store.Micros(c.Since), c.Version,
		sealRow(s.key, "credentials", c.parts(string(spec))...))
	if store.IsUnique(err, "credentials_pkey", "credentials.name") {
		return fault.New(fault.ErrExists, "credential_exists", "there is a credential of this name").On("name")
	}
	return err
}

// writeCredential writes all of a row, if it still has the version that c has; c gets the next one.
func (s *Systems) writeCredential(ctx context.Context, tx *store.Tx, c *Credential) error {
	c.settle(tx.Now)
	spec, err := json.Marshal(c.Spec)
	if err != nil {
		return err
	}
	seen := c.Version
	c.Version++
	return tx.Swap(ctx, `UPDATE credentials SET target = $1, spec = $2, state = $3, reason = $4, generation = $5, current = $6, next_at = $7, due_at = $8, rotated_at = $9,
			drift = $10, drift_note = $11, drift_since = $12, probe_at = $13, probed_at = $14, since = $15, version = $16, seal = $17
		WHERE name = $18 AND version = $19`,
		c.Target, string(spec), c.State, c.Reason, c.Generation, c.Current, store.Micros(c.NextAt), store.Micros(c.DueAt), store.Micros(c.RotatedAt),
		c.Drift, c.DriftNote, store.Micros(c.DriftSince), store.Micros(c.ProbeAt), store.Micros(c.ProbedAt), store.Micros(c.Since), c.Version,
		sealRow(s.key, "credentials", c.parts(string(spec))...), c.Name, seen)
}

// Placed is a placement and what we last put there.
type Placed struct {
	Placement
	Version    string // the store's own name of it; empty: nothing of ours yet
	Generation int64
}

func placedParts(credential string, p Placed) []any {
	return []any{credential, p.Store, p.Path, p.Version, p.Generation}
}

// readPlacements returns what we last put where, in the order of publication.
func (s *Systems) readPlacements(ctx context.Context, tx *store.Tx, c *Credential) ([]Placed, error) {
	rows, err := tx.Query(ctx, `SELECT store, path, version, generation, seal FROM credential_stores WHERE credential = $1`, c.Name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	there := map[Placement]Placed{}
	for rows.Next() {
		var p Placed
		var seal []byte
		if err := rows.Scan(&p.Store, &p.Path, &p.Version, &p.Generation, &seal); err != nil {
			return nil, err
		}
		if !genuineRow(s.key, seal, "credential_stores", placedParts(c.Name, p)...) {
			return nil, errTampered("a store of credential", c.Name)
		}
		there[p.Placement] = p
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	list := make([]Placed, 0, len(c.Stores))
	for _, at := range c.Stores {
		p, ok := there[at]
		if !ok { // it has a row from its creation on
			return nil, errTampered("a store of credential", c.Name)
		}
		list = append(list, p)
	}
	return list, nil
}

// writePlacement records what we put where, into a row that is there.
func (s *Systems) writePlacement(ctx context.Context, tx *store.Tx, credential string, p Placed) error {
	return tx.Swap(ctx, `UPDATE credential_stores SET version = $1, generation = $2, seal = $3 WHERE credential = $4 AND store = $5 AND path = $6`,
		p.Version, p.Generation, sealRow(s.key, "credential_stores", placedParts(credential, p)...), credential, p.Store, p.Path)
}

// setPlacements makes the rows of a credential's stores be those of its spec. What we put where
// stays known of those that stay.
func (s *Systems) setPlacements(ctx context.Context, tx *store.Tx, c *Credential, old []Placement) error {
	for _, p := range old {
		if !slices.Contains(c.Stores, p) {
			if _, err := tx.Exec(ctx, `DELETE FROM credential_stores WHERE credential = $1 AND store = $2 AND path = $3`, c.Name, p.Store, p.Path); err != nil {
				return err
			}
		}
	}
	for _, p := range c.Stores {
		if slices.Contains(old, p) {
			continue
		}
		var holder string
		err := tx.QueryRow(ctx, `SELECT credential FROM credential_stores WHERE store = $1 AND path = $2`, p.Store, p.Path).Scan(&holder)
		if err == nil {
			return pathTaken(p, holder)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO credential_stores (credential, store, path, version, generation, seal) VALUES ($1, $2, $3, '', 0, $4)`,
			c.Name, p.Store, p.Path, sealRow(s.key, "credential_stores", placedParts(c.Name, Placed{Placement: p})...))
		if store.IsUnique(err, "credential_stores_path", "credential_stores.store, credential_stores.path") {
			return pathTaken(p, "another one, made at the same time")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func pathTaken(p Placement, holder string) error {
	return fault.New(fault.ErrExists, "path_taken", "credential %q is put at %.200q of store %s already: two would overwrite each other: choose another path", clip(holder), p.Path, p.Store).On("stores")
}

func (s *Systems) setLabels(ctx context.Context, tx *store.Tx, c *Credential, old map[string]string) error {
	if maps.Equal(old, c.Labels) {
		return nil
	}
	if _, err := tx.Exec(ctx, `DELETE FROM credential_labels WHERE credential = $1`, c.Name); err != nil {
		return err
	}
	for _, label := range slices.Sorted(maps.Keys(c.Labels)) {
		if _, err := tx.Exec(ctx, `INSERT INTO credential_labels (label, value, credential) VALUES ($1, $2, $3)`, label, c.Labels[label], c.Name); err != nil {
			return err
		}
	}
	return nil
}

func recordCredential(ctx context.Context, tx *store.Tx, c *Credential, action, reason string, detail map[string]any) error {
	return audit.Record(ctx, tx, audit.Event{Action: "credential." + action, Resource: c.Resource(), Reason: reason, Detail: detail})
}

package rotation

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// systemRow is a system with its sealed login.
type systemRow struct {
	System
	login    []byte
	tampered bool
}

const systemColumns = `sort, name, kind, settings, login, login_credential, created_at, since, version, seal`

func (r *systemRow) parts(settings string) []any {
	return []any{string(r.Sort), r.Name, r.Kind, settings, r.login, r.LoginCredential, r.CreatedAt, r.Since, r.Version}
}

func (s *Systems) scanSystem(row interface{ Scan(...any) error }) (*systemRow, error) {
	var r systemRow
	var settings string
	var created, since int64
	var seal []byte
	if err := row.Scan(&r.Sort, &r.Name, &r.Kind, &settings, &r.login, &r.LoginCredential, &created, &since, &r.Version, &seal); err != nil {
		return nil, err
	}
	r.CreatedAt, r.Since, r.HasLogin = store.Time(created), store.Time(since), r.login != nil
	good := json.Unmarshal([]byte(settings), &r.Settings) == nil
	r.tampered = !good || !genuineRow(s.key, seal, "systems", r.parts(settings)...)
	return &r, nil
}

// readSystem reads a system's row, which must be genuine.
func (s *Systems) readSystem(ctx context.Context, tx *store.Tx, sort Sort, name string) (*systemRow, error) {
	r, err := s.scanSystem(tx.QueryRow(ctx, `SELECT `+systemColumns+` FROM systems WHERE sort = $1 AND name = $2`, sort, name))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.ErrNotFound, string(sort)+"_not_found", "there is no %s %q: see `rotunda %s list`", clip(string(sort)), clip(name), clip(string(sort))).On("name")
	}
	if err != nil {
		return nil, err
	}
	if r.tampered {
		return nil, errTampered(string(r.Sort), r.Name)
	}
	return r, nil
}

// lockSystem reads a system for a decision that must stay right until the transaction ends.
func (s *Systems) lockSystem(ctx context.Context, tx *store.Tx, sort Sort, name string) (*systemRow, error) {
	if _, err := tx.Exec(ctx, `UPDATE systems SET version = version WHERE sort = $1 AND name = $2`, sort, name); err != nil {
		return nil, err
	}
	return s.readSystem(ctx, tx, sort, name)
}

func (s *Systems) insertSystem(ctx context.Context, tx *store.Tx, r *systemRow) error {
	settings, err := json.Marshal(r.Settings)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO systems (`+systemColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		r.Sort, r.Name, r.Kind, string(settings), r.login, r.LoginCredential, store.Micros(r.CreatedAt), store.Micros(r.Since), r.Version,
		sealRow(s.key, "systems", r.parts(string(settings))...))
	if store.IsUnique(err, "systems_pkey", "systems.sort, systems.name") {
		return fault.New(fault.ErrExists, string(r.Sort)+"_exists", "there is a %s of this name", r.Sort).On("name")
	}
	return err
}

func (s *Systems) writeSystem(ctx context.Context, tx *store.Tx, r *systemRow) error {
	settings, err := json.Marshal(r.Settings)
	if err != nil {
		return err
	}
	seen := r.Version
	r.Version++
	return tx.Swap(ctx, `UPDATE systems SET settings = $1, login = $2, login_credential = $3, since = $4, version = $5, seal = $6
			WHERE sort = $7 AND name = $8 AND version = $9`,
		string(settings), r.login, r.LoginCredential, store.Micros(r.Since), r.Version, sealRow(s.key, "systems", r.parts(string(settings))...),
		r.Sort, r.Name, seen)
}

// detail is what an event says of a system: addresses, and no login.
func (r *systemRow) detail() map[string]any {
	d := map[string]any{"kind": r.Kind, "has_login": r.HasLogin, "version": r.Version}
	text, err := json.Marshal(r.Settings)
	if err == nil && len(text) < 8<<10 {
		d["settings"] = r.Settings
	}
	if r.LoginCredential != "" {
		d["login_credential"] = r.LoginCredential
	}
	return d
}

func recordSystem(ctx context.Context, tx *store.Tx, s *System, action string, detail map[string]any) error {
	return audit.Record(ctx, tx, audit.Event{Action: string(s.Sort) + "." + action, Resource: string(s.Sort) + "s/" + s.Name, Detail: detail})
}

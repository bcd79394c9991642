package audit

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// Place is somewhere outside that gets copies: a sink of events, or an anchor of
// checkpoints. What its configuration means is known to the adapter of its kind.
type Place struct {
	Name      string
	Kind      string
	Config    json.RawMessage // without the secret
	HasSecret bool
	CreatedAt time.Time
}

// Places keeps the places of one sort. Make it with NewSinks or NewAnchors.
type Places struct {
	db     *store.DB
	sealer *secret.Sealer
	sort   string // "sink" or "anchor"
	list   string // SQL
	insert string
	remove string
	open   string
}

// TopicPlaces is announced when a place or a witness was added or removed.
const TopicPlaces = "places"

// maxPlaces bounds the places of one sort.
const maxPlaces = 32

// NewSinks keeps the sinks.
func NewSinks(db *store.DB, sealer *secret.Sealer) *Places {
	return &Places{db: db, sealer: sealer, sort: "sink",
		list:   `SELECT name, kind, config, secret IS NOT NULL, created_at FROM sinks ORDER BY name`,
		insert: `INSERT INTO sinks (name, kind, config, secret, created_at) VALUES ($1, $2, $3, $4, $5)`,
		remove: `DELETE FROM sinks WHERE name = $1`,
		open:   `SELECT secret FROM sinks WHERE name = $1`,
	}
}

// NewAnchors keeps the anchors.
func NewAnchors(db *store.DB, sealer *secret.Sealer) *Places {
	return &Places{db: db, sealer: sealer, sort: "anchor",
		list:   `SELECT name, kind, config, secret IS NOT NULL, created_at FROM anchors ORDER BY name`,
		insert: `INSERT INTO anchors (name, kind, config, secret, created_at) VALUES ($1, $2, $3, $4, $5)`,
		remove: `DELETE FROM anchors WHERE name = $1`,
		open:   `SELECT secret FROM anchors WHERE name = $1`,
	}
}

var placeName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// CursorOf is the name of a sink's cursor.
func CursorOf(sink string) string { return "sink/" + sink }

// Create adds a place. A sink begins with the event at index, or with the next
// one for -1. The secret may be zero.
func (p *Places) Create(ctx context.Context, place Place, s secret.Value, index int64) (Place, error) {
	if !placeName.MatchString(place.Name) {
		return place, fault.Invalid("name", "name_malformed", "add %s: the name %q is not 1 to 63 lower-case letters, digits, dots, dashes and underscores", p.sort, clip(place.Name))
	}
	if !json.Valid(place.Config) || len(place.Config) > 64<<10 {
		return place, fault.Invalid("config", "config_malformed", "add %s %s: its configuration is too large", p.sort, place.Name)
	}
	var sealed []byte
	if !s.IsZero() {
		var err error
		if sealed, err = p.sealer.Seal(ctx, secret.Place{Table: p.sort + "s", Row: place.Name, Column: "secret"}, s); err != nil {
			return place, err
		}
	}
	place.HasSecret = sealed != nil
	err := p.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		h, err := readHead(ctx, tx)
		if err != nil {
			return err
		}
		there, err := p.read(ctx, tx)
		if err != nil {
			return err
		}
		if len(there) >= maxPlaces {
			return fault.New(fault.ErrLimited, "too_many", "there are %d %ss already, which is the most: remove one", len(there), p.sort)
		}
		place.CreatedAt = tx.Now
		if _, err := tx.Exec(ctx, p.insert, place.Name, place.Kind, string(place.Config), sealed, store.Micros(tx.Now)); err != nil {
			return err
		}
		if p.sort == "sink" {
			if index < 0 {
				index = h.size
			}
			if index < h.pruned {
				return fault.Invalid("index", "index_pruned", "event %d was pruned: the first that is left is %d", index, h.pruned)
			}
			_, err := tx.Exec(ctx, `INSERT INTO cursors (name, next, updated_at) VALUES ($1, $2, $3)
				ON CONFLICT (name) DO UPDATE SET next = excluded.next, updated_at = excluded.updated_at`, CursorOf(place.Name), index, store.Micros(tx.Now))
			if err != nil {
				return err
			}
		}
		if err := Record(ctx, tx, Event{Action: p.sort + ".create", Resource: p.sort + "s/" + place.Name, Detail: map[string]any{"kind": place.Kind, "config": place.Config}}); err != nil {
			return err
		}
		return tx.Announce(ctx, TopicPlaces)
	})
	if errors.Is(err, fault.ErrExists) {
		return place, fault.New(fault.ErrExists, p.sort+"_exists", "add %s %s: there is one with this name: remove it first, or choose another name", p.sort, place.Name).On("name")
	}
	if err != nil {
		return place, fmt.Errorf("add %s %s: %w", p.sort, place.Name, err)
	}
	return place, nil
}

// List returns the places by name.
func (p *Places) List(ctx context.Context) (places []Place, err error) {
	err = p.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		places, err = p.read(ctx, tx)
		return err
	})
	return places, err
}

func (p *Places) read(ctx context.Context, tx *store.Tx) ([]Place, error) {
	rows, err := tx.Query(ctx, p.list)
	if err != nil {
		return nil, fmt.Errorf("list the %ss: %w", p.sort, err)
	}
	defer rows.Close()
	var places []Place
	for rows.Next() {
		var place Place
		var config string
		var created int64
		if err := rows.Scan(&place.Name, &place.Kind, &config, &place.HasSecret, &created); err != nil {
			return nil, err
		}
		place.Config, place.CreatedAt = json.RawMessage(config), store.Time(created)
		places = append(places, place)
	}
	return places, rows.Err()
}

// Secret opens the secret of a place; zero when it has none.
func (p *Places) Secret(ctx context.Context, name string) (secret.Value, error) {
	var sealed []byte
	err := p.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, p.open, name).Scan(&sealed)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return secret.Value{}, p.missing(name)
	}
	if err != nil || sealed == nil {
		return secret.Value{}, err
	}
	return p.sealer.Open(ctx, secret.Place{Table: p.sort + "s", Row: name, Column: "secret"}, sealed)
}

// Delete removes a place. What it got stays there.
func (p *Places) Delete(ctx context.Context, name string) error {
	err := p.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		res, err := tx.Exec(ctx, p.remove, clip(name))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, p.missing(name))
		}
		if p.sort == "sink" {
			if _, err := tx.Exec(ctx, `DELETE FROM cursors WHERE name = $1`, CursorOf(name)); err != nil {
				return err
			}
		}
		if err := Record(ctx, tx, Event{Action: p.sort + ".delete", Resource: p.sort + "s/" + name}); err != nil {
			return err
		}
		return tx.Announce(ctx, TopicPlaces)
	})
	if err != nil {
		return fmt.Errorf("remove %s: %w", p.sort, err)
	}
	return nil
}

func (p *Places) missing(name string) error {
	return fault.New(fault.ErrNotFound, p.sort+"_not_found", "there is no %s %q: see `rotunda audit %s list`", p.sort, clip(name), p.sort).On("name")
}

// Witness cosigns checkpoints (C2SP tlog-witness).
type Witness struct {
	Name       string
	VKey       string
	URL        string // "": its cosignatures come by AddCosignature
	Size       int64  // of the tree that it cosigned last; 0: none
	CosignedAt time.Time
	CreatedAt  time.Time
}

// CreateWitness adds a witness. The caller has parsed its key.
func (t *Trail) CreateWitness(ctx context.Context, w Witness) (Witness, error) {
	err := t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		var n int
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM witnesses`).Scan(&n); err != nil {
			return err
		}
		if n >= maxPlaces {
			return fault.New(fault.ErrLimited, "too_many", "there are %d witnesses already, which is the most: remove one", n)
		}
		w.CreatedAt = tx.Now
		if _, err := tx.Exec(ctx, `INSERT INTO witnesses (name, vkey, url, created_at) VALUES ($1, $2, $3, $4)`, w.Name, w.VKey, w.URL, store.Micros(tx.Now)); err != nil {
			return err
		}
		if err := Record(ctx, tx, Event{Action: "witness.create", Resource: "witnesses/" + w.Name, Detail: map[string]any{"vkey": w.VKey, "url": w.URL}}); err != nil {
			return err
		}
		return tx.Announce(ctx, TopicPlaces)
	})
	if errors.Is(err, fault.ErrExists) {
		return w, fault.New(fault.ErrExists, "witness_exists", "add witness %s: it is there already", clip(w.Name)).On("vkey")
	}
	if err != nil {
		return w, fmt.Errorf("add witness %s: %w", clip(w.Name), err)
	}
	return w, nil
}

// Witnesses returns the witnesses by name.
func (t *Trail) Witnesses(ctx context.Context) (list []Witness, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		list = nil
		rows, err := tx.Query(ctx, `SELECT w.name, w.vkey, w.url, w.created_at, COALESCE(MAX(c.size), 0), COALESCE(MAX(c.signed_at), 0)
			FROM witnesses w LEFT JOIN cosignatures c ON c.witness = w.name GROUP BY w.name, w.vkey, w.url, w.created_at ORDER BY w.name`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var w Witness
			var created, cosigned int64
			if err := rows.Scan(&w.Name, &w.VKey, &w.URL, &created, &w.Size, &cosigned); err != nil {
				return err
			}
			w.CreatedAt, w.CosignedAt = store.Time(created), store.Time(cosigned)
			list = append(list, w)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list the witnesses: %w", err)
	}
	return list, nil
}

// DeleteWitness removes a witness; its cosignatures stay.
func (t *Trail) DeleteWitness(ctx context.Context, name string) error {
	return t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		res, err := tx.Exec(ctx, `DELETE FROM witnesses WHERE name = $1`, clip(name))
		if err != nil {
			return fmt.Errorf("remove witness %s: %w", clip(name), err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, fault.New(fault.ErrNotFound, "witness_not_found", "remove witness: there is none named %q: see `rotunda audit witness list`", clip(name)).On("name"))
		}
		if err := Record(ctx, tx, Event{Action: "witness.delete", Resource: "witnesses/" + clip(name)}); err != nil {
			return err
		}
		return tx.Announce(ctx, TopicPlaces)
	})
}

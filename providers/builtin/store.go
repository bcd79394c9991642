package builtin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

// Topic is announced when what consumers of some path read has changed: see
// store.DB.Listen, and Watch.
const Topic = "builtin"

// The actions of the events of this package, on the resource "secrets/PATH".
const (
	Staged    = "secret.staged"
	Published = "secret.published"
	Discarded = "secret.discarded"
	Read      = "secret.read"
)

// tries is how often a change begins again, because another writer was faster.
const tries = 16

// Config is what a Store needs.
type Config struct {
	DB     *store.DB
	Sealer *secret.Sealer
}

// Store keeps values in the database. It is a providers.Store; the methods beyond that
// are for consumers. Safe for concurrent use.
type Store struct {
	db     *store.DB
	sealer *secret.Sealer
	reads  reads
	floor  time.Duration // how often a watch looks by itself, because a wake-up can be lost
}

// New returns the store of a database. One per process counts the reads: call Pass
// about once a second, and Flush at the end.
func New(c Config) *Store {
	return &Store{db: c.DB, sealer: c.Sealer, floor: 5 * time.Second}
}

// Path is what a path looks like: up to eight parts of up to 64 characters.
func Path() providers.Setting {
	return providers.Setting{
		Name: "path", Doc: "the name of the value in Rotunda, like apps/orders/db", Required: true,
		Pattern: `[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,7}`,
	}
}

// Kind is the kind "builtin". All stores of this kind are s: they share its paths.
func (s *Store) Kind() providers.StoreKind {
	return providers.StoreKind{
		Name:   "builtin",
		Doc:    "Rotunda's own database: values are sealed there, and read through Rotunda's API.",
		Path:   Path(),
		Traits: providers.StoreTraits{Stages: true, WritesPerRotation: 3},
		Open:   func(context.Context, providers.Config) (providers.Store, error) { return s, nil },
	}
}

// Close does nothing: the database is its owner's to close.
func (s *Store) Close() error { return nil }

func checkPath(path string) error {
	_, err := providers.Complete("path", []providers.Setting{Path()}, map[string]string{"path": path})
	return err
}

// Check opens the head: a path that was tampered with is found before a rotation.
func (s *Store) Check(ctx context.Context, path string) ([]providers.Finding, error) {
	if err := checkPath(path); err != nil {
		return []providers.Finding{{Check: "path", Detail: err.Error(), Remedy: "use another path"}}, nil //nolint:nilerr // what is wrong is the finding
	}
	st, err := s.load(ctx, path, servedOnly)
	if providers.OutcomeOf(err) == providers.Refused {
		return []providers.Finding{{Check: "integrity", Detail: err.Error(), Remedy: "restore the rows from a backup"}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", path, err)
	}
	return []providers.Finding{{Check: "integrity", OK: true, Measured: fmt.Sprintf("%d versions kept", len(st.Versions))}}, nil
}

func servedOnly(h head, e entry) bool { return e.Number == h.Current }

// Read is what consumers of path read. It is no event: see the package comment.
func (s *Store) Read(ctx context.Context, path string) (providers.Served, error) {
	if err := checkPath(path); err != nil {
		return providers.Served{}, err
	}
	st, err := s.load(ctx, path, servedOnly)
	if err != nil {
		return providers.Served{}, fmt.Errorf("read %s: %w", path, err)
	}
	e, ok := st.number(st.Current)
	if !ok {
		return providers.Served{}, nil
	}
	return providers.Served{Version: name(e.Number), Rotation: e.Rotation, Fields: st.values[e.Number]}, nil
}

func name(number int64) string { return strconv.FormatInt(number, 10) }

// plan is what a change does to a head: the version to write, and those to delete.
type plan struct {
	head
	write  *entry
	delete []int64
	action string
	about  entry
	serves bool // consumers read something else than before
}

// change brings path from the state that it has to the one that decide plans; a nil
// plan changes nothing. decide is asked again whenever another writer was faster. It
// sees the values of v's rotation and of what is served.
func (s *Store) change(ctx context.Context, path string, v providers.Version, decide func(st state) (*plan, error)) error {
	if err := checkPath(path); err != nil {
		return err
	}
	if v.Rotation == "" || len(v.Rotation) > 64 {
		return fault.Invalid("rotation", "malformed", "%s: a version needs the id of the rotation that made it", path)
	}
	for range tries {
		st, err := s.load(ctx, path, func(_ head, e entry) bool { return e.Rotation == v.Rotation })
		if err != nil {
			return err
		}
		p, err := decide(st)
		if err != nil || p == nil {
			return err
		}
		p.Revision = st.Revision + 1
		p.delete = append(p.delete, p.trim()...)
		err = s.commit(ctx, path, v, st.Revision, p)
		if !errors.Is(err, fault.ErrChanged) && !errors.Is(err, fault.ErrExists) {
			return err
		}
	}
	return fault.New(fault.ErrUnavailable, "busy", "%s is changed by others all the time: it was tried %d times", path, tries)
}

func (s *Store) commit(ctx context.Context, path string, v providers.Version, was int64, p *plan) error {
	sealedHead, err := s.sealHead(ctx, path, p.head)
	if err != nil {
		return err
	}
	var sealed []byte
	if p.write != nil {
		text, err := v.Fields.Encode()
		if err != nil {
			return err
		}
		sealed, err = s.sealer.Seal(ctx, valuePlace(path, *p.write), text)
		text.Destroy()
		if err != nil {
			return err
		}
	}
	return s.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if was == 0 {
			if _, err := tx.Exec(ctx, `INSERT INTO builtin_paths (path, revision, since, head) VALUES ($1, $2, $3, $4)`,
				path, p.Revision, store.Micros(tx.Now), sealedHead); err != nil {
				return fmt.Errorf("write the head: %w", err)
			}
		} else if err := tx.Swap(ctx, `UPDATE builtin_paths SET revision = $1, since = $2, head = $3 WHERE path = $4 AND revision = $5`,
			p.Revision, store.Micros(tx.Now), sealedHead, path, was); err != nil {
			return fmt.Errorf("write the head: %w", err)
		}
		if p.write != nil {
			if _, err := tx.Exec(ctx, `INSERT INTO builtin_versions (path, number, sealed) VALUES ($1, $2, $3)`, path, p.write.Number, sealed); err != nil {
				return fmt.Errorf("write version %d: %w", p.write.Number, err)
			}
		}
		for _, n := range p.delete {
			if _, err := tx.Exec(ctx, `DELETE FROM builtin_versions WHERE path = $1 AND number = $2`, path, n); err != nil {
				return fmt.Errorf("delete version %d: %w", n, err)
			}
		}
		if p.serves {
			if err := tx.Announce(ctx, Topic); err != nil {
				return err
			}
		}
		return audit.Record(ctx, tx, audit.Event{Action: p.action, Resource: resource(path), Outcome: audit.OK, Detail: map[string]any{
			"version": p.about.Number, "rotation": p.about.Rotation, "generation": p.about.Generation, "credential": p.about.Credential,
		}})
	})
}

func resource(path string) string { return "secrets/" + path }

// same compares v with the version e of its rotation.
func (st state) same(e entry, v providers.Version) bool { return st.values[e.Number].Equal(v.Fields) }

// Stage keeps v as the staged version.
func (s *Store) Stage(ctx context.Context, path string, v providers.Version) error {
	err := s.change(ctx, path, v, func(st state) (*plan, error) {
		for _, e := range st.Versions {
			if e.Rotation != v.Rotation {
				continue
			}
			if !st.same(e, v) {
				return nil, fault.New(fault.ErrStale, "another_value", "rotation %s has another value there, as version %d", v.Rotation, e.Number)
			}
			return nil, nil
		}
		p := &plan{head: st.head, action: Staged}
		if st.Staged != 0 {
			p.drop(st.Staged)
			p.delete = append(p.delete, st.Staged)
		}
		e := p.add(v, store.Micros(s.db.Now()))
		p.Staged, p.write, p.about = e.Number, &e, e
		return p, nil
	})
	if err != nil {
		return fmt.Errorf("stage at %s: %w", path, err)
	}
	return nil
}

// Publish makes v the current version.
func (s *Store) Publish(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
	var number int64
	err := s.change(ctx, path, v, func(st state) (*plan, error) {
		current, served := st.number(st.Current)
		if served && current.Rotation == v.Rotation {
			if !st.same(current, v) {
				return nil, fault.New(fault.ErrStale, "another_value", "rotation %s has another value there, as version %d", v.Rotation, current.Number)
			}
			number = current.Number
			return nil, nil
		}
		is := ""
		if served {
			is = name(current.Number)
		}
		if is != prior {
			return nil, fault.New(fault.ErrStale, "store_moved", "version %q is current, not %q", is, prior)
		}
		p := &plan{head: st.head, action: Published, serves: true}
		e, staged := st.number(st.Staged)
		if staged && e.Rotation == v.Rotation {
			if !st.same(e, v) {
				return nil, fault.New(fault.ErrStale, "another_value", "rotation %s has another value staged there", v.Rotation)
			}
			p.Staged = 0
		} else {
			e = p.add(v, store.Micros(s.db.Now()))
			p.write = &e
		}
		p.Previous, p.Current, p.about = st.Current, e.Number, e
		number = e.Number
		return p, nil
	})
	if err != nil {
		return "", fmt.Errorf("publish at %s: %w", path, err)
	}
	return name(number), nil
}

// Discard removes the staged version, if it is of v's rotation.
func (s *Store) Discard(ctx context.Context, path string, v providers.Version) error {
	err := s.change(ctx, path, v, func(st state) (*plan, error) {
		e, ok := st.number(st.Staged)
		if !ok || e.Rotation != v.Rotation {
			return nil, nil
		}
		p := &plan{head: st.head, action: Discarded, about: e}
		p.Staged = 0
		p.drop(e.Number)
		p.delete = append(p.delete, e.Number)
		return p, nil
	})
	if err != nil {
		return fmt.Errorf("discard at %s: %w", path, err)
	}
	return nil
}

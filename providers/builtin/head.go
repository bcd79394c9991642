package builtin

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

// keep is how many versions of a path stay readable.
const keep = 10

// head says what there is at a path. The zero head: nothing.
type head struct {
	Revision int64   `json:"revision"`
	Newest   int64   `json:"newest"` // number that was given out last
	Current  int64   `json:"current,omitempty"`
	Previous int64   `json:"previous,omitempty"`
	Staged   int64   `json:"staged,omitempty"`
	Versions []entry `json:"versions"` // by number
}

type entry struct {
	Number     int64  `json:"number"`
	Credential string `json:"credential"`
	Rotation   string `json:"rotation"`
	Generation int64  `json:"generation"`
	At         int64  `json:"at"` // microseconds
}

func (h head) find(match func(entry) bool) (entry, bool) {
	if i := slices.IndexFunc(h.Versions, match); i >= 0 {
		return h.Versions[i], true
	}
	return entry{}, false
}

func (h head) number(n int64) (entry, bool) {
	return h.find(func(e entry) bool { return e.Number == n })
}

// add gives v the next number.
func (h *head) add(v providers.Version, at int64) entry {
	h.Newest++
	e := entry{Number: h.Newest, Credential: v.Credential, Rotation: v.Rotation, Generation: v.Generation, At: at}
	h.Versions = append(slices.Clone(h.Versions), e)
	return e
}

// trim takes the oldest versions without a label out, as far as there are too many.
func (h *head) trim() (gone []int64) {
	kept := slices.Clone(h.Versions)
	for i := 0; len(kept) > keep && i < len(kept); {
		if n := kept[i].Number; n != h.Current && n != h.Previous && n != h.Staged {
			gone = append(gone, n)
			kept = slices.Delete(kept, i, i+1)
			continue
		}
		i++
	}
	h.Versions = kept
	return gone
}

// drop takes one version out.
func (h *head) drop(n int64) {
	h.Versions = slices.DeleteFunc(slices.Clone(h.Versions), func(e entry) bool { return e.Number == n })
}

func headPlace(path string) secret.Place {
	return secret.Place{Table: "builtin_paths", Row: path, Column: "head"}
}

// valuePlace names a row by what can't be in a path. The number alone does not do:
// numbers begin again when the rows of a path were deleted.
func valuePlace(path string, e entry) secret.Place {
	return secret.Place{Table: "builtin_versions", Row: path + "#" + strconv.FormatInt(e.Number, 10) + "#" + e.Rotation, Column: "sealed"}
}

// state is a path as one transaction saw it.
type state struct {
	head
	values map[int64]providers.Fields // of the versions that were asked for
}

// load reads the head of path and the values of the versions that want chooses.
func (s *Store) load(ctx context.Context, path string, want func(head, entry) bool) (state, error) {
	st := state{values: map[int64]providers.Fields{}}
	var sealedHead []byte
	var revision int64
	sealed := map[entry][]byte{}
	err := s.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		err := tx.QueryRow(ctx, `SELECT revision, head FROM builtin_paths WHERE path = $1`, path).Scan(&revision, &sealedHead)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the head: %w", err)
		}
		if st.head, err = s.openHead(ctx, path, revision, sealedHead); err != nil {
			return err
		}
		for _, e := range st.Versions {
			if !want(st.head, e) {
				continue
			}
			var text []byte
			err := tx.QueryRow(ctx, `SELECT sealed FROM builtin_versions WHERE path = $1 AND number = $2`, path, e.Number).Scan(&text)
			if errors.Is(err, sql.ErrNoRows) {
				return tampered(path, "version %d is missing", e.Number)
			}
			if err != nil {
				return fmt.Errorf("read version %d: %w", e.Number, err)
			}
			sealed[e] = text
		}
		return nil
	})
	if err != nil {
		return state{}, err
	}
	for e, text := range sealed {
		v, err := s.sealer.Open(ctx, valuePlace(path, e), text)
		if errors.Is(err, secret.ErrCorrupt) {
			return state{}, tampered(path, "version %d does not open", e.Number)
		}
		if err != nil {
			return state{}, fmt.Errorf("open version %d: %w", e.Number, err)
		}
		if st.values[e.Number], err = providers.Decode(v); err != nil {
			return state{}, tampered(path, "version %d is no value", e.Number)
		}
		v.Destroy()
	}
	return st, nil
}

func (s *Store) openHead(ctx context.Context, path string, revision int64, sealed []byte) (head, error) {
	v, err := s.sealer.Open(ctx, headPlace(path), sealed)
	if errors.Is(err, secret.ErrCorrupt) {
		return head{}, tampered(path, "the head does not open")
	}
	if err != nil {
		return head{}, fmt.Errorf("open the head: %w", err)
	}
	var h head
	if err := json.Unmarshal(v.Reveal(), &h); err != nil || h.Revision != revision {
		return head{}, tampered(path, "the head is not that of revision %d", revision)
	}
	return h, nil
}

func (s *Store) sealHead(ctx context.Context, path string, h head) ([]byte, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode the head: %w", err)
	}
	return s.sealer.Seal(ctx, headPlace(path), secret.New(text))
}

// tampered is final: asking again does not help, a person and a backup may.
func tampered(path, format string, args ...any) error {
	return fault.New(fault.ErrDenied, "tampered",
		"the rows of %s in the database are not as Rotunda wrote them: %s: restore them from a backup, and find out who wrote there", path, fmt.Sprintf(format, args...))
}

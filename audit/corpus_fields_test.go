package audit

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// disarm takes the database's own guards away, as a superuser can.
func (s *scene) disarm(t *testing.T) {
	t.Helper()
	if s.postgres() {
		s.sql(t, `ALTER TABLE events DISABLE TRIGGER ALL`)
		s.sql(t, `ALTER TABLE event_queue DISABLE TRIGGER ALL`)
		return
	}
	for _, name := range []string{"events_no_update", "events_no_delete", "events_no_replace", "event_queue_no_update", "event_queue_no_delete", "event_queue_no_replace"} {
		s.sql(t, `DROP TRIGGER `+name)
	}
}

func (s *scene) postgres() bool { return s.db.Dialect() == "postgres" }

func (s *scene) sql(t *testing.T, query string, args ...any) {
	t.Helper()
	if err := exec(t, s.db, query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func (s *scene) update(t *testing.T, f func(ctx context.Context, tx *store.Tx) error) {
	t.Helper()
	if err := s.db.Update(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

// event returns an event as it is in the database.
func (s *scene) event(t *testing.T, index int64) trail.Record {
	t.Helper()
	var r []trail.Record
	s.update(t, func(ctx context.Context, tx *store.Tx) (err error) {
		var w where
		w.add("leaf_index = ?", index)
		r, err = readRecords(ctx, tx, "", w, 1)
		return err
	})
	if len(r) != 1 {
		t.Fatalf("there is no event %d", index)
	}
	return r[0]
}

// put writes an event over the one that is at its index, or anew.
func (s *scene) put(t *testing.T, r trail.Record) {
	t.Helper()
	s.sql(t, `DELETE FROM events WHERE leaf_index = $1`, r.Index)
	s.sql(t, `INSERT INTO events (leaf_index, id, occurred_at, actor, action, resource, partner, outcome, reason, request_id, address, detail, count, intent, salt, checks, erased)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 0)`,
		r.Index, r.ID, store.Micros(r.Time), r.Actor, r.Action, r.Resource, r.Partner, r.Outcome, r.Reason, r.RequestID, r.Address, r.Detail, r.Count, r.Intent, r.Salt, r.Checks)
}

// forged is an event that never happened, complete and right in itself.
func (s *scene) forged(t *testing.T, index int64) trail.Record {
	t.Helper()
	r := s.event(t, s.middle)
	r.Index, r.ID, r.Salt = index, forgedID(int(index)), trail.NewSeed()
	r.Action, r.Resource, r.Actor, r.Detail, r.Outcome = "keyset.create", "keysets/forged", "token/innocent", "{}", OK
	r.Checks = r.MakeChecks()
	return r
}

func forgedID(n int) string { return fmt.Sprintf("0198dead-0000-7000-8000-%012d", n) }

// each edits the first, the middle and the last event.
func (s *scene) each(f func(n int, index int64)) {
	for n, index := range []int64{s.first, s.middle, s.last} {
		f(n, index)
	}
}

func three(kind, fields string) []string {
	return []string{strings.TrimSpace(kind + " first " + fields), strings.TrimSpace(kind + " middle " + fields), strings.TrimSpace(kind + " last " + fields)}
}

const committed = "actor,partner,reason,request_id,address,detail"

// attacksOnFields edit what an event says.
func attacksOnFields() []attack {
	var attacks []attack
	for _, c := range []struct {
		column string
		value  any
		fields string
	}{
		{"occurred_at", nil, "time"}, {"actor", "mallory", "actor"}, {"action", "corpus.other", "action"}, {"resource", "keysets/other", "resource"},
		{"partner", "mallory & co", "partner"}, {"outcome", OK, "outcome"}, {"reason", "", "reason"}, {"request_id", "req-x", "request_id"}, {"address", "192.0.2.66", "address"},
		{"detail", `{"n":0}`, "detail"}, {"count", 1, "count"}, {"intent", "", "intent"}, {"salt", []byte("0123456789abcdef"), committed}, {"checks", make([]byte, trail.ChecksSize), "checks"},
	} {
		attacks = append(attacks, attack{
			name: c.column + " edited in the first, the middle and the last event", server: goesOn, want: three("altered", c.fields),
			do: func(t *testing.T, s *scene) {
				s.each(func(_ int, index int64) {
					if c.value == nil {
						s.sql(t, `UPDATE events SET `+c.column+` = `+c.column+` + 1 WHERE leaf_index = $1`, index)
						return
					}
					s.sql(t, `UPDATE events SET `+c.column+` = $1 WHERE leaf_index = $2`, c.value, index)
				})
			},
		})
	}
	return append(attacks,
		attack{
			name: "id edited in the first, the middle and the last event", server: goesOn, want: three("altered", "id"),
			do: func(t *testing.T, s *scene) {
				s.each(func(n int, index int64) {
					s.sql(t, `UPDATE events SET id = $1 WHERE leaf_index = $2`, forgedID(n), index)
				})
			},
		},
		attack{
			name: "leaf_index edited in the first, the middle and the last event, far away", server: goesOn,
			want: []string{"pruned_without_evidence 0", "pruned_without_evidence middle", "pruned_without_evidence last"},
			do: func(t *testing.T, s *scene) {
				s.each(func(n int, index int64) {
					s.sql(t, `UPDATE events SET leaf_index = $1 WHERE leaf_index = $2`, 5_000_000+n, index)
				})
			},
		},
		attack{
			name: "erased set in the first, the middle and the last event, the values left", server: goesOn, want: three("altered", "actor"),
			do: func(t *testing.T, s *scene) {
				s.each(func(_ int, index int64) { s.sql(t, `UPDATE events SET erased = 1 WHERE leaf_index = $1`, index) })
			},
		},
		attack{
			name: "erased set, with a false commitment", server: goesOn, want: three("altered", "address"),
			do: func(t *testing.T, s *scene) {
				sum := sha256.Sum256([]byte("false"))
				s.each(func(_ int, index int64) {
					r := s.event(t, index)
					if err := r.Erase(trail.Address); err != nil {
						t.Fatal(err)
					}
					s.sql(t, `UPDATE events SET erased = 16, address = $1, salt = $2 WHERE leaf_index = $3`, base64.StdEncoding.EncodeToString(sum[:]), r.Salt, index)
				})
			},
		},
		attack{
			name: "erased field given an invented value", server: goesOn, want: []string{"altered 1256 actor"},
			do: func(t *testing.T, s *scene) {
				s.sql(t, `UPDATE events SET erased = erased & 62, actor = 'token/innocent' WHERE leaf_index = $1`, s.erased)
			},
		},
		attack{
			name: "erased field given another commitment", server: goesOn, want: []string{"altered 1256 actor"},
			do: func(t *testing.T, s *scene) {
				sum := sha256.Sum256([]byte("false"))
				s.sql(t, `UPDATE events SET actor = $1 WHERE leaf_index = $2`, base64.StdEncoding.EncodeToString(sum[:]), s.erased)
			},
		},
		attack{
			name: "actor edited together with the checks that name it", server: goesOn, want: append(three("altered", "hash"), "root"),
			do: func(t *testing.T, s *scene) {
				s.each(func(_ int, index int64) {
					r := s.event(t, index)
					r.Actor = "token/innocent"
					r.Checks = r.MakeChecks()
					s.put(t, r)
				})
			},
		},
		attack{
			name: "actor edited together with its leaf hash in the tile", server: goesOn, want: []string{"root", "altered first actor", "altered middle actor"},
			do: func(t *testing.T, s *scene) {
				for _, index := range []int64{s.first, s.middle} {
					r := s.event(t, index)
					r.Actor = "token/innocent"
					s.put(t, r)
					s.setLeaf(t, &r)
				}
			},
		},
		attack{
			name: "actor edited together with checks and leaf hash", server: goesOn, want: []string{"root"},
			do: func(t *testing.T, s *scene) {
				r := s.event(t, s.middle)
				r.Actor = "token/innocent"
				r.Checks = r.MakeChecks()
				s.put(t, r)
				s.setLeaf(t, &r)
			},
		},
		attack{
			name: "leaf hash edited in the tile, the event left", server: goesOn, want: []string{"altered middle hash"},
			do: func(t *testing.T, s *scene) {
				r := s.forged(t, s.middle)
				s.setLeaf(t, &r)
			},
		},
		attack{
			name: "salt cut to 3 bytes", server: goesOn, want: three("altered", "salt"),
			do: func(t *testing.T, s *scene) {
				s.each(func(_ int, index int64) {
					s.sql(t, `UPDATE events SET salt = $1 WHERE leaf_index = $2`, []byte("abc"), index)
				})
			},
		},
		attack{
			name: "outcome made a word that is none", server: goesOn, want: []string{"altered middle outcome"},
			do: func(t *testing.T, s *scene) {
				if s.postgres() {
					s.sql(t, `ALTER TABLE events DROP CONSTRAINT events_outcome_check`)
					s.sql(t, `UPDATE events SET outcome = 'maybe' WHERE leaf_index = $1`, s.middle)
					return
				}
				s.update(t, func(ctx context.Context, tx *store.Tx) error {
					for _, query := range []string{`PRAGMA ignore_check_constraints = 1`, fmt.Sprintf(`UPDATE events SET outcome = 'maybe' WHERE leaf_index = %d`, s.middle), `PRAGMA ignore_check_constraints = 0`} {
						if _, err := tx.Exec(ctx, query); err != nil {
							return err
						}
					}
					return nil
				})
			},
		},
		attack{
			name: "detail made a text that is no JSON", server: goesOn, refused: "its detail is not a JSON object",
			do: func(t *testing.T, s *scene) {
				s.sql(t, `UPDATE events SET detail = 'none' WHERE leaf_index = $1`, s.middle)
			},
		},
		attack{
			name: "reason made longer than the bound", server: goesOn, refused: "its reason is not UTF-8 of at most 1024 bytes",
			do: func(t *testing.T, s *scene) {
				s.sql(t, `UPDATE events SET reason = $1 WHERE leaf_index = $2`, strings.Repeat("x", 2000), s.middle)
			},
		},
	)
}

// setLeaf puts an event's leaf hash into its tile, and leaves the levels above.
func (s *scene) setLeaf(t *testing.T, r *trail.Record) {
	t.Helper()
	h, err := r.Event.Hash()
	if err != nil {
		t.Fatal(err)
	}
	s.update(t, func(ctx context.Context, tx *store.Tx) error {
		at := tile{0, r.Index / tileWidth}
		hashes, err := readTile(ctx, tx, at)
		if err != nil {
			return err
		}
		hashes[r.Index%tileWidth] = h
		return writeTile(ctx, tx, at, hashes)
	})
}

// leaves returns the leaf hashes that the tiles hold.
func (s *scene) leaves(t *testing.T) (all []tlog.Hash) {
	t.Helper()
	s.update(t, func(ctx context.Context, tx *store.Tx) error {
		all = nil
		for n := int64(0); ; n++ {
			hashes, err := readTile(ctx, tx, tile{0, n})
			if err != nil || len(hashes) == 0 {
				return err
			}
			all = append(all, hashes...)
		}
	})
	return all
}

// rebuild writes a whole tree, and the head that goes with it.
func (s *scene) rebuild(t *testing.T, leaves []tlog.Hash) (root tlog.Hash) {
	t.Helper()
	s.update(t, func(ctx context.Context, tx *store.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM trail_tiles`); err != nil {
			return err
		}
		e, full := &edge{}, map[tile][]tlog.Hash{}
		take := func(at tile, hashes []tlog.Hash) { full[at] = hashes }
		for _, h := range leaves {
			e.add(h, take)
		}
		e.partial(take)
		for at, hashes := range full {
			if err := writeTile(ctx, tx, at, hashes); err != nil {
				return err
			}
		}
		root = e.root()
		_, err := tx.Exec(ctx, `UPDATE trail SET size = $1, root = $2 WHERE id = 1`, e.size, root[:])
		return err
	})
	return root
}

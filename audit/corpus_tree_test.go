package audit

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// edited writes an event of the middle over with another actor, checks included,
// and computes the whole tree anew.
func (s *scene) edited(t *testing.T) (root tlog.Hash) {
	t.Helper()
	r := s.event(t, s.middle)
	r.Actor = "token/innocent"
	r.Checks = r.MakeChecks()
	s.put(t, r)
	leaves := s.leaves(t)
	var err error
	if leaves[s.middle], err = r.Event.Hash(); err != nil {
		t.Fatal(err)
	}
	return s.rebuild(t, leaves)
}

// restart starts the server again, with a file of a kept checkpoint unless that is "".
func (s *scene) restart(t *testing.T, kept string) {
	t.Helper()
	cfg := s.tr.Config
	if err := s.tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if kept != "" {
		cfg.Kept = filepath.Join(t.TempDir(), "checkpoint")
		if err := os.WriteFile(cfg.Kept, []byte(kept), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.tr = openTrail(t, cfg)
}

// back makes everything in the database consistent with an older checkpoint.
func (s *scene) back(t *testing.T) {
	t.Helper()
	var size int64
	s.update(t, func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT MAX(size) FROM checkpoints WHERE size < $1`, s.last-100).Scan(&size)
	})
	s.cut(t, size)
	s.sql(t, `DELETE FROM cosignatures WHERE size > $1`, size)
	s.sql(t, `DELETE FROM checkpoints WHERE size > $1`, size)
}

// cut deletes events from an index on, and their hashes from the tree.
func (s *scene) cut(t *testing.T, size int64) {
	t.Helper()
	s.sql(t, `DELETE FROM events WHERE leaf_index >= $1`, size)
	s.rebuild(t, s.leaves(t)[:size])
}

// attacksOnTheTree cut the end off, put old states back, and write hashes anew.
func attacksOnTheTree() []attack {
	return []attack{
		{
			name: "the last 100 events deleted", server: goesOn, want: []string{"pruned_without_evidence 1901"},
			do: func(t *testing.T, s *scene) { s.sql(t, `DELETE FROM events WHERE leaf_index > $1`, s.last-100) },
		},
		{
			name: "the last 300 events and their tiles deleted", server: stops, refused: "a tile of the tree is missing or cut short",
			do: func(t *testing.T, s *scene) {
				s.restart(t, "")
				head := s.last + 1
				s.cut(t, head-300)
				s.sql(t, `UPDATE trail SET size = $1, root = (SELECT root FROM checkpoints WHERE size = $2) WHERE id = 1`, head, head)
			},
		},
		{
			name: "the last events, their tiles and their checkpoints deleted, the head left", server: stops, kept: bundle.Rollback,
			do: func(t *testing.T, s *scene) {
				s.restart(t, "")
				head := s.last + 1
				var root []byte
				s.update(t, func(ctx context.Context, tx *store.Tx) error {
					return tx.QueryRow(ctx, `SELECT root FROM checkpoints WHERE size = $1`, head).Scan(&root)
				})
				s.back(t)
				s.sql(t, `UPDATE trail SET size = $1, root = $2 WHERE id = 1`, head, root)
			},
		},
		{
			name: "everything put back to an older checkpoint, under a running server", server: stops, kept: bundle.Rollback,
			do: func(t *testing.T, s *scene) { s.back(t) },
		},
		{
			name: "everything put back to an older checkpoint, before a start", server: goesOn, kept: bundle.Rollback,
			do: func(t *testing.T, s *scene) {
				s.restart(t, "")
				s.back(t)
			},
		},
		{
			name: "an old copy of the database put back", old: true, server: goesOn, kept: bundle.Rollback,
			do: func(*testing.T, *scene) {},
		},
		{
			name: "an old copy put back, and it grew beyond the kept checkpoint", old: true, events: 1000, server: goesOn, kept: bundle.Fork,
			do: func(*testing.T, *scene) {},
		},
		{
			name: "an old copy put back, and the server has its checkpoint file", old: true, server: stops, kept: bundle.Rollback,
			do: func(t *testing.T, s *scene) { s.restart(t, s.kept) },
		},
		{
			name: "an event edited and all tiles and the head computed anew, under a running server", server: stops, want: []string{"root"},
			do: func(t *testing.T, s *scene) { s.edited(t) },
		},
		{
			name: "an event edited and all tiles and the head computed anew, before a start", server: stops, want: []string{"root"},
			do: func(t *testing.T, s *scene) {
				s.restart(t, "")
				s.edited(t)
			},
		},
		{
			name: "the same, and the newest checkpoint written over with the new root", server: stops, want: []string{"signature"}, kept: bundle.Signature,
			do: func(t *testing.T, s *scene) {
				s.restart(t, "")
				root := s.edited(t)
				c := trail.Checkpoint{Origin: "rotunda.test/trail", Size: s.last + 1, Root: root}
				s.update(t, func(ctx context.Context, tx *store.Tx) error {
					var signed string
					if err := tx.QueryRow(ctx, `SELECT signed FROM checkpoints WHERE size = $1`, c.Size).Scan(&signed); err != nil {
						return err
					}
					_, lines, _ := strings.Cut(signed, "\n\n")
					_, err := tx.Exec(ctx, `UPDATE checkpoints SET root = $1, signed = $2 WHERE size = $3`, root[:], c.Text()+"\n"+lines, c.Size)
					return err
				})
			},
		},
		{
			name: "the newest checkpoint deleted", server: stops, kept: bundle.Rollback,
			do: func(t *testing.T, s *scene) {
				s.restart(t, "")
				s.sql(t, `DELETE FROM checkpoints WHERE size = $1`, s.last+1)
			},
		},
		{
			name: "the log's end cut under the true key, and another end signed (who holds the KEK)", old: true, events: 900, server: goesOn, kept: bundle.Fork,
			do: func(t *testing.T, s *scene) {
				// Within its own history it is perfect: only two checkpoints side by side show it.
				r := s.forged(t, 0)
				s.queue(t, r)
			},
		},
	}
}

// enthrone writes a key of the attacker into the history, and signs the newest
// checkpoint with it.
func (s *scene) enthrone(t *testing.T, alone bool) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, "rotunda.test/trail")
	if err != nil {
		t.Fatal(err)
	}
	mine, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	vkeys, _, err := s.tr.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sign := func(text string) string {
		signed, err := note.Sign(&note.Note{Text: text}, mine)
		if err != nil {
			t.Fatal(err)
		}
		return string(signed)
	}
	root := s.edited(t)
	handover := sign(trail.Handover{Origin: "rotunda.test/trail", From: vkeys[len(vkeys)-1], To: vkey, Size: s.last + 1}.Text())
	if alone {
		handover = ""
		s.sql(t, `DELETE FROM trail_keys`)
	}
	id := fmt.Sprintf("%08x", mine.KeyHash())
	s.sql(t, `INSERT INTO trail_keys (number, id, vkey, private, handover, from_size, created_at) VALUES (9, $1, $2, $3, $4, $5, 0)`, id, vkey, []byte("sealed by nobody"), handover, s.last+1)
	s.sql(t, `UPDATE trail SET key_id = $1 WHERE id = 1`, id)
	s.sql(t, `UPDATE checkpoints SET root = $1, signed = $2 WHERE size = $3`, root[:], sign(trail.Checkpoint{Origin: "rotunda.test/trail", Size: s.last + 1, Root: root}.Text()), s.last+1)
}

// attacksOnKeys change who may sign, and what witnesses said.
func attacksOnKeys() []attack {
	return []attack{
		{
			name: "an event edited, the tree computed anew, and signed with an attacker's key that takes over by its own signature", server: stuck,
			want: []string{"key", "signature"}, kept: bundle.Key,
			do: func(t *testing.T, s *scene) {
				s.restart(t, "")
				s.enthrone(t, false)
			},
		},
		{
			name: "the same, and the log's own keys deleted", server: stuck, want: []string{"key", "signature"}, kept: bundle.Signature,
			do: func(t *testing.T, s *scene) {
				s.restart(t, "")
				s.enthrone(t, true)
			},
		},
		{
			name: "a handover edited", server: goesOn, want: []string{"key", "signature"}, kept: bundle.Key,
			do: func(t *testing.T, s *scene) {
				s.sql(t, `UPDATE trail_keys SET handover = REPLACE(handover, $1, $2) WHERE number = 2`, fmt.Sprintf("\n%d\n\n", s.handed(t)), "\n7\n\n")
			},
		},
		{
			name: "the first key deleted from the history", server: goesOn, want: []string{"key", "signature"}, kept: bundle.Signature,
			do: func(t *testing.T, s *scene) {
				s.sql(t, `UPDATE trail_keys SET handover = '' WHERE number = 2`)
				s.sql(t, `DELETE FROM trail_keys WHERE number = 1`)
			},
		},
	}
}

// handed returns the size at which the first key handed over.
func (s *scene) handed(t *testing.T) (size int64) {
	t.Helper()
	s.update(t, func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT from_size FROM trail_keys WHERE number = 2`).Scan(&size)
	})
	return size
}

// apart lets another copy of the log's database go on by itself, under the true
// key, and returns its checkpoint. That copy verifies, too.
func (l *honestLog) apart(t *testing.T) string {
	t.Helper()
	s := &scene{honestLog: l, server: l.open(t, l.copyOf(t, l.url), storetest.NewClock(l.at))}
	record(t, s.db, Event{Action: "corpus.fork"}, Event{Action: "corpus.fork"})
	sequence(t, s.tr)
	if report, err := s.offline(t); err != nil || !report.OK() {
		t.Fatalf("the other copy alone: %v, %v", err, report.Findings)
	}
	if kind, text := s.extends(t, l.kept); kind != "" {
		t.Fatalf("the other copy against the checkpoint of before: %s %s", kind, text)
	}
	_, signed, err := s.tr.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// witnesses counts who cosigned the checkpoint that the cosignature is put under.
func (s *scene) witnesses(t *testing.T) (n int, missing error) {
	t.Helper()
	s.update(t, func(ctx context.Context, tx *store.Tx) error {
		var size int64
		if err := tx.QueryRow(ctx, `SELECT COALESCE(MAX(size), $1) FROM cosignatures`, s.size).Scan(&size); err != nil {
			return err
		}
		_, signed, err := checkpointAt(ctx, tx, size)
		n, missing = trail.CountWitnesses(signed, []trail.Witness{s.honestLog.witness})
		return err
	})
	return n, missing
}

// attacksOnHistory show two people two histories, and edit what witnesses said.
func attacksOnHistory() []attack {
	cosigned := func(do func(*testing.T, *scene)) func(*testing.T, *scene) {
		return func(t *testing.T, s *scene) {
			if n, err := s.witnesses(t); n != 1 || err != nil {
				t.Fatalf("before, %d witnesses count: %v", n, err)
			}
			do(t, s)
		}
	}
	return []attack{
		{
			name: "two copies of the database went on apart, both under the true key: the checkpoint of one is kept, the other is shown", server: goesOn,
			copied: true, kept: bundle.Fork, do: func(*testing.T, *scene) {},
		},
		{
			name: "a cosignature edited", server: goesOn, witness: true,
			do: cosigned(func(t *testing.T, s *scene) {
				var line string
				s.update(t, func(ctx context.Context, tx *store.Tx) error {
					return tx.QueryRow(ctx, `SELECT line FROM cosignatures`).Scan(&line)
				})
				name, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " w1.test ")
				sig, err := base64.StdEncoding.DecodeString(text)
				if err != nil {
					t.Fatal(err)
				}
				sig[len(sig)-1] ^= 1
				s.sql(t, `UPDATE cosignatures SET line = $1`, name+" w1.test "+base64.StdEncoding.EncodeToString(sig)+"\n")
			}),
		},
		{
			name: "a cosignature put under another checkpoint", server: goesOn, witness: true,
			do: cosigned(func(t *testing.T, s *scene) { s.sql(t, `UPDATE cosignatures SET size = $1`, s.last+1) }),
		},
		{
			name: "a cosignature deleted", server: goesOn, witness: true,
			do: cosigned(func(t *testing.T, s *scene) { s.sql(t, `DELETE FROM cosignatures`) }),
		},
	}
}

package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// newSealer returns a sealer under a key file of its own.
func newSealer(t testing.TB) *secret.Sealer {
	t.Helper()
	kek, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek.json"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newTrail opens the trail of a database.
func newTrail(t testing.TB, db *store.DB) *Trail {
	t.Helper()
	return openTrail(t, Config{DB: db, Sealer: newSealer(t), Origin: "rotunda.test/trail"})
}

func openTrail(t testing.TB, cfg Config) *Trail {
	t.Helper()
	tr, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// sequence gives every event that waits its index.
func sequence(t testing.TB, tr *Trail) {
	t.Helper()
	for {
		n, err := tr.Sequence(t.Context())
		if errors.Is(err, fault.ErrChanged) {
			continue // a step of the clock ended the lease
		}
		if err != nil {
			t.Fatal(err)
		}
		if n < batchSize {
			return
		}
	}
}

// verify reads the whole log as somebody who trusts nothing but the first key:
// every leaf is computed from its event, and the tree over them is the one of the
// newest checkpoint; every earlier checkpoint is one of its prefixes.
func verify(t testing.TB, tr *Trail) []trail.Record {
	t.Helper()
	vkeys, handovers, err := tr.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := trail.ParseKeys(vkeys[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := keys.Follow(handovers); err != nil {
		t.Fatal(err)
	}
	var records []trail.Record
	for index := int64(0); ; {
		batch, next, err := tr.Read(t.Context(), index, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if next == index {
			break
		}
		records, index = append(records, batch...), next
	}
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = stored[x]
		}
		return out, nil
	})
	seen := map[string]bool{}
	roots := map[int64]tlog.Hash{}
	for i := range records {
		r := &records[i]
		leaf, err := r.Event.Hash()
		if err != nil {
			t.Fatal(err)
		}
		if r.Index != int64(i) || leaf != r.Hash || seen[r.ID] || len(r.Differs()) > 0 {
			t.Fatalf("record %d: index %d, hash %v, leaf %v, seen %v, differs %v: %+v", i, r.Index, r.Hash, leaf, seen[r.ID], r.Differs(), r)
		}
		seen[r.ID] = true
		hashes, err := tlog.StoredHashesForRecordHash(int64(i), leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
		if roots[int64(i)+1], err = tlog.TreeHash(int64(i)+1, reader); err != nil {
			t.Fatal(err)
		}
	}
	var last int64
	err = tr.DB.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		rows, err := tx.Query(ctx, `SELECT size, signed FROM checkpoints ORDER BY size`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var signed string
			if err := rows.Scan(&last, &signed); err != nil {
				return err
			}
			c, err := keys.Open(signed)
			if err != nil {
				return err
			}
			if c.Size != last || c.Root != roots[c.Size] {
				return fmt.Errorf("the checkpoint of %d leaves is not a prefix of the log", c.Size)
			}
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	if last != int64(len(records)) {
		t.Fatalf("the newest checkpoint is of %d leaves, the log has %d", last, len(records))
	}
	return records
}

func TestSequenceOrdersEvents(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := newClock(db)
		tr := newTrail(t, db)
		want := []string{"trail.start"}
		for i := range 700 { // over two tiles
			name := fmt.Sprintf("event.%d", i)
			record(t, db, Event{Action: name, Resource: "x/" + name, Actor: "ada", Detail: map[string]any{"n": i}})
			want = append(want, name)
			clock.Advance(time.Millisecond)
			if i%97 == 0 {
				sequence(t, tr)
			}
		}
		sequence(t, tr)
		got := verify(t, tr)
		if len(got) != len(want) {
			t.Fatalf("%d records, want %d", len(got), len(want))
		}
		for i, r := range got {
			if r.Action != want[i] || r.Origin != "rotunda.test/trail" {
				t.Fatalf("record %d is %s of %s, want %s", i, r.Action, r.Origin, want[i])
			}
		}
		var waiting int
		if err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			return tx.QueryRow(ctx, `SELECT COUNT(*) FROM event_queue`).Scan(&waiting)
		}); err != nil || waiting != 0 {
			t.Errorf("%d events wait, %v", waiting, err)
		}
		// Another process goes on where this one was.
		if err := tr.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		again := openTrail(t, tr.Config)
		record(t, db, Event{Action: "last"})
		sequence(t, again)
		if got := verify(t, again); len(got) != len(want)+1 || got[len(want)].Action != "last" {
			t.Errorf("%d records after a restart", len(got))
		}
	})
}

// Lists go on, without a repeat or a loss, while events get their indexes.
func TestListWhileEventsAreSequenced(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := newClock(db)
		tr := newTrail(t, db)
		sequence(t, tr)
		add := func(n int, name string) {
			for i := range n {
				record(t, db, Event{Action: "x", Resource: fmt.Sprintf("%s-%d", name, i)})
				clock.Advance(time.Microsecond)
			}
		}
		add(12, "sequenced")
		sequence(t, tr)
		add(13, "waiting")
		var got []string
		q := Query{Action: "x", Limit: 4}
		for page := 0; ; page++ {
			events, next, err := List(t.Context(), db, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events {
				got = append(got, e.Resource)
			}
			if q.Page = next; next == "" {
				break
			}
			if page == 1 {
				sequence(t, tr)
			}
			add(2, "new")
		}
		var want []string
		for i := 12; i >= 0; i-- {
			want = append(want, fmt.Sprintf("waiting-%d", i))
		}
		for i := 11; i >= 0; i-- {
			want = append(want, fmt.Sprintf("sequenced-%d", i))
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("pages give\n%v, want\n%v", got, want)
		}
	})
}

// A tree's edge gives the root that golang.org/x/mod/sumdb/tlog gives, whatever
// its size and wherever it was stored and loaded again.
func TestEdgeRoot(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		var stored []tlog.Hash
		reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			out := make([]tlog.Hash, len(indexes))
			for i, x := range indexes {
				out[i] = stored[x]
			}
			return out, nil
		})
		e := &edge{}
		if want, _ := tlog.TreeHash(0, nil); e.root() != want {
			t.Error("the root of no leaves is wrong")
		}
		total := 256*256 + 300
		for i := range total {
			leaf := tlog.RecordHash([]byte(fmt.Sprint(i)))
			hashes, err := tlog.StoredHashesForRecordHash(int64(i), leaf, reader)
			if err != nil {
				t.Fatal(err)
			}
			stored = append(stored, hashes...)
			full := map[tile][]tlog.Hash{}
			e.add(leaf, func(at tile, h []tlog.Hash) { full[at] = h })
			n := int64(i + 1)
			near := n < 600 || n%256 < 2 || n > int64(total)-40
			if !near && len(full) == 0 {
				continue
			}
			if n < 40 || n > int64(total)-5 || n%256 == 0 {
				e.partial(func(at tile, h []tlog.Hash) { full[at] = h })
			}
			err = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				for at, h := range full {
					if err := writeTile(ctx, tx, at, h); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			want, err := tlog.TreeHash(n, reader)
			if err != nil {
				t.Fatal(err)
			}
			if e.root() != want {
				t.Fatalf("the root of %d leaves is %v, want %v", n, e.root(), want)
			}
			if n < 40 || n > int64(total)-5 || n%256 == 0 && n > 65000 {
				err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					loaded, err := loadEdge(ctx, tx, n)
					if err != nil {
						return err
					}
					if loaded.root() != want {
						return fmt.Errorf("the loaded root of %d leaves is wrong", n)
					}
					if again, err := tlog.TreeHash(n, newTileReader(ctx, tx)); err != nil || again != want {
						return fmt.Errorf("the tiles give root %v of %d leaves, want %v", again, n, want)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// Promise: whatever stops a sequencing, at any of its statements and also after a
// commit whose answer is lost, the next one goes on with one chain.
func TestSequenceWhenInterrupted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		tr := newTrail(t, db)
		record(t, db, Event{Action: "one"}, Event{Action: "two"})
		for statement := 0; statement < 1000; statement++ {
			// Fail by cancelling the context at the n-th look at it.
			ctx := &countdown{Context: t.Context(), left: statement}
			_, err := tr.Sequence(ctx)
			record(t, db, Event{Action: fmt.Sprintf("after.%d", statement)})
			if err == nil {
				break
			}
		}
		sequence(t, tr)
		verify(t, tr)
	})
}

// countdown is a context that ends after it was asked some number of times.
type countdown struct {
	context.Context
	mu   sync.Mutex
	left int
	done chan struct{}
}

func (c *countdown) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

func (c *countdown) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
	}
	if c.left--; c.left == -1 {
		close(c.done)
	}
	return c.done
}

// Promise: two sequencers never sign two trees, even when the one that lost its
// lease does not know it.
func TestSequenceWhenLeaseIsLost(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := newClock(db)
		a := newTrail(t, db)
		b := openTrail(t, a.Config)
		record(t, db, Event{Action: "one"})
		sequence(t, a)
		if _, err := b.Sequence(t.Context()); !errors.Is(err, store.ErrHeld) {
			t.Fatalf("the second sequencer: %v", err)
		}
		// a is suspended; its lease expires, and b takes over.
		clock.Advance(leaseTTL + time.Second)
		record(t, db, Event{Action: "two"})
		sequence(t, b)
		record(t, db, Event{Action: "three"})
		// a wakes up, and believes that it still has the lease.
		a.taken = db.Tick()
		if n, err := a.Sequence(t.Context()); err == nil || n != 0 {
			t.Fatalf("the old sequencer gave %d indexes, %v", n, err)
		}
		if _, err := a.Sequence(t.Context()); !errors.Is(err, store.ErrHeld) {
			t.Fatalf("the old sequencer: %v", err)
		}
		sequence(t, b)
		if got := verify(t, b); len(got) != 4 {
			t.Errorf("%d records", len(got))
		}
	})
}

// Promise: a tree that is not the one that was signed is not signed: the trail is
// stopped, changes are refused with a clear error, and the log of what was signed
// stays as it is.
func TestSequenceWhenDatabaseWasAltered(t *testing.T) {
	for _, tc := range []struct {
		name, statement string
		memory          bool // found by the process that signed, not only by the next
	}{
		{"the root", `UPDATE trail SET root = (SELECT root FROM checkpoints WHERE size = 2)`, true},
		{"a smaller tree", `UPDATE trail SET size = 2, root = (SELECT root FROM checkpoints WHERE size = 2)`, true},
		{"a leaf of the edge", `UPDATE trail_tiles SET hashes = (SELECT root FROM checkpoints WHERE size = 2) WHERE level = 0`, false},
		{"the newest checkpoint's size", `DELETE FROM checkpoints WHERE size = 4`, false},
		{"the newest checkpoint's text", `UPDATE checkpoints SET signed = (SELECT signed FROM checkpoints WHERE size = 2) WHERE size = 4`, false},
		{"all checkpoints", `DELETE FROM checkpoints`, false},
		{"the tiles", `DELETE FROM trail_tiles`, false},
		{"the origin", `UPDATE trail SET origin = 'other.test/trail'`, true},
		{"the key", `UPDATE trail SET key_id = 'ffffffff'`, true},
		{"the public key", `UPDATE trail_keys SET vkey = vkey || 'x'`, false},
		{"the tree and all checkpoints", `UPDATE trail SET size = 0, root = root; DELETE FROM checkpoints`, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				newClock(db)
				tr := newTrail(t, db)
				record(t, db, Event{Action: "one"})
				sequence(t, tr)
				record(t, db, Event{Action: "two"}, Event{Action: "three"})
				sequence(t, tr)
				record(t, db, Event{Action: "four"})
				for _, statement := range strings.Split(tc.statement, ";") {
					if err := exec(t, db, statement); err != nil {
						t.Fatal(err)
					}
				}
				if !tc.memory {
					if err := tr.DB.Release(t.Context(), tr.lease); err != nil {
						t.Fatal(err)
					}
					tr = openTrail(t, tr.Config)
				}
				_, err := tr.Sequence(t.Context())
				if !errors.Is(err, errAltered) {
					t.Fatalf("sequencing says %v", err)
				}
				err = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error { return Record(ctx, tx, Event{Action: "five"}) })
				if !errors.Is(err, fault.ErrUnavailable) || !strings.Contains(err.Error(), "audit status") {
					t.Errorf("a change is answered with %v", err)
				}
				if _, err := tr.Sequence(t.Context()); !errors.Is(err, fault.ErrUnavailable) && !errors.Is(err, errAltered) {
					t.Errorf("sequencing goes on with %v", err)
				}
				if !tr.Stats().Stopped {
					t.Error("the metrics do not show that it is stopped")
				}
			})
		})
	}
}

// An older copy of the database takes over: a restored backup, or a standby that
// was behind. The kept checkpoint shows it; an admin goes on with a new origin.
func TestTrailWhenDatabaseIsOlder(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		sealer := newSealer(t)
		kept := filepath.Join(t.TempDir(), "checkpoint")
		a := openTrail(t, Config{DB: db, Sealer: sealer, Origin: "rotunda.test/trail", Kept: kept})
		record(t, db, Event{Action: "one"})
		sequence(t, a)
		if err := a.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The future that the backup does not have: a checkpoint signed by the same key.
		s := a.key.Load()
		lost := trail.Checkpoint{Origin: "rotunda.test/trail", Size: 10}
		_, _ = rand.Read(lost.Root[:])
		signed, err := note.Sign(&note.Note{Text: lost.Text()}, s.note)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(kept, signed, 0o600); err != nil {
			t.Fatal(err)
		}
		b := openTrail(t, a.Config)
		record(t, db, Event{Action: "two"})
		_, err = b.Sequence(t.Context())
		if !errors.Is(err, errAltered) || !strings.Contains(err.Error(), "10 leaves") {
			t.Fatalf("sequencing says %v", err)
		}
		if _, err := b.Restart(t.Context(), ""); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("a restart without a reason: %v", err)
		}
		if _, err := b.Restart(t.Context(), "the disk was lost; restored from last night's backup"); err != nil {
			t.Fatal(err)
		}
		sequence(t, b)
		records := verify(t, b)
		last := records[len(records)-1]
		if last.Action != "trail.restart" || !strings.HasPrefix(last.Origin, "rotunda.test/trail~") || !strings.Contains(last.Detail, "10 leaves") {
			t.Errorf("the last record is %+v", last)
		}
		// It goes on, also in another process.
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := openTrail(t, b.Config)
		record(t, db, Event{Action: "three"})
		sequence(t, c)
		verify(t, c)
	})
}

func TestRotateKey(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		tr := newTrail(t, db)
		for i := range 3 {
			record(t, db, Event{Action: "x"})
			sequence(t, tr)
			if _, err := tr.RotateKey(t.Context(), "yearly"); err != nil {
				t.Fatal(err)
			}
			if i == 1 {
				if _, err := tr.RotateKey(t.Context(), "twice at one size"); err != nil {
					t.Fatal(err)
				}
			}
			sequence(t, tr)
			verify(t, tr)
		}
		var private int
		err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			return tx.QueryRow(ctx, `SELECT COUNT(*) FROM trail_keys WHERE private IS NOT NULL`).Scan(&private)
		})
		if err != nil || private != 1 {
			t.Errorf("%d keys can sign, %v", private, err)
		}
	})
}

// Indexes are contiguous and in the order of the transactions, whatever came in
// between, and every proof verifies.
func TestSequenceProperty(t *testing.T) {
	db := storetest.SQLite(t)
	clock := newClock(db)
	tr := newTrail(t, db)
	rapid.Check(t, func(rt *rapid.T) {
		for range rapid.IntRange(1, 5).Draw(rt, "rounds") {
			n := rapid.IntRange(0, 40).Draw(rt, "events")
			for range n {
				record(t, db, Event{Action: "x", Actor: rapid.String().Draw(rt, "actor")})
			}
			clock.Advance(time.Duration(rapid.IntRange(-1000, 1000).Draw(rt, "step")) * time.Millisecond)
			sequence(t, tr)
		}
	})
	records := verify(t, tr)
	c, signed, err := tr.Checkpoint(t.Context())
	if err != nil || !strings.HasPrefix(signed, "rotunda.test/trail\n") {
		t.Fatal(err, signed)
	}
	for i := 0; i < len(records); i += 1 + len(records)/50 {
		p, err := tr.Prove(t.Context(), records[i].ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := tlog.CheckRecord(p.Inclusion, c.Size, c.Root, records[i].Index, p.Record.Hash); err != nil {
			t.Errorf("record %d: %v", i, err)
		}
		old := int64(i + 1)
		oldRoot := tlog.Hash{}
		if err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			oldRoot, err = tlog.TreeHash(old, newTileReader(ctx, tx))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		proof, err := tr.Consistency(t.Context(), old, c.Size)
		if err != nil {
			t.Fatal(err)
		}
		if old < c.Size {
			if err := tlog.CheckTree(proof, c.Size, c.Root, old, oldRoot); err != nil {
				t.Errorf("size %d: %v", old, err)
			}
		}
	}
	if _, err := tr.Prove(t.Context(), "nothing"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("a proof of nothing: %v", err)
	}
	if _, err := tr.Consistency(t.Context(), c.Size+1, c.Size+1); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("a proof from a larger tree: %v", err)
	}
}

// A follower sees every event once and in order, also those of another process.
func TestFollow(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		tr := newTrail(t, db)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var running sync.WaitGroup
		running.Go(func() {
			if err := tr.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
		const total = 500
		running.Go(func() {
			for i := range total {
				record(t, db, Event{Action: "x", Resource: fmt.Sprint(i)})
			}
		})
		var next int64
		done := errors.New("done")
		err := tr.Follow(ctx, 0, func(records []trail.Record, to int64) error {
			for _, r := range records {
				if r.Index != next || r.Index > 0 && r.Resource != fmt.Sprint(r.Index-1) {
					return fmt.Errorf("record %d is %s", r.Index, r.Resource)
				}
				next++
			}
			if to != next {
				return fmt.Errorf("next is %d, want %d", to, next)
			}
			if next == total+1 {
				return done
			}
			return nil
		})
		if !errors.Is(err, done) {
			t.Error(err)
		}
		cancel()
		running.Wait()
		verify(t, tr)
	})
}

func TestCursor(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		tr := newTrail(t, db)
		if _, err := tr.Cursor(t.Context(), "siem"); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("a cursor that is not there: %v", err)
		}
		for _, step := range []struct {
			from, to int64
			want     error
		}{{0, 5, nil}, {0, 7, fault.ErrChanged}, {5, 9, nil}, {5, 6, fault.ErrChanged}, {9, 9, nil}} {
			if err := tr.SetCursor(t.Context(), "siem", step.from, step.to); !errors.Is(err, step.want) {
				t.Errorf("from %d to %d: %v", step.from, step.to, err)
			}
		}
		if next, err := tr.Cursor(t.Context(), "siem"); err != nil || next != 9 {
			t.Errorf("the cursor is at %d, %v", next, err)
		}
	})
}

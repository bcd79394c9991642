package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	maxRead = 5000
	// floor is how often a follower looks though it was not woken.
	floor = time.Second
)

// Head returns how many leaves the tree has.
func (t *Trail) Head(ctx context.Context) (size int64, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		h, err := readHead(ctx, tx)
		size = h.size
		return err
	})
	return size, err
}

// Read returns up to limit records from an index on, in order. There are gaps
// where events were pruned. next is where to go on: it is index when there is
// nothing yet.
func (t *Trail) Read(ctx context.Context, index int64, limit int) (records []trail.Record, next int64, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		h, err := readHead(ctx, tx)
		if err != nil {
			return err
		}
		records, next, err = read(ctx, tx, h, index, h.size, limit)
		return err
	})
	return records, next, err
}

// read returns records of [index, end).
func read(ctx context.Context, tx *store.Tx, h head, index, end int64, limit int) (records []trail.Record, next int64, err error) {
	if index >= end {
		return nil, index, nil
	}
	limit = min(max(limit, 1), maxRead)
	var w where
	w.add("leaf_index >= ?", index)
	w.add("leaf_index < ?", end)
	if records, err = readRecords(ctx, tx, h.origin, w, limit); err != nil {
		return nil, 0, err
	}
	next = end
	if len(records) == limit {
		next = records[limit-1].Index + 1
	}
	return records, next, fillHashes(newTileReader(ctx, tx), records)
}

// readRecords returns records in order of their index, without their hashes.
func readRecords(ctx context.Context, tx *store.Tx, origin string, w where, limit int) ([]trail.Record, error) {
	rows, err := tx.Query(ctx, `SELECT leaf_index, erased, `+eventColumns+`, salt, checks FROM events`+w.String()+fmt.Sprintf(" ORDER BY leaf_index LIMIT %d", limit), w.args...)
	if err != nil {
		return nil, fmt.Errorf("read the trail: %w", err)
	}
	defer rows.Close()
	var records []trail.Record
	for rows.Next() {
		r := trail.Record{Origin: origin}
		var at, erased int64
		if err := rows.Scan(&r.Index, &erased, &r.ID, &at, &r.Actor, &r.Action, &r.Resource, &r.Partner, &r.Outcome, &r.Reason, &r.RequestID, &r.Address, &r.Detail, &r.Count, &r.Intent, &r.Salt, &r.Checks); err != nil {
			return nil, err
		}
		r.Time = time.UnixMicro(at).UTC()
		setErased(&r.Event, erased)
		records = append(records, r)
	}
	return records, rows.Err()
}

// fillHashes sets the leaf hashes of records as the tree has them.
func fillHashes(tiles *tileReader, records []trail.Record) error {
	for i := range records {
		h, err := tiles.node(0, records[i].Index)
		if err != nil {
			return err
		}
		records[i].Hash = h
	}
	return nil
}

// Follow calls f with the records from an index on, and goes on with new ones as
// they come, until ctx ends or f fails. f is also called, without records, when
// there is nothing new for the first time.
func (t *Trail) Follow(ctx context.Context, index int64, f func(records []trail.Record, next int64) error) error {
	woken, stop := t.DB.Listen(TopicSequenced)
	defer stop()
	for told := false; ; {
		records, next, err := t.Read(ctx, index, 1000)
		if err != nil {
			return err
		}
		if next > index || !told {
			told = next == index
			if err := f(records, next); err != nil {
				return err
			}
			index = next
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-woken:
		case <-time.After(floor):
		}
	}
}

// Next is Read for one who waits: it returns once there is a record at or behind
// index, or ctx has ended.
func (t *Trail) Next(ctx context.Context, index int64, limit int) ([]trail.Record, error) {
	woken, stop := t.DB.Listen(TopicSequenced)
	defer stop()
	for {
		records, next, err := t.Read(ctx, index, limit)
		if err != nil || len(records) > 0 {
			return records, err
		}
		if next > index {
			index = next // what was between is pruned
			continue
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-woken:
		case <-time.After(floor):
		}
	}
}

// Cursor returns the leaf index that a follower reads next, or fault.ErrNotFound.
func (t *Trail) Cursor(ctx context.Context, name string) (next int64, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		err := tx.QueryRow(ctx, `SELECT next FROM cursors WHERE name = $1`, name).Scan(&next)
		if errors.Is(err, sql.ErrNoRows) {
			return fault.New(fault.ErrNotFound, "cursor_not_found", "cursor %q does not exist", clip(name))
		}
		return err
	})
	return next, err
}

// SetCursor moves a follower's cursor, from where it is to where it shall be. It
// fails with fault.ErrChanged when another process moved it. A cursor that is not
// there is at 0.
func (t *Trail) SetCursor(ctx context.Context, name string, from, to int64) error {
	return t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if from == 0 {
			if _, err := tx.Exec(ctx, `INSERT INTO cursors (name, next, updated_at) VALUES ($1, 0, $2) ON CONFLICT (name) DO NOTHING`, name, store.Micros(tx.Now)); err != nil {
				return fmt.Errorf("make cursor %q: %w", clip(name), err)
			}
		}
		return tx.Swap(ctx, `UPDATE cursors SET next = $1, updated_at = $2 WHERE name = $3 AND next = $4`, to, store.Micros(tx.Now), name, from)
	})
}

// Changes tells a cache what to read again: the resources below prefix ("keysets/"),
// named without it, that have events at or behind a leaf index, those included that
// wait for theirs, in the caller's transaction. Whoever calls it again with next misses nothing that was
// committed; resources may be named again. resources is nil and all is true when
// that can't be told, because the tree is smaller than index (an older database
// took over) or there is too much: then everything is to be read again. Usage changes
// nothing, and is passed over.
func Changes(ctx context.Context, tx *store.Tx, index int64, prefix string) (resources []string, next int64, all bool, err error) {
	var pruned int64
	if err := tx.QueryRow(ctx, `SELECT size, pruned FROM trail WHERE id = 1`).Scan(&next, &pruned); err != nil {
		return nil, 0, false, fmt.Errorf("read the head of the trail: %w", err)
	}
	if next < index || index < pruned {
		return nil, next, true, nil
	}
	end := prefix[:len(prefix)-1] + string(prefix[len(prefix)-1]+1)
	rows, err := tx.Query(ctx, `SELECT resource FROM events WHERE leaf_index >= $1 AND resource >= $2 AND resource < $3 AND action NOT IN ($4, $5, $6)
		UNION SELECT resource FROM event_queue WHERE resource >= $7 AND resource < $8 AND action NOT IN ($9, $10, $11) LIMIT 10001`,
		index, prefix, end, SigningKeyUsage, APIKeyUsage, RequestSecretUsage, prefix, end, SigningKeyUsage, APIKeyUsage, RequestSecretUsage)
	if err != nil {
		return nil, 0, false, fmt.Errorf("read what changed: %w", err)
	}
	defer rows.Close()
	for n := 0; rows.Next(); n++ {
		if n == 10000 {
			return nil, next, true, nil
		}
		var r string
		if err := rows.Scan(&r); err != nil {
			return nil, 0, false, err
		}
		resources = append(resources, strings.TrimPrefix(r, prefix))
	}
	return resources, next, false, rows.Err()
}

// Checkpoint returns the newest signed checkpoint, with the cosignatures of
// witnesses, or fault.ErrNotFound before the first event.
func (t *Trail) Checkpoint(ctx context.Context) (c trail.Checkpoint, signed string, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, signed, err = checkpointAt(ctx, tx, -1)
		return err
	})
	return c, signed, err
}

// checkpointAt returns the checkpoint of a size, or the newest for -1.
func checkpointAt(ctx context.Context, tx *store.Tx, size int64) (c trail.Checkpoint, signed string, err error) {
	text := `SELECT signed FROM checkpoints WHERE size = $1`
	args := []any{size}
	if size < 0 {
		text, args = `SELECT signed FROM checkpoints ORDER BY size DESC LIMIT 1`, nil
	}
	err = tx.QueryRow(ctx, text, args...).Scan(&signed)
	if errors.Is(err, sql.ErrNoRows) {
		return c, "", fault.New(fault.ErrNotFound, "checkpoint_not_found", "there is no checkpoint of this size (or none yet: the first event makes one)")
	}
	if err != nil {
		return c, "", fmt.Errorf("read a checkpoint: %w", err)
	}
	body, _, _ := strings.Cut(signed, "\n\n")
	if c, err = trail.ParseCheckpoint(body + "\n"); err != nil {
		return c, "", fmt.Errorf("read a checkpoint: %w", err)
	}
	rows, err := tx.Query(ctx, `SELECT line FROM cosignatures WHERE size = $1 ORDER BY witness`, c.Size)
	if err != nil {
		return c, "", fmt.Errorf("read cosignatures: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return c, "", err
		}
		signed += strings.TrimSuffix(line, "\n") + "\n"
	}
	return c, signed, rows.Err()
}

// AddCosignature keeps a witness's signature line of the checkpoint of a size. The
// caller has verified it.
func (t *Trail) AddCosignature(ctx context.Context, size int64, witness, line string, at time.Time) error {
	return t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO cosignatures (size, witness, line, signed_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (size, witness) DO UPDATE SET line = excluded.line, signed_at = excluded.signed_at`, size, witness, line, store.Micros(at))
		if err != nil {
			return fmt.Errorf("keep the cosignature of %s: %w", clip(witness), err)
		}
		return nil
	})
}

// Consistency proves that the tree of newSize leaves extends that of oldSize.
func (t *Trail) Consistency(ctx context.Context, oldSize, newSize int64) (proof tlog.TreeProof, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		h, err := readHead(ctx, tx)
		if err != nil {
			return err
		}
		if oldSize < 0 || oldSize > newSize || newSize > h.size {
			return fault.Invalid("old_size", "size_range", "prove that a tree of %d leaves extends one of %d: want 0 ≤ old ≤ new ≤ %d, the size of the log: a larger old checkpoint means that this log was cut", newSize, oldSize, h.size)
		}
		if oldSize == 0 || oldSize == newSize {
			return nil
		}
		proof, err = tlog.ProveTree(newSize, oldSize, newTileReader(ctx, tx))
		return err
	})
	return proof, err
}

// Root returns the root hash of the tree's first size leaves.
func (t *Trail) Root(ctx context.Context, size int64) (root tlog.Hash, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		h, err := readHead(ctx, tx)
		if err != nil {
			return err
		}
		if size < 0 || size > h.size {
			return fault.Invalid("size", "size_range", "there is no tree of %d leaves: the log has %d", size, h.size)
		}
		root, err = tlog.TreeHash(size, newTileReader(ctx, tx))
		return err
	})
	return root, err
}

// Proof is what shows that an event stands in the log.
type Proof struct {
	Record     trail.Record
	Inclusion  tlog.RecordProof
	Checkpoint string // signed
}

// Prove proves that the event with an id is in the log, under its newest
// checkpoint.
func (t *Trail) Prove(ctx context.Context, id string) (p Proof, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, signed, err := checkpointAt(ctx, tx, -1)
		if err != nil {
			return err
		}
		var w where
		w.add("id = ?", clip(id))
		records, err := readRecords(ctx, tx, c.Origin, w, 1)
		if err != nil {
			return err
		}
		if len(records) == 0 {
			return fault.New(fault.ErrNotFound, "event_not_found", "event %q is not in the log: it is pruned, waits to be sequenced, or never was: see `rotunda audit list`", clip(id)).On("id")
		}
		tiles := newTileReader(ctx, tx)
		if err := fillHashes(tiles, records); err != nil {
			return err
		}
		p = Proof{Record: records[0], Checkpoint: signed}
		p.Inclusion, err = tlog.ProveRecord(c.Size, records[0].Index, tiles)
		return err
	})
	return p, err
}

// Tile returns the hashes of a tile of the tree, up to width of them (1 to 256),
// as C2SP tlog-tiles has it, or fault.ErrNotFound.
func (t *Trail) Tile(ctx context.Context, level, n int64, width int) (raw []byte, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		hashes, err := readTile(ctx, tx, tile{level, n})
		if err != nil {
			return err
		}
		if len(hashes) < width {
			return fault.New(fault.ErrNotFound, "tile_not_found", "the tree has no such tile yet")
		}
		for _, h := range hashes[:width] {
			raw = append(raw, h[:]...)
		}
		return nil
	})
	return raw, err
}

// Entries returns the leaves of an entry bundle (C2SP tlog-tiles): width entries
// from 256·n on, each after its length in two bytes. It is fault.ErrNotFound when
// one of them is not there yet, or was pruned.
func (t *Trail) Entries(ctx context.Context, n int64, width int) (bundle []byte, err error) {
	records, _, err := t.Read(ctx, n*tileWidth, width)
	if err != nil {
		return nil, err
	}
	if len(records) < width || records[width-1].Index != n*tileWidth+int64(width)-1 {
		return nil, fault.New(fault.ErrNotFound, "entries_not_found", "these entries are not there yet, or were pruned")
	}
	for i := range records {
		l, err := records[i].Leaf()
		if err != nil {
			return nil, fmt.Errorf("encode event %d: %w", records[i].Index, err)
		}
		b, err := l.Encode()
		if err != nil {
			return nil, fmt.Errorf("encode event %d: %w", records[i].Index, err)
		}
		bundle = append(bundle, byte(len(b)>>8), byte(len(b)))
		bundle = append(bundle, b...)
	}
	return bundle, nil
}

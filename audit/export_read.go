package audit

import (
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const recordColumns = `leaf_index, erased, ` + eventColumns + `, salt, checks`

// read reads the next batch into e.records and e.pieces, and moves e.next behind it.
//
// Where every row has to be looked at, because the leaves of those that do not
// match are asked for, or because some are pruned, it reads them all, and the
// database says which ones match. Elsewhere it reads those that match, by index,
// and what is between two of them is one gap.
func (e *exporter) read(ctx context.Context, tx *store.Tx) error {
	b := batchReader{e: e, next: e.next, until: e.end}
	filtered := len(e.filter.conditions) > 0
	b.all = !filtered || e.request.Omitted || e.next < e.pruned
	w := where{args: e.filter.args}
	hit := "TRUE"
	if filtered {
		hit = strings.Join(e.filter.conditions, " AND ")
		if e.request.Omitted {
			// What shows that nothing else was cut out is always there: a leaf alone does
			// not tell what was pruned.
			hit = "(" + hit + " OR action = '" + bundle.PruneAction + "')"
		}
	}
	if b.all && filtered && !e.request.Omitted {
		b.until = min(b.until, e.pruned)
	}
	if b.all && e.next >= e.pruned {
		// Every leaf has a row there. A planner without statistics would read and
		// sort all of a longer range for each batch.
		b.until = min(b.until, e.next+exportRows)
	}
	if !b.all {
		w.conditions, hit = e.filter.conditions, "TRUE"
	} else if !filtered {
		w.args = nil
	}
	w.conditions, w.args = w.conditions[:len(w.conditions):len(w.conditions)], w.args[:len(w.args):len(w.args)]
	w.add("leaf_index >= ?", e.next)
	w.add("leaf_index < ?", b.until)
	clear(e.pieces) // what was given away is not kept alive
	e.pieces = e.pieces[:0]
	if err := b.rows(ctx, tx, `SELECT `+hit+`, `+recordColumns+` FROM events`+w.String()+fmt.Sprintf(" ORDER BY leaf_index LIMIT %d", exportRows), w.args); err != nil {
		return err
	}
	if b.missing {
		r, err := readRetention(ctx, tx)
		if err != nil {
			return err
		}
		if r.prunes != e.prunes {
			return fault.New(fault.ErrChanged, "pruned_meanwhile", "events were pruned while they were exported: begin anew")
		}
	}
	if err := b.hash(ctx, tx); err != nil {
		return err
	}
	e.next = b.next
	return nil
}

// batchReader reads one batch.
type batchReader struct {
	e       *exporter
	all     bool
	next    int64 // the leaf that is due
	until   int64 // the batch goes no further
	n       int   // records
	run     *bundle.Gap
	missing bool // a gap holds leaves that have no row

	// One row's scan.
	hit          any
	at, erased   any
	index, count any
	salt, checks sql.RawBytes
}

func (b *batchReader) rows(ctx context.Context, tx *store.Tx, query string, args []any) error {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("read the trail: %w", err)
	}
	defer rows.Close()
	seen, bytes := 0, 0
	for seen < exportRows && bytes < exportBytes && rows.Next() {
		seen++
		size, err := b.row(rows)
		if err != nil {
			return err
		}
		bytes += size
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return fmt.Errorf("read the trail: %w", err)
	}
	if seen < exportRows && bytes < exportBytes {
		b.skip(b.until)
	}
	b.endRun()
	return nil
}

// row takes one row in, and returns about how long it is.
func (b *batchReader) row(rows *sql.Rows) (int, error) {
	r := &b.e.records[b.n]
	err := rows.Scan(&b.hit, &b.index, &b.erased, &r.ID, &b.at, &r.Actor, &r.Action, &r.Resource, &r.Partner, &r.Outcome, &r.Reason, &r.RequestID, &r.Address, &r.Detail, &b.count, &r.Intent, &b.salt, &b.checks)
	if err != nil {
		return 0, fmt.Errorf("read the trail: %w", err)
	}
	at, ok1 := b.at.(int64)
	index, ok2 := b.index.(int64)
	count, ok3 := b.count.(int64)
	erased, ok4 := b.erased.(int64)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return 0, fmt.Errorf("read the trail: event %v has a column that is no number: it was altered", b.index)
	}
	buffer := &b.e.salts[b.n]
	r.Origin, r.Index, r.Count, r.Time = b.e.origin, index, count, time.UnixMicro(at).UTC()
	r.Salt, r.Checks = append(buffer.salt[:0], b.salt...), append(buffer.checks[:0], b.checks...)
	clear(r.Erased[:])
	if erased != 0 {
		setErased(&r.Event, erased)
	}
	b.skip(index)
	b.next = index + 1
	if b.hit == true || b.hit == int64(1) {
		b.endRun()
		b.n++
		b.e.pieces = append(b.e.pieces, piece{})
		return len(r.Reason) + len(r.Resource) + len(r.Detail) + len(r.Actor) + len(r.Address) + len(r.RequestID) + len(r.Partner), nil
	}
	b.extend(bundle.Filtered, index, b.next)
	if !b.e.request.Omitted {
		return 0, nil
	}
	l, err := r.Leaf()
	if err != nil {
		return 0, fmt.Errorf("encode event %d: %w: it was altered", index, err)
	}
	entry, err := l.Encode()
	if err != nil {
		return 0, fmt.Errorf("encode event %d: %w: it was altered", index, err)
	}
	b.run.Entries = append(b.run.Entries, entry)
	return len(entry), nil
}

// setErased takes the commitments of erased fields from where their values were.
func setErased(e *trail.Event, mask int64) {
	values := [trail.NumFields]*string{&e.Actor, &e.Partner, &e.Reason, &e.RequestID, &e.Address, &e.Detail}
	for f := range trail.NumFields {
		if mask&(1<<f) != 0 {
			// What can't be decoded stays zero: the verifier then finds the event altered.
			raw, _ := base64.StdEncoding.DecodeString(*values[f])
			copy(e.Erased[f][:], raw)
			*values[f] = ""
		}
	}
}

// skip puts the leaves up to one into a gap.
func (b *batchReader) skip(to int64) {
	if to <= b.next {
		return
	}
	why := bundle.Filtered
	if b.all {
		why, b.missing = bundle.Pruned, true
	}
	b.extend(why, b.next, to)
	b.next = to
}

// extend makes the gap in hand longer, or begins one.
func (b *batchReader) extend(why string, begin, end int64) {
	if b.run != nil && b.run.Why != why {
		b.endRun()
	}
	if b.run == nil {
		b.run = &bundle.Gap{Begin: begin, Why: why}
	}
	b.run.End = end
}

func (b *batchReader) endRun() {
	if b.run != nil {
		b.e.pieces = append(b.e.pieces, piece{gap: b.run})
		b.run = nil
	}
}

// hash gives records their leaf hashes and gaps those of their subtrees, as the
// tree has them.
func (b *batchReader) hash(ctx context.Context, tx *store.Tx) error {
	tiles := newTileReader(ctx, tx)
	if b.n > 0 {
		if err := tiles.fetch(b.e.records[0].Index, b.e.records[b.n-1].Index); err != nil {
			return err
		}
	}
	if err := fillHashes(tiles, b.e.records[:b.n]); err != nil {
		return err
	}
	for _, p := range b.e.pieces {
		if p.gap == nil || len(p.gap.Entries) > 0 {
			continue
		}
		var err error
		if p.gap.Hashes, err = rangeHashes(tiles, p.gap.Begin, p.gap.End); err != nil {
			return err
		}
	}
	return nil
}

// fetch reads the tiles of the leaves first to last with one query, unless they
// are far apart.
func (r *tileReader) fetch(first, last int64) error {
	from, to := first>>tileHeight, last>>tileHeight
	if to-from > 2*exportRows/tileWidth {
		return nil
	}
	rows, err := r.tx.Query(r.ctx, `SELECT n, hashes FROM trail_tiles WHERE level = 0 AND n >= $1 AND n <= $2`, from, to)
	if err != nil {
		return fmt.Errorf("read tiles %d to %d: %w", from, to, err)
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		var raw sql.RawBytes
		if err := rows.Scan(&n, &raw); err != nil {
			return err
		}
		r.seen[tile{0, n}] = unpack(raw)
	}
	return rows.Err()
}

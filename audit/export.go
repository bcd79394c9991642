package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// ExportRequest says what to export. The zero value is the whole log.
type ExportRequest struct {
	// Query filters; its Limit and Page are not used. Erased values match nothing.
	// A time is a condition like the others: events follow their times only
	// nearly, so the leaves between the first and the last that match may hold
	// some that do not.
	Query Query

	// From and Size go on with an export that was interrupted: at the leaf that is
	// due, under the checkpoint that it began with. 0: at the beginning, under the
	// newest checkpoint.
	From, Size int64

	// Omitted also gives the leaves of events that do not match, which tell
	// nothing personal, so that a verifier can check that they do not.
	Omitted bool
}

// ExportSink takes an export, in order. What it gets is valid during the call;
// it is called outside of transactions, so it may be slow.
type ExportSink interface {
	Head(bundle.Head) error
	Record(*trail.Record) error
	Gap(bundle.Gap) error
}

const (
	exportRows  = 5000    // of one read transaction
	exportBytes = 8 << 20 // after as many bytes of text it ends, too
	maxEvidence = 500     // trail.prune events behind an export's checkpoint
	pruneWait   = 5 * time.Second
)

// Export gives the leaves of a tree, in order, to sink: each as a record, or in a
// gap. They end with the tree. They begin at leaf 0, or at request.From, or, for a
// query with Since, at the first leaf of that time or later; where leaves about
// there were pruned, so that nobody knows their times, also these are in it.
//
// It reads in short transactions and needs memory for one of them. What changes
// meanwhile behind the checkpoint's size does not matter. An event that is erased
// meanwhile is exported in the one form or the other. When events are pruned that
// were not exported yet, it fails with fault.ErrChanged: begin anew.
//
// It reports what is in the database and does not judge: an event that is missing
// there without having been pruned is in a gap "pruned", and the verifier finds
// that nobody declared it. Only what makes proofs impossible is an error: a tile
// of the tree that is missing, or no checkpoint of that size.
func (t *Trail) Export(ctx context.Context, request ExportRequest, sink ExportSink) error {
	e := &exporter{request: request, records: make([]trail.Record, exportRows), salts: make([]saltBuffer, exportRows)}
	e.filter.match(request.Query, true)
	var head bundle.Head
	for wait := time.Duration(0); ; {
		err := t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
			if head, err = e.begin(ctx, tx); err != nil {
				return err
			}
			return e.read(ctx, tx)
		})
		if err == nil {
			break
		}
		// The event that declares what was pruned has no leaf index yet.
		if !errors.Is(err, errUndeclared) || wait >= pruneWait {
			return fmt.Errorf("export the trail: %w", err)
		}
		if _, err := t.Sequence(ctx); err != nil && !errors.Is(err, store.ErrHeld) && !errors.Is(err, fault.ErrChanged) {
			return fmt.Errorf("export the trail: %w", err)
		}
		wait += lookEvery
		if !sleep(ctx, lookEvery) {
			return fmt.Errorf("export the trail: %w", ctx.Err())
		}
	}
	if err := sink.Head(head); err != nil {
		return err
	}
	for {
		if err := e.give(sink); err != nil {
			return err
		}
		if e.next == e.end {
			return nil
		}
		err := t.DB.View(ctx, e.read)
		if err != nil {
			return fmt.Errorf("export the trail: leaf %d: %w", e.next, err)
		}
	}
}

var errUndeclared = fault.New(fault.ErrUnavailable, "prune_waits", "events were pruned a moment ago, and the event that says so is not sequenced yet: try again in a second")

// exporter is one export.
type exporter struct {
	request ExportRequest
	filter  where
	origin  string
	end     int64
	pruned  int64 // when it began
	prunes  int64

	next    int64 // the leaf that is due
	records []trail.Record
	salts   []saltBuffer
	pieces  []piece
}

// piece is a gap, or the next record.
type piece struct {
	gap *bundle.Gap
}

type saltBuffer struct {
	salt   [trail.SaltsSize]byte
	checks [trail.ChecksSize]byte
}

// begin finds the range of the export, and what completes the tree around it.
func (e *exporter) begin(ctx context.Context, tx *store.Tx) (bundle.Head, error) {
	h, err := readHead(ctx, tx)
	if err != nil {
		return bundle.Head{}, err
	}
	size := e.request.Size
	if size == 0 {
		size = -1
	}
	c, signed, err := checkpointAt(ctx, tx, size)
	if err != nil {
		return bundle.Head{}, err
	}
	r, err := readRetention(ctx, tx)
	if err != nil {
		return bundle.Head{}, err
	}
	if c.Size > h.size || e.request.From < 0 || e.request.From > c.Size {
		return bundle.Head{}, fault.Invalid("index", "index_range", "go on at leaf %d of a checkpoint of %d: the log has %d leaves", e.request.From, c.Size, h.size)
	}
	e.origin, e.end, e.pruned, e.prunes, e.next = c.Origin, c.Size, h.pruned, r.prunes, e.request.From
	if e.next == 0 {
		if e.next, err = e.first(ctx, tx); err != nil {
			return bundle.Head{}, err
		}
	}
	head := bundle.Head{Origin: c.Origin, Checkpoint: signed, Begin: e.next, End: e.end, Filter: e.request.Query.filter()}
	if head.Keys, head.Handovers, err = readKeys(ctx, tx); err != nil {
		return bundle.Head{}, err
	}
	if e.next < h.pruned {
		if head.Evidence, err = e.evidence(ctx, tx); err != nil {
			return bundle.Head{}, err
		}
	}
	tiles := newTileReader(ctx, tx)
	if head.Left, err = rangeHashes(tiles, 0, head.Begin); err != nil {
		return bundle.Head{}, err
	}
	head.Right, err = rangeHashes(tiles, head.End, c.Size)
	return head, err
}

// first returns where the range of the query begins.
func (e *exporter) first(ctx context.Context, tx *store.Tx) (begin int64, err error) {
	if e.request.Query.Since.IsZero() {
		return 0, nil
	}
	err = tx.QueryRow(ctx, `SELECT COALESCE(MIN(leaf_index), $1) FROM events WHERE occurred_at >= $2 AND leaf_index < $3`, e.end, store.Micros(e.request.Query.Since), e.end).Scan(&begin)
	if err != nil {
		return 0, fmt.Errorf("find the first event of the time: %w", err)
	}
	if begin > e.pruned {
		return begin, nil
	}
	// What was pruned right before it may have been of that time.
	err = tx.QueryRow(ctx, `SELECT COALESCE(MAX(leaf_index), -1) + 1 FROM events WHERE leaf_index < $1`, begin).Scan(&begin)
	return begin, err
}

// evidence returns proofs of the events behind the range that declare what was
// pruned in it.
func (e *exporter) evidence(ctx context.Context, tx *store.Tx) ([]string, error) {
	var waits bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM event_queue WHERE action = $1)`, bundle.PruneAction).Scan(&waits); err != nil {
		return nil, err
	}
	if waits {
		return nil, errUndeclared
	}
	c, signed, err := checkpointAt(ctx, tx, -1)
	if err != nil {
		return nil, err
	}
	var w where
	w.add("action = ?", bundle.PruneAction)
	w.add("leaf_index >= ?", e.end)
	w.add("leaf_index < ?", c.Size) // a row behind the tree's end is nothing that the log has
	records, err := readRecords(ctx, tx, e.origin, w, maxEvidence+1)
	if err != nil || len(records) == 0 {
		return nil, err
	}
	if len(records) > maxEvidence {
		return nil, fault.New(fault.ErrChanged, "export_old", "events were pruned more than %d times since the export began: begin anew", maxEvidence)
	}
	tiles := newTileReader(ctx, tx)
	if err := fillHashes(tiles, records); err != nil {
		return nil, err
	}
	var out []string
	for i := range records {
		p := trail.Proof{Index: records[i].Index, Checkpoint: signed}
		records[i].Origin = c.Origin
		if p.Extra, err = format.AppendJSON(nil, &records[i]); err != nil {
			return nil, err
		}
		if p.Hashes, err = tlog.ProveRecord(c.Size, p.Index, tiles); err != nil {
			return nil, err
		}
		text, err := trail.FormatProof(p)
		if err != nil {
			return nil, err
		}
		out = append(out, text)
	}
	return out, nil
}

// rangeHashes returns the hashes of the subtrees that cover the leaves [begin, end).
func rangeHashes(tiles *tileReader, begin, end int64) ([]tlog.Hash, error) {
	var hashes []tlog.Hash
	for _, n := range trail.RangeNodes(begin, end) {
		h, err := tiles.node(uint(n.Level), n.Index)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, h)
	}
	return hashes, nil
}

// filter is a query as a bundle has it.
func (q Query) filter() map[string]string {
	f := map[string]string{}
	for name, value := range map[string]string{
		"actor": q.Actor, "action": q.Action, "resource": q.Resource, "partner": q.Partner, "outcome": q.Outcome, "request_id": q.RequestID, "address": q.Address,
	} {
		if value = clip(value); value != "" {
			f[name] = value
		}
	}
	for name, at := range map[string]time.Time{"since": q.Since, "until": q.Until} {
		if !at.IsZero() {
			f[name] = stamp(at)
		}
	}
	return f
}

// give hands over what was read.
func (e *exporter) give(sink ExportSink) error {
	n := 0
	for _, p := range e.pieces {
		if p.gap != nil {
			if err := sink.Gap(*p.gap); err != nil {
				return err
			}
			continue
		}
		if err := sink.Record(&e.records[n]); err != nil {
			return err
		}
		n++
	}
	return nil
}

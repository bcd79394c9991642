package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// VerifyProof verifies the proof of one event (C2SP tlog-proof whose extra data
// is the event as a line of jsonl), and returns the event. Its errors are of type
// [Finding].
func VerifyProof(text string, keys *trail.Keys) (trail.Record, error) {
	fail := func(kind string, index int64, id string, fields []string, text string, args ...any) (trail.Record, error) {
		return trail.Record{}, Finding{Kind: kind, Index: index, ID: clip(id), Fields: fields, Text: fmt.Sprintf(text, args...)}
	}
	p, err := trail.ParseProof(text)
	if err != nil {
		return fail(Format, -1, "", nil, "%v", err)
	}
	c, err := keys.Open(p.Checkpoint)
	if errors.Is(err, trail.ErrSignature) {
		return fail(Signature, p.Index, "", nil, "%v", err)
	} else if err != nil {
		return fail(Format, p.Index, "", nil, "%v", err)
	}
	var r trail.Record
	reader, err := format.NewReader("jsonl", bytes.NewReader(append(bytes.Clone(p.Extra), '\n')))
	if err == nil {
		err = reader.Read(&r)
	}
	if err == nil && !errors.Is(reader.Read(&trail.Record{}), io.EOF) {
		err = errors.New("it is more than one record")
	}
	if err != nil {
		return fail(Format, p.Index, "", nil, "the event in the proof can't be read: %v", err)
	}
	if r.Origin != c.Origin {
		return fail(Altered, p.Index, r.ID, []string{"origin"}, "event %d says that it is of the log %q, and the checkpoint is of %q", p.Index, clip(r.Origin), c.Origin)
	}
	if r.Index != p.Index {
		return fail(Altered, p.Index, r.ID, []string{"index"}, "the event says that its index is %d, and the proof is of %d", r.Index, p.Index)
	}
	h, err := r.Event.Hash()
	if err != nil {
		return fail(Altered, p.Index, r.ID, r.Differs(), "event %d is none that a log could hold: %v", p.Index, err)
	}
	if h != r.Hash {
		names := r.Differs()
		if len(names) == 0 {
			names = []string{"hash"}
		}
		return fail(Altered, p.Index, r.ID, names, "event %d (%s): %s altered after the event was recorded", p.Index, clip(r.ID), were(names))
	}
	if p.Index >= c.Size {
		return fail(Truncated, p.Index, r.ID, nil, "the checkpoint is of %d leaves, and has no event %d: it was replaced by an older one", c.Size, p.Index)
	}
	if err := tlog.CheckRecord(p.Hashes, c.Size, c.Root, p.Index, h); err != nil {
		if names := r.Differs(); len(names) > 0 {
			return fail(Altered, p.Index, r.ID, names, "event %d (%s): %s altered after the event was recorded, and its leaf hash with it", p.Index, clip(r.ID), were(names))
		}
		return fail(Root, p.Index, r.ID, nil, "the event and the hashes of the proof do not give the root hash that the checkpoint signs: the event was altered or is not in the log, or the hashes were altered")
	}
	if names := r.Differs(); len(names) > 0 {
		return fail(Altered, p.Index, r.ID, []string{"checks"}, "event %d (%s) is what the log has, but its checks are not: they were altered", p.Index, clip(r.ID))
	}
	return r, nil
}

// Compare tells whether the newer of two verified checkpoints of a log extends
// the older one, by the consistency proof between them (RFC 6962, section 2.1.2).
// Its errors are of type [Finding]: fork or rollback.
func Compare(older, newer trail.Checkpoint, proof tlog.TreeProof) error {
	fail := func(kind, text string, args ...any) error {
		return Finding{Kind: kind, Index: -1, Text: fmt.Sprintf(text, args...)}
	}
	switch {
	case older.Origin != newer.Origin:
		return fail(Fork, "the checkpoints are of two logs, %q and %q", older.Origin, newer.Origin)
	case newer.Size < older.Size:
		return fail(Rollback, "the log had %d leaves, and now it has %d: the end was cut off, or an old copy of the database was put back", older.Size, newer.Size)
	case newer.Size == older.Size:
		if newer.Root != older.Root {
			return fail(Fork, "there are two checkpoints of %d leaves with two root hashes: the log was rewritten, or shows two people two histories", older.Size)
		}
		return nil
	case older.Size == 0:
		return nil // every log extends the empty one
	}
	if err := tlog.CheckTree(proof, newer.Size, newer.Root, older.Size, older.Root); err != nil {
		return fail(Fork, "the log of %d leaves does not extend the one of %d leaves that was signed before (%v): events were rewritten, or the proof was altered", newer.Size, older.Size, err)
	}
	return nil
}

// Package bundle writes and verifies bundles: files that prove a range of a
// trail to somebody who has the log's public key and nothing else, neither
// server nor network nor database.
//
// # Model
//
// A bundle is a folder, or a zip of the same files, over the leaves [begin, end)
// of the tree of one checkpoint. Every one of these leaves is there in one of
// two ways: as a record, or in a gap, which is a run of leaves that were left
// out because of the filter or because they were pruned. A gap has the hashes of
// the subtrees that cover it, so that a million leaves cost a few dozen hashes,
// or the leaves themselves (which tell nothing personal), so that a verifier can
// check that the filter really leaves them out. The hashes left of begin and
// right of end complete the root that the checkpoint signs. So nothing can be
// added, taken away, changed or moved without another root.
//
// Files, all UTF-8, lines end with \n:
//
//	manifest.json       [Manifest], indented with two spaces, written last
//	data-000000.<ext>   the records of part 0 in a format of package format;
//	                    not there when the part has none
//	gaps-000000         the gaps of part 0; not there when the part has none
//	tree                the line "rotunda trail tree 1", then a line
//	                    "left <hash>" for each subtree over [0, begin) and a line
//	                    "right <hash>" for each one over [end, size)
//	checkpoint          the signed note
//	keys                the log's vkeys, oldest first, a line each
//	handovers           signed notes by which each key handed over to the next,
//	                    an empty line between two; not there when there is none
//	evidence            proofs (C2SP tlog-proof) of events after end that declare
//	                    what was pruned, an empty line between two; not there
//	                    when there is none
//	unfinished          only while it is written: see below
//
// A part covers a run of leaves, has at most 100,000 records, and begins where
// the one before ended. A gaps file begins with the line "rotunda trail gaps 1".
// Each gap is a line "gap <begin> <end> <why>", where why is filter or pruned;
// then either a line "hash <hash>" for each of its subtrees, left to right, or a
// line "leaf <leaf>" for each of its leaves, at most 4096. Hashes and leaves are
// in base64 with padding. The subtrees that cover a range are those of
// [trail.RangeNodes].
//
// # Writing
//
// A part is written under another name, synced, renamed and then noted in the
// file unfinished, a line each. After a crash at any point [Resume] goes on
// after the last part that was noted. The manifest comes last, then unfinished
// is removed. Memory does not grow with the number of records or gaps.
//
// # Verification
//
// [Verify] trusts the keys that it is given and nothing in the bundle. It goes
// on after a [Finding] where it can. Parts are verified at the same time and
// combined in order, each by the subtree hashes of its leaves.
//
// What was pruned must be declared by an event "trail.prune" with outcome ok
// whose detail has "begin" and "end", and which stands after the leaves that it
// declares. With "deleted" it says how many of these leaves are gone: others were
// kept, as under a legal hold, and no more may be missing than the events say
// together. In a bundle without a filter such an event that is missing, both in
// the range and in the evidence, is a finding. A filtered bundle may have left it
// out with the rest: then the range is listed as undeclared, and is no finding,
// unless Options.Whole asks for a bundle that hides nothing.
// Events "trail.prune" may be in every bundle, whatever its filter.
//
// What a bundle does not show: that its filter was the one asked for, and, where
// a gap has hashes only, that the filter leaves those events out. Report.Unseen
// counts them, and Options.Whole makes them a finding.
package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// Why leaves are not in the data.
const (
	Filtered = "filter"
	Pruned   = "pruned"
)

// Bounds. A bundle beyond them is refused.
const (
	maxPartRecords = 100_000
	maxGapEntries  = 4096
	maxManifest    = 64 << 20
	maxText        = 4 << 20 // each of tree, keys, handovers, checkpoint and evidence
	maxParts       = 200_000
	cutGapBytes    = 4 << 20   // a part ends when its gaps have this many bytes
	cutDataBytes   = 256 << 20 // or its data
	maxFileBytes   = 1 << 30   // of a part's file, unpacked
)

const (
	fileManifest   = "manifest.json"
	fileTree       = "tree"
	fileCheckpoint = "checkpoint"
	fileKeys       = "keys"
	fileHandovers  = "handovers"
	fileEvidence   = "evidence"
	fileUnfinished = "unfinished"
)

// Head is what is known of a bundle before its records are.
type Head struct {
	Origin     string            `json:"origin"`
	Checkpoint string            `json:"checkpoint"` // a signed note, of a tree that has End leaves or more
	Keys       []string          `json:"keys"`       // vkeys, oldest first
	Handovers  []string          `json:"handovers"`  // signed notes, one between each two keys
	Evidence   []string          `json:"evidence"`   // proofs of trail.prune events at End or after it
	Begin      int64             `json:"begin"`
	End        int64             `json:"end"`
	Left       []tlog.Hash       `json:"left"`   // trail.RangeNodes(0, Begin)
	Right      []tlog.Hash       `json:"right"`  // trail.RangeNodes(End, the checkpoint's size)
	Filter     map[string]string `json:"filter"` // see [ParseFilter]
}

// Gap is a run of leaves that are not in the data.
type Gap struct {
	Begin, End int64
	Why        string      // Filtered or Pruned
	Hashes     []tlog.Hash // trail.RangeNodes(Begin, End); not needed when there are Entries
	Entries    [][]byte    // none, or the leaves as trail.Leaf.Encode gives them
}

// Manifest lists a bundle's files. Nothing vouches for it: what it says is
// checked against the tree.
type Manifest struct {
	Version        int               `json:"version"` // 1
	Origin         string            `json:"origin"`
	Format         string            `json:"format"`
	Filter         map[string]string `json:"filter"`
	Begin          int64             `json:"begin"`
	End            int64             `json:"end"`
	CheckpointSize int64             `json:"checkpoint_size"`
	Records        int64             `json:"records"`
	Parts          []Part            `json:"parts"`
}

// Part is a run of leaves and the files that hold it.
type Part struct {
	Begin   int64 `json:"begin"`
	End     int64 `json:"end"`
	Records int64 `json:"records"`
	Gaps    int64 `json:"gaps"`
	Data    *File `json:"data,omitempty"`
	GapFile *File `json:"gap_file,omitempty"`
}

// File is a file of a part.
type File struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // lower-case hexadecimal
}

func dataName(part int, extension string) string {
	return fmt.Sprintf("data-%06d.%s", part, strings.TrimPrefix(extension, "."))
}

func gapsName(part int) string { return fmt.Sprintf("gaps-%06d", part) }

func (m *Manifest) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	return append(b, '\n'), err
}

// parseManifest reads a manifest and checks everything that needs no other file.
func parseManifest(raw []byte) (*Manifest, error) {
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("it is no manifest: %w", err)
	}
	if m.Version != 1 {
		return nil, fmt.Errorf("it has version %d, and this program knows 1: a newer one may have written it", m.Version)
	}
	// One text for each manifest, so that nothing in it can be read in two ways.
	if again, err := m.encode(); err != nil || !bytes.Equal(again, raw) {
		return nil, errors.New("it is not in the form in which exports are written: it was edited")
	}
	extension, err := extensionOf(m.Format)
	switch {
	case err != nil:
		return nil, err
	case m.Begin < 0 || m.End < m.Begin || m.CheckpointSize < m.End:
		return nil, fmt.Errorf("the leaves %d to %d are no range of a tree of size %d", m.Begin, m.End, m.CheckpointSize)
	case len(m.Parts) > maxParts:
		return nil, fmt.Errorf("it has %d parts, and the limit is %d", len(m.Parts), maxParts)
	}
	for i, p := range m.Parts {
		switch {
		case p.Begin < m.Begin || p.End <= p.Begin || p.End > m.End:
			return nil, fmt.Errorf("part %d has the leaves %d to %d, which are no range of the bundle", i, p.Begin, p.End)
		case p.Records < 0 || p.Records > maxPartRecords || p.Gaps < 0 || p.Gaps > p.End-p.Begin:
			return nil, fmt.Errorf("part %d has %d records and %d gaps, which can't be", i, p.Records, p.Gaps)
		case (p.Data == nil) != (p.Records == 0) || (p.GapFile == nil) != (p.Gaps == 0):
			return nil, fmt.Errorf("part %d lists a file that it has no use for, or lacks one", i)
		case p.Data != nil && p.Data.Name != dataName(i, extension) || p.GapFile != nil && p.GapFile.Name != gapsName(i):
			return nil, fmt.Errorf("part %d has files by other names than %s and %s", i, dataName(i, extension), gapsName(i))
		}
		for _, f := range []*File{p.Data, p.GapFile} {
			if f != nil && (f.Bytes < 1 || f.Bytes > maxFileBytes || len(f.SHA256) != 64) {
				return nil, fmt.Errorf("%s has %d bytes, of at most %d, and a SHA-256 of %d letters, which can't be", f.Name, f.Bytes, int64(maxFileBytes), len(f.SHA256))
			}
		}
	}
	return &m, nil
}

func extensionOf(name string) (string, error) {
	for _, n := range format.Names {
		if n == name {
			return format.Extension(name), nil
		}
	}
	return "", fmt.Errorf("%.40q is none of the formats %s", name, strings.Join(format.Names, ", "))
}

// check reports what of a head can't be.
func (h *Head) check() (trail.Checkpoint, error) {
	text, _, ok := strings.Cut(h.Checkpoint, "\n\n")
	if !ok {
		return trail.Checkpoint{}, errors.New("the checkpoint is no signed note")
	}
	c, err := trail.ParseCheckpoint(text + "\n")
	if err != nil {
		return c, err
	}
	if _, err := ParseFilter(h.Filter); err != nil {
		return c, err
	}
	switch {
	case c.Origin != h.Origin:
		return c, fmt.Errorf("the checkpoint is of %q, and the bundle of %q", c.Origin, h.Origin)
	case h.Begin < 0 || h.End < h.Begin || h.End > c.Size:
		return c, fmt.Errorf("the leaves %d to %d are no range of a tree of size %d", h.Begin, h.End, c.Size)
	case len(h.Keys) == 0 || len(h.Handovers) != len(h.Keys)-1:
		return c, fmt.Errorf("there are %d keys and %d handovers: one is due between each two keys", len(h.Keys), len(h.Handovers))
	}
	if _, err := trail.NewRange(0, h.Begin, h.Left); err != nil {
		return c, err
	}
	_, err = trail.NewRange(h.End, c.Size, h.Right)
	return c, err
}

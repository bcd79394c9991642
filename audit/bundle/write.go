package bundle

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"strings"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// ErrUnfinished is what Close returns for a bundle that ends before its range
// does. A folder holds what was written so far; [Resume] goes on there.
var ErrUnfinished = errors.New("the bundle ends before its range does")

// Writer writes a bundle: records and gaps in the order of their indexes, none
// left out. It is for one goroutine. After an error it refuses everything.
type Writer struct {
	out       output
	head      Head
	size      int64 // of the checkpoint's tree
	format    string
	extension string

	next  int64
	parts []Part // finished
	part  Part   // in hand
	data  *dataFile
	gaps  []byte
	err   error
}

// output is where a bundle's files go.
type output interface {
	// create begins a file; closing it makes it whole and durable.
	create(name string) (io.WriteCloser, error)
	// note records that a part's files are there.
	note(Part) error
	// finish is called after the last file.
	finish() error
	// release lets go of what is open, after finish or instead of it.
	release()
}

func newWriter(out output, head Head, formatName string) (*Writer, error) {
	c, err := head.check()
	if err != nil {
		return nil, fmt.Errorf("begin a bundle: %w", err)
	}
	extension, err := extensionOf(formatName)
	if err != nil {
		return nil, fmt.Errorf("begin a bundle: %w", err)
	}
	return &Writer{out: out, head: head, size: c.Size, format: formatName, extension: extension, next: head.Begin}, nil
}

// Next returns the index of the leaf that is due next.
func (w *Writer) Next() int64 { return w.next }

// Write adds the record with index Next.
func (w *Writer) Write(r *trail.Record) error {
	switch {
	case w.err != nil:
		return w.err
	case r.Index != w.next || w.next >= w.head.End:
		return w.fail(fmt.Errorf("event %d is not the one that is due: %d of %d to %d", r.Index, w.next, w.head.Begin, w.head.End))
	case r.Origin != w.head.Origin:
		return w.fail(fmt.Errorf("event %d is of the log %q, and the bundle of %q", r.Index, r.Origin, w.head.Origin))
	}
	w.begin()
	if w.data == nil {
		f, err := w.out.create(dataName(len(w.parts), w.extension))
		if err != nil {
			return w.fail(err)
		}
		if w.data, err = newDataFile(f, w.format); err != nil {
			return w.fail(err)
		}
	}
	if err := w.data.format.Write(r); err != nil {
		return w.fail(fmt.Errorf("event %d: %w", r.Index, err))
	}
	w.part.Records++
	w.next++
	return w.cut()
}

// Gap adds leaves that are not in the data, from Next on.
func (w *Writer) Gap(g Gap) error {
	if w.err != nil {
		return w.err
	}
	if g.Begin != w.next || g.End <= g.Begin || g.End > w.head.End {
		return w.fail(fmt.Errorf("the gap %d to %d is not the one that is due: from %d, to %d at most", g.Begin, g.End, w.next, w.head.End))
	}
	if g.Why != Filtered && g.Why != Pruned {
		return w.fail(fmt.Errorf("the gap %d to %d has the reason %.20q, which is none", g.Begin, g.End, g.Why))
	}
	if len(g.Entries) == 0 {
		if err := g.settle(trail.RangeSize(g.Begin, g.End)); err != nil {
			return w.fail(err)
		}
		return w.gap(&g)
	}
	if int64(len(g.Entries)) != g.End-g.Begin {
		return w.fail(fmt.Errorf("the gap %d to %d has %d leaves", g.Begin, g.End, len(g.Entries)))
	}
	for i, e := range g.Entries {
		if _, err := trail.ParseLeaf(e); err != nil {
			return w.fail(fmt.Errorf("the leaf %d: %w", g.Begin+int64(i), err))
		}
	}
	for len(g.Entries) > 0 {
		n := min(len(g.Entries), maxGapEntries)
		piece := Gap{Begin: g.Begin, End: g.Begin + int64(n), Why: g.Why, Entries: g.Entries[:n]}
		if err := w.gap(&piece); err != nil {
			return err
		}
		g.Begin, g.Entries = piece.End, g.Entries[n:]
	}
	return nil
}

func (w *Writer) gap(g *Gap) error {
	w.begin()
	if len(w.gaps) == 0 {
		w.gaps = append(w.gaps, gapsTitle+"\n"...)
	}
	w.gaps = appendGap(w.gaps, g)
	w.part.Gaps++
	w.next = g.End
	return w.cut()
}

// begin begins a part when none is in hand.
func (w *Writer) begin() {
	if w.part.Records == 0 && w.part.Gaps == 0 {
		w.part.Begin = w.next
	}
}

// cut ends the part in hand when it is long enough.
func (w *Writer) cut() error {
	if w.part.Records >= maxPartRecords || len(w.gaps) >= cutGapBytes || w.data != nil && w.data.bytes >= cutDataBytes {
		return w.endPart()
	}
	return nil
}

func (w *Writer) endPart() error {
	if w.part.Records == 0 && w.part.Gaps == 0 {
		return nil
	}
	n := len(w.parts)
	if n >= maxParts {
		return w.fail(fmt.Errorf("it has more than %d parts: export a shorter range", maxParts))
	}
	w.part.End = w.next
	if w.data != nil {
		f, err := w.data.close(dataName(n, w.extension))
		w.data = nil
		if err != nil {
			return w.fail(err)
		}
		w.part.Data = f
	}
	if len(w.gaps) > 0 {
		if err := w.file(gapsName(n), w.gaps); err != nil {
			return w.fail(err)
		}
		sum := sha256.Sum256(w.gaps)
		w.part.GapFile = &File{Name: gapsName(n), Bytes: int64(len(w.gaps)), SHA256: hex.EncodeToString(sum[:])}
	}
	if err := w.out.note(w.part); err != nil {
		return w.fail(err)
	}
	w.parts = append(w.parts, w.part)
	w.part, w.gaps = Part{}, w.gaps[:0]
	return nil
}

func (w *Writer) file(name string, content []byte) error {
	f, err := w.out.create(name)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), f.Close())
	}
	return f.Close()
}

// Close writes what is left. Before the range's end it keeps what is there, and
// returns [ErrUnfinished].
func (w *Writer) Close() error {
	defer w.out.release()
	if w.err != nil {
		return w.err
	}
	if err := w.endPart(); err != nil {
		return err
	}
	if w.next != w.head.End {
		return w.fail(fmt.Errorf("%w: at leaf %d of %d to %d: go on with the same folder", ErrUnfinished, w.next, w.head.Begin, w.head.End))
	}
	m := Manifest{
		Version: 1, Origin: w.head.Origin, Format: w.format, Filter: maps.Clone(w.head.Filter),
		Begin: w.head.Begin, End: w.head.End, CheckpointSize: w.size, Parts: w.parts,
	}
	if m.Filter == nil {
		m.Filter = map[string]string{}
	}
	if m.Parts == nil {
		m.Parts = []Part{}
	}
	for _, p := range m.Parts {
		m.Records += p.Records
	}
	manifest, err := m.encode()
	if err != nil {
		return w.fail(err)
	}
	for _, f := range []struct{ name, content string }{
		{fileTree, formatTree(w.head.Left, w.head.Right)},
		{fileKeys, strings.Join(w.head.Keys, "\n") + "\n"},
		{fileHandovers, joinNotes(w.head.Handovers)},
		{fileEvidence, joinNotes(w.head.Evidence)},
		{fileCheckpoint, w.head.Checkpoint},
		{fileManifest, string(manifest)},
	} {
		if f.content == "" {
			continue
		}
		if err := w.file(f.name, []byte(f.content)); err != nil {
			return w.fail(err)
		}
	}
	if err := w.out.finish(); err != nil {
		return w.fail(err)
	}
	w.err = errors.New("the bundle is closed")
	return nil
}

func (w *Writer) fail(err error) error {
	w.err = fmt.Errorf("write the bundle of %s: %w", w.head.Origin, err)
	return w.err
}

// dataFile is a data file that is being written.
type dataFile struct {
	file   io.WriteCloser
	buffer *bufio.Writer
	format format.Writer
	sum    hash.Hash
	bytes  int64
}

func newDataFile(f io.WriteCloser, name string) (*dataFile, error) {
	d := &dataFile{file: f, sum: sha256.New()}
	d.buffer = bufio.NewWriterSize(d, 128<<10)
	var err error
	if d.format, err = format.NewWriter(name, d.buffer); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// Write counts and hashes what goes to the file.
func (d *dataFile) Write(p []byte) (int, error) {
	n, err := d.file.Write(p)
	d.sum.Write(p[:n])
	d.bytes += int64(n)
	return n, err
}

func (d *dataFile) close(name string) (*File, error) {
	err := d.format.Close()
	if err == nil {
		err = d.buffer.Flush()
	}
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	if err := d.file.Close(); err != nil {
		return nil, err
	}
	return &File{Name: name, Bytes: d.bytes, SHA256: hex.EncodeToString(d.sum.Sum(nil))}, nil
}

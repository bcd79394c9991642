package bundle

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// compareFiles checks the files against the manifest, once all else of the part
// was looked at: what is already explained is not said again.
func (p *partReader) compareFiles() error {
	if p.records.bad != nil {
		kind, how := Format, "can't be read on"
		if p.records.sums.read < p.part.Data.Bytes {
			kind, how = Truncated, fmt.Sprintf("is cut short, %d bytes of %d,", p.records.sums.read, p.part.Data.Bytes)
		}
		p.at(kind, p.next, nil, "%s %s after event %d: %v", p.part.Data.Name, how, p.next-1, p.records.bad)
		p.leaves = nil
	}
	silent := len(p.list) == 0 && len(p.suspects) == 0 && len(p.misplaced) == 0
	if silent && p.counts.Records != p.part.Records {
		p.about(Altered, "the manifest says that part %d has %d records, and it has %d: the manifest was altered", p.number, p.part.Records, p.counts.Records)
	}
	gaps := p.counts.OmittedRuns + p.counts.PrunedRuns
	if silent && gaps != p.part.Gaps {
		p.about(Altered, "the manifest says that part %d has %d gaps, and it has %d: the manifest was altered", p.number, p.part.Gaps, gaps)
	}
	for _, f := range []struct {
		file *File
		sums *sums
	}{{p.part.Data, p.records.sums}, {p.part.GapFile, p.gapSum}} {
		if f.file == nil || f.sums == nil {
			continue
		}
		if err := f.sums.drain(f.file.Bytes); err != nil && !damaged(err) {
			return fmt.Errorf("read %s: %w", f.file.Name, err)
		} else if err != nil && silent {
			p.about(Format, "%s is damaged: %v", f.file.Name, err)
		}
		if silent && (f.sums.read != f.file.Bytes || hex.EncodeToString(f.sums.sum.Sum(nil)) != f.file.SHA256) {
			p.about(Altered, "%s is not the file that the manifest describes (length or SHA-256): one of the two was altered", f.file.Name)
		}
	}
	return nil
}

// sums counts and hashes what is read.
type sums struct {
	file   io.ReadCloser
	sum    hash.Hash
	read   int64
	failed error
}

func (s *sums) Read(b []byte) (int, error) {
	if s.read > maxFileBytes {
		s.failed = fmt.Errorf("%w: it has more than %d bytes", errDamaged, int64(maxFileBytes))
		return 0, s.failed
	}
	n, err := s.file.Read(b)
	s.sum.Write(b[:n])
	s.read += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		s.failed = err
	}
	return n, err
}

// drain reads what the format's reader left, but not much more than is due.
func (s *sums) drain(due int64) error {
	if s.failed != nil {
		return s.failed
	}
	_, err := io.Copy(io.Discard, io.LimitReader(s, max(due-s.read, 0)+1))
	return err
}

// recordReader reads a data file's records. Two of them are valid at a time.
type recordReader struct {
	sums    *sums
	format  format.Reader // nil once it ended
	opened  format.Reader
	two     [2]trail.Record
	n       int
	bad     error // what ended it, other than its end
	machine error
}

func newRecordReader(file io.ReadCloser, name string) *recordReader {
	r := &recordReader{sums: &sums{file: file, sum: sha256.New()}}
	r.format, r.bad = format.NewReader(name, bufio.NewReaderSize(r.sums, 128<<10))
	r.opened = r.format
	return r
}

// read returns nil and an error at the end.
func (r *recordReader) read() (*trail.Record, error) {
	if r.format == nil || r.bad != nil {
		r.format = nil
		r.fail(r.bad)
		return nil, io.EOF
	}
	rec := &r.two[r.n%2]
	*rec = trail.Record{}
	err := r.format.Read(rec)
	if err == nil && r.n >= maxPartRecords+maxExtras {
		err = fmt.Errorf("it has more than %d records", maxPartRecords)
	}
	if err != nil {
		if !errors.Is(err, io.EOF) {
			r.fail(err)
		}
		r.format = nil
		return nil, io.EOF
	}
	r.n++
	return rec, nil
}

func (r *recordReader) fail(err error) {
	if err == nil {
		return
	}
	r.bad = err
	if r.sums.failed != nil && !damaged(r.sums.failed) {
		r.machine = r.sums.failed
	}
}

// close lets go of what the format's reader holds.
func (r *recordReader) close() {
	if c, ok := r.opened.(io.Closer); ok {
		c.Close()
	}
}

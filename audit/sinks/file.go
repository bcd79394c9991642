package sinks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// file appends a line per record to one file. A file that is full gets a number
// by one rename, "trail.jsonl.000001", and a fresh one takes its place; the highest
// number is the newest. Numbers are never used again, so nothing is overwritten.
//
// A batch is synced before Send returns. A crash may leave part of a line at the
// end: it was not acknowledged, and Open cuts it off.
type file struct {
	parsed
	dir  *os.File // also holds the lock
	lock *os.File
	f    *os.File // nil: to be opened
	size int64
	buf  []byte
}

func openFile(p *parsed) (*file, error) {
	s := &file{parsed: *p}
	var err error
	if s.dir, err = os.Open(filepath.Dir(p.Address)); err != nil {
		return nil, s.failed("open its folder", err)
	}
	if s.lock, err = os.OpenFile(p.Address+".lock", os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, errors.Join(s.failed("open its lock", err), s.dir.Close())
	}
	if err := lockFile(s.lock); err != nil {
		_ = s.Close()
		return nil, fault.New(fault.ErrUnavailable, "file_busy", "another process writes the sink's file %s: two would mix their lines", p.Address)
	}
	if err := s.open(); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (s *file) failed(doing string, err error) error {
	return fault.New(fault.ErrUnavailable, "file_failed", "sink file %s: %s: %w", s.Address, doing, err)
}

// open opens the current file, makes it when there is none, and cuts off what a
// crash left of a line.
func (s *file) open() error {
	f, err := os.OpenFile(s.Address, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return s.failed("open", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no regular file")
	}
	if err != nil {
		f.Close()
		return s.failed("open", err)
	}
	size, err := lastLine(f, info.Size())
	if err == nil && size < info.Size() {
		err = f.Truncate(size)
	}
	if err == nil {
		_, err = f.Seek(size, io.SeekStart)
	}
	if err == nil {
		err = s.dir.Sync() // the name of a fresh file
	}
	if err != nil {
		f.Close()
		return s.failed("find its end", err)
	}
	s.f, s.size = f, size
	return nil
}

// lastLine returns where the last whole line of a file ends.
func lastLine(f io.ReaderAt, size int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for end := size; end > 0; {
		from := max(0, end-int64(len(buf)))
		n, err := f.ReadAt(buf[:end-from], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		end = from
	}
	return 0, nil
}

func (s *file) Send(ctx context.Context, records []trail.Record) error {
	if err := s.reopen(); err != nil {
		return err
	}
	s.buf = s.buf[:0]
	for i := range records {
		if ctx.Err() != nil {
			return s.failed("write", ctx.Err())
		}
		before := len(s.buf)
		var err error
		if s.buf, err = lines(s.buf, records[i:i+1], s.encode); err != nil {
			return err
		}
		if s.size > 0 && s.size+int64(len(s.buf)) > s.maxBytes || s.size == 0 && before > 0 && int64(len(s.buf)) > s.maxBytes {
			line := bytes.Clone(s.buf[before:])
			s.buf = s.buf[:before]
			if err := s.write(); err != nil {
				return err
			}
			if err := s.rotate(); err != nil {
				return err
			}
			s.buf = append(s.buf[:0], line...)
		}
	}
	return s.write()
}

// reopen notices a file that somebody renamed or removed.
func (s *file) reopen() error {
	if s.f != nil {
		ours, err := s.f.Stat()
		if err != nil {
			return s.failed("look at", err)
		}
		there, err := os.Lstat(s.Address)
		if err == nil && os.SameFile(ours, there) {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s.failed("look at", err)
		}
		s.f.Close()
		s.f = nil
	}
	return s.open()
}

// write appends and syncs what is in buf. After a failure the file is opened anew,
// at the end of its last synced line or behind whole lines that will be repeated.
func (s *file) write() error {
	if len(s.buf) == 0 {
		return nil
	}
	_, err := s.f.Write(s.buf)
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		// Of a sync that failed nothing is known; cutting back keeps lines whole.
		err = errors.Join(err, s.f.Truncate(s.size))
		s.f.Close()
		s.f = nil
		return s.failed("write", err)
	}
	s.size += int64(len(s.buf))
	s.buf = s.buf[:0]
	return nil
}

func (s *file) rotate() error {
	full, err := s.full()
	if err != nil {
		return s.failed("list full files", err)
	}
	next := int64(1)
	if len(full) > 0 {
		next = full[len(full)-1] + 1
	}
	if err := os.Rename(s.Address, s.numbered(next)); err != nil {
		return s.failed("rename", err)
	}
	s.f.Close()
	s.f = nil
	for _, n := range full[:max(0, len(full)+1-s.keep)] {
		if err := os.Remove(s.numbered(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s.failed("remove the oldest", err)
		}
	}
	return s.open()
}

func (s *file) numbered(n int64) string { return fmt.Sprintf("%s.%06d", s.Address, n) }

// full lists the numbers of the full files, oldest first.
func (s *file) full() ([]int64, error) {
	entries, err := os.ReadDir(filepath.Dir(s.Address))
	if err != nil {
		return nil, err
	}
	var all []int64
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), filepath.Base(s.Address)+".")
		n, err := strconv.ParseInt(digits, 10, 64)
		if ok && err == nil && n > 0 && filepath.Base(s.numbered(n)) == e.Name() {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all, nil
}

// Close also lets another process have the file.
func (s *file) Close() error {
	var err error
	if s.f != nil {
		err = s.f.Close()
		s.f = nil
	}
	return errors.Join(err, s.lock.Close(), s.dir.Close())
}

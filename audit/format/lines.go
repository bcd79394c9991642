package format

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// encoder appends one record in one of the text formats, without its line end.
type encoder func(b []byte, r *trail.Record) ([]byte, error)

// lineWriter writes a text format: a head, then a line for each record.
type lineWriter struct {
	w      io.Writer
	encode encoder
	head   string // written before the first record, or by Close
	end    string
	buf    []byte
	err    error
	closed bool
}

// flushAt is how much is gathered before it is written.
const flushAt = 64 << 10

func (l *lineWriter) Write(r *trail.Record) error {
	if l.closed {
		return errors.New("write record: the file was closed")
	}
	if l.err != nil {
		return l.err
	}
	l.buf, l.head = append(l.buf, l.head...), ""
	b, err := l.encode(l.buf, r)
	if err != nil {
		return err // nothing was appended: the next record may be fine
	}
	if l.buf = append(b, l.end...); len(l.buf) >= flushAt {
		return l.flush()
	}
	return nil
}

func (l *lineWriter) flush() error {
	if _, err := l.w.Write(l.buf); err != nil {
		l.err = fmt.Errorf("write records: %w", err)
	}
	l.buf = l.buf[:0]
	return l.err
}

func (l *lineWriter) Close() error {
	if l.closed {
		return l.err
	}
	l.closed = true
	l.buf, l.head = append(l.buf, l.head...), ""
	if l.err != nil {
		return l.err
	}
	return l.flush()
}

// lineReader reads a text format, whose every record must be written as Rotunda
// writes it.
type lineReader struct {
	in     *bufio.Reader
	encode encoder
	decode func(line string, r *trail.Record) error
	// place names what stands at an offset of a line: `member "outcome"`.
	place func(line string, offset int) string
	head  string // the first line, with its end, where there is one
	end   string
	// quotes: a line ends only outside of double quotes.
	quotes bool

	line int // of the text, from 1
	long []byte
	buf  []byte
	err  error
}

func (l *lineReader) Read(r *trail.Record) error {
	if l.err == nil {
		l.err = l.read(r)
	}
	return l.err
}

func (l *lineReader) read(r *trail.Record) error {
	if l.head != "" {
		head, err := l.next()
		if errors.Is(err, io.EOF) {
			return errors.New("read records: the file is empty: it lacks its first line, with the names of the columns")
		}
		if err != nil {
			return err
		}
		if string(head) != l.head {
			return errors.New("read records: line 1 does not have the names of the columns that Rotunda writes")
		}
		l.head = ""
	}
	start := l.line + 1
	b, err := l.next()
	if err != nil {
		return err
	}
	n := len(b) - len(l.end)
	if n < 0 || string(b[n:]) != l.end {
		return fmt.Errorf("read records: line %d does not end as Rotunda ends it: it was cut short or altered", start)
	}
	line := string(b[:n])
	*r = trail.Record{}
	if err := l.decode(line, r); err != nil {
		return fmt.Errorf("read records: line %d: %w", start, err)
	}
	if l.buf, err = l.encode(l.buf[:0], r); err != nil {
		return fmt.Errorf("read records: line %d is not a record that Rotunda writes: %w", start, err)
	}
	// The bytes of buf are not kept beyond this comparison.
	if at := firstDiff(line, unsafe.String(unsafe.SliceData(l.buf), len(l.buf))); at >= 0 {
		return fmt.Errorf("read records: line %d, byte %d: %s is not as Rotunda writes it: the text was altered", start, at+1, l.place(line, at))
	}
	return nil
}

// next returns the next line with its end. The bytes are valid until the next call.
func (l *lineReader) next() ([]byte, error) {
	l.long = l.long[:0]
	odd := false
	for start := l.line + 1; ; {
		part, err := l.in.ReadSlice('\n')
		if len(l.long)+len(part) > maxLine {
			return nil, fmt.Errorf("read records: line %d is longer than %d bytes", start, maxLine)
		}
		if err == nil {
			l.line++
		}
		if l.quotes {
			for _, c := range part {
				odd = odd != (c == '"')
			}
		}
		switch {
		case err == nil && !odd && len(l.long) == 0:
			return part, nil
		case err == nil && !odd:
			l.long = append(l.long, part...)
			return l.long, nil
		case err == nil || errors.Is(err, bufio.ErrBufferFull):
			l.long = append(l.long, part...)
		case errors.Is(err, io.EOF) && len(l.long)+len(part) == 0:
			return nil, io.EOF
		case errors.Is(err, io.EOF):
			return nil, fmt.Errorf("read records: line %d has no end: the file was cut short", start)
		default:
			return nil, fmt.Errorf("read records: line %d: %w", start, err)
		}
	}
}

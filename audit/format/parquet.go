package format

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"golang.org/x/mod/sumdb/tlog"
)

// Bounds of parquet. A row group is gathered in memory, by the writer and for
// one column at a time by the reader.
const (
	groupRows  = 64 << 10
	groupBytes = 32 << 20 // of values, before compression
	maxGroup   = 4 * groupBytes
	maxGroups  = 1 << 20
	maxFile    = 1 << 40 // of what has to be copied to a temporary file
)

// row is a record as parquet has it. A field that is optional is null when it
// is empty; a detail that is missing is the JSON value null.
type row struct {
	Origin    string     `parquet:"origin,dict"`
	Index     int64      `parquet:"index,delta"`
	Hash      tlog.Hash  `parquet:"hash"`
	ID        string     `parquet:"id"`
	Time      int64      `parquet:"time,delta,timestamp(microsecond)"`
	Action    string     `parquet:"action,dict"`
	Resource  string     `parquet:"resource,dict"`
	Outcome   string     `parquet:"outcome,dict"`
	Count     int64      `parquet:"count,delta"`
	Actor     string     `parquet:"actor,optional,dict"`
	Partner   string     `parquet:"partner,optional,dict"`
	Reason    string     `parquet:"reason,optional"`
	RequestID string     `parquet:"request_id,optional"`
	Address   string     `parquet:"address,optional,dict"`
	Detail    string     `parquet:"detail,json"`
	Intent    string     `parquet:"intent,optional"`
	Salt      []byte     `parquet:"salt,optional"`
	Checks    []byte     `parquet:"checks,optional"`
	Erased0   *tlog.Hash `parquet:"erased_actor"`
	Erased1   *tlog.Hash `parquet:"erased_partner"`
	Erased2   *tlog.Hash `parquet:"erased_reason"`
	Erased3   *tlog.Hash `parquet:"erased_request_id"`
	Erased4   *tlog.Hash `parquet:"erased_address"`
	Erased5   *tlog.Hash `parquet:"erased_detail"`
}

func (w *row) erased() [trail.NumFields]**tlog.Hash {
	return [trail.NumFields]**tlog.Hash{&w.Erased0, &w.Erased1, &w.Erased2, &w.Erased3, &w.Erased4, &w.Erased5}
}

func toRow(r *trail.Record) row {
	w := row{
		Origin: r.Origin, Index: r.Index, Hash: r.Hash, ID: r.ID, Time: r.Time.UnixMicro(), Action: r.Action, Resource: r.Resource,
		Outcome: r.Outcome, Count: r.Count, Actor: r.Actor, Partner: r.Partner, Reason: r.Reason, RequestID: r.RequestID,
		Address: r.Address, Detail: r.Detail, Intent: r.Intent, Salt: r.Salt, Checks: r.Checks,
	}
	if w.Detail == "" {
		w.Detail = "null"
	}
	if isErased(r) {
		for f, to := range w.erased() {
			if r.Erased[f] != (tlog.Hash{}) {
				h := r.Erased[f]
				*to = &h
			}
		}
	}
	return w
}

func fromRow(w *row) trail.Record {
	r := trail.Record{Origin: w.Origin, Index: w.Index, Hash: w.Hash, Event: trail.Event{
		ID: w.ID, Time: time.UnixMicro(w.Time).UTC(), Action: w.Action, Resource: w.Resource, Outcome: w.Outcome, Count: w.Count,
		Actor: w.Actor, Partner: w.Partner, Reason: w.Reason, RequestID: w.RequestID, Address: w.Address, Detail: w.Detail, Intent: w.Intent,
	}}
	if w.Detail == "null" {
		r.Detail = ""
	}
	if len(w.Salt) > 0 {
		r.Salt = w.Salt
	}
	if len(w.Checks) > 0 {
		r.Checks = w.Checks
	}
	for f, h := range w.erased() {
		if *h != nil {
			r.Erased[f] = **h
		}
	}
	return r
}

type parquetWriter struct {
	w      *parquet.GenericWriter[row]
	rows   []row
	inRows int // rows and bytes of the row group so far
	size   int
	err    error
	closed bool
}

func newParquetWriter(w io.Writer) *parquetWriter {
	return &parquetWriter{rows: make([]row, 0, 256), w: parquet.NewGenericWriter[row](w,
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
		parquet.DataPageVersion(1), // read by everything
		parquet.CreatedBy("Rotunda", "1", ""),
	)}
}

func (p *parquetWriter) Write(r *trail.Record) error {
	if p.closed {
		return errors.New("write record: the file was closed")
	}
	if p.err != nil {
		return p.err
	}
	if err := check(r); err != nil {
		return err
	}
	w := toRow(r)
	// The rows are handed on later than Write returns: what the caller may
	// change is copied.
	w.Salt, w.Checks = append([]byte(nil), w.Salt...), append([]byte(nil), w.Checks...)
	p.rows = append(p.rows, w)
	p.inRows++
	p.size += 256 + len(r.Detail) + len(r.Reason) + len(r.Resource) + len(r.Actor) + len(r.Partner) + len(r.RequestID) + len(r.Address)
	if len(p.rows) == cap(p.rows) {
		p.hand()
	}
	if p.inRows >= groupRows || p.size >= groupBytes {
		p.hand()
		if p.err == nil {
			p.fail(p.w.Flush())
		}
		p.inRows, p.size = 0, 0
	}
	return p.err
}

// hand gives the rows that were gathered to the parquet writer.
func (p *parquetWriter) hand() {
	if p.err == nil && len(p.rows) > 0 {
		_, err := p.w.Write(p.rows)
		p.fail(err)
	}
	clear(p.rows)
	p.rows = p.rows[:0]
}

func (p *parquetWriter) fail(err error) {
	if err != nil {
		p.err = fmt.Errorf("write records: %w", err)
	}
}

func (p *parquetWriter) Close() error {
	if p.closed {
		return p.err
	}
	p.closed = true
	if p.hand(); p.err == nil {
		p.fail(p.w.Close())
	}
	return p.err
}

type parquetReader struct {
	in   *parquet.GenericReader[row]
	temp *os.File
	rows []row
	next int // of rows
	row  int64
	err  error
}

// newParquetReader reads r where it lies when it can be read at any offset, and
// copies it to a temporary file when it can't.
func newParquetReader(r io.Reader) (_ *parquetReader, err error) {
	p := &parquetReader{}
	defer func() {
		if x := recover(); x != nil {
			err = fmt.Errorf("read records: the parquet file is damaged: %v", x)
		}
		if err != nil {
			p.free()
		}
	}()
	at, size, err := p.place(r)
	if err != nil {
		return nil, err
	}
	f, err := parquet.OpenFile(at, size, parquet.SkipBloomFilters(true), parquet.SkipPageIndex(true))
	if err != nil {
		return nil, fmt.Errorf("read records: open the parquet file: %w", err)
	}
	want := parquet.SchemaOf(row{})
	if !parquet.EqualNodes(f.Schema(), want) {
		return nil, fmt.Errorf("read records: the parquet file has other columns than Rotunda writes: %s", firstOther(f.Schema(), want))
	}
	groups := f.Metadata().RowGroups
	if len(groups) > maxGroups {
		return nil, fmt.Errorf("read records: the parquet file has %d row groups, more than %d", len(groups), maxGroups)
	}
	for i := range groups {
		if g := &groups[i]; g.NumRows < 0 || g.NumRows > groupRows || g.TotalByteSize < 0 || g.TotalByteSize > maxGroup {
			return nil, fmt.Errorf("read records: row group %d of the parquet file has %d rows and %d bytes, more than Rotunda writes", i, g.NumRows, g.TotalByteSize)
		}
	}
	if err := checkFooter(at, f); err != nil {
		return nil, fmt.Errorf("read records: what the parquet file says of its rows is not true: %w", err)
	}
	p.in = parquet.NewGenericReader[row](f)
	p.rows = make([]row, 0, 256)
	return p, nil
}

// firstOther names the first column that differs.
func firstOther(got, want parquet.Node) string {
	g, w := got.Fields(), want.Fields()
	for i := range min(len(g), len(w)) {
		if g[i].Name() != w[i].Name() || !parquet.EqualNodes(g[i], w[i]) {
			return fmt.Sprintf("column %d is %.40q (%.60s), want %q (%s)", i+1, g[i].Name(), g[i], w[i].Name(), w[i])
		}
	}
	return fmt.Sprintf("there are %d columns, want %d", len(g), len(w))
}

func (p *parquetReader) place(r io.Reader) (io.ReaderAt, int64, error) {
	switch f := r.(type) {
	case interface {
		io.ReaderAt
		Stat() (fs.FileInfo, error)
	}:
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			return f, info.Size(), nil
		}
	case interface {
		io.ReaderAt
		Size() int64
	}:
		return f, f.Size(), nil
	}
	temp, err := os.CreateTemp("", "rotunda-*.parquet")
	if err != nil {
		return nil, 0, fmt.Errorf("read records: make a temporary file for the parquet file: %w", err)
	}
	p.temp = temp
	n, err := io.Copy(temp, io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, 0, fmt.Errorf("read records: copy the parquet file to a temporary file: %w", err)
	}
	if n > maxFile {
		return nil, 0, fmt.Errorf("read records: the parquet file is larger than %d bytes", int64(maxFile))
	}
	return temp, n, nil
}

func (p *parquetReader) Read(r *trail.Record) error {
	for p.next == len(p.rows) {
		if p.err == nil {
			p.fill()
		}
		if len(p.rows) == p.next && p.err != nil {
			return p.err
		}
	}
	p.row++
	w := &p.rows[p.next]
	p.next++
	*r = fromRow(w)
	if err := check(r); err != nil {
		p.rows, p.next = p.rows[:0], 0
		p.err = fmt.Errorf("read records: row %d is not one that Rotunda writes: %w", p.row, err)
		return p.err
	}
	return nil
}

// fill reads the next rows, or sets err. A damaged file may make the decoder
// panic; that is an error like any other.
func (p *parquetReader) fill() {
	defer func() {
		if x := recover(); x != nil {
			p.rows, p.next = p.rows[:0], 0
			p.err = fmt.Errorf("read records: the parquet file is damaged behind row %d: %v", p.row, x)
		}
		if p.err != nil {
			p.free()
		}
	}()
	p.next = 0
	clear(p.rows[:cap(p.rows)])
	n, err := p.in.Read(p.rows[:cap(p.rows)])
	p.rows = p.rows[:n]
	switch {
	case errors.Is(err, io.EOF):
		p.err = io.EOF
	case err != nil:
		p.err = fmt.Errorf("read records: the parquet file can't be read behind row %d: %w", p.row+int64(n), err)
	case n == 0:
		p.err = fmt.Errorf("read records: the parquet file gives no rows behind row %d", p.row)
	}
}

func (p *parquetReader) free() {
	if p.temp != nil {
		p.temp.Close()
		os.Remove(p.temp.Name())
		p.temp = nil
	}
}

// Close removes the temporary file, if there is one. It is needed only when the
// file was not read to its end.
func (p *parquetReader) Close() error {
	if p.err == nil {
		p.err = errors.New("read records: the reader was closed")
	}
	p.rows, p.next = p.rows[:0], 0
	p.free()
	return nil
}

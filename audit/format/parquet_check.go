package format

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	pq "github.com/parquet-go/parquet-go/format"
)

// A parquet file says more than its rows: bounds, counts and indexes by which a
// program passes over rows without looking at them. Rows that nobody gets to see
// are as good as deleted, so what a file says of its rows has to be true, and what
// Rotunda does not write, such as Bloom filters, must not be there.

// checkFooter compares what a file says of its rows with the rows.
func checkFooter(at io.ReaderAt, f *parquet.File) error {
	md := f.Metadata()
	if len(md.KeyValueMetadata) > 0 {
		return errors.New("it has metadata that Rotunda does not write")
	}
	columns, offsets, err := f.ReadPageIndex()
	if err != nil {
		return fmt.Errorf("its page index can't be read: %w", err)
	}
	var rows int64
	n := 0
	for i, group := range f.RowGroups() {
		g := &md.RowGroups[i]
		rows += g.NumRows
		if len(g.SortingColumns) > 0 {
			return fmt.Errorf("row group %d is said to be sorted, which Rotunda does not write", i)
		}
		for j, chunk := range group.ColumnChunks() {
			if j >= len(g.Columns) || n >= len(columns) || n >= len(offsets) {
				return fmt.Errorf("row group %d has no index of its column %d", i, j)
			}
			c := &chunkCheck{at: at, chunk: chunk, column: &g.Columns[j], index: &columns[n], offsets: &offsets[n], rows: g.NumRows}
			if err := c.check(); err != nil {
				return fmt.Errorf("row group %d, column %s: %w", i, columnNames[j], err)
			}
			n++
		}
	}
	if rows != md.NumRows || len(columns) != n || len(offsets) != n {
		return fmt.Errorf("it says that it has %d rows, and its row groups have %d; or it has an index too many", md.NumRows, rows)
	}
	return nil
}

// chunkCheck checks one column of one row group.
type chunkCheck struct {
	at      io.ReaderAt
	chunk   parquet.ColumnChunk
	column  *pq.ColumnChunk
	index   *pq.ColumnIndex
	offsets *pq.OffsetIndex
	rows    int64
}

// extent is what a page's, or a whole column's values come to.
type extent struct {
	lo, hi parquet.Value // when some are not null
	values int64
	nulls  int64
}

func (e *extent) null() bool { return e.values == e.nulls }

func (e *extent) add(p *extent, compare func(a, b parquet.Value) int) {
	if !p.null() {
		if e.null() || compare(p.lo, e.lo) < 0 {
			e.lo = p.lo
		}
		if e.null() || compare(p.hi, e.hi) > 0 {
			e.hi = p.hi
		}
	}
	e.values, e.nulls = e.values+p.values, e.nulls+p.nulls
}

func (c *chunkCheck) check() error {
	m := &c.column.MetaData
	if c.column.FilePath != "" || m.BloomFilterOffset != 0 || m.IndexPageOffset != 0 || len(m.KeyValueMetadata) > 0 || len(c.column.EncryptedColumnMetadata) > 0 {
		return errors.New("it has a reference, a filter or metadata that Rotunda does not write")
	}
	pages := c.chunk.Pages()
	defer pages.Close()
	var all extent
	next := m.DataPageOffset
	for i := 0; ; i++ {
		page, err := pages.ReadPage()
		if errors.Is(err, io.EOF) {
			if i != len(c.offsets.PageLocations) || i != len(c.index.NullPages) {
				return fmt.Errorf("it has %d pages, and its index %d", i, len(c.offsets.PageLocations))
			}
			break
		}
		if err != nil {
			return fmt.Errorf("page %d can't be read: %w", i, err)
		}
		e, err := c.measure(page)
		parquet.Release(page)
		if err != nil {
			return fmt.Errorf("page %d can't be read: %w", i, err)
		}
		if i >= len(c.offsets.PageLocations) || i >= len(c.index.NullPages) {
			return errors.New("it has more pages than its index")
		}
		at := c.offsets.PageLocations[i]
		if at.Offset != next || at.FirstRowIndex != all.values || at.CompressedPageSize < 1 {
			return fmt.Errorf("its index does not say where page %d is", i)
		}
		next += int64(at.CompressedPageSize)
		if err := c.page(i, at, &e); err != nil {
			return fmt.Errorf("page %d: %w", i, err)
		}
		all.add(&e, c.chunk.Type().Compare)
	}
	begin := m.DataPageOffset
	if m.DictionaryPageOffset != 0 {
		begin = m.DictionaryPageOffset
	}
	if next != begin+m.TotalCompressedSize || all.values != c.rows || m.NumValues != c.rows {
		return errors.New("it has not the length that the file says")
	}
	if err := c.order(); err != nil {
		return err
	}
	return c.statistics(&m.Statistics, &all, true)
}

// measure returns what a page's values come to.
func (c *chunkCheck) measure(page parquet.Page) (e extent, err error) {
	values := page.Values()
	compare := c.chunk.Type().Compare
	buf := make([]parquet.Value, 512)
	for {
		n, err := values.ReadValues(buf)
		for _, v := range buf[:n] {
			e.values++
			switch {
			case v.IsNull():
				e.nulls++
				continue
			case e.values == e.nulls+1:
				e.lo, e.hi = v.Clone(), v.Clone()
			case compare(v, e.lo) < 0:
				e.lo = v.Clone()
			case compare(v, e.hi) > 0:
				e.hi = v.Clone()
			}
		}
		if errors.Is(err, io.EOF) {
			return e, nil
		}
		if err != nil {
			return e, err
		}
	}
}

// page checks what the header and the index say of a page.
func (c *chunkCheck) page(i int, at pq.PageLocation, e *extent) error {
	var h pq.PageHeader
	raw := bufio.NewReaderSize(io.NewSectionReader(c.at, at.Offset, int64(at.CompressedPageSize)), 512)
	if err := thrift.NewDecoder(new(thrift.CompactProtocol).NewReader(raw)).Decode(&h); err != nil {
		return fmt.Errorf("its header can't be read: %w", err)
	}
	d := h.DataPageHeader
	if h.Type != pq.DataPage || !d.Valid || int64(d.V.NumValues) != e.values {
		return errors.New("its header is not that of the page")
	}
	if err := c.statistics(&d.V.Statistics, e, false); err != nil {
		return err
	}
	x := c.index
	if x.NullPages[i] != e.null() || len(x.NullCounts) <= i || x.NullCounts[i] != e.nulls {
		return errors.New("its index is wrong about what is null")
	}
	if e.null() {
		for _, bounds := range [][][]byte{x.MinValues, x.MaxValues} {
			if i < len(bounds) && len(bounds[i]) > 0 {
				return errors.New("its index has bounds that Rotunda does not write")
			}
		}
		return nil
	}
	if i >= len(x.MinValues) || i >= len(x.MaxValues) || !c.within(x.MinValues[i], x.MaxValues[i], e) {
		return errors.New("its index has bounds that its values exceed")
	}
	return nil
}

// within reports whether values are not less than lo and not more than hi, which
// may be cut.
func (c *chunkCheck) within(lo, hi []byte, e *extent) bool {
	kind, compare := c.chunk.Type().Kind(), c.chunk.Type().Compare
	if kind != parquet.ByteArray && (len(lo) != len(e.lo.Bytes()) || len(hi) != len(e.hi.Bytes())) {
		return kind == parquet.FixedLenByteArray && bytes.Compare(lo, e.lo.Bytes()) <= 0 && bytes.Compare(hi, e.hi.Bytes()) >= 0
	}
	return compare(kind.Value(lo), e.lo) <= 0 && compare(kind.Value(hi), e.hi) >= 0
}

// statistics checks those of a page or of the whole column. Where they are asked
// for they are exact.
func (c *chunkCheck) statistics(s *pq.Statistics, e *extent, wanted bool) error {
	errBounds := errors.New("its statistics are not those of its values")
	if s.NullCount != e.nulls || s.DistinctCount != 0 {
		return errBounds
	}
	if wanted && s.MaxValue == nil && !e.null() {
		return errBounds
	}
	for _, bound := range []struct {
		said []byte
		is   parquet.Value
	}{{s.Min, e.lo}, {s.MinValue, e.lo}, {s.Max, e.hi}, {s.MaxValue, e.hi}} {
		if bound.said == nil || len(bound.said) == 0 && e.null() {
			continue
		}
		if e.null() || !bytes.Equal(bound.said, bound.is.Bytes()) {
			return errBounds
		}
	}
	return nil
}

// order checks the order in which the index says that the pages' bounds are: a
// program may look for a page by halves.
func (c *chunkCheck) order() error {
	x := c.index
	if x.BoundaryOrder == pq.Unordered {
		return nil
	}
	kind, compare := c.chunk.Type().Kind(), c.chunk.Type().Compare
	last := -1
	for i, null := range x.NullPages {
		if null {
			continue
		}
		if last >= 0 {
			for _, bounds := range [][][]byte{x.MinValues, x.MaxValues} {
				d := compare(kind.Value(bounds[last]), kind.Value(bounds[i]))
				if d > 0 && x.BoundaryOrder == pq.Ascending || d < 0 && x.BoundaryOrder == pq.Descending {
					return errors.New("its index is not in the order that it says")
				}
			}
		}
		last = i
	}
	return nil
}

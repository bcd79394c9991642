package format

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	pq "github.com/parquet-go/parquet-go/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// newLie returns a parquet file of three records, whose metadata edit has changed,
// and which is whole otherwise.
func newLie(t *testing.T, edit func(raw []byte, m *pq.FileMetaData)) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter("parquet", &b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		r := trail.Record{Origin: "log.example", Index: int64(i), Event: trail.Event{
			ID: fmt.Sprint(i), Time: time.UnixMicro(int64(i)).UTC(), Action: []string{"key.create", "key.revoke", "key.rotate"}[i],
			Outcome: trail.OK, Count: 1, Detail: "{}", Actor: []string{"token/ada", "", "token/bob"}[i],
		}}
		if err := w.Write(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	raw := b.Bytes()
	f, err := parquet.OpenFile(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	footer := len(raw) - 8 - int(binary.LittleEndian.Uint32(raw[len(raw)-8:]))
	m := f.Metadata()
	edit(raw, m)
	text, err := thrift.Marshal(new(thrift.CompactProtocol), *m)
	if err != nil {
		t.Fatal(err)
	}
	out := append(bytes.Clone(raw[:footer]), text...)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(text)))
	return append(out, "PAR1"...)
}

// Programs pass over rows that the file's metadata says are of no use to them, so
// metadata that is not true hides rows which a verifier has read.
func TestParquetWhenMetadataHidesRows(t *testing.T) {
	chunk := func(m *pq.FileMetaData, name column) *pq.ColumnChunk { return &m.RowGroups[0].Columns[name] }
	// index edits a column's index where it lies, in the same length.
	index := func(raw []byte, m *pq.FileMetaData, name column, edit func(*pq.ColumnIndex)) {
		c := chunk(m, name)
		at := raw[c.ColumnIndexOffset:][:c.ColumnIndexLength]
		var x pq.ColumnIndex
		if err := thrift.Unmarshal(new(thrift.CompactProtocol), at, &x); err != nil {
			t.Fatal(err)
		}
		edit(&x)
		text, err := thrift.Marshal(new(thrift.CompactProtocol), x)
		if err != nil || len(text) != len(at) {
			t.Fatalf("the index has %d bytes, and had %d: %v", len(text), len(at), err)
		}
		copy(at, text)
	}
	if got, err := readAll("parquet", bytes.NewReader(newLie(t, func([]byte, *pq.FileMetaData) {}))); len(got) != 3 || err != nil {
		t.Fatalf("as it was written: %d records, %v", len(got), err)
	}
	for name, edit := range map[string]func(raw []byte, m *pq.FileMetaData){
		"highest action": func(_ []byte, m *pq.FileMetaData) {
			chunk(m, colAction).MetaData.Statistics.MaxValue = []byte("key.create")
		},
		"lowest index":           func(_ []byte, m *pq.FileMetaData) { chunk(m, colIndex).MetaData.Statistics.MinValue[0] = 1 },
		"no bounds":              func(_ []byte, m *pq.FileMetaData) { chunk(m, colAction).MetaData.Statistics = pq.Statistics{} },
		"old bounds":             func(_ []byte, m *pq.FileMetaData) { chunk(m, colAction).MetaData.Statistics.Max = []byte("a") },
		"all null":               func(_ []byte, m *pq.FileMetaData) { chunk(m, colActor).MetaData.Statistics.NullCount = 3 },
		"distinct values":        func(_ []byte, m *pq.FileMetaData) { chunk(m, colAction).MetaData.Statistics.DistinctCount = 1 },
		"number of rows":         func(_ []byte, m *pq.FileMetaData) { m.NumRows = 2 },
		"values in another file": func(_ []byte, m *pq.FileMetaData) { chunk(m, colAction).FilePath = "other.parquet" },
		"a Bloom filter":         func(_ []byte, m *pq.FileMetaData) { chunk(m, colAction).MetaData.BloomFilterOffset = 4 },
		"an order":               func(_ []byte, m *pq.FileMetaData) { m.RowGroups[0].SortingColumns = []pq.SortingColumn{{ColumnIdx: 5}} },
		"notes":                  func(_ []byte, m *pq.FileMetaData) { m.KeyValueMetadata = []pq.KeyValue{{Key: "pandas", Value: "{}"}} },
		"highest action of a page": func(raw []byte, m *pq.FileMetaData) {
			index(raw, m, colAction, func(x *pq.ColumnIndex) { x.MaxValues[0] = []byte("key.create") })
		},
		"nulls of a page": func(raw []byte, m *pq.FileMetaData) {
			index(raw, m, colActor, func(x *pq.ColumnIndex) { x.NullPages[0] = true })
		},
		"bounds in a page's header": func(raw []byte, m *pq.FileMetaData) {
			at := raw[chunk(m, colAction).MetaData.DataPageOffset:][:60]
			n := bytes.Index(at, []byte("key.rotate"))
			if n < 0 {
				t.Fatal("the header has no bounds")
			}
			copy(at[n:], "key.aaaaaa")
		},
	} {
		got, err := readAll("parquet", bytes.NewReader(newLie(t, edit)))
		if err == nil {
			t.Errorf("%s: %d records are read", name, len(got))
		} else if !strings.Contains(err.Error(), "what the parquet file says of its rows") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

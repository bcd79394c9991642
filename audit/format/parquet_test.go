package format

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// readers installs the npm packages of testdata/readers into a cache folder,
// once for each version of the lock file, and returns the folder.
func readers(t *testing.T) string {
	t.Helper()
	names := []string{"package.json", "package-lock.json", ".npmrc", "reader.mjs"}
	sum := sha256.New()
	files := map[string][]byte{}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join("testdata", "readers", name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
		fmt.Fprintf(sum, "%s %d\n%s", name, len(b), b)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "rotunda-tests")
	dir := filepath.Join(cache, fmt.Sprintf("readers-%x", sum.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	// Installed under another name and moved: what is there is whole.
	temp, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(temp)
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(temp, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	cmd.Dir = temp
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v: run 'make setup'\n%s", err, out)
	}
	if err := os.Rename(temp, dir); err != nil {
		if _, there := os.Stat(dir); there != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestParquetWhenReadByAnother: hyparquet, a reader written in JavaScript, sees
// the types and the values.
func TestParquetWhenReadByAnother(t *testing.T) {
	dir := readers(t)
	records := samples(t)
	gen := anyRecord()
	for i := range 2000 {
		records = append(records, gen.Example(i))
	}
	file := filepath.Join(t.TempDir(), "records.parquet")
	if err := os.WriteFile(file, writeAll(t, "parquet", records), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join(dir, "reader.mjs"), file)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node: %v: Node.js 20 or newer is needed: run 'make setup'\n%s", err, &stderr)
	}
	var got struct {
		Schema [][]any          `json:"schema"`
		Rows   []map[string]any `json:"rows"`
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}

	word := map[string]any{"type": "STRING"}
	var want [][]any
	for c := range numColumns {
		row := []any{columnNames[c], "BYTE_ARRAY", "REQUIRED", word, nil}
		switch {
		case c == colIndex || c == colCount:
			row = []any{columnNames[c], "INT64", "REQUIRED", map[string]any{"type": "INTEGER", "bitWidth": 64.0, "isSigned": true}, 64.0}
		case c == colTime:
			row = []any{columnNames[c], "INT64", "REQUIRED", map[string]any{"type": "TIMESTAMP", "isAdjustedToUTC": true, "unit": "MICROS"}, 64.0}
		case c == colHash:
			row = []any{columnNames[c], "FIXED_LEN_BYTE_ARRAY", "REQUIRED", nil, 32.0}
		case c >= colErased:
			row = []any{columnNames[c], "FIXED_LEN_BYTE_ARRAY", "OPTIONAL", nil, 32.0}
		case c == colSalt || c == colChecks:
			row = []any{columnNames[c], "BYTE_ARRAY", "OPTIONAL", nil, nil}
		case c == colDetail:
			row[3] = map[string]any{"type": "JSON"}
		case c >= colActor:
			row[2] = "OPTIONAL"
		}
		want = append(want, row)
	}
	if d := cmp.Diff(want, got.Schema); d != "" {
		t.Errorf("the schema differs (-want +got):\n%s", d)
	}
	if len(got.Rows) != len(records) {
		t.Fatalf("%d rows, want %d", len(got.Rows), len(records))
	}
	for i := range records {
		r := &records[i]
		for c := range numColumns {
			var want any = string(appendPlain(nil, r, c))
			switch {
			case c == colTime:
				want = fmt.Sprintf("micros:%d", r.Time.UnixMicro())
			case c == colDetail:
				var v any
				if r.Detail != "" {
					if err := json.Unmarshal([]byte(r.Detail), &v); err != nil {
						t.Fatal(err)
					}
				}
				want = v
			case c >= colActor && want == "":
				want = nil
			}
			if d := cmp.Diff(want, got.Rows[i][columnNames[c]]); d != "" {
				t.Fatalf("row %d, column %s (-want +got):\n%s", i, columnNames[c], d)
			}
		}
	}
}

// TestReadersLockFileWhenInstalled: the lock file pins every package by its hash
// and names no download address.
func TestReadersLockFileWhenInstalled(t *testing.T) {
	b, err := os.ReadFile("testdata/readers/package-lock.json")
	if err != nil || bytes.Contains(b, []byte(`"resolved"`)) || bytes.Count(b, []byte(`"integrity"`)) < 2 {
		t.Errorf("the lock file names download addresses, or has no hashes: %v", err)
	}
}

// TestParquetWhenNotSeekable: what can only be read from its start is copied,
// and nothing of it is left over.
func TestParquetWhenNotSeekable(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	want := many(t, 2000) // more than are read ahead
	b := writeAll(t, "parquet", want)
	got, err := readAll("parquet", io.MultiReader(bytes.NewReader(b)))
	if err != nil {
		t.Fatal(err)
	}
	equalRecords(t, got, want)

	in, err := NewReader("parquet", io.MultiReader(bytes.NewReader(b)))
	if err != nil {
		t.Fatal(err)
	}
	var r trail.Record
	if err := in.Read(&r); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(temp); len(left) != 1 {
		t.Errorf("%d temporary files while one is read", len(left))
	}
	in.(io.Closer).Close()
	if err := in.Read(&r); err == nil || !strings.Contains(err.Error(), "was closed") {
		t.Errorf("Read after Close: %v", err)
	}
	if _, err := NewReader("parquet", io.MultiReader(bytes.NewReader(b[:len(b)-9]))); err == nil {
		t.Error("a file without its end was opened")
	}
	if left, err := os.ReadDir(temp); len(left) != 0 || err != nil {
		t.Errorf("%d temporary files are left: %v", len(left), err)
	}
}

func TestParquetWhenColumnsDiffer(t *testing.T) {
	type other struct {
		Origin string `parquet:"origin"`
		Index  int32  `parquet:"index"`
	}
	var b bytes.Buffer
	w := parquet.NewGenericWriter[other](&b)
	if _, err := w.Write([]other{{"o", 1}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewReader("parquet", bytes.NewReader(b.Bytes())); err == nil || !strings.Contains(err.Error(), `column 2 is "index"`) {
		t.Errorf("error %v", err)
	}
}

// TestParquetWhenDamaged: no byte of a file, however it is altered, makes the
// reader panic, or hand out records that can't be written.
func TestParquetWhenDamaged(t *testing.T) {
	file := writeAll(t, "parquet", samples(t))
	failed := 0
	for i := 0; i < len(file); i += 11 {
		altered := bytes.Clone(file)
		altered[i] ^= 0xff
		got, err := readAll("parquet", bytes.NewReader(altered))
		if err != nil {
			failed++
		}
		for j := range got {
			if err := check(&got[j]); err != nil {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
	}
	if failed == 0 {
		t.Error("no altered byte was an error")
	}
}

// TestParquetWhenLarge: memory stays bounded while rows are written and read,
// and row groups hold no more than their bound.
func TestParquetWhenLarge(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "large.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	base := samples(t)
	record := func(i int) trail.Record {
		r := base[i%len(base)]
		r.Index = int64(i)
		r.Hash = sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
		r.Time = at.Add(time.Duration(i) * time.Millisecond)
		r.Detail = `{"x":"` + base64.StdEncoding.EncodeToString(bytes.Repeat(r.Hash[:], 8)) + `"}`
		return r
	}
	const n = 70_000
	heap := newPeak()
	w, err := NewWriter("parquet", file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		r := record(i)
		if err := w.Write(&r); err != nil {
			t.Fatal(err)
		}
		if i%20_000 == 0 {
			heap.look()
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	in, err := NewReader("parquet", file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		var got trail.Record
		if err := in.Read(&got); err != nil {
			t.Fatal(err)
		}
		if want := record(i); got.Hash != want.Hash || got.Detail != want.Detail || got.Index != want.Index {
			t.Fatalf("record %d differs:\n%s", i, cmp.Diff(want, got))
		}
		if i%20_000 == 0 {
			heap.look()
		}
	}
	if err := in.Read(new(trail.Record)); !errors.Is(err, io.EOF) {
		t.Errorf("behind the last record: %v", err)
	}
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := parquet.OpenFile(file, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range f.RowGroups() {
		if g.NumRows() > groupRows {
			t.Errorf("row group %d has %d rows", i, g.NumRows())
		}
	}
	if len(f.RowGroups()) < 2 {
		t.Errorf("%d row groups", len(f.RowGroups()))
	}
	// Twice the bytes of a row group for the buffers, and as much to spare.
	if heap.most > 4*groupBytes {
		t.Errorf("%d MiB of heap for row groups of %d MiB", heap.most>>20, groupBytes>>20)
	}
	t.Logf("%d records, %d MiB of file, %d row groups, %d MiB of heap at most", n, info.Size()>>20, len(f.RowGroups()), heap.most>>20)
}

// peak is the most memory in use beyond that of its start.
type peak struct{ start, most uint64 }

func newPeak() *peak {
	p := &peak{}
	p.look()
	p.start, p.most = p.most, 0
	return p
}

func (p *peak) look() {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > p.start {
		p.most = max(p.most, m.HeapAlloc-p.start)
	}
}

package format

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"pgregory.net/rapid"
)

// cells are what a reader of csv shall see for a record.
func cells(r *trail.Record) []string {
	out := make([]string, numColumns)
	for c := range numColumns {
		out[c] = string(appendPlain(nil, r, c))
	}
	return out
}

// unmark takes the apostrophe off that stands before what a spreadsheet would
// take for a formula.
func unmark(row []string) []string {
	out := make([]string, len(row))
	for i, cell := range row {
		out[i] = strings.TrimPrefix(cell, "'")
	}
	return out
}

// TestCSVWhenReadByEncodingCSV: the standard library reads the same cells. It
// turns CR LF inside of cells into LF, so that is done on both sides.
func TestCSVWhenReadByEncodingCSV(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		records := rapid.SliceOfN(anyRecord(), 1, 3).Draw(t, "records")
		rows, err := csv.NewReader(bytes.NewReader(writeAll(t, "csv", records))).ReadAll()
		if err != nil {
			t.Fatalf("encoding/csv: %v", err)
		}
		if d := cmp.Diff(columnNames[:], rows[0]); d != "" {
			t.Fatalf("names (-want +got):\n%s", d)
		}
		lf := strings.NewReplacer("\r\n", "\n")
		for i := range records {
			want := cells(&records[i])
			for j := range want {
				want[j] = lf.Replace(want[j])
			}
			if d := cmp.Diff(want, unmark(rows[i+1])); d != "" {
				t.Fatalf("record %d (-want +got):\n%s", i, d)
			}
		}
	})
}

// TestCSVWhenReadByPython: Python's csv module, which keeps CR LF, reads the same cells.
func TestCSVWhenReadByPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatalf("python3 is missing: run 'make setup': %v", err)
	}
	records := samples(t)
	gen := anyRecord().Filter(func(r trail.Record) bool { return !strings.Contains(strings.Join(cells(&r), ""), "\x00") })
	for i := range 300 {
		records = append(records, gen.Example(i))
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", `
import csv, io, json, sys
text = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="")
json.dump(list(csv.reader(text, strict=True)), sys.stdout)`)
	cmd.Stdin = bytes.NewReader(writeAll(t, "csv", records))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python3: %v\n%s", err, &stderr)
	}
	var rows [][]string
	if err := json.Unmarshal(out, &rows); err != nil || len(rows) != len(records)+1 {
		t.Fatalf("python3 read %d rows, want %d: %v", len(rows), len(records)+1, err)
	}
	for i := range records {
		if d := cmp.Diff(cells(&records[i]), unmark(rows[i+1])); d != "" {
			t.Fatalf("record %d (-want +got):\n%s", i, d)
		}
	}
}

// TestCSVCellWhenFormula: no cell begins with what a spreadsheet runs.
func TestCSVCellWhenFormula(t *testing.T) {
	for cell, want := range map[string]string{
		"=1+1":                       "'=1+1",
		"+1":                         "'+1",
		"-1":                         "'-1",
		"@SUM(A1)":                   "'@SUM(A1)",
		"\t=1":                       "\"'\t=1\"",
		"\rx":                        "\"'\rx\"",
		"\nx":                        "\"'\nx\"",
		"  =1":                       "'  =1",
		"\u00a0=1":                   "'\u00a0=1",
		"\u200b=1":                   "'\u200b=1",
		"＝1":                         "'＝1",
		"＋1":                         "'＋1",
		"－1":                         "'－1",
		"＠1":                         "'＠1",
		"'":                          "''",
		"'=1":                        "''=1",
		`=HYPERLINK("http://x","y")`: `"'=HYPERLINK(""http://x"",""y"")"`,
		"a;=1":                       `"a;=1"`,
		"a\"b":                       `"a""b"`,
		"plain":                      "plain",
		"":                           "",
		"a=b":                        "a=b",
		" a":                         `" a"`,
	} {
		got := string(guardCell(append([]byte("before,"), cell...), len("before,")))
		if cell == "  =1" {
			want = `"` + want + `"`
		}
		if got != "before,"+want {
			t.Errorf("%q is written %q, want %q", cell, got, "before,"+want)
		}
	}
}

package format

import (
	"bytes"
	"testing"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// fuzzReader checks that whatever a reader accepts is, byte for byte, what the
// writer writes for the records that it gave.
func fuzzReader(f *testing.F, name string) {
	for _, r := range samples(f) {
		f.Add(writeAll(f, name, []trail.Record{r}))
	}
	f.Add(writeAll(f, name, samples(f)))
	f.Add(writeAll(f, name, nil))
	f.Fuzz(func(t *testing.T, text []byte) {
		records, err := readAll(name, bytes.NewReader(text))
		if err != nil {
			return
		}
		if again := writeAll(t, name, records); !bytes.Equal(again, text) && len(text) > 0 {
			t.Errorf("read %q, which is written %q", text, again)
		}
	})
}

func FuzzReadJSONL(f *testing.F) { fuzzReader(f, "jsonl") }
func FuzzReadCSV(f *testing.F)   { fuzzReader(f, "csv") }
func FuzzReadCEF(f *testing.F)   { fuzzReader(f, "cef") }
func FuzzReadOCSF(f *testing.F)  { fuzzReader(f, "ocsf") }

// FuzzReadParquet: a damaged file gives an error, or records that can be written.
func FuzzReadParquet(f *testing.F) {
	f.Add(writeAll(f, "parquet", samples(f)))
	f.Add(writeAll(f, "parquet", nil))
	f.Fuzz(func(t *testing.T, file []byte) {
		records, _ := readAll("parquet", bytes.NewReader(file))
		got, err := readAll("parquet", bytes.NewReader(writeAll(t, "parquet", records)))
		if err != nil {
			t.Fatal(err)
		}
		equalRecords(t, got, records)
	})
}

package format

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files in testdata")

func golden(name string) string { return filepath.Join("testdata", "records."+Extension(name)) }

// TestRecordWhenWrittenAndRead: every record within the bounds comes back as it
// was, from every format.
func TestRecordWhenWrittenAndRead(t *testing.T) {
	for _, name := range Names {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				want := rapid.SliceOfN(anyRecord(), 1, 4).Draw(t, "records")
				got, err := readAll(name, bytes.NewReader(writeAll(t, name, want)))
				if err != nil {
					t.Fatalf("read: %v", err)
				}
				equalRecords(t, got, want)
			})
		})
	}
}

// TestGoldenWhenRead: files of earlier versions can be read, and hold what the
// leaf hashes say.
func TestGoldenWhenRead(t *testing.T) {
	want := samples(t)
	for _, name := range Names {
		t.Run(name, func(t *testing.T) {
			written := writeAll(t, name, want)
			if *update {
				if err := os.WriteFile(golden(name), written, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			file, err := os.Open(golden(name))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			got, err := readAll(name, file)
			if err != nil {
				t.Fatal(err)
			}
			equalRecords(t, got, want)
			for i := range got {
				if h, err := got[i].Event.Hash(); err != nil || h != got[i].Hash {
					t.Errorf("record %d: leaf hash %v, %v, want %v", i, h, err, got[i].Hash)
				}
			}
			if name == "parquet" {
				return // its bytes may change with the library that compresses
			}
			if b, err := os.ReadFile(golden(name)); err != nil || !bytes.Equal(b, written) {
				t.Errorf("%s is not what is written now: %v", golden(name), err)
			}
		})
	}
}

// TestTextWhenAltered: a text of which any one byte was changed, taken out or
// put in is refused, or is another record, which the leaf hash shows.
func TestTextWhenAltered(t *testing.T) {
	for _, name := range Names {
		if name == "parquet" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			all := samples(t)
			for _, i := range []int{0, 3, 6, 7, 9} {
				r := all[i]
				text := writeAll(t, name, []trail.Record{r})
				tried := 0
				try := func(at int, altered []byte) {
					tried++
					got, err := readAll(name, bytes.NewReader(altered))
					if err == nil && len(got) == 1 && cmp.Equal(got[0], r) {
						t.Fatalf("record %d, byte %d: this was read as if nothing had been altered:\n%s", i, at, altered)
					}
				}
				for at, c := range text {
					for _, other := range []byte{c ^ 1, ' '} {
						if other != c {
							altered := bytes.Clone(text)
							altered[at] = other
							try(at, altered)
						}
					}
					try(at, append(bytes.Clone(text[:at]), text[at+1:]...))
					try(at, append(append(bytes.Clone(text[:at]), c), text[at:]...))
				}
				if tried < 3*len(text) {
					t.Fatalf("only %d alterations of %d bytes", tried, len(text))
				}
			}
		})
	}
}

// TestErrorWhenTextAltered: an error names the line and what is wrong in it.
func TestErrorWhenTextAltered(t *testing.T) {
	for _, c := range []struct{ format, old, new, want string }{
		{"jsonl", `"outcome":"ok"`, `"outcome":"no"`, ""}, // another record, as well written
		{"jsonl", `"outcome":"ok"`, `"outcome": "ok"`, "line 1: it is not JSON in compact form"},
		{"jsonl", `"outcome":"ok"`, `"outcome":"\u006fk"`, `line 1, byte 249: member "outcome" is not as Rotunda writes it`},
		{"jsonl", `"count":1`, `"count":1.0`, `line 1: member "count": "1.0" is no whole number`},
		{"jsonl", `"count":1`, `"count":1,"extra":1`, `line 1: member "extra" is none that Rotunda writes`},
		{"jsonl", `"count":4711`, `"count":04711`, `line 3: it is not JSON`},
		{"jsonl", `"time":"2026-03-14T09:26:53.589793Z"`, `"time":"2026-03-14T09:26:53.58979Z"`, `line 1: member "time": `},
		{"jsonl", `"erased":{"actor"`, `"erased":{"action"`, `line 7: member "erased": "action" is no field that can be erased`},
		{"csv", "anonymous", "=anonymous", `line 4, byte 164: column "actor" is not as Rotunda writes it`},
		{"csv", "origin,index", "origin,idx", "line 1 does not have the names"},
		{"csv", "anonymous", "anonymous,x", `line 4: column "erased_actor"`},
		{"csv", ",4711,", ",4711.0,", `column "count"`},
		{"cef", "|keyset create|2|", "|keyset create|9|", "line 1, byte 53: the header's severity is not as Rotunda writes it"},
		{"cef", "|keyset create|2|", "|keyset delete|2|", "the header's name is not"},
		{"cef", "cs1Label=origin", "cs1Label=source", `key "cs1Label" is not as`},
		{"cef", "rt=1773480413589", "rt=1773480413588", `key "rt" is not as`},
		{"cef", "cnt=4711", "cnt=4711 x=1", `line 3: key "x" is none that Rotunda writes`},
		{"ocsf", `"severity":"Medium"`, `"severity":"Low"`, `line 3, byte 130: member "severity" is not`},
		{"ocsf", `"type_id":99`, `"type_id":98`, `member "entity.type_id" is not`},
		{"ocsf", `"sequence":1000`, `"sequence":01000`, `it is not JSON`},
		{"ocsf", `"message":"authenticate: denied"`, `"message":"fine"`, `line 3, byte 236: member "message" is not`},
		{"ocsf", `"timezone_offset":0`, `"timezone_offset":0,"device":{}`, `line 1, byte 213: member "device" is not`},
	} {
		text := string(writeAll(t, c.format, samples(t)))
		altered := strings.Replace(text, c.old, c.new, 1)
		if altered == text {
			t.Errorf("%s: %q does not occur", c.format, c.old)
			continue
		}
		_, err := readAll(c.format, strings.NewReader(altered))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s, %s for %s: error %v, want one with %q", c.format, c.new, c.old, err, c.want)
		}
	}
}

func TestTextWhenCutShort(t *testing.T) {
	for _, name := range Names {
		text := writeAll(t, name, samples(t))
		for _, n := range []int{1, 2, 40, len(text) / 2} {
			if got, err := readAll(name, bytes.NewReader(text[:len(text)-n])); err == nil && len(got) == len(samples(t)) {
				t.Errorf("%s: without its last %d bytes it was read whole", name, n)
			} else if err == nil && text[len(text)-n-1] != '\n' {
				t.Errorf("%s: without its last %d bytes it was read without an error", name, n)
			}
		}
	}
}

func TestFileWhenEmpty(t *testing.T) {
	for _, name := range Names {
		text := writeAll(t, name, nil)
		if got, err := readAll(name, bytes.NewReader(text)); err != nil || len(got) > 0 {
			t.Errorf("%s: a file without records gives %v, %v", name, got, err)
		}
		got, err := readAll(name, strings.NewReader(""))
		if noHead := name != "csv" && name != "parquet"; noHead != (err == nil) || len(got) > 0 {
			t.Errorf("%s: no bytes at all give %v, %v", name, got, err)
		}
	}
}

func TestLineWhenTooLong(t *testing.T) {
	endless := io.MultiReader(strings.NewReader(csvHead+csvEnd), &repeated{b: 'x', left: 1 << 30})
	if _, err := readAll("csv", endless); err == nil || !strings.Contains(err.Error(), "line 2 is longer than 524288 bytes") {
		t.Errorf("error %v", err)
	}
	in := &repeated{b: '\n', left: 1 << 30}
	if _, err := readAll("csv", io.MultiReader(strings.NewReader(csvHead+csvEnd+`"`), in)); err == nil || in.left < 1<<29 {
		t.Errorf("an open quote made the reader read %d bytes: %v", 1<<30-in.left, err)
	}
}

type repeated struct {
	b    byte
	left int
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.left < len(p) {
		return 0, io.EOF
	}
	for i := range p {
		p[i] = r.b
	}
	r.left -= len(p)
	return len(p), nil
}

// TestLineWhenFieldsAreFull: the longest record can be read.
func TestLineWhenFieldsAreFull(t *testing.T) {
	for _, fill := range []string{"\x01", "\"", "\u2028", "a", "é", "\\", "\n", "=", "\u202e"} {
		full := strings.Repeat(fill, trail.MaxText/len(fill))
		r := samples(t)[0]
		r.Origin = full[:len(fill)*(maxOrigin/len(fill))]
		for c := range numColumns {
			if s := text(&r, c); s != nil && c != colOrigin && c != colDetail {
				*s = full
			}
		}
		n := 1
		for (n+1)*len(appendQuoted(nil, fill))+8 < trail.MaxDetail {
			n++
		}
		r.Detail = `{"":` + string(appendQuoted(nil, strings.Repeat(fill, n/2))) + `}`
		for _, name := range Names {
			b := writeAll(t, name, []trail.Record{r})
			got, err := readAll(name, bytes.NewReader(b))
			if err != nil {
				t.Fatalf("%s of %q, %d bytes: %v", name, fill, len(b), err)
			}
			equalRecords(t, got, []trail.Record{r})
		}
	}
}

func TestRecordWhenItDoesNotFit(t *testing.T) {
	long := strings.Repeat("x", trail.MaxText+1)
	for want, change := range map[string]func(*trail.Record){
		"its origin is not UTF-8 of 1 to 255":       func(r *trail.Record) { r.Origin = "" },
		"its index -1 is outside":                   func(r *trail.Record) { r.Index = -1 },
		"its reason is not UTF-8 of at most 1024":   func(r *trail.Record) { r.Reason = long },
		"its actor is not UTF-8":                    func(r *trail.Record) { r.Actor = "a\xff" },
		"its intent is not":                         func(r *trail.Record) { r.Intent = long },
		"its detail is not a JSON object":           func(r *trail.Record) { r.Detail = `{"a": 1}` },
		"its detail is longer than 16384":           func(r *trail.Record) { r.Detail = `{"a":"` + strings.Repeat("x", trail.MaxDetail) + `"}` },
		"its time is outside":                       func(r *trail.Record) { r.Time = r.Time.Add(1) },
		"its salt or its checks are longer than 96": func(r *trail.Record) { r.Salt = make([]byte, 97) },
	} {
		for _, name := range Names {
			r := samples(t)[0]
			change(&r)
			var b bytes.Buffer
			w, err := NewWriter(name, &b)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Write(&r); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want one with %q", name, err, want)
			}
			good := samples(t)[:1]
			if err := errors.Join(w.Write(&good[0]), w.Close()); err != nil {
				t.Errorf("%s: after a refused record: %v", name, err)
			}
			got, err := readAll(name, &b)
			if err != nil {
				t.Errorf("%s: after a refused record: %v", name, err)
			}
			equalRecords(t, got, good)
		}
	}
}

func TestDetailWhenNotCompact(t *testing.T) {
	for _, good := range []string{"", "{}", `{"a":{}}`, `{"a":[]}`, `{"a":-0.1E-5,"b":0,"c":[[1],"\u00e9"]}`, `{"é":"\"\\\/\b\f\n\r\t"}`} {
		if err := checkDetail(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{" {}", "{} ", "[]", "null", `"a"`, `{"a":1,}`, `{,}`, `{"a"}`, `{"a":}`, `{"a":01}`, `{"a":1.}`, `{"a":.5}`, `{"a":1e}`, `{"a":-}`,
		`{"a":tru}`, `{"a":"\x"}`, `{"a":"\u12"}`, `{"a":"` + "\n" + `"}`, `{"a":"` + "\xff" + `"}`, `{"a":[1}`, `{"a":"b`, `{"a":1}{}`, `{a:1}`, `{"a":1 ,"b":2}`, "{\"a\":1}\n"} {
		if err := checkDetail(bad); err == nil {
			t.Errorf("%s is taken for a compact JSON object", bad)
		}
	}
}

// errWriter fails after n bytes.
type errWriter struct{ n int }

var errFull = errors.New("the disk is full")

func (w *errWriter) Write(p []byte) (int, error) {
	if w.n -= len(p); w.n < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriterWhenDiskIsFull(t *testing.T) {
	r := samples(t)[0]
	for _, name := range Names {
		for _, room := range []int{0, 1000} {
			w, err := NewWriter(name, &errWriter{room})
			if err != nil {
				t.Fatal(err)
			}
			var first error
			for range 80_000 {
				if first = w.Write(&r); first != nil {
					break
				}
			}
			if err := w.Close(); !errors.Is(err, errFull) || first != nil && !errors.Is(first, errFull) {
				t.Errorf("%s, room for %d: Write %v, Close %v", name, room, first, err)
			}
			if err := w.Write(&r); err == nil {
				t.Errorf("%s: Write after Close gives no error", name)
			}
		}
	}
}

func TestFormatWhenUnknown(t *testing.T) {
	_, err := NewWriter("xml", io.Discard)
	_, err2 := NewReader("xml", strings.NewReader(""))
	for _, err := range []error{err, err2} {
		if err == nil || err.Error() != `there is no format "xml": it is one of jsonl, csv, cef, ocsf, parquet` {
			t.Errorf("error %v", err)
		}
	}
	if e := Extension("xml"); e != "" {
		t.Errorf("Extension = %q", e)
	}
}

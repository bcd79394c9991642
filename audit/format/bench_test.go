package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// many are n records like those of a busy server, from the samples.
func many(b testing.TB, n int) []trail.Record {
	base := samples(b)
	out := make([]trail.Record, n)
	for i := range out {
		out[i] = base[i%len(base)]
		out[i].Index = int64(i)
		out[i].Time = at.Add(time.Duration(i) * 1013 * time.Microsecond)
		out[i].ID = fmt.Sprintf("0195a1b2-c3d4-7e5f-8a9b-%012x", i)
	}
	return out
}

func BenchmarkWrite(b *testing.B) {
	records := many(b, 1000)
	for _, name := range Names {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var size counter
			w, err := NewWriter(name, &size)
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for b.Loop() {
				if err := w.Write(&records[n%len(records)]); err != nil {
					b.Fatal(err)
				}
				n++
			}
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
			if name != "parquet" { // the records repeat, which makes it small beyond measure
				b.ReportMetric(float64(size)/float64(n), "B/record")
			}
		})
	}
	b.Run("encoding-json", func(b *testing.B) {
		b.ReportAllocs()
		w := json.NewEncoder(io.Discard)
		n := 0
		for b.Loop() {
			r := &records[n%len(records)]
			if err := w.Encode(toPlain(r)); err != nil {
				b.Fatal(err)
			}
			n++
		}
	})
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// BenchmarkRead reads files of 10,000 records; an operation is one record.
func BenchmarkRead(b *testing.B) {
	records := many(b, 10_000)
	for _, name := range Names {
		b.Run(name, func(b *testing.B) {
			text := writeAll(b, name, records)
			b.ReportAllocs()
			var in Reader
			var r trail.Record
			for b.Loop() {
				err := io.EOF
				if in != nil {
					err = in.Read(&r)
				}
				if errors.Is(err, io.EOF) {
					if in, err = NewReader(name, bytes.NewReader(text)); err == nil {
						err = in.Read(&r)
					}
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("encoding-json", func(b *testing.B) {
		text := writeAll(b, "jsonl", records)
		b.ReportAllocs()
		in := json.NewDecoder(bytes.NewReader(text))
		for b.Loop() {
			var p plain
			err := in.Decode(&p)
			if errors.Is(err, io.EOF) {
				in = json.NewDecoder(bytes.NewReader(text))
				err = in.Decode(&p)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// plain is what a program would use that leaves jsonl to encoding/json.
type plain struct {
	Origin    string            `json:"origin"`
	Index     int64             `json:"index"`
	Hash      []byte            `json:"hash"`
	ID        string            `json:"id"`
	Time      time.Time         `json:"time"`
	Action    string            `json:"action"`
	Resource  string            `json:"resource"`
	Outcome   string            `json:"outcome"`
	Count     int64             `json:"count"`
	Actor     string            `json:"actor,omitempty"`
	Partner   string            `json:"partner,omitempty"`
	Reason    string            `json:"reason,omitempty"`
	RequestID string            `json:"request_id,omitempty"`
	Address   string            `json:"address,omitempty"`
	Detail    json.RawMessage   `json:"detail,omitempty"`
	Intent    string            `json:"intent,omitempty"`
	Salt      []byte            `json:"salt,omitempty"`
	Checks    []byte            `json:"checks,omitempty"`
	Erased    map[string][]byte `json:"erased,omitempty"`
}

func toPlain(r *trail.Record) *plain {
	p := &plain{r.Origin, r.Index, r.Hash[:], r.ID, r.Time, r.Action, r.Resource, r.Outcome, r.Count, r.Actor, r.Partner, r.Reason,
		r.RequestID, r.Address, nil, r.Intent, r.Salt, r.Checks, nil}
	if r.Detail != "" {
		p.Detail = json.RawMessage(r.Detail)
	}
	for f := range trail.NumFields {
		if r.IsErased(f) {
			if p.Erased == nil {
				p.Erased = map[string][]byte{}
			}
			p.Erased[f.String()] = r.Erased[f][:]
		}
	}
	return p
}

// TestJSONWhenReadByEncodingJSON: the standard library reads the same fields.
func TestJSONWhenReadByEncodingJSON(t *testing.T) {
	for _, r := range samples(t) {
		line, err := AppendJSON(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		var got plain
		in := json.NewDecoder(bytes.NewReader(line))
		in.DisallowUnknownFields()
		if err := in.Decode(&got); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		want := toPlain(&r)
		a, err1 := json.Marshal(want)
		b, err2 := json.Marshal(got)
		if string(a) != string(b) || err1 != nil || err2 != nil {
			t.Errorf("encoding/json reads\n%s, want\n%s", b, a)
		}
	}
}

package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// TestVerifyTakesWhatWriterWrites draws logs, ranges, filters, pruned leaves,
// erased fields, formats and splits into parts, and edits one record of each
// bundle, which must not pass.
func TestVerifyTakesWhatWriterWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 120).Draw(t, "size")
		l := newLog(t, int(size))
		for _, i := range rapid.SliceOfN(rapid.Int64Range(0, size-1), 0, 5).Draw(t, "erased") {
			if err := l.records[i].Erase(trail.Field(rapid.IntRange(0, int(trail.NumFields)-1).Draw(t, "field"))); err != nil {
				t.Fatal(err)
			}
		}
		pruned := map[int64]string{}
		if rapid.Bool().Draw(t, "prune") {
			to := rapid.Int64Range(1, size).Draw(t, "pruned to")
			l.add(t, pruneEvent(int(size), 0, to))
			size++
			for i := range to {
				if rapid.IntRange(0, 9).Draw(t, "hold") > 0 {
					pruned[i] = Pruned
				}
			}
		}
		filter := map[string]string{}
		for _, c := range []struct {
			key    string
			values []string
		}{
			{"action", []string{"api_key.", "keyset.create"}}, {"resource", []string{"keysets/", "keysets/k3"}}, {"outcome", []string{"ok", "denied"}},
			{"partner", []string{"acme"}}, {"address", []string{"192.0.2.7"}}, {"since", []string{"2026-01-01T00:00:20Z"}}, {"until", []string{"2026-01-01T00:01:10Z"}},
		} {
			if rapid.IntRange(0, 4).Draw(t, c.key+"?") == 0 {
				filter[c.key] = rapid.SampledFrom(c.values).Draw(t, c.key)
			}
		}
		if rapid.IntRange(0, 9).Draw(t, "rotate") == 0 {
			l.rotate(t, rapid.Int64Range(0, size).Draw(t, "rotated at"))
		}
		hidden := map[int64]string{}
		if len(filter) > 0 {
			hidden = l.omit(t, filter)
		}
		maps.Copy(hidden, pruned)
		begin := rapid.Int64Range(0, size).Draw(t, "begin")
		end := rapid.Int64Range(begin, size).Draw(t, "end")
		head := l.head(t, begin, end, size, filter)
		if len(pruned) > 0 && end < size {
			head.Evidence = []string{l.proof(t, size-1, size)}
		}
		name := rapid.SampledFrom(format.Names).Draw(t, "format")
		zipped := rapid.Bool().Draw(t, "zip")
		entries := rapid.Bool().Draw(t, "entries")
		cuts := rapid.SliceOfN(rapid.Int64Range(begin, end), 0, 4).Draw(t, "cuts")
		slices.Sort(cuts)
		write := func(path string) {
			var w *Writer
			var err error
			var b bytes.Buffer
			if zipped {
				w, err = WriteZip(&b, head, name)
			} else {
				w, err = Create(path, head, name)
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, cut := range append(slices.Clone(cuts), end) {
				w.head.End = cut
				l.export(t, w, hidden, entries)
				if err := w.endPart(); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if zipped {
				if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		dir, err := os.MkdirTemp("", "bundle")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		write(filepath.Join(dir, "a"))
		opts := Options{Keys: l.trusted(t)}
		r, err := Verify(t.Context(), filepath.Join(dir, "a"), opts)
		if err != nil || !r.OK() {
			t.Fatalf("an honest bundle: %v\n%s", err, list(r))
		}
		if r.Records+r.Omitted+r.Pruned != end-begin {
			t.Fatalf("%d records, %d omitted and %d pruned of [%d, %d)", r.Records, r.Omitted, r.Pruned, begin, end)
		}
		if r.Records == 0 {
			return
		}
		// One bit of one record that is in the data.
		var in []int64
		for i := begin; i < end; i++ {
			if hidden[i] == "" {
				in = append(in, i)
			}
		}
		i := rapid.SampledFrom(in).Draw(t, "edited")
		l.records[i].Count++
		write(filepath.Join(dir, "b"))
		r, err = Verify(t.Context(), filepath.Join(dir, "b"), opts)
		if err != nil || len(r.Findings) != 1 || r.Findings[0].Index != i || !cmp.Equal(r.Findings[0].Fields, []string{"count"}) {
			t.Fatalf("the count of event %d was altered: %v\n%s", i, err, list(r))
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	m := Manifest{
		Version: 1, Origin: origin, Format: "jsonl", Filter: map[string]string{"action": "a"}, Begin: 3, End: 9, CheckpointSize: 10, Records: 5,
		Parts: []Part{{Begin: 3, End: 9, Records: 5, Gaps: 1, Data: &File{"data-000000.jsonl", 5, strings.Repeat("0", 64)}, GapFile: &File{"gaps-000000", 5, strings.Repeat("0", 64)}}},
	}
	b, err := m.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			return
		}
		for i, p := range m.Parts {
			for _, file := range []*File{p.Data, p.GapFile} {
				if file != nil && (filepath.Base(file.Name) != file.Name || file.Name != gapsName(i) && !strings.HasPrefix(file.Name, fmt.Sprintf("data-%06d.", i))) {
					t.Errorf("a part is in the file %q", file.Name)
				}
			}
		}
	})
}

func FuzzGapReader(f *testing.F) {
	hash := tlog.Hash{7}
	leaf := Gap{Begin: 5, End: 7, Why: Filtered, Entries: [][]byte{{1}, {2}}}
	two := Gap{Begin: 7, End: 8, Why: Pruned, Hashes: []tlog.Hash{hash}}
	f.Add(gapsTitle + "\n" + string(appendGap(appendGap(nil, &leaf), &two)))
	f.Add(gapsTitle + "\n")
	f.Add(gapsTitle + "\ngap 0 9223372036854775807 filter\n")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := newGapReader(strings.NewReader(text))
		if err != nil {
			return
		}
		again := []byte(gapsTitle + "\n")
		for {
			g, err := r.next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return
			}
			if _, err := trail.NewRange(g.Begin, g.End, g.Hashes); err != nil {
				t.Fatalf("a gap that can't be placed was read: %v", err)
			}
			again = appendGap(again, g)
		}
		if string(again) != text {
			t.Errorf("%q was read as %q", text, again)
		}
	})
}

func FuzzParseTree(f *testing.F) {
	f.Add(formatTree([]tlog.Hash{{1}, {2}}, []tlog.Hash{{3}}))
	f.Add(formatTree(nil, nil))
	f.Add(treeTitle)
	f.Fuzz(func(t *testing.T, text string) {
		left, right, err := parseTree(text)
		if err == nil && formatTree(left, right) != text {
			t.Errorf("%q was read as %v and %v", text, left, right)
		}
	})
}

func FuzzSplitNotes(f *testing.F) {
	f.Add("a\n\nb\n", 2)
	f.Add("a\n\nb\n\nc\n\nd\n", 2)
	f.Add("a\n\nb\n\nc\n", 3)
	f.Fuzz(func(t *testing.T, text string, stanzas int) {
		if stanzas != 2 && stanzas != 3 {
			return
		}
		notes, err := splitNotes(text, stanzas)
		if err == nil && joinNotes(notes) != text {
			t.Errorf("%q was taken apart into %q", text, notes)
		}
	})
}

func FuzzParseFilter(f *testing.F) {
	f.Add("since", "2026-01-01T00:00:00Z")
	f.Add("action", "keyset.")
	f.Add("partner", "")
	f.Add("detail", "{}")
	l := newLog(f, 8)
	f.Fuzz(func(t *testing.T, key, value string) {
		filter, err := ParseFilter(map[string]string{key: value})
		if err != nil {
			return
		}
		for i := range l.records {
			r := &l.records[i]
			leaf, err := r.Leaf()
			if err != nil {
				t.Fatal(err)
			}
			// What a leaf alone can tell must agree with what the event tells.
			out, known := filter.LeftOut(&leaf)
			if in := filter.refuses(&r.Event, &leaf) == ""; out && in || known && !out && !in {
				t.Errorf("%s=%q: event %d is left out: %v (known: %v), and it matches: %v", key, value, i, out, known, in)
			}
		}
	})
}

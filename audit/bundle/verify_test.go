package bundle

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

func TestVerifyFindsNothingInAnHonestBundle(t *testing.T) {
	l := newLog(t, 200)
	l.rotate(t, 120)
	l.rotate(t, 150)
	for _, name := range format.Names {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w, err := Create(dir, l.head(t, 13, 177, 200, nil), name)
			if err != nil {
				t.Fatal(err)
			}
			l.export(t, w, nil, false)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			r := verify(t, dir, l.trusted(t))
			wantHonest(t, r)
			c := l.checkpoint(t, 200)
			want := Report{
				Origin: origin, Size: 200, Root: c.Root, Begin: 13, End: 177, Format: name, Filter: map[string]string{},
				Records: 164, First: l.records[13].Time, Last: l.records[176].Time, RootVerified: true,
			}
			if diff := cmp.Diff(want, r); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVerifyTakesEveryRange(t *testing.T) {
	l := newLog(t, 19)
	for begin := int64(0); begin <= 19; begin++ {
		for end := begin; end <= 19; end++ {
			for _, size := range []int64{end, 19} {
				dir := l.bundle(t, l.head(t, begin, end, size, nil), nil, false)
				if r := verify(t, dir, l.trusted(t)); !r.OK() || r.Records != end-begin {
					t.Fatalf("[%d, %d) of %d: %d records, findings:\n%s", begin, end, size, r.Records, list(r))
				}
			}
		}
	}
}

func TestVerifyChecksOmittedEventsWhenTheirLeavesAreShown(t *testing.T) {
	l := newLog(t, 100)
	for _, tt := range []struct {
		name      string
		filter    map[string]string
		entries   bool
		undecided bool
	}{
		{"action", map[string]string{"action": "api_key."}, true, false},
		{"resource and outcome", map[string]string{"resource": "keysets/", "outcome": "denied"}, true, false},
		{"time", map[string]string{"since": "2026-01-01T00:00:20Z", "until": "2026-01-01T00:01:00Z"}, true, false},
		{"partner", map[string]string{"partner": "acme"}, true, true},
		{"hashes only", map[string]string{"action": "api_key.revoke"}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hidden := l.omit(t, tt.filter)
			dir := l.bundle(t, l.head(t, 0, 100, 100, tt.filter), hidden, tt.entries)
			r := verify(t, dir, l.trusted(t))
			wantHonest(t, r)
			if r.Omitted != int64(len(hidden)) || r.Records != 100-r.Omitted || r.Omitted == 0 || r.Records == 0 {
				t.Errorf("%d omitted, %d records, want %d and the rest", r.Omitted, r.Records, len(hidden))
			}
			if (r.Undecided > 0) != tt.undecided {
				t.Errorf("%d undecided", r.Undecided)
			}
			if got := r.Unseen == 0; got != tt.entries {
				t.Errorf("%d unseen", r.Unseen)
			}
			whole, err := Verify(t.Context(), dir, Options{Keys: l.trusted(t), Whole: true})
			if err != nil {
				t.Fatal(err)
			}
			if whole.OK() != tt.entries || !tt.entries && whole.Findings[0].Kind != Incomplete {
				t.Errorf("when leaves must be shown: %s", list(whole))
			}
		})
	}
}

func TestVerifyListsWhatWasPrunedErasedAndLeftOpen(t *testing.T) {
	l := newLog(t, 50)
	start := event(50)
	start.Outcome, start.Action = trail.Started, "rotation.publish"
	start.Checks = start.MakeChecks()
	l.add(t, start)
	ended := event(51)
	ended.Outcome = trail.Started
	ended.Checks = ended.MakeChecks()
	l.add(t, ended)
	end := event(52)
	end.Intent = ended.ID
	end.Checks = end.MakeChecks()
	l.add(t, end)
	l.add(t, pruneEvent(53, 0, 20))
	if err := l.records[30].Erase(trail.Actor, trail.Address); err != nil {
		t.Fatal(err)
	}
	hidden := map[int64]string{}
	for i := range int64(20) {
		if i != 7 { // under legal hold
			hidden[i] = Pruned
		}
	}
	r := verify(t, l.bundle(t, l.head(t, 0, 54, 54, nil), hidden, false), l.trusted(t))
	wantHonest(t, r)
	by := l.records[53].ID
	if diff := cmp.Diff([]PrunedRange{{0, 7, by, 53}, {8, 20, by, 53}}, r.PrunedRanges); diff != "" {
		t.Errorf("pruned ranges (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Intent{{50, start.ID, start.Time, "rotation.publish", start.Resource}}, r.OpenIntents); diff != "" {
		t.Errorf("open intents (-want +got):\n%s", diff)
	}
	if r.Pruned != 19 || r.PrunedRuns != 2 || r.ErasedFields != 2 || r.Records != 35 {
		t.Errorf("pruned %d in %d runs, %d erased fields, %d records", r.Pruned, r.PrunedRuns, r.ErasedFields, r.Records)
	}

	// The same in parts: an intent may begin in one and end in another.
	if again := verify(t, l.inParts(t, l.head(t, 32, 54, 54, nil), nil, false), l.trusted(t)); !again.OK() || !cmp.Equal(again.OpenIntents, r.OpenIntents) {
		t.Errorf("in parts: %+v, %s", again.OpenIntents, list(again))
	}

	// The declaration stands after the range: a proof of it is the evidence.
	head := l.head(t, 0, 40, 54, nil)
	r = verify(t, l.bundle(t, head, hidden, false), l.trusted(t))
	if len(r.Findings) != 2 || r.Findings[0].Kind != Undeclared || r.Findings[1].Kind != Undeclared {
		t.Errorf("without evidence: %s", list(r))
	}
	head.Evidence = []string{l.proof(t, 53, 54), l.proof(t, 53, 54)}
	wantHonest(t, verify(t, l.bundle(t, head, hidden, false), l.trusted(t)))

	// In a filtered bundle it is listed, and no finding.
	filter := map[string]string{"outcome": "ok"}
	some := l.omit(t, filter)
	maps.Copy(some, hidden)
	r = verify(t, l.bundle(t, l.head(t, 0, 40, 54, filter), some, false), l.trusted(t))
	wantHonest(t, r)
	if len(r.PrunedRanges) != 2 || r.PrunedRanges[0].Event != "" || r.PrunedRanges[0].Index != -1 {
		t.Errorf("filtered: %+v", r.PrunedRanges)
	}
}

func TestVerifyWantsAllOfAPrunedRunDeclared(t *testing.T) {
	for _, tt := range []struct {
		name     string
		declared []span
		want     bool
	}{
		{"whole", []span{{10, 20}}, true},
		{"more", []span{{5, 25}}, true},
		{"in two that touch", []span{{15, 20}, {10, 15}}, true},
		{"in two that overlap", []span{{13, 20}, {10, 16}}, true},
		{"begins too late", []span{{11, 20}}, false},
		{"ends too soon", []span{{10, 19}}, false},
		{"with a hole", []span{{10, 14}, {15, 20}}, false},
		{"before", []span{{0, 10}}, false},
		{"after", []span{{20, 30}}, false},
		{"not at all", nil, false},
	} {
		l := newLog(t, 30)
		for i, s := range tt.declared {
			l.add(t, pruneEvent(30+i, s.begin, s.end))
		}
		n := int64(len(l.records))
		hidden := map[int64]string{}
		for i := int64(10); i < 20; i++ {
			hidden[i] = Pruned
		}
		r := verify(t, l.bundle(t, l.head(t, 0, n, n, nil), hidden, false), l.trusted(t))
		if r.OK() != tt.want || !r.OK() && (len(r.Findings) != 1 || r.Findings[0].Kind != Undeclared || r.Findings[0].Index != 10) {
			t.Errorf("%s: %s", tt.name, list(r))
		}
	}
}

func TestDeclaresOnlyWhatAPruneCanHaveDone(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*trail.Event)
		want bool
	}{
		{"as it is", func(*trail.Event) {}, true},
		{"up to itself", func(e *trail.Event) { e.Detail = `{"begin":0,"end":53}` }, true},
		{"beyond itself", func(e *trail.Event) { e.Detail = `{"begin":0,"end":54}` }, false},
		{"nothing", func(e *trail.Event) { e.Detail = `{"begin":20,"end":20}` }, false},
		{"below 0", func(e *trail.Event) { e.Detail = `{"begin":-1,"end":20}` }, false},
		{"no begin", func(e *trail.Event) { e.Detail = `{"end":20}` }, false},
		{"no numbers", func(e *trail.Event) { e.Detail = `{"begin":"0","end":"20"}` }, false},
		{"erased", func(e *trail.Event) { e.Detail = "" }, false},
		{"only tried", func(e *trail.Event) { e.Outcome = trail.Started }, false},
		{"failed", func(e *trail.Event) { e.Outcome = trail.Failed }, false},
		{"denied", func(e *trail.Event) { e.Outcome = trail.Denied }, false},
		{"another action", func(e *trail.Event) { e.Action = "trail.pruned" }, false},
	} {
		e := pruneEvent(53, 5, 20)
		tt.edit(&e)
		if d, ok := declares(&e, 53); ok != tt.want {
			t.Errorf("%s: %+v, %v", tt.name, d, ok)
		}
	}
}

func TestVerifyReadsAZip(t *testing.T) {
	l := newLog(t, 300)
	l.rotate(t, 250)
	filter := map[string]string{"action": "api_key."}
	for _, name := range format.Names {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w, err := WriteZip(&b, l.head(t, 5, 290, 300, filter), name)
			if err != nil {
				t.Fatal(err)
			}
			l.export(t, w, l.omit(t, filter), true)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "trail.zip")
			writeFile(t, file, b.String())
			r := verify(t, file, l.trusted(t))
			wantHonest(t, r)
			if r.Records == 0 || r.Omitted == 0 {
				t.Errorf("%d records, %d omitted", r.Records, r.Omitted)
			}

			// The same files, packed again by hand in a folder of the zip.
			again := filepath.Join(t.TempDir(), "again.zip")
			repack(t, file, again, func(name string) []string { return []string{"q1/" + name} })
			wantHonest(t, verify(t, again, l.trusted(t)))
			repack(t, file, again, func(name string) []string {
				if name == fileTree {
					return []string{name, name}
				}
				return []string{name}
			})
			if r := verify(t, again, l.trusted(t)); len(r.Findings) != 1 || r.Findings[0].Kind != Format || r.OK() {
				t.Errorf("a file twice: %s", list(r))
			}
			writeFile(t, again, b.String()[:b.Len()-100])
			if r := verify(t, again, l.trusted(t)); len(r.Findings) != 1 || r.Findings[0].Kind != Format || r.OK() {
				t.Errorf("cut: %s", list(r))
			}
		})
	}
}

// repack copies a zip under other names.
func repack(t *testing.T, from, to string, names func(string) []string) {
	t.Helper()
	in, err := zip.OpenReader(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var b bytes.Buffer
	out := zip.NewWriter(&b)
	for _, f := range in.File {
		for _, name := range names(f.Name) {
			r, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			w, err := out.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			var content bytes.Buffer
			if _, err := content.ReadFrom(r); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(content.Bytes()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	writeFile(t, to, b.String())
}

func TestVerifyStopsWhenItsContextEnds(t *testing.T) {
	l := newLog(t, 10)
	dir := l.bundle(t, l.head(t, 0, 10, 10, nil), nil, false)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, dir, Options{Keys: l.trusted(t)}); !errors.Is(err, context.Canceled) {
		t.Errorf("Verify = %v, want cancelled", err)
	}
}

func TestVerifyFailsWithoutKeysOrBundle(t *testing.T) {
	if _, err := Verify(t.Context(), t.TempDir(), Options{}); err == nil {
		t.Error("it verified without a key")
	}
	l := newLog(t, 1)
	if _, err := Verify(t.Context(), filepath.Join(t.TempDir(), "none"), Options{Keys: l.trusted(t)}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if r := verify(t, t.TempDir(), l.trusted(t)); len(r.Findings) != 1 || r.Findings[0].Kind != Missing || r.OK() {
		t.Errorf("an empty folder: %s", list(r))
	}
}

func TestVerifyReportsProgress(t *testing.T) {
	l := newLog(t, 10_000)
	dir := l.bundle(t, l.head(t, 0, 10_000, 10_000, nil), nil, false)
	var last, calls int64
	_, err := Verify(t.Context(), dir, Options{Keys: l.trusted(t), Progress: func(done, total int64) {
		calls++
		if done <= last || done > total || total != 10_000 {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	}})
	if err != nil || calls < 2 || last != 10_000 {
		t.Errorf("%d calls, the last at %d, err %v", calls, last, err)
	}
}

func TestVerifyBoundsFindings(t *testing.T) {
	l := newLog(t, 500)
	head := l.head(t, 0, 500, 500, nil)
	for i := range l.records {
		l.records[i].Address = "203.0.113.1"
	}
	r, err := Verify(t.Context(), l.bundle(t, head, nil, false), Options{Keys: l.trusted(t), MaxFindings: 7})
	if err != nil || len(r.Findings) != 7 || r.More != 493 || r.OK() {
		t.Errorf("%d findings and %d more, err %v", len(r.Findings), r.More, err)
	}
}

func TestCreateRefusesAFolderThatHoldsSomething(t *testing.T) {
	l := newLog(t, 3)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "notes.txt"), "mine")
	if _, err := Create(dir, l.head(t, 0, 3, 3, nil), "jsonl"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create = %v", err)
	}
	if got, err := os.ReadDir(dir); err != nil || len(got) != 1 {
		t.Errorf("the folder has %v now (%v)", got, err)
	}
}

func TestWriterRefusesWhatIsNotDue(t *testing.T) {
	l := newLog(t, 10)
	other := l.records[0]
	other.Origin = "elsewhere"
	for name, try := range map[string]func(*Writer) error{
		"later event":      func(w *Writer) error { return w.Write(&l.records[1]) },
		"another log":      func(w *Writer) error { return w.Write(&other) },
		"later gap":        func(w *Writer) error { return w.Gap(Gap{Begin: 1, End: 2, Why: Pruned, Hashes: l.hashes(t, 1, 2)}) },
		"gap too long":     func(w *Writer) error { return w.Gap(Gap{Begin: 0, End: 9, Why: Pruned, Hashes: l.hashes(t, 0, 9)}) },
		"gap of nothing":   func(w *Writer) error { return w.Gap(Gap{Begin: 0, End: 0, Why: Pruned}) },
		"gap for no cause": func(w *Writer) error { return w.Gap(Gap{Begin: 0, End: 1, Why: "whim", Hashes: l.hashes(t, 0, 1)}) },
		"hashes missing":   func(w *Writer) error { return w.Gap(Gap{Begin: 0, End: 3, Why: Pruned, Hashes: l.hashes(t, 0, 2)}) },
		"leaves missing":   func(w *Writer) error { return w.Gap(Gap{Begin: 0, End: 3, Why: Filtered, Entries: l.leaves[:2]}) },
		"no leaf":          func(w *Writer) error { return w.Gap(Gap{Begin: 0, End: 1, Why: Filtered, Entries: [][]byte{{1}}}) },
		"end too soon":     func(w *Writer) error { return w.Close() },
	} {
		w, err := Create(t.TempDir(), l.head(t, 0, 8, 10, nil), "jsonl")
		if err != nil {
			t.Fatal(err)
		}
		if err := try(w); err == nil || w.Next() != 0 {
			t.Errorf("%s: err %v, next %d", name, err, w.Next())
		}
		if err := w.Write(&l.records[0]); err == nil {
			t.Errorf("%s: it went on after a failure", name)
		}
	}
}

func TestCreateRefusesAHeadThatCanNotBe(t *testing.T) {
	l := newLog(t, 10)
	for name, edit := range map[string]func(*Head){
		"origin":          func(h *Head) { h.Origin = "other" },
		"no checkpoint":   func(h *Head) { h.Checkpoint = "" },
		"beyond the tree": func(h *Head) { h.End = 11 },
		"backwards":       func(h *Head) { h.Begin = 9 },
		"left":            func(h *Head) { h.Left = nil },
		"right":           func(h *Head) { h.Right = nil },
		"no key":          func(h *Head) { h.Keys = nil },
		"no handover":     func(h *Head) { h.Keys = append(h.Keys, h.Keys[0]) },
		"filter":          func(h *Head) { h.Filter = map[string]string{"colour": "red"} },
		"time":            func(h *Head) { h.Filter = map[string]string{"since": "yesterday"} },
	} {
		h := l.head(t, 3, 8, 10, nil)
		edit(&h)
		dir := filepath.Join(t.TempDir(), "new")
		if _, err := Create(dir, h, "jsonl"); err == nil {
			t.Errorf("%s: it was taken", name)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: the folder was made all the same", name)
		}
	}
	if _, err := Create(t.TempDir(), l.head(t, 3, 8, 10, nil), "xml"); err == nil {
		t.Error("an unknown format was taken")
	}
}

func TestWriterSplitsParts(t *testing.T) {
	l := newLog(t, 20_000)
	// Gaps with leaves fill a part long before records do.
	hidden := map[int64]string{}
	for i := range int64(20_000) {
		if i%5 != 0 {
			hidden[i] = Filtered
		}
	}
	filter := map[string]string{"action": "none.at.all"}
	dir := l.bundle(t, l.head(t, 0, 20_000, 20_000, filter), hidden, true)
	m, err := parseManifest([]byte(readFile(t, filepath.Join(dir, fileManifest))))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Parts) < 2 {
		t.Errorf("%d parts", len(m.Parts))
	}
	for _, p := range m.Parts {
		if p.GapFile.Bytes > cutGapBytes+4096 {
			t.Errorf("a gaps file of %d bytes", p.GapFile.Bytes)
		}
	}
	r := verify(t, dir, l.trusted(t))
	if r.Records != 4000 || r.Omitted != 16_000 || !r.RootVerified {
		t.Errorf("%d records, %d omitted, root verified: %v", r.Records, r.Omitted, r.RootVerified)
	}
	for _, f := range r.Findings { // the records are none that the filter lets in
		if f.Kind != Contradict {
			t.Errorf("finding %v", f)
		}
	}
}

func TestGapOfManyLeavesIsSplit(t *testing.T) {
	l := newLog(t, 10_000)
	filter := map[string]string{"action": "none.at.all"}
	dir := t.TempDir()
	w, err := Create(dir, l.head(t, 0, 10_000, 10_000, filter), "jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Gap(Gap{Begin: 0, End: 10_000, Why: Filtered, Entries: l.leaves}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r := verify(t, dir, l.trusted(t))
	wantHonest(t, r)
	if r.Omitted != 10_000 || r.OmittedRuns != 3 || r.Records != 0 || !r.First.Equal(time.Time{}) {
		t.Errorf("report %+v", r)
	}
}

// TestResumeGoesOnAfterACrashAtAnyPoint stops an export before each change that
// it makes to the folder, as often as it is resumed, and expects the bundle of an
// export that was never stopped.
func TestResumeGoesOnAfterACrashAtAnyPoint(t *testing.T) {
	l := newLog(t, 40)
	filter := map[string]string{"partner": "acme"}
	hidden, head := l.omit(t, filter), l.head(t, 3, 33, 40, filter)
	type crash struct{}
	// attempt writes until the n-th step, with parts of 10 leaves; it reports
	// whether it came to the end.
	attempt := func(t *testing.T, dir string, n int) (done bool) {
		t.Helper()
		steps := 0
		step := func(string) {
			if steps++; steps == n {
				panic(crash{})
			}
		}
		defer func() {
			if x := recover(); x != nil {
				if _, ok := x.(crash); !ok {
					panic(x)
				}
			}
		}()
		w, got, next, err := resume(dir, step)
		switch {
		case errors.Is(err, ErrComplete):
			return true
		case err != nil:
			if w, err = create(dir, head, "jsonl", step); err != nil {
				t.Fatal(err)
			}
		default:
			if diff := cmp.Diff(head.Left, got.Left); diff != "" || got.Checkpoint != head.Checkpoint || next != w.Next() || next < head.Begin {
				t.Fatalf("resumed at %d with another head: %s", next, diff)
			}
		}
		for w.Next() < head.End {
			to := min(w.Next()+10, head.End)
			for w.Next() < to {
				i := w.Next()
				if hidden[i] == "" {
					err = w.Write(&l.records[i])
				} else {
					err = w.Gap(Gap{Begin: i, End: i + 1, Why: Filtered, Hashes: l.hashes(t, i, i+1)})
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := w.endPart(); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return true
	}
	for n := 1; ; n++ {
		dir := t.TempDir()
		if attempt(t, dir, n) {
			if n < 50 {
				t.Fatalf("an export has only %d steps", n)
			}
			break
		}
		// The half of an export is no bundle, and says so.
		if r := verify(t, dir, l.trusted(t)); r.OK() && !complete(dir) {
			t.Fatalf("step %d: half a bundle verifies", n)
		}
		for !attempt(t, dir, 1_000_000) {
			t.Fatal("a crash that was not asked for")
		}
		wantHonest(t, verify(t, dir, l.trusted(t)))
		if names, err := os.ReadDir(dir); err != nil || len(names) != 4+2*3 {
			t.Fatalf("step %d: the folder has %v (%v)", n, names, err)
		}
	}
	// One that is stopped every few steps ends all the same.
	dir := t.TempDir()
	for tries := 0; !attempt(t, dir, 30); tries++ {
		if tries > 100 {
			t.Fatal("it does not come to an end")
		}
	}
	wantHonest(t, verify(t, dir, l.trusted(t)))
}

func complete(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, fileManifest))
	return err == nil
}

func TestCloseKeepsWhatIsThereForResume(t *testing.T) {
	l := newLog(t, 30)
	dir := t.TempDir()
	w, err := Create(dir, l.head(t, 0, 30, 30, nil), "csv")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 17 {
		if err := w.Write(&l.records[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); !errors.Is(err, ErrUnfinished) {
		t.Fatalf("Close = %v", err)
	}
	if r := verify(t, dir, l.trusted(t)); len(r.Findings) != 1 || r.Findings[0].Kind != Incomplete {
		t.Errorf("half of it: %s", list(r))
	}
	// A part and a note that were torn by a crash.
	writeFile(t, filepath.Join(dir, "data-000001.csv.tmp"), "torn")
	writeFile(t, filepath.Join(dir, fileUnfinished), readFile(t, filepath.Join(dir, fileUnfinished))+`{"begin":17,"en`)
	w, _, next, err := Resume(dir)
	if err != nil || next != 17 {
		t.Fatalf("Resume at %d: %v", next, err)
	}
	l.export(t, w, nil, false)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r := verify(t, dir, l.trusted(t))
	wantHonest(t, r)
	if _, _, _, err := Resume(dir); !errors.Is(err, ErrComplete) {
		t.Errorf("Resume of a whole bundle = %v", err)
	}
	if fmt.Sprint(r.Others) != "[]" {
		t.Errorf("left behind: %v", r.Others)
	}
}

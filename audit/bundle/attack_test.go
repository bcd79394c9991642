package bundle

import (
	"archive/zip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func verifyWhole(t *testing.T, path string, l *testLog) Report {
	t.Helper()
	r, err := Verify(t.Context(), path, Options{Keys: l.trusted(t), Whole: true})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A matching event may not be hidden in a filtered bundle, that shows what it
// leaves out, by the word that it was pruned.
func TestVerifyWholeWhenMatchingEventsAreSaidToBePruned(t *testing.T) {
	l := newLog(t, 40)
	l.add(t, pruneEvent(40, 0, 8))
	filter := map[string]string{"action": "api_key."}
	for _, tt := range []struct {
		name       string
		begin, end int64 // said to be pruned
		want       string
	}{
		{"none", 0, 0, ""},
		{"what was declared", 0, 8, ""},
		{"more than was declared", 0, 10, Undeclared},
		{"one that matches", 21, 22, Undeclared},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hidden := l.omit(t, filter)
			for i := tt.begin; i < tt.end; i++ {
				hidden[i] = Pruned
			}
			dir := l.bundle(t, l.head(t, 0, 41, 41, filter), hidden, true)
			r := verifyWhole(t, dir, l)
			if !r.RootVerified {
				t.Error("the root is not verified")
			}
			if tt.want == "" {
				wantHonest(t, r)
			} else if len(r.Findings) == 0 || r.Findings[0].Kind != tt.want {
				t.Errorf("findings:\n%s", list(r))
			}
			// Who did not ask for all leaves to be shown is told of the range.
			wantHonest(t, verify(t, dir, l.trusted(t)))
		})
	}
}

func TestVerifyWhenLeavesAreShownOfWhatIsSaidToBePruned(t *testing.T) {
	l := newLog(t, 40)
	filter := map[string]string{"action": "api_key."}
	dir := filepath.Join(t.TempDir(), "bundle")
	w, err := Create(dir, l.head(t, 0, 2, 40, filter), "jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Gap(Gap{Begin: 0, End: 2, Why: Pruned, Entries: l.leaves[:2]}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, dir, l.trusted(t)); len(r.Findings) != 1 || r.Findings[0].Kind != Contradict {
		t.Errorf("findings:\n%s", list(r))
	}
}

// Events that declare what was pruned may be in every bundle. They may not be left
// out of one whose filter they match.
func TestVerifyWhenAMatchingPruneEventIsLeftOut(t *testing.T) {
	l := newLog(t, 40)
	l.add(t, pruneEvent(40, 0, 8))
	filter := map[string]string{"action": "trail."}
	hidden := l.omit(t, filter)
	wantHonest(t, verifyWhole(t, l.bundle(t, l.head(t, 0, 41, 41, filter), hidden, true), l))
	hidden[40] = Filtered
	r := verifyWhole(t, l.bundle(t, l.head(t, 0, 41, 41, filter), hidden, true), l)
	if len(r.Findings) != 1 || r.Findings[0].Kind != Contradict || r.Findings[0].Index != 40 {
		t.Errorf("findings:\n%s", list(r))
	}
}

// What lies in a zip or folder beside the verified files, and may be taken for
// them, is named.
func TestVerifyWhenOtherFilesCanBeTakenForTheBundles(t *testing.T) {
	l := newLog(t, 10)
	dir := l.bundle(t, l.head(t, 0, 10, 10, nil), nil, false)
	for name, want := range map[string]string{
		"DATA-000000.JSONL": Inserted, "Manifest.json": Inserted, "./data-000000.jsonl": Inserted, `x\..\data-000000.jsonl`: Inserted,
		"data-000000.jsonl.": Inserted, "../data-000000.jsonl": Inserted, "/data-000000.jsonl": Inserted, "old/data-000000.jsonl": Inserted, "readme.txt": "",
	} {
		for _, prefix := range []string{"", "q1/"} {
			path := filepath.Join(t.TempDir(), "bundle.zip")
			file, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			z := zip.NewWriter(file)
			add := func(name, text string) {
				out, err := z.Create(name)
				if err == nil {
					_, err = out.Write([]byte(text))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			for _, n := range []string{"manifest.json", "tree", "checkpoint", "keys", "data-000000.jsonl"} {
				add(prefix+n, readFile(t, filepath.Join(dir, n)))
			}
			add(name, "{}\n")
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			if err := file.Close(); err != nil {
				t.Fatal(err)
			}
			r := verify(t, path, l.trusted(t))
			switch {
			case want == "" && (!r.OK() || len(r.Others) != 1):
				t.Errorf("%s beside %q: others %q, findings:\n%s", name, prefix, r.Others, list(r))
			case want != "" && (len(r.Findings) != 1 || r.Findings[0].Kind != want):
				t.Errorf("%s beside %q: findings:\n%s", name, prefix, list(r))
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Data-000000.jsonl"), []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, dir, l.trusted(t)); len(r.Findings) != 1 || r.Findings[0].Kind != Inserted {
		t.Errorf("in a folder: findings:\n%s", list(r))
	}
}

// A few bytes can unpack to any number: a part's file has a bound.
func TestVerifyWhenAFileIsSaidToBeHuge(t *testing.T) {
	l := newLog(t, 10)
	dir := l.bundle(t, l.head(t, 0, 10, 10, nil), nil, false)
	v := &victim{t: t, l: l, dir: dir}
	v.manifest(func(m *Manifest) { m.Parts[0].Data.Bytes = 1 << 40 })
	r := verify(t, dir, l.trusted(t))
	if len(r.Findings) != 1 || r.Findings[0].Kind != Format || !strings.Contains(r.Findings[0].Text, "bytes") {
		t.Errorf("findings:\n%s", list(r))
	}
}

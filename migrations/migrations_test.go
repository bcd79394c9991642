package migrations

import (
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestFSWhenEmbedded(t *testing.T) {
	latest, err := Latest()
	if err != nil {
		t.Fatal(err)
	}
	for _, dialect := range []string{SQLite, Postgres} {
		set, err := FS(dialect)
		if err != nil {
			t.Fatal(err)
		}
		names, err := fs.Glob(set, "*")
		if err != nil || int64(len(names)) != latest || !slices.IsSorted(names) {
			t.Errorf("%s: %v, %v, want %d sorted files", dialect, names, err, latest)
		}
		for _, name := range names {
			text, err := fs.ReadFile(set, name)
			if err != nil || !strings.HasPrefix(string(text), "-- +goose Up\n") {
				t.Errorf("%s: %s does not begin with -- +goose Up (%v)", dialect, name, err)
			}
		}
	}
	if _, err := FS("mysql"); err == nil {
		t.Error("an unknown dialect was accepted")
	}
}

func newFS(names ...string) fstest.MapFS {
	m := make(fstest.MapFS)
	for _, name := range names {
		m[name] = &fstest.MapFile{Data: []byte(name)}
	}
	return m
}

func TestFSWhenDialectsDiffer(t *testing.T) {
	set, err := choose(newFS("0001_a.sql", "0002_b.sqlite.sql", "0002_b.postgres.sql", "notes.txt"), Postgres)
	if err != nil {
		t.Fatal(err)
	}
	if names, err := fs.Glob(set, "*"); err != nil || !slices.Equal(names, []string{"0001_a.sql", "0002_b.sql"}) {
		t.Errorf("files are %v, %v", names, err)
	}
	if text, err := fs.ReadFile(set, "0002_b.sql"); err != nil || string(text) != "0002_b.postgres.sql" {
		t.Errorf("0002_b.sql is %q, %v", text, err)
	}
	for _, hidden := range []string{"0002_b.sqlite.sql", "0002_b.postgres.sql", "notes.txt", "../x"} {
		if _, err := set.Open(hidden); err == nil {
			t.Errorf("%s can be opened", hidden)
		}
	}
}

func TestFSWhenRulesAreBroken(t *testing.T) {
	for name, files := range map[string][]string{
		"gap":                 {"0001_a.sql", "0003_b.sql"},
		"starts at two":       {"0002_a.sql"},
		"zero":                {"0000_a.sql", "0001_a.sql"},
		"twice":               {"0001_a.sql", "0001_b.sql"},
		"one dialect missing": {"0001_a.sqlite.sql"},
		"common and special":  {"0001_a.sql", "0001_a.sqlite.sql"},
		"common and both":     {"0001_a.sql", "0001_a.sqlite.sql", "0001_a.postgres.sql"},
		"no version":          {"a.sql"},
		"upper case":          {"0001_A.sql"},
		"other dialect":       {"0001_a.mysql.sql"},
	} {
		if _, err := choose(newFS(files...), SQLite); err == nil {
			t.Errorf("%s: %v was accepted", name, files)
		}
	}
}

func FuzzChoose(f *testing.F) {
	f.Add("0001_a.sql", "0002_b.sqlite.sql")
	f.Add("0001_a.postgres.sql", "0001_a.sqlite.sql")
	f.Fuzz(func(t *testing.T, a, b string) {
		if !fs.ValidPath(a) || !fs.ValidPath(b) {
			return
		}
		var versions []int
		for _, dialect := range []string{SQLite, Postgres} {
			set, err := choose(newFS(a, b), dialect)
			if err != nil {
				return
			}
			versions = append(versions, len(set.names))
			for shown, p := range set.names {
				if shown[:5] != p[:5] || strings.Count(shown, ".") != 1 {
					t.Errorf("%q is shown as %q", p, shown)
				}
			}
		}
		if versions[0] != versions[1] {
			t.Errorf("%q, %q: %d versions for SQLite, %d for PostgreSQL", a, b, versions[0], versions[1])
		}
	})
}

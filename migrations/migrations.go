// Package migrations holds the schema of Rotunda's database as SQL files for
// goose (github.com/pressly/goose).
//
// One set serves SQLite and PostgreSQL. A file is named by its version:
//
//	0001_store.sql            the same text for both databases
//	0003_guard.sqlite.sql     what only SQLite runs (triggers, mostly)
//	0003_guard.postgres.sql   its counterpart
//
// Rules: a released file never changes; a version has either one common file
// or one for each database; versions have no gaps, so that both databases are
// always at the same version. There are no Down sections: going back is done
// by restoring a backup, because a narrower schema loses what it can't hold.
package migrations

import (
	"embed"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

//go:embed *.sql
var files embed.FS

// The dialects that FS knows.
const (
	SQLite   = "sqlite"
	Postgres = "postgres"
)

// FS returns the migrations of one dialect as goose expects them: a flat
// folder of NNNN_name.sql. It fails on an unknown dialect and on a set that
// breaks the rules of this package.
func FS(dialect string) (fs.FS, error) { return choose(files, dialect) }

// Latest returns the highest version of the embedded set.
func Latest() (int64, error) {
	set, err := choose(files, SQLite)
	if err != nil {
		return 0, err
	}
	return int64(len(set.names)), nil
}

func choose(from fs.FS, dialect string) (*view, error) {
	if dialect != SQLite && dialect != Postgres {
		return nil, fmt.Errorf("migrations: unknown dialect %q", dialect)
	}
	paths, err := fs.Glob(from, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("migrations: list: %w", err)
	}
	pattern := regexp.MustCompile(`^([0-9]{4})_[a-z0-9_]+(\.sqlite|\.postgres)?\.sql$`)
	v := &view{from: from, names: make(map[string]string)}
	have := make(map[int]map[string]bool) // version → suffixes
	for _, p := range paths {
		m := pattern.FindStringSubmatch(p)
		if m == nil {
			return nil, fmt.Errorf("migrations: %s: want NNNN_name.sql, NNNN_name.sqlite.sql or NNNN_name.postgres.sql", p)
		}
		version, err := strconv.Atoi(m[1])
		if err != nil {
			return nil, fmt.Errorf("migrations: %s: %w", p, err)
		}
		suffix := strings.TrimPrefix(m[2], ".")
		if have[version] == nil {
			have[version] = make(map[string]bool)
		}
		if have[version][suffix] {
			return nil, fmt.Errorf("migrations: %s: version %d is there twice", p, version)
		}
		have[version][suffix] = true
		if suffix == "" || suffix == dialect {
			v.names[strings.Replace(p, m[2]+".sql", ".sql", 1)] = p
		}
	}
	for version := 1; version <= len(have); version++ {
		s := have[version]
		common, each := s[""], s[SQLite] && s[Postgres]
		if common == each || (common && len(s) > 1) {
			return nil, fmt.Errorf("migrations: version %04d: want one common file or one for each database", version)
		}
	}
	return v, nil
}

// view shows some files of a flat folder under other names. It does what
// fs.Glob, fs.ReadDir and fs.ReadFile need, and no more: the folder itself
// can't be opened, and a file's own Stat has the name it has in from.
type view struct {
	from  fs.FS
	names map[string]string // shown name → name in from
}

// Open implements fs.FS.
func (v *view) Open(name string) (fs.File, error) {
	p, ok := v.names[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return v.from.Open(p)
}

// ReadDir implements fs.ReadDirFS. Entries are sorted by shown name.
func (v *view) ReadDir(name string) ([]fs.DirEntry, error) {
	if name != "." {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
	}
	entries := make([]fs.DirEntry, 0, len(v.names))
	for shown, p := range v.names {
		info, err := fs.Stat(v.from, p)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{fs.FileInfoToDirEntry(info), shown})
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

type entry struct {
	fs.DirEntry
	name string
}

func (e entry) Name() string { return e.name }

package store

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Whatever a URL holds, the result is one absolute path that can't smuggle
// settings into the DSN, or fault.ErrInvalid.
func FuzzSQLitePath(f *testing.F) {
	for _, name := range []string{"", "/x.db", "///x.db", "//h/x", ":memory:", "a b#%3f.db", "x?mode=memory", "\x00", "../x"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		path, err := sqlitePath(name)
		if err != nil {
			if !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%q: %v is not fault.ErrInvalid", name, err)
			}
			return
		}
		if !filepath.IsAbs(path) || strings.ContainsAny(path, "?\x00") || strings.Contains(path, ":memory:") {
			t.Errorf("%q gave %q", name, path)
		}
		if again, err := sqlitePath(path); err != nil || again != path {
			t.Errorf("%q gave %q, which gave %q, %v", name, path, again, err)
		}
	})
}

//go:build unix

package store

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// refusedToOpen opens a database that must be refused.
func refusedToOpen(t *testing.T, path, reason, text string) {
	t.Helper()
	db, err := Open(t.Context(), "sqlite:"+path)
	if err == nil {
		t.Errorf("%s opened: %v", path, db.Close())
		return
	}
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Reason != reason || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v\nwant reason %q, and %q in the text", err, reason, text)
	}
}

// A link in place of the lock file or of the database must not make us
// overwrite what it points at.
func TestSQLiteWhenFileIsALink(t *testing.T) {
	t.Parallel()
	target := filepath.Join(t.TempDir(), "precious")
	for _, c := range []struct{ suffix, content, reason string }{
		{".lock", "precious", "database_owner"},
		{"", "", "database_url"}, // SQLite makes a database of an empty file
	} {
		if err := os.WriteFile(target, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "rotunda.db")
		if err := os.Symlink(target, path+c.suffix); err != nil {
			t.Fatal(err)
		}
		refusedToOpen(t, path, c.reason, path+c.suffix)
		if b, err := os.ReadFile(target); err != nil || string(b) != c.content {
			t.Errorf("%q: the target holds %q, %v", c.suffix, b, err)
		}
	}
	// A link that leads nowhere must not create what it points at either.
	path := filepath.Join(t.TempDir(), "rotunda.db")
	if err := os.Symlink(target+".new", path); err != nil {
		t.Fatal(err)
	}
	refusedToOpen(t, path, "database_url", "symbolic link")
	if _, err := os.Lstat(target + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target was made: %v", err)
	}
}

func TestSQLiteWhenOthersCanWriteTheFile(t *testing.T) {
	t.Parallel()
	for _, mode := range []os.FileMode{0o620, 0o602, 0o666} {
		path := filepath.Join(t.TempDir(), "rotunda.db")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		refusedToOpen(t, path, "database_mode", "chmod 600 "+path)
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		db, err := Open(t.Context(), "sqlite:"+path)
		if err != nil {
			t.Fatalf("a file that others can only read: %v", err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestCheckOwnWhenFileBelongsToAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rotunda.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	us := os.Geteuid()
	if err := checkOwn(path, info, us); err != nil {
		t.Errorf("our own file: %v", err)
	}
	if err := checkOwn(path, info, us+1); !errors.Is(err, fault.ErrRejected) || !strings.Contains(err.Error(), "chown "+strconv.Itoa(us+1)+" "+path) {
		t.Errorf("a file of another: %v", err)
	}
}

func TestSQLiteWhenFileBelongsToAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away; TestCheckOwnWhenFileBelongsToAnother has the rule")
	}
	t.Parallel()
	for _, suffix := range []string{"", ".lock"} {
		path := filepath.Join(t.TempDir(), "rotunda.db")
		if err := os.WriteFile(path+suffix, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path+suffix, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		refusedToOpen(t, path, "database_owner", "chown 0 "+path+suffix)
	}
}

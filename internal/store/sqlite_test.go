package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// wantFault checks kind, reason and that the message names what it is about.
func wantFault(t *testing.T, err, kind error, reason, text string) {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || !errors.Is(err, kind) || f.Reason != reason || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v\nwant kind %q, reason %q, and %q in the text", err, kind, reason, text)
	}
}

func TestOpenWhenURLIsWrong(t *testing.T) {
	folder := t.TempDir()
	for _, url := range []string{
		"", "mysql://u:s3cret@h/d", "rotunda.db",
		"sqlite:", "sqlite::memory:", "sqlite:file::memory:", "sqlite://host/x.db", "sqlite:" + folder + "/x.db?mode=ro",
		"sqlite:" + folder, "sqlite:" + folder + "/none/x.db", "sqlite:" + folder + "/x\x00.db",
		"postgres://u:s3cret@h:port/d", "postgres://u:s3cret%zz@h/d", "postgres://u:s3cret@h/d?sslmode=s3cret", "postgres://u:s3cret@h/d?sslrootcert=/none",
	} {
		db, err := store.Open(t.Context(), url)
		if err == nil {
			t.Errorf("%s opened: %v", url, db.Close())
			continue
		}
		wantFault(t, err, fault.ErrInvalid, "database_url", "open ")
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error holds the password", url)
		}
	}
}

func TestSQLiteWhenOpened(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "a #%41 folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "data.db")
	db := storetest.Open(t, "sqlite:"+path)
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
		info, err := os.Stat(path + suffix)
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v, want mode 0600", path+suffix, info, err)
		}
	}
	settings := func(begin func(context.Context, func(context.Context, *store.Tx) error) error, want map[string]string) {
		t.Helper()
		err := begin(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			for name, value := range want {
				var got string
				if err := tx.QueryRow(ctx, `PRAGMA `+name).Scan(&got); err != nil {
					return err
				}
				if got != value {
					t.Errorf("%s is %s, want %s", name, got, value)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	settings(db.Update, map[string]string{"synchronous": "2", "journal_mode": "wal", "foreign_keys": "1", "busy_timeout": "5000", "query_only": "0"})
	settings(db.View, map[string]string{"journal_mode": "wal", "foreign_keys": "1", "busy_timeout": "5000", "query_only": "1"})

	// The same file by other names is the same file.
	link := filepath.Join(t.TempDir(), "folder")
	if err := os.Symlink(folder, link); err != nil {
		t.Fatal(err)
	}
	byLink := filepath.Join(link, "data.db")
	for _, name := range []string{path, "//" + path, byLink} {
		_, err := store.Open(t.Context(), "sqlite:"+name)
		wantFault(t, err, fault.ErrUnavailable, "database_in_use", path)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(path + "-*"); err != nil || len(left) != 0 {
		t.Errorf("after Close there are %v, %v", left, err)
	}
	storetest.Open(t, "sqlite:"+byLink)
}

func TestSQLiteWhenFileIsNoDatabase(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile(strings.TrimPrefix(storetest.SQLiteURL(t), "sqlite:"))
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(good)
	for i := range 4096 - 100 { // the schema, behind a valid header
		damaged[100+i] = 0xa5
	}
	for name, content := range map[string][]byte{
		"text":      bytes.Repeat([]byte("this is a letter, not a database\n"), 100),
		"short":     []byte("x"),
		"damaged":   damaged,
		"truncated": good[:1000],
	} {
		path := filepath.Join(t.TempDir(), "rotunda.db")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := store.Open(t.Context(), "sqlite:"+path)
		if err == nil {
			t.Errorf("%s: opened: %v", name, db.Close())
			continue
		}
		wantFault(t, err, fault.ErrRejected, "database_damaged", path)
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, content) {
			t.Errorf("%s: the file was changed (%v)", name, err)
		}
		// The failed Open has given back its lock.
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		storetest.Open(t, "sqlite:"+path)
	}
}

func TestSQLiteWhenDamageIsFoundLater(t *testing.T) {
	t.Parallel()
	url := storetest.SQLiteURL(t)
	db := storetest.Open(t, url)
	newTable(t, db)
	update(t, db, func(ctx context.Context, tx *store.Tx) error {
		for i := range int64(500) {
			if err := insert(i, strings.Repeat("x", 200), "pending")(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	})
	var pages int64
	if err := store.Writer(db).QueryRow(`PRAGMA page_count`).Scan(&pages); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(strings.TrimPrefix(url, "sqlite:"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, 4096*10), (pages-20)*4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	db = storetest.Open(t, url)
	err = db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT COUNT(name) FROM things NOT INDEXED`).Scan(new(int))
	})
	wantFault(t, err, fault.ErrUnavailable, "database_damaged", "restore")
}

func TestSQLiteWhenLockedByAnotherProgram(t *testing.T) {
	t.Parallel()
	url := storetest.SQLiteURL(t)
	db := storetest.Open(t, url)
	newTable(t, db)
	// Another program that knows nothing of our lock file.
	other, err := sql.Open("sqlite", strings.TrimPrefix(url, "sqlite:")+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tx, err := other.Begin()
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(t.Context(), insert(1, "a", "active"))
	wantFault(t, err, fault.ErrUnavailable, "database_locked", "another program")
	wantIDs(t, db) // reading goes on
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	update(t, db, insert(1, "a", "active"))

	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if tx, err = other.Begin(); err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	_, err = store.Open(t.Context(), url)
	wantFault(t, err, fault.ErrUnavailable, "database_locked", "another program")
}

func TestSQLiteWhenDiskIsFull(t *testing.T) {
	t.Parallel()
	db := storetest.SQLite(t)
	newTable(t, db)
	update(t, db, insert(1, "a", "active"))
	// The pool has one connection, so this reaches the one that writes.
	if _, err := store.Writer(db).Exec(`PRAGMA max_page_count = 1`); err != nil { // clipped to the present size
		t.Fatal(err)
	}
	big := func(ctx context.Context, tx *store.Tx) error {
		if err := insert(2, "b", "active")(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO things (id, name, state, blob) VALUES (3, 'c', 'active', $1)`, make([]byte, 1<<20))
		if err != nil {
			// SQLite has rolled back by itself; this would commit on its own.
			if _, err := tx.Exec(ctx, insertThing, 4, "d", "active"); err == nil {
				t.Error("a statement after the rollback succeeded")
			}
		}
		return err
	}
	wantFault(t, db.Update(t.Context(), big), fault.ErrUnavailable, "database_full", "free space")
	wantIDs(t, db, 1)
	if _, err := store.Writer(db).Exec(`PRAGMA max_page_count = 100000`); err != nil {
		t.Fatal(err)
	}
	update(t, db, big)
	wantIDs(t, db, 1, 2, 3)
}

func TestSQLiteWhenWriterIsAwaited(t *testing.T) {
	t.Parallel()
	db := storetest.SQLite(t)
	newTable(t, db)
	update(t, db, func(context.Context, *store.Tx) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		err := db.Update(ctx, insert(1, "a", "active"))
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, fault.ErrUnavailable) {
			t.Errorf("got %v, want the caller's own context.DeadlineExceeded", err)
		}
		return nil
	})
	update(t, db, insert(1, "a", "active"))
}

// Root may write everywhere, so this opens files as another user.
func TestSQLiteWhenFilesAreNotWritable(t *testing.T) {
	t.Parallel()
	folder, err := os.MkdirTemp("", "rotunda-modes-") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	uid := os.Geteuid()
	if uid == 0 {
		uid = 65534
	}
	own := func(path string, mode os.FileMode) {
		t.Helper()
		if os.Geteuid() == 0 {
			if err := os.Chown(path, uid, uid); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	own(folder, 0o700)
	binary := filepath.Join(folder, "test")
	copyFile(t, os.Args[0], binary)
	own(binary, 0o500)
	try := func(path string) string {
		t.Helper()
		cmd := newChild("open", "sqlite:"+path)
		cmd.Path, cmd.Dir = binary, folder
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		}
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState.ExitCode() != 3 {
			t.Fatalf("child: %v\n%s", err, out)
		}
		return string(out)
	}

	plain := filepath.Join(folder, "plain")
	if err := os.Mkdir(plain, 0o700); err != nil {
		t.Fatal(err)
	}
	own(plain, 0o700)
	path := filepath.Join(plain, "rotunda.db")
	if got := try(path); got != "opened <nil>\n" {
		t.Fatalf("writable folder: %s", got)
	}
	want := func(got string) {
		t.Helper()
		if !strings.Contains(got, "check owner and mode") || !strings.Contains(got, "permission denied") || !strings.Contains(got, plain) {
			t.Errorf("got %q, want what to check, and where", got)
		}
	}
	own(path, 0o400)
	want(try(path))
	own(path, 0o000)
	want(try(path))
	own(path, 0o600)
	own(plain, 0o500)
	want(try(filepath.Join(plain, "new.db")))
	// The lock file is there, but SQLite could not make its -wal.
	if got := try(path); !strings.Contains(got, path) || strings.HasPrefix(got, "opened") {
		t.Errorf("read-only folder: %q, want a refusal", got)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o500)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

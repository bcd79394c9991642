//go:build unix

package main

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/secret"
)

func TestPrepareWhenDataDirectoryIsALink(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	real := dataDir(filepath.Join(t.TempDir(), "real"))
	if err := real.prepare(log); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(string(real), link); err != nil {
		t.Fatal(err)
	}
	for _, d := range []dataDir{dataDir(link), dataDir(link + "/")} {
		if err := d.prepare(log); err == nil || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("%s: %v, want a refusal", d, err)
		}
	}
	// Only the last element counts.
	if err := dataDir(filepath.Join(link, "below")).prepare(log); err != nil {
		t.Errorf("a folder behind a link: %v", err)
	}
	nowhere := filepath.Join(t.TempDir(), "nowhere")
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(nowhere, link); err != nil {
		t.Fatal(err)
	}
	if err := dataDir(link).prepare(log); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("a link that leads nowhere: %v, want a refusal", err)
	}
}

func TestPrepareWhenDataDirectoryBelongsToAnother(t *testing.T) {
	dir := "/" // of root
	if os.Geteuid() == 0 {
		dir = filepath.Join(t.TempDir(), "data")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	if err := dataDir(dir).prepare(slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "chown") {
		t.Errorf("%v, want a refusal", err)
	}
}

// A folder that can't be opened can't be synced either, and a token that may be
// gone after a power cut is not reported as written. Root opens everything, so
// the test runs itself again as another user.
func TestWriteTokenWhenFolderCantBeSynced(t *testing.T) {
	folder := os.Getenv("ROTUNDA_TEST_TOKEN_FOLDER")
	if os.Geteuid() != 0 {
		if folder == "" {
			folder = t.TempDir()
		}
		if err := os.Chmod(folder, 0o300); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(folder, 0o700)
		path := filepath.Join(folder, "admin.token")
		if err := writeToken(path, secret.New([]byte("a token"))); !errors.Is(err, os.ErrPermission) {
			t.Errorf("%v, want a refusal", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a token was left: %v", err)
		}
		return
	}
	folder, err := os.MkdirTemp("", "rotunda-token-") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	in, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	binary := filepath.Join(folder, "test")
	out, err := os.OpenFile(binary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	data := filepath.Join(folder, "data")
	if err := errors.Join(err, out.Close(), os.Mkdir(data, 0o700), os.Chown(data, 65534, 65534), os.Chmod(folder, 0o755), os.Chmod(binary, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir, cmd.Env = "/", []string{"ROTUNDA_TEST_TOKEN_FOLDER=" + data}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	said, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(said), "--- PASS: "+t.Name()) {
		t.Errorf("as another user: %v\n%s", err, said)
	}
}

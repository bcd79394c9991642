package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// dataDir is the folder in which a server keeps its state. Its mode is 0700,
// that of each file in it 0600.
type dataDir string

// defaultDataDir is used when neither --data-dir nor ROTUNDA_DATA_DIR is given.
const defaultDataDir dataDir = "data"

func (d dataDir) db() string         { return filepath.Join(string(d), "rotunda.db") }
func (d dataDir) kek() string        { return filepath.Join(string(d), "kek.json") }
func (d dataDir) adminToken() string { return filepath.Join(string(d), "admin.token") }
func (d dataDir) checkpoint() string { return filepath.Join(string(d), "trail.checkpoint") }

// maxTokenFile is far more than a token needs.
const maxTokenFile = 4 << 10

// readToken reads a token from a file that only its owner can read.
func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("token file %s is not a regular file (%s)", path, info.Mode())
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("token file %s can be read by others (mode %04o), so its token may be known: run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err != nil {
		return "", fmt.Errorf("token file %s: %w", path, err)
	}
	if len(b) > maxTokenFile {
		return "", fmt.Errorf("token file %s has more than %d bytes: this is no token", path, maxTokenFile)
	}
	token := strings.TrimSpace(string(b))
	if err := checkToken(token); err != nil {
		return "", fmt.Errorf("token file %s: %w", path, err)
	}
	return token, nil
}

// checkToken refuses what can't travel in a header. The text is not repeated.
func checkToken(token string) error {
	if token == "" {
		return errors.New("there is no token in it")
	}
	for _, r := range token {
		if r <= ' ' || r > '~' {
			return errors.New("the token holds a space, a line break or another character that no token has")
		}
	}
	return nil
}

// missing reports whether err says that a file isn't there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// prepare makes the folder, and warns of what others can read. A folder in
// which others can write is refused: they could replace the key file. So is one
// that belongs to another user, and a symbolic link, which its owner could point
// elsewhere.
func (d dataDir) prepare(log *slog.Logger) error {
	path := filepath.Clean(string(d)) // a slash at the end would follow a link
	info, err := os.Lstat(path)
	if missing(err) {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return fmt.Errorf("make the data directory: %w", err)
		}
		info, err = os.Lstat(path)
	}
	if err != nil {
		return fmt.Errorf("look at the data directory: %w", err)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return fmt.Errorf("the data directory %s is a symbolic link, which could be pointed at another folder: give the folder itself with --data-dir", d)
	}
	if !info.IsDir() {
		return fmt.Errorf("the data directory %s is not a directory: give another with --data-dir", d)
	}
	if owner, known := ownerOf(info); known && owner != os.Geteuid() {
		return fmt.Errorf("the data directory %s belongs to user %d, who could replace the key file, and this process runs as user %d: run it as the owner, or run: chown -R %d %s", d, owner, os.Geteuid(), os.Geteuid(), d)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("the data directory %s can be written by others (mode %04o), who could replace the key file: run: chmod 700 %s", d, mode, d)
	} else if mode&0o055 != 0 {
		log.Warn("the data directory can be read by others: run chmod 700 on it", slog.String("directory", string(d)))
	}
	for _, path := range []string{d.db(), d.adminToken()} {
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
			log.Warn("a file can be read by others: run chmod 600 on it", slog.String("file", path))
		}
	}
	return nil
}

// emptied refuses a database that was there and has lost everything: it would
// start as a new one, with a new admin token over the old.
func (d dataDir) emptied(databaseURL string) error {
	path, ours := strings.CutPrefix(databaseURL, "sqlite:")
	if !ours {
		return nil
	}
	info, err := os.Stat(path)
	gone := missing(err) || err == nil && info.Size() == 0
	if _, err := os.Stat(d.adminToken()); missing(err) || !gone {
		return nil
	}
	return fmt.Errorf("the database %s is empty or missing although %s is there: restore the database from a backup, or move %s away to start anew", path, d.adminToken(), d.adminToken())
}

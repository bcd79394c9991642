package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
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

//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// lockFile takes an advisory lock (flock(2)) for the life of the process. The
// kernel releases it at kill -9. The file stays: whoever deletes a lock file
// can delete one that another process has just locked.
func lockFile(path string) (release func() error, err error) {
	f, err := openOwn(path)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := "another process"
		if b, readErr := io.ReadAll(io.LimitReader(f, 32)); readErr == nil && len(b) > 0 {
			holder = "process " + strings.TrimSpace(string(b))
		}
		closeErr := f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fault.New(fault.ErrUnavailable, "database_in_use",
				"open SQLite database: %s is locked by %s: SQLite serves one process, so stop that one first, or use PostgreSQL for several", path, holder)
		}
		return nil, errors.Join(fault.New(fault.ErrUnavailable, "database_lock",
			"open SQLite database: lock %s: %w: put the database on a local disk", path, err), closeErr)
	}
	// The number is for people; the lock does not depend on it.
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return f.Close, nil
}

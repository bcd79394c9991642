//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package store

import (
	"runtime"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// lockFile refuses: without a lock that dies with its process, two processes
// could open one file.
func lockFile(path string) (release func() error, err error) {
	return nil, fault.New(fault.ErrRejected, "database_lock",
		"open SQLite database: %s can't be locked on %s, which has no flock: use PostgreSQL there", path, runtime.GOOS)
}

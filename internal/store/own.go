package store

import (
	"errors"
	"io/fs"
	"os"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// openOwn opens a file of the database for reading and writing, and makes it
// with mode 0600 if it isn't there. In a folder that others can write, somebody
// could have put a link there, to make us overwrite another file, or a file of
// theirs, to read and change what we write: both are refused.
func openOwn(path string) (*os.File, error) {
	if info, err := os.Lstat(path); err == nil {
		if err := checkOwn(path, info, os.Geteuid()); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		return nil, fault.New(fault.ErrUnavailable, "database_read_only",
			"open SQLite database: %s can't be opened for writing: check owner and mode of the file and its folder, and that the disk is mounted read-write: %w", path, err)
	}
	// It may have been replaced since.
	info, err := f.Stat()
	if err == nil {
		err = checkOwn(path, info, os.Geteuid())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// checkOwn refuses what is not a file that belongs to the user uid.
func checkOwn(path string, info fs.FileInfo, uid int) error {
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return fault.New(fault.ErrRejected, "database_owner",
			"open SQLite database: %s is a symbolic link, which could lead to a file that must not be changed: remove it, or give the path of the file itself", path)
	case !info.Mode().IsRegular():
		return fault.New(fault.ErrRejected, "database_owner", "open SQLite database: %s is not a regular file (%s): give another path", path, info.Mode())
	}
	if owner, known := ownerOf(info); known && owner != uid {
		return fault.New(fault.ErrRejected, "database_owner",
			"open SQLite database: %s belongs to user %d and this process runs as user %d: run it as the owner, or run: chown %d %s", path, owner, uid, uid, path)
	}
	return nil
}

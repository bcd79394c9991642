//go:build unix

package store

import (
	"io/fs"
	"syscall"
)

// noFollow makes open(2) fail on a symbolic link.
const noFollow = syscall.O_NOFOLLOW

func ownerOf(info fs.FileInfo) (uid int, known bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(s.Uid), true
}

//go:build !linux

package consumers

import "syscall"

// childAttr can't bind the child's life to ours on this system. The Node and
// Python children still end when their standard input closes.
func childAttr(syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{}
}

//go:build !linux

package gateways

import "syscall"

// childAttr can't bind the child's life to ours on this system.
func childAttr(syscall.Signal) *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

package gateways

import "syscall"

// childAttr makes the kernel send sig to the child when this process dies, even
// when it is killed, so that no gateway outlives a test.
func childAttr(sig syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: sig}
}

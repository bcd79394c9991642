//go:build !linux

package sinks

import "net"

// unacknowledged is unknown here: the receiver's orderly end has to do.
func unacknowledged(*net.TCPConn) (int, error) { return 0, nil }

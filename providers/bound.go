package providers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
)

// MaxAnswer is what an adapter of a database reads of one answer: enough for the list of
// a hundred thousand sessions, and little to a process that serves others, too.
const MaxAnswer = 32 << 20

// Bound is conn, of which at most most bytes are read between two writes; then reading
// fails. Drivers take answers of any length, and some of them a length for granted
// before a byte of it has come.
func Bound(conn net.Conn, most int64) net.Conn { return &bounded{Conn: conn, most: most} }

// DialBound dials and bounds: for the settings of drivers.
func DialBound(d *net.Dialer) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err //nolint:wrapcheck // the driver expects it as it is
		}
		return Bound(conn, MaxAnswer), nil
	}
}

type bounded struct {
	net.Conn
	most int64
	read atomic.Int64 // since the last write
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.read.Load() >= b.most {
		return 0, fmt.Errorf("the answer is longer than %d bytes", b.most)
	}
	n, err := b.Conn.Read(p)
	b.read.Add(int64(n))
	return n, err //nolint:wrapcheck // io.EOF has to stay what it is
}

func (b *bounded) Write(p []byte) (int, error) {
	b.read.Store(0)
	return b.Conn.Write(p) //nolint:wrapcheck // as above
}

// SyscallConn is for drivers which look whether an idle connection is still there.
func (b *bounded) SyscallConn() (syscall.RawConn, error) {
	c, ok := b.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return c.SyscallConn() //nolint:wrapcheck // as above
}

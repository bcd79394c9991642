package main

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestConnectionLimitWhenFilesAreFew(t *testing.T) {
	for _, c := range []struct {
		files uint64
		known bool
		want  int // 0: refused
	}{
		{0, false, 20_000},
		{^uint64(0), true, 20_000}, // RLIM_INFINITY
		{20_256, true, 20_000},
		{20_255, true, 19_999},
		{1024, true, 768},
		{320, true, 64},
		{319, true, 0},
		{0, true, 0},
	} {
		got, err := connectionLimit(c.files, c.known)
		if got != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%d files (known: %t): %d, %v, want %d", c.files, c.known, got, err, c.want)
		}
		if err != nil && !strings.Contains(err.Error(), "ulimit -n") {
			t.Errorf("%v does not say what to do", err)
		}
	}
}

// arrival is a connection from an address of the test's choice.
type arrival struct {
	net.Conn
	from   net.Addr
	closed int
}

func (a *arrival) RemoteAddr() net.Addr { return a.from }
func (a *arrival) Close() error         { a.closed++; return nil }

// arrivals is a listener with a queue of connections, and an end.
type arrivals struct {
	net.Listener
	queue []*arrival
}

func (q *arrivals) Accept() (net.Conn, error) {
	if len(q.queue) == 0 {
		return nil, io.EOF
	}
	next := q.queue[0]
	q.queue = q.queue[1:]
	return next, nil
}

func TestAddressLimitWhenOneAddressTakesAll(t *testing.T) {
	log := &output{}
	q := &arrivals{}
	l := newAddressLimit(q, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}, slog.New(slog.NewTextHandler(log, nil)))
	now := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	l.now = func() time.Time { return now }
	var all []net.Conn
	// come lets n connections arrive, and returns how many were accepted.
	come := func(n int, addr string) (accepted int) {
		t.Helper()
		var batch []*arrival
		for range n {
			a := &arrival{from: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 4711))}
			batch = append(batch, a)
			q.queue = append(q.queue, a)
		}
		for {
			conn, err := l.Accept()
			if err != nil {
				break
			}
			accepted++
			all = append(all, conn)
		}
		closed := 0
		for _, a := range batch {
			closed += a.closed
		}
		if accepted+closed != n {
			t.Errorf("%s: %d accepted and %d closed of %d", addr, accepted, closed, n)
		}
		return accepted
	}
	want := func(n int, addr string, accepted int) {
		t.Helper()
		if got := come(n, addr); got != accepted {
			t.Errorf("%s: %d of %d accepted, want %d", addr, got, n, accepted)
		}
	}
	want(1_005, "192.0.2.1", 1_000)
	first := all[0]
	want(1, "::ffff:192.0.2.1", 0) // the same address
	want(1, "192.0.2.2", 1)        // another
	want(600, "2001:db8:0:1::1", 600)
	want(600, "2001:db8:0:1:ffff::2", 400) // the same /64
	want(1, "2001:db8:0:2::1", 1)          // another
	want(1_500, "10.1.2.3", 1_500)         // proxies
	want(1_500, "fd00::1", 1_500)
	want(1_500, "127.0.0.1", 1_500) // this machine
	want(1_500, "::1", 1_500)
	if n := strings.Count(log.String(), "too many open connections"); n != 1 {
		t.Errorf("the log tells of it %d times within a minute, want once:\n%s", n, log)
	}
	now = now.Add(crowdedEvery)
	want(2, "192.0.2.1", 0)
	if n := strings.Count(log.String(), "192.0.2.1/32"); n != 2 {
		t.Errorf("the log tells of it %d times in two minutes, want twice:\n%s", n, log)
	}

	// One that is closed, even twice, makes room for one.
	for range 2 {
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
	}
	want(2, "192.0.2.1", 1)
	if len(l.open) != 4 {
		t.Errorf("%d addresses are counted, want 4: %v", len(l.open), l.open)
	}
	for _, conn := range all {
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.open) != 0 {
		t.Errorf("all are closed, and these are still counted: %v", l.open)
	}
}

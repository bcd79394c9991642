package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	maxConnections = 20_000
	minConnections = 64
	// otherFiles is what a process opens besides connections of clients: the
	// database, its own connections, certificates.
	otherFiles = 256
	// maxPerAddress is the number of open connections of one address.
	maxPerAddress = 1_000
	// crowdedEvery is how often the log tells of an address over its bound.
	crowdedEvery = time.Minute
)

// connectionLimit returns how many connections of clients may be open. Beyond
// the limit of open files, accept(2) and the database would fail.
func connectionLimit(openFiles uint64, known bool) (int, error) {
	if !known || openFiles >= maxConnections+otherFiles {
		return maxConnections, nil
	}
	if openFiles < minConnections+otherFiles {
		return 0, fmt.Errorf("this process may open %d files, and a server needs at least %d: raise the limit before the start, for example with: ulimit -n 65536 (systemd: LimitNOFILE=65536)",
			openFiles, minConnections+otherFiles)
	}
	return int(openFiles) - otherFiles, nil
}

// addressLimit is a listener that closes a connection at once when its address
// has maxPerAddress of them open, so that nobody can take all. Addresses are
// those of IPv4, and networks of 64 bits of IPv6, which one client usually has.
// This machine and trusted proxies, who speak for many, are exempt.
type addressLimit struct {
	net.Listener
	exempt []netip.Prefix
	log    *slog.Logger
	now    func() time.Time

	mu sync.Mutex
	// open has an entry only while a connection of it is open, so it is bounded
	// by the limit of all connections.
	open map[netip.Prefix]int
	told time.Time // when the log last told of a crowd
}

func newAddressLimit(ln net.Listener, exempt []netip.Prefix, log *slog.Logger) *addressLimit {
	return &addressLimit{Listener: ln, exempt: exempt, log: log, now: time.Now, open: map[netip.Prefix]int{}}
}

// Accept returns the next connection that its address may have.
func (l *addressLimit) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, counted := l.origin(conn)
		if !counted {
			return conn, nil
		}
		if !l.enter(from) {
			_ = conn.Close() // nobody is told; there is nothing to lose
			continue
		}
		return &countedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(from) })}, nil
	}
}

// origin returns what the connections of a client are counted under. What has no
// address that can be read shares one place.
func (l *addressLimit) origin(conn net.Conn) (from netip.Prefix, counted bool) {
	var addr netip.Addr
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		addr = tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	if addr.IsLoopback() {
		return netip.Prefix{}, false
	}
	for _, p := range l.exempt {
		if p.Contains(addr) {
			return netip.Prefix{}, false
		}
	}
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	from, _ = addr.Prefix(bits) // the zero prefix for the zero address
	return from, true
}

func (l *addressLimit) enter(from netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[from] < maxPerAddress {
		l.open[from]++
		return true
	}
	if now := l.now(); now.Sub(l.told) >= crowdedEvery || now.Before(l.told) {
		l.told = now
		l.log.Warn("an address has too many open connections, and further ones are closed: if it is a proxy, name it with --trusted-proxy",
			slog.String("address", from.String()), slog.Int("open", maxPerAddress))
	}
	return false
}

func (l *addressLimit) leave(from netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[from]--; l.open[from] <= 0 {
		delete(l.open, from)
	}
}

// countedConn gives its place back when it is closed, once.
type countedConn struct {
	net.Conn
	leave func()
}

func (c *countedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

package httptarget

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// hidden are the networks beyond those that net/netip knows which are nobody's public
// address: IANA's special-purpose registries (RFC 6890 and its updates).
func hidden() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),        // this network
		netip.MustParsePrefix("100.64.0.0/10"),    // shared, and metadata services of some clouds
		netip.MustParsePrefix("168.63.129.16/32"), // metadata and agents of Azure, by a public number
		netip.MustParsePrefix("192.0.0.0/24"),     // protocol assignments
		netip.MustParsePrefix("192.0.2.0/24"),     // documentation
		netip.MustParsePrefix("198.18.0.0/15"),    // benchmarks
		netip.MustParsePrefix("198.51.100.0/24"),  // documentation
		netip.MustParsePrefix("203.0.113.0/24"),   // documentation
		netip.MustParsePrefix("240.0.0.0/4"),      // reserved, and broadcast
		netip.MustParsePrefix("::/96"),            // IPv4-compatible
		netip.MustParsePrefix("64:ff9b::/96"),     // NAT64: an IPv4 address, maybe a private one
		netip.MustParsePrefix("64:ff9b:1::/48"),   // the same, local
		netip.MustParsePrefix("100::/64"),         // discard
		netip.MustParsePrefix("2001::/23"),        // Teredo and other assignments
		netip.MustParsePrefix("2001:db8::/32"),    // documentation
		netip.MustParsePrefix("2002::/16"),        // 6to4: an IPv4 address, maybe a private one
		netip.MustParsePrefix("fec0::/10"),        // site-local, of old
	}
}

// public says whether an address may be a partner's.
func public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsValid() || !a.IsGlobalUnicast() || a.IsPrivate() {
		return false // also loopback, link-local, multicast, unspecified
	}
	for _, p := range hidden() {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// dialer connects to public addresses only, unless private is true. It is asked with the
// address that the name was resolved to, at each connection, so a name that resolves
// otherwise the second time gets nowhere.
func dialer(private bool) *net.Dialer {
	d := &net.Dialer{Timeout: 10 * time.Second}
	if private {
		return d
	}
	d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		a, err := netip.ParseAddrPort(address)
		if err != nil || !public(a.Addr()) {
			return fault.New(fault.ErrDenied, "address_private",
				"%s is not a public address: if the partner's system is in your own network, set allow_private=true", address)
		}
		return nil
	}
	return d
}

// Package sender sends webhooks over HTTP for package rotation.
//
// # Model
//
// An address of a webhook is given by whoever may configure one, and is asked from where Rotunda
// stands: inside of the network. So an address that is not of the public internet is refused,
// unless [Config.AllowPrivate] says otherwise; and not by its name, which can change between the
// look and the call, but at the moment of the connection, for every address that is dialled.
//
// # Rules
//
//   - https, TLS 1.2 or later, certificates verified. Plain http only with AllowPrivate, to an address
//     that is written as a number of a private network or of this machine.
//   - No redirect is followed, no proxy of the environment used.
//   - Of an answer its status and Retry-After count. Up to 4 KiB of the body are read and dropped.
//
// # What happens on failure
//
// An error names the receiver by the host only: the rest of a URL may be known to few.
package sender

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/rotation"
)

const (
	dialTimeout = 5 * time.Second
	maxAnswer   = 4 << 10
	maxHeader   = 16 << 10
)

// Config is what a Sender needs.
type Config struct {
	// AllowPrivate lets webhooks go to private networks and to this machine.
	AllowPrivate bool

	// RootCAs verify receivers. nil: those of the machine.
	RootCAs *x509.CertPool

	// Now is the wall clock, for a Retry-After that is a date. Required.
	Now func() time.Time
}

// Sender sends webhooks. It is safe for concurrent use.
type Sender struct {
	private bool
	now     func() time.Time
	client  *http.Client
}

var _ rotation.Sender = (*Sender)(nil)

// New returns a Sender.
func New(c Config) (*Sender, error) {
	if c.Now == nil {
		return nil, fault.Invalid("now", "clock_required", "sender: Now is required")
	}
	s := &Sender{private: c.AllowPrivate, now: c.Now}
	dialer := &net.Dialer{Timeout: dialTimeout, Control: s.control}
	s.client = &http.Client{
		Transport: &http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.RootCAs},
			TLSHandshakeTimeout:    dialTimeout,
			MaxResponseHeaderBytes: maxHeader,
			MaxIdleConns:           64,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        time.Minute,
			ForceAttemptHTTP2:      true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, nil
}

// Close closes idle connections.
func (s *Sender) Close() { s.client.CloseIdleConnections() }

// control sees the address that is about to be dialled, after its name was looked up.
func (s *Sender) control(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fault.New(fault.ErrInvalid, "private_address", "the address %s is not allowed for webhooks", address)
	}
	if !s.private && !public(at.Addr()) {
		return privateAddress(at.Addr().String())
	}
	return nil
}

func privateAddress(host string) error {
	return fault.Invalid("url", "private_address", "%.200s is no address of the public internet, and webhooks to others are off: allow private addresses in the configuration of the server if receivers are inside", host)
}

// Check refuses what can be told from the URL alone.
func (s *Sender) Check(u *url.URL) error {
	host := u.Hostname()
	addr, err := netip.ParseAddr(host)
	number := err == nil
	local := strings.EqualFold(host, "localhost") || strings.HasSuffix(strings.ToLower(host), ".localhost")
	switch {
	case !s.private && (local || number && !public(addr)):
		return privateAddress(host)
	case u.Scheme == "http" && (!s.private || !number || public(addr)):
		return fault.Invalid("url", "plaintext", "the URL is plain http: use https; http is for numbers of private networks only, where those are allowed")
	case u.Scheme != "http" && u.Scheme != "https":
		return fault.Invalid("url", "bad_url", "the URL is not https")
	}
	return nil
}

// special are the networks that are no part of the public internet beside those that netip names
// (IANA IPv4 and IPv6 Special-Purpose Address Registries), or that stand for addresses of IPv4; and
// 168.63.129.16, a public number by which machines in Azure reach its metadata and agents.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("168.63.129.16/32"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.88.99.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("3fff::/20"), netip.MustParsePrefix("5f00::/16"), netip.MustParsePrefix("fec0::/10"),
}

func public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// Send makes one POST.
func (s *Sender) Send(ctx context.Context, o rotation.Outgoing) (rotation.Answer, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return rotation.Answer{}, fault.Invalid("url", "bad_url", "the URL of the endpoint can't be read")
	}
	if err := s.Check(u); err != nil {
		return rotation.Answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.URL, bytes.NewReader(o.Body))
	if err != nil {
		return rotation.Answer{}, fault.Invalid("url", "bad_url", "the URL of the endpoint can't be used")
	}
	req.Header = http.Header(o.Header)
	resp, err := s.client.Do(req)
	if err != nil {
		if f, ok := errors.AsType[*fault.Error](err); ok {
			return rotation.Answer{}, f
		}
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // it holds the URL
		}
		return rotation.Answer{}, fault.New(fault.ErrUnavailable, "no_answer", "send to %.200s: %w", u.Host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < http.StatusOK {
		// The body of a 101 is the bare connection, which no context ends: it is never read.
		return rotation.Answer{Status: resp.StatusCode}, nil
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer) // the status has been read: the rest only frees the connection
	return rotation.Answer{Status: resp.StatusCode, RetryAfter: s.retryAfter(resp.Header.Get("Retry-After"))}, nil
}

// retryAfter reads Retry-After (RFC 9110, section 10.2.3); 0 when it says nothing.
func (s *Sender) retryAfter(value string) time.Duration {
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil {
		return max(0, time.Duration(seconds)*time.Second)
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(s.now()))
	}
	return 0
}

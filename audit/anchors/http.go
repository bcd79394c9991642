package anchors

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// parseURL refuses addresses that would send something in the clear, or show a
// password.
func parseURL(field, raw string) (*url.URL, error) {
	if len(raw) > 2048 {
		return nil, fault.Invalid(field, "url_too_long", "anchor: the address has %d bytes, and at most 2048 are taken", len(raw))
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		return nil, fault.Invalid(field, "url_malformed", "anchor: the address is no URL of the form https://host/path") // not quoted: it may hold a token
	case u.User != nil:
		return nil, fault.Invalid(field, "url_has_password", "anchor: the address of %s holds a user or a password: give it as the secret", u.Host)
	case u.Fragment != "" || strings.Contains(raw, "#"):
		return nil, fault.Invalid(field, "url_malformed", "anchor: the address of %s has a fragment, which is never sent", u.Host)
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return nil, fault.Invalid(field, "url_not_https", "anchor: %s would be reached in the clear: use https; plain http is for loopback", u.Host)
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fault.Invalid(field, "url_not_https", "anchor: the address of %s is not an https URL", u.Host)
	}
	return u, nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// newClient returns a client that verifies TLS, follows no redirect and has no
// deadline of its own: contexts have.
func newClient(cas *x509.CertPool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			ForceAttemptHTTP2:      true,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cas},
			TLSHandshakeTimeout:    5 * time.Second,
			ResponseHeaderTimeout:  30 * time.Second,
			MaxResponseHeaderBytes: maxBody,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        time.Minute,
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// unreached is the error of a request that got no reply. The cause is taken out
// of what net/http wraps around it, which shows the whole URL.
func unreached(place string, err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fault.New(fault.ErrUnavailable, "anchor_slow", "%s did not answer in time: %w", place, err)
	}
	return fault.New(fault.ErrUnavailable, "anchor_unreachable", "%s can't be reached: %w", place, err)
}

// refused is the error of a status that is no success.
func refused(place string, status int) error {
	switch {
	case status >= 300 && status < 400:
		return fault.New(fault.ErrRejected, "anchor_redirects", "%s answered %d: redirects are not followed: give the address where it ends", place, status)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return fault.New(fault.ErrDenied, "anchor_denied", "%s answered %d: look at its credentials and rights", place, status)
	case status == http.StatusTooManyRequests:
		return fault.New(fault.ErrLimited, "anchor_limited", "%s answered %d: it is retried later", place, status)
	case status >= 500 || status == http.StatusRequestTimeout:
		return fault.New(fault.ErrUnavailable, "anchor_unavailable", "%s answered %d: it is retried later", place, status)
	default:
		return fault.New(fault.ErrRejected, "anchor_refused", "%s answered %d: look at its address and its log", place, status)
	}
}

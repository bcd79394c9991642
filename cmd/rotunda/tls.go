package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"
)

// recheckCert is how often the certificate's files are looked at, at most.
const recheckCert = 5 * time.Second

// certificate is a certificate that is read again when its files change. While
// the new files can't be used (half written, not matching), the old one serves.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	stamp   string
	checked time.Time
}

func newTLSListener(ln net.Listener, certFile, keyFile string, log *slog.Logger) (net.Listener, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	if err := c.load(); err != nil {
		return nil, err
	}
	return tls.NewListener(ln, &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.get(time.Now()), nil },
	}), nil
}

func (c *certificate) get(now time.Time) *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.checked) >= recheckCert {
		c.checked = now
		if s, err := c.fileStamp(); err == nil && s != c.stamp {
			if err := c.load(); err != nil {
				c.log.Warn("the TLS certificate changed and can't be used: the one from before goes on", slog.Any("error", err))
			} else {
				c.log.Info("a changed TLS certificate is in use")
			}
		}
	}
	return c.current
}

func (c *certificate) load() error {
	stamp, err := c.fileStamp()
	if err != nil {
		return fmt.Errorf("read the TLS certificate: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("read the TLS certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	c.current, c.stamp = &cert, stamp
	return nil
}

// fileStamp changes whenever one of the files does.
func (c *certificate) fileStamp() (string, error) {
	out := ""
	for _, name := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return "", err
		}
		out += fmt.Sprint(info.ModTime().UnixNano(), " ", info.Size(), " ")
	}
	return out, nil
}

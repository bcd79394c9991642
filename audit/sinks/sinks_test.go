package sinks

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

const origin = "trail.example.com/log"

// newRecords makes records with whole leaves, so that their hashes are real.
func newRecords(t testing.TB, from, n int64) []trail.Record {
	t.Helper()
	outcomes := []string{trail.OK, trail.Denied, trail.Started, trail.Failed}
	records := make([]trail.Record, 0, n)
	for i := from; i < from+n; i++ {
		e := trail.Event{
			ID:    fmt.Sprintf("01890000-0000-7000-8000-%012x", i),
			Time:  time.UnixMicro(1_790_000_000_000_000 + i*1000).UTC(),
			Actor: "tok_1", Action: "keyset.create", Resource: fmt.Sprintf("keysets/k%d", i), Partner: "acme",
			Outcome: outcomes[i%4], Reason: "line one\nline \"two\" ] \\ |=", Address: "192.0.2.1",
			Detail: fmt.Sprintf(`{"n":%d,"text":"é\n\u0000 日本"}`, i), Count: 1, Salt: trail.NewSeed(),
		}
		h, err := e.Hash()
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, trail.Record{Event: e, Origin: origin, Index: i, Hash: h})
	}
	return records
}

// memory is a Source in memory.
type memory struct {
	mu      sync.Mutex
	records []trail.Record
	head    int64
	cursors map[string]int64
	more    chan struct{} // closed when records are added
	setErr  func(from, to int64) error
	sets    [][2]int64
}

func newMemory(records ...trail.Record) *memory {
	m := &memory{cursors: map[string]int64{}, more: make(chan struct{})}
	m.add(records...)
	return m
}

func (m *memory) add(records ...trail.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records = append(m.records, records...)
	if len(m.records) > 0 {
		m.head = m.records[len(m.records)-1].Index + 1
	}
	close(m.more)
	m.more = make(chan struct{})
}

func (m *memory) Read(ctx context.Context, index int64, limit int) ([]trail.Record, error) {
	for {
		m.mu.Lock()
		i, _ := slices.BinarySearchFunc(m.records, index, func(r trail.Record, i int64) int { return int(r.Index - i) })
		found, more := slices.Clone(m.records[i:min(len(m.records), i+limit)]), m.more
		m.mu.Unlock()
		if len(found) > 0 {
			return found, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-more:
		}
	}
}

func (m *memory) Cursor(_ context.Context, name string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cursors[name], nil
}

func (m *memory) SetCursor(_ context.Context, name string, from, to int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.setErr != nil {
		if err := m.setErr(from, to); err != nil {
			return err
		}
	}
	if m.cursors[name] != from {
		return fmt.Errorf("%w: the cursor is %d", fault.ErrChanged, m.cursors[name])
	}
	m.cursors[name] = to
	m.sets = append(m.sets, [2]int64{from, to})
	return nil
}

func (m *memory) Head(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.head, nil
}

func (m *memory) cursor() int64 {
	c, _ := m.Cursor(context.Background(), "siem")
	return c
}

// authority makes certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	PEM  string
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a.PEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

// issue returns a certificate for localhost and its key, both in PEM.
func (a *authority) issue(t testing.TB, name string) (certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

func newSink(t testing.TB, c Config) Sink {
	t.Helper()
	if c.Now == nil {
		c.Now = time.Now
	}
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConfigWhenUnsafeOrIncomplete(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue(t, "client")
	token := secret.FromString("tok-5e3c1a")
	good := map[string]Config{
		"syslog":      {Kind: Syslog, Address: "tls://siem.example.com"},
		"syslog mtls": {Kind: Syslog, Address: "tls://siem.example.com:6514", CA: ca.PEM, ClientCert: cert, ClientKey: secret.FromString(key)},
		"syslog tcp":  {Kind: Syslog, Address: "tcp://[::1]:514", Format: CEF, Options: map[string]string{"hold": "0s", "sd_id": "x@1"}},
		"splunk":      {Kind: Splunk, Address: "https://splunk:8088", Secret: token, Options: map[string]string{"ack": "true", "index": "audit"}},
		"https":       {Kind: HTTPS, Address: "https://siem/in?x=y", Secret: token},
		"https local": {Kind: HTTPS, Address: "http://localhost:1/", Options: map[string]string{"auth": "none"}},
		"https hmac":  {Kind: HTTPS, Address: "https://siem/in", Secret: secret.FromString("whsec_" + strings.Repeat("QUJD", 8)), Options: map[string]string{"auth": "standard-webhooks"}},
		"otlp":        {Kind: OTLP, Address: "https://otel:4318"},
		"file":        {Kind: File, Address: "/var/log/rotunda/trail.jsonl", Options: map[string]string{"keep": "3", "max_bytes": "65536"}},
	}
	for name, c := range good {
		c.Now = time.Now
		if err := Validate(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := []struct {
		field, reason string
		c             Config
	}{
		{"kind", "unknown_kind", Config{Kind: "kafka"}},
		{"format", "unknown_format", Config{Kind: Syslog, Address: "tls://h", Format: "xml"}},
		{"options", "unknown_option", Config{Kind: Syslog, Address: "tls://h", Options: map[string]string{"insecure": "true"}}},
		{"options.hostname", "bad_option", Config{Kind: Syslog, Address: "tls://h", Options: map[string]string{"hostname": "a\nb"}}},
		{"options.hold", "out_of_range", Config{Kind: Syslog, Address: "tls://h", Options: map[string]string{"hold": "1h"}}},
		{"options.sd_id", "bad_option", Config{Kind: Syslog, Address: "tls://h", Options: map[string]string{"sd_id": "a]b@1"}}},
		{"address", "bad_scheme", Config{Kind: Syslog, Address: "udp://127.0.0.1"}},
		{"address", "bad_scheme", Config{Kind: HTTPS, Address: "ftp://h", Secret: token}},
		{"address", "plain_text", Config{Kind: Syslog, Address: "tcp://siem:514"}},
		{"address", "plain_text", Config{Kind: HTTPS, Address: "http://192.0.2.1/", Secret: token}},
		{"address", "plain_text", Config{Kind: HTTPS, Address: "http://localhost.example.com/", Secret: token}},
		{"address", "secret_in_address", Config{Kind: HTTPS, Address: "https://u:tok-5e3c1a@h/", Secret: token}},
		{"address", "bad_address", Config{Kind: Splunk, Address: "https://", Secret: token}},
		{"address", "bad_address", Config{Kind: Splunk, Address: "https://h:tok-5e3c1a/", Secret: token}},
		{"address", "bad_address", Config{Kind: Syslog, Address: "tls://h/path"}},
		{"address", "bad_path", Config{Kind: File, Address: "trail.jsonl"}},
		{"address", "bad_path", Config{Kind: File, Address: "/var/../etc/x"}},
		{"options.keep", "out_of_range", Config{Kind: File, Address: "/x/y", Options: map[string]string{"keep": "0"}}},
		{"secret", "missing_secret", Config{Kind: Splunk, Address: "https://h"}},
		{"secret", "missing_secret", Config{Kind: HTTPS, Address: "https://h"}},
		{"secret", "weak_secret", Config{Kind: HTTPS, Address: "https://h", Secret: token, Options: map[string]string{"auth": "standard-webhooks"}}},
		{"secret", "bad_secret", Config{Kind: HTTPS, Address: "https://h", Secret: secret.FromString("tok-5e3c1a\n")}},
		{"secret", "unused_secret", Config{Kind: Syslog, Address: "tls://h", Secret: token}},
		{"ca", "bad_pem", Config{Kind: Syslog, Address: "tls://h", CA: "x"}},
		{"client_cert", "half_given", Config{Kind: Syslog, Address: "tls://h", ClientCert: cert}},
		{"client_cert", "bad_pem", Config{Kind: Syslog, Address: "tls://h", ClientCert: cert, ClientKey: secret.FromString("tok-5e3c1a")}},
		{"timeout", "out_of_range", Config{Kind: Syslog, Address: "tls://h", Timeout: time.Hour}},
	}
	for _, c := range bad {
		c.c.Now = time.Now
		err := Validate(c.c)
		f, ok := errors.AsType[*fault.Error](err)
		if !ok || !errors.Is(err, fault.ErrInvalid) || f.Field != c.field || f.Reason != c.reason {
			t.Errorf("%s %s: got %v", c.field, c.reason, err)
			continue
		}
		if strings.Contains(err.Error(), "5e3c1a") {
			t.Errorf("%s %s: the error tells a secret: %v", c.field, c.reason, err)
		}
		if s, err := Open(c.c); s != nil || err == nil {
			t.Errorf("%s %s: Open returned %v, %v", c.field, c.reason, s, err)
		}
	}
}

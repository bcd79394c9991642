package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writeCert puts a self-signed certificate with a serial number into two files,
// as a renewal would.
func writeCert(t *testing.T, certFile, keyFile string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "rotunda"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
}

// Promise: a renewed certificate is served without a restart, and a broken one
// stops nobody.
func TestCertificateWhenReplaced(t *testing.T) {
	certFile, keyFile := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	writeCert(t, certFile, keyFile, 1)
	log := &output{}
	c := &certificate{certFile: certFile, keyFile: keyFile, log: slog.New(slog.NewTextHandler(log, nil))}
	if err := c.load(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	serial := func(after time.Duration) int64 {
		t.Helper()
		now = now.Add(after)
		leaf, err := x509.ParseCertificate(c.get(now).Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.SerialNumber.Int64()
	}
	want := func(got, want int64, when string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: certificate %d, want %d", when, got, want)
		}
	}
	want(serial(0), 1, "at start")
	writeCert(t, certFile, keyFile, 2)
	want(serial(recheckCert-1), 1, "before the next look")
	want(serial(1), 2, "after a renewal")

	good, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	for when, content := range map[string]string{"empty": "", "half written": string(good[:len(good)/2]), "no PEM": "nonsense"} {
		if err := os.WriteFile(certFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		want(serial(recheckCert), 2, when)
	}
	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	want(serial(recheckCert), 2, "while it is away")
	writeCert(t, certFile, filepath.Join(t.TempDir(), "other.pem"), 3)
	want(serial(recheckCert), 2, "with a key that does not match")
	if n := strings.Count(log.String(), "can't be used"); n != 4 {
		t.Errorf("the log tells %d times of a certificate that can't be used, want 4:\n%s", n, log)
	}
	writeCert(t, certFile, keyFile, 4)
	want(serial(recheckCert), 4, "when it is whole again")
}

func testTLS(t *testing.T, bin program) {
	certFile, keyFile := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	writeCert(t, certFile, keyFile, 1)
	s := bin.serve(t, dataDir(filepath.Join(t.TempDir(), "data")), nil, "--tls-cert", certFile, "--tls-key", keyFile)
	if !strings.HasPrefix(s.base, "https://") {
		t.Fatalf("serves on %s", s.base)
	}
	for _, args := range [][]string{{"token", "whoami"}, {"doctor"}} {
		if r := bin.run(t, s.env(), append(args, "--ca-file", certFile)...); r.code != exitDone {
			t.Errorf("%v: %d\n%s%s", args, r.code, r.stdout, r.stderr)
		}
	}
	if r := bin.run(t, s.env(), "token", "whoami"); r.code != exitUnreachable || !strings.Contains(r.stderr, "--ca-file") {
		t.Errorf("an authority that nobody knows: %d %s", r.code, r.stderr)
	}
	host := strings.TrimPrefix(s.base, "https://")
	handshake := func(conf *tls.Config) (int64, string, error) {
		conf.InsecureSkipVerify = true
		conn, err := tls.Dial("tcp", host, conf)
		if err != nil {
			return 0, "", err
		}
		defer conn.Close()
		state := conn.ConnectionState()
		return state.PeerCertificates[0].SerialNumber.Int64(), state.NegotiatedProtocol, nil
	}
	if _, proto, err := handshake(&tls.Config{NextProtos: []string{"h2", "http/1.1"}}); err != nil || proto != "h2" {
		t.Errorf("negotiated %q, %v", proto, err)
	}
	if _, _, err := handshake(&tls.Config{MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	writeCert(t, certFile, keyFile, 2)
	eventually(t, "the renewed certificate", func() bool {
		n, _, err := handshake(&tls.Config{})
		return err == nil && n == 2
	})
}

package httptarget

import (
	"bufio"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// newHostile is a partner who does with each connection what serve does; serve may speak
// TLS on it, or not.
func newHostile(t testing.TB, serve func(net.Conn, *tls.Config)) providers.Target {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	t.Cleanup(server.Close)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []net.Conn
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			all = append(all, conn)
			mu.Unlock()
			served.Go(func() { serve(conn, &tls.Config{Certificates: server.TLS.Certificates}) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for _, conn := range all {
			_ = conn.Close()
		}
		mu.Unlock()
		served.Wait()
	})
	settings := map[string]string{
		"address": "https://" + listener.Addr().String(), "allow_private": "true", "timeout": "1", "usage": "usage",
		"ca_cert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})),
	}
	target, err := openTarget(t, settings, signing)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	return target
}

// answering reads one request and writes what answer makes of its body.
func answering(answer func(body string) string) func(net.Conn, *tls.Config) {
	return func(conn net.Conn, config *tls.Config) {
		secure := tls.Server(conn, config)
		r, err := http.ReadRequest(bufio.NewReader(secure))
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		_, _ = io.WriteString(secure, answer(string(body)))
	}
}

// TestErrorWhenAnswerEchoes: what can't be read as an answer is what we sent.
func TestErrorWhenAnswerEchoes(t *testing.T) {
	for name, answer := range map[string]func(body string) string{
		"as the status line": func(body string) string { return body + "\r\n\r\n" },
		"as the version":     func(body string) string { return "HTTP/" + body + " 200 OK\r\n\r\n" },
		"as the status":      func(body string) string { return "HTTP/1.1 " + body + "\r\n\r\n" },
		"as a header": func(body string) string {
			return "HTTP/1.1 200 OK\r\n" + strings.Trim(body, "{}") + "\r\nno header, " + body + "\r\n\r\n"
		},
		"as a length":    func(body string) string { return "HTTP/1.1 200 OK\r\nContent-Length: " + body + "\r\n\r\n" },
		"as an encoding": func(body string) string { return "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + body + "\r\n\r\n" },
	} {
		target := newHostile(t, answering(answer))
		_, err := target.Apply(t.Context(), changeTo(held(2, "geheim-geheim")))
		if providers.OutcomeOf(err) != providers.Unknown || err == nil {
			t.Errorf("%s: %v, want unknown", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "geheim") || len(err.Error()) > 500) {
			t.Errorf("%s: the error quotes the answer: %v", name, err)
		}
	}
}

// TestAnswerWhenProtocolIsSwitched: the connection that is left has no end.
func TestAnswerWhenProtocolIsSwitched(t *testing.T) {
	target := newHostile(t, answering(func(string) string {
		return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
	}))
	done := make(chan error, 1)
	go func() {
		_, err := target.Apply(t.Context(), changeTo(held(2, "geheim-geheim")))
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, fault.ErrUnavailable) {
			t.Errorf("%v, want unavailable", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the call did not end, though its timeout is one second")
	}
}

// TestPartnerWhenHandshakesStall: connections that came to nothing do not take the places
// of those that follow.
func TestPartnerWhenHandshakesStall(t *testing.T) {
	var well atomic.Bool
	fine := answering(func(string) string { return "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n" })
	target := newHostile(t, func(conn net.Conn, config *tls.Config) {
		if well.Load() {
			fine(conn, config)
		}
	})
	c := changeTo(held(2, "geheim-geheim"))
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() {
			if _, err := target.Apply(t.Context(), c); providers.OutcomeOf(err) != providers.Unknown || err == nil {
				t.Errorf("no handshake: %v, want unknown", err)
			}
		})
	}
	calls.Wait()
	well.Store(true)
	_, err := target.Apply(t.Context(), c)
	for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); {
		_, err = target.Apply(t.Context(), c)
	}
	if err != nil {
		t.Errorf("the partner is well again, and still: %v", err)
	}
}

// TestPartnerWhenConnectionIsCutInSilence: what is sent gets lost, as when a firewall forgot
// the connection, and only new ones work.
func TestPartnerWhenConnectionIsCutInSilence(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			w.WriteHeader(http.StatusHTTPVersionNotSupported)
		}
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	var cut atomic.Pointer[atomic.Bool] // of the newest connection
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var copies sync.WaitGroup
	t.Cleanup(func() { _ = listener.Close(); copies.Wait() })
	copies.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				_ = conn.Close()
				continue
			}
			is := &atomic.Bool{}
			cut.Store(is)
			for _, pair := range [][2]net.Conn{{conn, far}, {far, conn}} {
				copies.Go(func() {
					defer pair[1].Close()
					for b := make([]byte, 32<<10); ; {
						n, err := pair[0].Read(b)
						if err != nil {
							return
						}
						if !is.Load() {
							_, _ = pair[1].Write(b[:n])
						}
					}
				})
			}
		}
	})
	target, err := openTarget(t, map[string]string{
		"address": "https://" + listener.Addr().String(), "allow_private": "true", "timeout": "1",
		"ca_cert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})),
	}, signing)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	c := changeTo(held(2, "geheim-geheim"))
	if _, err := target.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	cut.Load().Store(true)
	_, err = target.Apply(t.Context(), c)
	if err == nil {
		t.Fatal("the connection was not used again, or not cut: the case proves nothing")
	}
	for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); {
		_, err = target.Apply(t.Context(), c)
	}
	if err != nil {
		t.Errorf("new connections work, and still: %v", err)
	}
}

// TestRevokeWhenRolledBack: with replace the old value was set again, as a newer
// generation; ending the older record of it would end what consumers read.
func TestRevokeWhenRolledBack(t *testing.T) {
	p := newPartner(t)
	p.add("app")
	target := p.open(t)
	for _, s := range []providers.Strategy{providers.Replace, providers.Dual} {
		old, failed, restored := held(1, "geheim-1-"+string(s)), held(2, "geheim-2-"+string(s)), held(3, "geheim-1-"+string(s))
		failed.Rotation, restored.Rotation = "6f1d2c7e-0000-4000-8000-000000000002", "6f1d2c7e-0000-4000-8000-000000000003"
		c := changeTo(restored)
		c.Strategy, c.Emergency, c.Current, c.Others = s, true, failed, []providers.Held{old}
		if _, err := target.Apply(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		err := errors.Join(target.Retire(t.Context(), c, old, time.Now().Add(-time.Hour)), target.Revoke(t.Context(), c, failed), target.Revoke(t.Context(), c, old))
		if err != nil || !p.accepts(restored) {
			t.Errorf("%s: %v; what consumers read is accepted: %t", s, err, p.accepts(restored))
		}
		p.add("app")
	}
}

// TestRevokeWhenAccountWasRenamed: with replace nothing took the place of the value of the
// account that the credential had before.
func TestRevokeWhenAccountWasRenamed(t *testing.T) {
	p := newPartner(t)
	p.add("app", "renamed")
	target := p.open(t)
	old := held(1, "geheim-1")
	c := changeTo(old)
	c.Strategy = providers.Replace
	if _, err := target.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	h := held(2, "geheim-2")
	h.Account, h.Rotation = "renamed", "6f1d2c7e-0000-4000-8000-000000000002"
	c = changeTo(h)
	c.Strategy, c.Current, c.Params = providers.Replace, old, map[string]string{"account": "renamed"}
	if _, err := target.Apply(t.Context(), c); err != nil || !p.accepts(old) {
		t.Fatalf("%v; the old value is accepted: %t", err, p.accepts(old))
	}
	if err := target.Revoke(t.Context(), c, old); err != nil || p.accepts(old) || !p.accepts(h) {
		t.Errorf("%v; accepted are the old value: %t, the new: %t; want false, true", err, p.accepts(old), p.accepts(h))
	}
}

func TestPrepareWhenAccountIsInUse(t *testing.T) {
	target := newPartner(t).open(t)
	adopted := held(0, "x").Fields
	for name, c := range map[string]providers.Change{
		"of a value from before":          {Current: providers.Held{Fields: adopted}},
		"of a value that was abandoned":   {Others: []providers.Held{held(1, "x")}},
		"of what consumers read":          {Current: held(1, "x")},
		"of what consumers read, and b's": {Current: held(2, "x"), Others: []providers.Held{{Generation: 1, Account: "app-b"}}},
	} {
		c.Strategy, c.Params = providers.Alternate, map[string]string{"account": "app", "account_b": "app-b"}
		got, err := target.Prepare(t.Context(), c)
		if err != nil || got.New.Account != "app-b" {
			t.Errorf("the account %s is app, and %q is next (%v)", name, got.New.Account, err)
		}
	}
}

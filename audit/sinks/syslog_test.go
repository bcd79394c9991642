package sinks

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

func secretOf(s string) secret.Value { return secret.FromString(s) }

// What rsyslog writes is what was sent, to the byte: structured data that needs
// escapes, UTF-8, line breaks, the largest event there can be; by both TLS drivers.
func TestSyslogWhenRsyslogReceives(t *testing.T) {
	for _, test := range []struct{ driver, format string }{{"ossl", JSON}, {"gtls", CEF}} {
		t.Run(test.driver+" "+test.format, func(t *testing.T) {
			t.Parallel()
			r := newRsyslog(t, test.driver, "direct")
			r.conf.Format = test.format
			records := newRecords(t, 0, 30)
			awkward := `a]b"c\d`
			for i := range records {
				records[i].Origin = awkward
			}
			long := strings.Repeat(`\u0001\n"|=]`, 85)
			large := trail.Event{
				ID: records[0].ID, Time: records[0].Time, Actor: long, Action: "api_key.revoke", Resource: strings.Repeat("é\n", 340), Partner: long, Outcome: trail.Denied,
				Reason: strings.Repeat("\x01", trail.MaxText), RequestID: long, Address: long, Detail: `{"x":"` + strings.Repeat(`\n=`, trail.MaxDetail/3-4) + `"}`, Count: 1, Salt: trail.NewSeed(),
			}
			h, err := large.Hash()
			if err != nil {
				t.Fatal(err)
			}
			records = append(records, trail.Record{Event: large, Origin: awkward, Index: 30, Hash: h})
			s := newSink(t, r.conf)
			if err := s.Send(t.Context(), records); err != nil {
				t.Fatal(err)
			}
			lines := r.lines() // direct queue: Send returned, so it is written
			if len(lines) != len(records) {
				log, _ := os.ReadFile(r.log)
				t.Fatalf("rsyslog wrote %d lines: %.2000s", len(lines), log)
			}
			encode := format.AppendJSON
			if test.format == CEF {
				encode = format.AppendCEF
			}
			for i := range records {
				body, err := encode(nil, &records[i])
				if err != nil {
					t.Fatal(err)
				}
				want := fmt.Sprintf("[rotunda@32473 origin=\"a\\]b\\\"c\\\\d\" index=\"%d\" hash=\"%s\" id=\"%s\"] \ufeff%s\n", i, records[i].Hash, records[i].ID, body)
				if diff := cmp.Diff(want, string(lines[i])); diff != "" {
					t.Fatalf("record %d (-want +got):\n%.2000s", i, diff)
				}
			}
			if n := len(lines[30]); n < trail.MaxDetail {
				t.Errorf("the largest line has %d bytes", n)
			}
		})
	}
}

var indexIn = regexp.MustCompile(`^\[rotunda@32473 origin="[^"]*" index="(\d+)"`)

// indexes returns the index of each line that rsyslog wrote whole.
func (r *rsyslog) indexes() (got []int64) {
	for _, line := range r.lines() {
		m := indexIn.FindSubmatch(line)
		if m == nil || !bytes.HasSuffix(line, []byte("}\n")) {
			continue // torn by the kill
		}
		n, err := strconv.ParseInt(string(m[1]), 10, 64)
		if err != nil {
			r.t.Fatal(err)
		}
		got = append(got, n)
	}
	return got
}

// Promise: rsyslog is killed and stopped in the middle of a run, again and again, and
// nothing is lost: neither what is under way, nor what it had read.
func TestSyslogWhenRsyslogDiesLosesNothing(t *testing.T) {
	for _, test := range []struct {
		name, queue, hold string
		signals           []os.Signal
	}{
		// The end of the connection alone has to be proof.
		{"writes before it reads on", "direct", "0s", []os.Signal{os.Kill, syscall.SIGTERM, os.Kill, os.Kill}},
		// What it holds in memory is lost: the hold has to make up for it. It is longer than
		// the test, so that a slow disk's queue is not; the pump's tests show that it ends.
		{"queues in memory", "linkedList", "10m", []os.Signal{os.Kill, os.Kill}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			const total, chunk = 6000, 25
			r := newRsyslog(t, "ossl", test.queue)
			r.conf.Options["hold"] = test.hold
			source := newMemory()
			stats := newPump(t, source, newSink(t, r.conf))
			records := newRecords(t, 0, total)
			stop := make(chan struct{})
			fed := make(chan struct{})
			killed := make(chan struct{}, len(test.signals))
			go func() { // a steady stream, so that a kill finds something under way
				defer close(fed)
				for i := 0; i < total; i += chunk {
					// Between one kill and the next there are records that only a receiver that lives can have taken.
					if past := i - 500; past > 0 && past%1000 == 0 && past/1000 <= len(test.signals) {
						select {
						case <-stop:
							return
						case <-killed:
						}
					}
					source.add(records[i : i+chunk]...)
					select {
					case <-stop:
						return
					case <-time.After(5 * time.Millisecond):
					}
				}
			}()
			t.Cleanup(func() { close(stop); <-fed })
			for i, signal := range test.signals {
				n := int64(1000 * (i + 1))
				waitFor(t, fmt.Sprintf("record %d", n), func() bool { return stats().Position > n })
				seen := stats().Failures
				r.process.stop(signal)
				killed <- struct{}{}
				waitFor(t, "the kill to be noticed", func() bool { return stats().Failures > seen })
				r.start()
			}
			waitFor(t, "the last record to be sent", func() bool { return stats().Position == total })
			if test.queue == "direct" { // then it is in the file, too
				waitFor(t, "the cursor to reach the end", func() bool { return source.cursor() == total })
			} else {
				waitFor(t, "rsyslog to empty its queue", func() bool { return len(r.indexes()) > 0 && slices.Max(r.indexes()) == total-1 })
			}
			got := r.indexes()
			seen := map[int64]bool{}
			for _, i := range got {
				seen[i] = true
			}
			var missing []int64
			for i := range int64(total) {
				if !seen[i] {
					missing = append(missing, i)
				}
			}
			if len(missing) > 0 {
				t.Errorf("%d of %d records are lost: %d to %d", len(missing), total, missing[0], missing[len(missing)-1])
			}
			t.Logf("%d lines for %d records, %d failures", len(got), total, stats().Failures)
		})
	}
}

func TestSyslogWhenTheReceiverIsNotTheOneWeTrust(t *testing.T) {
	r := newRsyslog(t, "ossl", "direct")
	for name, change := range map[string]func(*Config){
		"another authority":     func(c *Config) { c.CA = newAuthority(t).PEM },
		"another name":          func(c *Config) { c.ServerName = "siem.example.com" },
		"no client certificate": func(c *Config) { c.ClientCert, c.ClientKey = "", secretOf("") },
		"nobody there":          func(c *Config) { c.Address = fmt.Sprintf("tls://127.0.0.1:%d", freePort(t)) },
	} {
		c := r.conf
		change(&c)
		if err := newSink(t, c).Send(t.Context(), newRecords(t, 0, 3)); !errors.Is(err, fault.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(r.lines()); n != 0 {
		t.Errorf("%d records arrived", n)
	}
}

// A receiver that misbehaves at the end of a connection has acknowledged nothing.
func TestSyslogWhenTheEndIsNoAcknowledgement(t *testing.T) {
	for _, test := range []struct {
		name   string
		handle func(*net.TCPConn)
		ok     bool
	}{
		{"reads all, closes", func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c); _ = c.Close() }, true},
		{"reads nothing, closes", func(c *net.TCPConn) { _ = c.Close() }, false},
		{"reads a part, closes", func(c *net.TCPConn) { _, _ = io.ReadFull(c, make([]byte, 4096)); _ = c.Close() }, false},
		{"reads all, resets", func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c); _ = c.SetLinger(0); _ = c.Close() }, false},
		{"ends first, reads nothing", func(c *net.TCPConn) { _ = c.CloseWrite(); time.Sleep(time.Second); _ = c.Close() }, false},
		{"reads nothing, stays", func(*net.TCPConn) {}, false},
		{"talks without end", func(c *net.TCPConn) {
			_, _ = c.Write(make([]byte, 2*maxReply))
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}, false},
		{"reads all, stays", func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var conns []net.Conn
			served := make(chan struct{})
			go func() {
				defer close(served)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					conns = append(conns, c)
					go test.handle(c.(*net.TCPConn))
				}
			}()
			t.Cleanup(func() {
				l.Close()
				<-served
				for _, c := range conns {
					c.Close()
				}
			})
			s := newSink(t, Config{Kind: Syslog, Address: "tcp://" + l.Addr().String(), Timeout: 2 * time.Second, Options: map[string]string{"hold": "0s"}})
			err = s.Send(t.Context(), newRecords(t, 0, 500))
			if test.ok && err != nil || !test.ok && !errors.Is(err, fault.ErrUnavailable) {
				t.Errorf("Send: %v", err)
			}
		})
	}
}

func TestSyslogWhenTheConnectionBreaksWhileHeld(t *testing.T) {
	r := newRsyslog(t, "ossl", "direct")
	r.conf.Options["hold"] = "10s"
	s := newSink(t, r.conf)
	holder := s.(Holder)
	if holder.Hold() != 10*time.Second {
		t.Errorf("Hold is %v", holder.Hold())
	}
	if err := s.Send(t.Context(), newRecords(t, 0, 3)); err != nil {
		t.Fatal(err)
	}
	if err := holder.Alive(); err != nil {
		t.Errorf("Alive: %v", err)
	}
	r.process.stop(os.Kill)
	waitFor(t, "the loss to be noticed", func() bool { return holder.Alive() != nil })
	r.start()
	if err := s.Send(t.Context(), newRecords(t, 0, 3)); err != nil {
		t.Fatal(err)
	}
	if err := holder.Alive(); err != nil {
		t.Errorf("Alive after it is back: %v", err)
	}
	if n := len(r.lines()); n != 6 {
		t.Errorf("%d lines", n)
	}
}

func FuzzParam(f *testing.F) {
	f.Add("trail.example.com/log")
	f.Add(`]"\`)
	f.Add("\x00\n\x7f é")
	f.Fuzz(func(t *testing.T, value string) {
		got := appendParam([]byte{'"'}, value)
		// A parser of RFC 5424, section 6.3.3, reads it back.
		var read []byte
		for i := 1; i < len(got); i++ {
			c := got[i]
			if c == '\\' {
				if i++; i == len(got) {
					t.Fatalf("%q ends in an escape", got)
				}
				c = got[i]
			} else if c == '"' || c == ']' {
				t.Fatalf("%q has a bare %q", got, c)
			}
			read = append(read, c)
		}
		want := []byte(value)
		for i, c := range want {
			if c < ' ' || c == 0x7f {
				want[i] = ' '
			}
		}
		if !bytes.Equal(read, want) {
			t.Fatalf("%q is read back as %q", value, read)
		}
	})
}

func FuzzAddress(f *testing.F) {
	for _, kind := range []string{Syslog, Splunk, HTTPS, OTLP, File} {
		for _, a := range []string{"tls://h:1", "https://h/p?q", "http://[::1]:8/", "tcp://127.0.0.1", "/a/b", "https://u:p@h", "http://127.0.0.1.evil.example/"} {
			f.Add(kind, a)
		}
	}
	f.Fuzz(func(t *testing.T, kind, address string) {
		p, err := parse(Config{Kind: kind, Address: address, Secret: secretOf("tok"), Now: time.Now})
		if kind == Syslog {
			p, err = parse(Config{Kind: kind, Address: address})
		}
		if err != nil {
			return
		}
		if p.url == nil {
			if kind != File || address[0] != '/' {
				t.Fatalf("%s accepts %q", kind, address)
			}
			return
		}
		host := p.url.Hostname()
		if plain := p.url.Scheme == "http" || p.url.Scheme == "tcp"; plain && host != "localhost" && !net.ParseIP(host).IsLoopback() || p.url.User != nil || host == "" {
			t.Fatalf("%s accepts %q", kind, address)
		}
	})
}

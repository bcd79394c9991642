package sinks

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// documented returns the configuration that docs/sinks.md says was tested, with its
// paths and ports replaced. Every replacement must find its place.
func documented(t testing.TB, name string, replace ...string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/sinks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "<!-- tested: "+name+" -->\n```")
	_, rest, ok2 := strings.Cut(rest, "\n")
	text, _, ok3 := strings.Cut(rest, "\n```\n")
	if !ok || !ok2 || !ok3 {
		t.Fatalf("docs/sinks.md has no block that is marked %q", name)
	}
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			t.Fatalf("the configuration of %s in docs/sinks.md does not have %q", name, replace[i])
		}
		text = strings.ReplaceAll(text, replace[i], replace[i+1])
	}
	return text + "\n"
}

// process is a receiver that a test starts, kills and starts again.
type process struct {
	t    testing.TB
	argv []string
	port int
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (p *process) start() {
	p.t.Helper()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close()
	p.cmd = exec.Command(p.argv[0], p.argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	p.done = done
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(done)
	}(p.cmd)
	waitFor(p.t, "the receiver to listen", func() bool {
		select {
		case <-done:
			text, _ := os.ReadFile(p.log)
			p.t.Fatalf("%s ended: %s", p.argv[0], text)
		default:
		}
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (p *process) stop(how os.Signal) {
	_ = p.cmd.Process.Signal(how)
	<-p.done
}

func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for !done() {
		if sleep(ctx, 20*time.Millisecond) != nil {
			t.Fatalf("waited 2 minutes for %s", what)
		}
	}
}

func writeFile(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newPump runs a pump in real time until the test ends.
func newPump(t testing.TB, source Source, sink Sink) (stats func() Stats) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var last Stats
	p := &Pump{
		Source: source, Sink: sink, Name: "siem", Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Rejected: func(_ context.Context, r trail.Record, reason string) error {
			t.Errorf("record %d was rejected: %s", r.Index, reason)
			return nil
		},
		Observe: func(s Stats) {
			mu.Lock()
			defer mu.Unlock()
			last = s
		},
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wait.Wait()
	})
	return func() Stats {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
}

// rsyslog is a receiver from Debian, with the documented configuration.
type rsyslog struct {
	process
	out  string
	conf Config
}

func newRsyslog(t testing.TB, driver, queue string) *rsyslog {
	t.Helper()
	program, err := exec.LookPath("rsyslogd")
	if err != nil {
		program = "/usr/sbin/rsyslogd"
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatal("this test needs rsyslog with its TLS drivers: run scripts/setup.sh test (Debian: rsyslog rsyslog-openssl rsyslog-gnutls)")
	}
	dir := t.TempDir()
	ca := newAuthority(t)
	cert, key := ca.issue(t, "localhost")
	clientCert, clientKey := ca.issue(t, "rotunda")
	r := &rsyslog{out: filepath.Join(dir, "out.log")}
	r.process = process{t: t, port: freePort(t), log: filepath.Join(dir, "rsyslogd.log")}
	conf := documented(t, "rsyslog",
		"/var/spool/rsyslog", dir,
		"/etc/rsyslog.d/ca.pem", writeFile(t, filepath.Join(dir, "ca.pem"), ca.PEM),
		"/etc/rsyslog.d/cert.pem", writeFile(t, filepath.Join(dir, "cert.pem"), cert),
		"/etc/rsyslog.d/key.pem", writeFile(t, filepath.Join(dir, "key.pem"), key),
		`"ossl"`, `"`+driver+`"`,
		`port="6514"`, fmt.Sprintf(`port="%d" address="127.0.0.1"`, r.port),
		"/var/log/rotunda.log", r.out,
		`queue.type="direct"`, fmt.Sprintf("queue.type=%q", queue))
	if queue != "direct" {
		conf = strings.Replace(conf, ` sync="on"`, "", 1) // its queue would outgrow any test on a slow disk
	}
	r.argv = []string{program, "-n", "-f", writeFile(t, filepath.Join(dir, "rsyslog.conf"), conf), "-i", filepath.Join(dir, "pid")}
	r.conf = Config{
		Kind: Syslog, Address: fmt.Sprintf("tls://127.0.0.1:%d", r.port), ServerName: "localhost", CA: ca.PEM,
		ClientCert: clientCert, ClientKey: secretOf(clientKey), Options: map[string]string{"hold": "0s"},
	}
	r.start()
	t.Cleanup(func() { r.stop(os.Kill) })
	return r
}

// lines returns what rsyslog wrote: whole lines.
func (r *rsyslog) lines() [][]byte {
	b, err := os.ReadFile(r.out)
	if err != nil && !os.IsNotExist(err) {
		r.t.Fatal(err)
	}
	all := bytes.SplitAfter(b, []byte("\n"))
	return all[:len(all)-1]
}

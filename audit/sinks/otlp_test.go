package sinks

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// newCollectorProgram builds the OpenTelemetry Collector of ./otlptest, once: it is
// kept in .tools under the hash of its sources.
func newCollectorProgram(t testing.TB) string {
	t.Helper()
	sum := sha256.New()
	for _, name := range []string{"main.go", "go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join("otlptest", name))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(sum, "%d %s", len(b), b)
	}
	dir, err := filepath.Abs(fmt.Sprintf("../../.tools/otlptest-%x", sum.Sum(nil)[:8]))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "otlptest")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Built under another name and moved: a build that is cut off leaves nothing.
	part := fmt.Sprintf("%s.%d", program, os.Getpid())
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", part, ".")
	build.Dir = "otlptest"
	build.Env = append(os.Environ(), "GOFLAGS=-mod=readonly")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build in audit/sinks/otlptest: %v\n%s", err, out)
	}
	if err := os.Rename(part, program); err != nil {
		t.Fatal(err)
	}
	return program
}

// arrived is a line that the Collector wrote: OTLP in JSON.
type arrived struct {
	ResourceLogs []struct {
		Resource  struct{ Attributes []attribute }
		ScopeLogs []struct {
			Scope      struct{ Name string }
			LogRecords []struct {
				TimeUnixNano   string
				SeverityNumber int
				SeverityText   string
				EventName      string
				Body           struct{ StringValue string }
				Attributes     []attribute
			}
		}
	}
}

type attribute struct {
	Key   string
	Value struct{ StringValue, IntValue string }
}

func values(all []attribute) map[string]string {
	m := map[string]string{}
	for _, a := range all {
		m[a.Key] = a.Value.StringValue + a.Value.IntValue
	}
	return m
}

// A real Collector receives a run over TLS, is stopped in the middle of it and started
// again, and has every record, whole.
func TestOTLPWhenACollectorReceives(t *testing.T) {
	t.Parallel()
	const total = 3000
	dir := t.TempDir()
	ca := newAuthority(t)
	cert, key := ca.issue(t, "localhost")
	c := &process{t: t, port: freePort(t), log: filepath.Join(dir, "otelcol.log")}
	out := filepath.Join(dir, "out.jsonl")
	conf := documented(t, "otelcol",
		"0.0.0.0:4318", net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)),
		"/etc/otelcol/cert.pem", writeFile(t, filepath.Join(dir, "cert.pem"), cert),
		"/etc/otelcol/key.pem", writeFile(t, filepath.Join(dir, "key.pem"), key),
		"/var/log/rotunda.jsonl", out) +
		"  telemetry:\n    metrics:\n      level: none\n"
	c.argv = []string{newCollectorProgram(t), "--config", "file:" + writeFile(t, filepath.Join(dir, "otelcol.yaml"), conf)}
	c.start()
	t.Cleanup(func() { c.stop(os.Kill) })

	records := newRecords(t, 0, total)
	source := newMemory(records[:1500]...)
	stats := newPump(t, source, newSink(t, Config{Kind: OTLP, Address: fmt.Sprintf("https://127.0.0.1:%d", c.port), ServerName: "localhost", CA: ca.PEM}))
	waitFor(t, "the first half", func() bool { return source.cursor() >= 500 })
	c.stop(os.Kill)
	source.add(records[1500:]...)
	waitFor(t, "the loss to be noticed", func() bool { return stats().State == StateFailing })
	c.start()
	waitFor(t, "the second half", func() bool { return source.cursor() == total })

	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int64]bool{}
	lines := bytes.SplitAfter(b, []byte("\n"))
	for _, line := range lines[:len(lines)-1] {
		var a arrived
		if err := json.Unmarshal(line, &a); err != nil {
			continue // torn by the kill
		}
		for _, resource := range a.ResourceLogs {
			if got := values(resource.Resource.Attributes)["service.name"]; got != "rotunda" {
				t.Fatalf("service.name is %q", got)
			}
			for _, l := range resource.ScopeLogs[0].LogRecords {
				got := values(l.Attributes)
				i, err := strconv.ParseInt(got["rotunda.index"], 10, 64)
				if err != nil || i < 0 || i >= total {
					t.Fatalf("attributes %v", got)
				}
				r := &records[i]
				body, err := format.AppendJSON(nil, r)
				if err != nil {
					t.Fatal(err)
				}
				want := map[string]string{
					"rotunda.origin": origin, "rotunda.index": strconv.FormatInt(i, 10), "rotunda.hash": r.Hash.String(), "rotunda.id": r.ID,
					"rotunda.action": r.Action, "rotunda.resource": r.Resource, "rotunda.outcome": r.Outcome, "rotunda.count": "1",
					"rotunda.actor": r.Actor, "rotunda.partner": r.Partner, "rotunda.reason": r.Reason, "rotunda.address": r.Address,
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("record %d, attributes (-want +got):\n%s", i, diff)
				}
				number := map[string]int{trail.OK: 9, trail.Started: 9, trail.Denied: 13, trail.Failed: 17}[r.Outcome]
				if l.Body.StringValue != string(body) || l.TimeUnixNano != strconv.FormatInt(r.Time.UnixNano(), 10) || l.SeverityNumber != number || l.EventName != r.Action {
					t.Fatalf("record %d arrived as %+v", i, l)
				}
				seen[i] = true
			}
		}
	}
	if len(seen) != total {
		t.Errorf("%d of %d records arrived", len(seen), total)
	}
}

// Package bench measures the whole program: see docs/benchmarks.md. What can
// be measured inside one package stands beside that package.
package bench

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// BenchmarkStart is the time from the start of `rotunda serve` until /readyz
// says that it is ready, with SQLite and that many keysets. idle-MB is the
// resident memory a second later.
func BenchmarkStart(b *testing.B) {
	folder := b.TempDir()
	for _, name := range []string{"cmd/rotunda", "bench/fill"} {
		cmd := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", folder+"/", "../"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	data := filepath.Join(folder, "data")
	for _, keysets := range []int{0, 1_000, 10_000} {
		b.Run(fmt.Sprintf("keysets=%d", keysets), func(b *testing.B) {
			data := fmt.Sprintf("%s-%d", data, keysets)
			if _, err := os.Stat(data); err != nil { // this function runs more than once
				p := start(b, folder, data)
				if keysets > 0 {
					out, err := exec.CommandContext(b.Context(), folder+"/fill", "--server", p.url, "--token-file", data+"/admin.token", "--keysets", strconv.Itoa(keysets)).CombinedOutput()
					if err != nil {
						b.Fatalf("fill: %v\n%s", err, out)
					}
				}
				p.stop(b)
			}
			b.ResetTimer()
			b.StopTimer()
			var idle float64
			for i := range b.N {
				b.StartTimer()
				p := start(b, folder, data)
				b.StopTimer()
				if i == 0 {
					time.Sleep(time.Second)
					idle = p.resident(b)
					p.stop(b)
					continue
				}
				p.kill() // an orderly stop takes a second
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/start")
			b.ReportMetric(idle, "idle-MB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

type process struct {
	cmd *exec.Cmd
	url string
}

func start(b *testing.B, folder, data string) *process {
	b.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(b.Context()), folder+"/rotunda", "serve", "--data-dir", data, "--listen", "127.0.0.1:0", "--log-level", "warn")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	p := &process{cmd: cmd}
	b.Cleanup(p.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("rotunda serve said nothing: %v", err)
	}
	p.url = line[strings.Index(line, "http://") : len(line)-1]
	for deadline := time.Now().Add(time.Minute); ; {
		res, err := http.Get(p.url + "/readyz")
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return p
			}
		}
		if time.Now().After(deadline) {
			b.Fatalf("not ready within a minute: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *process) stop(b *testing.B) {
	b.Helper()
	http.DefaultClient.CloseIdleConnections()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		b.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		b.Fatalf("rotunda serve ended with %v", err)
	}
}

// kill ends the process if it has not ended yet.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// resident is the process's resident memory in MB.
func (p *process) resident(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	fields := strings.Fields(rest)
	kb, err := strconv.ParseFloat(fields[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kb / 1024
}

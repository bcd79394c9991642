package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// program is the built binary.
type program string

func buildProgram(t *testing.T) program {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rotunda")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program(path)
}

// TestProgram runs the real binary: it is built once for all of its parts.
func TestProgram(t *testing.T) {
	bin := buildProgram(t)
	for name, part := range map[string]func(*testing.T, program){
		"Tour":           testTour,
		"Kill":           testKill,
		"Replicas":       testReplicas,
		"Stop":           testStop,
		"RefusesToStart": testRefusesToStart,
		"TLS":            testTLS,
		"Lost":           testLost,
		"Limits":         testLimits,
		"Export":         testExport,

		"TrailTour":      testTrailTour,
		"TrailEvidence":  testTrailEvidence,
		"TrailPublished": testTrailPublished,
		"TrailStopped":   testTrailWhenStopped,
		"TrailReplicas":  testTrailReplicas,
		"RestoredAnchor": testTrailRestoredAnchor,
		"RestoredFile":   testTrailRestoredFile,
		"Sinks":          testSinks,

		"PartnerTour":     onBothDatabases(testPartnerTour),
		"PartnerReplicas": testPartnerReplicas,
		"PartnerRedis":    testPartnerRedis,
		"PartnerKill":     testPartnerKill,
		"ReadmePartner":   testReadmePartner,

		"SigningVault": testSigningVault,

		"CredentialTour":     onBothDatabases(testCredentialTour),
		"CredentialPostgres": onBothDatabases(testCredentialPostgres),
		"CredentialReplicas": testCredentialReplicas,
		"ReadmeCredential":   testReadmeCredential,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			part(t, bin)
		})
	}
}

func (p program) command(t *testing.T, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), string(p), args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "HOME=" + cmd.Dir}, env...)
	return cmd
}

// outcome is what a finished process leaves.
type outcome struct {
	code           int
	stdout, stderr string
}

// run runs a command to its end.
func (p program) run(t *testing.T, env []string, args ...string) outcome {
	t.Helper()
	cmd := p.command(t, env, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok || ok && exit.ExitCode() < 0 {
		t.Fatalf("%v: %v\n%s", args, err, errs.String())
	}
	return outcome{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// output is what a running process has said so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// instance is a running server.
type instance struct {
	base   string
	dir    dataDir
	cmd    *exec.Cmd
	stderr *output
	done   chan struct{} // closed when the process has ended
}

var servesOn = regexp.MustCompile(`serves on (\S+)`)

// serve starts a server on a free port and waits until it says where it is.
func (p program) serve(t *testing.T, dir dataDir, env []string, args ...string) *instance {
	t.Helper()
	cmd := p.command(t, env, append([]string{"serve", "--data-dir", string(dir), "--listen", "127.0.0.1:0"}, args...)...)
	s := &instance{dir: dir, cmd: cmd, stderr: &output{}, done: make(chan struct{})}
	cmd.Stderr = s.stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	line, readErr := lines.ReadString('\n')
	go func() {
		_, _ = io.Copy(io.Discard, lines)
		_ = cmd.Wait() // ProcessState has it
		close(s.done)
	}()
	t.Cleanup(func() { s.kill() })
	m := servesOn.FindStringSubmatch(line)
	if m == nil {
		s.kill()
		t.Fatalf("the server said %q (%v)\n%s", line, readErr, s.stderr)
	}
	s.base = m[1]
	return s
}

func (s *instance) kill() {
	_ = s.cmd.Process.Kill() // it may be gone already
	<-s.done
}

// stop asks the server to stop and returns its exit code.
func (s *instance) stop(t *testing.T) int {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return s.wait(t)
}

func (s *instance) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(time.Minute):
		t.Fatalf("the server does not end\n%s", s.stderr)
	}
	return s.cmd.ProcessState.ExitCode()
}

// env makes the commands of the CLI find the server.
func (s *instance) env() []string {
	return []string{"ROTUNDA_SERVER=" + s.base, "ROTUNDA_DATA_DIR=" + string(s.dir)}
}

func (s *instance) token(t *testing.T) string {
	t.Helper()
	token, err := readToken(s.dir.adminToken())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// clients returns clients of the API with a token.
func (s *instance) clients(token string) (v1connect.KeysetServiceClient, v1connect.AuditServiceClient) {
	hc := &http.Client{Transport: &bearer{token, &http.Transport{}}}
	return v1connect.NewKeysetServiceClient(hc, s.base), v1connect.NewAuditServiceClient(hc, s.base)
}

// get fetches a path.
func (s *instance) get(t *testing.T, path string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.base+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// eventually waits for what another process does soon.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited for a minute for %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func wantMode(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Error(err)
	} else if info.Mode().Perm() != mode {
		t.Errorf("%s has mode %04o, want %04o", filepath.Base(path), info.Mode().Perm(), mode)
	}
}

func wantWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
}

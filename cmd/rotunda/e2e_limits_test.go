package main

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// A server starts only with files enough for its connections, and leaves no
// core dump.
func testLimits(t *testing.T, bin program) {
	under := func(limits string) []string {
		return []string{
			"-c", limits + ` && exec "$@"`, "sh", string(bin),
			"serve", "--listen", "127.0.0.1:0", "--data-dir", filepath.Join(t.TempDir(), "data"),
		}
	}
	const shell = program("/bin/sh")
	if r := shell.run(t, nil, under("ulimit -n 319")...); r.code != exitRefused {
		t.Errorf("319 files: %d %s", r.code, r.stderr)
	} else {
		wantWords(t, r.stderr, "319 files", "ulimit -n")
	}
	if r := shell.run(t, nil, append(under("ulimit -n 320"), "--database-url", "mysql://none")...); r.code != exitRefused || strings.Contains(r.stderr, "ulimit") || !strings.Contains(r.stderr, "postgres") {
		t.Errorf("320 files: %d %s, want no more than a refused database", r.code, r.stderr)
	}

	if runtime.GOOS != "linux" {
		t.Log("only Linux tells of the limits of another process")
		return
	}
	cmd := shell.command(t, nil, under(`ulimit -S -c "$(ulimit -H -c)"`)...)
	errs := &output{}
	cmd.Stderr = errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // it may be gone already
		_ = cmd.Wait()         // it was killed
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); !servesOn.MatchString(line) {
		t.Fatalf("the server said %q (%v)\n%s", line, err, errs)
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(b) {
		t.Errorf("the server may dump core:\n%s", b)
	}
}

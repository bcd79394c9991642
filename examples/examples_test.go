// Package examples runs the programs of its folders as the README does.
package examples

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// started is a program that runs until the test ends.
func started(t *testing.T, where *regexp.Regexp, env []string, path string, args ...string) string {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(path), stderr.String())
		}
	})
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	m := where.FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("%s said %q (%v)", filepath.Base(path), line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	return m[1]
}

// run runs a program to its end and returns what it prints.
func run(t *testing.T, ok bool, env []string, stdin string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); (err == nil) != ok {
		t.Fatalf("%s %q: %v\n%s\n%s", filepath.Base(name), args, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// tool is a program that the examples need from the system.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is needed: %v", name, err)
	}
	return path
}

func TestExamplesWhenRunAsTheReadmeSays(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "../cmd/rotunda", "./go/sign", "./go/server")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	node, curl := tool(t, "node"), tool(t, "curl")
	rotunda := filepath.Join(bin, "rotunda")
	data := filepath.Join(t.TempDir(), "data")
	base := started(t, regexp.MustCompile(`serves on (\S+)`), nil, rotunda, "serve", "--data-dir", data, "--listen", "127.0.0.1:0")
	admin := []string{"ROTUNDA_SERVER=" + base, "ROTUNDA_DATA_DIR=" + data}
	cli := func(args ...string) string { t.Helper(); return run(t, true, admin, "", rotunda, args...) }

	cli("partner", "create", "acme", "--scope", "orders:read", "--scope", "orders:write")
	gateway := strings.TrimSpace(cli("token", "create", "edge", "--role", "gateway"))
	api := started(t, regexp.MustCompile(`listens on (\S+)`), []string{"ROTUNDA_SERVER=" + base, "ROTUNDA_TOKEN=" + gateway},
		filepath.Join(bin, "server"), "-listen", "127.0.0.1:0")
	var made struct {
		Secret struct{ ID string }
		Value  string
	}
	if err := json.Unmarshal([]byte(cli("secret", "create", "--partner", "acme", "--name", "orders-signing",
		"--scope", "orders:read", "--scope", "orders:write", "-o", "json")), &made); err != nil {
		t.Fatal(err)
	}
	partner := []string{"ROTUNDA_KEY_ID=" + made.Secret.ID, "ROTUNDA_SECRET=" + made.Value}
	programs := map[string][]string{
		"go":   {filepath.Join(bin, "sign")},
		"node": {node, "node/sign.mjs"},
	}
	const listed = `"by":"signature"`
	for name, program := range programs {
		sign := func(ok bool, args ...string) string {
			t.Helper()
			return run(t, ok, partner, "", program[0], append(program[1:len(program):len(program)], args...)...)
		}
		want := func(out string, words ...string) {
			t.Helper()
			for _, w := range words {
				if !strings.Contains(out, w) {
					t.Errorf("%q is missing in:\n%s", w, out)
				}
			}
		}
		t.Run(name, func(t *testing.T) {
			want(sign(true, api+"/orders?page=2&q=a%20b"), "200", listed, `"partner":"acme"`, `page=2\u0026q=a%20b`)
			want(sign(true, "-body", `{"item":7}`, api+"/orders"), "201", `"bytes":10`)
			want(sign(true, "-body", strings.Repeat("x", 100_000), api+"/orders"), "201", `"bytes":100000`)
			want(sign(true, "-method", "POST", api+"/orders"), "201", `"bytes":0`)

			// Three ways of curl.
			target := api + "/orders?page=2"
			lines := sign(true, "-headers", target)
			want(run(t, true, nil, "", curl, "-s", "-H", strings.TrimSuffix(lines, "\n"), target), listed)
			if again := run(t, true, nil, "", curl, "-s", "-H", strings.TrimSuffix(lines, "\n"), target); !strings.Contains(again, "unauthorized") {
				t.Errorf("the same signature again: %s", again)
			}
			want(run(t, true, nil, sign(true, "-headers", target), curl, "-s", "-H", "@-", target), listed)
			const odd = "a \"quoted\" line\nand a \\ second\ttabbed"
			want(run(t, true, nil, sign(true, "-curl", "-body", odd, api+"/orders"), curl, "-s", "-K", "-"), fmt.Sprintf(`"bytes":%d,`, len(odd)))

			// What was signed for one request does no other.
			if out := run(t, true, nil, sign(true, "-headers", target), curl, "-s", "-H", "@-", api+"/orders?page=3"); !strings.Contains(out, "unauthorized") {
				t.Errorf("another query: %s", out)
			}
			other := append([]string{"ROTUNDA_SECRET=whsec_" + strings.Repeat("QUFB", 20)}, partner[0])
			out := run(t, false, other, "", program[0], append(program[1:len(program):len(program)], target)...)
			want(out, "401")
			if out := run(t, false, nil, "", program[0], append(program[1:len(program):len(program)], target)...); strings.Contains(out, "whsec_") {
				t.Errorf("without a secret: %s", out)
			}
		})
	}
	key := strings.TrimSpace(cli("key", "create", "--partner", "acme", "--name", "ci", "--scope", "orders:read"))
	if out := run(t, true, nil, "X-Api-Key: "+key+"\n", curl, "-s", "-H", "@-", api+"/orders"); !strings.Contains(out, `"by":"api_key"`) {
		t.Errorf("with an API key: %s", out)
	}
	if out := run(t, true, nil, "X-Api-Key: "+key+"\n", curl, "-s", "-H", "@-", "-d", "x", api+"/orders"); !strings.Contains(out, "forbidden") {
		t.Errorf("without the scope: %s", out)
	}
}

// A program that reaches nobody fails.
func TestSignWhenNobodyAnswers(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := "http://" + l.Addr().String()
	l.Close()
	cmd := exec.CommandContext(t.Context(), tool(t, "node"), "node/sign.mjs", at)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "ROTUNDA_KEY_ID=k", "ROTUNDA_SECRET=whsec_" + strings.Repeat("QUFB", 20)}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "ECONNREFUSED") || strings.Contains(string(out), "QUFB") {
		t.Errorf("%v: %s", err, out)
	}
}

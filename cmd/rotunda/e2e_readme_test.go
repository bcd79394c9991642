package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// readmeCommands returns the commands of the README below a heading, one after the
// other, with what a comment says of their exit code.
func readmeCommands(t *testing.T, heading string) (commands []string, codes []int) {
	t.Helper()
	raw, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(raw), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("the README has no heading %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	for {
		_, rest, ok := strings.Cut(text, "\n```sh\n")
		if !ok {
			break
		}
		var block string
		block, text, _ = strings.Cut(rest, "\n```")
		for line := range strings.Lines(strings.ReplaceAll(block, "\\\n", " ")) {
			line = strings.TrimSpace(line)
			if line == "" {
				continue
			}
			code := 0
			if _, comment, ok := strings.Cut(line, " # "); ok && strings.Contains(comment, "exit 1") {
				code = 1
			}
			commands, codes = append(commands, line), append(codes, code)
		}
	}
	return commands, codes
}

// freeAddress is one on which nobody listens, yet.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The commands of the README's tour of a partner, one after the other in one shell,
// as somebody would paste them.
func testReadmePartner(t *testing.T, bin program) {
	commands, codes := readmeCommands(t, "Partners and API keys")
	if len(commands) < 15 {
		t.Fatalf("only %d commands were found", len(commands))
	}
	home := t.TempDir()
	s := bin.serve(t, dataDir(filepath.Join(home, "data")), nil)

	// A folder like a clone's: what is in it is the repository's, but for bin.
	entries, err := os.ReadDir("../..")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	clone := filepath.Join(home, "clone")
	if err := os.MkdirAll(filepath.Join(clone, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); name != "bin" && name != "data" && name != ".git" {
			if err := os.Symlink(filepath.Join(root, name), filepath.Join(clone, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Symlink(string(bin), filepath.Join(clone, "bin", "rotunda")); err != nil {
		t.Fatal(err)
	}

	const mark = "@@ exit "
	var script strings.Builder
	// The ports of the README may be in use.
	api := freeAddress(t)
	ports := strings.NewReplacer("127.0.0.1:8470", strings.TrimPrefix(s.base, "http://"), "127.0.0.1:8080", api)
	for _, c := range commands {
		fmt.Fprintf(&script, "%s\necho \"%s$?\"\n", ports.Replace(c), mark)
		if strings.HasSuffix(c, "&") { // a person takes longer for the next line than it to start
			fmt.Fprintf(&script, "until curl -s -o /dev/null http://%s/; do kill -0 $! || exit 1; sleep 0.05; done\n", api)
		}
	}
	cmd := program("/bin/sh").command(t, s.env(), "-c", script.String())
	cmd.Dir = clone
	cmd.Env = append(os.Environ(), s.env()...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	parts := strings.Split(out.String(), mark)
	if len(parts) != len(commands)+1 {
		t.Fatalf("%d of %d commands came to an end:\n%s", len(parts)-1, len(commands), out.String())
	}
	for i, c := range commands {
		said := parts[i]
		if i > 0 {
			_, said, _ = strings.Cut(said, "\n")
		}
		code, _, _ := strings.Cut(parts[i+1], "\n")
		if got, err := strconv.Atoi(code); err != nil || got != codes[i] {
			t.Errorf("%s\nexit %s, want %d\n%s", c, code, codes[i], said)
		}
		if codes[i] == 1 && !strings.Contains(said, "denied") {
			t.Errorf("%s\nis not denied:\n%s", c, said)
		}
	}
}

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/providers/bedtest"
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
	// The ports of the README may be in use.
	api := freeAddress(t)
	readmeTour(t, bin, readme{heading: "Partners and API keys", least: 15, replace: []string{"127.0.0.1:8080", api}, waitFor: api})
}

// The tour of a credential: on Rotunda alone, and on a PostgreSQL.
func testReadmeCredential(t *testing.T, bin program) {
	pg := bedtest.NewPostgreSQL(t)
	port := strconv.Itoa(pg.Port)
	readmeTour(t, bin, readme{heading: "Rotate a password", least: 15, replace: []string{
		"postgres://postgres@127.0.0.1:5432/postgres", pg.URL(), "127.0.0.1:5432", "127.0.0.1:" + port, "-p 5432", "-p " + port, "port: 5432", "port: " + port,
	}})
}

// readme is a tour of the README.
type readme struct {
	heading string
	least   int      // commands that it has at least
	replace []string // what is at another place here: old, new, …
	waitFor string   // address that a command in the background listens on
}

func readmeTour(t *testing.T, bin program, r readme) {
	t.Helper()
	commands, codes := readmeCommands(t, r.heading)
	if len(commands) < r.least {
		t.Fatalf("only %d commands were found", len(commands))
	}
	home := t.TempDir()
	s := bin.serve(t, dataDir(filepath.Join(home, "data")), nil)
	places := strings.NewReplacer(append(r.replace, "127.0.0.1:8470", strings.TrimPrefix(s.base, "http://"))...)
	clone := newClone(t, home, bin, places)

	const mark = "@@ exit "
	var script strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&script, "%s\necho \"%s$?\"\n", places.Replace(c), mark)
		if strings.HasSuffix(c, "&") { // a person takes longer for the next line than it to start
			fmt.Fprintf(&script, "until curl -s -o /dev/null http://%s/; do kill -0 $! || exit 1; sleep 0.05; done\n", r.waitFor)
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

// newClone makes a folder like a clone's: what is in it is the repository's, but for bin and
// for the files of credentials, which name places.
func newClone(t *testing.T, home string, bin program, places *strings.Replacer) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	clone := filepath.Join(home, "clone")
	link := func(from, to string, but ...string) {
		if err := os.MkdirAll(to, 0o755); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(from)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if slices.Contains(but, e.Name()) {
				continue
			}
			if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	link(root, clone, "bin", "data", ".git", "examples")
	link(filepath.Join(root, "examples"), filepath.Join(clone, "examples"), "credentials")
	for _, folder := range []string{"bin", "examples/credentials"} {
		if err := os.MkdirAll(filepath.Join(clone, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(root, "examples", "credentials", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(clone, "examples", "credentials", filepath.Base(f)), places.Replace(string(text)), 0o644)
	}
	if err := os.Symlink(string(bin), filepath.Join(clone, "bin", "rotunda")); err != nil {
		t.Fatal(err)
	}
	return clone
}

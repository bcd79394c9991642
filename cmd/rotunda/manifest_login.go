package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

// maxLogin is the longest secret of a login: the certificates and the key of a client.
const maxLogin = 64 << 10

// loginEntry is where a secret of a login comes from.
type loginEntry struct {
	name  string // as the kind of system calls it: "password"
	from  string // "file", "env", "ask" or "inline"
	value string // the path, the name of the variable, or the secret itself
	at    string
}

// login reads where the secrets of a login come from. A secret in the file itself is
// remembered as such, and refused later unless the user allows it: a manifest belongs
// into version control, and a secret does not.
func (r *manifestReader) login(n *yaml.Node) ([]loginEntry, error) {
	var out []loginEntry
	seen := map[string]bool{}
	err := r.pairs(n, "a login", func(key string, k, v *yaml.Node) error {
		e := loginEntry{name: key, from: "inline", at: r.at(k)}
		if v.Kind != yaml.ScalarNode || v.Tag == "!!null" {
			return r.errorf(v, "%s is a text", clipText(key))
		}
		e.value = v.Value
		if name, ok := strings.CutSuffix(key, "_file"); ok && name != "" {
			e.name, e.from = name, "file"
			if !filepath.IsAbs(e.value) {
				e.value = filepath.Join(r.dir, e.value)
			}
		} else if name, ok := strings.CutSuffix(key, "_env"); ok && name != "" {
			e.name, e.from = name, "env"
		} else if v.Value == "-" {
			e.from = "ask"
		}
		if seen[e.name] {
			return r.errorf(k, "%s is there twice", clipText(e.name))
		}
		seen[e.name] = true
		out = append(out, e)
		return nil
	})
	return out, err
}

// resolveLogin fetches the secrets of a login. inline allows those that stand in the file.
func (c *cli) resolveLogin(ctx context.Context, what string, entries []loginEntry, inline bool) (map[string]string, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(entries))
	for _, e := range entries {
		v, err := c.resolveSecret(ctx, what, e, inline)
		if err != nil {
			return nil, fmt.Errorf("%s: %s of %s: %w", e.at, e.name, what, err)
		}
		if v == "" {
			return nil, fmt.Errorf("%s: %s of %s is empty", e.at, e.name, what)
		}
		if len(v) > maxLogin {
			return nil, fmt.Errorf("%s: %s of %s has more than %d bytes", e.at, e.name, what, maxLogin)
		}
		out[e.name] = v
	}
	return out, nil
}

func (c *cli) resolveSecret(ctx context.Context, what string, e loginEntry, inline bool) (string, error) {
	switch e.from {
	case "file":
		return readSecretFile(e.value)
	case "env":
		v := c.env(e.value)
		if v == "" {
			return "", fmt.Errorf("the variable %s is not set", clipText(e.value))
		}
		return v, nil
	case "ask":
		return c.askSecret(ctx, e.name+" of "+what)
	default:
		if inline {
			return e.value, nil
		}
		return "", fmt.Errorf("a secret in this file would stay in every copy and every commit of it: name a file with %s_file or a variable with %s_env, or write %s: \"-\" to be asked (--allow-inline-secrets takes it from here)", e.name, e.name, e.name)
	}
}

// readSecretFile reads a secret from a file, without the line break at its end.
func readSecretFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o007 != 0 && info.Mode().IsRegular() {
		return "", fmt.Errorf("%s can be read by every user of this machine (mode %04o), so the secret may be known: run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxLogin+2))
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), nil
}

// askSecret asks a person, without showing what is typed, or reads a line of stdin.
func (c *cli) askSecret(ctx context.Context, what string) (string, error) {
	if c.typed {
		fmt.Fprintf(c.stderr, "%s: ", clean(what))
	}
	type answer struct {
		text string
		err  error
	}
	// Reading can't be interrupted, so it runs beside; the process ends with the answer or the signal.
	got := make(chan answer, 1)
	go func() {
		if f, ok := c.stdin.(*os.File); ok && c.typed {
			b, err := term.ReadPassword(int(f.Fd()))
			fmt.Fprintln(c.stderr)
			got <- answer{string(b), err}
			return
		}
		text, err := readLine(c.stdin)
		got <- answer{text, err}
	}()
	select {
	case a := <-got:
		return a.text, a.err
	case <-ctx.Done():
		return "", errors.New("interrupted, so nothing was changed")
	}
}

// readLine reads one line, byte by byte: what comes after it is for the next question.
func readLine(r io.Reader) (string, error) {
	var line []byte
	var b [1]byte
	for len(line) <= maxLogin {
		n, err := r.Read(b[:])
		if n == 1 && b[0] == '\n' {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		line = append(line, b[:n]...)
		if errors.Is(err, io.EOF) {
			if len(line) == 0 {
				return "", errors.New("there is nothing on stdin")
			}
			return string(line), nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("the line has more than %d bytes", maxLogin)
}

package consumers

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	childStart = 20 * time.Second // a cold interpreter on a busy machine
	childStop  = 5 * time.Second
	childLine  = 64 << 10 // longest line a child may write
	python     = "/usr/bin/python3"
)

// child is a verifier in a process of its own. It reads one JSON object a line
// and writes one a line: first its configuration, answered by {"ready":true},
// then {"id":n,"token":"…"}, answered in any order by {"id":n,"ok":…,"why":"…"}.
type child struct {
	cmd    *exec.Cmd
	stderr *tail
	done   chan struct{} // closed when the process has ended and its output is read

	mu      sync.Mutex // guards what follows, and writing to stdin
	stdin   io.WriteCloser
	next    int
	waiting map[int]chan reply
}

type reply struct {
	Ready bool   `json:"ready"`
	ID    int    `json:"id"`
	OK    bool   `json:"ok"`
	Why   string `json:"why"`
}

type childConfig struct {
	Library    string   `json:"library"`
	JWKSURL    string   `json:"jwks_url"`
	Issuer     string   `json:"issuer"`
	Audience   string   `json:"audience"`
	Algorithms []string `json:"algorithms"`
}

func startJose(ctx context.Context, c Config) (verifier, error) {
	return startNode(ctx, c, "jose")
}

func startJWKSRSA(ctx context.Context, c Config) (verifier, error) {
	return startNode(ctx, c, "jwks-rsa")
}

func startNode(ctx context.Context, c Config, library string) (verifier, error) {
	packages := filepath.Join(c.Dir, "node_modules")
	if _, err := os.Stat(filepath.Join(packages, library, "package.json")); err != nil {
		return nil, missing("the npm package " + library)
	}
	// Debian 12 has a Node.js that is too old for these libraries, so one is
	// pinned beside them, for the machines that npm has it for.
	arch := map[string]string{"amd64": "x64"}[runtime.GOARCH]
	node := filepath.Join(packages, "node-linux-"+cmp.Or(arch, runtime.GOARCH), "bin", "node")
	if _, err := os.Stat(node); err != nil {
		if node, err = exec.LookPath("node"); err != nil {
			return nil, missing("Node.js 20.19 or newer")
		}
	}
	cmd := exec.Command(node, filepath.Join(c.Dir, "node", "verifier.mjs"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NODE_EXTRA_CA_CERTS=" + c.CAFile}
	return startChild(ctx, c, cmd, library)
}

func startPyJWT(ctx context.Context, c Config) (verifier, error) {
	// Debian's own interpreter, because Debian's python3-jwt is what is asked
	// for; another python3 in PATH would not see it.
	if err := exec.CommandContext(ctx, python, "-c", "import jwt, cryptography").Run(); err != nil {
		return nil, missing("the Debian packages python3-jwt and python3-cryptography")
	}
	cmd := exec.Command(python, "-u", filepath.Join(c.Dir, "python", "verifier.py"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SSL_CERT_FILE=" + c.CAFile}
	return startChild(ctx, c, cmd, "PyJWT")
}

func startChild(ctx context.Context, c Config, cmd *exec.Cmd, library string) (verifier, error) {
	p := &child{cmd: cmd, stderr: &tail{}, done: make(chan struct{}), waiting: map[int]chan reply{}}
	cmd.Stderr = p.stderr
	cmd.SysProcAttr = childAttr(syscall.SIGKILL)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.stdin = stdin
	ready := make(chan reply, 1)
	p.waiting[0] = ready // the answer to the configuration carries no id
	p.next = 1
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go p.read(stdout)

	ctx, cancel := context.WithTimeout(ctx, childStart)
	defer cancel()
	err = p.write(childConfig{Library: library, JWKSURL: c.JWKSURL, Issuer: c.Issuer, Audience: c.Audience, Algorithms: Algorithms()})
	if err == nil {
		_, err = p.wait(ctx, 0, ready)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *child) Verify(ctx context.Context, token string) (bool, string, error) {
	ch := make(chan reply, 1)
	p.mu.Lock()
	id := p.next
	p.next++
	p.waiting[id] = ch
	p.mu.Unlock()

	err := p.write(struct {
		ID    int    `json:"id"`
		Token string `json:"token"`
	}{id, token})
	if err != nil {
		p.forget(id)
		return false, "", err
	}
	r, err := p.wait(ctx, id, ch)
	if err != nil {
		return false, "", err
	}
	return r.OK, r.Why, nil
}

// wait gives the answer to request id, or says why there will be none. An
// answer that comes later is dropped by read.
func (p *child) wait(ctx context.Context, id int, ch <-chan reply) (reply, error) {
	defer p.forget(id)
	select {
	case r := <-ch:
		return r, nil
	case <-ctx.Done():
		return reply{}, ctx.Err()
	case <-p.done:
		select {
		case r := <-ch: // answered, then ended
			return r, nil
		default:
			return reply{}, fmt.Errorf("its process ended: %s", p.stderr)
		}
	}
}

func (p *child) forget(id int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.waiting, id)
}

func (p *child) write(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.stdin.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write to its process: %w: %s", err, p.stderr)
	}
	return nil
}

// read hands out answers until the process closes its output, then reaps it. A
// line that is not an answer ends the process: it means that the two sides
// no longer agree on what was asked.
func (p *child) read(stdout io.Reader) {
	defer close(p.done)
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, childLine)
	for lines.Scan() {
		var r reply
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			fmt.Fprintf(p.stderr, "unreadable answer: %v", err)
			break
		}
		p.mu.Lock()
		ch := p.waiting[r.ID]
		delete(p.waiting, r.ID)
		p.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintf(p.stderr, "read its answers: %v", err)
	}
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func (p *child) Close() {
	p.mu.Lock()
	p.stdin.Close() // both scripts end at the end of their input
	p.mu.Unlock()
	select {
	case <-p.done:
	case <-time.After(childStop):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// tail keeps the last bytes written to it, for error messages.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const keep = 4 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > keep {
		t.b = append([]byte(nil), t.b[len(t.b)-keep:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := strings.TrimSpace(string(t.b)); s != "" {
		return s
	}
	return "it wrote nothing to its standard error"
}

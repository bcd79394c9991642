package bedtest

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

//go:embed supervisor.sh
var supervisor string

// ready is how long a server may take to answer after its start.
const ready = time.Minute

// recipe is how a server is started. script defines the shell functions prepare and
// serve, and the variable signal.
type recipe struct {
	name   string // for messages: "PostgreSQL"
	user   string // whom the server runs as when the tests run as root
	script string
	args   []string          // $2, $3, … of the script
	files  map[string][]byte // below the folder, mode 0600
	probe  func(ctx context.Context) error
}

// process is a server, or was one: it can be stopped and started again.
type process struct {
	name   string
	folder string
	probe  func(ctx context.Context) error

	mu      sync.Mutex
	orders  io.WriteCloser
	answers *bufio.Reader
	wait    func() error
}

// launch starts a server in a folder of its own. make gets the folder and two free
// ports. It is tried again: somebody else may take a port between its choice and use.
func launch(prefix string, make func(folder string, port, tlsPort int) recipe) (*process, error) {
	for attempt := 1; ; attempt++ {
		p, err := launchOnce(prefix, make)
		if err == nil || attempt == 3 {
			return p, err
		}
	}
}

func launchOnce(prefix string, make func(folder string, port, tlsPort int) recipe) (_ *process, err error) {
	// Not below t.TempDir, which another user can't traverse; and short, because the
	// path of a Unix socket is limited to about 100 bytes.
	folder, err := os.MkdirTemp("", "rotunda-"+prefix+"-")
	if err != nil {
		return nil, err
	}
	started := false
	defer func() {
		if !started {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}()
	port, tlsPort, err := freePorts()
	if err != nil {
		return nil, err
	}
	r := make(folder, port, tlsPort)
	attr := &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the tests, not for this
	var owner *syscall.Credential
	if os.Geteuid() == 0 {
		if owner, err = credential(r.name, r.user); err != nil {
			return nil, err
		}
		attr.Credential = owner
		if err := os.Chown(folder, int(owner.Uid), int(owner.Gid)); err != nil {
			return nil, err
		}
	}
	for name, content := range r.files {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return nil, err
		}
		if owner != nil {
			if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
				return nil, err
			}
		}
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", r.script + "\n" + supervisor, "supervisor", folder}, r.args...)...)
	cmd.Dir = folder
	cmd.SysProcAttr = attr
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=" + folder, "TMPDIR=" + os.TempDir()}
	orders, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", r.name, err)
	}
	started = true // from here the supervisor removes the folder
	p := &process{name: r.name, folder: folder, probe: r.probe, orders: orders, answers: bufio.NewReader(out)}
	p.wait = func() error {
		_, _ = io.Copy(io.Discard, p.answers)
		return cmd.Wait()
	}
	if err := p.first(); err != nil {
		return nil, errors.Join(err, p.end())
	}
	return p, nil
}

func (p *process) first() error {
	var said bytes.Buffer
	for {
		line, err := p.answers.ReadString('\n')
		if err == nil && strings.TrimSpace(line) == "done" {
			return p.untilReady()
		}
		said.WriteString(line)
		if err != nil {
			return fmt.Errorf("start %s: is it installed (`make setup`)? %s", p.name, bytes.TrimSpace(said.Bytes()))
		}
	}
}

func (p *process) untilReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), ready)
	defer cancel()
	for {
		err := p.probe(ctx)
		if err == nil {
			return nil
		}
		if err := p.order("alive"); err != nil {
			return fmt.Errorf("%s ended at its start: %w", p.name, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer after %s: %w", p.name, ready, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *process) order(what string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := fmt.Fprintln(p.orders, what); err != nil {
		return fmt.Errorf("%s %s: %w", what, p.name, err)
	}
	answer, err := p.answers.ReadString('\n')
	if err != nil || strings.TrimSpace(answer) != "done" {
		return fmt.Errorf("%s %s: %s (%w)", what, p.name, strings.TrimSpace(answer), err)
	}
	return nil
}

// Stop ends the server at once, as a crash would; what was made durable stays.
func (p *process) Stop(t testing.TB) {
	t.Helper()
	if err := p.order("stop"); err != nil {
		t.Fatal(err)
	}
}

// Start starts the server again, on the same ports, and waits until it answers.
func (p *process) Start(t testing.TB) {
	t.Helper()
	if err := errors.Join(p.order("start"), p.untilReady()); err != nil {
		t.Fatal(err)
	}
}

// Restart is Stop and Start.
func (p *process) Restart(t testing.TB) {
	t.Helper()
	p.Stop(t)
	p.Start(t)
}

// Folder is where the server keeps its files.
func (p *process) Folder() string { return p.folder }

// Log is all that the server has logged.
func (p *process) Log(t testing.TB) string {
	t.Helper()
	return p.read(t, "log")
}

func (p *process) read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(p.folder, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// end stops the server and waits until its folder is gone.
func (p *process) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(p.orders.Close(), p.wait())
}

// endWith ends the server at the end of a test.
func (p *process) endWith(t testing.TB) {
	t.Cleanup(func() {
		if err := p.end(); err != nil {
			t.Errorf("end %s: %v", p.name, err)
		}
	})
}

func credential(server, name string) (*syscall.Credential, error) {
	owner, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("start %s as root: it needs the user %q: run `make setup`: %w", server, name, err)
	}
	uid, err := strconv.ParseUint(owner.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(owner.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func freePorts() (one, two int, err error) {
	a, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	defer a.Close()
	b, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	defer b.Close()
	return a.Addr().(*net.TCPAddr).Port, b.Addr().(*net.TCPAddr).Port, nil
}

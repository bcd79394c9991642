package storetest

import (
	"bufio"
	"bytes"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Server is a PostgreSQL server on a port of 127.0.0.1.
type Server struct {
	super  *url.URL // superuser, database postgres
	folder string   // of the data; "" for a server from outside

	once        sync.Once
	template    string
	templateErr error

	mu      sync.Mutex
	orders  io.WriteCloser // stdin of the supervisor; nil for a server from outside
	answers *bufio.Reader
	done    func() error
}

// NewServer starts a server for one test, which may stop and start it. (The
// server that [Postgres] uses belongs to all tests.)
func NewServer(t testing.TB) *Server {
	t.Helper()
	s, err := start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.end(); err != nil {
			t.Errorf("end PostgreSQL: %v", err)
		}
	})
	return s
}

// Stop stops the server at once, as a crash would; what was committed stays.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	s.order(t, "stop")
}

// Start starts the server again, on the same port.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.order(t, "start")
}

func (s *Server) order(t testing.TB, what string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := fmt.Fprintln(s.orders, what); err != nil {
		t.Fatalf("%s PostgreSQL: %v", what, err)
	}
	answer, err := s.answers.ReadString('\n')
	if err != nil || strings.TrimSpace(answer) != "done" {
		t.Fatalf("%s PostgreSQL: answer %q, %v", what, answer, err)
	}
}

// supervisor starts the server and waits for orders on its stdin. The kernel
// closes that pipe when the test process dies, in whatever way; the supervisor
// then stops the server and removes its folder. It has a process group of its
// own, so that Ctrl-C reaches the tests and not this.
//
//go:embed supervisor.sh
var supervisor string

// start tries more than once: the free port may be taken by somebody else
// between its choice and its use.
func start() (*Server, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	for attempt := 0; ; attempt++ {
		s, err := startOnce(bin)
		if err == nil || attempt == 2 {
			return s, err
		}
	}
}

func startOnce(bin string) (_ *Server, err error) {
	// Not below t.TempDir, which user postgres can't traverse; and short,
	// because the path of a Unix socket is limited to about 100 bytes.
	folder, err := os.MkdirTemp("", "rotunda-pg-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}()
	password := rand.Text()
	if err := os.WriteFile(filepath.Join(folder, "password"), []byte(password), 0o600); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/bin/sh", "-c", supervisor, "supervisor", bin, folder, strconv.Itoa(port))
	cmd.Dir = folder
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TMPDIR=" + os.TempDir()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 { // PostgreSQL refuses to run as root
		if err := giveTo("postgres", folder, cmd.SysProcAttr); err != nil {
			return nil, err
		}
	}
	orders, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	answers := bufio.NewReader(out)
	var said bytes.Buffer
	for {
		line, readErr := answers.ReadString('\n')
		if readErr == nil && strings.TrimSpace(line) == "done" {
			break
		}
		said.WriteString(line)
		if readErr != nil {
			return nil, errors.Join(fmt.Errorf("start PostgreSQL from %s: %s", bin, bytes.TrimSpace(said.Bytes())), orders.Close(), cmd.Wait())
		}
	}
	return &Server{
		super: &url.URL{
			Scheme: "postgres", User: url.UserPassword("super", password),
			Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Path: "/postgres", RawQuery: "sslmode=disable",
		},
		folder:  folder,
		orders:  orders,
		answers: answers,
		done: func() error {
			_, _ = io.Copy(io.Discard, answers)
			return cmd.Wait()
		},
	}, nil
}

// end stops the server and waits until its folder is gone.
func (s *Server) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.orders.Close(), s.done())
}

// binaries finds the folder of initdb and pg_ctl, the newest one if there are
// several versions.
func binaries() (string, error) {
	if path, err := exec.LookPath("pg_ctl"); err == nil {
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), "initdb")); err == nil {
			return filepath.Dir(path), nil
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	best, bestVersion := "", -1
	for _, path := range found {
		bin := filepath.Dir(path)
		if version, err := strconv.Atoi(filepath.Base(filepath.Dir(bin))); err == nil && version > bestVersion {
			best, bestVersion = bin, version
		}
	}
	if best == "" {
		return "", errors.New("PostgreSQL is not installed, and this test needs it: run `make setup`, " +
			"or set ROTUNDA_TEST_POSTGRES to the URL of a superuser of a running server")
	}
	return best, nil
}

func giveTo(name, folder string, attr *syscall.SysProcAttr) error {
	owner, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("start PostgreSQL as root: it needs the user %q: run `make setup`: %w", name, err)
	}
	uid, err := strconv.ParseUint(owner.Uid, 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(owner.Gid, 10, 32)
	if err != nil {
		return err
	}
	for _, path := range []string{folder, filepath.Join(folder, "password")} {
		if err := os.Chown(path, int(uid), int(gid)); err != nil {
			return err
		}
	}
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

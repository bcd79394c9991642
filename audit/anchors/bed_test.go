package anchors

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	_ "modernc.org/sqlite"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

const origin = "rotunda.example/trail"

// testLog is a whole log in memory, with a key.
type testLog struct {
	t      *testing.T
	signer note.Signer
	vkey   string
	hashes []tlog.Hash
	leaves int64
}

func newLog(t *testing.T) *testLog {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return &testLog{t: t, signer: signer, vkey: vkey}
}

// fork returns a log of the same name and key that shares the first n leaves.
func (l *testLog) fork(n int64) *testLog {
	f := &testLog{t: l.t, signer: l.signer, vkey: l.vkey}
	f.leaves, f.hashes = n, append(f.hashes, l.hashes[:tlog.StoredHashCount(n)]...)
	f.add("fork")
	return f
}

func (l *testLog) add(what string) {
	l.t.Helper()
	h, err := tlog.StoredHashes(l.leaves, fmt.Appendf(nil, "%s %d", what, l.leaves), l)
	if err != nil {
		l.t.Fatal(err)
	}
	l.hashes = append(l.hashes, h...)
	l.leaves++
}

func (l *testLog) ReadHashes(at []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range at {
		out = append(out, l.hashes[i])
	}
	return out, nil
}

func (l *testLog) Consistency(_ context.Context, old, size int64) ([]tlog.Hash, error) {
	return tlog.ProveTree(size, old, l)
}

func (l *testLog) root(_ context.Context, size int64) (tlog.Hash, error) {
	return tlog.TreeHash(size, l)
}

// at returns the signed checkpoint at a size, growing the log as needed.
func (l *testLog) at(size int64) (trail.Checkpoint, string) {
	l.t.Helper()
	for l.leaves < size {
		l.add("leaf")
	}
	root, err := tlog.TreeHash(size, l)
	if err != nil {
		l.t.Fatal(err)
	}
	cp := trail.Checkpoint{Origin: origin, Size: size, Root: root}
	signed, err := note.Sign(&note.Note{Text: cp.Text()}, l.signer)
	if err != nil {
		l.t.Fatal(err)
	}
	return cp, string(signed)
}

func (l *testLog) check() Check {
	l.t.Helper()
	keys, err := trail.ParseKeys(l.vkey)
	if err != nil {
		l.t.Fatal(err)
	}
	return keys.Open
}

func push(t *testing.T, a Anchor, l *testLog, size int64) error {
	t.Helper()
	cp, signed := l.at(size)
	return a.Push(t.Context(), cp, signed)
}

func mustPush(t *testing.T, a Anchor, l *testLog, size int64) {
	t.Helper()
	if err := push(t, a, l, size); err != nil {
		t.Fatalf("push size %d: %v", size, err)
	}
}

func mustNewest(t *testing.T, a Anchor, want string) {
	t.Helper()
	got, err := a.Newest(t.Context())
	if err != nil || got != want {
		t.Fatalf("the newest is %q, %v, want %q", got, err, want)
	}
}

func wantFault(t *testing.T, err, kind error, reason string) {
	t.Helper()
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || !errors.Is(err, kind) || e.Reason != reason {
		t.Fatalf("the error is %v, want %s of kind %v", err, reason, kind)
	}
}

func open(t *testing.T, c Config) Anchor {
	t.Helper()
	a, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// programs are built once for all tests.
var programs struct {
	sync.Mutex
	dir string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if programs.dir != "" {
		os.RemoveAll(programs.dir)
	}
	os.Exit(code)
}

// program builds a real server that is pinned by the module in a folder below.
func program(t *testing.T, module, pkg string) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	if programs.dir == "" {
		dir, err := os.MkdirTemp("", "anchors")
		if err != nil {
			t.Fatal(err)
		}
		programs.dir = dir
	}
	path := filepath.Join(programs.dir, filepath.Base(pkg))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	// Not t.Context: a build that was cut short would fail the next test too.
	build := exec.Command("go", "build", "-o", path, pkg)
	build.Dir = module
	build.Env = append(os.Environ(), "GOFLAGS=-mod=readonly -buildvcs=false", "GOWORK=off", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s, which this test speaks to: %v\n%s", pkg, err, out)
	}
	return path
}

// freePort returns an address that nobody listens at.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs a server until the test ends and waits until it listens at addr.
func start(t *testing.T, addr string, cmd *exec.Cmd) {
	t.Helper()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-exited
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return
		}
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("%s ended: %v\n%s", cmd.Path, err, out.String())
		default:
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			err := <-exited
			exited <- err
			t.Fatalf("%s does not listen at %s\n%s", cmd.Path, addr, out.String())
		}
	}
}

const s3Key, s3Secret = "anchor-key", "anchor-secret-0123456789"

// s3Server is a versitygw, an S3 server over a folder that is not Rotunda's.
type s3Server struct {
	addr   string
	client *s3.Client // of whoever owns the bucket
}

func newS3(t *testing.T) *s3Server {
	t.Helper()
	addr, dir := freePort(t), t.TempDir()
	for _, d := range []string{"data", "meta", "versions"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program(t, "s3test", "github.com/versity/versitygw/cmd/versitygw"),
		"--port", addr, "--quiet", "posix", "--sidecar", filepath.Join(dir, "meta"), "--versioning-dir", filepath.Join(dir, "versions"), filepath.Join(dir, "data"))
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+s3Key, "ROOT_SECRET_ACCESS_KEY="+s3Secret)
	start(t, addr, cmd)
	return &s3Server{addr: addr, client: s3.New(s3.Options{
		Region: "us-east-1", UsePathStyle: true, BaseEndpoint: aws.String("http://" + addr),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: s3Key, SecretAccessKey: s3Secret}, nil
		}),
	})}
}

func (s *s3Server) config(t *testing.T, l *testLog, name string, lock bool) Config {
	t.Helper()
	if _, err := s.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: &lock}); err != nil {
		t.Fatal(err)
	}
	return Config{
		Kind: S3, Origin: origin, Check: l.check(), Address: name, Region: "us-east-1", Endpoint: "http://" + s.addr,
		PathStyle: true, AccessKey: s3Key, Secret: secret.FromString(s3Secret), Prefix: "trail/one",
	}
}

// realWitness is a litewitness, a witness that is not Rotunda's.
type realWitness struct {
	url string
	key trail.Witness
	db  string
}

func newWitness(t *testing.T, logs ...*testLog) *realWitness {
	t.Helper()
	// A socket's path is at most 104 bytes: t.TempDir may be longer.
	dir, err := os.MkdirTemp("", "w")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	pub, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "agent")
	listener, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, c); c.Close() }()
		}
	}()
	addr := freePort(t)
	w := &realWitness{url: "http://" + addr, db: filepath.Join(dir, "db")}
	start(t, addr, exec.Command(program(t, "witnesstest", "filippo.io/torchwood/cmd/litewitness"),
		"-db", w.db, "-name", "witness.example/w1", "-key", ssh.FingerprintSHA256(pub), "-ssh-agent", sock, "-listen", addr))
	w.key = w.readKey(t)
	db, err := sql.Open("sqlite", w.db+"?_pragma=busy_timeout(5000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, l := range logs {
		root, _ := tlog.TreeHash(0, l)
		if _, err := db.Exec(`INSERT INTO log (origin, tree_size, tree_hash) VALUES (?, 0, ?)`, origin, root.String()); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(`INSERT INTO key (origin, key) VALUES (?, ?)`, origin, l.vkey); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// readKey takes the vkey from the witness's own page.
func (w *realWitness) readKey(t *testing.T) trail.Witness {
	t.Helper()
	res, err := http.Get(w.url + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	vkey := regexp.MustCompile(`^\S+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+$`)
	lines := bufio.NewScanner(io.LimitReader(res.Body, maxBody))
	for lines.Scan() {
		line := strings.ReplaceAll(lines.Text(), "&#43;", "+")
		if vkey.MatchString(line) {
			key, err := trail.ParseWitness(line)
			if err != nil {
				t.Fatal(err)
			}
			return key
		}
	}
	t.Fatal("the witness's page shows no vkey")
	return trail.Witness{}
}

func (w *realWitness) client(t *testing.T) *WitnessClient {
	t.Helper()
	return openWitness(t, WitnessConfig{URL: w.url, Key: w.key})
}

func openWitness(t *testing.T, c WitnessConfig) *WitnessClient {
	t.Helper()
	w, err := OpenWitness(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// quiet is for servers whose connections are cut on purpose.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

package server

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// Promise: names that nobody has fill neither the trail nor the memory, and the
// answer does not tell them from others.
func TestDenialWhenNameIsNoise(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.keyset(t, "payments")
	signer := b.token(t, apikeys.Create{Role: apikeys.Signer, Keysets: []string{"payments"}})
	answers := map[string]bool{}
	for i, name := range []string{"payments", "absent", "absent-too", strings.Repeat("a", 100<<10), "x\x00y"} {
		body, err := json.Marshal(map[string]string{"name": name})
		if err != nil {
			t.Fatal(err)
		}
		a := b.post(t, signer, home, v1connect.KeysetServiceGetKeysetProcedure, string(body))
		if a.code != "permission_denied" {
			t.Fatalf("name %d: %d %.200s", i, a.status, a.body)
		}
		answers[fmt.Sprintf("%d %s %s %s", a.status, a.message, a.problem.GetReason(), a.problem.GetField())] = true
	}
	if len(answers) != 1 {
		t.Errorf("the answers differ: %v", answers)
	}
	if err := b.Denials.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	counts := map[string]int64{}
	for _, e := range b.events(t, audit.Query{Outcome: audit.Denied}) {
		counts[e.Resource] += e.Count
	}
	if len(counts) != 2 || counts["keysets/payments"] != 1 || counts["keysets/?"] != 4 {
		t.Errorf("the trail has %v", counts)
	}
}

// leaf is a field of a request, however deep.
type leaf struct {
	procedure string
	stream    bool
	input     protoreflect.FullName
	path      string // as an error names it
	field     protoreflect.FieldDescriptor
	body      func(string) string // the JSON of a request with this value there
}

// leaves finds every field of every request message in the descriptors.
func leaves(t testing.TB) []leaf {
	t.Helper()
	var all []leaf
	var walk func(l leaf, d protoreflect.MessageDescriptor, list bool)
	walk = func(l leaf, d protoreflect.MessageDescriptor, list bool) {
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			in := l
			in.field, in.path = f, strings.TrimPrefix(l.path+"."+string(f.Name()), ".")
			in.body = func(v string) string { return l.body(fmt.Sprintf(`{%q:%s}`, f.JSONName(), v)) }
			all = append(all, in)
			if f.IsMap() || f.Message() == nil || strings.HasPrefix(string(f.Message().FullName()), "google.") {
				continue
			}
			deeper := in
			if f.IsList() {
				deeper.path += "[0]"
				deeper.body = func(v string) string { return in.body("[" + v + "]") }
			}
			walk(deeper, f.Message(), f.IsList())
		}
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("rotunda.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				walk(leaf{
					procedure: fmt.Sprintf("/%s/%s", s.FullName(), m.Name()), stream: m.IsStreamingServer(), input: m.Input().FullName(),
					body: func(v string) string { return v },
				}, m.Input(), false)
			}
		}
		return true
	})
	if len(all) < 60 {
		t.Fatalf("found %d fields: the descriptors are not linked in", len(all))
	}
	return all
}

// Promise: whatever stands where something else must, the answer does not quote it.
func TestBodyWhenValueIsOfWrongType(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	const text, digits = "-----BEGIN MARKER-KEY----- c2VjcmV0", "77700900777009"
	wrong := 0
	for _, l := range leaves(t) {
		kind, err := protoregistry.GlobalTypes.FindMessageByName(l.input)
		if err != nil {
			t.Fatal(err)
		}
		before := wrong
		for _, v := range []string{
			`"` + text + `"`, `["` + text + `"]`, `[["` + text + `"]]`, `{"x y":"` + text + `"}`, `{"` + text + `":1}`, `{"name":["` + text + `"]}`,
			digits, digits + `.5`, `[` + digits + `]`, text, `"` + text, `"a" "` + text + `"`, `"\q` + text + `"`, `-` + text, `tr` + text,
		} {
			body := l.body(v)
			err := strictJSON{"json"}.Unmarshal([]byte(body), kind.New().Interface())
			if err == nil {
				continue
			}
			wrong++
			shown := []string{err.Error()}
			if !l.stream {
				a := b.post(t, b.admin, home, l.procedure, body)
				if a.code != "invalid_argument" {
					t.Fatalf("%s of %s as %s: %d %s", l.path, l.procedure, v, a.status, a.body)
				}
				shown = append(shown, a.body, fmt.Sprint(a.header))
			}
			for _, s := range shown {
				for _, part := range []string{"MARKER", "BEGIN", "c2Vj", "77700900", "x y"} {
					if strings.Contains(s, part) {
						t.Errorf("%s of %s as %s: the answer quotes it: %s", l.path, l.procedure, v, s)
					}
				}
			}
		}
		if wrong < before+5 {
			t.Errorf("%s of %s: only %d wrong values were refused", l.path, l.procedure, wrong-before)
		}
	}
	if log := b.log.String(); strings.Contains(log, "MARKER") || strings.Contains(log, "77700900") {
		t.Error("the log has it")
	}
}

func TestBodyWhenWrongSaysWhere(t *testing.T) {
	for body, want := range map[string]string{
		`{"other":"x"}`:           `(line 1:2): unknown field "other"`,
		`{"name":"a","name":"b"}`: `(line 1:13): duplicate field "name"`,
		`{"name":7}`:              `(line 1:9): field name has a value of the wrong form`,
		"{\"name\":\n\"x\",\n\"maxTokenLife\":\"1 day\"}": `(line 3:16): this is no google.protobuf.Duration that can be read`,
		`{"key":"-----BEGIN PRIVATE KEY-----"}`:           `(line 1:8): field key has a value of the wrong form`,
		`{"` + strings.Repeat("a", 65) + `":1}`:           `(line 1:2): unknown field`,
		`{"-----BEGIN":1}`:                                `(line 1:2): unknown field`,
		`{"name":"x"`:                                     `unexpected end`,
		`{"name":x}`:                                      `syntax error (line 1:9): something else must stand here`,
	} {
		err := strictJSON{"json"}.Unmarshal([]byte(body), &rotundav1.ImportKeyRequest{})
		if body == `{"name":"x"` {
			want = "it can't be read"
			if err != nil && strings.Contains(err.Error(), "(line") {
				want = "(line"
			}
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.100q: %v, want %s", body, err, want)
		}
	}
}

// Promise: a private key that is put into a request wrongly does not come back.
func TestImportKeyWhenKeyIsNotEncoded(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.keyset(t, "payments")
	der, err := x509.MarshalPKCS8PrivateKey(newP256(t))
	if err != nil {
		t.Fatal(err)
	}
	whole := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	body, err := json.Marshal(map[string]any{"name": "payments", "state": "KEY_STATE_RETIRING", "key": whole})
	if err != nil {
		t.Fatal(err)
	}
	a := b.post(t, b.admin, home, v1connect.KeysetServiceImportKeyProcedure, string(body))
	if a.code != "invalid_argument" || !strings.Contains(a.message, "field key") {
		t.Fatalf("%d %s", a.status, a.code)
	}
	for _, line := range strings.Split(strings.TrimSpace(whole), "\n") {
		if strings.Contains(a.body, line) || strings.Contains(b.log.String(), line) {
			t.Error("a line of the private key is in the answer or in the log")
		}
	}
}

// Promise: a text that a database does not take is the caller's mistake, in
// whichever field, and no failure of the server.
func TestRequestWhenTextHoldsNUL(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.keyset(t, "payments")
		fields := 0
		for _, l := range leaves(t) {
			if l.field.Kind() != protoreflect.StringKind || l.stream {
				continue
			}
			fields++
			value, path := `"a\u0000b"`, l.path
			if l.field.IsList() {
				value, path = `["a","a\u0000b"]`, path+"[1]"
			}
			a := b.post(t, b.admin, home, l.procedure, l.body(value))
			if a.code != "invalid_argument" || a.problem.GetReason() != "bad_text" || a.problem.GetField() != path {
				t.Errorf("%s of %s: %d %s", path, l.procedure, a.status, a.body)
			}
		}
		if fields < 20 {
			t.Errorf("only %d fields hold text", fields)
		}
		for _, procedure := range []string{v1connect.KeysetServiceListKeysetsProcedure, v1connect.TokenServiceListTokensProcedure} {
			for _, raw := range []string{"a\x00", "\xff\xfe", "1767571200000000 \xff", "1767571200000000 a\x00"} {
				a := b.post(t, b.admin, home, procedure, fmt.Sprintf(`{"pageToken":%q}`, base64.RawURLEncoding.EncodeToString([]byte(raw))))
				if a.problem.GetReason() != "bad_page_token" {
					t.Errorf("%s with the page token %q: %d %s", procedure, raw, a.status, a.body)
				}
			}
		}
	})
}

func TestTextWhenNotUTF8(t *testing.T) {
	m := &rotundav1.CreateKeysetRequest{Policy: &rotundav1.Policy{Profiles: []*rotundav1.Profile{{Name: "envoy"}, {Name: "\xff"}}}}
	err := plainText(m.ProtoReflect(), "")
	if err == nil || !strings.Contains(err.Error(), "policy.profiles[1].name") {
		t.Errorf("got %v", err)
	}
	m.Policy.Profiles[1].Name = "ä"
	if err := plainText(m.ProtoReflect(), ""); err != nil {
		t.Error(err)
	}
	if err := (strictJSON{"json"}).Unmarshal([]byte("{\"name\":\"\xff\"}"), m); err == nil {
		t.Error("JSON that is not UTF-8 is read")
	}
	if err := proto.Unmarshal([]byte{0x0a, 1, 0xff}, m); err == nil {
		t.Error("a message that is not UTF-8 is read")
	}
}

// Promise: the server's timeouts hold for a stream until its caller is admitted.
func TestWatchWhenRequestNeverArrives(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	handler, err := b.Handler()
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(handler)
	ts.Config.ReadTimeout = 50 * time.Millisecond
	ts.Start()
	t.Cleanup(ts.Close)
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", ts.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/connect+json\r\nContent-Length: 100\r\n\r\n", v1connect.KeysetServiceWatchProcedure, b.admin)
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("a caller who sends no message is not cut: %v", err)
	}
}

// pipes is a listener whose connections hold nothing: who writes waits for who reads.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// Promise: a watcher that does not read loses its place.
func TestWatchWhenWatcherDoesNotRead(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.patience = 50 * time.Millisecond
	b.keyset(t, "payments")
	handler, err := b.Handler()
	if err != nil {
		t.Fatal(err)
	}
	l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	ours, theirs := net.Pipe()
	defer ours.Close()
	l.conns <- theirs
	message := []byte(`{"name":"payments"}`)
	var req bytes.Buffer
	fmt.Fprintf(&req, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n\x00\x00\x00\x00%c%s",
		v1connect.KeysetServiceWatchProcedure, b.admin, 5+len(message), byte(len(message)), message)
	if _, err := ours.Write(req.Bytes()); err != nil {
		t.Fatal(err)
	}
	// Only the status is read: closing a response would read the stream to its end.
	if line, err := bufio.NewReaderSize(ours, 16).ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 200") {
		t.Fatalf("%q %v", line, err)
	}
	waitFor(t, "the end of a stream that nobody reads", func() bool { return b.watchers.Load() == 0 })
	if n := len(b.streams.open); n != 0 {
		t.Errorf("%d tokens have a stream", n)
	}
}

// Promise: one token does not take all places of a replica.
func TestWatchWhenOneTokenHasMany(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.keyset(t, "payments")
	greedy, other := b.token(t, apikeys.Create{Role: apikeys.Gateway}), b.token(t, apikeys.Create{Role: apikeys.Gateway})
	for range maxWatchersPerToken - 1 {
		if !b.streams.take(idOf(greedy), maxWatchersPerToken) {
			t.Fatal("refused before the bound")
		}
	}
	last := b.watch(t, b.keysets(greedy), "payments", 0)
	last.next(t, 1)
	over := b.watch(t, b.keysets(greedy), "payments", 0)
	if over.Receive() {
		t.Error("there is no bound")
	}
	wantProblem(t, over.Err(), connect.CodeResourceExhausted, "too_many_watchers")
	b.watch(t, b.keysets(other), "payments", 0).next(t, 1)
	_ = last.Close() // which is how a watcher leaves
	waitFor(t, "the place of a watcher that left", func() bool {
		b.streams.mu.Lock()
		defer b.streams.mu.Unlock()
		return b.streams.open[idOf(greedy)] == maxWatchersPerToken-1
	})
	b.watch(t, b.keysets(greedy), "payments", 0).next(t, 1)
}

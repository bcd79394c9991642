package sender

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
	"github.com/rotunda-dev/rotunda/rotation"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// receiver is a real HTTPS server that verifies what it gets, as a consumer does, and knows what
// it has seen. It can be stopped and started again on its port.
type receiver struct {
	t      *testing.T
	server *httptest.Server
	addr   string
	cert   *tls.Config
	roots  *x509.CertPool

	mu      sync.Mutex
	secrets []webhook.Secret
	seen    map[string]int // by webhook-id
	bad     []string       // why some were refused
	answer  func(w http.ResponseWriter, n int)
	n       int
}

func newReceiver(t *testing.T, secrets ...webhook.Secret) *receiver {
	t.Helper()
	r := &receiver{t: t, secrets: secrets, seen: map[string]int{}}
	r.server = httptest.NewUnstartedServer(r)
	r.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	r.server.StartTLS()
	r.addr, r.cert = r.server.Listener.Addr().String(), r.server.TLS
	r.roots = x509.NewCertPool()
	r.roots.AddCert(r.server.Certificate())
	t.Cleanup(func() { r.server.Close() })
	return r
}

func (r *receiver) stop() { r.server.CloseClientConnections(); r.server.Close() }

func (r *receiver) start() {
	r.t.Helper()
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(r)
	s.Listener.Close()
	s.Listener, s.TLS = l, r.cert
	s.StartTLS()
	r.server = s
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 1<<20))
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && req.Method == http.MethodPost && req.Header.Get("Content-Type") == "application/json" {
		var id string
		if _, id, err = webhook.Verify(req.Header, body, time.Now(), 5*time.Minute, r.secrets...); err == nil {
			r.seen[id]++
		}
	}
	if err != nil {
		r.bad = append(r.bad, err.Error())
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	r.n++
	if r.answer != nil {
		r.answer(w, r.n)
	}
}

func (r *receiver) got() (ids, calls int, bad []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.seen {
		calls += n
	}
	return len(r.seen), calls, r.bad
}

type secrets []webhook.Secret

func (s secrets) SigningSecrets(context.Context, string, string) ([]webhook.Secret, error) {
	return s, nil
}

func newSecret(t testing.TB, fill byte) webhook.Secret {
	t.Helper()
	raw := make([]byte, 32)
	for i := range raw {
		raw[i] = fill
	}
	s, err := webhook.SecretFrom(raw)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newSender(t testing.TB, c Config) *Sender {
	t.Helper()
	c.Now = time.Now
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Promise: every new version is told of, at least once, over a receiver that is killed and started
// again; each try verifies under the receiver's secret, old or new.
func TestSenderWhenTheReceiverIsKilled(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := storetest.NewClock(time.Now().Truncate(time.Second))
		db.Now = clock.Now
		kek, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek.json"))
		if err != nil {
			t.Fatal(err)
		}
		sealer, err := secret.NewSealer(kek.KEKs()...)
		if err != nil {
			t.Fatal(err)
		}
		memory := providerstest.NewMemory(providerstest.MemoryConfig{Now: clock.Now})
		systems, err := rotation.NewSystems(t.Context(), rotation.SystemsConfig{DB: db, Sealer: sealer,
			Targets: []providers.TargetKind{memory.System().TargetKind()}, Stores: []providers.StoreKind{memory.System().StoreKind()}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = systems.Close() })
		runs, err := rotation.NewRotations(rotation.RotationsConfig{DB: db, Sealer: sealer, Systems: systems})
		if err != nil {
			t.Fatal(err)
		}
		creds, err := rotation.NewCredentials(rotation.CredentialsConfig{DB: db, Systems: systems, Rotations: runs})
		if err != nil {
			t.Fatal(err)
		}
		old, fresh := newSecret(t, 1), newSecret(t, 2)
		r := newReceiver(t, old) // it has not heard of the new secret yet
		endpoints := func() *rotation.Endpoints {
			es, err := rotation.NewEndpoints(rotation.EndpointsConfig{DB: db, Systems: systems, Secrets: secrets{fresh, old}, Sender: newSender(t, Config{AllowPrivate: true, RootCAs: r.roots})})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(es.Close)
			return es
		}
		es := endpoints()
		if _, err := es.Create(t.Context(), "one", rotation.EndpointSpec{URL: "https://" + r.addr + "/hooks", Partner: "acme", Secret: "hooks"}, store.Once{}); err != nil {
			t.Fatal(err)
		}
		for _, sort := range []rotation.Sort{rotation.TargetSort, rotation.StoreSort} {
			if _, err := systems.Create(t.Context(), sort, "mem", rotation.SystemSpec{Kind: "memory"}, store.Once{}); err != nil {
				t.Fatal(err)
			}
		}
		memory.Account("a")
		_, err = creds.Create(t.Context(), "a", rotation.Spec{Target: "mem", Params: map[string]string{"account": "a"}, Stores: []rotation.Placement{{Store: "mem", Path: "kv/a"}}, Notify: []string{"one"}}, store.Once{})
		if err != nil {
			t.Fatal(err)
		}
		const rotations = 5
		rotate := func() {
			t.Helper()
			run, err := runs.Start(t.Context(), rotation.StartRequest{Credential: "a", Reason: "test"})
			if err != nil {
				t.Fatal(err)
			}
			for range 200 {
				if _, err := runs.Pass(t.Context(), clock.Now()); err != nil {
					t.Fatal(err)
				}
				got, err := runs.Get(t.Context(), run.ID)
				if err != nil {
					t.Fatal(err)
				}
				if !got.EndedAt.IsZero() {
					return
				}
			}
			t.Fatal("the rotation does not end")
		}
		deliver := func(es *rotation.Endpoints) {
			t.Helper()
			if _, err := es.DeliverPass(t.Context(), clock.Now()); err != nil {
				t.Fatal(err)
			}
			es.Close()
		}
		r.answer = func(w http.ResponseWriter, n int) {
			if n == 2 { // it has taken it, and dies before it says so
				panic(http.ErrAbortHandler)
			}
		}
		for i := range rotations {
			rotate()
			if i == 3 {
				r.stop()
			}
			deliver(es)
		}
		if ids, _, _ := r.got(); ids >= rotations {
			t.Fatalf("%d came through to a receiver that was stopped", ids)
		}
		r.start()
		other := endpoints() // and we were restarted, too
		clock.Advance(2 * time.Minute)
		for range 3 {
			deliver(other)
			clock.Advance(time.Minute)
		}
		ids, calls, bad := r.got()
		if ids != rotations || calls <= rotations || len(bad) > 0 {
			t.Errorf("%d of %d came, in %d calls; refused: %v", ids, rotations, calls, bad)
		}
		list, _, err := other.Deliveries(t.Context(), rotation.ListDeliveries{State: rotation.Delivered, Limit: 100})
		if err != nil || len(list) != rotations {
			t.Errorf("%d are delivered by our records, %v", len(list), err)
		}
		// Its own way of making known that it is gone.
		r.mu.Lock()
		r.answer = func(w http.ResponseWriter, _ int) { w.WriteHeader(http.StatusGone) }
		r.mu.Unlock()
		rotate()
		deliver(other)
		if e, err := other.Get(t.Context(), "one"); err != nil || e.State != rotation.EndpointDisabled {
			t.Errorf("the endpoint is %s, %v", e.State, err)
		}
	})
}

func TestSenderWhenAnswered(t *testing.T) {
	r := newReceiver(t, newSecret(t, 1))
	s := newSender(t, Config{AllowPrivate: true, RootCAs: r.roots})
	send := func() (rotation.Answer, error) {
		h, err := webhook.Sign("msg_1", time.Now(), []byte("{}"), newSecret(t, 1))
		if err != nil {
			t.Fatal(err)
		}
		o := rotation.Outgoing{URL: "https://" + r.addr + "/secret-path?token=hunter2", Header: map[string][]string{"Content-Type": {"application/json"}}, Body: []byte("{}")}
		h.Set(o.Header)
		return s.Send(t.Context(), o)
	}
	followed := false
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed = true }))
	t.Cleanup(elsewhere.Close)
	date := time.Now().Add(2 * time.Hour).UTC().Format(http.TimeFormat)
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, n int)
		status int
		after  time.Duration
	}{
		"200":          {func(http.ResponseWriter, int) {}, 200, 0},
		"429":          {func(w http.ResponseWriter, _ int) { w.Header().Set("Retry-After", "120"); w.WriteHeader(429) }, 429, 2 * time.Minute},
		"a date":       {func(w http.ResponseWriter, _ int) { w.Header().Set("Retry-After", date); w.WriteHeader(503) }, 503, 2 * time.Hour},
		"nonsense":     {func(w http.ResponseWriter, _ int) { w.Header().Set("Retry-After", "-soon"); w.WriteHeader(503) }, 503, 0},
		"the past":     {func(w http.ResponseWriter, _ int) { w.Header().Set("Retry-After", "-5"); w.WriteHeader(503) }, 503, 0},
		"a redirect":   {func(w http.ResponseWriter, _ int) { w.Header().Set("Location", elsewhere.URL); w.WriteHeader(307) }, 307, 0},
		"a long story": {func(w http.ResponseWriter, _ int) { fmt.Fprint(w, strings.Repeat("x", 1<<20)) }, 200, 0},
	} {
		r.mu.Lock()
		r.answer = c.answer
		r.mu.Unlock()
		a, err := send()
		if diff := a.RetryAfter - c.after; err != nil || a.Status != c.status || diff < -time.Minute || diff > time.Minute {
			t.Errorf("%s: got %+v, %v", name, a, err)
		}
	}
	if followed {
		t.Error("a redirect was followed")
	}
	if _, _, bad := r.got(); len(bad) > 0 {
		t.Error(bad)
	}
	r.mu.Lock()
	r.answer = func(w http.ResponseWriter, _ int) { w.Header().Set("X", strings.Repeat("x", 64<<10)) }
	r.mu.Unlock()
	if _, err := send(); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("64 KiB of headers: %v", err)
	}
	r.stop()
	_, err := send()
	if !errors.Is(err, fault.ErrUnavailable) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "secret-path") {
		t.Errorf("nobody there: %v", err)
	}
	r.start()
	if s = newSender(t, Config{AllowPrivate: true}); s != nil {
		if _, err := send(); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("a certificate that nobody knows: %v", err)
		}
	}
}

// Promise: a webhook never reaches an address inside, whatever its name says at which moment.
func TestSenderWhenTheAddressIsPrivate(t *testing.T) {
	r := newReceiver(t, newSecret(t, 1))
	_, port, err := net.SplitHostPort(r.addr)
	if err != nil {
		t.Fatal(err)
	}
	s := newSender(t, Config{RootCAs: r.roots})
	// "localhost." and a name with a public suffix are looked up; both are this machine. The check of
	// the URL alone can't know.
	for _, host := range []string{"127.0.0.1", "[::1]", "localhost", "x.localhost", "[::ffff:127.0.0.1]", "localhost.", "0.0.0.0", "127.1", "2130706433"} {
		_, err := s.Send(t.Context(), rotation.Outgoing{URL: "https://" + host + ":" + port + "/", Body: []byte("{}")})
		if err == nil {
			t.Errorf("%s was reached", host)
		}
	}
	if ids, _, bad := r.got(); ids > 0 || len(bad) > 0 {
		t.Error("the receiver was reached")
	}
	for address, want := range map[string]bool{
		"8.8.8.8": true, "2606:4700::1111": true, "1.1.1.1": true, "172.32.0.1": true, "192.169.0.1": true, "100.128.0.1": true,
		"10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false, "100.64.0.1": false, "0.0.0.0": false, "255.255.255.255": false,
		"224.0.0.1": false, "240.0.0.1": false, "198.18.0.1": false, "192.0.2.1": false, "::": false, "::1": false, "fe80::1": false, "fe80::1%eth0": false, "fd00:ec2::254": false,
		"::ffff:10.0.0.1": false, "::ffff:8.8.8.8": true, "64:ff9b::a00:1": false, "2002:a00:1::": false, "ff02::1": false, "2001:db8::1": false, "fec0::1": false,
		"::127.0.0.1": false, "::a9fe:a9fe": false, "168.63.129.16": false, "168.63.129.17": true,
	} {
		if got := public(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: public is %v", address, got)
		}
		if err := s.control("tcp", netip.AddrPortFrom(netip.MustParseAddr(address), 443).String(), nil); (err == nil) != want {
			t.Errorf("%s: a connection is allowed: %v", address, err == nil)
		}
	}
	inside := newSender(t, Config{AllowPrivate: true})
	for text, want := range map[string][2]bool{ // outside, inside
		"https://a.example/":      {true, true},
		"https://8.8.8.8/":        {true, true},
		"https://10.0.0.1/":       {false, true},
		"https://localhost/":      {false, true},
		"http://a.example/":       {false, false},
		"http://8.8.8.8/":         {false, false},
		"http://10.0.0.1/":        {false, true},
		"http://[::1]:8080/":      {false, true},
		"http://localhost/":       {false, false},
		"gopher://10.0.0.1/":      {false, false},
		"https://169.254.169.254": {false, true},
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Check(u); (err == nil) != want[0] || err != nil && !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v", text, err)
		}
		if err := inside.Check(u); (err == nil) != want[1] || err != nil && !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s, with private addresses: %v", text, err)
		}
	}
	if _, err := New(Config{}); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("without a clock: %v", err)
	}
}

// A 101 hands over the bare connection: its bytes are no answer, and no deadline ends it.
func TestSenderWhenProtocolIsSwitched(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, buffer, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = buffer.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		_ = buffer.Flush()
		<-release
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	s := newSender(t, Config{AllowPrivate: true, RootCAs: roots})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	done := make(chan struct{})
	var answer rotation.Answer
	var err error
	go func() {
		defer close(done)
		answer, err = s.Send(ctx, rotation.Outgoing{URL: server.URL + "/", Body: []byte("{}")})
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("a receiver that switches protocols holds up the sender for ever")
	}
	if err != nil || answer.Status != http.StatusSwitchingProtocols {
		t.Errorf("got %+v, %v", answer, err)
	}
}

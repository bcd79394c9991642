package server_test

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/server"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/jwks"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// rig is a server with keysets and a token that may sign, on SQLite.
type rig struct {
	handler http.Handler
	keysets *jwks.Keysets
	signer  string

	tokens   *apikeys.Tokens
	partners *apikeys.Partners
	keys     *apikeys.Keys
	verifier *apikeys.Verifier
	trail    *audit.Trail
}

func newRig(b *testing.B) *rig {
	b.Helper()
	db := storetest.SQLite(b)
	kek, err := secret.OpenOrCreateFile(filepath.Join(b.TempDir(), "kek.json"))
	if err != nil {
		b.Fatal(err)
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		b.Fatal(err)
	}
	peppers, err := apikeys.OpenPeppers(b.Context(), db, sealer)
	if err != nil {
		b.Fatal(err)
	}
	tokens := apikeys.NewTokens(db, peppers)
	_, value, err := tokens.Create(b.Context(), apikeys.Create{Name: "signer", Role: apikeys.Signer})
	if err != nil {
		b.Fatal(err)
	}
	// Without it the limit per client would be what is measured.
	if _, _, err := tokens.Create(b.Context(), apikeys.Create{Name: "gateway", Role: apikeys.Gateway, CIDRs: []string{"127.0.0.1/32", "192.0.2.1/32"}}); err != nil {
		b.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	keysets := jwks.New(jwks.Config{DB: db, Local: &jwks.Local{Sealer: sealer}, Log: log})
	if err := keysets.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
	trail, err := audit.Open(b.Context(), audit.Config{DB: db, Sealer: sealer, Log: log, Origin: "rotunda.test/trail"})
	if err != nil {
		b.Fatal(err)
	}
	partners := apikeys.NewPartners(db, peppers)
	keys, err := apikeys.NewKeys(apikeys.KeysConfig{DB: db, Peppers: peppers, Partners: partners, Sealer: sealer})
	if err != nil {
		b.Fatal(err)
	}
	usage := &audit.Usage{DB: db, Replica: "bench"}
	tokens.Usage = usage
	verifier, err := apikeys.NewVerifier(apikeys.VerifierConfig{DB: db, Keys: keys, Partners: partners, Sealer: sealer, Usage: usage, Log: log})
	if err != nil {
		b.Fatal(err)
	}
	if err := verifier.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
	srv, err := server.New(server.Config{
		DB: db, Keysets: keysets, Tokens: tokens, Denials: &audit.Denials{DB: db}, Log: log, PublicURL: "https://keys.example.com",
		Trail: trail, Places: noPlaces{}, Partners: partners, Keys: keys, Peppers: peppers, Verifier: verifier,
	})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := srv.GatewayPass(b.Context(), db.Now()); err != nil {
		b.Fatal(err)
	}
	handler, err := srv.Handler()
	if err != nil {
		b.Fatal(err)
	}
	return &rig{handler, keysets, value.RevealString(), tokens, partners, keys, verifier, trail}
}

// noPlaces is a trail that is copied nowhere.
type noPlaces struct{ server.Places }

func (r *rig) create(b *testing.B, name string, alg jwks.Algorithm) {
	b.Helper()
	_, err := r.keysets.Create(b.Context(), jwks.Create{Name: name, Issuer: "https://auth.example.com/" + name, Algorithm: string(alg), Policy: jwks.DefaultPolicy()})
	if err != nil {
		b.Fatal(err)
	}
}

// serve starts a server on a loopback socket and returns its address.
func serve(b *testing.B, h http.Handler) string {
	b.Helper()
	s := httptest.NewServer(h)
	b.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// caller sends finished requests over one connection and reads just enough of
// the answers to know where they end: on a machine that client and server
// share, a heavier client would be most of what is measured.
type caller struct {
	conn net.Conn
	in   *bufio.Reader
}

func dial(addr string) (*caller, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &caller{conn, bufio.NewReaderSize(conn, 16<<10)}, nil
}

var (
	okLine = []byte("HTTP/1.1 200 ")
	length = []byte("Content-Length: ")
)

func (c *caller) call(request []byte) error {
	if _, err := c.conn.Write(request); err != nil {
		return err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, okLine) {
		return fmt.Errorf("got %q", line)
	}
	n := -1
	for {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return err
		}
		if len(line) == 2 {
			break
		}
		if rest, ok := bytes.CutPrefix(line, length); ok {
			if n, err = strconv.Atoi(string(bytes.TrimSpace(rest))); err != nil {
				return err
			}
		}
	}
	if n < 0 {
		return errors.New("the answer has no Content-Length")
	}
	_, err = c.in.Discard(n)
	return err
}

// load calls addr from several connections at once, with requests in turn.
func load(b *testing.B, addr string, requests [][]byte) {
	b.Helper()
	var next atomic.Int64
	b.SetParallelism(8) // times the cores
	b.RunParallel(func(pb *testing.PB) {
		c, err := dial(addr)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.conn.Close()
		for i := int(next.Add(7919)); pb.Next(); i++ {
			if err := c.call(requests[i%len(requests)]); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkDocument compares GET of a JWKS document with a handler that writes
// the same bytes and headers from a map: through a socket, and in process.
func BenchmarkDocument(b *testing.B) {
	r := newRig(b)
	const most = 1000
	for i := range most {
		r.create(b, fmt.Sprintf("bench-%04d", i+1), jwks.ES256)
	}
	type document struct {
		header http.Header
		body   []byte
	}
	documents := map[string]document{}
	paths := make([]string, most)
	for i := range paths {
		paths[i] = fmt.Sprintf("/keysets/bench-%04d/jwks.json", i+1)
		req, rec := httptest.NewRequest(http.MethodGet, paths[i], nil), httptest.NewRecorder()
		r.handler.ServeHTTP(rec, req)
		if rec.Code != http.StatusOK {
			b.Fatalf("GET %s: %d", paths[i], rec.Code)
		}
		documents[paths[i]] = document{rec.Header(), rec.Body.Bytes()}
	}
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := documents[r.URL.Path]
		h := w.Header()
		for k, v := range d.header {
			h[k] = v
		}
		_, _ = w.Write(d.body) // as in the handler that is measured
	})
	handlers := []struct {
		name string
		http.Handler
	}{{"rotunda", r.handler}, {"bare", bare}}
	for _, n := range []int{1, most} {
		for _, h := range handlers {
			b.Run(fmt.Sprintf("loopback/keysets=%d/%s", n, h.name), func(b *testing.B) {
				requests := make([][]byte, n)
				for i := range requests {
					requests[i] = []byte("GET " + paths[i] + " HTTP/1.1\r\nHost: localhost\r\n\r\n")
				}
				load(b, serve(b, h), requests)
			})
		}
		for _, h := range handlers {
			b.Run(fmt.Sprintf("process/keysets=%d/%s", n, h.name), func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					requests := make([]*http.Request, n)
					for i := range requests {
						requests[i] = httptest.NewRequest(http.MethodGet, paths[i], nil)
					}
					w := &sink{header: http.Header{}}
					for i := 0; pb.Next(); i++ {
						clear(w.header)
						h.ServeHTTP(w, requests[i%n])
					}
				})
			})
		}
	}
}

// sink is a response that goes nowhere.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
func (s *sink) WriteHeader(int)             {}

// BenchmarkSignRPC compares KeysetService.Sign through a socket with the
// signature alone, on the same cores.
func BenchmarkSignRPC(b *testing.B) {
	r := newRig(b)
	addr := serve(b, r.handler)
	for _, alg := range []jwks.Algorithm{jwks.ES256, jwks.Ed25519, jwks.RS256} {
		name := strings.ToLower(string(alg))
		r.create(b, name, alg)
		const claims = `{"sub":"order-7","aud":"ledger"}`
		binary, err := proto.Marshal(&rotundav1.SignRequest{Name: name, Claims: claims})
		if err != nil {
			b.Fatal(err)
		}
		for _, c := range []struct {
			name, contentType string
			body              []byte
		}{
			{"proto", "application/proto", binary},
			{"json", "application/json", []byte(fmt.Sprintf(`{"name":%q,"claims":%q}`, name, claims))},
		} {
			b.Run(string(alg)+"/"+c.name, func(b *testing.B) {
				request := fmt.Sprintf("POST /rotunda.v1.KeysetService/Sign HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
					r.signer, c.contentType, len(c.body), c.body)
				load(b, addr, [][]byte{[]byte(request)})
			})
		}
		b.Run(string(alg)+"/crypto", func(b *testing.B) { alone(b, alg) })
	}
}

// alone is the signature without everything else.
func alone(b *testing.B, alg jwks.Algorithm) {
	b.Helper()
	var key crypto.Signer
	var err error
	hash := crypto.SHA256
	switch alg {
	case jwks.ES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jwks.RS256:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case jwks.Ed25519:
		_, key, err = ed25519.GenerateKey(rand.Reader)
		hash = 0
	default:
		b.Fatalf("no floor for %s", alg)
	}
	if err != nil {
		b.Fatal(err)
	}
	input, err := io.ReadAll(io.LimitReader(rand.Reader, 300))
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			in := input
			if hash != 0 {
				sum := sha256.Sum256(input)
				in = sum[:]
			}
			if _, err := key.Sign(rand.Reader, in, hash); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

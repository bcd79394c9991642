// Bare is what Rotunda is measured against: the least that net/http and
// Connect need to give the same answers.
//
//	bare --from http://127.0.0.1:8470 --keysets 1000 --listen 127.0.0.1:0
//
// It fetches the JWKS documents bench-0001 to bench-1000 once and then serves
// the same bytes with the same headers from a map, without a mux, a limit or a
// metric. Its KeysetService.Sign answers every request with one token of the
// usual size and signs nothing; its VerificationService and its forward-auth accept
// every key. The address is the first line of its output.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

func main() {
	from := flag.String("from", "", "Rotunda's URL")
	keysets := flag.Int("keysets", 0, "how many documents to take over")
	listen := flag.String("listen", "127.0.0.1:0", "address to serve on")
	flag.Parse()
	if err := run(*from, *keysets, *listen); err != nil {
		fmt.Fprintln(os.Stderr, "bare:", err)
		os.Exit(1)
	}
}

type document struct {
	header http.Header
	body   []byte
}

func run(from string, keysets int, listen string) error {
	documents := make(map[string]document, keysets)
	for i := range keysets {
		path := fmt.Sprintf("/keysets/bench-%04d/jwks.json", i+1)
		d, err := fetch(from + path)
		if err != nil {
			return err
		}
		documents[path] = d
	}
	noop := http.NewServeMux()
	noop.Handle(rotundav1connect.NewKeysetServiceHandler(signer{token: strings.Repeat("x", 360)}))
	noop.Handle(rotundav1connect.NewVerificationServiceHandler(verifier{}))
	noop.HandleFunc("/gateway/forward-auth", forward)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, ok := documents[r.URL.Path]
		if !ok {
			noop.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		for k, v := range d.header {
			h[k] = v
		}
		_, _ = w.Write(d.body) // a client that went away needs no report
	})
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", listen)
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", ln.Addr())
	return (&http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}).Serve(ln)
}

func fetch(url string) (document, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		return document{}, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return document{}, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return document{}, fmt.Errorf("GET %s: %s", url, res.Status)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	res.Header.Del("Date") // net/http writes its own
	return document{res.Header, body}, err
}

// signer is KeysetService.Sign without a key.
type signer struct {
	rotundav1connect.UnimplementedKeysetServiceHandler
	token string
}

func (s signer) Sign(context.Context, *connect.Request[rotundav1.SignRequest]) (*connect.Response[rotundav1.SignResponse], error) {
	return connect.NewResponse(&rotundav1.SignResponse{Token: s.token, Kid: s.token[:43]}), nil
}

// verifier is VerificationService.VerifyApiKey without a key.
type verifier struct {
	rotundav1connect.UnimplementedVerificationServiceHandler
}

func (verifier) VerifyApiKey(context.Context, *connect.Request[rotundav1.VerifyApiKeyRequest]) (*connect.Response[rotundav1.VerifyApiKeyResponse], error) {
	return connect.NewResponse(&rotundav1.VerifyApiKeyResponse{Reason: rotundav1.VerifyReason_VERIFY_REASON_OK, Verified: &rotundav1.Verified{
		Partner: "bench", KeyId: "0123456789abcdef", Name: "imported", Environment: "live", Class: rotundav1.KeyClass_KEY_CLASS_SECRET,
		Scopes: []string{"orders:read"}, State: rotundav1.ApiKeyState_API_KEY_STATE_ACTIVE,
	}}), nil
}

// forward answers as forward-auth does.
func forward(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Rotunda-Partner", "bench")
	h.Set("X-Rotunda-Key-Id", "0123456789abcdef")
	h.Set("X-Rotunda-Scopes", "orders:read")
	h.Set("X-Rotunda-Environment", "live")
	h.Set("X-Rotunda-Class", "secret")
	w.WriteHeader(http.StatusOK)
}

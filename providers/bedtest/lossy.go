package bedtest

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
)

// Lossy is a proxy before an HTTP server that can have a request done and lose its
// answer, as a network does.
type Lossy struct {
	Address string // http://127.0.0.1:PORT

	mu   sync.Mutex
	lose func(*http.Request) bool
	lost int
}

// NewLossy starts a proxy before the server at address, which speaks without TLS.
func NewLossy(t testing.TB, address string) *Lossy {
	t.Helper()
	target, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	l := &Lossy{}
	forward := httputil.NewSingleHostReverseProxy(target)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !l.takes(r) {
			forward.ServeHTTP(w, r)
			return
		}
		forward.ServeHTTP(httptest.NewRecorder(), r) // done, and nobody hears of it
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			conn.Close()
		}
	}))
	t.Cleanup(server.Close)
	l.Address = server.URL
	return l
}

// Lose loses the answer to the next request that match says yes to.
func (l *Lossy) Lose(match func(*http.Request) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lose = match
}

// Lost is how many answers were lost.
func (l *Lossy) Lost() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

func (l *Lossy) takes(r *http.Request) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lose == nil || !l.lose(r) {
		return false
	}
	l.lose = nil
	l.lost++
	return true
}

package verify

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"
)

// serve starts a real HTTP server.
func serve(t testing.TB, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func remote(i *issuer, url string) TokensConfig {
	cfg := i.config()
	cfg.JWKSURL, cfg.HTTPClient = url, nil
	cfg.FetchTimeout = 300 * time.Millisecond // for those that never answer
	return cfg
}

// A hostile or broken server makes tokens unavailable, soon and within bounds, and
// never accepted.
func TestJWKSWhenItsServerIsHostile(t *testing.T) {
	i := newIssuer(t, "k1")
	document := i.document()
	answer := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(document)
	}
	other := serve(t, func(w http.ResponseWriter, _ *http.Request) { answer(w) })
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		words   string
	}{
		"hangs": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "time"},
		"drips": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for r.Context().Err() == nil {
				if _, err := w.Write([]byte(" ")); err != nil {
					return
				}
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Millisecond)
			}
		}, "time"},
		"never ends": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			block := []byte(strings.Repeat(" ", 1<<16))
			for r.Context().Err() == nil {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		}, "more than 1048576 bytes"},
		"gzip bomb": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			block := make([]byte, 1<<20)
			for range 200 {
				if _, err := z.Write(block); err != nil {
					return
				}
			}
			_ = z.Close()
		}, "more than 1048576 bytes"},
		"304 without a set": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }, "304"},
		"500": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write(document)
		}, "500"},
		"203": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNonAuthoritativeInfo)
			_, _ = w.Write(document)
		}, "203"},
		"HTML": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write(document)
		}, "text/html"},
		"no type": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			_, _ = w.Write(document)
		}, "type"},
		"breaks off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write(document)
		}, "breaks off"},
		"long header": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 2*maxHeaderSize))
			answer(w)
		}, "header"},
		"redirect to another host": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusFound)
		}, "another origin"},
		"redirects for ever": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x", http.StatusFound)
		}, "redirects"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, tc.handler)
			cfg := remote(i, s.URL+"/jwks.json")
			if tc.words != "time" {
				cfg.FetchTimeout = time.Minute
			}
			tokens, err := NewTokens(cfg)
			if err != nil {
				t.Fatal(err)
			}
			_, err = tokens.Verify(t.Context(), i.sign(t, "k1"))
			wantReason(t, err, "unavailable")
			if err != nil && !strings.Contains(err.Error(), tc.words) {
				t.Errorf("the error does not say %q: %v", tc.words, err)
			}
		})
	}
}

func TestJWKSWhenRedirectedWithinItsOrigin(t *testing.T) {
	i := newIssuer(t, "k1")
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/old" {
			http.Redirect(w, r, "/new", http.StatusMovedPermanently)
			return
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = w.Write(i.document())
	})
	tokens, err := NewTokens(remote(i, s.URL+"/old"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = tokens.Verify(t.Context(), i.sign(t, "k1"))
	wantReason(t, err, "accepted")
}

// A server that answers 304 with other tags confirms only what it was asked about.
func TestJWKSWhen304NamesAnotherTag(t *testing.T) {
	i := newIssuer(t, "k1")
	var asked []string
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Header.Get("If-None-Match"))
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, len(asked)))
		if len(asked) > 1 {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(i.document())
	})
	tokens, err := NewTokens(remote(i, s.URL))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := tokens.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(asked, " "); got != ` "1" "1"` {
		t.Errorf("asked with %s", got)
	}
}

// Goroutines do not pile up while calls come and go and fetches fail.
func TestGoroutinesWhenTheServerHangs(t *testing.T) {
	i := newIssuer(t, "k1")
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	tokens, err := NewTokens(remote(i, s.URL))
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	token := i.sign(t, "k1")
	for range 1000 {
		if _, err := tokens.Verify(ctx, token); err == nil {
			t.Fatal("accepted")
		}
	}
	// One fetch, with what a connection needs on both of its ends.
	if n := runtime.NumGoroutine() - before; n > 12 {
		t.Errorf("%d goroutines more", n)
	}
}

func TestDiscoveryWhenItNamesTheKeys(t *testing.T) {
	i := newIssuer(t, "k1")
	var says map[string]any
	moved := ""
	fetched := map[string]int{}
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fetched[r.URL.Path]++
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/.well-known/openid-configuration":
			_ = json.NewEncoder(w).Encode(says)
		case r.URL.Path == "/keys"+moved:
			_, _ = w.Write(i.document())
		default:
			http.NotFound(w, r)
		}
	})
	cfg := remote(i, "")
	cfg.FetchTimeout = time.Minute
	cfg.DiscoveryURL = s.URL + "/.well-known/openid-configuration"
	for name, tc := range map[string]struct {
		issuer, uri, want string
	}{
		"right":         {testIssuer, s.URL + "/keys", "accepted"},
		"other issuer":  {testIssuer + "/", s.URL + "/keys", "unavailable"},
		"no issuer":     {"", s.URL + "/keys", "unavailable"},
		"no keys":       {testIssuer, "", "unavailable"},
		"plain http":    {testIssuer, "http://auth.example.com/keys", "unavailable"},
		"not a web URL": {testIssuer, "file:///etc/passwd", "unavailable"},
	} {
		says = map[string]any{"issuer": tc.issuer, "jwks_uri": tc.uri}
		tokens, err := NewTokens(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			_, err := tokens.Verify(t.Context(), i.sign(t, "k1"))
			wantReason(t, err, tc.want)
		})
	}
	// The keys move: a fetch that fails looks the place up again.
	says = map[string]any{"issuer": testIssuer, "jwks_uri": s.URL + "/keys"}
	tokens, err := NewTokens(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := tokens.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	known := fetched["/.well-known/openid-configuration"]
	moved = "/elsewhere"
	says["jwks_uri"] = s.URL + "/keys" + moved
	if err := tokens.Refresh(t.Context()); err == nil {
		t.Error("the keys are where they were")
	}
	if err := tokens.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	if n := fetched["/.well-known/openid-configuration"] - known; n != 1 {
		t.Errorf("looked up %d times, want once", n)
	}
}

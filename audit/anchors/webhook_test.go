package anchors

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

// receiver is an HTTP server that keeps what is posted to it and answers as told.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	got    []string
	answer func(w http.ResponseWriter, r *http.Request) // nil: 204
}

func newReceiver(t *testing.T, answer func(http.ResponseWriter, *http.Request)) *receiver {
	t.Helper()
	r := &receiver{answer: answer}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.Config.ErrorLog = quiet()
	r.Start()
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) serve(w http.ResponseWriter, req *http.Request) {
	b, _ := io.ReadAll(io.LimitReader(req.Body, maxBody))
	r.mu.Lock()
	r.got = append(r.got, string(b))
	answer := r.answer
	r.mu.Unlock()
	if answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	answer(w, req)
}

func (r *receiver) set(answer func(http.ResponseWriter, *http.Request)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

func (r *receiver) taken() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.got...)
}

func status(code int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// lost takes what was sent and cuts the connection instead of answering.
func lost(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func TestWebhookSendsTheNote(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	var auth, kind atomic.Value
	r := newReceiver(t, func(_ http.ResponseWriter, r *http.Request) {
		auth.Store(r.Method + " " + r.URL.RequestURI() + " " + r.Header.Get("Authorization"))
		kind.Store(r.Header.Get("Content-Type"))
	})
	a := open(t, Config{Kind: Webhook, Origin: origin, Address: r.URL + "/in?a=b", Secret: secret.FromString("hush-hush")})
	mustPush(t, a, log, 3)
	_, three := log.at(3)
	if got := r.taken(); len(got) != 1 || got[0] != three {
		t.Errorf("it received %q", got)
	}
	if auth.Load() != "POST /in?a=b Bearer hush-hush" || kind.Load() != "text/plain; charset=utf-8" {
		t.Errorf("it received %v, %v", auth.Load(), kind.Load())
	}
	_, err := a.Newest(t.Context())
	wantFault(t, err, fault.ErrNotFound, "anchor_write_only")

	plain := open(t, Config{Kind: Webhook, Origin: origin, Address: r.URL})
	mustPush(t, plain, log, 3)
	if auth.Load() != "POST / " {
		t.Errorf("without a secret it received %v", auth.Load())
	}
}

func TestWebhookWhenRefused(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	var followed atomic.Int64
	elsewhere := newReceiver(t, func(http.ResponseWriter, *http.Request) { followed.Add(1) })
	answers := map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		kind   error
		reason string
	}{
		"conflict":     {status(409), fault.ErrChanged, ReasonAnchorFork},
		"unauthorized": {status(401), fault.ErrDenied, "anchor_denied"},
		"forbidden":    {status(403), fault.ErrDenied, "anchor_denied"},
		"gone":         {status(410), fault.ErrRejected, "anchor_refused"},
		"limited":      {status(429), fault.ErrLimited, "anchor_limited"},
		"broken":       {status(502), fault.ErrUnavailable, "anchor_unavailable"},
		"lost":         {lost, fault.ErrUnavailable, "anchor_unreachable"},
		"echo": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(400)
			_, _ = io.WriteString(w, r.Header.Get("Authorization"))
		}, fault.ErrRejected, "anchor_refused"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusPermanentRedirect)
		}, fault.ErrRejected, "anchor_redirects"},
		"no http": {func(w http.ResponseWriter, _ *http.Request) {
			c, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(c, "garbage\n\n")
			c.Close()
		}, fault.ErrUnavailable, "anchor_unreachable"},
		"endless headers": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 2*maxBody))
		}, fault.ErrUnavailable, "anchor_unreachable"},
	}
	for what, tt := range answers {
		r := newReceiver(t, tt.answer)
		a := open(t, Config{Kind: Webhook, Origin: origin, Address: r.URL + "/token-in-path?token-in-query", Secret: secret.FromString("hush-hush")})
		err := push(t, a, log, 3)
		t.Run(what, func(t *testing.T) {
			wantFault(t, err, tt.kind, tt.reason)
			if s := err.Error(); strings.Contains(s, "hush") || strings.Contains(s, "token-in") || !strings.Contains(s, strings.TrimPrefix(r.URL, "http://")) {
				t.Errorf("the error shows a secret, or not the host: %v", err)
			}
		})
	}
	if followed.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

func TestWebhookWhenDeadOrSlow(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	dead := open(t, Config{Kind: Webhook, Origin: origin, Address: "http://" + freePort(t) + "/token-in-path"})
	err := push(t, dead, log, 3)
	wantFault(t, err, fault.ErrUnavailable, "anchor_unreachable")
	if strings.Contains(err.Error(), "token-in") {
		t.Errorf("the error shows a secret: %v", err)
	}
	release := make(chan struct{})
	slow := newReceiver(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	a := open(t, Config{Kind: Webhook, Origin: origin, Address: slow.URL})
	ctx, cancel := context.WithTimeout(t.Context(), 50e6)
	defer cancel()
	cp, signed := log.at(3)
	wantFault(t, a.Push(ctx, cp, signed), fault.ErrUnavailable, "anchor_slow")
}

// The body of a reply is read within bounds, whatever its length.
func TestWebhookWhenTheReplyHasNoEnd(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	gone := make(chan struct{})
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		defer close(gone)
		for {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return // only the client can end this
			}
		}
	})
	mustPush(t, open(t, Config{Kind: Webhook, Origin: origin, Address: r.URL}), log, 3)
	<-gone
}

func TestWebhookVerifiesTLS(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.Config.ErrorLog = quiet()
	srv.StartTLS()
	defer srv.Close()
	err := push(t, open(t, Config{Kind: Webhook, Origin: origin, Address: srv.URL}), log, 3)
	wantFault(t, err, fault.ErrUnavailable, "anchor_unreachable")
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		t.Errorf("%v is not about the certificate", err)
	}
	cas := x509.NewCertPool()
	cas.AddCert(srv.Certificate())
	mustPush(t, open(t, Config{Kind: Webhook, Origin: origin, Address: srv.URL, CAs: cas}), log, 3)
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	other := "https://localhost:" + port // not in the certificate
	wantFault(t, push(t, open(t, Config{Kind: Webhook, Origin: origin, Address: other, CAs: cas}), log, 3), fault.ErrUnavailable, "anchor_unreachable")
}

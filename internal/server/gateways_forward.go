package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// gatewayToken is the header in which a gateway that asks by forward-auth sends its
// own token: Authorization is the client's.
const gatewayToken = "X-Rotunda-Token"

// forwardAuth answers whether a gateway may let a request through: 200 with the
// identity headers, or the status and headers for its client (401, 403, 429; 503
// when nobody knows; 500 when the gateway itself is not set up right, so that no
// client takes it for its own fault).
//
// The request is the client's, as the gateway passes it on; what the gateway adds is
// the token, X-Forwarded-Method, -Proto, -Host, -Uri and -For, and the query, which
// comes from its configuration. It must set each of these, whatever the client sent.
func (s *Server) forwardAuth(w http.ResponseWriter, r *http.Request) {
	began := s.DB.Tick()
	id := rand.Text()
	w.Header().Set("X-Request-Id", id)
	w.Header().Set("Cache-Control", "no-store")
	v := s.answerForward(r, id)
	s.metrics.request(forwardAuthPath, v.code, s.DB.Tick()-began)
	for _, h := range v.headers {
		w.Header().Set(h.name, h.value)
	}
	if v.status == http.StatusOK {
		for _, h := range v.identity {
			w.Header().Set(h.name, h.value)
		}
		w.WriteHeader(http.StatusOK)
		return
	}
	w.Header().Set("X-Rotunda-Error", v.code) // for gateways that can't pass a body on
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(v.status)
	_, _ = w.Write([]byte(v.body())) // who asked is gone: there is nobody to tell
}

func (s *Server) answerForward(r *http.Request, id string) verdict {
	// X-Forwarded-For is about the client: the gateway is where its connection comes from.
	knock := &http.Request{RemoteAddr: r.RemoteAddr, URL: r.URL, Header: http.Header{}}
	if values := r.Header[gatewayToken]; len(values) == 1 {
		knock.Header.Set("Authorization", "Bearer "+values[0])
	}
	from := s.client(knock)
	actor := audit.Actor{ID: "anonymous", Address: from.String(), RequestID: id}
	ctx, cancel := context.WithTimeout(audit.WithActor(r.Context(), actor), gatewayTimeout)
	defer cancel()
	if !s.mayTry(knock, from) {
		return refusal(http.StatusServiceUnavailable, "unavailable", header{"Retry-After", "1"})
	}
	token, err := s.authenticate(ctx, knock, from)
	if err != nil {
		if !errors.Is(err, fault.ErrDenied) {
			return s.undecided(ctx, err)
		}
		s.denyToken(ctx, knock, from, err)
		return refusal(http.StatusInternalServerError, "gateway_misconfigured")
	}
	actor.ID, actor.Role = token.ID, string(token.Role)
	ctx = audit.WithActor(ctx, actor)
	if !s.callers.find(token).may(s.authz, forwardAuthPath, "") {
		s.deny(ctx, audit.Event{Action: "gateway.forward_auth", Reason: "role"})
		return refusal(http.StatusInternalServerError, "gateway_misconfigured")
	}
	g, v := readForward(r)
	if g != nil {
		v = s.judge(ctx, g)
	}
	if v.code == "gateway_misconfigured" {
		s.log.LogAttrs(ctx, slog.LevelWarn, "a gateway asks in a way that is not understood, and is denied", slog.String("request_id", id),
			slog.String("token", token.ID), slog.String("problem", v.reason))
	}
	return v
}

// readForward reads the question, or says why it is none.
func readForward(r *http.Request) (*gate, verdict) {
	g := &gate{header: r.Header}
	if err := g.query(r.URL.RawQuery); err != nil {
		v := refusal(http.StatusInternalServerError, "gateway_misconfigured")
		v.reason = err.Error()
		return nil, v
	}
	lines := 0
	for _, v := range r.Header {
		lines += len(v)
	}
	ok := lines <= maxClientHeaders
	for _, h := range []struct {
		name string
		into *string
	}{{"X-Forwarded-Method", &g.method}, {"X-Forwarded-Proto", &g.scheme}, {"X-Forwarded-Host", &g.authority}, {"X-Forwarded-Uri", &g.target}} {
		switch values := r.Header[h.name]; {
		case len(values) > 1:
			ok = false // one is the client's, and nobody knows which
		case len(values) == 1:
			*h.into = values[0]
		}
	}
	if !ok || len(g.target) > maxTarget || !forwardable(g) {
		return nil, refusal(http.StatusForbidden, "bad_request")
	}
	g.need.Address = lastHop(r.Header["X-Forwarded-For"], 1)
	length, coding := r.Header["X-Forwarded-Content-Length"], r.Header["X-Forwarded-Transfer-Encoding"]
	if g.rules.body != bodyForwarded {
		length, coding = nil, nil // whoever wrote these, the gateway does not vouch for them
	}
	g.omitted = r.ContentLength != 0 || !withoutBody(g.method, length, coding)
	return g, verdict{}
}

// forwardable reports whether what the gateway says of the request can be meant in
// one way only.
func forwardable(g *gate) bool {
	for i := range len(g.target) {
		if c := g.target[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return false
		}
	}
	for _, s := range []string{g.method, g.scheme, g.authority} {
		if len(s) > 255 || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == ',' }) {
			return false
		}
	}
	// "*" is the target of an OPTIONS; anything else without a slash is a target in
	// absolute form, whose authority may be another one than X-Forwarded-Host.
	return g.target == "" || g.target[0] == '/' || g.target == "*"
}

// query reads what the gateway's configuration asks.
func (g *gate) query(raw string) error {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return fmt.Errorf("the query of %s: %w", forwardAuthPath, err)
	}
	for name, list := range values {
		if len(list) > 1 && name != "scope" {
			return fmt.Errorf("parameter %s is there %d times", clip(name), len(list))
		}
		for _, value := range list {
			if name == "body" && value == bodyForwarded {
				g.rules.body = value
				continue
			}
			if err := g.set(name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

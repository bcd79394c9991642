package gateways

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// door is a gateway between clients and a service, with the Rotunda that it asks.
type door struct {
	kind
	*rotunda
	service *service
	at      string
}

// each runs a test through each gateway.
func each(t *testing.T, body func(t *testing.T, d *door)) {
	t.Helper()
	for _, k := range []kind{nginx, caddy, haproxy} {
		t.Run(k.name, func(t *testing.T) {
			r, s := newRotunda(t), newService(t)
			body(t, &door{kind: k, rotunda: r, service: s, at: k.start(t, r.addr, s.addr, r.gateway)})
		})
	}
}

// reply is what a client gets.
type reply struct {
	status int
	header http.Header
	body   string
	seen   *seen // what the service got; nil when the request did not reach it
}

// code is the reason that the client is told.
func (r reply) code() string {
	var b struct{ Error string }
	if json.Unmarshal([]byte(r.body), &b) != nil {
		return ""
	}
	return b.Error
}

func (r reply) String() string { return fmt.Sprintf("%d %v %.300s", r.status, r.header, r.body) }

// get sends a GET with header lines, as they are.
func (d *door) get(t testing.TB, target string, lines ...string) reply {
	t.Helper()
	return d.send(t, "GET", target, "", lines...)
}

func (d *door) send(t testing.TB, method, target, body string, lines ...string) reply {
	t.Helper()
	if body != "" {
		lines = append(lines, fmt.Sprintf("Content-Length: %d", len(body)))
	}
	lines = append([]string{method + " " + target + " HTTP/1.1", "Host: api.example.com", "Connection: close"}, lines...)
	r, err := d.raw(strings.Join(lines, "\r\n") + "\r\n\r\n" + body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	return r
}

// raw sends bytes and reads one response.
func (d *door) raw(request string) (reply, error) {
	conn, err := net.Dial("tcp", d.at)
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return reply{}, err
	}
	// A gateway may answer and close before it has read all of it.
	go func() { _, _ = io.WriteString(conn, request) }()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return reply{}, err
	}
	r := reply{status: res.StatusCode, header: res.Header, body: string(body)}
	var s seen
	if r.status == http.StatusOK && json.Unmarshal(body, &s) == nil && s.Method != "" {
		r.seen = &s
	}
	return r, nil
}

// refused fails unless a request was denied so, without reaching the service.
func (d *door) refused(t testing.TB, what string, status int, code string, ask func() reply) reply {
	t.Helper()
	before := d.service.hits.Load()
	r := ask()
	if r.status != status || r.code() != code {
		t.Errorf("%s: %s, want %d %s", what, r, status, code)
	}
	if got := r.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("%s: Content-Type %q", what, got)
	}
	if d.service.hits.Load() != before {
		t.Errorf("%s: it reached the service", what)
	}
	return r
}

// identity are the headers that a service may believe, and whatever a service could
// take for one of them.
func (s *seen) identity() map[string]string {
	out := map[string]string{}
	for name, values := range s.Header {
		folded := strings.ReplaceAll(strings.ToLower(name), "_", "-")
		if !strings.HasPrefix(folded, "x-rotunda") {
			continue
		}
		// No value and no header are the same to a service.
		if v := strings.Join(values, " AND "); v != "" || len(values) > 1 {
			out[name] = v
		}
	}
	return out
}

// wantSeen fails unless a request reached the service with exactly an identity, and
// with no credential.
func wantSeen(t testing.TB, what string, r reply, identity map[string]string, secrets ...string) *seen {
	t.Helper()
	if r.seen == nil {
		t.Fatalf("%s: %s, want it to reach the service", what, r)
	}
	if diff := cmp.Diff(identity, r.seen.identity()); diff != "" {
		t.Errorf("%s: identity (-want +got):\n%s", what, diff)
	}
	all, err := json.Marshal(r.seen)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets {
		if strings.Contains(string(all), s) {
			t.Errorf("%s: a credential reached the service in %v", what, headersWith(r.seen.Header, s))
		}
	}
	return r.seen
}

func headersWith(h http.Header, s string) (names []string) {
	for name, values := range h {
		if strings.Contains(strings.Join(values, " "), s) {
			names = append(names, name)
		}
	}
	return names
}

// who is the identity of a key of acme, or of another partner.
func who(partner, id, scopes string) map[string]string {
	return map[string]string{
		"X-Rotunda-Partner": partner, "X-Rotunda-Key-Id": id, "X-Rotunda-Scopes": scopes,
		"X-Rotunda-Environment": "live", "X-Rotunda-Class": "secret",
	}
}

package httptarget

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

const signing = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

// partner is a partner's system: it keeps accounts, checks signatures, and does what
// doc.go says that a partner does. field is where it finds the value.
type partner struct {
	url      string
	cert     string
	verifier webhook.Verifier

	mu       sync.Mutex
	accounts map[string]*account
	offset   time.Duration                                     // of its clock
	policy   int                                               // shortest password
	seen     []http.Header                                     // of all requests that were signed
	bodies   []string                                          //
	answer   func(w http.ResponseWriter, r *http.Request) bool // instead of its own
}

type account struct {
	epoch, generation int64
	values            []*valued
	sessions          []*session
}

type valued struct {
	password   string
	generation int64
	until      time.Time
}

type session struct {
	of    *valued
	alive bool
}

func newPartner(t testing.TB) *partner {
	t.Helper()
	key, err := webhook.ParseSecret(signing)
	if err != nil {
		t.Fatal(err)
	}
	p := &partner{verifier: webhook.Verifier{Secrets: []webhook.Secret{key}, Tolerance: time.Minute}, accounts: map[string]*account{}}
	server := httptest.NewTLSServer(p)
	t.Cleanup(server.Close)
	p.url = server.URL
	p.cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	return p
}

func (p *partner) add(names ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range names {
		p.accounts[n] = &account{}
	}
}

func (p *partner) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answer != nil && p.answer(w, r) {
		return
	}
	if _, _, err := p.verifier.Verify(r.Header, body, time.Now()); err != nil || r.Method != http.MethodPost {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	p.seen = append(p.seen, r.Header.Clone())
	p.bodies = append(p.bodies, string(body))
	var m message
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil || "/api/credentials/"+m.Type[len("credential."):] != r.URL.Path {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	a := p.accounts[m.Account]
	if a == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	p.do(w, a, m)
}

func (a *account) find(m message) *valued {
	for _, v := range a.values {
		password, ok := m.Fields["password"]
		if ok && subtle.ConstantTimeCompare([]byte(v.password), []byte(password)) == 1 || !ok && v.generation == m.Generation {
			return v
		}
	}
	return nil
}

func (p *partner) accepted(v *valued) bool {
	return v != nil && (v.until.IsZero() || time.Now().Add(p.offset).Before(v.until))
}

func (p *partner) now() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Add(p.offset)
}

func (p *partner) pass(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offset += d
}

func (p *partner) do(w http.ResponseWriter, a *account, m message) {
	v := a.find(m)
	switch m.Type {
	case "credential.set":
		if m.Generation < a.generation || m.Epoch < a.epoch {
			w.WriteHeader(http.StatusConflict)
			return
		}
		if len(m.Fields["password"]) < p.policy {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		a.generation, a.epoch = m.Generation, m.Epoch
		if v != nil {
			return
		}
		if m.Strategy != "dual" {
			a.values = nil
		}
		a.values = append(a.values, &valued{password: m.Fields["password"], generation: m.Generation})
	case "credential.test":
		if !p.accepted(v) {
			w.WriteHeader(http.StatusUnprocessableEntity)
		}
	case "credential.revoke":
		for _, s := range a.sessions {
			s.alive = s.alive && (!m.Emergency || s.of.password != m.Fields["password"])
		}
		if v == nil {
			w.WriteHeader(http.StatusGone)
			return
		}
		a.values = slices.DeleteFunc(a.values, func(w *valued) bool { return w == v })
	case "credential.retire":
		if m.Epoch < a.epoch {
			w.WriteHeader(http.StatusConflict)
			return
		}
		var end time.Time
		if m.End == "" {
			a.epoch = m.Epoch
		} else {
			var err error
			if end, err = time.Parse(time.RFC3339, m.End); err != nil {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
		}
		if v != nil {
			v.until = end
		}
	case "credential.usage":
		n := 0
		for _, s := range a.sessions {
			if s.alive && s.of == v {
				n++
			}
		}
		fmt.Fprintf(w, `{"sessions":%d}`, n)
	}
}

func (p *partner) accepts(h providers.Held) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.accounts[h.Account]
	return a != nil && p.accepted(a.find(message{Fields: map[string]string{"password": h.Fields.Text("password")}}))
}

func (p *partner) session(h providers.Held) (alive func() bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.accounts[h.Account]
	s := &session{of: a.find(message{Fields: map[string]string{"password": h.Fields.Text("password")}}), alive: true}
	a.sessions = append(a.sessions, s)
	return func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return s.alive
	}
}

func (p *partner) settings() map[string]string {
	return map[string]string{
		"address": p.url + "/api", "set": "credentials/set", "test": "credentials/test", "revoke": "credentials/revoke",
		"retire": "credentials/retire", "usage": "credentials/usage", "ca_cert": p.cert, "allow_private": "true",
	}
}

// open opens the kind as Rotunda does: its settings completed.
func openTarget(t testing.TB, settings map[string]string, key string) (providers.Target, error) {
	t.Helper()
	complete, err := providers.Complete("settings", Kind().Settings, settings)
	if err != nil {
		return nil, err
	}
	return Kind().Open(t.Context(), providers.Config{
		Name: "partner", Settings: complete, Login: providers.Fields{"signing_secret": secret.FromString(key)}, Now: time.Now,
	})
}

func (p *partner) open(t testing.TB) providers.Target {
	t.Helper()
	target, err := openTarget(t, p.settings(), signing)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

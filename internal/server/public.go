package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/jwks"
)

// defaultKeyset is the keyset that is also served at the root.
const defaultKeyset = "default"

// mountPublic adds the documents that anyone may read.
func (s *Server) mountPublic(mux *http.ServeMux) *public {
	p := &public{s: s}
	jwksOf := func(name func(*http.Request) string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { p.jwks(w, r, name(r)) }
	}
	discoveryOf := func(name func(*http.Request) string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { p.discovery(w, r, name(r)) }
	}
	named := func(r *http.Request) string { return r.PathValue("name") }
	root := func(*http.Request) string { return defaultKeyset }

	serve := func(path string, h http.HandlerFunc) {
		mux.HandleFunc("GET "+path, h)
		mux.HandleFunc(path, p.otherMethod)
	}

	serve("/keysets/{name}/jwks.json", jwksOf(named))
	serve("/.well-known/jwks.json", jwksOf(root))
	for _, d := range []string{"openid-configuration", "oauth-authorization-server"} {
		serve("/keysets/{name}/.well-known/"+d, discoveryOf(named))
		serve("/.well-known/"+d, discoveryOf(root))
		// RFC 8414, section 3.1, puts the well-known part before the issuer's path.
		serve("/.well-known/"+d+"/keysets/{name}", discoveryOf(named))
	}
	// Else a consumer with a wrong URL would look like a failed login.
	mux.HandleFunc("/keysets/", p.nowhere)
	mux.HandleFunc("/.well-known/", p.nowhere)
	return p
}

// public serves documents from memory.
type public struct {
	s       *Server
	headers sync.Map // keyset's name → *atomic.Pointer[cacheControl]
}

// Header values that never change are shared by all responses.
var (
	typeJWKS    = []string{"application/jwk-set+json"} // RFC 7517, section 8.5.2
	typeJSON    = []string{"application/json"}
	anyOrigin   = []string{"*"}
	exposed     = []string{"ETag"}
	noSniff     = []string{"nosniff"}
	noStore     = []string{"no-store"}
	crossOrigin = []string{"cross-origin"}
)

// cacheControl is a document's Cache-Control header at one second.
type cacheControl struct {
	doc    *jwks.Document
	second int64
	etag   []string
	length []string
	value  []string
}

func (p *public) jwks(w http.ResponseWriter, r *http.Request, name string) {
	if !p.admit(w, r) {
		return
	}
	doc := p.s.Keysets.Document(name)
	if doc == nil {
		p.missing(w, name)
		return
	}
	c := p.cache(doc)
	h := w.Header()
	h["Etag"], h["Cache-Control"] = c.etag, c.value
	h["Access-Control-Allow-Origin"], h["Access-Control-Expose-Headers"] = anyOrigin, exposed
	h["X-Content-Type-Options"], h["Cross-Origin-Resource-Policy"] = noSniff, crossOrigin
	if match := r.Header["If-None-Match"]; match != nil && matches(match, doc.ETag) {
		p.s.metrics.documents304.Inc()
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h["Content-Type"], h["Content-Length"] = typeJWKS, c.length
	p.s.metrics.documents200.Inc()
	if r.Method != http.MethodHead {
		_, _ = w.Write(doc.Body) // a client that went away needs no report
	}
}

// cache returns the headers of a document, made anew once a second because
// max-age shrinks towards the next removal.
func (p *public) cache(doc *jwks.Document) *cacheControl {
	now := p.s.DB.Now()
	slot, _ := p.headers.LoadOrStore(doc.Name, new(atomic.Pointer[cacheControl]))
	ptr := slot.(*atomic.Pointer[cacheControl])
	c := ptr.Load()
	if c != nil && c.doc == doc && c.second == now.Unix() {
		return c
	}
	age := int64(doc.MaxAge(now) / time.Second)
	c = &cacheControl{
		doc: doc, second: now.Unix(),
		etag:   []string{doc.ETag},
		length: []string{strconv.Itoa(len(doc.Body))},
		value:  []string{"public, max-age=" + strconv.FormatInt(age, 10) + ", must-revalidate"},
	}
	ptr.Store(c)
	return c
}

// matches evaluates If-None-Match (RFC 9110, section 13.1.2).
func matches(header []string, etag string) bool {
	for _, line := range header {
		for _, t := range strings.Split(line, ",") {
			t = strings.TrimSpace(t)
			if t == "*" || strings.TrimPrefix(t, "W/") == etag {
				return true
			}
		}
	}
	return false
}

// discovery is a keyset's metadata (OpenID Connect Discovery, section 3; RFC
// 8414, section 2). It names the keys and claims no endpoint that Rotunda does
// not have, as Kubernetes does for its service accounts.
func (p *public) discovery(w http.ResponseWriter, r *http.Request, name string) {
	if !p.admit(w, r) {
		return
	}
	doc := p.s.Keysets.Document(name)
	if doc == nil {
		p.missing(w, name)
		return
	}
	body, err := json.Marshal(map[string]any{
		"issuer":                                doc.Issuer,
		"jwks_uri":                              p.s.PublicURL + "/keysets/" + doc.Name + "/jwks.json",
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{string(doc.Algorithm.JWS())},
	})
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h["Content-Type"], h["Access-Control-Allow-Origin"], h["X-Content-Type-Options"] = typeJSON, anyOrigin, noSniff
	h.Set("Cache-Control", "public, max-age=300, must-revalidate")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that went away needs no report
	}
}

// otherMethod answers at a document's path what is neither GET nor HEAD.
func (p *public) otherMethod(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	if r.Method != http.MethodOptions {
		h.Set("Allow", "GET, HEAD, OPTIONS")
		http.Error(w, "documents are only read: use GET or HEAD", http.StatusMethodNotAllowed)
		return
	}
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD")
	h.Set("Access-Control-Allow-Headers", "If-None-Match, Authorization")
	h.Set("Access-Control-Max-Age", "86400")
	w.WriteHeader(http.StatusNoContent)
}

func (p *public) nowhere(w http.ResponseWriter, _ *http.Request) {
	w.Header()["Cache-Control"] = noStore
	http.Error(w, "there is nothing here: documents are at /keysets/NAME/jwks.json", http.StatusNotFound)
}

func (p *public) missing(w http.ResponseWriter, name string) {
	w.Header()["Cache-Control"] = noStore
	if !p.s.Keysets.Loaded() {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the documents are not loaded yet", http.StatusServiceUnavailable)
		return
	}
	p.s.metrics.documents404.Inc()
	if name == defaultKeyset {
		http.Error(w, "there is no keyset \"default\"", http.StatusNotFound)
		return
	}
	http.Error(w, "there is no such keyset", http.StatusNotFound)
}

// admit bounds what one client may ask for. A registered gateway is never
// refused: it comes from the address range of a gateway's token, or sends one.
func (p *public) admit(w http.ResponseWriter, r *http.Request) bool {
	from := p.s.client(r)
	if within(*p.s.gateways.Load(), from) || p.s.public.allow(from, p.s.DB.Now()) {
		return true
	}
	if r.Header["Authorization"] != nil && p.gateway(r, from) {
		return true
	}
	p.s.metrics.documents429.Inc()
	h := w.Header()
	h["Cache-Control"] = noStore
	h.Set("Retry-After", "1")
	http.Error(w, errTooFast.Error(), http.StatusTooManyRequests)
	return false
}

var errTooFast = errors.New("too many requests from this address: cache the document for its max-age, or register the gateway")

// gateway reports whether a request carries an accepted token of a gateway.
// Guesses are bounded like those at the API.
func (p *public) gateway(r *http.Request, from netip.Addr) bool {
	if !p.s.mayTry(r, from) {
		return false
	}
	ctx := audit.WithActor(r.Context(), audit.Actor{ID: "anonymous", Address: from.String()})
	t, err := p.s.authenticate(ctx, r, from)
	if errors.Is(err, fault.ErrDenied) {
		p.s.denyToken(ctx, r, from, err)
	}
	return err == nil && t.Role == apikeys.Gateway
}

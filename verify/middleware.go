package verify

import (
	"context"
	"io"
	"net/http"
	"strconv"
)

// Middleware lets requests through to a handler that have all of the scopes. Name
// them here, and not with [Require] behind it: then a request that is denied for a
// scope takes nothing from the rate limit.
func (g *Guard) Middleware(scopes ...string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx := r.Context()
			// The handler gets a request of its own, and the caller keeps his.
			own := r.Clone(ctx)
			v := g.request(own, scopes)
			h := w.Header()
			for name, values := range v.header {
				h[name] = values
			}
			if !v.ok() {
				refuse(w, v.status)
				return
			}
			g.strip(own.Header)
			next.ServeHTTP(w, own.WithContext(context.WithValue(ctx, identityKey{}, v.identity)))
		})
	}
}

// request judges a request; the body of a signed one is read and put back.
func (g *Guard) request(r *http.Request, scopes []string) *verdict {
	from := g.client(r.RemoteAddr, r.Header)
	cost := int64(1)
	if g.o.Cost != nil {
		cost = g.o.Cost(r)
	}
	c, v := g.read(r.Header)
	switch {
	case v != nil:
	case c.kind != KindSignature:
		v = g.judge(r.Context(), c, KeyRequest{Scopes: scopes, Address: from, Cost: cost})
	default:
		o := RequestOptions{
			Scheme: g.o.Scheme, Authority: g.o.Authority, MaxBody: g.o.MaxBody,
			Scopes: scopes, Address: from, Partner: g.o.Partner, Environment: g.o.Environment, Cost: cost,
		}
		var d Decision
		var err error
		if g.o.Keyring != nil {
			d, err = g.o.Keyring.VerifyRequest(r, o)
		} else {
			d, err = g.o.Client.VerifyRequest(r, o)
		}
		v = g.decided(KindSignature, d, err)
	}
	g.log(r.Context(), v, r.Method+" "+r.URL.Path, from)
	return v
}

// Require refuses with 403 whoever has not all of the scopes, behind the Middleware
// of a guard; and with 401 whoever did not come through one.
func Require(scopes ...string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id, ok := From(r.Context())
			if !ok {
				refuse(w, http.StatusUnauthorized)
				return
			}
			for _, s := range scopes {
				if !id.Has(s) {
					refuse(w, http.StatusForbidden)
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	}
}

// words are the bodies of refusals.
var words = map[int]string{
	http.StatusBadRequest:            "bad_request",
	http.StatusUnauthorized:          "unauthorized",
	http.StatusForbidden:             "forbidden",
	http.StatusRequestEntityTooLarge: "too_large",
	http.StatusTooManyRequests:       "rate_limited",
	http.StatusServiceUnavailable:    "unavailable",
}

func refuse(w http.ResponseWriter, status int) {
	word, ok := words[status]
	if !ok {
		status, word = http.StatusUnauthorized, words[http.StatusUnauthorized]
	}
	body := `{"error":"` + word + `"}` + "\n"
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // a client that went away needs no answer
}

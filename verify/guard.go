package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Options say who is let in, and how.
type Options struct {
	// Client accepts API keys, and signed requests unless Keyring does.
	Client *Client
	// Keyring accepts signed requests, without a server.
	Keyring *Keyring
	// Tokens accepts signed tokens (JWT) as Authorization: Bearer.
	Tokens *Tokens

	// Scheme and Authority are what clients address, for signed requests: set both
	// behind a proxy that ends TLS.
	Scheme, Authority string
	// MaxBody bounds the body of a signed request. 0: 1 MiB.
	MaxBody int64
	// Partner and Environment, if set, are the only ones that are let in. A token has
	// neither: with one of them set, tokens are refused.
	Partner, Environment string
	// Cost is what a request takes from the key's rate limit. nil, and in an
	// interceptor: 1.
	Cost func(*http.Request) int64

	// TrustedProxies are the addresses of which X-Forwarded-For is believed. The
	// client is the last address in it that is not one of them.
	TrustedProxies []netip.Prefix
	// StripCredential takes the credential off the request before the handler, which
	// may hand it on or log it.
	StripCredential bool
	// Realm is that of WWW-Authenticate. Empty: "api".
	Realm string
	// Log, if set, hears at debug level why a request was denied and at error level
	// why it could not be looked at.
	Log *slog.Logger
}

// Guard lets in what its options accept: in front of net/http handlers with
// Middleware, in front of Connect services with Interceptor. It is safe for
// concurrent use.
//
// A request must have exactly one credential: an API key in X-Api-Key or in
// Authorization: Bearer, a token in the latter, or a signature. Which of two is meant
// nobody can know, so two are refused. Fields that begin with X-Rotunda- never
// reach the handler.
//
// Refusals are 401, 403, 413, 429 and 503, with the fields that the server asks for and
// the same body for each status, so that a stranger learns nothing.
type Guard struct {
	o     Options
	realm string
}

// Format prints nothing of what it holds.
func (g Guard) Format(f fmt.State, _ rune) { fmt.Fprint(f, "verify.Guard") }

// NewGuard checks the options.
func NewGuard(o Options) (*Guard, error) {
	if o.Client == nil && o.Keyring == nil && o.Tokens == nil {
		return nil, errors.New("making a guard: set Client, Keyring or Tokens: without one nobody can be let in")
	}
	if (o.Scheme == "") != (o.Authority == "") {
		return nil, errors.New("making a guard: set both of Scheme and Authority, or neither")
	}
	if o.Realm == "" {
		o.Realm = "api"
	}
	if !printable(o.Realm) || strings.ContainsAny(o.Realm, `"\`) {
		return nil, errors.New("making a guard: Realm is ASCII without quotes and backslashes")
	}
	o.TrustedProxies = slices.Clone(o.TrustedProxies)
	return &Guard{o: o, realm: `Bearer realm="` + o.Realm + `"`}, nil
}

// Kind is how a caller proved who he is.
type Kind string

// The kinds.
const (
	KindAPIKey    Kind = "api_key"
	KindSignature Kind = "signature"
	KindToken     Kind = "token"
)

// Identity is who a request is from.
type Identity struct {
	Kind    Kind
	Partner string // empty for a token
	Subject string // of a token, else the id of the key
	Scopes  []string
	// Decision is that about an API key or a signed request.
	Decision *Decision
	// Claims are those of a token.
	Claims *Claims
}

// Has says whether the caller has the scope.
func (i *Identity) Has(scope string) bool { return slices.Contains(i.Scopes, scope) }

type identityKey struct{}

// From returns who the request is from. It is false where no guard stands.
func From(ctx context.Context) (Identity, bool) {
	id, ok := ctx.Value(identityKey{}).(Identity)
	return id, ok
}

// verdict is what a guard makes of a request.
type verdict struct {
	identity Identity
	status   int
	header   http.Header
	reason   Reason
	message  string
	err      error // why it could not be looked at
}

func (v *verdict) ok() bool { return v.status == http.StatusOK }

// credential is what a request presents.
type credential struct {
	kind  Kind
	value string // of a key or token
}

// read finds the credential of a request. All that is not one, exactly, is a denial.
func (g *Guard) read(h http.Header) (credential, *verdict) {
	auth, key := h.Values("Authorization"), h.Values("X-Api-Key")
	signed := len(h.Values("Signature")) > 0 || len(h.Values("Signature-Input")) > 0
	count := len(auth) + len(key)
	if signed {
		count++
	}
	switch {
	case count == 0:
		return credential{}, g.deny(ReasonMissing, "there is no credential")
	case count > 1:
		return credential{}, g.deny(ReasonMalformed, "there is more than one credential")
	case signed:
		if g.o.Client == nil && g.o.Keyring == nil {
			return credential{}, g.deny(ReasonUnknown, "signed requests are not accepted here")
		}
		return credential{kind: KindSignature}, nil
	case len(key) == 1:
		return g.bearer(key[0], false)
	}
	scheme, value, ok := strings.Cut(auth[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return credential{}, g.deny(ReasonMalformed, "the Authorization field is not Bearer and a credential")
	}
	return g.bearer(strings.TrimLeft(value, " "), true)
}

// bearer tells a token from an API key by its form.
func (g *Guard) bearer(value string, mayBeToken bool) (credential, *verdict) {
	switch {
	case value == "" || strings.ContainsAny(value, " \t") || !printable(value):
		return credential{}, g.deny(ReasonMalformed, "it has not the form of a credential")
	case mayBeToken && g.o.Tokens != nil && (g.o.Client == nil || looksLikeToken(value)):
		return credential{kind: KindToken, value: value}, nil
	case g.o.Client == nil:
		return credential{}, g.deny(ReasonUnknown, "API keys are not accepted here")
	}
	return credential{kind: KindAPIKey, value: value}, nil
}

// judge verifies a key or a token. Signed requests need the whole request.
func (g *Guard) judge(ctx context.Context, c credential, q KeyRequest) *verdict {
	if c.kind == KindToken {
		return g.judgeToken(ctx, c.value, q.Scopes)
	}
	q.Key, q.Partner, q.Environment = c.value, g.o.Partner, g.o.Environment
	d, err := g.o.Client.VerifyKey(ctx, q)
	return g.decided(KindAPIKey, d, err)
}

func (g *Guard) judgeToken(ctx context.Context, token string, scopes []string) *verdict {
	if g.o.Partner != "" || g.o.Environment != "" {
		return g.deny(ReasonUnknown, "tokens are not accepted where a partner or an environment is named")
	}
	claims, err := g.o.Tokens.Verify(ctx, token)
	if d, ok := errors.AsType[*Denied](err); ok {
		return g.deny(d.Reason, d.Message)
	}
	if err != nil {
		return unavailableVerdict(err)
	}
	for _, s := range scopes {
		if !claims.Has(s) {
			v := g.deny(ReasonScope, "the scope "+quote(s)+" is needed")
			v.header = http.Header{"Www-Authenticate": {g.realm + `, error="insufficient_scope"`}}
			return v
		}
	}
	return &verdict{status: http.StatusOK, reason: ReasonOK, identity: Identity{
		Kind: KindToken, Subject: claims.Subject, Scopes: claims.Scopes, Claims: claims,
	}}
}

func (g *Guard) decided(kind Kind, d Decision, err error) *verdict {
	if err != nil {
		return unavailableVerdict(err)
	}
	if !d.OK() {
		v := g.deny(d.Reason, d.Message)
		if d.Status >= 400 && d.Status < 500 {
			v.status = d.Status
		}
		for name, values := range d.Header {
			v.header[name] = values
		}
		return v
	}
	return &verdict{status: http.StatusOK, reason: ReasonOK, header: d.Header, identity: Identity{
		Kind: kind, Partner: d.Partner, Subject: d.KeyID, Scopes: d.Scopes, Decision: &d,
	}}
}

func (g *Guard) deny(r Reason, message string) *verdict {
	v := &verdict{status: r.status(), reason: r, message: message, header: http.Header{}}
	if v.status == http.StatusUnauthorized {
		challenge := g.realm
		if r != ReasonMissing {
			challenge += `, error="invalid_token"` // RFC 6750, section 3.1
		}
		v.header.Set("WWW-Authenticate", challenge)
	}
	return v
}

func unavailableVerdict(err error) *verdict {
	return &verdict{
		status: http.StatusServiceUnavailable, message: "it could not be looked at", err: err,
		header: http.Header{"Retry-After": {"1"}},
	}
}

// log tells whoever runs the service why; the client is not told.
func (g *Guard) log(ctx context.Context, v *verdict, where string, from netip.Addr) {
	if g.o.Log == nil || v.ok() {
		return
	}
	if v.err != nil {
		// The caller gave up: that is no fault of the server.
		if ctx.Err() == nil {
			g.o.Log.ErrorContext(ctx, "a request could not be verified", "where", where, "error", v.err)
		}
		return
	}
	g.o.Log.DebugContext(ctx, "request denied", "where", where, "reason", string(v.reason), "why", v.message, "address", addressText(from))
}

// strip takes off what a handler must not believe, and the credential if asked.
func (g *Guard) strip(h http.Header) {
	for name := range h {
		// Some servers make one name of X_Rotunda_ and X-Rotunda-.
		const prefix = "x-rotunda-"
		if len(name) >= len(prefix) && strings.EqualFold(strings.ReplaceAll(name[:len(prefix)], "_", "-"), prefix) {
			delete(h, name)
		}
	}
	if g.o.StripCredential {
		for _, name := range []string{"Authorization", "X-Api-Key", "Signature", "Signature-Input"} {
			h.Del(name)
		}
	}
}

// client is the address of the client, as far as it can be known.
func (g *Guard) client(remote string, h http.Header) netip.Addr {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{} // a socket without addresses
	}
	client := at.Addr().Unmap().WithZone("")
	lines := h.Values("X-Forwarded-For")
	for i := len(lines) - 1; i >= 0; i-- {
		hops := strings.Split(lines[i], ",")
		for j := len(hops) - 1; j >= 0; j-- {
			if !g.trusted(client) {
				return client
			}
			next, ok := parseHop(hops[j])
			if !ok {
				// Who is before the last proxy can't be told: nobody in particular.
				return netip.Addr{}
			}
			client = next
		}
	}
	return client
}

func (g *Guard) trusted(a netip.Addr) bool {
	return slices.ContainsFunc(g.o.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// parseHop reads an entry of X-Forwarded-For; some proxies add the port.
func parseHop(s string) (netip.Addr, bool) {
	s = strings.TrimSpace(s)
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if a, err := netip.ParseAddrPort(s); err == nil {
		return a.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

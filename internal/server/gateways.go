package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// Gateways ask in two more ways than the RPCs: Envoy by its ext_authz protocol, the
// others by forward-auth. Both only translate: the question becomes a gate, [Server.judge]
// decides it by the same Verifier as the RPCs, and the verdict becomes the answer.
//
// Whatever is wrong denies: a parameter that is not known, a header that is there
// twice, a database out of reach. A client is told which kind of thing was wrong,
// never whether a key exists.

// Where gateways ask.
const (
	forwardAuthPath   = "/gateway/forward-auth"
	extAuthzProcedure = "/envoy.service.auth.v3.Authorization/Check"
)

// Bounds of what a gateway asks.
const (
	gatewayTimeout   = 5 * time.Second
	maxKeyValue      = 1024
	maxNeededScopes  = 64
	maxScopeName     = 128
	maxTarget        = 8 << 10
	maxClientHeaders = 256
	maxHops          = 16
	maxCost          = 1_000_000
)

// mountGateways mounts what gateways other than Rotunda's own clients ask.
func (s *Server) mountGateways(mux *http.ServeMux) error {
	options := []connect.HandlerOption{connect.WithReadMaxBytes(maxBody)}
	if s.Tracing {
		otel, err := otelconnect.NewInterceptor(otelconnect.WithoutMetrics())
		if err != nil {
			return fmt.Errorf("make the OpenTelemetry interceptor of ext_authz: %w", err)
		}
		options = append(options, connect.WithInterceptors(otel))
	}
	mux.Handle(extAuthzProcedure, s.authenticated(connect.NewUnaryHandler(extAuthzProcedure, s.check, options...)))
	mux.HandleFunc(forwardAuthPath, s.forwardAuth)
	return nil
}

// rules are what a gateway's configuration asks of a request. The client has no
// part in them.
type rules struct {
	need      apikeys.Need
	require   string // requireKey, requireSignature, requireEither
	authority string // of signed requests; "": as the gateway got it
	scheme    string // the same
	keyHeader string // canonical; "": Authorization: Bearer, or X-Api-Key
	keyQuery  string // "": never
	hops      int    // 0: the address of the connection
	body      string // what the gateway does about bodies: bodyForwarded, bodyBuffered
}

const (
	requireKey       = "key"
	requireSignature = "signature"
	requireEither    = "either"

	// The gateway tells by headers of its own whether there is a body (forward-auth).
	bodyForwarded = "forwarded"
	// The gateway hands bodies over (ext_authz).
	bodyBuffered = "buffered"
)

// set takes one parameter over. A name that is not known is an error: a misspelt
// "scope" must not ask for nothing.
func (r *rules) set(name, value string) error {
	bad := func(want string) error { return fmt.Errorf("parameter %s: want %s", name, want) }
	switch name {
	case "scope":
		for scope := range strings.FieldsFuncSeq(value, func(c rune) bool { return c == ',' || c == ' ' }) {
			if len(scope) > maxScopeName || len(r.need.Scopes) == maxNeededScopes || scopeList([]string{scope}) == "" {
				return bad("at most 64 scopes of at most 128 characters")
			}
			r.need.Scopes = append(r.need.Scopes, scope)
		}
		if len(r.need.Scopes) == 0 {
			return bad("a scope, or leave it out")
		}
	case "partner":
		r.need.Partner = value
		if value == "" || len(value) > 63 {
			return bad("the name of a partner, or leave it out")
		}
	case "environment":
		r.need.Environment = value
		if value == "" || len(value) > 16 {
			return bad("an environment, or leave it out")
		}
	case "authority":
		r.authority = value
		if value == "" || len(value) > 255 || !printable(value) {
			return bad("host, or host:port")
		}
	case "scheme":
		r.scheme = value
		if value != "https" && value != "http" {
			return bad("https or http")
		}
	case "cost":
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 1 || n > maxCost {
			return bad("1 to 1000000")
		}
		r.need.Cost = n
	case "require":
		r.require = value
		if value != requireKey && value != requireSignature && value != requireEither {
			return bad("key, signature or either")
		}
	case "key_header":
		r.keyHeader = http.CanonicalHeaderKey(value)
		if value == "" || len(value) > 64 || strings.ContainsFunc(value, func(c rune) bool { return !isNameChar(c) }) {
			return bad("the name of a header")
		}
	default:
		return fmt.Errorf("parameter %q is not known: there are scope, partner, environment, authority, scheme, cost, require, key_header, and see docs/gateways.md for those of each protocol", clip(name))
	}
	return nil
}

func isNameChar(c rune) bool {
	return c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// printable reports whether a text can be the value of a header: printable ASCII.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func clip(s string) string { return s[:min(len(s), 64)] }

// gate is one question of a gateway: what the client sent, as far as the gateway
// can vouch for it, and what is asked of it.
type gate struct {
	rules
	method, scheme, authority string
	target                    string      // path and query, as in the request line
	header                    http.Header // the client's
	body                      []byte
	omitted                   bool // there may be a body that was not handed over
}

// verdict is what a gateway is to do.
type verdict struct {
	status   int    // 200: let it through
	code     string // what the client is told; "ok"
	reason   string // for operators; "" when code says all
	headers  []header
	identity []header // for the upstream, when status is 200
	decision apikeys.Decision
}

// The messages that go with codes.
var gateMessages = map[string]string{
	"missing_credentials":   "the request carries no key and no signature",
	"several_credentials":   "the request carries more than one key: send one",
	"invalid_key":           "the key is not accepted",
	"invalid_signature":     "the signature is not accepted",
	"insufficient_scope":    "the key does not have the scope that this request needs",
	"address_not_allowed":   "the key is not accepted from this address",
	"rate_limited":          "the key's rate limit is used up: try again later",
	"body_not_verifiable":   "this gateway can't verify a signed request that has a body",
	"bad_request":           "the request can't be read in one way only",
	"unavailable":           "the request can't be verified now: try again",
	"gateway_misconfigured": "the gateway is not set up right: tell its operator",
}

func refusal(status int, code string, headers ...header) verdict {
	return verdict{status: status, code: code, headers: headers}
}

// body is the verdict as the client gets it.
func (v *verdict) body() string {
	// Nothing of these texts needs an escape.
	return `{"error":"` + v.code + `","message":"` + gateMessages[v.code] + "\"}\n"
}

// judge decides a question.
func (s *Server) judge(ctx context.Context, g *gate) verdict {
	signed := len(g.header["Signature-Input"]) > 0 || len(g.header["Signature"]) > 0
	if g.require == requireSignature || g.require != requireKey && signed {
		if !signed {
			return missing()
		}
		return s.judgeSigned(ctx, g)
	}
	value, several := g.credential()
	switch {
	case several:
		return refusal(http.StatusUnauthorized, "several_credentials", header{"WWW-Authenticate", `Bearer error="invalid_request"`})
	case value == "":
		return missing()
	}
	d := apikeys.Decision{Reason: apikeys.ReasonMalformed}
	var err error
	if len(value) <= maxKeyValue {
		d, err = s.Verifier.Verify(ctx, value, &g.need)
	}
	s.metrics.decided(apikeys.APIKey, d.Reason, err)
	if err != nil {
		return s.undecided(ctx, err)
	}
	return s.conclude(ctx, g, d, "invalid_key")
}

// missing has a challenge without an error code: RFC 6750, section 3.1.
func missing() verdict {
	return refusal(http.StatusUnauthorized, "missing_credentials", header{"WWW-Authenticate", "Bearer"})
}

func (s *Server) judgeSigned(ctx context.Context, g *gate) verdict {
	if g.omitted {
		return refusal(http.StatusForbidden, "body_not_verifiable")
	}
	m := httpsig.Message{Method: g.method, Scheme: g.scheme, Authority: g.authority, Header: g.header}
	if g.rules.authority != "" {
		m.Authority = g.rules.authority
	}
	if g.rules.scheme != "" {
		m.Scheme = g.rules.scheme
	}
	m.Path, m.Query, m.HasQuery = strings.Cut(g.target, "?")
	if m.Method == "" || m.Scheme == "" || m.Authority == "" || m.Path == "" {
		v := refusal(http.StatusInternalServerError, "gateway_misconfigured")
		v.reason = "a signed request needs its method, scheme, authority and path from the gateway"
		return v
	}
	d, _, err := s.Verifier.VerifyRequest(ctx, &apikeys.Request{Message: m, Body: g.body, Need: g.need})
	s.metrics.decided(apikeys.RequestSecret, d.Reason, err)
	if err != nil {
		return s.undecided(ctx, err)
	}
	return s.conclude(ctx, g, d, "invalid_signature")
}

// undecided is the verdict when nobody knows: the request does not pass.
func (s *Server) undecided(ctx context.Context, err error) verdict {
	level, text := slog.LevelError, "a gateway's question failed for no known reason"
	if errors.Is(err, fault.ErrUnavailable) || ctx.Err() != nil {
		level, text = slog.LevelWarn, "a gateway's question was not decided because something is out of reach"
	}
	s.log.LogAttrs(ctx, level, text, slog.String("request_id", requestID(ctx)), slog.Any("error", err))
	return refusal(http.StatusServiceUnavailable, "unavailable", header{"Retry-After", "1"})
}

// conclude turns a decision into a verdict. invalid is what the client is told when
// its credential is not accepted.
func (s *Server) conclude(ctx context.Context, g *gate, d apikeys.Decision, invalid string) verdict {
	v := verdict{code: invalid, reason: d.Reason.String(), decision: d}
	v.status, v.headers = decisionHeaders(d, s.DB.Now(), g.need.Scopes...)
	switch d.Reason {
	case apikeys.ReasonScope:
		v.code = "insufficient_scope"
	case apikeys.ReasonAddress:
		v.code = "address_not_allowed"
	case apikeys.ReasonRate:
		v.code = "rate_limited"
	case apikeys.ReasonOK:
		v.code = "ok"
		v.identity = identityOf(d)
		for _, h := range v.identity {
			if !printable(h.value) {
				return s.undecided(ctx, fmt.Errorf("%s of key %s can't be written in a header", h.name, d.Key.ID))
			}
		}
	default: // told as invalid
	}
	return v
}

// The identity headers, which no client may set.
const identityPrefix = "x-rotunda-"

// identityOf is who makes an accepted request, for the upstream. All of them are
// always there, so that each one overwrites what a client may have sent.
func identityOf(d apikeys.Decision) []header {
	return []header{
		{"X-Rotunda-Partner", d.Key.Partner},
		{"X-Rotunda-Key-Id", d.Key.ID},
		{"X-Rotunda-Scopes", strings.Join(d.Scopes, " ")},
		{"X-Rotunda-Environment", d.Key.Environment},
		{"X-Rotunda-Class", string(d.Key.Class)},
	}
}

// credential finds the key in a request. several is true when there is more than
// one, or a header that must be there once is there twice: two parsers could then
// take different ones.
func (g *gate) credential() (value string, several bool) {
	take := func(v string) {
		several = several || value != ""
		value = v
	}
	line := func(name string) (v string, ok bool) {
		lines := g.header[name]
		several = several || len(lines) > 1
		if len(lines) != 1 || lines[0] == "" {
			return "", false
		}
		return lines[0], true
	}
	if g.keyHeader == "" || g.keyHeader == "Authorization" {
		if v, ok := line("Authorization"); ok {
			scheme, token, _ := strings.Cut(v, " ")
			if strings.EqualFold(scheme, "Bearer") {
				take(cmp.Or(strings.TrimSpace(token), " ")) // there, and empty
			}
		}
	}
	if name := g.keyHeader; name != "Authorization" {
		if name == "" {
			name = "X-Api-Key"
		}
		if v, ok := line(name); ok {
			take(v)
		}
	}
	if g.keyQuery != "" {
		_, query, _ := strings.Cut(g.target, "?")
		// Names are compared as they are written, because that is how Envoy removes
		// them: one that is spelt with an escape is no key.
		for pair := range strings.SplitSeq(query, "&") {
			if name, v, _ := strings.Cut(pair, "="); name == g.keyQuery && v != "" {
				take(v)
			}
		}
	}
	return value, several
}

// withoutBody reports whether a request is known to have no body, by its method and
// its Content-Length and Transfer-Encoding. Of a method whose body means nothing
// (RFC 9110, section 9.3), no length is none: HTTP/2 can have a body that no header
// announces, and who acts on the body of a GET acts on what nobody has signed.
func withoutBody(method string, length, coding []string) bool {
	for _, v := range coding {
		if v != "" {
			return false
		}
	}
	told := false
	for _, v := range length {
		if v != "" && v != "0" {
			return false
		}
		told = told || v == "0"
	}
	return told || method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions || method == http.MethodDelete
}

// lastHop is the address that is n-th from the right in X-Forwarded-For: the one
// that the n-th proxy from here has seen. The zero value, which is in no range, when
// there is none.
func lastHop(lines []string, n int) netip.Addr {
	for i := len(lines) - 1; i >= 0; i-- {
		rest := lines[i]
		for {
			at := strings.LastIndexByte(rest, ',')
			if n--; n == 0 {
				a, err := netip.ParseAddr(strings.TrimSpace(rest[at+1:]))
				if err != nil {
					return netip.Addr{}
				}
				return a.Unmap().WithZone("")
			}
			if at < 0 {
				break
			}
			rest = rest[:at]
		}
	}
	return netip.Addr{}
}

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// partialBody is how Envoy says whether the body that it hands over is all of it.
const partialBody = "X-Envoy-Auth-Partial-Body"

// check is Envoy's ext_authz, version 3: envoy.service.auth.v3.Authorization/Check.
// What is asked is in the route's context_extensions, named as the parameters of
// forward-auth.
//
// Every denial is a denied_response, one for want of the database too (503): Envoy
// lets a request through on an error when failure_mode_allow is set, but never on
// a denial.
func (s *Server) check(ctx context.Context, req *connect.Request[authv3.CheckRequest]) (*connect.Response[authv3.CheckResponse], error) {
	began := s.DB.Tick()
	ctx, cancel := context.WithTimeout(ctx, gatewayTimeout)
	defer cancel()
	c := callerOf(ctx)
	if c.token == nil || !c.who.may(s.authz, extAuthzProcedure, "") {
		s.deny(ctx, audit.Event{Action: actionOf(extAuthzProcedure), Reason: "role"})
		s.metrics.request(extAuthzProcedure, connect.CodePermissionDenied.String(), s.DB.Tick()-began)
		return nil, s.edge(ctx, extAuthzProcedure, fault.New(fault.ErrDenied, "role",
			"a token of this role may not call ext_authz: give Envoy one of role gateway"))
	}
	g, v := readCheck(req.Msg.GetAttributes())
	if g != nil {
		v = s.judge(ctx, g)
	}
	if v.code == "gateway_misconfigured" {
		s.log.LogAttrs(ctx, slog.LevelWarn, "a gateway asks in a way that is not understood, and is denied", slog.String("request_id", c.request),
			slog.String("token", c.token.ID), slog.String("problem", v.reason))
	}
	s.metrics.request(extAuthzProcedure, v.code, s.DB.Tick()-began)
	return connect.NewResponse(checkAnswer(g, &v)), nil
}

// readCheck reads the question, or says why it is none.
func readCheck(a *authv3.AttributeContext) (*gate, verdict) {
	h := a.GetRequest().GetHttp()
	g := &gate{method: h.GetMethod(), scheme: h.GetScheme(), authority: h.GetHost(), target: h.GetPath()}
	if err := g.extensions(a.GetContextExtensions()); err != nil {
		v := refusal(http.StatusInternalServerError, "gateway_misconfigured")
		v.reason = err.Error()
		return nil, v
	}
	lines := len(h.GetHeaders()) + len(h.GetHeaderMap().GetHeaders())
	if lines > maxClientHeaders || len(g.target) > maxTarget || !forwardable(g) {
		return nil, refusal(http.StatusForbidden, "bad_request")
	}
	g.header = make(http.Header, lines)
	add := func(name, value string) {
		if name != "" && name[0] != ':' {
			name = http.CanonicalHeaderKey(name)
			g.header[name] = append(g.header[name], value)
		}
	}
	for name, value := range h.GetHeaders() {
		add(name, value)
	}
	for _, line := range h.GetHeaderMap().GetHeaders() { // with encode_raw_headers, in place of the map
		value := line.GetValue()
		if raw := line.GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		add(line.GetKey(), value)
	}
	g.need.Address = peerOf(a)
	if g.hops > 0 {
		g.need.Address = lastHop(g.header["X-Forwarded-For"], g.hops)
	}
	g.readBody(h)
	return g, verdict{}
}

func peerOf(a *authv3.AttributeContext) netip.Addr {
	addr, err := netip.ParseAddr(a.GetSource().GetAddress().GetSocketAddress().GetAddress())
	if err != nil {
		return netip.Addr{} // a pipe: it is in no range
	}
	return addr.Unmap().WithZone("")
}

// readBody takes the body over, if all of it is there.
func (g *gate) readBody(h *authv3.AttributeContext_HttpRequest) {
	length, coding := g.header["Content-Length"], g.header["Transfer-Encoding"]
	partial := g.header[partialBody]
	if g.rules.body != bodyBuffered || len(partial) == 0 {
		// With buffered, Envoy would have handed a body over that no header
		// announces; one that a header announces it has kept back.
		g.omitted = !withoutBody(g.method, length, coding)
		if g.rules.body == bodyBuffered {
			g.omitted = !withoutBody(http.MethodGet, length, coding)
		}
		return
	}
	g.body = h.GetRawBody()
	if len(g.body) == 0 {
		g.body = []byte(h.GetBody())
	}
	// A client may have written the header too: all of them must say so.
	g.omitted = slices.ContainsFunc(partial, func(v string) bool { return v != "false" }) ||
		len(length) > 0 && !slices.Equal(length, []string{strconv.Itoa(len(g.body))})
}

// extensions reads what the route's configuration asks.
func (g *gate) extensions(of map[string]string) error {
	for name, value := range of {
		switch name {
		case "body":
			if value != bodyBuffered {
				return errors.New("parameter body: want buffered (with_request_body is set), or leave it out")
			}
			g.rules.body = value
		case "key_query":
			g.keyQuery = value
			if value == "" || len(value) > 64 || strings.ContainsFunc(value, func(c rune) bool { return c != '_' && !isNameChar(c) }) {
				return errors.New("parameter key_query: want the name of a query parameter")
			}
		case "trusted_hops":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 || n > maxHops {
				return fmt.Errorf("parameter trusted_hops: want 1 to %d", maxHops)
			}
			g.hops = n
		default:
			if err := g.set(name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkAnswer is a verdict in Envoy's words. g is nil when there was no question.
func checkAnswer(g *gate, v *verdict) *authv3.CheckResponse {
	if v.status != http.StatusOK {
		headers := append([]header{{"Content-Type", "application/json"}, {"Cache-Control", "no-store"}}, v.headers...)
		return &authv3.CheckResponse{
			Status: &rpcstatus.Status{Code: int32(rpcCode(v.status)), Message: v.code},
			HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
				Status: &typev3.HttpStatus{Code: typev3.StatusCode(v.status)}, Headers: overwrite(headers), Body: v.body(),
			}},
			DynamicMetadata: metadataOf(v),
		}
	}
	ok := &authv3.OkHttpResponse{ResponseHeadersToAdd: overwrite(v.headers)}
	for _, h := range v.identity {
		if h.value == "" { // Envoy may leave out a header without a value, and the client's would stay
			ok.HeadersToRemove = append(ok.HeadersToRemove, strings.ToLower(h.name))
			continue
		}
		ok.Headers = append(ok.Headers, overwrite([]header{h})...)
	}
	ok.HeadersToRemove = append(ok.HeadersToRemove, g.toRemove(v.identity)...)
	slices.Sort(ok.HeadersToRemove)
	ok.HeadersToRemove = slices.Compact(ok.HeadersToRemove)
	if g.keyQuery != "" {
		ok.QueryParametersToRemove = []string{g.keyQuery}
	}
	return &authv3.CheckResponse{
		Status:          &rpcstatus.Status{},
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: metadataOf(v),
	}
}

// toRemove are the headers of the client that the upstream must not see: its key,
// and what looks like an identity header. An underscore may be taken for a hyphen
// behind the gateway.
func (g *gate) toRemove(set []header) []string {
	out := []string{strings.ToLower(gatewayToken)}
	switch {
	case g.require == requireSignature: // Authorization is for somebody else then
	case g.keyHeader != "":
		out = append(out, strings.ToLower(g.keyHeader))
	default:
		out = append(out, "x-api-key")
		if slices.ContainsFunc(g.header["Authorization"], func(v string) bool { return strings.Contains(strings.ToLower(v), "bearer") }) {
			out = append(out, "authorization")
		}
	}
	for name := range g.header {
		name = strings.ToLower(name)
		if strings.HasPrefix(strings.ReplaceAll(name, "_", "-"), identityPrefix) &&
			!slices.ContainsFunc(set, func(h header) bool { return strings.ToLower(h.name) == name }) {
			out = append(out, name)
		}
	}
	return out
}

func overwrite(headers []header) []*corev3.HeaderValueOption {
	out := make([]*corev3.HeaderValueOption, len(headers))
	for i, h := range headers {
		out[i] = &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: strings.ToLower(h.name), Value: h.value},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}
	}
	return out
}

// rpcCode is the gRPC code that goes with a denial. Envoy looks at the HTTP status;
// any code but 0 denies.
func rpcCode(status int) connect.Code {
	switch status {
	case http.StatusUnauthorized:
		return connect.CodeUnauthenticated
	case http.StatusTooManyRequests:
		return connect.CodeResourceExhausted
	case http.StatusServiceUnavailable:
		return connect.CodeUnavailable
	default:
		return connect.CodePermissionDenied
	}
}

// metadataOf is for Envoy's access log and later filters, which the client does not
// see: the exact reason, and whose key it was.
func metadataOf(v *verdict) *structpb.Struct {
	text := func(s string) *structpb.Value { return structpb.NewStringValue(strings.ToValidUTF8(s, "?")) }
	fields := map[string]*structpb.Value{"code": text(v.code)}
	if v.reason != "" {
		fields["reason"] = text(v.reason)
	}
	d := &v.decision
	if k := d.Key; k != nil {
		scopes := make([]*structpb.Value, len(d.Scopes))
		for i, s := range d.Scopes {
			scopes[i] = text(s)
		}
		fields["partner"], fields["key_id"] = text(k.Partner), text(k.ID)
		fields["environment"], fields["class"] = text(k.Environment), text(string(k.Class))
		fields["scopes"] = structpb.NewListValue(&structpb.ListValue{Values: scopes})
		if d.Reason == apikeys.ReasonOK && k.Stored == apikeys.Retiring {
			fields["retiring"] = structpb.NewBoolValue(true)
		}
	}
	return &structpb.Struct{Fields: fields}
}

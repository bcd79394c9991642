package verify

import (
	"context"
	"errors"
	"net/http"

	"connectrpc.com/connect"
)

// Interceptor lets calls through to a Connect service that have the scopes of their
// method; scopes may be nil, and then a credential is enough. Unary and streaming
// calls are judged alike, by their header before the first message.
//
// An interceptor does not see the bytes that a signature covers: to accept signed
// calls, put Middleware around the handler in its place. Here they are refused.
func (g *Guard) Interceptor(scopes func(connect.Spec) []string) connect.Interceptor {
	if scopes == nil {
		scopes = func(connect.Spec) []string { return nil }
	}
	return &interceptor{g, scopes}
}

type interceptor struct {
	g      *Guard
	scopes func(connect.Spec) []string
}

func (i *interceptor) call(ctx context.Context, spec connect.Spec, remote string, h http.Header) (context.Context, *verdict) {
	from := i.g.client(remote, h)
	c, v := i.g.read(h)
	switch {
	case v != nil:
	case c.kind == KindSignature:
		v = i.g.deny(ReasonUnknown, "signed requests need the middleware")
	default:
		v = i.g.judge(ctx, c, KeyRequest{Scopes: i.scopes(spec), Address: from})
	}
	i.g.log(ctx, v, spec.Procedure, from)
	if v.ok() {
		i.g.strip(h)
		ctx = context.WithValue(ctx, identityKey{}, v.identity)
	}
	return ctx, v
}

// WrapUnary implements [connect.Interceptor]. Calls of a client pass.
func (i *interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if req.Spec().IsClient {
			return next(ctx, req)
		}
		ctx, v := i.call(ctx, req.Spec(), req.Peer().Addr, req.Header())
		if !v.ok() {
			return nil, v.connectError(req.Peer().Protocol)
		}
		res, err := next(ctx, req)
		if e, ok := errors.AsType[*connect.Error](err); ok {
			add(e.Meta(), v.header) // of one who was let in: no WWW-Authenticate is among them
		} else if err == nil {
			add(res.Header(), v.header)
		}
		return res, err
	}
}

// WrapStreamingClient implements [connect.Interceptor]. Calls of a client pass.
func (i *interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements [connect.Interceptor].
func (i *interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		ctx, v := i.call(ctx, conn.Spec(), conn.Peer().Addr, conn.RequestHeader())
		if !v.ok() {
			return v.connectError(conn.Peer().Protocol)
		}
		add(conn.ResponseHeader(), v.header)
		return next(ctx, conn)
	}
}

func add(to, from http.Header) {
	for name, values := range from {
		to[name] = values
	}
}

// connectError tells no more than the status of an HTTP response would.
func (v *verdict) connectError(protocol string) error {
	code := connect.CodeUnauthenticated
	switch v.status {
	case http.StatusForbidden:
		code = connect.CodePermissionDenied
	case http.StatusTooManyRequests:
		code = connect.CodeResourceExhausted
	case http.StatusServiceUnavailable:
		code = connect.CodeUnavailable
	}
	word := words[v.status]
	if word == "" {
		word = words[http.StatusUnauthorized]
	}
	e := connect.NewError(code, errors.New(word))
	add(e.Meta(), v.header)
	if protocol == connect.ProtocolGRPC {
		// Its fields are trailers, and this must not be one (RFC 9110, section 6.5.1).
		e.Meta().Del("WWW-Authenticate")
	}
	return e
}

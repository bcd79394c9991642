package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// interceptor authorizes and validates each message, gives the handler its
// deadline, and turns its error into what the caller sees.
type interceptor struct{ s *Server }

// WrapUnary implements connect.Interceptor.
func (i *interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		procedure := req.Spec().Procedure
		began := i.s.DB.Tick()
		if procedure != rotundav1connect.VerificationServiceVerifyApiKeyProcedure { // all that it waits for is bounded by itself, and it is mostly in memory
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, rpcTimeout)
			defer cancel()
		}
		err := i.admit(ctx, procedure, req.Any())
		var res connect.AnyResponse
		if err == nil {
			res, err = next(ctx, req)
		}
		code := "ok"
		if err != nil {
			err = i.s.edge(ctx, procedure, err)
			code = connect.CodeOf(err).String()
		}
		i.s.done(ctx, procedure, code, i.s.DB.Tick()-began)
		if err != nil {
			return nil, err
		}
		return res, nil
	}
}

// WrapStreamingClient implements connect.Interceptor; Rotunda calls nobody.
func (i *interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor. A message is admitted
// when it arrives.
func (i *interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		procedure := conn.Spec().Procedure
		began := i.s.DB.Tick()
		err := next(ctx, &admittingConn{conn, func(msg any) error { return i.admit(ctx, procedure, msg) }})
		code := "ok"
		if err != nil {
			err = i.s.edge(ctx, procedure, err)
			code = connect.CodeOf(err).String()
		}
		i.s.done(ctx, procedure, code, i.s.DB.Tick()-began)
		return err
	}
}

// done counts and logs a call. What changes something is worth a line; what
// reads or signs only when somebody looks for it.
func (s *Server) done(ctx context.Context, procedure, code string, took time.Duration) {
	s.metrics.request(procedure, code, took)
	level := slog.LevelDebug
	if g := groups[procedure]; g == change || g == tokens || g == trails || g == manage || g == peppers || g == systems || g == credentials || g == emergency {
		level = slog.LevelInfo
	}
	if !s.log.Enabled(ctx, level) {
		return
	}
	a := audit.ActorOf(ctx)
	s.log.LogAttrs(ctx, level, "call", slog.String("request_id", a.RequestID), slog.String("procedure", procedure), slog.String("code", code),
		slog.String("actor", a.ID), slog.String("address", a.Address), slog.Duration("took", took))
}

type admittingConn struct {
	connect.StreamingHandlerConn
	admit func(msg any) error
}

func (c *admittingConn) Receive(msg any) error {
	if err := c.StreamingHandlerConn.Receive(msg); err != nil {
		return err
	}
	return c.admit(msg)
}

// admit decides whether a caller may send a message, and whether the message
// is well formed. A denial is in the trail.
func (i *interceptor) admit(ctx context.Context, procedure string, msg any) error {
	c := callerOf(ctx)
	if onPartners(procedure) {
		if err := i.s.admitPartner(ctx, c, procedure, msg); err != nil {
			return err
		}
		return wellFormed(procedure, msg)
	}
	if groups[procedure] == secrets {
		return i.s.admitReader(ctx, c, procedure, msg)
	}
	keyset := ""
	if named, ok := msg.(interface{ GetName() string }); ok && strings.HasPrefix(procedure, "/rotunda.v1.KeysetService/") {
		keyset = named.GetName()
	}
	if c.token == nil || !i.s.authz.allows(c.subject, procedure, keyset) {
		resource := ""
		if keyset != "" {
			// A name that nobody has is the caller's noise.
			resource = "keysets/?"
			if i.s.Keysets.Document(keyset) != nil {
				resource = "keysets/" + keyset
			}
		}
		return i.s.denyRole(ctx, c, procedure, resource)
	}
	return wellFormed(procedure, msg)
}

// denyRole refuses a call that the caller's role may not make.
func (s *Server) denyRole(ctx context.Context, c caller, procedure, resource string) error {
	s.deny(ctx, audit.Event{Action: actionOf(procedure), Resource: resource, Reason: "role"})
	role := "no role"
	if c.token != nil {
		role = "role " + string(c.token.Role)
	}
	return fault.New(fault.ErrDenied, "role", "a token of %s may not call %s here: ask an admin for a token that may", role, procedure)
}

// wellFormed checks what a message holds.
func wellFormed(procedure string, msg any) error {
	if plainVerification(msg) {
		return nil
	}
	m, ok := msg.(proto.Message)
	if !ok {
		return fmt.Errorf("%s: a message of type %T is no protobuf message", procedure, msg)
	}
	if err := plainText(m.ProtoReflect(), ""); err != nil {
		return err
	}
	return valid(m)
}

// actionOf is how the trail names an attempt to call a procedure.
func actionOf(procedure string) string {
	return "rpc." + procedure[strings.LastIndexByte(procedure, '/')+1:]
}

// valid checks a message against the rules in its descriptor.
func valid(m proto.Message) error {
	err := protovalidate.Validate(m)
	if err == nil {
		return nil
	}
	if v, ok := errors.AsType[*protovalidate.ValidationError](err); ok && len(v.Violations) > 0 {
		first := v.Violations[0].Proto
		field := protovalidate.FieldPathString(first.GetField())
		reason := strings.ReplaceAll(strings.ToLower(first.GetRuleId()), ".", "_")
		return fault.Invalid(field, reason, "%s: %s", field, first.GetMessage())
	}
	return fmt.Errorf("validate %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
}

// once is the idempotency of a create: the key from the request's header, the
// caller and the procedure as its scope, and the message as its meaning.
func once[T any](ctx context.Context, req *connect.Request[T]) (store.Once, error) {
	key := req.Header().Get("Idempotency-Key")
	if key == "" {
		return store.Once{}, nil
	}
	m, ok := any(req.Msg).(proto.Message)
	if !ok {
		return store.Once{}, fmt.Errorf("%s: %T is no protobuf message", req.Spec().Procedure, req.Msg)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return store.Once{}, fmt.Errorf("%s: encode the request: %w", req.Spec().Procedure, err)
	}
	sum := sha256.Sum256(b)
	clear(b)
	return store.Once{Scope: audit.ActorOf(ctx).ID + req.Spec().Procedure, Key: key, Fingerprint: hex.EncodeToString(sum[:])}, nil
}

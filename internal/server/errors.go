package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/internal/fault"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// codes is the one table from kinds of failure to Connect codes.
var codes = []struct {
	kind error
	code connect.Code
}{
	{fault.ErrInvalid, connect.CodeInvalidArgument},
	{fault.ErrNotFound, connect.CodeNotFound},
	{fault.ErrExists, connect.CodeAlreadyExists},
	{fault.ErrTransition, connect.CodeFailedPrecondition},
	{fault.ErrChanged, connect.CodeAborted},
	{fault.ErrStale, connect.CodeAborted},
	{fault.ErrRejected, connect.CodeFailedPrecondition},
	{fault.ErrDenied, connect.CodePermissionDenied},
	{fault.ErrLimited, connect.CodeResourceExhausted},
	{fault.ErrUnavailable, connect.CodeUnavailable},
}

// ErrStopping is the cause with which the context of all requests ends when
// the server stops.
var ErrStopping = errors.New("the server is stopping: connect again, or to another replica")

// edge turns an error into what a caller sees. A failure of no known kind is
// logged, and the caller gets only the id under which the log has it; so it is
// with what is out of reach, when it is the database or the caller a stranger.
func (s *Server) edge(ctx context.Context, procedure string, err error) error {
	if err == nil {
		return nil
	}
	id := requestID(ctx)
	if already, ok := errors.AsType[*connect.Error](err); ok {
		return already
	}
	if errors.Is(context.Cause(ctx), ErrStopping) {
		return problem(connect.CodeUnavailable, ErrStopping, "stopping", "", id)
	}
	if errors.Is(err, context.Canceled) {
		return connect.NewError(connect.CodeCanceled, errors.New("the caller went away"))
	}
	if errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, fault.ErrUnavailable) {
		return problem(connect.CodeDeadlineExceeded, errors.New("the request took too long: try again"), "deadline", "", id)
	}
	for _, c := range codes {
		if !errors.Is(err, c.kind) {
			continue
		}
		reason, field := "", ""
		if f, ok := errors.AsType[*fault.Error](err); ok {
			reason, field = f.Reason, f.Field
		}
		hidden := inner(err) || c.code == connect.CodeUnavailable && callerOf(ctx).token == nil
		if hidden || c.code == connect.CodeUnavailable {
			s.log.LogAttrs(ctx, s.outage(procedure), "a request failed because something is out of reach", slog.String("request_id", id), slog.String("procedure", procedure), slog.Any("error", err))
		}
		if hidden {
			err = errors.New("something that Rotunda needs is out of reach: try again; the log has it under request id " + id)
		}
		return problem(c.code, err, reason, field, id)
	}
	s.log.LogAttrs(ctx, slog.LevelError, "a request failed for no known reason", slog.String("request_id", id), slog.String("procedure", procedure), slog.Any("error", err))
	return problem(connect.CodeInternal, errors.New("internal error: the server's log has it under request id "+id), "internal", "", id)
}

// outage is the level at which a call that failed for want of something is logged. Of
// verifications, of which gateways ask thousands in a second, only the first in a second
// is worth a line.
func (s *Server) outage(procedure string) slog.Level {
	if groups[procedure] != verify {
		return slog.LevelWarn
	}
	now, last := int64(s.DB.Tick()), s.warned.Load()
	if last != 0 && now-last < int64(time.Second) || !s.warned.CompareAndSwap(last, max(now, 1)) {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// inner reports whether an error tells of Rotunda's own database: where it is,
// and as whom Rotunda goes there.
func inner(err error) bool {
	if f, ok := err.(*fault.Error); ok && (strings.HasPrefix(f.Reason, "database_") || f.Reason == "lease_over") { //nolint:errorlint // it goes down the tree itself
		return true
	}
	switch e := err.(type) { //nolint:errorlint // as above
	case interface{ Unwrap() error }:
		return inner(e.Unwrap())
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), inner)
	}
	return false
}

func problem(code connect.Code, err error, reason, field, id string) *connect.Error {
	out := connect.NewError(code, errors.New(err.Error()))
	if d, derr := connect.NewErrorDetail(&rotundav1.Problem{Reason: reason, Field: field, RequestId: id}); derr == nil {
		out.AddDetail(d)
	}
	return out
}

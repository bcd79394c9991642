// Package fault names the kinds of failure that Rotunda tells apart.
//
// A kind is a sentinel: domain code returns an error that wraps one, and one
// table at the edge (internal/server) turns the kind into a Connect code. An
// error of no kind is a bug or an outage; its text never reaches a caller.
//
// Beside its kind an [Error] carries a Reason, a stable lower_snake word that
// programs may switch on, and the Field of the request that is at fault. Its
// message is for people: what was attempted, what is wrong, what to do.
package fault

import (
	"errors"
	"fmt"
)

// The kinds of failure.
var (
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists")
	ErrTransition  = errors.New("not allowed in this state") // the state machine refuses the move
	ErrChanged     = errors.New("changed by someone else")   // a row moved under us: read again and retry
	ErrStale       = errors.New("store moved")               // a provider's store moved under us
	ErrRejected    = errors.New("refused by the target")     // final: a person must look
	ErrDenied      = errors.New("denied")                    // the caller may not do this
	ErrInvalid     = errors.New("invalid")                   // the request can never succeed as it is
	ErrUnavailable = errors.New("unavailable")               // something we depend on is out of reach: retry
	ErrLimited     = errors.New("too many requests")         // a limit was reached: retry later
)

// Error is a failure of a known kind.
type Error struct {
	Kind    error  // one of the sentinels above
	Reason  string // stable, lower_snake, for programs: "lead_not_over"
	Field   string // the request's field at fault, as the API spells it; may be empty
	Message string // for people; never holds a secret
	cause   error
}

// New returns an error of the given kind. The format may use %w for a cause.
func New(kind error, reason, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Reason: reason, Message: err.Error(), cause: errors.Unwrap(err)}
}

// Invalid is New(ErrInvalid, …) with the field at fault.
func Invalid(field, reason, format string, args ...any) *Error {
	return New(ErrInvalid, reason, format, args...).On(field)
}

// On returns a copy of e that names the request's field at fault.
func (e *Error) On(field string) *Error {
	c := *e
	c.Field = field
	return &c
}

func (e *Error) Error() string { return e.Message }

// Unwrap makes errors.Is see both the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.cause}
}

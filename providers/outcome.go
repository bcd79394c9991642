package providers

import (
	"context"
	"errors"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Outcome is what a failed call means for the effect that it was to have.
type Outcome string

// The outcomes of a call that returned an error.
const (
	// Rejected: the other side judged this value and will never take it (a password
	// policy, a size). Nothing was changed. Another value may be tried.
	Rejected Outcome = "rejected"

	// Refused: it will not do this for us as things are (permission, no such user,
	// the limit of two keys). Nothing was changed. A person has to look.
	Refused Outcome = "refused"

	// Moved: it is no longer in the state that was recorded. Nothing was changed.
	// Somebody else is at work, or something put an older state back.
	Moved Outcome = "moved"

	// Throttled: it is too busy for us. Nothing was changed. The same again, later.
	Throttled Outcome = "throttled"

	// Unknown: the effect may have happened, or may still. The same again.
	Unknown Outcome = "unknown"
)

// OutcomeOf sorts an error of an adapter by the kind that it wraps: fault.ErrRejected;
// fault.ErrDenied, ErrInvalid, ErrNotFound and ErrTransition (refused); fault.ErrStale
// (moved); fault.ErrLimited (throttled). Whatever else it is, the outcome is unknown:
// an adapter that is not sure wraps fault.ErrUnavailable, or nothing. A context that
// ended is unknown, whatever was wrapped beside.
func OutcomeOf(err error) Outcome {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, fault.ErrUnavailable):
		return Unknown
	case errors.Is(err, fault.ErrRejected):
		return Rejected
	case errors.Is(err, fault.ErrStale):
		return Moved
	case errors.Is(err, fault.ErrLimited):
		return Throttled
	case errors.Is(err, fault.ErrDenied), errors.Is(err, fault.ErrInvalid), errors.Is(err, fault.ErrNotFound), errors.Is(err, fault.ErrTransition):
		return Refused
	}
	return Unknown
}

package httpsig

import (
	"errors"
)

// reason is the reason of an error, or "ok".
func reason(err error) string {
	if err == nil {
		return "ok"
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return err.Error()
}

package server

import (
	"context"
	"time"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/providers"
)

// Secrets is what the built-in store serves. It stands for the adapter, which only cmd
// knows.
type Secrets interface {
	// ReadSecret returns the value at a path: the one that consumers read when version is
	// empty or "current", the one before it for "previous", else the one of that name.
	// What is not there is fault.ErrNotFound. That it was read is in the trail before it
	// is returned, and it is not returned when the trail can't be written.
	ReadSecret(ctx context.Context, path, version string) (Secret, error)
}

// Secret is a value that the built-in store serves.
type Secret struct {
	Fields    providers.Fields
	Version   string // the store's name of it
	Label     string // "current", "previous"; empty: none
	CreatedAt time.Time
}

// A reader's token reads what its paths cover. What they don't cover is refused before
// anything is looked up, in the words and with the code of what is not there: so what is
// there and what is not are told apart neither by the answer nor by its time.

// admitReader decides whether a caller may read the path that a message names.
func (s *Server) admitReader(ctx context.Context, c caller, procedure string, msg any) error {
	path := ""
	if m, ok := msg.(interface{ GetPath() string }); ok {
		path = m.GetPath()
	}
	allowed := c.token != nil && s.authz.allows(c.subject, procedure, path)
	if !allowed && (c.token == nil || c.token.Role != apikeys.Reader) {
		return s.denyRole(ctx, c, procedure, pathNoise(path))
	}
	if err := wellFormed(procedure, msg); err != nil {
		return err
	}
	if !allowed {
		s.deny(ctx, audit.Event{Action: actionOf(procedure), Resource: pathNoise(path), Reason: "path"})
		return errNoSecret()
	}
	return nil
}

// pathNoise is how the trail names a path that a caller may not read. What no token
// could be allowed to read is the caller's noise; no path is none.
func pathNoise(path string) string {
	switch {
	case path == "":
		return ""
	case apikeys.Patterns(path) == nil:
		return "secrets/?"
	}
	return "secrets/" + path
}

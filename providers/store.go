package providers

import "context"

// Version is a value on its way into a store.
type Version struct {
	Credential string
	Rotation   string // id of the rotation that made it: a UUID, lower case
	Generation int64
	Fields     Fields
}

// Served is what a store gives to consumers.
type Served struct {
	Version  string // what the store calls this version; empty: there is nothing at this path
	Rotation string // the rotation that put it there, as far as the store can tell; else empty
	Fields   Fields // nil when the value is no object of strings, or we may not read it
	Note     string // what else there is to know: "AWSPENDING is on another version"
}

// StoreTraits say what a store can do.
type StoreTraits struct {
	// Stages: Stage keeps a copy that consumers don't read.
	Stages bool

	// WritesPerRotation and Quota bound how fast an emergency can go: Quota is in
	// writes per second for all credentials of one store (0: none is known).
	WritesPerRotation int
	Quota             float64
}

// Store is where consumers read credentials. A path names one there. See the package
// comment for the rules of all adapters.
type Store interface {
	// Check is the preflight of a path. It changes nothing that consumers read.
	Check(ctx context.Context, path string) ([]Finding, error)

	// Read returns what consumers of path read now. Nothing there yet is a Served
	// without Version, not an error.
	Read(ctx context.Context, path string) (Served, error)

	// Stage keeps v where consumers don't read it. With StoreTraits.Stages only. The
	// same rotation with another value is fault.ErrStale. Where nothing is served yet a
	// store may keep nothing: one that serves the first value that it is given can't.
	Stage(ctx context.Context, path string, v Version) error

	// Publish makes v what consumers read, if they read the version prior now (empty:
	// nothing), and returns the store's name of the new version. If they read v already
	// it returns that. If they read anything else it is fault.ErrStale and nothing was
	// changed. The value that was read before stays with the store as its previous
	// version, where it has such a thing, until the store's own rules remove it.
	Publish(ctx context.Context, path string, v Version, prior string) (version string, err error)

	// Discard removes the staged copy and the labels of v's rotation that no consumer
	// needs. What consumers read is never touched. What is gone already is nil.
	Discard(ctx context.Context, path string, v Version) error

	// Close frees connections.
	Close() error
}

// Eraser is a store from which a path can be removed, for drills.
type Eraser interface {
	// Erase removes a path with all of its versions. What is gone already is nil. It is
	// called only for paths that a drill made for itself.
	Erase(ctx context.Context, path string) error
}

package providers

import (
	"context"
	"time"
)

// Strategy is how the old value and the new one overlap.
type Strategy string

// The strategies. A target says which it has.
const (
	// Replace: the target knows one value, which the new one replaces. Between Apply
	// and Publish consumers hold a value that is no longer accepted; the window is
	// as short as we can make it, and measured.
	Replace Strategy = "replace"

	// Alternate: two accounts take turns, so that the old one works through the grace.
	Alternate Strategy = "alternate"

	// Dual: the target accepts two values of one account at once.
	Dual Strategy = "dual"
)

// Held is a value that a target accepts, or accepted, as our records have it.
type Held struct {
	Generation int64  // 1, 2, 3, … of this credential; 0: from before Rotunda
	Rotation   string // id of the rotation that made it
	Account    string // whose value it is: a user, a role, a key; as the target names it
	ID         string // what the target calls this value, when it does: an access key id, an accessor, a version
	Fields     Fields // empty where the target gives none out, or the value is gone
}

// Change is one rotation as a target sees it. All of it is durable before Apply.
type Change struct {
	Credential string // its name
	Rotation   string // id of this rotation: a UUID, lower case
	Generation int64
	Epoch      int64 // of the lease under which this call is made: it only grows
	Strategy   Strategy
	Params     map[string]string // of the credential, as the kind's Params declare them
	Static     map[string]string // fields of the value that never change, as the credential declares them
	At         time.Time         // when the rotation was recorded
	Emergency  bool              // the old value is in the wrong hands: end its sessions, too

	// New is what is to be accepted; its Generation and Rotation are those of this change.
	// Prepare fills Account, and Fields where the value is ours to choose; Apply returns the rest.
	New Held

	// Current is what consumers read now. The zero Held: nothing yet.
	Current Held

	// Others are all the values beside Current that may still be accepted by our records.
	Others []Held

	// Before is what Prepare noted of the target's state, as ids: what was there before
	// this rotation is not ours to delete. Bounded: at most 1,000 ids of 256 bytes.
	Before []string
}

// Traits say how a target can be rotated.
type Traits struct {
	Strategies []Strategy // the first is the default

	// Issues: the target makes the value; what Apply returns can't be had a second
	// time. Without it the value is ours, and Apply may be repeated.
	Issues bool

	// Valueless: no value comes out, and there is nothing to put into a store.
	Valueless bool

	// Parallel is how many rotations of one target may be under way at once; 0: 4.
	Parallel int
}

// Evidence is what a target knows about the use of a value.
type Evidence struct {
	Known    bool      // false: this target can't tell
	Sessions int       // open now
	LastUsed time.Time // zero: never, or not known
	Source   string    // where this was read: "pg_stat_activity"
}

// Finding is one result of a preflight: what would fail later, and what to do.
type Finding struct {
	Check    string // stable, lower_snake: "permission", "password_policy", "self_reference"
	OK       bool
	Warning  bool // not OK, but no reason to refuse
	Detail   string
	Remedy   string // what to do; empty when OK
	Measured string // a figure, when there is one: "clock skew 0.2s"
}

// Applied is what a target's marker says of an account.
type Applied struct {
	Known      bool // false: the target keeps no marker, or this account has none
	Rotation   string
	Generation int64
	Epoch      int64
}

// Target is a system that accepts a credential. See the package comment for the rules
// of all adapters.
type Target interface {
	// Check is the preflight of a credential: everything that would fail later. It may
	// make and remove a thing of its own with a throw-away name; it leaves nothing
	// behind, and touches nothing that exists. c has no New. An error means that the
	// target could not be asked at all.
	Check(ctx context.Context, c Change) ([]Finding, error)

	// Prepare returns c with New.Account, with New.Fields where the value is ours (the
	// Static fields included), and with Before. It changes nothing. A fresh value is
	// made by each call; only one whose result was made durable is used.
	Prepare(ctx context.Context, c Change) (Change, error)

	// Apply makes the target accept c.New and returns it, complete. The current value
	// stays accepted, but with Replace. Where the target issues: first whatever is
	// there that is neither in Before nor in Current and Others, and is not older than
	// At (less a minute of clock skew), is deleted, as left by an earlier try of this
	// rotation; then a new value is asked for, once.
	// fault.ErrStale: a newer epoch or generation was at work on this account.
	Apply(ctx context.Context, c Change) (Held, error)

	// Verify proves that h is accepted, as a consumer would use it, over a connection
	// of its own, read-only. nil: accepted. fault.ErrRejected: definitely not accepted
	// (now: a target that spreads changes slowly may accept it later). It makes one try.
	Verify(ctx context.Context, c Change, h Held) error

	// Applied reads the marker that Apply left with the value, without a login.
	Applied(ctx context.Context, c Change, account string) (Applied, error)

	// Usage is the evidence on a value that was superseded.
	Usage(ctx context.Context, c Change, h Held) (Evidence, error)

	// Retire makes the target end h by itself at end, in case that nobody calls Revoke.
	// The zero time takes an earlier end back: h is current again, as c.New; where the
	// target keeps a marker, an earlier epoch can't set an end after that.
	// A target that can't returns nil.
	Retire(ctx context.Context, c Change, h Held, end time.Time) error

	// Revoke ends h, by its recorded account and id, and with c.Emergency its sessions.
	// What is gone already is nil. c.New and c.Current, whichever h is not, stay
	// accepted. With Replace there is nothing to end, unless h has another account.
	Revoke(ctx context.Context, c Change, h Held) error

	// Close frees connections.
	Close() error
}

// Scratcher is a target that can make a throw-away account for drills.
type Scratcher interface {
	// Scratch makes what a copy of the credential needs on the target (users, roles)
	// under names with the suffix, and returns the Params of the copy.
	Scratch(ctx context.Context, c Change, suffix string) (params map[string]string, err error)

	// Unscratch removes it. What is gone already is nil.
	Unscratch(ctx context.Context, c Change, suffix string) error
}

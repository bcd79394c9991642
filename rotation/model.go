package rotation

import (
	"time"

	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/providers"
)

// Sort tells the two sorts of systems apart.
type Sort string

// The sorts of systems.
const (
	StoreSort  Sort = "store"
	TargetSort Sort = "target"
)

// System is a configured store or target.
type System struct {
	Sort     Sort
	Name     string // 1 to 63 lower-case letters, digits and hyphens
	Kind     string // "vault-kv", "postgres"
	Settings map[string]string

	// HasLogin says that a login is sealed with it. LoginCredential names the credential
	// whose current value is the login instead, so that Rotunda rotates its own access.
	HasLogin        bool
	LoginCredential string

	CreatedAt time.Time
	Since     time.Time
	Version   int64
}

// Missed says what becomes of a firing that no window had room for, or that came
// while no process was running, once its window is over.
type Missed string

// The rules for a missed firing.
const (
	MissedLate  Missed = "late"  // in the next window
	MissedSkip  Missed = "skip"  // at the next firing; that one was missed is an event
	MissedAlarm Missed = "alarm" // not before a person asks; an event, a metric and a webhook say so
)

// Placement is a store in which consumers read a credential, and where in it.
type Placement struct {
	Store string `json:"store"`
	Path  string `json:"path"`
}

// Spec is what may change of a credential.
type Spec struct {
	Target   string             `json:"target"`
	Strategy providers.Strategy `json:"strategy"` // empty: the first of the target's kind
	Params   map[string]string  `json:"params,omitempty"`
	Fields   map[string]string  `json:"fields,omitempty"` // parts of the value that never change and are no secret: host, port
	Stores   []Placement        `json:"stores,omitempty"` // in the order of publication; at most 8

	Schedule schedule.Schedule `json:"schedule,omitzero"` // zero: only when asked
	Windows  []schedule.Window `json:"windows,omitempty"` // empty: at any time
	Missed   Missed            `json:"missed"`            // empty: late

	Grace time.Duration `json:"grace"` // how long the old value stays accepted, at most 90 days; 0 with replace
	Quiet time.Duration `json:"quiet"` // the grace ends earlier once the old value was unused for so long; 0: by the clock only

	Labels map[string]string `json:"labels,omitempty"` // at most 32
	Notify []string          `json:"notify,omitempty"` // endpoints that hear of new versions
	Adopt  bool              `json:"adopt,omitempty"`  // the first rotation may replace what is at the paths already
	Probe  time.Duration     `json:"probe"`            // between two probes for drift; 0: one hour; negative: never
}

// CredentialState is whether the schedule of a credential is followed.
type CredentialState string

// The states of a credential.
const (
	CredentialActive CredentialState = "active"
	CredentialPaused CredentialState = "paused" // only rotations that a person asks for
)

// Drift says what no longer agrees.
type Drift string

// The kinds of drift.
const (
	NoDrift     Drift = ""
	DriftStore  Drift = "store"  // the store serves another value than ours; the target accepts ours
	DriftTarget Drift = "target" // the store serves ours; the target does not accept it
	DriftBoth   Drift = "both"   // the store serves another value, and the target does not accept ours
	DriftLabel  Drift = "label"  // the store serves our value under another version than the one we set
	DriftMarker Drift = "marker" // the target says that somebody else set its value
)

// Credential is a value that a target accepts and consumers read in stores.
type Credential struct {
	Name string // 1 to 63 lower-case letters, digits and hyphens
	Spec
	State      CredentialState
	Reason     string // of its state
	Generation int64  // of its newest version
	Current    int64  // generation that consumers read; 0: none yet
	NextAt     time.Time
	DueAt      time.Time // the firing that NextAt stands for
	RotatedAt  time.Time
	Drift      Drift
	DriftNote  string
	DriftSince time.Time
	ProbeAt    time.Time
	ProbedAt   time.Time
	CreatedAt  time.Time
	Since      time.Time
	Version    int64

	tampered bool
}

// Resource is the credential's name in the trail.
func (c *Credential) Resource() string { return "credentials/" + c.Name }

// VersionState is what a version of a credential is.
type VersionState string

// The states of a version.
const (
	Staged   VersionState = "staged"   // made; no consumer reads it yet
	Current  VersionState = "current"  // consumers read it; one per credential
	Previous VersionState = "previous" // superseded, still accepted
	Retired  VersionState = "retired"  // no longer accepted; its value is destroyed
)

// CredentialVersion is one value of a credential.
type CredentialVersion struct {
	Credential  string
	Generation  int64
	Rotation    string
	State       VersionState
	Account     string // whose value it is, as the target names it
	TargetID    string // what the target calls it; empty where it does not
	CreatedAt   time.Time
	Since       time.Time
	GraceEndsAt time.Time

	sealed   []byte
	tampered bool
}

// Step is where a rotation is.
type Step string

// The steps of a rotation.
const (
	StepPlan    Step = "plan"    // nothing has happened yet
	StepIssue   Step = "issue"   // the new value is sealed with us; the target is made to accept it
	StepVerify  Step = "verify"  // the target said yes; a login proves it
	StepPublish Step = "publish" // proven; stores are made to serve it
	StepGrace   Step = "grace"   // consumers read it; the old value is still accepted
	StepRevoke  Step = "revoke"  // the old value is ended
	StepDone    Step = "done"    // ended, see Outcome
	StepFailed  Step = "failed"  // waits for a person: retry, rollback or abandon
)

// RotationOutcome is how a rotation ended.
type RotationOutcome string

// The outcomes of a rotation.
const (
	Rotated    RotationOutcome = "rotated"
	RolledBack RotationOutcome = "rolled_back"
	Abandoned  RotationOutcome = "abandoned"
)

// Cause is why a rotation was begun.
type Cause string

// The causes of a rotation.
const (
	Scheduled Cause = "scheduled"
	Manual    Cause = "manual"
	Emergency Cause = "emergency" // ahead of all others, outside windows
)

// Rotation is one run.
type Rotation struct {
	ID          string // UUIDv7; also the version's id in every store
	Credential  string
	Target      string
	Generation  int64
	Back        bool
	Cause       Cause
	Incident    string
	Priority    int
	Step        Step
	FailedStep  Step
	Outcome     RotationOutcome
	Attempt     int // tries of this step
	Rejections  int
	Error       string // of the last try; holds no secret
	ErrorReason string // stable, lower_snake
	Holder      string
	Epoch       int64
	NextAt      time.Time
	Grace       time.Duration
	GraceEndsAt time.Time
	QuietSince  time.Time
	Evidence    providers.Evidence
	Actor       string
	Reason      string
	StartedAt   time.Time
	Since       time.Time
	EndedAt     time.Time
	Version     int64
}

// Resource is the rotation's name in the trail: it is found with its credential.
func (r *Rotation) Resource() string { return "credentials/" + r.Credential + "/rotations/" + r.ID }

// Point is a place in the protocol where a process may die: before or after an
// effect. Drills and tests name them: "E2 before".
type Point struct {
	Effect string // "E0" … "E8"
	After  bool
}

func (p Point) String() string {
	if p.After {
		return p.Effect + " after"
	}
	return p.Effect + " before"
}

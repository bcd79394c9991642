package rotation

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// What Rotations does unless told otherwise.
const (
	DefaultWorkers       = 8
	DefaultLease         = 10 * time.Second
	DefaultEffectTimeout = 30 * time.Second
)

// RotationsConfig is what Rotations needs.
type RotationsConfig struct {
	DB      *store.DB
	Sealer  *secret.Sealer
	Systems *Systems

	// Holder names this process among all that ever worked on this database.
	// Default: random.
	Holder string

	// Workers is how many runs this process works on at once; from two on, one of them
	// takes emergencies only. Default: DefaultWorkers.
	Workers int

	// Lease is how long a process that no longer answers keeps its runs. Default: DefaultLease.
	Lease time.Duration

	// EffectTimeout bounds one effect. Default: DefaultEffectTimeout.
	EffectTimeout time.Duration

	// Log receives what no run can tell of. Default: nowhere.
	Log *slog.Logger

	// At is called before and after each effect, in the goroutine that has it, outside of
	// transactions. Drills and tests end the process in it. nil: nothing is called.
	At func(ctx context.Context, p Point)

	// Observe is told of each effect, also of those that failed; it must return at once.
	Observe func(EffectOutcome)
}

// EffectOutcome is how one try of an effect came out.
type EffectOutcome struct {
	Credential string
	Target     string
	Effect     string // "E0" to "E8"
	Action     string // "apply", "publish", …
	Attempt    int    // 1, 2, 3, …
	Outcome    string // "ok", "rejected", "refused", "moved", "throttled" or "unknown"
	Took       time.Duration
}

// Rotations keeps the runs and works on them. Its methods may be called from many
// goroutines.
type Rotations struct {
	db      *store.DB
	sealer  *secret.Sealer
	systems *Systems
	holder  string
	workers int
	lease   time.Duration
	timeout time.Duration
	log     *slog.Logger
	at      func(ctx context.Context, p Point)
	observe func(EffectOutcome)
	quotas  quotas

	mu     sync.Mutex
	active map[string]bool // runs that this process is at: see claim
	limits map[string]int  // of targets, learned when they are opened

	looked   bool // for runs that a clock which was ahead put off, at lookedAt
	lookedAt time.Duration
}

// NewRotations returns the rotations of a database.
func NewRotations(c RotationsConfig) (*Rotations, error) {
	if c.DB == nil || c.Sealer == nil || c.Systems == nil {
		return nil, fault.Invalid("db", "config_incomplete", "rotations: DB, Sealer and Systems are required")
	}
	if c.Workers < 0 || c.Workers > 1024 || c.Lease < 0 || c.EffectTimeout < 0 {
		return nil, fault.Invalid("workers", "config_range", "rotations: there can be 1 to 1024 workers, and times are not negative")
	}
	rs := &Rotations{
		db: c.DB, sealer: c.Sealer, systems: c.Systems, holder: c.Holder, workers: c.Workers, lease: c.Lease, timeout: c.EffectTimeout,
		log: c.Log, at: c.At, observe: c.Observe, active: map[string]bool{}, limits: map[string]int{},
	}
	if rs.holder == "" {
		rs.holder = rand.Text()
	}
	if rs.workers == 0 {
		rs.workers = DefaultWorkers
	}
	if rs.lease == 0 {
		rs.lease = DefaultLease
	}
	if rs.timeout == 0 {
		rs.timeout = DefaultEffectTimeout
	}
	if rs.log == nil {
		rs.log = slog.New(slog.DiscardHandler)
	}
	if rs.at == nil {
		rs.at = func(context.Context, Point) {}
	}
	if rs.observe == nil {
		rs.observe = func(EffectOutcome) {}
	}
	return rs, nil
}

// StartRequest begins a rotation.
type StartRequest struct {
	Credential string
	Reason     string         // at most 200 bytes; an emergency must have one
	Grace      *time.Duration // instead of the credential's
	Emergency  bool           // ahead of all others; sessions of the old value are ended with it
	Overwrite  bool           // replace also what somebody else has put into a store
	Once       store.Once
}

// Start begins a rotation of a credential, also of a paused one. It waits for nothing
// but the database: a worker picks it up within a second. While another rotation of
// the credential is under way it waits for that one's end; an emergency makes that one
// hurry, and ends its grace. One that waits already, and one that failed and waits for a
// person, are fault.ErrTransition.
func (rs *Rotations) Start(ctx context.Context, req StartRequest) (r *Rotation, err error) {
	spec := startSpec{Cause: Manual, Reason: req.Reason, Grace: req.Grace, Overwrite: req.Overwrite || req.Emergency}
	if req.Emergency {
		spec.Cause = Emergency
	}
	err = rs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		id, err := nextID(ctx, tx, req.Credential)
		if err != nil {
			return err
		}
		prior, err := tx.Once(ctx, req.Once, id)
		if err != nil {
			return err
		}
		if prior != "" {
			r, err = readRotation(ctx, tx, prior)
			return err
		}
		c, err := rs.systems.lockCredential(ctx, tx, req.Credential)
		if err != nil {
			return err
		}
		spec.ID = id
		r, err = rs.start(ctx, tx, c, spec)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("rotate credential %q: %w", clip(req.Credential), err)
	}
	return r, nil
}

// Get returns a rotation, or fault.ErrNotFound.
func (rs *Rotations) Get(ctx context.Context, id string) (r *Rotation, err error) {
	err = rs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		r, err = readRotation(ctx, tx, id)
		return err
	})
	return r, err
}

// RotationQuery selects rotations. Empty fields select all.
type RotationQuery struct {
	Credential string
	Incident   string
	Failed     bool   // only those that wait for a person
	Unended    bool   // only those that have not ended
	Page       string // id of the last one of the page before
	Limit      int    // 1 to 1,000; 0: 100
}

// List returns rotations, the newest first, and the page to continue at; empty: that was all.
func (rs *Rotations) List(ctx context.Context, q RotationQuery) (list []*Rotation, next string, err error) {
	if q.Limit == 0 {
		q.Limit = 100
	}
	if q.Limit < 1 || q.Limit > 1000 {
		return nil, "", fault.Invalid("page_size", "page_size_range", "list rotations: the limit %d is outside 1 to 1000", q.Limit)
	}
	err = rs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		list, err = listRotations(ctx, tx, q)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list rotations: %w", err)
	}
	if len(list) > q.Limit {
		list = list[:q.Limit]
		next = list[q.Limit-1].ID
	}
	return list, next, nil
}

// maxHistory bounds what Versions returns: the newest.
const maxHistory = 1000

// Versions returns the versions of a credential, the newest first, at most 1,000.
func (rs *Rotations) Versions(ctx context.Context, credential string) (list []*CredentialVersion, err error) {
	err = rs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		if _, err := rs.systems.readCredential(ctx, tx, credential); err != nil {
			return err
		}
		list, err = readVersions(ctx, tx, rs.systems.key, credential, maxHistory)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the versions of credential %q: %w", clip(credential), err)
	}
	return list, nil
}

// Retry makes a failed rotation go on where it failed, with the same value. One that
// failed because a store had moved (drift) replaces what is there now. One whose values
// the target would not have makes new ones.
func (rs *Rotations) Retry(ctx context.Context, id, reason string) (*Rotation, error) {
	return rs.decide(ctx, "retry", id, reason, rs.retry)
}

// Rollback makes the old value current again and ends the new one. It takes the id of a
// rotation, or the name of a credential for its rotation under way. The rotation must have
// failed, be in its grace, or wait for its next try; once the old value is being ended
// it is fault.ErrTransition.
func (rs *Rotations) Rollback(ctx context.Context, id, reason string) (*Rotation, error) {
	return rs.decide(ctx, "roll back", id, reason, rs.rollback)
}

// Abandon ends a rotation that failed, is in its grace or waits for its next try, and
// touches nothing more. It returns what is left with the target and in the stores, by its
// id; values of it that may be accepted stay sealed, and the next rotation ends them.
func (rs *Rotations) Abandon(ctx context.Context, id, reason string) (r *Rotation, left []string, err error) {
	r, err = rs.decide(ctx, "abandon", id, reason, func(ctx context.Context, tx *store.Tx, j *job) error {
		left, err = rs.abandon(ctx, tx, j)
		return err
	})
	return r, left, err
}

// watchEvery is the floor of Watch: wake-ups of other processes are not heard.
const watchEvery = 500 * time.Millisecond

// Watch calls f with a rotation as it is, and again with each change of it, until it has
// ended, f or ctx does. It returns f's error, or nil when the rotation ended.
func (rs *Rotations) Watch(ctx context.Context, id string, f func(Rotation) error) error {
	woken, stop := rs.db.Listen(topicRotation(id))
	defer stop()
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for seen := int64(-1); ; {
		r, err := rs.Get(ctx, id)
		if err != nil {
			return err
		}
		if r.Version != seen {
			if err := f(*r); err != nil {
				return err
			}
			seen = r.Version
		}
		if !r.EndedAt.IsZero() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-woken:
		case <-tick.C:
		}
	}
}

const (
	topicRotations = "rotations" // a run has become due
	maxReason      = 200
	maxGrace       = 90 * 24 * time.Hour
)

func topicRotation(id string) string { return "rotations/" + id }

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

func notFound(id string) error {
	return fault.New(fault.ErrNotFound, "rotation_not_found", "there is no rotation %q", clip(id)).On("rotation")
}

// clip bounds what an error quotes of a request.
func clip(s string) string {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return s
}

func checkReason(reason string) error {
	if len(reason) > maxReason || !utf8.ValidString(reason) {
		return fault.Invalid("reason", "reason_too_long", "the reason has %d bytes, at most %d of UTF-8 are allowed", len(reason), maxReason)
	}
	return nil
}

// The priorities of runs.
const (
	priorityScheduled = 0
	priorityManual    = 1
	priorityEmergency = 2
)

func priorityOf(c Cause) int {
	switch c {
	case Emergency:
		return priorityEmergency
	case Manual:
		return priorityManual
	case Scheduled:
	}
	return priorityScheduled
}

// startSpec is how a run begins. See [Rotations.start].
type startSpec struct {
	ID        string // empty: a new one
	Cause     Cause
	Incident  string
	Reason    string
	Grace     *time.Duration // nil: the credential's
	Overwrite bool
}

// nextID is an id behind those of the credential's runs that have not ended. Ids of one instant
// have no order of their own; those of one transaction do.
func nextID(ctx context.Context, tx *store.Tx, credential string) (id string, err error) {
	var newest string
	err = tx.QueryRow(ctx, `SELECT COALESCE(MAX(id), '') FROM rotations WHERE credential = $1 AND ended_at = 0`, credential).Scan(&newest)
	if err != nil {
		return "", err
	}
	for range 100 {
		if id = tx.ID(); id > newest {
			break
		}
	}
	return id, nil // start refuses one that is not behind them: the clocks differ
}

// start creates a run of a locked credential in the caller's transaction. See
// [Rotations.Start] for what it refuses; a scheduled one is refused while any other
// has not ended.
func (rs *Rotations) start(ctx context.Context, tx *store.Tx, c *Credential, s startSpec) (*Rotation, error) {
	if err := checkReason(s.Reason); err != nil {
		return nil, err
	}
	if s.Cause == Emergency && s.Reason == "" {
		return nil, fault.Invalid("reason", "reason_required", "an emergency rotation needs a reason")
	}
	grace := c.Grace
	if s.Grace != nil {
		grace = *s.Grace
	}
	if grace < 0 || grace > maxGrace {
		return nil, fault.Invalid("grace", "grace_range", "the grace %s is outside 0 to %s", grace, maxGrace)
	}
	if c.Generation == math.MaxInt64 {
		return nil, fault.New(fault.ErrTransition, "generations_spent", "credential %q has no generation left", c.Name)
	}
	older, err := listRotations(ctx, tx, RotationQuery{Credential: c.Name, Unended: true, Limit: 2})
	if err != nil {
		return nil, err
	}
	for _, o := range older {
		switch {
		case o.Step == StepFailed:
			return nil, fault.New(fault.ErrTransition, "rotation_failed", "rotation %s of credential %q failed and waits for a person: retry it, roll it back or abandon it first", o.ID, c.Name)
		case s.Cause == Scheduled:
			return nil, fault.New(fault.ErrTransition, "is_rotating", "rotation %s of credential %q has not ended: it is at %s", o.ID, c.Name, o.Step)
		case len(older) > 1:
			return nil, fault.New(fault.ErrTransition, "is_queued", "credential %q is being rotated, and rotation %s waits already", c.Name, older[0].ID)
		}
	}
	id := s.ID
	if id == "" {
		if id, err = nextID(ctx, tx, c.Name); err != nil {
			return nil, err
		}
	}
	for _, o := range older {
		if o.ID >= id { // runs of a credential go by their ids, which go by clocks
			return nil, fault.New(fault.ErrUnavailable, "clock_behind", "rotation %s of credential %q was begun by a clock that is ahead of this one: set the clocks, or try again once this one has caught up", o.ID, c.Name)
		}
	}
	r := &Rotation{
		ID: id, Credential: c.Name, Target: c.Target, Cause: s.Cause, Incident: s.Incident, Priority: priorityOf(s.Cause), Step: StepPlan,
		NextAt: tx.Now, Grace: grace, Actor: audit.ActorOf(ctx).ID, Reason: s.Reason, StartedAt: tx.Now, Since: tx.Now, Version: 1,
	}
	detail := map[string]any{"cause": string(s.Cause), "target": c.Target}
	if s.Incident != "" {
		detail["incident"] = s.Incident
	}
	if s.Overwrite {
		detail["overwrite"] = true
	}
	j := &job{Rotation: r, work: work{Overwrite: s.Overwrite}}
	if j.intent, err = audit.Begin(ctx, tx, audit.Event{Action: "rotation.run", Resource: r.Resource(), Reason: s.Reason, Detail: detail}); err != nil {
		return nil, err
	}
	if err := rs.insertRotation(ctx, tx, j); err != nil {
		return nil, err
	}
	if s.Cause == Emergency {
		for _, o := range older {
			if err := rs.hurry(ctx, tx, o.ID); err != nil {
				return nil, err
			}
		}
	}
	if s.Cause == Scheduled {
		tx.Wake(topicRotations)
		return r, nil
	}
	return r, tx.Announce(ctx, topicRotations)
}

package rotation

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

// work is what a run has to know to go on, and how far it is. It is sealed in the run's
// row: what an effect needs is there before the effect, and nobody else can change it.
// Values are with their versions, but for one that was there before Rotunda.
type work struct {
	Planned   bool
	Refused   int  // values that were given up
	Overwrite bool // what somebody else put into a store is replaced
	Reread    bool // a person has decided to replace what a store holds now

	Change    providers.Change  // without the values
	Adopted   map[string]string // value of a Change.Current of generation 0
	Issues    bool
	Valueless bool
	Quiet     time.Duration

	// Maybe: the target may accept New, because Apply was begun; FirstEpoch is the one
	// under which that was.
	Maybe      bool
	FirstEpoch int64

	Applied     bool
	Verified    bool
	NotAccepted int // answers of Verify that it is not accepted, in a row
	Live        bool
	Warned      bool // that the old value is used near the end of its grace
	Stuck       bool // it was told that the run does not come on

	Places []place
	Olds   []old
	Left   []leftover

	// Back: the run goes back; Change.New is then the old value. Ends: the target may have been
	// told when that ends, which has to be taken back first.
	Back bool
	Ends bool

	// Doing is the effect whose intent is open.
	Doing doing
}

// doing is an effect as it is kept.
type doing struct {
	Step   Step
	Name   string
	Action string
	Index  int
}

func (d doing) effect() effect {
	return effect{step: d.Step, name: d.Name, action: d.Action, index: d.Index}
}

// place is a store that New is published in.
type place struct {
	Placement
	Stages bool
	Prior  string // what consumers read before
	Had    bool   // which was the value of Adopted
	Staged bool
	Tried  bool   // Publish was begun
	Done   string // the store's name of what was published; empty: not yet
}

// old is a value that has to end.
type old struct {
	Held    providers.Held
	Early   bool  // it is ended before New is made: see leftBehind
	Told    int64 // the epoch under which Retire was first begun; 0: it was not, or was refused
	Retired bool  // it ends by itself, or can't
	Ended   bool
}

// leftover is a staged copy that nobody needs any more.
type leftover struct {
	Placement
	Rotation   string
	Generation int64
	Gone       bool
}

// workPlace binds the work also to whose values are read for it and to the target that is told
// of them: in another row's name it does not open.
func workPlace(r *Rotation) secret.Place {
	return secret.Place{Table: "rotations", Row: r.ID + "/" + r.Credential + "/" + r.Target, Column: "work"}
}

func sealWork(ctx context.Context, sealer *secret.Sealer, r *Rotation, w *work) ([]byte, error) {
	text, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode the work of rotation %s: %w", r.ID, err)
	}
	defer clear(text)
	v := secret.New(text)
	defer v.Destroy()
	return sealer.Seal(ctx, workPlace(r), v)
}

func openWork(ctx context.Context, sealer *secret.Sealer, r *Rotation, sealed []byte) (w work, err error) {
	v, err := sealer.Open(ctx, workPlace(r), sealed)
	if err != nil {
		return w, err
	}
	defer v.Destroy()
	text := v.Reveal()
	defer clear(text)
	if err := json.Unmarshal(text, &w); err != nil {
		return w, fmt.Errorf("decode the work of rotation %s: it was written by another release", r.ID)
	}
	return w, nil
}

// bare is a change without values, as it is kept.
func bare(c providers.Change) providers.Change {
	c.New.Fields, c.Current.Fields = nil, nil
	c.Others = slices.Clone(c.Others)
	for i := range c.Others {
		c.Others[i].Fields = nil
	}
	return c
}

func (w *work) clone() work {
	k := *w
	k.Places, k.Olds, k.Left = slices.Clone(w.Places), slices.Clone(w.Olds), slices.Clone(w.Left)
	k.Change = bare(w.Change)
	return k
}

// overwritten says whether making New accepted has ended h already, so that to revoke it
// would be to revoke New.
func (w *work) overwritten(h providers.Held) bool {
	return w.Change.Strategy != providers.Dual && h.Account == w.Change.New.Account || h.Generation == 0
}

// stepMoves are the moves between the steps of a run, in the order of the steps. Forward is the
// first of each; backward is a rollback, or a value that the target refused.
var stepMoves = []struct {
	From Step
	To   []Step
}{
	{StepPlan, []Step{StepIssue, StepFailed, StepDone}},
	{StepIssue, []Step{StepVerify, StepPlan, StepRevoke, StepFailed, StepDone}},
	{StepVerify, []Step{StepPublish, StepGrace, StepRevoke, StepIssue, StepFailed, StepDone}},
	{StepPublish, []Step{StepGrace, StepRevoke, StepVerify, StepIssue, StepFailed, StepDone}},
	{StepGrace, []Step{StepRevoke, StepVerify, StepFailed, StepDone}},
	{StepRevoke, []Step{StepDone, StepFailed}},
	{StepFailed, []Step{StepPlan, StepIssue, StepVerify, StepPublish, StepGrace, StepRevoke, StepDone}},
}

func mayMove(from, to Step) bool {
	i := slices.IndexFunc(stepMoves, func(m struct {
		From Step
		To   []Step
	}) bool {
		return m.From == from
	})
	return from == to || i >= 0 && slices.Contains(stepMoves[i].To, to)
}

// effect is one thing that a run does outside of the database, or waits for.
type effect struct {
	step   Step
	name   string // "E2"
	action string // of the trail's events: rotation.apply
	reads  bool   // it changes nothing: it has no intent
	index  int    // of work.Places, .Olds or .Left
}

// next is the protocol as data: the first thing that is still to be done. ok is false when
// nothing is.
func (w *work) next() (e effect, ok bool) {
	first := func(n int, pending func(i int) bool) int {
		for i := range n {
			if pending(i) {
				return i
			}
		}
		return -1
	}
	unstaged := first(len(w.Places), func(i int) bool { return w.Places[i].Stages && !w.Places[i].Staged && w.Places[i].Done == "" })
	unpublished := first(len(w.Places), func(i int) bool { return w.Places[i].Done == "" })
	unretired := first(len(w.Olds), func(i int) bool { return !w.Olds[i].Retired && !w.Olds[i].Ended })
	unended := first(len(w.Olds), func(i int) bool { return !w.Olds[i].Ended })
	early := first(len(w.Olds), func(i int) bool { return w.Olds[i].Early && !w.Olds[i].Ended })
	undiscarded := first(len(w.Left), func(i int) bool { return !w.Left[i].Gone })
	switch {
	case !w.Planned:
		return effect{step: StepPlan, name: "E0", action: "plan", reads: true}, true
	case early >= 0 && !w.Applied:
		return effect{step: StepIssue, name: "E7", action: "revoke", index: early}, true
	case unstaged >= 0 && (!w.Issues || w.Applied):
		return effect{step: StepIssue, name: "E1", action: "stage", index: unstaged}, true
	case !w.Applied:
		return effect{step: StepIssue, name: "E2", action: "apply"}, true
	case w.Ends:
		return effect{step: StepVerify, name: "E6", action: "unretire"}, true
	case !w.Verified:
		return effect{step: StepVerify, name: "E3", action: "verify", reads: true}, true
	case unpublished >= 0:
		return effect{step: StepPublish, name: "E4", action: "publish", index: unpublished}, true
	case !w.Live:
		return effect{step: StepPublish, name: "E5", action: "live", reads: true}, true
	case unretired >= 0:
		return effect{step: StepGrace, name: "E6", action: "retire", index: unretired}, true
	case unended >= 0:
		return effect{step: StepRevoke, name: "E7", action: "revoke", index: unended}, true
	case undiscarded >= 0:
		return effect{step: StepRevoke, name: "E8", action: "discard", index: undiscarded}, true
	}
	return effect{}, false
}

// job is a run that this process is at, or decides on.
type job struct {
	*Rotation
	intent string // the trail's event of the run's start
	effect string // that of the effect under way; empty: none
	work   work

	values map[int64]providers.Fields // opened, by generation
	urgent bool                       // it was an emergency when it was claimed
	lost   bool                       // its work does not open, and never will
}

func (j *job) clone() *job {
	r := *j.Rotation
	k := *j
	k.Rotation, k.work = &r, j.work.clone()
	return &k
}

// next is what the run does next at now: as its work says, but for the grace, which has
// to be over before anything is revoked.
func (j *job) next(now time.Time) (effect, bool) {
	e, ok := j.work.next()
	if ok && e.step == StepRevoke && e.action == "revoke" && now.Before(j.GraceEndsAt) {
		return effect{step: StepGrace, name: "E6", action: "usage", reads: true}, true
	}
	return e, ok
}

const rotationColumns = `id, credential, target, generation, back, cause, incident, priority, step, failed_step, outcome, work, intent, effect, attempt, rejections, error, error_reason,
	holder, epoch, next_at, grace, grace_ends_at, quiet_since, evidence, actor, reason, started_at, since, ended_at, version`

// row is a run as it is stored.
type row struct {
	Rotation
	intent, effect string
	work           []byte
}

func queryRotations(ctx context.Context, tx *store.Tx, where string, args ...any) (list []*row, err error) {
	rows, err := tx.Query(ctx, `SELECT `+rotationColumns+` FROM rotations `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		var next, grace, ends, quiet, started, since, ended int64
		var evidence string
		err := rows.Scan(&r.ID, &r.Credential, &r.Target, &r.Generation, &r.Back, &r.Cause, &r.Incident, &r.Priority, &r.Step, &r.FailedStep, &r.Outcome, &r.work, &r.intent, &r.effect,
			&r.Attempt, &r.Rejections, &r.Error, &r.ErrorReason, &r.Holder, &r.Epoch, &next, &grace, &ends, &quiet, &evidence, &r.Actor, &r.Reason, &started, &since, &ended, &r.Version)
		if err != nil {
			return nil, err
		}
		r.NextAt, r.Grace, r.GraceEndsAt, r.QuietSince = store.Time(next), time.Duration(grace)*time.Microsecond, store.Time(ends), store.Time(quiet)
		r.StartedAt, r.Since, r.EndedAt = store.Time(started), store.Time(since), store.Time(ended)
		if err := json.Unmarshal([]byte(evidence), &r.Evidence); err != nil {
			return nil, fmt.Errorf("read rotation %s: its evidence is malformed", r.ID)
		}
		list = append(list, &r)
	}
	return list, rows.Err()
}

func readRow(ctx context.Context, tx *store.Tx, id string) (*row, error) {
	list, err := queryRotations(ctx, tx, `WHERE id = $1`, id)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, notFound(id)
	}
	return list[0], nil
}

func readRotation(ctx context.Context, tx *store.Tx, id string) (*Rotation, error) {
	r, err := readRow(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	return &r.Rotation, nil
}

// listRotations returns one more than the limit, when there is one.
func listRotations(ctx context.Context, tx *store.Tx, q RotationQuery) ([]*Rotation, error) {
	where, args := `WHERE 1 = 1`, []any{}
	add := func(cond string, arg any) {
		args = append(args, arg)
		where += fmt.Sprintf(` AND %s $%d`, cond, len(args))
	}
	if q.Credential != "" {
		add(`credential =`, q.Credential)
	}
	if q.Incident != "" {
		add(`incident <> '' AND incident =`, q.Incident)
	}
	if q.Page != "" {
		add(`id <`, q.Page)
	}
	if q.Failed {
		where += ` AND step = 'failed'`
	}
	if q.Unended {
		where += ` AND ended_at = 0`
	}
	args = append(args, q.Limit+1)
	rows, err := queryRotations(ctx, tx, where+fmt.Sprintf(` ORDER BY id DESC LIMIT $%d`, len(args)), args...)
	if err != nil {
		return nil, err
	}
	list := make([]*Rotation, len(rows))
	for i, r := range rows {
		list[i] = &r.Rotation
	}
	return list, nil
}

func (rs *Rotations) job(ctx context.Context, r *row) (*job, error) {
	j := &job{Rotation: &r.Rotation, intent: r.intent, effect: r.effect}
	if r.work == nil {
		return j, nil // it has ended
	}
	var err error
	j.work, err = openWork(ctx, rs.sealer, &r.Rotation, r.work)
	return j, err
}

func (rs *Rotations) insertRotation(ctx context.Context, tx *store.Tx, j *job) error {
	args, err := rs.columns(ctx, j)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO rotations (`+rotationColumns+`) VALUES
		($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31)`, args...)
	return err
}

func (rs *Rotations) columns(ctx context.Context, j *job) ([]any, error) {
	var sealed []byte
	if j.EndedAt.IsZero() {
		var err error
		if sealed, err = sealWork(ctx, rs.sealer, j.Rotation, &j.work); err != nil {
			return nil, err
		}
	}
	evidence, err := json.Marshal(j.Evidence)
	if err != nil {
		return nil, fmt.Errorf("encode the evidence of rotation %s: %w", j.ID, err)
	}
	return []any{
		j.ID, j.Credential, j.Target, j.Generation, j.Back, string(j.Cause), j.Incident, j.Priority, string(j.Step), string(j.FailedStep), string(j.Outcome), sealed, j.intent, j.effect,
		j.Attempt, j.Rejections, j.Error, j.ErrorReason, j.Holder, j.Epoch, store.Micros(j.NextAt), j.Grace.Microseconds(), store.Micros(j.GraceEndsAt), store.Micros(j.QuietSince), string(evidence),
		j.Actor, j.Reason, store.Micros(j.StartedAt), store.Micros(j.Since), store.Micros(j.EndedAt), j.Version,
	}, nil
}

// save writes a run that was seen as seen, if nobody took it meanwhile: holder and epoch are
// the fence, the version tells of everybody else. Otherwise fault.ErrChanged.
func (rs *Rotations) save(ctx context.Context, tx *store.Tx, seen *Rotation, j *job) error {
	if !mayMove(seen.Step, j.Step) {
		return fault.New(fault.ErrTransition, "bad_transition", "rotation %s is at %s: it can't come to %s", j.ID, seen.Step, j.Step)
	}
	j.Version = seen.Version + 1
	args, err := rs.columns(ctx, j)
	if err != nil {
		return err
	}
	err = tx.Swap(ctx, `UPDATE rotations SET generation = $1, back = $2, priority = $3, step = $4, failed_step = $5, outcome = $6, work = $7, effect = $8, attempt = $9, rejections = $10, error = $11, error_reason = $12,
			holder = $13, epoch = $14, next_at = $15, grace = $16, grace_ends_at = $17, quiet_since = $18, evidence = $19, since = $20, ended_at = $21, version = $22
		WHERE id = $23 AND holder = $24 AND epoch = $25 AND version = $26`,
		args[3], args[4], args[7], args[8], args[9], args[10], args[11], args[13], args[14], args[15], args[16], args[17],
		args[18], args[19], args[20], args[21], args[22], args[23], args[24], args[28], args[29], args[30],
		seen.ID, seen.Holder, seen.Epoch, seen.Version)
	if err != nil {
		return fmt.Errorf("rotation %s at %s: %w", j.ID, j.Step, err)
	}
	tx.Wake(topicRotation(j.ID))
	return nil
}

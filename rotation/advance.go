package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

const (
	maxRejections  = 3 // values of one run that a target may refuse
	maxNotAccepted = 8 // answers of Verify: each is a login, and some targets lock accounts
	maxRetire      = 5 // tries to make the target end the old value by itself

	minBackoff   = time.Second
	maxBackoff   = 5 * time.Minute
	maxHurried   = 15 * time.Second // of an emergency
	minSpread    = 200 * time.Millisecond
	maxSpread    = 5 * time.Second
	commitWithin = 30 * time.Second

	stuckAfter = 24 * time.Hour

	maxError = 500

	pathInUse = "path_in_use"
)

// advance does the next effect of a claimed run and records how it came out. Everything that
// the effect needs is durable before it; so after a crash at any point the same call, by
// whoever claims the run next, does the same effect again. again says that there is more
// to do now, and that the run is still ours.
func (rs *Rotations) advance(ctx context.Context, j *job) (again bool, err error) {
	e, ok := j.next(rs.db.Now())
	switch {
	case j.effect != "":
		e = j.work.Doing.effect() // what was begun is ended, whatever would come next by now
	case !ok:
		return rs.commit(ctx, j, e, result{}, nil)
	case !e.reads:
		if err := rs.update(ctx, j, func(ctx context.Context, tx *store.Tx, k *job) error { return rs.begin(ctx, tx, k, e) }); err != nil {
			return false, err
		}
	}
	rs.at(ctx, Point{Effect: e.name})
	before := rs.db.Tick()
	limited, cancel := context.WithTimeout(ctx, rs.timeout)
	res, err := rs.guarded(limited, j, e)
	cancel()
	rs.observed(j, e, err, rs.db.Tick()-before)
	if err == nil && e.name != "E0" {
		rs.at(ctx, Point{Effect: e.name, After: true})
	}
	live, ends := j.passes(e, err)
	if live {
		rs.at(ctx, Point{Effect: "E5"})
	}
	if ends && e.name != "E8" {
		rs.at(ctx, Point{Effect: "E8"})
	}
	again, failed := rs.commit(ctx, j, e, res, err)
	if failed != nil {
		if e.action == "apply" && err == nil && j.work.Issues {
			rs.unissue(ctx, j, res, failed)
		}
		return false, failed
	}
	if err == nil && e.name == "E0" {
		rs.at(ctx, Point{Effect: e.name, After: true})
	}
	if live {
		rs.at(ctx, Point{Effect: "E5", After: true})
	}
	if ends {
		rs.at(ctx, Point{Effect: "E8", After: true})
	}
	return again, nil
}

// passes says what else the transaction after an effect does: the new value becomes current,
// the run ends.
func (j *job) passes(e effect, err error) (live, ends bool) {
	if err != nil || !j.work.Planned {
		return false, false
	}
	w := j.work.clone()
	w.mark(e, "done")
	n, ok := w.next()
	if ok && n.action == "live" {
		live = true
		w.live(j.Grace)
		n, ok = w.next()
	}
	return live, !ok
}

// mark notes that an effect is done.
func (w *work) mark(e effect, version string) {
	switch e.action {
	case "stage":
		w.Places[e.index].Staged = true
	case "apply":
		w.Applied = true
	case "verify":
		w.Verified, w.NotAccepted = true, 0
	case "publish":
		w.Places[e.index].Done = version
	case "retire":
		w.Olds[e.index].Retired = true
	case "unretire":
		w.Ends = false
	case "revoke":
		w.Olds[e.index].Ended = true
	case "discard":
		w.Left[e.index].Gone = true
	}
}

// live notes that consumers read New: what remains is to end the others, and to tidy up.
func (w *work) live(grace time.Duration) {
	w.Live = true
	for i, o := range w.Olds {
		if w.overwritten(o.Held) {
			w.Olds[i].Ended = true
		}
		if grace <= 0 || w.Back {
			w.Olds[i].Retired = true
		}
	}
	for _, p := range w.Places {
		if p.Staged {
			w.Left = append(w.Left, leftover{Placement: p.Placement, Rotation: w.Change.New.Rotation, Generation: w.Change.New.Generation})
		}
	}
}

// begin records that an effect is about to be tried, before it is.
func (rs *Rotations) begin(ctx context.Context, tx *store.Tx, k *job, e effect) (err error) {
	w := &k.work
	if k.effect != "" {
		return fmt.Errorf("rotation %s: %s begins before %s has ended", k.ID, e.action, w.Doing.Action)
	}
	switch e.action {
	case "apply":
		if !w.Maybe {
			w.Maybe, w.FirstEpoch = true, k.Epoch
		}
	case "publish":
		w.Places[e.index].Tried = true
	case "retire":
		if w.Olds[e.index].Told == 0 {
			w.Olds[e.index].Told = k.Epoch
		}
	}
	w.Doing = doing{Step: e.step, Name: e.name, Action: e.action, Index: e.index}
	k.effect, err = audit.Begin(ctx, tx, audit.Event{Action: "rotation." + e.action, Resource: k.Resource(), Detail: k.detail(e)})
	return err
}

// detail is what an event says of an effect: ids, and no value.
func (j *job) detail(e effect) map[string]any {
	w := &j.work
	d := map[string]any{"effect": e.name, "epoch": j.Epoch, "generation": w.Change.New.Generation}
	target := func(h providers.Held) {
		d["system"], d["generation"] = "targets/"+j.Target, h.Generation
		if h.Account != "" {
			d["account"] = clip(h.Account)
		}
		if h.ID != "" {
			d["id"] = clip(h.ID)
		}
	}
	placed := func(p Placement) { d["system"], d["path"] = "stores/"+p.Store, p.Path }
	switch e.action {
	case "apply", "verify", "plan", "unretire":
		target(w.Change.New)
	case "retire", "revoke":
		target(w.Olds[e.index].Held)
	case "stage", "publish":
		placed(w.Places[e.index].Placement)
	case "discard":
		placed(w.Left[e.index].Placement)
		d["generation"] = w.Left[e.index].Generation
	}
	if j.Back {
		d["back"] = true
	}
	return d
}

// update changes a run in a transaction under its fence. What others may do to a run that is
// ours, that it shall hurry, is taken over.
func (rs *Rotations) update(ctx context.Context, j *job, f func(ctx context.Context, tx *store.Tx, k *job) error) error {
	// What happened outside has to be recorded also when the caller has gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitWithin)
	defer cancel()
	for try := 0; ; try++ {
		var k *job
		err := rs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
			if err := rs.fence(ctx, tx, j.Rotation); err != nil {
				return err
			}
			k = j.clone()
			if err := f(ctx, tx, k); err != nil {
				return err
			}
			if k.NextAt.IsZero() || k.NextAt.After(tx.Now) {
				k.Holder = "" // whoever is free then goes on with it
			}
			return rs.save(ctx, tx, j.Rotation, k)
		})
		if err == nil {
			*j = *k
			return nil
		}
		if try == 3 || !errors.Is(err, fault.ErrChanged) || !rs.refreshed(ctx, j) {
			return err
		}
	}
}

// fence fails with fault.ErrChanged unless the run is as it was seen, and keeps it so until the
// transaction ends.
func (rs *Rotations) fence(ctx context.Context, tx *store.Tx, seen *Rotation) error {
	err := tx.Swap(ctx, `UPDATE rotations SET version = version WHERE id = $1 AND holder = $2 AND epoch = $3 AND version = $4`, seen.ID, seen.Holder, seen.Epoch, seen.Version)
	if err != nil {
		return fmt.Errorf("rotation %s, epoch %d: %w", seen.ID, seen.Epoch, err)
	}
	return nil
}

// refreshed takes over what others changed of a run that is still ours.
func (rs *Rotations) refreshed(ctx context.Context, j *job) bool {
	now, err := rs.Get(ctx, j.ID)
	if err != nil || now.Holder != j.Holder || now.Epoch != j.Epoch || now.Version == j.Version {
		return false
	}
	r := *j.Rotation
	r.Version, r.Priority, r.Grace, r.GraceEndsAt = now.Version, now.Priority, now.Grace, now.GraceEndsAt
	j.Rotation = &r
	return true
}

func (rs *Rotations) commit(ctx context.Context, j *job, e effect, res result, err error) (again bool, _ error) {
	failed := rs.update(ctx, j, func(ctx context.Context, tx *store.Tx, k *job) error {
		if err != nil {
			return rs.setback(ctx, tx, k, e, res, err)
		}
		return rs.success(ctx, tx, k, e, res)
	})
	return failed == nil && j.Holder != "", failed
}

// success records an effect and what follows from it.
func (rs *Rotations) success(ctx context.Context, tx *store.Tx, k *job, e effect, res result) error {
	if err := rs.end(ctx, tx, k, e, audit.OK, "", res.detail); err != nil {
		return err
	}
	k.Error, k.ErrorReason, k.Attempt = "", "", 0
	w := &k.work
	w.mark(e, res.version)
	switch e.action {
	case "plan":
		if err := rs.planned(ctx, tx, k, res.plan); err != nil {
			return err
		}
	case "apply":
		if err := rs.applied(ctx, tx, k, res.held); err != nil {
			return err
		}
	case "publish":
		p := Placed{Placement: w.Places[e.index].Placement, Version: res.version, Generation: w.Change.New.Generation}
		if err := rs.systems.writePlacement(ctx, tx, k.Credential, p); err != nil {
			return err
		}
	case "usage":
		if err := rs.observedUse(ctx, tx, k, res.evidence); err != nil {
			return err
		}
	case "revoke":
		if err := rs.retireVersion(ctx, tx, k.Credential, w.Olds[e.index].Held.Generation); err != nil {
			return err
		}
	}
	return rs.proceed(ctx, tx, k)
}

// end ends the intent of an effect that has one.
func (rs *Rotations) end(ctx context.Context, tx *store.Tx, k *job, e effect, outcome, reason string, more map[string]any) error {
	if k.effect == "" {
		return nil
	}
	d := k.detail(e)
	maps.Copy(d, more)
	err := audit.End(ctx, tx, k.effect, audit.Event{Action: "rotation." + e.action, Resource: k.Resource(), Outcome: outcome, Reason: reason, Detail: d})
	k.effect, k.work.Doing = "", doing{}
	return err
}

// applied keeps what the target made of the new value: where it made the value itself, this
// is the only copy there is.
func (rs *Rotations) applied(ctx context.Context, tx *store.Tx, k *job, h providers.Held) error {
	w := &k.work
	v, err := readVersion(ctx, tx, rs.systems.key, k.Credential, w.Change.New.Generation)
	if err != nil {
		return err
	}
	if w.Issues || v.sealed == nil {
		if err := sealVersion(ctx, rs.sealer, v, h.Fields); err != nil {
			return err
		}
	}
	if h.Account != "" {
		v.Account = h.Account
	}
	v.TargetID = h.ID
	if err := writeVersion(ctx, tx, rs.systems.key, v, v.State); err != nil {
		return err
	}
	w.Change.New = v.held()
	k.values = nil
	if k.Back && !w.Back {
		return rs.turn(ctx, tx, k)
	}
	return nil
}

func (rs *Rotations) retireVersion(ctx context.Context, tx *store.Tx, credential string, generation int64) error {
	if generation == 0 {
		return nil
	}
	v, err := readVersion(ctx, tx, rs.systems.key, credential, generation)
	if err != nil {
		return err
	}
	return moveVersion(ctx, tx, rs.systems.key, v, Retired)
}

// proceed says what the run does next, and begins it where it changes something outside.
func (rs *Rotations) proceed(ctx context.Context, tx *store.Tx, k *job) error {
	if e, ok := k.work.next(); ok && e.action == "live" {
		if err := rs.live(ctx, tx, k); err != nil {
			return err
		}
	}
	e, ok := k.next(tx.Now)
	if !ok {
		outcome := Rotated
		if k.Back {
			outcome = RolledBack
		}
		return rs.finish(ctx, tx, k, outcome, nil)
	}
	if k.Step != e.step {
		k.Step, k.Since, k.work.Stuck = e.step, tx.Now, false
	}
	k.NextAt = tx.Now
	if e.action == "usage" {
		k.NextAt = k.graceNext(tx.Now)
	}
	if e.reads {
		return nil
	}
	return rs.begin(ctx, tx, k, e)
}

// live makes the new version the current one, in one transaction with all who are to hear of it.
func (rs *Rotations) live(ctx context.Context, tx *store.Tx, k *job) error {
	w := &k.work
	c, err := rs.systems.lockCredential(ctx, tx, k.Credential)
	if err != nil {
		return err
	}
	grace := k.Grace
	if w.Back || w.Change.Strategy == providers.Replace {
		grace = 0
	}
	w.live(grace)
	k.GraceEndsAt = time.Time{}
	for _, o := range w.Olds {
		if !o.Ended {
			k.GraceEndsAt = tx.Now.Add(grace)
		}
	}
	versions, err := readLiveVersions(ctx, tx, rs.systems.key, k.Credential)
	if err != nil {
		return err
	}
	generation := w.Change.New.Generation
	for _, v := range versions {
		if v.State == Current && v.Generation != generation {
			v.GraceEndsAt = k.GraceEndsAt
			if err := moveVersion(ctx, tx, rs.systems.key, v, Previous); err != nil {
				return err
			}
		}
	}
	for _, v := range versions {
		if v.Generation == generation {
			v.GraceEndsAt = time.Time{}
			if err := moveVersion(ctx, tx, rs.systems.key, v, Current); err != nil {
				return err
			}
		}
	}
	for _, o := range w.Olds {
		if o.Ended {
			if err := rs.retireVersion(ctx, tx, k.Credential, o.Held.Generation); err != nil {
				return err
			}
		}
	}
	from := c.Current
	c.Current = generation
	action := "rolled_back"
	if !k.Back {
		action, c.RotatedAt = "rotated", tx.Now
		c.settle(tx.Now)
	}
	if c.Drift != NoDrift && !c.ProbeAt.IsZero() {
		c.ProbeAt = tx.Now // is it gone?
	}
	if err := rs.systems.writeCredential(ctx, tx, c); err != nil {
		return err
	}
	detail := map[string]any{"generation": generation, "from": from, "rotation": k.ID, "cause": string(k.Cause)}
	if !k.GraceEndsAt.IsZero() {
		detail["grace_ends_at"] = k.GraceEndsAt.Format(time.RFC3339)
	}
	if err := recordCredential(ctx, tx, c, action, k.Reason, detail); err != nil {
		return err
	}
	return rs.notify(ctx, tx, c, "credential."+action, detail)
}

// finish ends a run, once.
func (rs *Rotations) finish(ctx context.Context, tx *store.Tx, k *job, o RotationOutcome, left []string) error {
	outcome := audit.OK
	if o == Abandoned {
		outcome = audit.Failed
	}
	detail := map[string]any{"outcome": string(o), "generation": k.Generation, "epoch": k.Epoch}
	if len(left) > 0 {
		detail["left"] = left
	}
	err := audit.End(ctx, tx, k.intent, audit.Event{Action: "rotation.run", Resource: k.Resource(), Outcome: outcome, Reason: string(o), Detail: detail})
	if err != nil {
		return err
	}
	if k.Step != StepFailed {
		k.FailedStep = ""
	}
	k.Step, k.Outcome, k.Since, k.EndedAt, k.NextAt = StepDone, o, tx.Now, tx.Now, time.Time{}
	tx.Wake(topicRotations) // another run of the credential may have waited
	return nil
}

func (rs *Rotations) observed(j *job, e effect, err error, took time.Duration) {
	outcome := "ok"
	if err != nil {
		outcome = string(providers.OutcomeOf(err))
	}
	rs.observe(EffectOutcome{Credential: j.Credential, Target: j.Target, Effect: e.name, Action: e.action, Attempt: j.Attempt + 1, Outcome: outcome, Took: took})
}

// notify queues webhooks in the transaction of what they tell.
func (rs *Rotations) notify(ctx context.Context, tx *store.Tx, c *Credential, typ string, detail map[string]any) error {
	return rs.systems.enqueue(ctx, tx, c, typ, detail)
}

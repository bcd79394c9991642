package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

const (
	busyTries = 50 // each busyWait apart: a run is ours while one effect is under way
	busyWait  = 100 * time.Millisecond
)

var errBusy = fault.New(fault.ErrChanged, "rotation_busy", "it is being worked on at this moment: try again in a few seconds")

// decide lets a person decide on a run that nobody is at. id is that of a run, or the name of
// a credential for the oldest of its runs that has not ended.
func (rs *Rotations) decide(ctx context.Context, verb, id, reason string, f func(ctx context.Context, tx *store.Tx, k *job) error) (r *Rotation, err error) {
	if err := checkReason(reason); err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		r, err = rs.decideOnce(ctx, verb, id, reason, f)
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, fault.ErrChanged) || try == busyTries {
			return nil, fmt.Errorf("%s rotation %s: %w", verb, clip(id), err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s rotation %s: %w", verb, clip(id), err)
		case <-time.After(busyWait):
		}
	}
}

func (rs *Rotations) decideOnce(ctx context.Context, verb, id, reason string, f func(ctx context.Context, tx *store.Tx, k *job) error) (r *Rotation, err error) {
	err = rs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		seen, err := rs.find(ctx, tx, id)
		if err != nil {
			return err
		}
		if !seen.EndedAt.IsZero() {
			return fault.New(fault.ErrTransition, "rotation_ended", "it ended at %s: %s", seen.EndedAt.Format(time.RFC3339), seen.Outcome)
		}
		if seen.Holder != "" {
			live, err := isLive(ctx, tx, seen.Holder)
			if err != nil {
				return err
			}
			if live {
				return errBusy
			}
		}
		j, err := rs.job(ctx, seen)
		if j.lost = errors.Is(err, secret.ErrCorrupt); j.lost && verb == "abandon" {
			err = nil // it holds up its credential, and there is no other way out
		}
		if err != nil {
			return err
		}
		k := j.clone()
		k.Holder = ""
		k.Epoch++ // whoever was at it is fenced out
		if err := f(ctx, tx, k); err != nil {
			return err
		}
		if err := rs.save(ctx, tx, j.Rotation, k); err != nil {
			return err
		}
		r = k.Rotation
		detail := map[string]any{"step": string(seen.Step), "epoch": k.Epoch}
		action := map[string]string{"retry": "retry", "roll back": "rollback", "abandon": "abandon"}[verb]
		if err := audit.Record(ctx, tx, audit.Event{Action: "rotation." + action, Resource: k.Resource(), Reason: reason, Detail: detail}); err != nil {
			return err
		}
		return tx.Announce(ctx, topicRotations)
	})
	return r, err
}

func (rs *Rotations) find(ctx context.Context, tx *store.Tx, id string) (*row, error) {
	if uuid.MatchString(id) {
		return readRow(ctx, tx, id)
	}
	list, err := queryRotations(ctx, tx, `WHERE credential = $1 AND ended_at = 0 ORDER BY id LIMIT 1`, id)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fault.New(fault.ErrNotFound, "no_rotation", "no rotation of credential %q is under way", clip(id)).On("rotation")
	}
	return list[0], nil
}

func (rs *Rotations) retry(_ context.Context, tx *store.Tx, k *job) error {
	if k.Step != StepFailed {
		return fault.New(fault.ErrTransition, "not_failed", "it is at %s: only one that failed is retried", k.Step)
	}
	w := &k.work
	if k.storeMoved() {
		w.Overwrite, w.Reread = true, true
	}
	if k.FailedStep == StepVerify && !w.Issues && w.NotAccepted >= maxNotAccepted && (!w.Back || w.Change.Strategy == providers.Replace) {
		w.Applied = false // it may have been lost: the same value again
	}
	w.NotAccepted = 0
	k.FailedStep, k.Attempt, k.Rejections, k.Error, k.ErrorReason, k.NextAt, k.Since = "", 0, 0, "", "", tx.Now, tx.Now
	if e, ok := k.next(tx.Now); ok {
		k.Step = e.step
	}
	return nil
}

// dropped ends the intent of an effect that nobody will repeat: how it came out is not known.
func (rs *Rotations) dropped(ctx context.Context, tx *store.Tx, k *job) error {
	return rs.end(ctx, tx, k, k.work.Doing.effect(), audit.Failed, "given_up", map[string]any{"result": "unknown"})
}

// noWayBack says why a run can't be rolled back; nil: it can.
func (j *job) noWayBack() error {
	w := &j.work
	at := j.Step
	if at == StepFailed {
		at = j.FailedStep
	}
	ended := at == StepRevoke
	for _, o := range w.Olds {
		ended = ended || w.Live && o.Ended
	}
	switch {
	case j.Back:
		return fault.New(fault.ErrTransition, "is_going_back", "it is being rolled back already: retry it")
	case w.Issues && w.Change.Strategy == providers.Replace && w.Maybe:
		return fault.New(fault.ErrTransition, "nothing_to_restore", "the target makes its values itself and knows one at a time: the old one can't be set again: retry it, or abandon it")
	case ended:
		return fault.New(fault.ErrTransition, "old_value_ended", "the old value is being ended, or has ended: start a new rotation instead")
	case w.Planned && w.nothingOlder():
		return fault.New(fault.ErrTransition, "nothing_to_restore", "there is no older value to go back to: retry it, or abandon it")
	}
	return nil
}

// nothingOlder says that consumers may read New, or that the target knows it alone, and that there
// was nothing before it.
func (w *work) nothingOlder() bool {
	tried := slices.ContainsFunc(w.Places, func(p place) bool { return p.Tried || p.Done != "" })
	return w.Change.Current.Generation == 0 && w.Adopted == nil && (tried || w.Change.Strategy == providers.Replace && w.Maybe)
}

func (rs *Rotations) rollback(ctx context.Context, tx *store.Tx, k *job) error {
	w := &k.work
	if err := k.noWayBack(); err != nil {
		return err
	}
	if err := rs.dropped(ctx, tx, k); err != nil {
		return err
	}
	k.Back, k.FailedStep, k.Attempt, k.Error, k.ErrorReason, k.GraceEndsAt = true, "", 0, "", "", time.Time{}
	k.Step, k.Since, k.NextAt = StepIssue, tx.Now, tx.Now
	if !w.Planned {
		// Nothing has happened, but that values which were refused may be staged.
		*w = work{Planned: true, Applied: true, Verified: true, Live: true, Back: true, Left: w.Left}
		return rs.proceed(ctx, tx, k)
	}
	if w.Issues && w.Maybe && !w.Applied {
		// The target may have made a value whose id we don't know. The same effect again finds
		// it and gives us one whose id we know; that one is then ended.
		return rs.proceed(ctx, tx, k)
	}
	if err := rs.turn(ctx, tx, k); err != nil {
		return err
	}
	return rs.proceed(ctx, tx, k)
}

// turn makes a run go back: the old value becomes the one that is published, and the new one
// of those that end.
func (rs *Rotations) turn(ctx context.Context, tx *store.Tx, k *job) error {
	w := &k.work
	was, now := w.Change.Current, w.Change.New
	tried := make([]place, 0, len(w.Places))
	for _, p := range w.Places {
		if (p.Tried || p.Done != "") && w.may(p) {
			tried = append(tried, place{Placement: p.Placement})
		}
	}
	none := was.Generation == 0 && w.Adopted == nil
	replaced := w.Change.Strategy == providers.Replace && w.Maybe
	if w.nothingOlder() {
		return fault.New(fault.ErrTransition, "nothing_to_restore", "there is no older value to go back to: retry it, or abandon it")
	}
	back := work{
		Planned: true, Overwrite: w.Overwrite, Reread: w.Reread, Issues: w.Issues, Valueless: w.Valueless, Adopted: w.Adopted,
		Applied: true, Verified: none, Left: w.leftovers(), Places: tried, Change: bare(w.Change), Back: true,
	}
	back.Change.New, back.Change.Current = was, now
	back.Ends = slices.ContainsFunc(w.Olds, func(o old) bool { return o.Told > 0 && o.Held.Generation == was.Generation })
	fresh, err := readVersion(ctx, tx, rs.systems.key, k.Credential, now.Generation)
	if err != nil {
		return err
	}
	if !w.Maybe && len(tried) == 0 {
		back.Verified = true // nothing has happened outside
		back.Places = nil
		if err := moveVersion(ctx, tx, rs.systems.key, fresh, Retired); err != nil {
			return err
		}
	} else {
		back.Olds = append(back.Olds, old{Held: now})
		if fresh.State == Staged {
			if err := moveVersion(ctx, tx, rs.systems.key, fresh, Previous); err != nil {
				return err
			}
		}
	}
	if replaced {
		if err := rs.restore(ctx, tx, k, w, &back); err != nil {
			return err
		}
	}
	k.work, k.values = back, nil
	return nil
}

// restore makes a version of the old value, for a target that knows one value at a time: it
// is set and published anew, so that marks, versions and generations only grow.
func (rs *Rotations) restore(ctx context.Context, tx *store.Tx, k *job, w, back *work) error {
	c, err := rs.systems.lockCredential(ctx, tx, k.Credential)
	if err != nil {
		return err
	}
	var value providers.Fields
	account := w.Change.Current.Account
	if g := w.Change.Current.Generation; g > 0 {
		v, err := readVersion(ctx, tx, rs.systems.key, k.Credential, g)
		if err != nil {
			return err
		}
		if value, err = openVersion(ctx, rs.sealer, v); err != nil {
			return err
		}
	} else {
		for name, text := range w.Adopted {
			value = value.Set(name, text)
		}
		account = w.Change.New.Account
	}
	if len(value) == 0 {
		return fault.New(fault.ErrTransition, "nothing_to_restore", "the old value is not with us: retry it, or abandon it")
	}
	v := &CredentialVersion{Credential: c.Name, Generation: c.Generation + 1, Rotation: tx.ID(), Account: account}
	if err := sealVersion(ctx, rs.sealer, v, value); err != nil {
		return err
	}
	if err := insertVersion(ctx, tx, rs.systems.key, v); err != nil {
		return err
	}
	c.Generation = v.Generation
	if err := rs.systems.writeCredential(ctx, tx, c); err != nil {
		return err
	}
	k.Generation = v.Generation
	back.Change.New = v.held()
	back.Change.Rotation, back.Change.Generation = v.Rotation, v.Generation
	if w.Change.Current.Generation > 0 {
		// The row of what is set again: it ends when its copy is current.
		back.Olds = append(back.Olds, old{Held: w.Change.Current})
		back.Change.Others = append(bare(w.Change).Others, w.Change.Current)
	}
	back.Applied, back.Maybe, back.Verified = false, true, false
	back.Places = nil
	for _, p := range w.Places {
		if w.may(p) {
			back.Places = append(back.Places, place{Placement: p.Placement})
		}
	}
	return nil
}

// may says whether the old value may be published in a place. One from before Rotunda goes
// back where it was read, only: else whoever may make a credential could have it adopt what he
// may not read, and carry it to where he may.
func (w *work) may(p place) bool { return w.Adopted == nil || p.Had }

// abandon ends a run and says what it leaves behind.
func (rs *Rotations) abandon(ctx context.Context, tx *store.Tx, k *job) (left []string, err error) {
	w := &k.work
	if k.lost {
		left = []string{"what it did is not known: every value of the credential that is sealed with Rotunda may be accepted, and the next rotation ends them"}
	}
	value := func(h providers.Held) string {
		text := fmt.Sprintf("generation %d", h.Generation)
		if h.Account != "" {
			text += fmt.Sprintf(", account %q", clip(h.Account))
		}
		if h.ID != "" {
			text += fmt.Sprintf(", id %q", clip(h.ID))
		}
		return text
	}
	if w.Planned && w.Maybe && !w.Live {
		left = append(left, fmt.Sprintf("target %s may accept %s", k.Target, value(w.Change.New)))
	}
	for _, o := range w.Olds {
		if !o.Ended && (w.Live || w.Back) {
			left = append(left, fmt.Sprintf("target %s may accept %s", k.Target, value(o.Held)))
		}
	}
	for _, p := range w.Places {
		if !w.Live && (p.Tried || p.Done != "") {
			left = append(left, fmt.Sprintf("store %s may serve generation %d at %s", p.Store, w.Change.New.Generation, p.Path))
		}
	}
	for _, l := range w.leftovers() {
		if !l.Gone {
			left = append(left, fmt.Sprintf("store %s holds a staged copy of generation %d at %s", l.Store, l.Generation, l.Path))
		}
	}
	if w.Planned && w.Change.New.Generation > 0 {
		v, err := readVersion(ctx, tx, rs.systems.key, k.Credential, w.Change.New.Generation)
		gone := errors.Is(err, fault.ErrNotFound) // that is why it is abandoned
		if err != nil && !gone {
			return nil, err
		}
		if !gone && v.State == Staged {
			to := Retired
			if w.Maybe {
				to = Previous // it may be accepted: its value stays, and the next rotation ends it
			}
			if err := moveVersion(ctx, tx, rs.systems.key, v, to); err != nil {
				return nil, err
			}
		}
	}
	if err := rs.dropped(ctx, tx, k); err != nil {
		return nil, err
	}
	return left, rs.finish(ctx, tx, k, Abandoned, left)
}

// hurry makes a run end soon: an emergency of its credential waits for it.
func (rs *Rotations) hurry(ctx context.Context, tx *store.Tx, id string) error {
	seen, err := readRow(ctx, tx, id)
	if err != nil {
		return err
	}
	j, err := rs.job(ctx, seen)
	if err != nil {
		return err
	}
	k := j.clone()
	k.Priority, k.Grace = priorityEmergency, 0
	if k.GraceEndsAt.After(tx.Now) {
		k.GraceEndsAt = tx.Now
	}
	if !k.NextAt.IsZero() {
		k.NextAt = tx.Now
	}
	if err := rs.save(ctx, tx, j.Rotation, k); err != nil {
		return err
	}
	return audit.Record(ctx, tx, audit.Event{Action: "rotation.hurry", Resource: k.Resource(), Reason: "emergency", Detail: map[string]any{"step": string(k.Step)}})
}

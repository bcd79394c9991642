package rotation

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

// setback records an effect that did not succeed, and decides what becomes of the run.
func (rs *Rotations) setback(ctx context.Context, tx *store.Tx, k *job, e effect, res result, err error) error {
	w := &k.work
	if q, ok := errors.AsType[*quotaError](err); ok {
		k.NextAt = tx.Now.Add(q.wait)
		return nil
	}
	out := providers.OutcomeOf(err)
	first := k.Epoch == w.FirstEpoch && k.Attempt == 0
	k.Attempt++
	k.Error, k.ErrorReason = rs.describe(k, err), reasonOf(err, out)
	same := out == providers.Unknown || out == providers.Throttled
	switch {
	case e.action == "usage":
		// The grace ends by the clock then.
		if err := rs.observedUse(ctx, tx, k, providers.Evidence{}); err != nil {
			return err
		}
		return rs.proceed(ctx, tx, k)
	case e.action == "retire" && (!same || k.Attempt >= maxRetire):
		if err := rs.end(ctx, tx, k, e, audit.Failed, k.ErrorReason, nil); err != nil {
			return err
		}
		if !same && k.Attempt == 1 && k.Epoch == w.Olds[e.index].Told {
			w.Olds[e.index].Told = 0 // no try of it can have come through
		}
		k.Attempt = 0
		w.mark(e, "")
		return rs.proceed(ctx, tx, k)
	case e.action == "verify" && out == providers.Rejected:
		w.NotAccepted++
		if w.NotAccepted >= maxNotAccepted {
			k.ErrorReason = "not_accepted"
			return rs.fail(ctx, tx, k, e)
		}
		k.NextAt = tx.Now.Add(min(minSpread<<(w.NotAccepted-1), maxSpread))
		return nil
	case same:
		k.NextAt = tx.Now.Add(backoff(k, k.Attempt))
		return rs.stuck(ctx, tx, k, e)
	case e.action == "apply":
		if first {
			w.Maybe = false
		}
		if out == providers.Rejected && !w.Issues && !k.Back {
			return rs.rejected(ctx, tx, k, e)
		}
	}
	return rs.fail(ctx, tx, k, e)
}

// stuck tells once of a run that has been at one step for too long. It goes on trying.
func (rs *Rotations) stuck(ctx context.Context, tx *store.Tx, k *job, e effect) error {
	if k.work.Stuck || tx.Now.Sub(k.Since) < stuckAfter {
		return nil
	}
	k.work.Stuck = true
	detail := map[string]any{"step": string(e.step), "effect": e.name, "since": k.Since.Format(time.RFC3339), "attempt": k.Attempt, "rotation": k.ID}
	if err := audit.Record(ctx, tx, audit.Event{Action: "rotation.stuck", Resource: k.Resource(), Outcome: audit.Failed, Reason: k.ErrorReason, Detail: detail}); err != nil {
		return err
	}
	c, err := rs.systems.seeCredential(ctx, tx, k.Credential)
	if err != nil || c.tampered {
		return err
	}
	return rs.notify(ctx, tx, c, "credential.rotation_stuck", detail)
}

// rejected gives up a value that the target would not have, and has another one made.
func (rs *Rotations) rejected(ctx context.Context, tx *store.Tx, k *job, e effect) error {
	w := &k.work
	k.Rejections++
	if err := rs.end(ctx, tx, k, e, audit.Failed, "rejected", map[string]any{"rejections": k.Rejections}); err != nil {
		return err
	}
	v, err := readVersion(ctx, tx, rs.systems.key, k.Credential, w.Change.New.Generation)
	if err != nil {
		return err
	}
	to := Retired
	if w.Maybe {
		to = Previous // an earlier try may have come through: it is ended with the others
	}
	if err := moveVersion(ctx, tx, rs.systems.key, v, to); err != nil {
		return err
	}
	*w = work{Overwrite: w.Overwrite, Refused: w.Refused + 1, Left: w.leftovers()}
	k.values = nil
	if k.Rejections >= maxRejections {
		return rs.fail(ctx, tx, k, e)
	}
	k.Step, k.Since, k.Attempt, k.NextAt = StepPlan, tx.Now, 0, tx.Now
	return nil
}

// leftovers are the staged copies that nobody needs when New is given up.
func (w *work) leftovers() []leftover {
	left := w.Left
	for _, p := range w.Places {
		if p.Staged && !w.Live { // live has put them there
			left = append(left, leftover{Placement: p.Placement, Rotation: w.Change.New.Rotation, Generation: w.Change.New.Generation})
		}
	}
	return left
}

// fail stops a run until a person has looked. It keeps its values.
func (rs *Rotations) fail(ctx context.Context, tx *store.Tx, k *job, e effect) error {
	if err := rs.end(ctx, tx, k, e, audit.Failed, k.ErrorReason, nil); err != nil {
		return err
	}
	k.Step, k.FailedStep, k.Since, k.NextAt = StepFailed, e.step, tx.Now, time.Time{}
	k.Error += hint(k)
	detail := map[string]any{"step": string(e.step), "effect": e.name, "rotation": k.ID, "generation": k.work.Change.New.Generation}
	if err := audit.Record(ctx, tx, audit.Event{Action: "rotation.failed", Resource: k.Resource(), Outcome: audit.Failed, Reason: k.ErrorReason, Detail: detail}); err != nil {
		return err
	}
	c, err := rs.systems.seeCredential(ctx, tx, k.Credential)
	if err != nil || c.tampered {
		return err
	}
	return rs.notify(ctx, tx, c, "credential.rotation_failed", map[string]any{"rotation": k.ID, "step": string(e.step), "reason": k.ErrorReason})
}

// hint says what a person can do about a run that failed.
func hint(k *job) string {
	ways := []string{"`rotunda credential retry " + k.Credential + "`"}
	if k.storeMoved() {
		ways[0] += " (replaces what the store holds now)"
	}
	if k.noWayBack() == nil {
		ways = append(ways, "`rotunda credential rollback "+k.Credential+"`")
	}
	ways = append(ways, "`rotunda credential abandon "+k.Credential+"`")
	return ": see to that, then " + strings.Join(ways, ", ")
}

// storeMoved says whether a run failed because of what somebody else put into a store. A target
// that has moved is drift, too, but no reason to replace anything in a store.
func (j *job) storeMoved() bool {
	return (j.ErrorReason == "drift" || j.ErrorReason == pathInUse) && (j.FailedStep == StepPlan || j.FailedStep == StepPublish)
}

// backoff is how long to wait before the next try: a random part, the same for all who ask,
// of a bound that doubles.
func backoff(k *job, attempt int) time.Duration {
	most := maxBackoff
	if k.Priority >= priorityEmergency {
		most = maxHurried
	}
	bound := min(minBackoff<<min(attempt-1, 16), most)
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s/%d", k.ID, attempt)
	share := float64(h.Sum64()>>11) / (1 << 53)
	return max(time.Duration(share*float64(bound)), bound/20)
}

// reasonOf is the stable word for a failure.
func reasonOf(err error, out providers.Outcome) string {
	f, ok := errors.AsType[*fault.Error](err)
	switch out {
	case providers.Moved:
		if ok && f.Reason == pathInUse {
			return pathInUse
		}
		return "drift"
	case providers.Rejected, providers.Throttled:
		return string(out)
	case providers.Refused, providers.Unknown:
	}
	if ok && f.Reason != "" {
		return f.Reason
	}
	return string(out)
}

// describe is an error as a person may see it. Adapters leave values out; should one fail
// to, what we know of them is cut out here.
func (rs *Rotations) describe(k *job, err error) string {
	text := err.Error()
	for _, f := range k.values {
		for _, name := range f.Names() {
			if v := f.Text(name); len(v) >= 8 && k.work.Change.Static[name] != v && name != "username" {
				text = strings.ReplaceAll(text, v, "[redacted]")
			}
		}
	}
	if len(text) > maxError {
		text = strings.ToValidUTF8(text[:maxError], "") + "…"
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// unissue ends a value that the target made and that could not be kept, while we still know
// its id. Where the outcome of keeping it is not known, the next Apply finds out.
func (rs *Rotations) unissue(ctx context.Context, j *job, res result, why error) {
	if errors.Is(why, store.ErrOutcomeUnknown) || res.target == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rs.timeout)
	defer cancel()
	if err := res.target.Revoke(ctx, res.change, res.held); err != nil {
		rs.log.WarnContext(ctx, "a value that the target made could not be kept, nor taken back: the next try takes it back", "rotation", j.ID, "error", err, "because", why)
	}
}

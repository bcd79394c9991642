package rotation

import (
	"context"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

const (
	// The last quarter of a grace, a day at most, is when its use is told of.
	warnShare = 4
	warnMost  = 24 * time.Hour

	// How often evidence is asked for where a grace may end on it: a use between two
	// looks shows only where the target remembers it.
	minLook = 10 * time.Second
	maxLook = 5 * time.Minute
)

// warnFrom is when the last part of a grace begins.
func (j *job) warnFrom() time.Time {
	return j.GraceEndsAt.Add(-min(max(0, j.GraceEndsAt.Sub(j.Since))/warnShare, warnMost))
}

// graceNext is when the evidence on the old value is looked at next: at the end of the grace
// in any case.
func (j *job) graceNext(now time.Time) time.Time {
	next := j.GraceEndsAt
	earlier := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	if !j.work.Warned {
		earlier(j.warnFrom())
	}
	if q := j.work.Quiet; q > 0 {
		earlier(now.Add(min(max(q/4, minLook), maxLook)))
		if !j.QuietSince.IsZero() {
			earlier(j.QuietSince.Add(q))
		}
	}
	if !next.After(now) {
		return now
	}
	return next
}

// observedUse notes evidence, ends the grace when the old value was quiet for long enough,
// and warns near its end when it was not. The grace is a promise: at its end the old
// value is revoked whoever still uses it.
func (rs *Rotations) observedUse(ctx context.Context, tx *store.Tx, k *job, e providers.Evidence) error {
	k.Evidence = e
	if most := tx.Now.Add(k.Grace); k.GraceEndsAt.After(most) {
		k.GraceEndsAt = most // it was reckoned by a clock that was ahead
	}
	switch {
	case !e.Known, e.Sessions > 0:
		k.QuietSince = time.Time{}
	case k.QuietSince.IsZero() && e.LastUsed.IsZero():
		k.QuietSince = tx.Now
	case k.QuietSince.IsZero() && e.LastUsed.Before(k.Since):
		k.QuietSince = k.Since
	case e.LastUsed.After(k.QuietSince):
		k.QuietSince = e.LastUsed
	}
	if k.QuietSince.After(tx.Now) {
		k.QuietSince = tx.Now // by another machine's clock
	}
	quiet := k.work.Quiet > 0 && !k.QuietSince.IsZero() && tx.Now.Sub(k.QuietSince) >= k.work.Quiet
	if quiet && tx.Now.Before(k.GraceEndsAt) {
		k.GraceEndsAt = tx.Now
	}
	used := e.Known && (e.Sessions > 0 || e.LastUsed.After(k.warnFrom()))
	if used && !k.work.Warned && !tx.Now.Before(k.warnFrom()) && tx.Now.Before(k.GraceEndsAt) {
		k.work.Warned = true
		detail := evidenceDetail(k)
		detail["grace_ends_at"] = k.GraceEndsAt.Format(time.RFC3339)
		if err := audit.Record(ctx, tx, audit.Event{Action: "rotation.still_used", Resource: k.Resource(), Detail: detail}); err != nil {
			return err
		}
		c, err := rs.systems.seeCredential(ctx, tx, k.Credential)
		if err != nil {
			return err
		}
		if !c.tampered {
			if err := rs.notify(ctx, tx, c, "credential.still_used", detail); err != nil {
				return err
			}
		}
	}
	k.Attempt = 0
	return nil
}

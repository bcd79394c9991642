package providerstest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
)

func contextFor(parent context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		ctx, cancel := context.WithCancel(parent)
		cancel()
		return ctx, cancel
	}
	return context.WithTimeout(parent, d)
}

// testStale: of two rotations that were prepared on the same state, and of two leases
// of one rotation, the older can do nothing once the newer was at work.
func (l *life) testStale() {
	l.rotate()
	older := l.next()
	newer := l.next()
	if older.New.Account != newer.New.Account {
		l.Fatalf("two Prepare on the same state chose the accounts %q and %q", older.New.Account, newer.New.Account)
	}
	h := l.apply(l.a, newer)
	l.wantStale(older, "an older generation and epoch")
	l.wantAccepted(h, "after an older rotation tried")
	if l.bed.Accepts != nil && !l.bed.Kind.Traits.Issues && l.bed.Accepts(l.TB, older.New) {
		l.Errorf("Apply of an older rotation was refused, and its value is accepted")
	}

	// Another replica takes the rotation over, with a newer lease.
	l.epoch++
	taken := newer
	taken.Epoch = l.epoch
	h = l.again(taken, h)
	l.wantMarker(taken, h)
	l.wantStale(newer, "an older epoch of the same rotation")
	l.wantAccepted(h, "after an older lease tried")
	l.wantMarker(taken, h)
	if l.strategy != providers.Replace {
		l.wantServed("after stale calls")
	}
	l.finish(taken, h)
	l.wantStale(older, "an older rotation, when a newer one is done")
	l.wantServed("after stale calls")
	l.rotate()
}

func (l *life) wantStale(c providers.Change, what string) {
	l.Helper()
	for _, by := range []providers.Target{l.a, l.b} {
		_, err := by.Apply(l.ctx, c)
		if !errors.Is(err, fault.ErrStale) || providers.OutcomeOf(err) != providers.Moved {
			l.Fatalf("Apply of %s: %v, want fault.ErrStale", what, err)
		}
	}
}

// testMarker: the marker belongs to the value that is there.
func (l *life) testMarker() {
	c, h := l.rotate()
	l.wantMarker(c, h)
	c = l.next()
	h = l.again(c, l.apply(l.a, c))
	l.wantMarker(c, h)
	l.finish(c, h)
}

// wrong are values like h that the target never accepted.
func (l *life) wrong(c providers.Change, h providers.Held) providers.Held {
	l.Helper()
	if l.bed.Wrong != nil {
		return l.bed.Wrong(l.TB, h)
	}
	if !l.bed.Kind.Traits.Issues {
		fresh, err := l.a.Prepare(l.ctx, c)
		if err != nil {
			l.Fatalf("prepare: %v", err)
		}
		w := h
		w.Fields = fresh.New.Fields
		return w
	}
	w := h
	w.Fields = maps.Clone(h.Fields)
	for name, v := range h.Fields {
		text := v.RevealString()
		if text == h.Account || text == h.ID || text == c.Static[name] || text == "" {
			continue
		}
		last := byte('A')
		if text[len(text)-1] == last {
			last = 'B'
		}
		w.Fields[name] = secret.FromString(text[:len(text)-1] + string(last))
	}
	return w
}

func (l *life) testVerifyWrong() {
	c, h := l.rotate()
	for range 2 {
		l.wantRejected(c, l.wrong(c, h), "a wrong value")
		l.verify(l.b, c, h)
		l.wantServed("after Verify of a wrong value")
	}
	if l.bed.Kind.Traits.Issues {
		return
	}
	c = l.next()
	if l.strategy != providers.Replace || l.bed.Wrong == nil {
		l.wantRejected(c, c.New, "a value that was not applied yet")
	}
	h = l.apply(l.a, c)
	l.finish(c, h)
}

// testCancelled: a call whose context has ended returns, and does not claim to know.
func (l *life) testCancelled() {
	l.rotate()
	c := l.next()
	for name, calls := range map[string]func(ctx context.Context) error{
		"Check":   func(ctx context.Context) error { _, err := l.a.Check(ctx, l.base); return err },
		"Prepare": func(ctx context.Context) error { _, err := l.a.Prepare(ctx, c); return err },
		"Applied": func(ctx context.Context) error { _, err := l.a.Applied(ctx, c, l.served.Account); return err },
		"Usage":   func(ctx context.Context) error { _, err := l.a.Usage(ctx, c, l.served); return err },
		"Verify":  func(ctx context.Context) error { return l.a.Verify(ctx, c, l.served) },
		"Apply":   func(ctx context.Context) error { _, err := l.a.Apply(ctx, c); return err },
	} {
		ctx, cancel := contextFor(l.ctx, 0)
		err := calls(ctx)
		cancel()
		if err == nil && (name == "Verify" || name == "Apply") && l.bed.Accepts != nil {
			l.Errorf("%s with a cancelled context says that it was done", name)
		}
		if err != nil && providers.OutcomeOf(err) != providers.Unknown {
			l.Errorf("%s with a cancelled context: the outcome is %s, want unknown: %v", name, providers.OutcomeOf(err), err)
		}
	}
	h := l.apply(l.a, c)
	c.New = h
	l.verify(l.a, c, h)
	l.publish(h)
	for _, old := range l.others {
		ctx, cancel := contextFor(l.ctx, 0)
		for name, err := range map[string]error{
			"Retire": l.a.Retire(ctx, c, old, l.now().Add(time.Hour)),
			"Revoke": l.a.Revoke(ctx, c, old),
		} {
			if err != nil && providers.OutcomeOf(err) != providers.Unknown {
				l.Errorf("%s with a cancelled context: the outcome is %s, want unknown: %v", name, providers.OutcomeOf(err), err)
			}
		}
		cancel()
		l.wantServed("after calls with a cancelled context")
	}
	l.revoke(l.b, c)
	for _, old := range l.others {
		l.wantEnded(old, "revoked after a try with a cancelled context")
	}
}

func (l *life) testCheck() {
	for range 2 {
		c := l.plan()
		c.New = providers.Held{}
		before, keys := l.snapshot(c), l.keys(c)
		for _, by := range []providers.Target{l.a, l.b} {
			found, err := by.Check(l.ctx, c)
			if err != nil {
				l.Fatalf("check: %v", err)
			}
			for _, f := range found {
				if !f.OK && !f.Warning {
					l.Errorf("Check of a credential that can be rotated: %s: %s", f.Check, f.Detail)
				}
			}
			l.wantServed("after Check")
		}
		if after := l.snapshot(c); after != before {
			l.Errorf("Check left something behind: the target held\n%s\nand holds\n%s", before, after)
		}
		if after := l.keys(c); !slices.Equal(after, keys) {
			l.Errorf("Check changed what the target holds from %q to %q", keys, after)
		}
		l.rotate()
	}
}

func (l *life) testMissing() {
	l.base = l.bed.Missing(l.TB, l.strategy)
	l.begin()
	c := l.plan()
	c.New = providers.Held{}
	found, err := l.a.Check(l.ctx, c)
	if err != nil {
		l.Fatalf("check: %v; an account that is missing is a finding", err)
	}
	if !slices.ContainsFunc(found, func(f providers.Finding) bool { return !f.OK && !f.Warning }) {
		l.Errorf("Check of a credential whose account does not exist found nothing wrong: %+v", found)
	}
	c = l.plan()
	prepared, err := l.a.Prepare(l.ctx, c)
	if err == nil {
		_, err = l.a.Apply(l.ctx, prepared)
	}
	if err == nil || providers.OutcomeOf(err) != providers.Refused {
		l.Errorf("Apply to an account that does not exist: %v (%s), want refused", err, providers.OutcomeOf(err))
	}
}

func (l *life) testRejected() {
	l.rotate()
	c := l.next()
	undo := l.bed.Reject(l.TB, c)
	for _, by := range []providers.Target{l.a, l.b} {
		if _, err := by.Apply(l.ctx, c); providers.OutcomeOf(err) != providers.Rejected {
			l.Errorf("Apply of a value that the target does not take: %v (%s), want rejected", err, providers.OutcomeOf(err))
		}
		l.wantServed("after a value was rejected")
	}
	undo()
	h := l.apply(l.a, l.next())
	l.wantAccepted(h, "after the target took values again")
}

func (l *life) testSessions() {
	l.rotate()
	old := l.served
	alive := l.bed.Session(l.TB, old)
	c := l.next()
	c.Emergency = true
	h := l.apply(l.a, c)
	c.New = h
	l.verify(l.a, c, h)
	l.publish(h)
	if l.strategy != providers.Replace {
		if !alive() {
			l.Errorf("Apply ended a session of the value that consumers had")
		}
		e, err := l.a.Usage(l.ctx, c, old)
		if err != nil {
			l.Fatalf("usage: %v", err)
		}
		if e.Known && e.Sessions == 0 && e.LastUsed.IsZero() {
			l.Errorf("Usage of a value with an open session: none, and never used")
		}
	}
	for _, by := range []providers.Target{l.a, l.b} {
		err := by.Revoke(l.ctx, c, old)
		if err != nil && providers.OutcomeOf(err) == providers.Unknown { // a session takes its time to end
			l.eventually(func() bool {
				err = by.Revoke(l.ctx, c, old)
				return providers.OutcomeOf(err) != providers.Unknown || err == nil
			})
		}
		if err != nil {
			l.Fatalf("revoke: %v", err)
		}
	}
	if !l.eventually(func() bool { return !alive() }) {
		l.Errorf("a session of the value that was revoked in an emergency still works")
	}
	l.wantServed("after an emergency")
}

// testForeign: what somebody else made is never deleted.
func (l *life) testForeign() {
	if l.served.Fields != nil || l.served.ID != "" {
		l.rotate()
	}
	id := l.bed.Foreign(l.TB, l.base)
	c := l.next()
	if !slices.Contains(c.Before, id) {
		l.Errorf("Prepare did not note %q, which was there, in Before: %q", id, c.Before)
	}
	h := l.again(c, l.again(c, l.apply(l.a, c)))
	l.finish(c, h)
	if !slices.Contains(l.keys(c), id) {
		l.Errorf("%q, which is not ours, is gone", id)
	}
}

// pass waits until d is over on the system's clock.
func (l *life) pass(d time.Duration) {
	if l.bed.Pass != nil {
		l.bed.Pass(l.TB, d)
	}
}

// retireSoon retires what is superseded to an end that can be waited for.
func (l *life) retireSoon() (c providers.Change, end time.Time) {
	l.Helper()
	l.rotate()
	c = l.next()
	h := l.apply(l.a, c)
	c.New = h
	l.verify(l.a, c, h)
	l.publish(h)
	end = l.now().Add(2 * time.Second)
	for _, old := range l.others {
		for _, by := range []providers.Target{l.a, l.b} {
			if err := by.Retire(l.ctx, c, old, end); err != nil {
				l.Fatalf("retire: %v", err)
			}
		}
	}
	return c, end
}

func (l *life) testRetireEnds() {
	c, _ := l.retireSoon()
	l.pass(3 * time.Second)
	for _, old := range l.others {
		if !l.eventually(func() bool { return !l.bed.Accepts(l.TB, old) }) {
			l.Errorf("generation %d is accepted long after its end", old.Generation)
		}
	}
	l.wantServed("after the end of the old value")
	l.revoke(l.a, c)
	l.others = nil
	l.rotate()
	l.rotate()
}

// testRetireTakenBack: the old value is current again, and its end is taken back; a call of an
// earlier lease that comes late sets none.
func (l *life) testRetireTakenBack() {
	c, end := l.retireSoon()
	stale := c
	l.epoch++
	c.Epoch = l.epoch
	for _, old := range l.others {
		if old.Generation != stale.Current.Generation {
			continue
		}
		c.New, c.Current = old, stale.New
		for _, by := range []providers.Target{l.a, l.b} {
			if err := by.Retire(l.ctx, c, old, time.Time{}); err != nil {
				l.Fatalf("take the end back: %v", err)
			}
		}
		if l.bed.Marks {
			if err := l.a.Retire(l.ctx, stale, old, end); err != nil && providers.OutcomeOf(err) != providers.Moved {
				l.Fatalf("retire under an earlier epoch: %v", err)
			}
		}
		l.pass(3 * time.Second)
		if !l.eventually(func() bool { return l.now().After(end.Add(time.Second)) }) {
			l.Fatalf("the clock of the system stands still")
		}
		l.wantAccepted(old, "when an end that was taken back had passed")
	}
	l.wantServed("after an end was taken back")
	stale.Epoch = c.Epoch
	l.revoke(l.a, stale)
	l.others = nil
	l.rotate()
}

// testRetireReused: an end that was set for the old value does not end the new value
// that takes its account.
func (l *life) testRetireReused() {
	c, end := l.retireSoon()
	l.revoke(l.a, c)
	l.others = nil
	l.rotate()
	l.pass(3 * time.Second)
	if !l.eventually(func() bool { return l.now().After(end.Add(time.Second)) }) {
		l.Fatalf("the clock of the system stands still")
	}
	l.wantServed("when the end of an earlier value of its account had passed")
	l.rotate()
}

package providerstest

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// lifetime is more rotations than any scheme of two has states.
const lifetime = 5

// testLife: every call twice, by two handles, and what consumers read is accepted
// after each.
func (l *life) testLife() {
	l.wantServed("at first")
	for range lifetime {
		c := l.next()
		window := l.strategy == providers.Replace
		still := func(when string) {
			l.Helper()
			if !window {
				l.wantServed(when)
			}
		}
		l.wantServed("after Prepare")

		h := l.apply(l.a, c)
		l.wantAccepted(h, "after Apply")
		still("after Apply")
		h = l.again(c, h)
		l.wantAccepted(h, "after Apply was repeated")
		still("after Apply was repeated")
		c.New = h
		l.wantMarker(c, h)

		for _, by := range []providers.Target{l.a, l.b} {
			l.verify(by, c, h)
			still("after Verify")
		}
		l.publish(h)
		l.wantServed("after the new value was published")

		for _, by := range []providers.Target{l.a, l.b} {
			for _, old := range l.others {
				e, err := by.Usage(l.ctx, c, old)
				if err != nil {
					l.Fatalf("usage: %v", err)
				}
				if e.Known && e.Source == "" {
					l.Errorf("Usage knows something and does not say where from")
				}
				if err := by.Retire(l.ctx, c, old, l.now().Add(time.Hour)); err != nil {
					l.Fatalf("retire: %v", err)
				}
				l.wantServed("after the old value was retired")
				if !window {
					l.wantAccepted(old, "retired to an hour from now")
				}
			}
		}
		for _, by := range []providers.Target{l.a, l.b} {
			l.revoke(by, c)
			l.wantServed("after the old value was revoked")
			for _, old := range l.others {
				l.wantEnded(old, "after Revoke")
				l.wantRejected(c, old, "a revoked value")
			}
		}
		l.others = nil
		l.verify(l.b, c, h)
		l.wantMarker(c, h)
	}
}

// again is the same Apply by the other handle, as if the first reply had been lost.
func (l *life) again(c providers.Change, first providers.Held) providers.Held {
	l.Helper()
	second := l.apply(l.b, c)
	if l.bed.Kind.Traits.Issues {
		l.wantOneKey(c, second)
		if first.ID != "" && first.ID != second.ID {
			l.wantEnded(first, "issued by a try whose reply was lost")
		}
		return second
	}
	if second.Account != first.Account || second.ID != first.ID || !second.Fields.Equal(first.Fields) {
		l.Fatalf("Apply came out otherwise when it was repeated: account %q id %q, then account %q id %q", first.Account, first.ID, second.Account, second.ID)
	}
	return second
}

// wantOneKey: what the target holds is what is recorded, what was there before, and h.
func (l *life) wantOneKey(c providers.Change, h providers.Held) {
	l.Helper()
	if l.bed.Keys == nil {
		return
	}
	want := append([]string{h.ID}, c.Before...)
	for _, held := range append([]providers.Held{c.Current}, c.Others...) {
		if held.ID != "" && l.strategy != providers.Replace {
			want = append(want, held.ID)
		}
	}
	slices.Sort(want)
	want = slices.Compact(want)
	have := l.keys(c)
	if l.strategy == providers.Replace {
		// Whether the replaced one is listed until Revoke is the target's own affair.
		have = slices.DeleteFunc(have, func(id string) bool { return id == c.Current.ID })
		want = slices.DeleteFunc(want, func(id string) bool { return id == c.Current.ID && id != h.ID })
	}
	if !slices.Equal(have, want) {
		l.Fatalf("the target holds %q; recorded, from before, and new are %q", have, want)
	}
}

func (l *life) wantMarker(c providers.Change, h providers.Held) {
	l.Helper()
	got, err := l.b.Applied(l.ctx, c, h.Account)
	if err != nil {
		l.Fatalf("applied: %v", err)
	}
	if !got.Known {
		if l.bed.Marks {
			l.Fatalf("the account %q has no marker after Apply", h.Account)
		}
		return
	}
	if got.Rotation != c.Rotation || got.Generation != c.Generation || got.Epoch != c.Epoch {
		l.Fatalf("the marker of %q says rotation %q generation %d epoch %d, want %s %d %d", h.Account,
			got.Rotation, got.Generation, got.Epoch, c.Rotation, c.Generation, c.Epoch)
	}
}

// wantRejected: Verify says definitely not. Without Accepts nothing can tell.
func (l *life) wantRejected(c providers.Change, h providers.Held, what string) {
	l.Helper()
	if l.bed.Accepts == nil || h.Fields == nil {
		return
	}
	var err error
	if !l.until(func() bool { err = l.a.Verify(l.ctx, c, h); return errors.Is(err, fault.ErrRejected) }) {
		l.Fatalf("Verify of %s: %v, want fault.ErrRejected", what, err)
	}
	if got := providers.OutcomeOf(err); got != providers.Rejected {
		l.Fatalf("Verify of %s: the outcome is %s, want rejected", what, got)
	}
}

// testPrepare: Prepare reads, and makes a value that is fresh each time.
func (l *life) testPrepare() {
	l.rotate()
	c := l.plan()
	before, keys := l.snapshot(c), l.keys(c)
	marker, err := l.a.Applied(l.ctx, c, l.served.Account)
	if err != nil {
		l.Fatalf("applied: %v", err)
	}
	var made []providers.Change
	for range 3 {
		got, err := l.a.Prepare(l.ctx, c)
		if err != nil {
			l.Fatalf("prepare: %v", err)
		}
		l.checkPrepared(c, got)
		made = append(made, got)
		l.wantServed("after Prepare")
	}
	if after := l.snapshot(c); after != before {
		l.Errorf("Prepare changed the target: it held\n%s\nand holds\n%s", before, after)
	}
	if after := l.keys(c); !slices.Equal(after, keys) {
		l.Errorf("Prepare changed what the target holds from %q to %q", keys, after)
	}
	if after, err := l.a.Applied(l.ctx, c, l.served.Account); err != nil || after != marker {
		l.Errorf("Prepare changed the marker from %+v to %+v (%v)", marker, after, err)
	}
	if traits := l.bed.Kind.Traits; traits.Issues || traits.Valueless {
		return
	}
	if made[0].New.Fields.Equal(made[1].New.Fields) || made[1].New.Fields.Equal(made[2].New.Fields) {
		l.Errorf("Prepare made the same value twice")
	}
	if l.bed.Accepts != nil {
		for _, c := range made {
			if l.bed.Accepts(l.TB, c.New) {
				l.Errorf("a value that was only prepared is accepted")
			}
		}
	}
}

// testApplyAtOnce: two processes hold the same rotation, one of which lost its lease
// and does not know yet.
func (l *life) testApplyAtOnce() {
	l.rotate()
	for range 3 {
		c := l.next()
		const racers = 4
		var held [racers]providers.Held
		var errs [racers]error
		var wg sync.WaitGroup
		for i := range racers {
			by := []providers.Target{l.a, l.b}[i%2]
			wg.Go(func() { held[i], errs[i] = by.Apply(l.ctx, c) })
		}
		wg.Wait()
		if l.strategy != providers.Replace {
			l.wantServed("after Apply was done several times at once")
		}
		traits := l.bed.Kind.Traits
		for i, err := range errs {
			if err != nil && (!traits.Issues || providers.OutcomeOf(err) == providers.Rejected) {
				l.Fatalf("one of several equal Apply at once: %v", err)
			}
			if err == nil && !traits.Issues && !traits.Valueless {
				l.checkApplied(c, held[i])
				if held[i].Account != held[0].Account || held[i].ID != held[0].ID {
					l.Fatalf("equal Apply at once came out as id %q and %q", held[0].ID, held[i].ID)
				}
			}
		}
		h := l.again(c, l.apply(l.a, c))
		l.wantAccepted(h, "after Apply was done several times at once")
		l.finish(c, h)
	}
}

// finish goes on behind Apply, to the end of the rotation.
func (l *life) finish(c providers.Change, h providers.Held) {
	l.Helper()
	c.New = h
	l.verify(l.a, c, h)
	l.publish(h)
	l.revoke(l.a, c)
	l.others = nil
	l.wantServed("after a rotation")
}

// testApplyLost: what was done is found again at any later point of the rotation.
func (l *life) testApplyLost() {
	l.rotate()
	c := l.next()
	first := l.apply(l.a, c)
	h := first
	for range 3 {
		h = l.again(c, h)
		if l.strategy != providers.Replace {
			l.wantServed("after Apply was repeated")
		}
	}
	l.wantAccepted(h, "after Apply was repeated")
	l.finish(c, h)

	// A replica that had slept repeats it when all is done; its change knows nothing of
	// what came after. Values that are ours stay what they are.
	if traits := l.bed.Kind.Traits; !traits.Issues && !traits.Valueless && l.strategy == providers.Replace {
		l.again(c, h)
		l.wantServed("after Apply was repeated when the rotation was done")
	}
	l.rotate()
}

// testApplyCut: the context ends at any moment of Apply; the same again mends it.
func (l *life) testApplyCut() {
	l.rotate()
	for _, after := range []time.Duration{0, 500 * time.Microsecond, 2 * time.Millisecond, 10 * time.Millisecond} {
		c := l.next()
		ctx, cancel := contextFor(l.ctx, after)
		_, err := l.a.Apply(ctx, c)
		cancel()
		if err != nil && providers.OutcomeOf(err) != providers.Unknown {
			l.Fatalf("Apply whose context ended: the outcome is %s, want unknown: %v", providers.OutcomeOf(err), err)
		}
		if l.strategy != providers.Replace {
			l.wantServed("after Apply was cut short")
		}
		h := l.applyUntilKnown(l.b, c)
		if l.bed.Kind.Traits.Issues {
			l.wantOneKey(c, h)
		}
		l.wantAccepted(h, "after Apply was cut short and repeated")
		l.finish(c, h)
	}
}

// testRollback: the new value is taken back, nothing was published, and the next
// rotation works.
func (l *life) testRollback() {
	for range 2 {
		l.rotate()
		c := l.next()
		h := l.apply(l.a, c)
		c.New = h
		l.verify(l.a, c, h)
		for _, by := range []providers.Target{l.a, l.b} {
			if err := by.Revoke(l.ctx, c, h); err != nil {
				l.Fatalf("revoke the new value: %v", err)
			}
			l.wantServed("after the new value was taken back")
			l.wantEnded(h, "taken back")
			l.wantRejected(c, h, "a value that was taken back")
		}
	}
	l.rotate()
}

// testRevokeNeverApplied: what never was is gone already.
func (l *life) testRevokeNeverApplied() {
	l.rotate()
	c := l.next()
	for _, by := range []providers.Target{l.a, l.b} {
		if l.strategy == providers.Replace {
			break // New has the account of Current, and there is nothing to end
		}
		if err := by.Revoke(l.ctx, c, c.New); err != nil {
			l.Fatalf("revoke a value that was never applied: %v", err)
		}
		l.wantServed("after a value that was never applied was revoked")
	}
	h := l.apply(l.a, c)
	c.New = h

	other := c
	other.Rotation = newUUID()
	prepared, err := l.a.Prepare(l.ctx, other)
	if err != nil {
		l.Fatalf("prepare: %v", err)
	}
	if l.strategy == providers.Dual {
		if err := l.a.Revoke(l.ctx, c, prepared.New); err != nil {
			l.Fatalf("revoke a value that the target never had: %v", err)
		}
		l.wantAccepted(h, "after a value that the target never had was revoked")
		l.wantServed("after a value that the target never had was revoked")
	}
	l.finish(c, h)
}

// testRevokeLate: Revoke of long ago is repeated when its account, or its place, has
// another value.
func (l *life) testRevokeLate() {
	type past struct {
		c   providers.Change
		old []providers.Held
	}
	var history []past
	l.rotate()
	for range 4 {
		c := l.next()
		h := l.apply(l.a, c)
		c.New = h
		l.verify(l.a, c, h)
		l.publish(h)
		history = append(history, past{c, slices.Clone(l.others)})
		l.revoke(l.a, c)
		l.others = nil
		for _, p := range history {
			for _, old := range p.old {
				for _, by := range []providers.Target{l.a, l.b} {
					if err := by.Revoke(l.ctx, p.c, old); err != nil && providers.OutcomeOf(err) != providers.Moved {
						l.Fatalf("revoke of generation %d, repeated at generation %d: %v", old.Generation, h.Generation, err)
					}
					l.wantServed("after Revoke of an earlier rotation was repeated")
				}
			}
		}
	}
}

// testRetire: an end in the future ends nothing now, and never what is in use.
func (l *life) testRetire() {
	l.rotate()
	c := l.next()
	h := l.apply(l.a, c)
	c.New = h
	l.verify(l.a, c, h)
	l.publish(h)
	for _, old := range l.others {
		for i, by := range []providers.Target{l.a, l.b, l.a} {
			if err := by.Retire(l.ctx, c, old, l.now().Add(time.Duration(3-i)*time.Hour)); err != nil {
				l.Fatalf("retire: %v", err)
			}
			l.wantServed("after the old value was retired")
			if l.strategy != providers.Replace {
				l.wantAccepted(old, "retired to some hours from now")
			}
		}
	}
	l.revoke(l.a, c)
	for _, old := range l.others {
		if err := l.b.Retire(l.ctx, c, old, l.now().Add(time.Hour)); err != nil && providers.OutcomeOf(err) != providers.Refused {
			l.Fatalf("retire what is revoked: %v", err)
		}
		l.wantEnded(old, "retired after it was revoked")
		l.wantServed("after a revoked value was retired")
	}
	l.others = nil
	l.rotate()
}

package providerstest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// testTwoAtOnce: of several versions that are published over the same prior at the
// same time one wins, and consumers never read anything that was not published.
func (s *shelf) testTwoAtOnce() {
	last := s.version()
	prior := s.publish(s.a, last, "")
	for range 5 {
		const racers = 4
		var versions [racers]providers.Version
		var names [racers]string
		var errs [racers]error
		possible := []providers.Fields{last.Fields}
		for i := range racers {
			versions[i] = s.version()
			possible = append(possible, versions[i].Fields)
		}
		staged := s.bed.Kind.Traits.Stages
		if staged {
			s.stage(s.a, versions[0]) // the others were never staged
		}
		var wg sync.WaitGroup
		for i := range racers {
			by := s.handles()[i%2]
			wg.Go(func() { names[i], errs[i] = by.Publish(s.ctx, s.path, versions[i], prior) })
		}
		raced := make(chan struct{})
		go func() { wg.Wait(); close(raced) }()
		for reading := true; reading; {
			select {
			case <-raced:
				reading = false
			default:
			}
			s.wantOneOf(possible)
		}
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				s.Fatalf("two versions were published over one prior version")
			case err == nil:
				winner = i
			case providers.OutcomeOf(err) == providers.Rejected || providers.OutcomeOf(err) == providers.Refused:
				s.Fatalf("one of several Publish at once: %v (%s)", err, providers.OutcomeOf(err))
			}
		}
		// Whose outcome is unknown asks again, and everyone agrees then.
		for i := range versions {
			name, err := s.b.Publish(s.ctx, s.path, versions[i], prior)
			if err == nil && winner < 0 {
				winner, names[i] = i, name
			}
			if i == winner {
				if err != nil || name != names[i] {
					s.Fatalf("the version that won, repeated: %q, %v; it was %q", name, err, names[i])
				}
				continue
			}
			s.wantStale(err, "Publish of a version that lost, repeated")
		}
		last, prior = versions[winner], names[winner]
		s.wantServed(last, prior)
		if staged {
			if err := s.b.Discard(s.ctx, s.path, versions[0]); err != nil {
				s.Fatalf("discard: %v", err)
			}
			s.wantServed(last, prior)
		}
	}
}

func (s *shelf) wantOneOf(possible []providers.Fields) {
	s.Helper()
	got := s.bed.Read(s.TB, s.path)
	for _, f := range possible {
		if got.Equal(f) {
			return
		}
	}
	s.Fatalf("consumers read a value that nobody published, with fields %q", got.Names())
}

// testOneAtOnce: two processes hold the same rotation.
func (s *shelf) testOneAtOnce() {
	prior := ""
	for range 5 {
		v := s.version()
		const racers = 4
		var names [racers]string
		var errs [racers]error
		var wg sync.WaitGroup
		for i := range racers {
			by := s.handles()[i%2]
			wg.Go(func() { names[i], errs[i] = by.Publish(s.ctx, s.path, v, prior) })
		}
		wg.Wait()
		for i := range racers {
			if errs[i] != nil {
				s.Fatalf("one of several equal Publish at once: %v", errs[i])
			}
			if names[i] != names[0] {
				s.Fatalf("equal Publish at once came out as %q and %q", names[0], names[i])
			}
		}
		prior = names[0]
		s.wantServed(v, prior)
	}
}

// testDiscard: also a version that is served, was served, or never was.
func (s *shelf) testDiscard() {
	never, first, second := s.version(), s.version(), s.version()
	discard := func(v providers.Version) {
		s.Helper()
		for _, by := range s.handles() {
			if err := by.Discard(s.ctx, s.path, v); err != nil {
				s.Fatalf("discard: %v", err)
			}
		}
	}
	discard(never)
	s.wantNothing(s.path, "after what never was is discarded")
	name1 := s.publish(s.a, first, "")
	discard(never)
	discard(first)
	s.wantServed(first, name1)
	if again := s.publish(s.b, first, ""); again != name1 {
		s.Fatalf("Publish after Discard came out as %q, it was %q", again, name1)
	}
	name2 := s.publish(s.a, second, name1)
	discard(first)
	discard(never)
	s.wantServed(second, name2)
	s.publish(s.a, first, name2)
	discard(second)
	discard(first)
	if got := s.bed.Read(s.TB, s.path); !got.Equal(first.Fields) {
		s.Fatalf("Discard touched what is served after a rollback")
	}
}

func (s *shelf) testCancelled() {
	first, second := s.version(), s.version()
	name := s.publish(s.a, first, "")
	ctx, cancel := contextFor(s.ctx, 0)
	defer cancel()
	calls := map[string]func() error{
		"Check":   func() error { _, err := s.a.Check(ctx, s.path); return err },
		"Read":    func() error { _, err := s.a.Read(ctx, s.path); return err },
		"Publish": func() error { _, err := s.a.Publish(ctx, s.path, second, name); return err },
		"Discard": func() error { return s.a.Discard(ctx, s.path, second) },
	}
	if s.bed.Kind.Traits.Stages {
		calls["Stage"] = func() error { return s.a.Stage(ctx, s.path, second) }
	}
	for called, call := range calls {
		err := call()
		if err == nil && (called == "Read" || called == "Publish" || called == "Stage") {
			s.Errorf("%s with a cancelled context says that it was done", called)
		}
		if err != nil && providers.OutcomeOf(err) != providers.Unknown {
			s.Errorf("%s with a cancelled context: the outcome is %s, want unknown: %v", called, providers.OutcomeOf(err), err)
		}
	}
	s.wantOneOf([]providers.Fields{first.Fields, second.Fields})
	s.publish(s.b, second, name)
}

// testCut: the context ends at any moment of Publish; the same again mends it.
func (s *shelf) testCut() {
	prior := s.publish(s.a, s.version(), "")
	for _, after := range []time.Duration{0, 200 * time.Microsecond, time.Millisecond, 5 * time.Millisecond} {
		v := s.version()
		ctx, cancel := contextFor(s.ctx, after)
		_, err := s.a.Publish(ctx, s.path, v, prior)
		cancel()
		if err != nil && providers.OutcomeOf(err) != providers.Unknown {
			s.Fatalf("Publish whose context ended: the outcome is %s, want unknown: %v", providers.OutcomeOf(err), err)
		}
		prior = s.publish(s.b, v, prior)
	}
}

// testForeign: what somebody else wrote is served, is seen, and is not written over.
func (s *shelf) testForeign() {
	first, second := s.version(), s.version()
	name := s.publish(s.a, first, "")
	theirs := providers.Fields{}.Set("password", "theirs-"+newUUID())
	s.watch.add(theirs)
	s.bed.Write(s.TB, s.path, theirs)
	for _, by := range s.handles() {
		got, err := by.Read(s.ctx, s.path)
		if err != nil || got.Version == "" || got.Version == name || !got.Fields.Equal(theirs) {
			s.Fatalf("Read of what somebody else wrote: version %q (ours was %q), fields %q, error %v", got.Version, name, got.Fields.Names(), err)
		}
		if got.Rotation == first.Rotation || got.Rotation == second.Rotation {
			s.Fatalf("Read says that our rotation %s wrote what somebody else did", got.Rotation)
		}
		_, err = by.Publish(s.ctx, s.path, second, name)
		s.wantStale(err, "Publish over our version, where somebody else's is served")
		_, err = by.Publish(s.ctx, s.path, first, "")
		s.wantStale(err, "the first Publish, repeated where somebody else's is served")
		if err := by.Discard(s.ctx, s.path, first); err != nil {
			s.Fatalf("discard: %v", err)
		}
		s.wantOneOf([]providers.Fields{theirs})
	}
	got, err := s.a.Read(s.ctx, s.path)
	if err != nil {
		s.Fatalf("read: %v", err)
	}
	s.publish(s.a, second, got.Version)
}

func (s *shelf) stage(by providers.Store, v providers.Version) {
	s.Helper()
	if err := by.Stage(s.ctx, s.path, v); err != nil {
		s.Fatalf("stage: %v (%s)", err, providers.OutcomeOf(err))
	}
}

func (s *shelf) wantStaged(f providers.Fields, when string) {
	s.Helper()
	if s.bed.Staged == nil {
		return
	}
	got := s.bed.Staged(s.TB, s.path)
	if (got == nil) != (f == nil) || !got.Equal(f) {
		s.Fatalf("%s: the staged copy has fields %q, want those of %q, or has another value", when, got.Names(), f.Names())
	}
}

// beforeStage makes the path ready for a staged copy, and returns how to look whether
// consumers read what they do now, and the version that they read.
func (s *shelf) beforeStage() (asBefore func(when string), prior string) {
	if !s.bed.ServesFirst {
		return func(when string) { s.wantNothing(s.path, when) }, ""
	}
	v := s.version()
	prior = s.publish(s.a, v, "")
	return func(string) { s.wantServed(v, prior) }, prior
}

func (s *shelf) testStage() {
	asBefore, prior := s.beforeStage()
	first := s.version()
	for range 2 {
		for _, by := range s.handles() {
			s.stage(by, first)
			asBefore("after a value was staged")
			s.wantStaged(first.Fields, "after Stage")
		}
	}
	other := first
	other.Fields = s.version().Fields
	for _, by := range s.handles() {
		s.wantStale(by.Stage(s.ctx, s.path, other), "Stage of another value by the same rotation")
		s.wantStaged(first.Fields, "after Stage of another value")
	}
	for _, by := range s.handles() {
		if err := by.Discard(s.ctx, s.path, first); err != nil {
			s.Fatalf("discard: %v", err)
		}
		asBefore("after the staged value was discarded")
		s.wantStaged(nil, "after Discard")
	}

	second := s.version()
	s.stage(s.a, second)
	name := s.publish(s.b, second, prior)
	third := s.version()
	s.stage(s.b, third)
	s.wantServed(second, name)
	s.wantStaged(third.Fields, "after Stage over what is served")
	other = third
	other.Fields = second.Fields
	s.wantStale(s.a.Stage(s.ctx, s.path, other), "Stage of another value by the same rotation")
	s.wantServed(second, name)

	if err := s.a.Discard(s.ctx, s.path, third); err != nil {
		s.Fatalf("discard: %v", err)
	}

	var wg sync.WaitGroup
	fourth := s.version()
	var errs [4]error
	for i := range errs {
		by := s.handles()[i%2]
		wg.Go(func() { errs[i] = by.Stage(s.ctx, s.path, fourth) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			s.Fatalf("one of several equal Stage at once: %v", err)
		}
	}
	s.wantServed(second, name)
	s.wantStaged(fourth.Fields, "after several equal Stage at once")
}

// testStageLate: Stage is repeated when its version is served, and when it was.
func (s *shelf) testStageLate() {
	_, prior := s.beforeStage()
	first, second := s.version(), s.version()
	s.stage(s.a, first)
	name1 := s.publish(s.a, first, prior)
	s.stage(s.b, first)
	s.wantServed(first, name1)
	if err := s.a.Discard(s.ctx, s.path, first); err != nil {
		s.Fatalf("discard: %v", err)
	}
	s.wantServed(first, name1)
	s.wantStaged(nil, "after the rotation was done")

	s.stage(s.a, second)
	name2 := s.publish(s.a, second, name1)
	if err := s.b.Stage(context.WithoutCancel(s.ctx), s.path, first); err != nil && !errors.Is(err, fault.ErrStale) {
		s.Fatalf("Stage of what was served before: %v", err)
	}
	s.wantServed(second, name2)
	if err := s.b.Discard(s.ctx, s.path, first); err != nil {
		s.Fatalf("discard: %v", err)
	}
	s.wantServed(second, name2)
}

// testStageNext: Discard of an earlier rotation leaves the copy of the next one.
func (s *shelf) testStageNext() {
	asBefore, prior := s.beforeStage()
	first, second := s.version(), s.version()
	s.stage(s.a, first)
	if err := s.a.Discard(s.ctx, s.path, first); err != nil {
		s.Fatalf("discard: %v", err)
	}
	s.stage(s.a, second)
	for _, by := range s.handles() {
		if err := by.Discard(s.ctx, s.path, first); err != nil {
			s.Fatalf("discard: %v", err)
		}
		s.wantStaged(second.Fields, "after an earlier rotation was discarded once more")
		asBefore("after Discard")
	}
	s.publish(s.b, second, prior)
}

package providerstest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// StoreBed is a real store and how consumers read it. Kind, Open, Path and Read are
// required. A nil hook says that the kind can't do that.
type StoreBed struct {
	Kind providers.StoreKind

	// Open returns a fresh handle to the same store at each call. The suite closes it.
	Open func(t testing.TB) providers.Store

	// Path returns a fresh path at which there is nothing.
	Path func(t testing.TB) string

	// Read is what a consumer of path reads now, by the store's own client. nil: nothing.
	Read func(t testing.TB, path string) providers.Fields

	// Longest returns a fresh path of the greatest length, with every character, that
	// the kind's declared pattern allows.
	Longest func(t testing.TB) string

	// Largest is how many bytes of encoded value the store takes; 0: providers.MaxValue.
	Largest int

	// Write is somebody else who puts a value at path by the store's own client.
	Write func(t testing.TB, path string, f providers.Fields)

	// Staged is the staged copy that the store holds for path. nil: none.
	Staged func(t testing.TB, path string) providers.Fields

	// ServesFirst: the store serves the first value that it is given, so that it stages none
	// before one is published.
	ServesFirst bool
}

// Store tests an adapter against the contract of providers.Store.
func Store(t *testing.T, bed StoreBed) {
	t.Helper()
	for _, c := range storeCases(bed) {
		t.Run(c.name, func(t *testing.T) { c.run(t) })
	}
}

func storeCases(bed StoreBed) []testCase {
	var cases []testCase
	add := func(wanted bool, name string, run func(s *shelf)) {
		if wanted {
			cases = append(cases, testCase{name, func(t testing.TB) { run(newShelf(t, bed)) }})
		}
	}
	stages := bed.Kind.Traits.Stages
	add(true, "Kind", (*shelf).testKind)
	add(true, "ReadWhenNothingIsThere", (*shelf).testNothing)
	add(true, "Life", (*shelf).testLife)
	add(true, "PublishWhenPriorIsWrong", (*shelf).testWrongPrior)
	add(true, "PublishWhenRepeatedLate", (*shelf).testLate)
	add(true, "PublishOfAnEarlierVersion", (*shelf).testBack)
	add(true, "PublishOfTwoAtOnce", (*shelf).testTwoAtOnce)
	add(true, "PublishOfOneAtOnce", (*shelf).testOneAtOnce)
	add(true, "PathsAreApart", (*shelf).testApart)
	add(true, "ValuesOfAllSizes", (*shelf).testValues)
	add(true, "DiscardNeverTouchesServed", (*shelf).testDiscard)
	add(true, "ContextWhenCancelled", (*shelf).testCancelled)
	add(true, "PublishWhenCutShort", (*shelf).testCut)
	add(bed.Longest != nil, "PathWhenLongest", (*shelf).testLongest)
	add(bed.Write != nil, "ReadWhenSomebodyElseWrote", (*shelf).testForeign)
	add(stages, "StageIsNotServed", (*shelf).testStage)
	add(stages, "StageWhenRepeatedLate", (*shelf).testStageLate)
	add(stages, "StageOfNextRotation", (*shelf).testStageNext)
	return cases
}

// shelf is one path and the two handles that write it in turns.
type shelf struct {
	testing.TB
	bed   StoreBed
	ctx   context.Context
	watch *watch
	a, b  providers.Store
	path  string
	gen   int64
}

func newShelf(t testing.TB, bed StoreBed) *shelf {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), aCase)
	t.Cleanup(cancel)
	s := &shelf{TB: t, bed: bed, ctx: ctx, watch: &watch{t: t}, path: bed.Path(t)}
	s.a, s.b = s.open(), s.open()
	return s
}

func (s *shelf) open() providers.Store {
	store := &watchedStore{Store: s.bed.Open(s.TB), watch: s.watch}
	s.Cleanup(func() {
		if err := store.Close(); err != nil {
			s.Errorf("close: %v", err)
		}
	})
	return store
}

func (s *shelf) handles() []providers.Store { return []providers.Store{s.a, s.b} }

// version is the value of a new rotation.
func (s *shelf) version() providers.Version {
	s.gen++
	return s.with(providers.Fields{}.
		Set("username", "suite").
		Set("password", fmt.Sprintf("geheim-%d-%s", s.gen, newUUID())))
}

func (s *shelf) with(f providers.Fields) providers.Version {
	return providers.Version{Credential: "suite", Rotation: newUUID(), Generation: s.gen, Fields: f}
}

func (s *shelf) publish(by providers.Store, v providers.Version, prior string) string {
	s.Helper()
	name, err := by.Publish(s.ctx, s.path, v, prior)
	if err != nil {
		s.Fatalf("publish generation %d over %q: %v (%s)", v.Generation, prior, err, providers.OutcomeOf(err))
	}
	if name == "" {
		s.Fatalf("Publish returned no name of the version")
	}
	s.wantServed(v, name)
	return name
}

// wantServed: consumers read v, and so do we, by its name.
func (s *shelf) wantServed(v providers.Version, name string) {
	s.Helper()
	if got := s.bed.Read(s.TB, s.path); !got.Equal(v.Fields) || got == nil {
		s.Fatalf("consumers don't read generation %d; they read fields %q", v.Generation, got.Names())
	}
	for _, by := range s.handles() {
		got, err := by.Read(s.ctx, s.path)
		if err != nil {
			s.Fatalf("read: %v", err)
		}
		if got.Version != name || !got.Fields.Equal(v.Fields) || (got.Rotation != "" && got.Rotation != v.Rotation) {
			s.Fatalf("Read: version %q of rotation %q with fields %q, want %q of %s; or the value is another one",
				got.Version, got.Rotation, got.Fields.Names(), name, v.Rotation)
		}
	}
}

func (s *shelf) wantNothing(path, when string) {
	s.Helper()
	if got := s.bed.Read(s.TB, path); got != nil {
		s.Fatalf("%s: consumers read fields %q, want nothing", when, got.Names())
	}
	for _, by := range s.handles() {
		got, err := by.Read(s.ctx, path)
		if err != nil || got.Version != "" || got.Rotation != "" || got.Fields != nil {
			s.Fatalf("%s: Read: version %q rotation %q fields %q, error %v; want nothing", when, got.Version, got.Rotation, got.Fields.Names(), err)
		}
	}
}

func (s *shelf) wantStale(err error, what string) {
	s.Helper()
	if !errors.Is(err, fault.ErrStale) || providers.OutcomeOf(err) != providers.Moved {
		s.Fatalf("%s: %v, want fault.ErrStale", what, err)
	}
}

func (s *shelf) testKind() {
	k := s.bed.Kind
	if k.Name == "" || k.Doc == "" || k.Open == nil || k.Path.Name == "" || k.Path.Doc == "" || k.Traits.WritesPerRotation < 1 {
		s.Errorf("the kind %q lacks a name, a sentence, Open, what a path looks like, or how many writes a rotation takes", k.Name)
	}
	testSettings(s.TB, k.Settings, k.Login, []providers.Setting{k.Path})
	paths := []string{s.path}
	if s.bed.Longest != nil {
		paths = append(paths, s.bed.Longest(s.TB))
	}
	for _, p := range paths {
		if _, err := providers.Complete("path", []providers.Setting{k.Path}, map[string]string{k.Path.Name: p}); err != nil {
			s.Errorf("a path of the bed is not what the kind declares: %v", err)
		}
	}
}

func (s *shelf) testNothing() {
	s.wantNothing(s.path, "at first")
	for _, by := range s.handles() {
		found, err := by.Check(s.ctx, s.path)
		if err != nil {
			s.Fatalf("check: %v", err)
		}
		for _, f := range found {
			if !f.OK && !f.Warning {
				s.Errorf("Check of a fresh path: %s: %s", f.Check, f.Detail)
			}
		}
	}
	s.wantNothing(s.path, "after Check")
}

// testLife: every call of a rotation twice, by two handles.
func (s *shelf) testLife() {
	prior := ""
	var last providers.Version
	served := func() {
		s.Helper()
		if prior == "" {
			s.wantNothing(s.path, "before the first Publish")
			return
		}
		s.wantServed(last, prior)
	}
	for range lifetime {
		v := s.version()
		for _, by := range s.handles() {
			if s.bed.Kind.Traits.Stages {
				if err := by.Stage(s.ctx, s.path, v); err != nil {
					s.Fatalf("stage: %v", err)
				}
				served()
			}
			if _, err := by.Check(s.ctx, s.path); err != nil {
				s.Fatalf("check: %v", err)
			}
			served()
		}
		name := s.publish(s.a, v, prior)
		if name == prior {
			s.Fatalf("two versions have the name %q", name)
		}
		for _, by := range s.handles() {
			if again := s.publish(by, v, prior); again != name {
				s.Fatalf("Publish of one version came out as %q, and as %q when it was repeated", name, again)
			}
		}
		prior, last = name, v
		for _, by := range s.handles() {
			if err := by.Discard(s.ctx, s.path, v); err != nil {
				s.Fatalf("discard: %v", err)
			}
			served()
		}
		// Repeated once more, when everything is done.
		if again := s.publish(s.b, v, name); again != name {
			s.Fatalf("Publish of what is served came out as %q, it is %q", again, name)
		}
	}
}

func (s *shelf) testWrongPrior() {
	first, second := s.version(), s.version()
	_, err := s.a.Publish(s.ctx, s.path, first, s.priorOfNowhere())
	s.wantStale(err, "Publish over a version, where nothing is")
	s.wantNothing(s.path, "after a Publish that was stale")

	name1 := s.publish(s.a, first, "")
	name2 := s.publish(s.b, second, name1)
	for what, prior := range map[string]string{"nothing": "", "an earlier version": name1, "a version of elsewhere": s.priorOfNowhere()} {
		if prior == name2 {
			continue
		}
		for _, by := range s.handles() {
			_, err := by.Publish(s.ctx, s.path, s.version(), prior)
			s.wantStale(err, "Publish over "+what)
			s.wantServed(second, name2)
		}
	}
}

// priorOfNowhere looks like a version of this store and is none of s.path.
func (s *shelf) priorOfNowhere() string {
	s.Helper()
	path, prior := s.bed.Path(s.TB), ""
	for range 4 {
		name, err := s.a.Publish(s.ctx, path, s.version(), prior)
		if err != nil {
			s.Fatalf("publish at another path: %v", err)
		}
		prior = name
	}
	return prior
}

// testLate: a replica that had slept publishes what was superseded meanwhile.
func (s *shelf) testLate() {
	first, second, third := s.version(), s.version(), s.version()
	name1 := s.publish(s.a, first, "")
	name2 := s.publish(s.a, second, name1)
	name3 := s.publish(s.a, third, name2)
	for _, by := range s.handles() {
		_, err := by.Publish(s.ctx, s.path, first, "")
		s.wantStale(err, "the first Publish, repeated after the third")
		_, err = by.Publish(s.ctx, s.path, second, name1)
		s.wantStale(err, "the second Publish, repeated after the third")
		s.wantServed(third, name3)
	}
}

// testBack: a rollback publishes an earlier version over the one that is served.
func (s *shelf) testBack() {
	first, second := s.version(), s.version()
	name1 := s.publish(s.a, first, "")
	name2 := s.publish(s.a, second, name1)
	back := s.publish(s.b, first, name2)
	if again := s.publish(s.a, first, name2); again != back {
		s.Fatalf("Publish of an earlier version came out as %q, and as %q when it was repeated", back, again)
	}
	third := s.version()
	s.publish(s.a, third, back)
}

func (s *shelf) testApart() {
	v := s.version()
	name := s.publish(s.a, v, "")
	here := s.path
	s.path = s.bed.Path(s.TB)
	s.wantNothing(s.path, "beside a path that has a version")
	w := s.version()
	s.publish(s.b, w, "")
	s.path = here
	s.wantServed(v, name)
}

func (s *shelf) testLongest() {
	s.path = s.bed.Longest(s.TB)
	s.wantNothing(s.path, "at the longest path")
	v := s.version()
	if s.bed.Kind.Traits.Stages {
		if err := s.a.Stage(s.ctx, s.path, v); err != nil {
			s.Fatalf("stage: %v", err)
		}
	}
	name := s.publish(s.a, v, "")
	if err := s.a.Discard(s.ctx, s.path, v); err != nil {
		s.Fatalf("discard: %v", err)
	}
	s.wantServed(v, name)
}

// testValues: what was put in comes out, whatever it is.
func (s *shelf) testValues() {
	largest := s.bed.Largest
	if largest == 0 {
		largest = providers.MaxValue
	}
	const frame = len(`{"v":""}`)
	many := providers.Fields{}
	for i := range providers.MaxFields {
		many = many.Set(fmt.Sprintf("F%0127d", i), "x")
	}
	prior := ""
	for _, f := range []providers.Fields{
		providers.Fields{}.Set("v", "x"),
		providers.Fields{}.Set("v", ""),
		providers.Fields{}.Set("v", strings.Repeat("x", largest-frame)),
		providers.Fields{}.Set("v", "<&>\u2028\"\\\n\t\x01 ünïcödé 日本語 🔑 \u200b"),
		providers.Fields{}.Set("v", `{"v":"nested"}`).Set("password", "true").Set("n", "12345678901234567890"),
		providers.Fields{}.Set("_", "a").Set("A.b-c_D9", "b").Set("a", "c").Set("data", "d").Set("options", "e").Set("metadata", "f"),
		many,
	} {
		v := s.with(f)
		if s.bed.Kind.Traits.Stages {
			if err := s.a.Stage(s.ctx, s.path, v); err != nil {
				s.Fatalf("stage a value with fields %.100q: %v", f.Names(), err)
			}
		}
		prior = s.publish(s.a, v, prior)
		if err := s.b.Discard(s.ctx, s.path, v); err != nil {
			s.Fatalf("discard: %v", err)
		}
		s.wantServed(v, prior)
	}
	// One that differs in nothing but its rotation is another version.
	v := s.version()
	prior = s.publish(s.a, v, prior)
	w := s.with(v.Fields)
	if name := s.publish(s.a, w, prior); name == prior {
		s.Fatalf("the same value from another rotation has the name %q, as before", name)
	}
}

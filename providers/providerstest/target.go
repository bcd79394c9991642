package providerstest

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/providers"
)

// TargetBed is a real system with accounts of its own, and how it is asked.
// Kind, Open and Change are required; Accepts is, unless nothing can tell which values
// are accepted. A nil hook says that the kind can't do that; its cases don't exist then.
type TargetBed struct {
	Kind providers.TargetKind

	// Open returns a fresh handle to the same system at each call. The suite closes it.
	Open func(t testing.TB) providers.Target

	// Change makes a fresh credential (its own users, roles, keys) and returns what of
	// a rotation is the credential's: Credential, Params, Static, and Current, which is
	// zero or the initial value. The suite fills in the rest.
	Change func(t testing.TB, s providers.Strategy) providers.Change

	// Accepts asks the system itself, by its own client, whether it accepts h.
	Accepts func(t testing.TB, h providers.Held) bool

	// Strategies are those to test; nil: all of the kind's traits.
	Strategies []providers.Strategy

	// Marks: Apply leaves a marker, so that Applied is known after it.
	Marks bool

	// Spread is how long the system may take until a change is seen everywhere.
	Spread time.Duration

	// Now is the system's clock; nil: time.Now.
	Now func() time.Time

	// Snapshot is all that the system holds of the credential, and of what Check may
	// make and remove, in any form that can be compared. It holds no secret.
	Snapshot func(t testing.TB, c providers.Change) string

	// Missing is a credential whose account does not exist.
	Missing func(t testing.TB, s providers.Strategy) providers.Change

	// Keys lists what the target holds for the credential, as Held.ID names it. It is
	// required where the kind issues values that have an ID.
	Keys func(t testing.TB, c providers.Change) []string

	// Foreign makes a value beside Rotunda, before the rotation, and returns its ID.
	// It is used with providers.Dual only.
	Foreign func(t testing.TB, c providers.Change) string

	// Reject makes the system refuse every value of the credential, until undo.
	Reject func(t testing.TB, c providers.Change) (undo func())

	// Session opens a session with h. alive says whether it still works.
	Session func(t testing.TB, h providers.Held) (alive func() bool)

	// Retires: after Retire the system itself ends the value.
	Retires bool

	// Pass moves the system's clock on, where it is not the machine's. With Retires and
	// without Pass the suite waits for about four seconds.
	Pass func(t testing.TB, d time.Duration)

	// Wrong returns h with another value that is not accepted. nil: what a fresh
	// Prepare returns; where the target issues, h with its secrets altered.
	Wrong func(t testing.TB, h providers.Held) providers.Held

	// Public are the names of fields that may stand in an error. Those with the value
	// of the account, the id or a static field need not be named.
	Public []string

	// hurry is for tests of the suite: what takes its time is not waited for.
	hurry bool
}

// patience is how much longer than Spread the suite waits for what the system ends by
// itself, or in its own time.
const patience = 30 * time.Second

func (l *life) eventually(ok func() bool) bool {
	if l.bed.hurry {
		return ok()
	}
	return poll(l.bed.Spread+patience, ok)
}

type testCase struct {
	name string
	run  func(t testing.TB)
}

// Target tests an adapter against the contract of providers.Target.
func Target(t *testing.T, bed TargetBed) {
	t.Helper()
	for _, c := range targetCases(bed) {
		t.Run(c.name, func(t *testing.T) { c.run(t) })
	}
}

func targetCases(bed TargetBed) []testCase {
	strategies := bed.Strategies
	if strategies == nil {
		strategies = bed.Kind.Traits.Strategies
	}
	cases := []testCase{{"Kind", func(t testing.TB) { testKind(t, bed, strategies) }}}
	for _, s := range strategies {
		add := func(wanted bool, name string, run func(l *life)) {
			if wanted {
				cases = append(cases, testCase{string(s) + "/" + name, func(t testing.TB) { run(newLife(t, bed, s)) }})
			}
		}
		traits := bed.Kind.Traits
		proven := bed.Accepts != nil
		add(true, "Life", (*life).testLife)
		add(true, "PrepareChangesNothing", (*life).testPrepare)
		add(true, "ApplyWhenRepeatedAtOnce", (*life).testApplyAtOnce)
		add(true, "ApplyWhenReplyWasLost", (*life).testApplyLost)
		add(true, "ApplyWhenCutShort", (*life).testApplyCut)
		add(true, "ContextWhenCancelled", (*life).testCancelled)
		add(true, "CheckLeavesNothing", (*life).testCheck)
		add(true, "RevokeWhenRepeatedLate", (*life).testRevokeLate)
		add(true, "RetireWhenRepeated", (*life).testRetire)
		add(proven, "VerifyWhenWrong", (*life).testVerifyWrong)
		add(proven && !traits.Issues && !traits.Valueless, "RevokeWhenNeverApplied", (*life).testRevokeNeverApplied)
		add(s != providers.Replace, "RevokeOfNew", (*life).testRollback)
		add(bed.Marks, "ApplyWhenStale", (*life).testStale)
		add(bed.Marks && traits.Issues, "AppliedWhenIssued", (*life).testMarker)
		add(bed.Retires && s != providers.Replace, "RetireEndsByItself", (*life).testRetireEnds)
		add(bed.Retires && s != providers.Replace, "RetireTakenBack", (*life).testRetireTakenBack)
		add(bed.Retires && s != providers.Replace, "RetireOfReusedAccount", (*life).testRetireReused)
		add(bed.Missing != nil, "AccountWhenMissing", (*life).testMissing)
		add(bed.Reject != nil, "ValueWhenRejected", (*life).testRejected)
		add(bed.Session != nil, "SessionsWhenEmergency", (*life).testSessions)
		add(bed.Foreign != nil && s == providers.Dual, "ForeignWhenIssuing", (*life).testForeign)
	}
	return cases
}

func testKind(t testing.TB, bed TargetBed, strategies []providers.Strategy) {
	k := bed.Kind
	if k.Name == "" || k.Doc == "" || k.Open == nil || len(k.Traits.Strategies) == 0 {
		t.Errorf("the kind %q lacks a name, a sentence, Open or strategies", k.Name)
	}
	for _, s := range strategies {
		if !slices.Contains(k.Traits.Strategies, s) {
			t.Errorf("the bed wants strategy %s, the kind has %v", s, k.Traits.Strategies)
		}
	}
	testSettings(t, k.Settings, k.Login, k.Params)
	for _, s := range strategies {
		c := bed.Change(t, s)
		if _, err := providers.Complete("params", k.Params, c.Params); err != nil {
			t.Errorf("the bed's parameters are not what the kind declares: %v", err)
		}
	}
	if k.Traits.Issues && !k.Traits.Valueless && bed.Accepts == nil {
		t.Errorf("the bed of a kind that issues values has no Accepts")
	}
	if bed.Foreign != nil && bed.Keys == nil {
		t.Errorf("the bed has Foreign, but no Keys to see what became of it")
	}
}

func testSettings(t testing.TB, groups ...[]providers.Setting) {
	t.Helper()
	for _, group := range groups {
		seen := map[string]bool{}
		for _, s := range group {
			if s.Name == "" || s.Doc == "" || seen[s.Name] {
				t.Errorf("setting %q has no name, no line of documentation, or is there twice", s.Name)
			}
			seen[s.Name] = true
			if _, err := regexp.Compile(s.Pattern); err != nil {
				t.Errorf("the pattern of %s: %v", s.Name, err)
				continue
			}
			if s.Default != "" {
				if _, err := providers.Complete("settings", []providers.Setting{s}, map[string]string{s.Name: s.Default}); err != nil {
					t.Errorf("the default of %s is not allowed: %v", s.Name, err)
				}
			}
			if len(s.Doc) > 0 && s.Doc[len(s.Doc)-1] == '.' {
				t.Errorf("the line of documentation of %s ends with a full stop", s.Name)
			}
		}
	}
}

// life is one credential and the two handles that rotate it in turns.
type life struct {
	testing.TB
	bed      TargetBed
	strategy providers.Strategy
	ctx      context.Context
	watch    *watch
	a, b     providers.Target
	base     providers.Change // what all rotations have in common
	served   providers.Held   // what consumers read; without Fields: nothing yet
	others   []providers.Held // superseded and not yet revoked
	gen      int64
	epoch    int64
}

// aCase is how long one case may take before its calls end.
const aCase = 3 * time.Minute

func newLife(t testing.TB, bed TargetBed, s providers.Strategy) *life {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), aCase)
	t.Cleanup(cancel)
	l := &life{TB: t, bed: bed, strategy: s, ctx: ctx, watch: &watch{t: t, public: bed.Public}}
	l.base = bed.Change(t, s)
	l.begin()
	l.a, l.b = l.open(), l.open()
	return l
}

// begin takes l.base as the credential to rotate.
func (l *life) begin() {
	if l.base.Credential == "" {
		l.base.Credential = "suite"
	}
	l.base.Static = maps.Clone(l.base.Static)
	if l.base.Static == nil {
		l.base.Static = map[string]string{}
	}
	l.base.Static["suite_note"] = "ünchanged \"note\" of the suite"
	l.served = l.base.Current
	l.gen = l.base.Current.Generation
	l.epoch = 10
}

func (l *life) open() providers.Target {
	target := &watchedTarget{Target: l.bed.Open(l.TB), watch: l.watch}
	l.Cleanup(func() {
		if err := target.Close(); err != nil {
			l.Errorf("close: %v", err)
		}
	})
	return target
}

func (l *life) now() time.Time {
	if l.bed.Now != nil {
		return l.bed.Now()
	}
	return time.Now().UTC()
}

// next plans a rotation, prepares it, and takes it through its durable form.
func (l *life) next() providers.Change {
	l.Helper()
	c := l.plan()
	prepared, err := l.a.Prepare(l.ctx, c)
	if err != nil {
		l.Fatalf("prepare generation %d: %v", c.Generation, err)
	}
	l.checkPrepared(c, prepared)
	return l.durable(prepared)
}

func (l *life) plan() providers.Change {
	l.gen++
	l.epoch++
	c := l.base
	c.Rotation = newUUID()
	c.Generation = l.gen
	c.Epoch = l.epoch
	c.Strategy = l.strategy
	c.Params = maps.Clone(l.base.Params)
	c.Static = maps.Clone(l.base.Static)
	c.At = l.now()
	c.New = providers.Held{Generation: c.Generation, Rotation: c.Rotation}
	c.Current = l.served
	c.Others = slices.Clone(l.others)
	c.Before = nil
	return c
}

func (l *life) checkPrepared(c, got providers.Change) {
	l.Helper()
	if got.Rotation != c.Rotation || got.Generation != c.Generation || got.Epoch != c.Epoch || got.Strategy != c.Strategy || !got.At.Equal(c.At) {
		l.Fatalf("Prepare altered what identifies the change: %s generation %d epoch %d", got.Rotation, got.Generation, got.Epoch)
	}
	if got.New.Rotation != c.Rotation || got.New.Generation != c.Generation {
		l.Fatalf("Prepare: New is of rotation %q generation %d, want %s %d", got.New.Rotation, got.New.Generation, c.Rotation, c.Generation)
	}
	if got.New.Account == "" {
		l.Fatalf("Prepare did not say whose value it will be: New.Account is empty")
	}
	if len(got.Before) > 1000 || slices.ContainsFunc(got.Before, func(id string) bool { return len(id) > 256 }) {
		l.Fatalf("Prepare noted %d ids in Before, or one that is longer than 256 bytes", len(got.Before))
	}
	traits := l.bed.Kind.Traits
	if traits.Valueless || traits.Issues {
		return
	}
	l.checkFields("Prepare", got.New.Fields)
}

func (l *life) checkFields(of string, f providers.Fields) {
	l.Helper()
	for name, text := range l.base.Static {
		if f.Text(name) != text {
			l.Fatalf("%s: the static field %s is not in the value as it was declared", of, name)
		}
	}
	if len(f) <= len(l.base.Static) {
		l.Fatalf("%s: the value has nothing but its static fields", of)
	}
	encoded, err := f.Encode()
	if err != nil {
		l.Fatalf("%s: the value can't be encoded: %v", of, err)
	}
	again, err := providers.Decode(encoded)
	if err != nil || !again.Equal(f) {
		l.Fatalf("%s: the value does not come out of its encoded form as it went in (%v)", of, err)
	}
}

// durable is what a process that read the change from the database has: the encoded
// value, and times in microseconds.
func (l *life) durable(c providers.Change) providers.Change {
	l.Helper()
	c.New = l.durableHeld(c.New)
	c.Current = l.durableHeld(c.Current)
	c.Others = slices.Clone(c.Others)
	for i := range c.Others {
		c.Others[i] = l.durableHeld(c.Others[i])
	}
	c.Before = slices.Clone(c.Before)
	c.At = c.At.UTC().Truncate(time.Microsecond)
	return c
}

func (l *life) durableHeld(h providers.Held) providers.Held {
	l.Helper()
	if h.Fields == nil {
		return h
	}
	encoded, err := h.Fields.Encode()
	if err != nil {
		l.Fatalf("encode a value: %v", err)
	}
	if h.Fields, err = providers.Decode(encoded); err != nil {
		l.Fatalf("decode a value: %v", err)
	}
	return h
}

// apply makes one try with one handle, and checks what came back.
func (l *life) apply(by providers.Target, c providers.Change) providers.Held {
	l.Helper()
	h, err := by.Apply(l.ctx, c)
	if err != nil {
		l.Fatalf("apply generation %d: %v (%s)", c.Generation, err, providers.OutcomeOf(err))
	}
	l.checkApplied(c, h)
	return l.durableHeld(h)
}

// applyUntilKnown is apply while the system may still be at what was cut short: an outcome that
// is unknown is asked again.
func (l *life) applyUntilKnown(by providers.Target, c providers.Change) providers.Held {
	l.Helper()
	var h providers.Held
	var err error
	l.eventually(func() bool {
		h, err = by.Apply(l.ctx, c)
		return err == nil || providers.OutcomeOf(err) != providers.Unknown
	})
	if err != nil {
		l.Fatalf("apply generation %d: %v (%s)", c.Generation, err, providers.OutcomeOf(err))
	}
	l.checkApplied(c, h)
	return l.durableHeld(h)
}

func (l *life) checkApplied(c providers.Change, h providers.Held) {
	l.Helper()
	if h.Rotation != c.Rotation || h.Generation != c.Generation {
		l.Fatalf("Apply returned a value of rotation %q generation %d, want %s %d", h.Rotation, h.Generation, c.Rotation, c.Generation)
	}
	if h.Account == "" || (c.New.Account != "" && h.Account != c.New.Account && !l.bed.Kind.Traits.Issues) {
		l.Fatalf("Apply returned account %q, Prepare had said %q", h.Account, c.New.Account)
	}
	if l.bed.Kind.Traits.Valueless {
		return
	}
	l.checkFields("Apply", h.Fields)
	for name, v := range c.New.Fields {
		if h.Fields.Text(name) != v.RevealString() {
			l.Fatalf("Apply returned another %s than what was made durable", name)
		}
	}
}

// publish is what consumers see from now on; what they read before is superseded.
func (l *life) publish(h providers.Held) {
	if l.served.Fields != nil || l.served.ID != "" {
		l.others = append(l.others, l.served)
	}
	l.served = h
}

func (l *life) verify(by providers.Target, c providers.Change, h providers.Held) {
	l.Helper()
	var err error
	if !l.until(func() bool { err = by.Verify(l.ctx, c, h); return err == nil }) {
		l.Fatalf("verify generation %d: %v", h.Generation, err)
	}
}

// revoke ends everything that is superseded, as rotation does at the end of the grace.
func (l *life) revoke(by providers.Target, c providers.Change) {
	l.Helper()
	for _, h := range l.others {
		if err := by.Revoke(l.ctx, c, h); err != nil {
			l.Fatalf("revoke generation %d: %v", h.Generation, err)
		}
	}
}

// rotate is a whole rotation without repetitions.
func (l *life) rotate() (providers.Change, providers.Held) {
	l.Helper()
	c := l.next()
	h := l.apply(l.a, c)
	l.verify(l.a, c, h)
	l.publish(h)
	c.New = h
	l.revoke(l.a, c)
	l.others = nil
	l.wantServed("after a rotation")
	return c, h
}

// wantServed is the invariant: what consumers read is accepted.
func (l *life) wantServed(when string) {
	l.Helper()
	if l.served.Fields != nil {
		l.wantAccepted(l.served, when)
	}
}

func (l *life) wantAccepted(h providers.Held, when string) {
	l.Helper()
	if l.bed.Accepts != nil && !l.until(func() bool { return l.bed.Accepts(l.TB, h) }) {
		l.Fatalf("%s: generation %d (account %s) is not accepted", when, h.Generation, h.Account)
	}
}

func (l *life) wantEnded(h providers.Held, when string) {
	l.Helper()
	if l.bed.Accepts == nil || h.Fields == nil {
		return
	}
	if !l.until(func() bool { return !l.bed.Accepts(l.TB, h) }) {
		l.Fatalf("%s: generation %d (account %s) is still accepted", when, h.Generation, h.Account)
	}
}

// until asks again for as long as the system may take to spread a change.
func (l *life) until(ok func() bool) bool {
	return poll(l.bed.Spread, ok)
}

func poll(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
		if !time.Now().Before(end) {
			return false
		}
	}
}

func (l *life) snapshot(c providers.Change) string {
	if l.bed.Snapshot == nil {
		return ""
	}
	return l.bed.Snapshot(l.TB, c)
}

// keys is what the target holds beyond what was there at first.
func (l *life) keys(c providers.Change) []string {
	if l.bed.Keys == nil {
		return nil
	}
	return slices.Sorted(slices.Values(l.bed.Keys(l.TB, c)))
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

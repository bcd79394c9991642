package redis_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
)

// With replace nothing took the place of the value of the user that the credential had
// before it was given another.
func TestRevokeWhenTheUserWasRenamed(t *testing.T) {
	b := newBed(t, bedtest.Redis(t))
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Replace), 1, 1))
	old := apply(t, target, c)
	c = b.change(t, providers.Replace)
	c.Current = old
	c = prepare(t, target, rotation(c, 2, 2))
	h := apply(t, target, c)
	if old.Account == h.Account || !b.accepts(t, old) {
		t.Fatal("the credential has the same user still, or the old value has ended: the case proves nothing")
	}
	if err := target.Revoke(t.Context(), c, old); err != nil || b.accepts(t, old) || !b.accepts(t, h) {
		t.Errorf("revoke: %v; accepted are the old value: %v, the new: %v; want false, true", err, b.accepts(t, old), b.accepts(t, h))
	}
}

// Somebody else's marker is in the way of the first rotation: what to do is said before
// and then.
func TestMarkerWhenOfAnotherCredential(t *testing.T) {
	b := newBed(t, bedtest.Redis(t))
	target := b.open(t)
	defer target.Close()
	warns := func(c providers.Change) bool {
		t.Helper()
		found, err := target.Check(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(found, func(f providers.Finding) bool { return f.Check == "marker" && !f.OK })
	}
	const claims = 1 << 20 // epochs grow with generations
	for _, generation := range []int64{1, 5} {
		c := b.change(t, providers.Dual)
		theirs := prepare(t, target, rotation(c, generation, generation*claims+1))
		theirs.Rotation = "00000000-0000-4000-8000-00000000000a"
		theirs.New.Rotation = theirs.Rotation
		apply(t, target, theirs)
		ours := prepare(t, target, rotation(c, 1, claims+1))
		_, err := target.Apply(t.Context(), ours)
		if known, ok := errors.AsType[*fault.Error](err); !ok || known.Reason != "generation_passed" || !strings.Contains(err.Error(), "remove the entry") {
			t.Errorf("over a marker of generation %d: %v, want generation_passed, with what to do", generation, err)
		}
		ours.Epoch = 0 // a preflight has no lease
		if !warns(ours) {
			t.Errorf("Check says nothing of a marker of generation %d", generation)
		}
		if warns(rotation(theirs, generation+1, 0)) {
			t.Error("Check warns of the credential's own marker")
		}
	}
}

package providerstest

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rotunda-dev/rotunda/providers"
)

// TestMemoryWhenRemote: the suites pass also through the HTTP front.
func TestMemoryWhenRemote(t *testing.T) {
	for name, conf := range map[string]MemoryConfig{"chosen": {}, "issued": {Issues: true, Limit: 3}, "no staging": {Unstaged: true}} {
		t.Run(name, func(t *testing.T) {
			m := NewMemory(conf)
			system, err := Remote(t.Context(), m.Serve(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Run("target", func(t *testing.T) { Target(t, newTargetBed(m, system)) })
			t.Run("store", func(t *testing.T) { Store(t, newStoreBed(m, system)) })
		})
	}
}

const childURL = "ROTUNDA_PROVIDERSTEST_URL"

// TestMemoryWhenChildIsKilled: what a killed process did stays done.
func TestMemoryWhenChildIsKilled(t *testing.T) {
	m := NewMemory(MemoryConfig{})
	m.Account("app")
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChildThatDies$", "-test.v")
	child.Env = append(os.Environ(), childURL+"="+m.Serve(t))
	out, err := child.CombinedOutput()
	if err == nil || child.ProcessState.ExitCode() != -1 {
		t.Fatalf("the child ended with %v, want killed:\n%s", err, out)
	}
	if got := m.Serves("apps/1").Text(passwordField); got != "from the child" {
		t.Errorf("consumers read %q", got)
	}
}

// TestChildThatDies is the child of the test above.
func TestChildThatDies(t *testing.T) {
	url := os.Getenv(childURL)
	if url == "" {
		return // not the child
	}
	system, err := Remote(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	store := BrokenStore(system.Store(), &Plan{After: func(string, int) {
		if err := self.Kill(); err != nil {
			t.Error(err)
		}
		select {} // until the signal is there
	}})
	v := providers.Version{Rotation: newUUID(), Fields: providers.Fields{}.Set(passwordField, "from the child")}
	_, err = store.Publish(t.Context(), "apps/1", v, "")
	t.Fatalf("still here: %v", err)
}

// TestBroken: each fault of the first group leaves the effect undone, each of the
// second does it; the outcome is what the fault says.
func TestBroken(t *testing.T) {
	outcomes := map[Fault]providers.Outcome{
		Reject: providers.Rejected, Refuse: providers.Refused, Move: providers.Moved, Throttle: providers.Throttled,
		Drop: providers.Unknown, Hang: providers.Unknown, Lose: providers.Unknown, HangDone: providers.Unknown,
	}
	for _, f := range append(Undone(), Done()...) {
		t.Run(string(f), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMemory(MemoryConfig{})
				m.Account("app")
				plan := &Plan{Steps: []Step{{Method: "Publish", From: 2, Fault: f}, {Method: "Apply", Fault: f}}}
				store, target := BrokenStore(m.System().Store(), plan), BrokenTarget(m.System().Target(), plan)
				minute := func() context.Context {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					t.Cleanup(cancel)
					return ctx
				}
				done := slices.Contains(Done(), f)

				first := providers.Version{Rotation: newUUID(), Fields: providers.Fields{}.Set("v", "1")}
				v := providers.Version{Rotation: newUUID(), Fields: providers.Fields{}.Set("v", "2")}
				prior, err := store.Publish(t.Context(), "p", first, "")
				if err != nil {
					t.Fatal(err)
				}
				wantOutcome(t, outcomes[f], func() error { _, err := store.Publish(minute(), "p", v, prior); return err })
				if got := m.Serves("p").Text("v") == "2"; got != done {
					t.Errorf("published: %t, want %t", got, done)
				}
				c, err := target.Prepare(t.Context(), providers.Change{
					Rotation: newUUID(), Generation: 1, Strategy: providers.Dual, Params: map[string]string{accountParam: "app"},
				})
				if err != nil {
					t.Fatal(err)
				}
				wantOutcome(t, outcomes[f], func() error { _, err := target.Apply(minute(), c); return err })
				if m.Accepts(c.New) != done {
					t.Errorf("applied: %t, want %t", !done, done)
				}
				if _, err := target.Apply(t.Context(), c); err != nil || !m.Accepts(c.New) {
					t.Errorf("the same again: %v", err)
				}
				if plan.Calls("Apply") != 2 || plan.Calls("Publish") != 2 {
					t.Errorf("%d and %d calls were counted, want 2 and 2", plan.Calls("Apply"), plan.Calls("Publish"))
				}
			})
		})
	}
}

func wantOutcome(t *testing.T, want providers.Outcome, call func() error) {
	t.Helper()
	defer func() {
		t.Helper()
		if r := recover(); (r != nil) != (want == "") {
			t.Errorf("panic %v", r)
		}
	}()
	if err := call(); err == nil || providers.OutcomeOf(err) != want {
		t.Errorf("%v: the outcome is %s, want %s", err, providers.OutcomeOf(err), want)
	}
}

// TestBrokenWhenStateIsOld: changes are seen some calls later.
func TestBrokenWhenStateIsOld(t *testing.T) {
	m := NewMemory(MemoryConfig{})
	m.Account("app")
	plan := &Plan{Steps: []Step{{Method: "Verify", Times: 2, Fault: Old}, {Method: "Read", From: 2, Times: 1, Fault: Old}}}
	store, target := BrokenStore(m.System().Store(), plan), BrokenTarget(m.System().Target(), plan)
	c, err := target.Prepare(t.Context(), providers.Change{
		Rotation: newUUID(), Generation: 1, Strategy: providers.Dual, Params: map[string]string{accountParam: "app"},
	})
	if err != nil {
		t.Fatal(err)
	}
	h, err := target.Apply(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []providers.Outcome{providers.Rejected, providers.Rejected, ""} {
		if err := target.Verify(t.Context(), c, h); (err == nil) != (want == "") || (err != nil && providers.OutcomeOf(err) != want) {
			t.Errorf("try %d: %v", i+1, err)
		}
	}
	v := providers.Version{Rotation: newUUID(), Fields: h.Fields}
	if _, err := store.Publish(t.Context(), "p", v, ""); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"1", "", "1"} {
		got, err := store.Read(t.Context(), "p")
		if err != nil || got.Version != want {
			t.Errorf("read %d: version %q, %v, want %q", i+1, got.Version, err, want)
		}
	}
}

// TestBrokenWhenNothingIsPlanned: the wrapper is no adapter of its own.
func TestBrokenWhenNothingIsPlanned(t *testing.T) {
	m := NewMemory(MemoryConfig{})
	target := newTargetBed(m, m.System())
	target.Open = func(testing.TB) providers.Target { return BrokenTarget(m.System().Target(), &Plan{}) }
	Target(t, target)
	store := newStoreBed(m, m.System())
	store.Open = func(testing.TB) providers.Store { return BrokenStore(m.System().Store(), &Plan{}) }
	Store(t, store)
}

package aws

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/awstest"
)

// ring is a user whose first key is recorded and in use.
type ring struct {
	sim    *awstest.Sim
	target providers.Target
	user   string
	base   providers.Change
	gen    int64
}

func newRing(t testing.TB) *ring {
	t.Helper()
	isolate(t)
	sim := awstest.Start(t)
	r := &ring{sim: sim, target: newTarget(t, newConfig(sim, nil)), base: newChange(t, sim)}
	r.user = r.base.Params["user"]
	c := r.next(t)
	h, err := r.target.Apply(t.Context(), c)
	if err != nil {
		t.Fatalf("make the first key: %v", err)
	}
	r.base.Current = h
	return r
}

func (r *ring) next(t testing.TB) providers.Change {
	t.Helper()
	r.gen++
	c := r.base
	c.Rotation, c.Generation, c.Epoch, c.At = newRotation(), r.gen, r.gen, time.Now()
	c.New = providers.Held{}
	c, err := r.target.Prepare(t.Context(), c)
	if err != nil {
		t.Fatalf("prepare: %v", err)
	}
	return c
}

func (r *ring) ids() (ids []string) {
	for _, k := range r.sim.Keys(r.user) {
		ids = append(ids, k.ID)
	}
	slices.Sort(ids)
	return ids
}

// wantInUse: the key that consumers have is there, is active, and logs in.
func (r *ring) wantInUse(t testing.TB, when string) {
	t.Helper()
	for _, k := range r.sim.Keys(r.user) {
		if k.ID == r.base.Current.ID && k.Active && k.Secret == r.base.Current.Fields.Text(fieldSecret) {
			return
		}
	}
	t.Fatalf("%s: the key in use is gone", when)
}

func (r *ring) wantKeys(t testing.TB, when string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := r.ids(); !slices.Equal(got, want) {
		t.Errorf("%s: the keys are %v, want %v", when, got, want)
	}
}

// TestApplyWhenReplyWasLostWithTwoKeys is how other products lose the key in use: the
// process dies after the key was made and before it was saved, the next try finds two
// keys and deletes the oldest, which is the one that every application holds.
func TestApplyWhenReplyWasLostWithTwoKeys(t *testing.T) {
	r := newRing(t)
	c := r.next(t)
	for i := range 5 {
		r.sim.Inject(awstest.Fault{Action: "iam:CreateAccessKey", Mode: awstest.DropAfter, Times: 1})
		_, err := r.target.Apply(t.Context(), c)
		wantOutcome(t, "apply whose reply is lost", err, providers.Unknown)
		if n := len(r.sim.Keys(r.user)); n != 2 {
			t.Fatalf("after try %d there are %d keys", i, n)
		}
		r.wantInUse(t, fmt.Sprintf("after try %d", i))
	}
	h, err := r.target.Apply(t.Context(), c)
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	r.wantInUse(t, "after the last try")
	r.wantKeys(t, "after the last try", r.base.Current.ID, h.ID)
	if err := r.target.Verify(t.Context(), c, h); err != nil {
		t.Errorf("verify: %v", err)
	}
	// Recorded, and asked for once more: the same key.
	c.New = h
	again, err := r.target.Apply(t.Context(), c)
	if err != nil || again.ID != h.ID || !again.Fields.Equal(h.Fields) {
		t.Errorf("apply of a recorded key: %s, want %s (%v)", again.ID, h.ID, err)
	}
}

// TestTargetWhenCallsFail: each effect fails in each way at each call that it makes,
// with an orphan of an earlier try in the way. The key in use is never touched, and
// the same again leaves it and one new key.
func TestTargetWhenCallsFail(t *testing.T) {
	for _, action := range []string{"GetUser", "TagUser", "UntagUser", "ListAccessKeys", "UpdateAccessKey", "DeleteAccessKey", "CreateAccessKey"} {
		for _, mode := range allModes {
			if mode == awstest.KeyDisabled {
				continue // of Secrets Manager
			}
			t.Run("Apply/"+action+"/"+string(mode), func(t *testing.T) {
				r := newRing(t)
				c := r.next(t)
				orphan := r.sim.NewKey(r.user).ID
				r.sim.Inject(awstest.Fault{Action: "iam:" + action, Mode: mode, Times: 1, Wait: time.Millisecond})
				before := len(r.sim.Calls())
				_, err := r.target.Apply(t.Context(), c)
				r.wantInUse(t, "after the fault")
				if calls := r.sim.Calls()[before:]; !slices.ContainsFunc(calls, func(c awstest.Call) bool { return c.Action == "iam:"+action }) {
					t.Fatalf("the effect never called %s: %v", action, calls)
				}
				if mended := mode == awstest.Slow || mode == awstest.Expired; (err == nil) != mended {
					t.Errorf("the first try: %v", err)
				}
				if err != nil {
					wantOutcome(t, "the first try", err, outcomeOfMode(mode))
				}
				h, err := r.target.Apply(t.Context(), c)
				if err != nil {
					t.Fatalf("the same again: %v", err)
				}
				r.wantInUse(t, "after the same again")
				r.wantKeys(t, "after the same again", r.base.Current.ID, h.ID)
				if h.ID == orphan {
					t.Errorf("an orphan was taken for the new key")
				}
			})
		}
	}
	for _, action := range []string{"UpdateAccessKey", "DeleteAccessKey"} {
		for _, mode := range allModes {
			if mode == awstest.KeyDisabled {
				continue
			}
			t.Run("Revoke/"+action+"/"+string(mode), func(t *testing.T) {
				r := newRing(t)
				c := r.next(t)
				h, err := r.target.Apply(t.Context(), c)
				if err != nil {
					t.Fatalf("apply: %v", err)
				}
				old := c.Current
				c.New, r.base.Current = h, h
				r.sim.Inject(awstest.Fault{Action: "iam:" + action, Mode: mode, Times: 1, Wait: time.Millisecond})
				before := len(r.sim.Calls())
				err = r.target.Revoke(t.Context(), c, old)
				r.wantInUse(t, "after the fault")
				if calls := r.sim.Calls()[before:]; !slices.ContainsFunc(calls, func(c awstest.Call) bool { return c.Action == "iam:"+action }) {
					t.Fatalf("the effect never called %s: %v", action, calls)
				}
				if err != nil {
					wantOutcome(t, "the first try", err, outcomeOfMode(mode))
				}
				for range 2 {
					if err := r.target.Revoke(t.Context(), c, old); err != nil {
						t.Fatalf("the same again: %v", err)
					}
				}
				r.wantInUse(t, "after the same again")
				r.wantKeys(t, "after the same again", h.ID)
			})
		}
	}
}

func TestApplyWhenTwoKeysAreInTheWay(t *testing.T) {
	r := newRing(t)
	theirs := r.sim.NewKey(r.user).ID // before the rotation
	c := r.next(t)
	_, err := r.target.Apply(t.Context(), c)
	wantOutcome(t, "apply with a key that nobody recorded", err, providers.Refused)
	if !errors.Is(err, fault.ErrTransition) || !strings.Contains(err.Error(), theirs) || strings.Contains(err.Error(), "recorded "+r.base.Current.ID) {
		t.Errorf("the error does not name the key in the way: %v", err)
	}
	r.wantKeys(t, "after a refusal", r.base.Current.ID, theirs)

	found, err := r.target.Check(t.Context(), c)
	if f := finding(found, "two_keys"); err != nil || f.OK || f.Warning || !strings.Contains(f.Remedy, theirs) {
		t.Errorf("the finding is %+v (%v)", f, err)
	}
	// The same, when the other one is ours and in its grace.
	c.Others = []providers.Held{{ID: theirs, Account: r.user}}
	_, err = r.target.Apply(t.Context(), c)
	wantOutcome(t, "apply in the grace of the previous one", err, providers.Refused)
	if !strings.Contains(err.Error(), "revoke") {
		t.Errorf("the error does not say what to do: %v", err)
	}
	found, err = r.target.Check(t.Context(), c)
	if f := finding(found, "two_keys"); err != nil || f.OK || !f.Warning {
		t.Errorf("the finding is %+v (%v)", f, err)
	}
	r.wantKeys(t, "after all", r.base.Current.ID, theirs)
	for _, call := range r.sim.Calls() {
		if call.Action == "iam:DeleteAccessKey" && call.Code == "" {
			t.Errorf("a key was deleted")
		}
	}
}

// A key that is not in Before and older than the rotation was made by somebody else
// while the list lagged.
func TestApplyWhenUnknownKeyIsOlder(t *testing.T) {
	r := newRing(t)
	now := time.Now()
	r.sim.SetClock(func() time.Time { return now.Add(-3 * time.Minute) })
	old := r.sim.NewKey(r.user).ID
	r.sim.SetClock(time.Now)
	c := r.next(t)
	c.Before = []string{r.base.Current.ID}
	_, err := r.target.Apply(t.Context(), c)
	wantOutcome(t, "apply", err, providers.Refused)
	r.wantKeys(t, "after a refusal", r.base.Current.ID, old)
}

// TestApplyWhenListLags: a key that is not listed yet is not taken for absent.
func TestApplyWhenListLags(t *testing.T) {
	r := newRing(t)
	c := r.next(t)
	r.sim.Lag(3, 0)
	r.sim.Inject(awstest.Fault{Action: "iam:CreateAccessKey", Mode: awstest.DropAfter, Times: 1})
	_, err := r.target.Apply(t.Context(), c)
	wantOutcome(t, "apply whose reply is lost", err, providers.Unknown)
	r.sim.Lag(0, 0)
	var h providers.Held
	for range 5 {
		if h, err = r.target.Apply(t.Context(), c); err == nil {
			break
		}
		wantOutcome(t, "apply while the key is not listed", err, providers.Unknown)
		r.wantInUse(t, "while the key is not listed")
	}
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	r.wantKeys(t, "at last", r.base.Current.ID, h.ID)
}

func TestVerifyWhenKeyIsNotAcceptedYet(t *testing.T) {
	r := newRing(t)
	r.sim.Lag(2, 0)
	c := r.next(t)
	h, err := r.target.Apply(t.Context(), c)
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	for range 2 {
		if err := r.target.Verify(t.Context(), c, h); !errors.Is(err, fault.ErrRejected) {
			t.Errorf("verify of a key that AWS does not know yet: %v, want ErrRejected", err)
		}
	}
	if err := r.target.Verify(t.Context(), c, h); err != nil {
		t.Errorf("verify: %v", err)
	}
	// The key of another user is no proof.
	other := newChange(t, r.sim)
	k := r.sim.NewKey(other.Params["user"])
	r.sim.Heal()
	h.Fields = h.Fields.Set(fieldID, k.ID).Set(fieldSecret, k.Secret)
	if err := r.target.Verify(t.Context(), c, h); !errors.Is(err, fault.ErrRejected) {
		t.Errorf("verify with the key of another user: %v, want ErrRejected", err)
	}
	for _, mode := range []awstest.Mode{awstest.FailBefore, awstest.DropBefore, awstest.Throttled} {
		r.sim.Inject(awstest.Fault{Action: "sts:GetCallerIdentity", Mode: mode, Times: 1})
		if err := r.target.Verify(t.Context(), c, c.Current); err == nil || errors.Is(err, fault.ErrRejected) {
			t.Errorf("verify when STS is %s: %v, which says nothing about the key", mode, err)
		}
	}
}

// hook runs a function after one call of an action, as if another process had been at
// work in that moment.
type hook struct {
	sdk.HTTPClient
	action string
	skip   int
	after  func()
}

func (h *hook) Do(r *http.Request) (*http.Response, error) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(text))
	res, err := h.HTTPClient.Do(r)
	if run := h.after; run != nil && strings.Contains(string(text), "Action="+h.action+"&") {
		if h.skip--; h.skip < 0 {
			h.after = nil
			run()
		}
	}
	return res, err
}

// TestApplyWhenLeaseIsLost: a process that was paused in the middle of Apply, while
// another one took its rotation over, deletes nothing of the other's and leaves nothing.
func TestApplyWhenLeaseIsLost(t *testing.T) {
	for _, pause := range []struct {
		action string
		skip   int
	}{{"GetUser", 0}, {"TagUser", 0}, {"GetUser", 1}, {"ListAccessKeys", 0}, {"CreateAccessKey", 0}} {
		t.Run(fmt.Sprint("behind ", pause.action, pause.skip), func(t *testing.T) {
			r := newRing(t)
			c := r.next(t)
			taken := c
			taken.Epoch++
			var h providers.Held
			slow := r.target.(*keyTarget)
			paused := *slow
			paused.client = iam.New(slow.client.Options(), func(o *iam.Options) {
				o.HTTPClient = &hook{HTTPClient: o.HTTPClient, action: pause.action, skip: pause.skip, after: func() {
					var err error
					if h, err = r.target.Apply(t.Context(), taken); err != nil {
						t.Errorf("the newer lease: %v", err)
					}
				}}
			})
			_, err := paused.Apply(t.Context(), c)
			wantOutcome(t, "the older lease", err, providers.Moved)
			r.wantInUse(t, "after a race")
			r.wantKeys(t, "after a race", r.base.Current.ID, h.ID)
			if err := r.target.Verify(t.Context(), taken, h); err != nil {
				t.Errorf("the newer lease's key: %v", err)
			}
			if m, err := r.target.Applied(t.Context(), taken, r.user); err != nil || m.Rotation != taken.Rotation || m.Epoch != taken.Epoch {
				t.Errorf("the mark is %+v (%v)", m, err)
			}
		})
	}
	// The newer lease comes between our list and the deletion of what it made.
	t.Run("before a deletion", func(t *testing.T) {
		r := newRing(t)
		c := r.next(t)
		taken := c
		taken.Epoch++
		h, err := r.target.Apply(t.Context(), taken)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.target.Apply(t.Context(), c); !errors.Is(err, fault.ErrStale) {
			t.Errorf("the older lease: %v, want ErrStale", err)
		}
		r.wantKeys(t, "after the older lease", r.base.Current.ID, h.ID)
	})
}

func TestUsageOfKey(t *testing.T) {
	r := newRing(t)
	c := r.next(t)
	e, err := r.target.Usage(t.Context(), c, c.Current)
	if err != nil || !e.Known || !e.LastUsed.IsZero() {
		t.Errorf("a key that was never used: %+v (%v)", e, err)
	}
	at := time.Now().Add(-time.Second)
	if err := r.target.Verify(t.Context(), c, c.Current); err != nil {
		t.Fatal(err)
	}
	e, err = r.target.Usage(t.Context(), c, c.Current)
	if err != nil || !e.Known || e.LastUsed.Before(at.Truncate(time.Second)) || e.Source != "iam:GetAccessKeyLastUsed" {
		t.Errorf("a key that was used now: %+v (%v)", e, err)
	}
	if err := r.target.Revoke(t.Context(), providers.Change{Params: c.Params}, c.Current); err != nil {
		t.Fatal(err)
	}
	e, err = r.target.Usage(t.Context(), c, c.Current)
	if err != nil || !e.Known || !e.LastUsed.IsZero() || e.Source != "iam:ListAccessKeys" {
		t.Errorf("a key that is gone: %+v (%v)", e, err)
	}
}

func TestRevokeWhenKeyIsSomebodyElses(t *testing.T) {
	r := newRing(t)
	c := r.next(t)
	h, err := r.target.Apply(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	c.New = h
	// Records that contradict each other end nothing.
	wrong := providers.Held{ID: h.ID, Account: r.user, Rotation: newRotation()}
	wantOutcome(t, "revoke of the new key under another rotation", r.target.Revoke(t.Context(), c, wrong), providers.Refused)
	for _, h := range []providers.Held{{Account: r.user}, {Account: r.user, ID: "AKIA0000000000000000"}} {
		if err := r.target.Revoke(t.Context(), c, h); err != nil {
			t.Errorf("revoke of what is not there: %v", err)
		}
	}
	r.wantKeys(t, "after Revoke of nothing", r.base.Current.ID, h.ID)
}

func TestTargetCheckOfEachFinding(t *testing.T) {
	for _, row := range []struct {
		check   string
		break_  func(r *ring, c *providers.Change)
		warning bool
		remedy  string
	}{
		{"account", func(_ *ring, c *providers.Change) { c.Params = map[string]string{"user": "nobody"} }, false, "create"},
		{"permission", func(r *ring, _ *providers.Change) {
			r.sim.Inject(awstest.Fault{Action: "iam:GetUser", Mode: awstest.Denied})
		}, false, "iam:CreateAccessKey"},
		{"permission", func(r *ring, _ *providers.Change) {
			r.sim.Inject(awstest.Fault{Action: "iam:ListAccessKeys", Mode: awstest.Denied})
		}, false, "iam:CreateAccessKey"},
		{"permission_deactivate", func(r *ring, _ *providers.Change) {
			r.sim.Inject(awstest.Fault{Action: "iam:UpdateAccessKey", Mode: awstest.Denied})
		}, false, "iam:UpdateAccessKey"},
		{"permission_delete", func(r *ring, _ *providers.Change) {
			r.sim.Inject(awstest.Fault{Action: "iam:DeleteAccessKey", Mode: awstest.Denied})
		}, false, "iam:DeleteAccessKey"},
		{"two_keys", func(r *ring, _ *providers.Change) { r.sim.NewKey(r.user) }, false, "nobody here recorded"},
		{"current_key", func(_ *ring, c *providers.Change) { c.Current.ID = "AKIA0000000000000000" }, true, "rotate"},
		{"clock_skew", func(r *ring, _ *providers.Change) {
			r.sim.SetClock(func() time.Time { return time.Now().Add(-2 * time.Minute) })
		}, true, "NTP"},
		{"self_reference", func(_ *ring, c *providers.Change) { c.Params = map[string]string{"user": "administrator"} }, true, "role"},
	} {
		t.Run(row.check, func(t *testing.T) {
			r := newRing(t)
			c := r.base
			found, err := r.target.Check(t.Context(), c)
			if err != nil {
				t.Fatalf("check: %v", err)
			}
			for _, f := range found {
				if !f.OK {
					t.Errorf("before anything is wrong: %s: %s", f.Check, f.Detail)
				}
			}
			row.break_(r, &c)
			before := r.ids()
			if found, err = r.target.Check(t.Context(), c); err != nil {
				t.Fatalf("check: %v", err)
			}
			if f := finding(found, row.check); f.Check == "" || f.OK || f.Warning != row.warning || !strings.Contains(f.Remedy, row.remedy) {
				t.Errorf("the finding is %+v of %+v", f, found)
			}
			r.wantKeys(t, "after Check", before...)
		})
	}
}

func TestMarkOfSeveralLeases(t *testing.T) {
	tag := func(epoch int) types.Tag {
		return types.Tag{Key: sdk.String(markerTag + fmt.Sprint(epoch)), Value: sdk.String(fmt.Sprintf("0b0b0b0b-0000-4000-8000-000000000000 7 %d", epoch))}
	}
	theirs := types.Tag{Key: sdk.String("team"), Value: sdk.String("0b0b0b0b-0000-4000-8000-000000000000 7 99")}
	for _, tags := range [][]types.Tag{{tag(9), tag(10), theirs}, {theirs, tag(10), tag(9)}} {
		if m := newest(tags); !m.Known || m.Epoch != 10 {
			t.Errorf("the newest mark is %+v, want that of lease 10", m)
		}
	}
	if m := newest([]types.Tag{theirs}); m.Known {
		t.Errorf("somebody else's tag is taken for a mark: %+v", m)
	}
}

func FuzzMarker(f *testing.F) {
	f.Add("0b0b0b0b-0000-4000-8000-000000000000 7 12")
	f.Add("0b0b0b0b-0000-4000-8000-000000000000 -7 12")
	f.Add("by hand")
	f.Fuzz(func(t *testing.T, text string) {
		m := parseMarker(text)
		if !m.Known {
			if m != (providers.Applied{}) {
				t.Errorf("%q is no marker and says %+v", text, m)
			}
			return
		}
		again := parseMarker(fmt.Sprintf("%s %d %d", m.Rotation, m.Generation, m.Epoch))
		if again != m || m.Generation < 0 || m.Epoch < 0 {
			t.Errorf("%q is %+v, and written again %+v", text, m, again)
		}
	})
}

func TestScratchOfUser(t *testing.T) {
	r := newRing(t)
	drill := r.target.(providers.Scratcher)
	c := r.base
	var params map[string]string
	for range 2 {
		var err error
		if params, err = drill.Scratch(t.Context(), c, "drill7"); err != nil {
			t.Fatalf("scratch: %v", err)
		}
	}
	copied := &ring{sim: r.sim, target: r.target, user: params["user"], base: providers.Change{Params: params}}
	if _, err := r.target.Apply(t.Context(), copied.next(t)); err != nil || len(copied.ids()) != 1 {
		t.Errorf("apply to the scratch user: %v", err)
	}
	for range 2 {
		if err := drill.Unscratch(t.Context(), c, "drill7"); err != nil {
			t.Fatalf("unscratch: %v", err)
		}
	}
	if len(copied.ids()) != 0 {
		t.Errorf("keys of the scratch user are left")
	}
	r.wantKeys(t, "after a drill", c.Current.ID)
	// A user that only has the name is left alone.
	r.sim.NewUser(r.user + "-mine")
	key := r.sim.NewKey(r.user + "-mine").ID
	_, err := drill.Scratch(t.Context(), c, "mine")
	wantOutcome(t, "scratch where a user is", err, providers.Refused)
	wantOutcome(t, "unscratch of a user that is somebody's", drill.Unscratch(t.Context(), c, "mine"), providers.Refused)
	if keys := r.sim.Keys(r.user + "-mine"); len(keys) != 1 || keys[0].ID != key {
		t.Errorf("the keys of a user that is somebody's: %v", keys)
	}
}

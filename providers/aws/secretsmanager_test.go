package aws

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	sm "github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/awstest"
)

// shelf is a secret with one version that is served.
type shelf struct {
	sim   *awstest.Sim
	store providers.Store
	path  string
	first providers.Version
}

func newShelf(t testing.TB) *shelf {
	t.Helper()
	isolate(t)
	sim := awstest.Start(t)
	s := &shelf{sim: sim, store: newStore(t, newConfig(sim, nil)), path: "orders/db", first: newVersion("the first password")}
	if _, err := s.store.Publish(t.Context(), s.path, s.first, ""); err != nil {
		t.Fatalf("publish the first version: %v", err)
	}
	return s
}

// wantOneCurrent: AWSCURRENT is on one version, one of the given, and every version has
// the value of its rotation.
func (s *shelf) wantOneCurrent(t testing.TB, when string, versions ...providers.Version) {
	t.Helper()
	got := s.sim.Secret(s.path)
	var current []string
	for id, v := range got.Versions {
		if slices.Contains(v.Labels, "AWSCURRENT") {
			current = append(current, id)
		}
		i := slices.IndexFunc(versions, func(v providers.Version) bool { return v.Rotation == id })
		if i < 0 {
			t.Errorf("%s: version %s was made by nobody", when, id)
			continue
		}
		if text, err := encode(versions[i]); err != nil || text != v.Value {
			t.Errorf("%s: version %s has not the value of its rotation", when, id)
		}
	}
	if len(current) != 1 {
		t.Errorf("%s: AWSCURRENT is on %v", when, current)
	}
}

func (s *shelf) current() string { return s.sim.Secret(s.path).Labelled("AWSCURRENT") }

func writes(sim *awstest.Sim) (n int) {
	for _, c := range sim.Calls() {
		if c.Code == "" && slices.Contains([]string{"secretsmanager:CreateSecret", "secretsmanager:PutSecretValue", "secretsmanager:UpdateSecretVersionStage", "secretsmanager:DeleteSecret"}, c.Action) {
			n++
		}
	}
	return n
}

func wantOutcome(t testing.TB, what string, err error, want providers.Outcome) {
	t.Helper()
	if got := providers.OutcomeOf(err); err == nil || got != want {
		t.Errorf("%s: %v (%s), want %s", what, err, got, want)
	}
}

func TestStageWhenSecretHasVersion(t *testing.T) {
	s := newShelf(t)
	v := newVersion("the second password")
	for range 2 {
		if err := s.store.Stage(t.Context(), s.path, v); err != nil {
			t.Fatalf("stage: %v", err)
		}
		if got := s.sim.Secret(s.path); got.Labelled(Staged) != v.Rotation || s.current() != s.first.Rotation {
			t.Fatalf("staged is %q, current is %q", got.Labelled(Staged), s.current())
		}
	}
	other := v
	other.Fields = newVersion("another password").Fields
	if err := s.store.Stage(t.Context(), s.path, other); !errors.Is(err, fault.ErrStale) {
		t.Errorf("stage of another value by the same rotation: %v, want ErrStale", err)
	}
	if _, err := s.store.Publish(t.Context(), s.path, other, s.first.Rotation); !errors.Is(err, fault.ErrStale) {
		t.Errorf("publish of another value by the same rotation: %v, want ErrStale", err)
	}
	s.wantOneCurrent(t, "after another value was refused", s.first, v)
	served, err := s.store.Read(t.Context(), s.path)
	if err != nil || served.Version != s.first.Rotation || !strings.Contains(served.Note, Staged) {
		t.Errorf("read: version %s, note %q (%v)", served.Version, served.Note, err)
	}
	if err := s.store.Discard(t.Context(), s.path, v); err != nil {
		t.Fatalf("discard: %v", err)
	}
	if got := s.sim.Secret(s.path); got.Labelled(Staged) != "" || s.current() != s.first.Rotation {
		t.Errorf("after Discard staged is %q, current is %q", got.Labelled(Staged), s.current())
	}
	// AWS's own rotation was never blocked by ours.
	if err := s.store.Stage(t.Context(), s.path, newVersion("the third password")); err != nil {
		t.Fatalf("stage: %v", err)
	}
	if _, err := newClient(s.sim).RotateSecret(t.Context(), &sm.RotateSecretInput{SecretId: &s.path, RotationLambdaARN: sdk.String("arn:aws:lambda:eu-central-1:123456789012:function:f")}); err != nil {
		t.Errorf("AWS's own rotation is blocked by a staged version: %v", err)
	}
}

// A whole rotation takes the writes that the traits say, all by labels of its own.
func TestRotationWhenNothingFails(t *testing.T) {
	s := newShelf(t)
	before := writes(s.sim)
	v := newVersion("the second password")
	if err := s.store.Stage(t.Context(), s.path, v); err != nil {
		t.Fatalf("stage: %v", err)
	}
	if _, err := s.store.Publish(t.Context(), s.path, v, s.first.Rotation); err != nil {
		t.Fatalf("publish: %v", err)
	}
	if got := s.sim.Secret(s.path); got.Labelled(Staged) != v.Rotation || got.Labelled("AWSPREVIOUS") != s.first.Rotation {
		t.Errorf("after Publish: %+v", got.Labelled("AWSPREVIOUS"))
	}
	if err := s.store.Discard(t.Context(), s.path, v); err != nil {
		t.Fatalf("discard: %v", err)
	}
	if n, want := writes(s.sim)-before, SecretsManagerKind().Traits.WritesPerRotation; n != want {
		t.Errorf("a rotation took %d writes, the traits say %d", n, want)
	}
	other := v
	other.Fields = newVersion("another password").Fields
	if _, err := s.store.Publish(t.Context(), s.path, other, s.first.Rotation); !errors.Is(err, fault.ErrStale) {
		t.Errorf("publish of another value under the name of what is served: %v, want ErrStale", err)
	}
	s.wantOneCurrent(t, "after a rotation", s.first, v)
	if s.current() != v.Rotation || s.sim.Secret(s.path).Labelled(Staged) != "" {
		t.Errorf("after a rotation: current is %s", s.current())
	}
}

// Where nothing is served, a staged version would be: AWS labels the first one.
func TestStageWhenNothingIsServed(t *testing.T) {
	isolate(t)
	sim := awstest.Start(t)
	store := newStore(t, newConfig(sim, nil))
	client := newClient(sim)
	empty := "empty"
	if _, err := client.CreateSecret(t.Context(), &sm.CreateSecretInput{Name: &empty}); err != nil {
		t.Fatal(err)
	}
	before := writes(sim)
	for _, path := range []string{empty, "missing"} {
		v := newVersion("the first password")
		if err := store.Stage(t.Context(), path, v); err != nil {
			t.Fatalf("stage at %s: %v", path, err)
		}
		if got := sim.Secret(path); len(got.Versions) != 0 || writes(sim) != before {
			t.Fatalf("stage at %s wrote: %d versions", path, len(got.Versions))
		}
	}
	for _, path := range []string{empty, "missing"} {
		var wg sync.WaitGroup
		var errs [4]error
		versions := [4]providers.Version{}
		for i := range errs {
			versions[i] = newVersion(fmt.Sprintf("password %d", i))
			wg.Go(func() { _, errs[i] = store.Publish(t.Context(), path, versions[i], "") })
		}
		wg.Wait()
		won := 0
		for i, err := range errs {
			if err == nil {
				won++
				if sim.Secret(path).Labelled("AWSCURRENT") != versions[i].Rotation {
					t.Errorf("%s: one that says it won is not served", path)
				}
			} else if !errors.Is(err, fault.ErrStale) {
				t.Errorf("%s: one of four first versions: %v, want ErrStale", path, err)
			}
		}
		if won != 1 {
			t.Errorf("%s: %d of four first versions won", path, won)
		}
	}
	// Without create it is an error from the beginning, and for an ARN always.
	never := newStore(t, newConfig(sim, map[string]string{"create": "false"}))
	wantOutcome(t, "stage without create", never.Stage(t.Context(), "nowhere", newVersion("x")), providers.Refused)
	_, err := never.Publish(t.Context(), "nowhere", newVersion("x"), "")
	wantOutcome(t, "publish without create", err, providers.Refused)
	_, err = store.Publish(t.Context(), "arn:aws:secretsmanager:eu-central-1:123456789012:secret:nowhere-AbCdEf", newVersion("x"), "")
	wantOutcome(t, "publish at an ARN that is not there", err, providers.Refused)
}

var allModes = []awstest.Mode{
	awstest.Throttled, awstest.Denied, awstest.Expired, awstest.KeyDisabled,
	awstest.FailBefore, awstest.FailAfter, awstest.DropBefore, awstest.DropAfter, awstest.Slow,
}

func outcomeOfMode(m awstest.Mode) providers.Outcome {
	switch m {
	case awstest.Throttled:
		return providers.Throttled
	case awstest.Denied, awstest.KeyDisabled:
		return providers.Refused
	default:
		return providers.Unknown
	}
}

// TestStoreWhenCallsFail: each effect fails in each way at each call that it makes.
// What consumers read is one of the two values at every moment, no version is made
// anew or changed, and the same again mends it.
func TestStoreWhenCallsFail(t *testing.T) {
	effects := []struct {
		name    string
		prepare func(t testing.TB, s *shelf, v providers.Version)
		do      func(t testing.TB, s *shelf, v providers.Version) error
		actions []string
		served  bool // v is what is served when it is done
	}{
		{"Stage", func(testing.TB, *shelf, providers.Version) {},
			func(t testing.TB, s *shelf, v providers.Version) error { return s.store.Stage(t.Context(), s.path, v) },
			[]string{"DescribeSecret", "PutSecretValue"}, false},
		{"Publish", stage,
			func(t testing.TB, s *shelf, v providers.Version) error { return publish(t, s, v) },
			[]string{"DescribeSecret", "GetSecretValue", "UpdateSecretVersionStage"}, true},
		{"PublishNotStaged", func(testing.TB, *shelf, providers.Version) {},
			func(t testing.TB, s *shelf, v providers.Version) error { return publish(t, s, v) },
			[]string{"DescribeSecret", "GetSecretValue", "PutSecretValue", "UpdateSecretVersionStage"}, true},
		{"Discard", func(t testing.TB, s *shelf, v providers.Version) { stage(t, s, v); _ = publish(t, s, v) },
			func(t testing.TB, s *shelf, v providers.Version) error {
				return s.store.Discard(t.Context(), s.path, v)
			},
			[]string{"UpdateSecretVersionStage"}, true},
	}
	for _, e := range effects {
		for _, action := range e.actions {
			for _, mode := range allModes {
				t.Run(e.name+"/"+action+"/"+string(mode), func(t *testing.T) {
					s := newShelf(t)
					v := newVersion("the second password")
					e.prepare(t, s, v)
					s.sim.Inject(awstest.Fault{Action: "secretsmanager:" + action, Mode: mode, Times: 1, Wait: time.Millisecond})
					before := len(s.sim.Calls())
					err := e.do(t, s, v)
					s.wantOneCurrent(t, "after the fault", s.first, v)
					if c := s.current(); c != s.first.Rotation && c != v.Rotation {
						t.Errorf("after the fault %s is served", c)
					}
					calls := s.sim.Calls()[before:]
					if !slices.ContainsFunc(calls, func(c awstest.Call) bool { return c.Action == "secretsmanager:"+action }) {
						t.Fatalf("the effect never called %s: %v", action, calls)
					}
					// A session that has expired is renewed; reading a version is tried
					// otherwise, by writing it again.
					mended := mode == awstest.Slow || mode == awstest.Expired || action == "GetSecretValue"
					if (err == nil) != mended {
						t.Errorf("the first try: %v", err)
					}
					if err != nil {
						wantOutcome(t, "the first try", err, outcomeOfMode(mode))
						if strings.Contains(err.Error(), "password") {
							t.Errorf("the error holds the value: %v", err)
						}
					}
					if err := e.do(t, s, v); err != nil {
						t.Errorf("the same again: %v", err)
					}
					s.wantOneCurrent(t, "after the same again", s.first, v)
					if e.served != (s.current() == v.Rotation) {
						t.Errorf("after the same again %s is served", s.current())
					}
				})
			}
		}
	}
}

func stage(t testing.TB, s *shelf, v providers.Version) {
	t.Helper()
	if err := s.store.Stage(t.Context(), s.path, v); err != nil {
		t.Fatalf("stage: %v", err)
	}
}

func publish(t testing.TB, s *shelf, v providers.Version) error {
	name, err := s.store.Publish(t.Context(), s.path, v, s.first.Rotation)
	if err == nil && name != v.Rotation {
		t.Errorf("the version's name is %q", name)
	}
	return err
}

// TestCreateWhenCallsFail is the same where the secret does not exist yet.
func TestCreateWhenCallsFail(t *testing.T) {
	for _, mode := range allModes {
		t.Run(string(mode), func(t *testing.T) {
			isolate(t)
			sim := awstest.Start(t)
			s := &shelf{sim: sim, store: newStore(t, newConfig(sim, nil)), path: "orders/db"}
			v := newVersion("the first password")
			sim.Inject(awstest.Fault{Action: "secretsmanager:CreateSecret", Mode: mode, Times: 1, Wait: time.Millisecond})
			_, err := s.store.Publish(t.Context(), s.path, v, "")
			if mode != awstest.Slow && mode != awstest.Expired {
				wantOutcome(t, "the first try", err, outcomeOfMode(mode))
			}
			for range 2 {
				if _, err := s.store.Publish(t.Context(), s.path, v, ""); err != nil {
					t.Fatalf("the same again: %v", err)
				}
			}
			s.wantOneCurrent(t, "after the same again", v)
		})
	}
}

// TestPublishWhenReadsLag: what was written a moment ago is waited for, not made anew,
// and an old read is not taken for somebody else's write.
func TestPublishWhenReadsLag(t *testing.T) {
	for _, reads := range []int{1, 2, 3, 4, 6} {
		t.Run(fmt.Sprint(reads), func(t *testing.T) {
			s := newShelf(t)
			s.sim.Lag(reads, 0)
			versions := []providers.Version{s.first}
			for i := range 3 {
				v := newVersion(fmt.Sprintf("password %d", i))
				prior := versions[len(versions)-1].Rotation
				versions = append(versions, v)
				if err := s.store.Stage(t.Context(), s.path, v); err != nil {
					t.Fatalf("stage: %v", err)
				}
				var err error
				for range 3 {
					if _, err = s.store.Publish(t.Context(), s.path, v, prior); err == nil {
						break
					}
					if providers.OutcomeOf(err) != providers.Unknown {
						t.Fatalf("publish: %v (%s): a read that lags was believed", err, providers.OutcomeOf(err))
					}
				}
				if err != nil {
					t.Fatalf("publish: %v", err)
				}
				s.wantOneCurrent(t, "after Publish", versions...)
				if s.current() != v.Rotation {
					t.Fatalf("after Publish %s is served", s.current())
				}
			}
			if n := len(s.sim.Secret(s.path).Versions); n != len(versions) {
				t.Errorf("there are %d versions after %d rotations", n, len(versions))
			}
		})
	}
	t.Run("behind an earlier move", func(t *testing.T) {
		s := newShelf(t)
		second, third := newVersion("the second password"), newVersion("the third password")
		stage(t, s, second)
		stage(t, s, third)
		s.sim.Lag(20, 0)
		if err := publish(t, s, second); err != nil {
			t.Fatalf("publish: %v", err)
		}
		// Reads say for long that the first version is served, which is over.
		if _, err := s.store.Publish(t.Context(), s.path, third, second.Rotation); err != nil {
			t.Errorf("publish: %v (%s): a read that lags was believed", err, providers.OutcomeOf(err))
		}
		if s.current() != third.Rotation {
			t.Errorf("%s is served", s.current())
		}
	})
	t.Run("for long", func(t *testing.T) {
		s := newShelf(t)
		s.sim.Lag(0, time.Hour)
		v := newVersion("the second password")
		_, err := s.store.Publish(t.Context(), s.path, v, s.first.Rotation)
		wantOutcome(t, "publish that is not seen", err, providers.Unknown)
		s.sim.Heal()
		if err := publish(t, s, v); err != nil {
			t.Errorf("later: %v", err)
		}
		s.wantOneCurrent(t, "later", s.first, v)
	})
}

// Somebody else's version is neither overwritten nor unlabelled, and the reason says
// which it is.
func TestPublishWhenSomebodyElseWrote(t *testing.T) {
	s := newShelf(t)
	v := newVersion("the second password")
	stage(t, s, v)
	theirs := newRotation()
	if _, err := newClient(s.sim).PutSecretValue(t.Context(), &sm.PutSecretValueInput{SecretId: &s.path, ClientRequestToken: &theirs, SecretString: sdk.String("by hand")}); err != nil {
		t.Fatal(err)
	}
	before := s.sim.Secret(s.path)
	err := publish(t, s, v)
	if !errors.Is(err, fault.ErrStale) || !strings.Contains(err.Error(), theirs) {
		t.Errorf("publish: %v, want ErrStale that names %s", err, theirs)
	}
	if got := s.sim.Secret(s.path); got.Labelled("AWSCURRENT") != theirs || got.Labelled("AWSPREVIOUS") != before.Labelled("AWSPREVIOUS") {
		t.Errorf("labels were moved: current %s", got.Labelled("AWSCURRENT"))
	}
	served, err := s.store.Read(t.Context(), s.path)
	if err != nil || served.Version != theirs || served.Fields != nil || served.Note == "" {
		t.Errorf("read of what is no JSON: %+v (%v)", served.Note, err)
	}
}

func TestReadWhenNotAllowed(t *testing.T) {
	s := newShelf(t)
	s.sim.Inject(awstest.Fault{Action: "secretsmanager:GetSecretValue", Mode: awstest.Denied})
	served, err := s.store.Read(t.Context(), s.path)
	if err != nil || served.Version != s.first.Rotation || served.Fields != nil || !strings.Contains(served.Note, "GetSecretValue") {
		t.Errorf("read: version %q, note %q (%v)", served.Version, served.Note, err)
	}
	// Writing does not need to read.
	v := newVersion("the second password")
	if err := publish(t, s, v); err != nil {
		t.Errorf("publish without reading: %v", err)
	}
}

func TestStoreWhenSecretIsScheduledForDeletion(t *testing.T) {
	s := newShelf(t)
	v := newVersion("the second password")
	stage(t, s, v)
	if _, err := newClient(s.sim).DeleteSecret(t.Context(), &sm.DeleteSecretInput{SecretId: &s.path}); err != nil {
		t.Fatal(err)
	}
	before := s.sim.Secret(s.path)
	_, err := s.store.Read(t.Context(), s.path)
	wantOutcome(t, "read", err, providers.Refused)
	wantOutcome(t, "stage", s.store.Stage(t.Context(), s.path, v), providers.Refused)
	wantOutcome(t, "publish", publish(t, s, v), providers.Refused)
	if err := s.store.Discard(t.Context(), s.path, v); err != nil {
		t.Errorf("discard: %v", err)
	}
	if got := s.sim.Secret(s.path); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("a secret that is scheduled for deletion was changed")
	}
	if _, err := newClient(s.sim).RestoreSecret(t.Context(), &sm.RestoreSecretInput{SecretId: &s.path}); err != nil {
		t.Fatal(err)
	}
	if err := publish(t, s, v); err != nil {
		t.Errorf("publish after it was restored: %v", err)
	}
}

// A rollback publishes a version that AWS may have removed meanwhile.
func TestPublishWhenEarlierVersionWasRemoved(t *testing.T) {
	s := newShelf(t)
	v := newVersion("the second password")
	if err := publish(t, s, v); err != nil {
		t.Fatal(err)
	}
	third := newVersion("the third password")
	if _, err := s.store.Publish(t.Context(), s.path, third, v.Rotation); err != nil {
		t.Fatal(err)
	}
	s.sim.Forget(s.path, s.first.Rotation) // it has no label any more
	if _, err := s.store.Publish(t.Context(), s.path, s.first, third.Rotation); err != nil {
		t.Errorf("publish of a version that was removed: %v", err)
	}
	s.wantOneCurrent(t, "after a rollback", s.first, v, third)
	if s.current() != s.first.Rotation {
		t.Errorf("after a rollback %s is served", s.current())
	}
}

// AWSPENDING is AWS's own: it is told of, and left where it is.
func TestRotationWhenPendingIsElsewhere(t *testing.T) {
	s := newShelf(t)
	theirs := newRotation()
	if _, err := newClient(s.sim).PutSecretValue(t.Context(), &sm.PutSecretValueInput{SecretId: &s.path, ClientRequestToken: &theirs, SecretString: sdk.String("half made"), VersionStages: []string{"AWSPENDING"}}); err != nil {
		t.Fatal(err)
	}
	served, err := s.store.Read(t.Context(), s.path)
	if err != nil || !strings.Contains(served.Note, "AWSPENDING") {
		t.Errorf("read says %q (%v)", served.Note, err)
	}
	v := newVersion("the second password")
	stage(t, s, v)
	if err := publish(t, s, v); err != nil {
		t.Fatalf("publish: %v", err)
	}
	if err := s.store.Discard(t.Context(), s.path, v); err != nil {
		t.Fatalf("discard: %v", err)
	}
	if got := s.sim.Secret(s.path); got.Labelled("AWSPENDING") != theirs || s.current() != v.Rotation {
		t.Errorf("AWSPENDING is on %s, current is %s", got.Labelled("AWSPENDING"), s.current())
	}
}

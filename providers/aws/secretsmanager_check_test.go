package aws

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	sm "github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/awstest"
)

// finding returns the finding of a check; the zero one when there is none.
func finding(found []providers.Finding, check string) providers.Finding {
	i := slices.IndexFunc(found, func(f providers.Finding) bool { return f.Check == check })
	if i < 0 {
		return providers.Finding{}
	}
	return found[i]
}

func TestStoreCheckOfEachFinding(t *testing.T) {
	denied := func(action string) func(t testing.TB, s *shelf) {
		return func(_ testing.TB, s *shelf) {
			s.sim.Inject(awstest.Fault{Action: "secretsmanager:" + action, Mode: awstest.Denied})
		}
	}
	for _, row := range []struct {
		check   string
		break_  func(t testing.TB, s *shelf)
		warning bool
		remedy  string
	}{
		{"permission", denied("DescribeSecret"), false, "policy"},
		{"permission_read", denied("GetSecretValue"), false, "policy"},
		{"permission_write", denied("PutSecretValue"), false, "policy"},
		{"permission_label", denied("UpdateSecretVersionStage"), false, "policy"},
		{"versions", denied("ListSecretVersionIds"), true, "policy"},
		{"kms", func(_ testing.TB, s *shelf) {
			s.sim.Inject(awstest.Fault{Action: "secretsmanager:PutSecretValue", Mode: awstest.KeyDisabled})
		}, false, "key"},
		{"scheduled_for_deletion", func(t testing.TB, s *shelf) {
			if _, err := newClient(s.sim).DeleteSecret(t.Context(), &sm.DeleteSecretInput{SecretId: &s.path}); err != nil {
				t.Fatal(err)
			}
		}, false, "restore-secret"},
		{"second_rotator", func(t testing.TB, s *shelf) {
			if _, err := newClient(s.sim).RotateSecret(t.Context(), &sm.RotateSecretInput{SecretId: &s.path, RotationLambdaARN: sdk.String("arn:aws:lambda:eu-central-1:123456789012:function:f")}); err != nil {
				t.Fatal(err)
			}
		}, false, "cancel-rotate-secret"},
		{"pending_elsewhere", func(t testing.TB, s *shelf) {
			if _, err := newClient(s.sim).PutSecretValue(t.Context(), &sm.PutSecretValueInput{SecretId: &s.path, SecretString: sdk.String("x"), VersionStages: []string{"AWSPENDING"}}); err != nil {
				t.Fatal(err)
			}
		}, true, "AWSPENDING"},
		{"managed_secret", func(_ testing.TB, s *shelf) { s.sim.Own(s.path, "rds") }, false, "rds"},
		{"clock_skew", func(_ testing.TB, s *shelf) {
			s.sim.SetClock(func() time.Time { return time.Now().Add(3 * time.Minute) })
		}, true, "NTP"},
		{"versions", func(t testing.TB, s *shelf) {
			for i := range 85 {
				if _, err := newClient(s.sim).PutSecretValue(t.Context(), &sm.PutSecretValueInput{SecretId: &s.path, SecretString: sdk.String(fmt.Sprint(i)), VersionStages: []string{"x"}}); err != nil {
					t.Fatal(err)
				}
			}
		}, true, "less often"},
	} {
		t.Run(row.check, func(t *testing.T) {
			s := newShelf(t)
			found, err := s.store.Check(t.Context(), s.path)
			if err != nil {
				t.Fatalf("check: %v", err)
			}
			for _, f := range found {
				if !f.OK {
					t.Errorf("before anything is wrong: %s: %s", f.Check, f.Detail)
				}
			}
			row.break_(t, s)
			before := s.sim.Secret(s.path)
			if found, err = s.store.Check(t.Context(), s.path); err != nil {
				t.Fatalf("check: %v", err)
			}
			f := finding(found, row.check)
			if f.Check == "" || f.OK || f.Warning != row.warning || !strings.Contains(f.Remedy, row.remedy) {
				t.Errorf("the finding is %+v", f)
			}
			if row.remedy == "policy" {
				var policy struct {
					Statement []struct {
						Effect, Resource string
						Action           []string
					}
				}
				_, text, _ := strings.Cut(f.Remedy, ": ")
				if err := json.Unmarshal([]byte(text), &policy); err != nil || len(policy.Statement) != 1 || len(policy.Statement[0].Action) < 5 ||
					policy.Statement[0].Resource != "arn:aws:secretsmanager:eu-central-1:*:secret:orders/db-??????" {
					t.Errorf("the policy is %s (%v)", text, err)
				}
			}
			if got := s.sim.Secret(s.path); fmt.Sprint(got) != fmt.Sprint(before) {
				t.Errorf("Check changed the secret")
			}
		})
	}
}

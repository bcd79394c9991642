package awstest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	sm "github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

func statusOf(err error) int {
	var res *awshttp.ResponseError
	if errors.As(err, &res) {
		return res.HTTPStatusCode()
	}
	return 0
}

func TestFaultOfEachMode(t *testing.T) {
	for _, row := range []struct {
		mode   Mode
		json   string // code of Secrets Manager
		query  string // code of IAM
		status [2]int
		done   bool
	}{
		{Throttled, "ThrottlingException", "Throttling", [2]int{400, 400}, false},
		{Denied, "AccessDeniedException", "AccessDenied", [2]int{400, 403}, false},
		{Expired, "ExpiredTokenException", "ExpiredToken", [2]int{400, 403}, false},
		{FailBefore, "InternalServiceError", "ServiceFailure", [2]int{500, 500}, false},
		{FailAfter, "InternalServiceError", "ServiceFailure", [2]int{500, 500}, true},
		{DropBefore, "no answer", "no answer", [2]int{0, 0}, false},
		{DropAfter, "no answer", "no answer", [2]int{0, 0}, true},
		{Slow, "", "", [2]int{0, 0}, true},
	} {
		t.Run(string(row.mode), func(t *testing.T) {
			s := Start(t)
			c := s.secretsClient()
			name := newSecret(t, c, 1)
			s.NewUser("bob")
			s.Inject(Fault{Action: "secretsmanager:PutSecretValue", Mode: row.mode, Skip: 1, Times: 1, Wait: time.Millisecond})
			s.Inject(Fault{Action: "iam:*", Mode: row.mode, Times: 1, Wait: time.Millisecond})
			put(t, c, name, 2, "value 2", "mine") // passes
			err := tryPut(t.Context(), c, name, 3, "value 3", "mine")
			if got := codeOf(err); got != row.json || statusOf(err) != row.status[0] {
				t.Errorf("secretsmanager: %q with status %d, want %q with %d", got, statusOf(err), row.json, row.status[0])
			}
			if _, got := s.Secret(name).Versions[version(3)]; got != row.done {
				t.Errorf("secretsmanager: it was done: %t, want %t", got, row.done)
			}
			_, err = s.iamClient().CreateAccessKey(t.Context(), &iam.CreateAccessKeyInput{UserName: aws.String("bob")})
			if got := codeOf(err); got != row.query || statusOf(err) != row.status[1] {
				t.Errorf("iam: %q with status %d, want %q with %d", got, statusOf(err), row.query, row.status[1])
			}
			if got := len(s.Keys("bob")) == 1; got != row.done {
				t.Errorf("iam: it was done: %t, want %t", got, row.done)
			}
			if err := tryPut(t.Context(), c, name, 3, "value 3", "mine"); err != nil {
				t.Errorf("the call after the fault: %v", err)
			}
		})
	}
}

func TestReadsWhenTheyLag(t *testing.T) {
	s := Start(t)
	now := time.Now()
	clock := now
	s.SetClock(func() time.Time { return clock })
	c := s.secretsClient()
	name := newSecret(t, c, 1)
	current := func() string {
		t.Helper()
		out, err := c.GetSecretValue(t.Context(), &sm.GetSecretValueInput{SecretId: &name})
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		return *out.SecretString
	}
	s.Lag(2, 0)
	put(t, c, name, 2, "value 2")
	for i, want := range []string{"value 1", "value 1", "value 2", "value 2"} {
		if got := current(); got != want {
			t.Errorf("read %d after the write: %s, want %s", i, got, want)
		}
	}
	put(t, c, name, 3, "value 3", "mine")
	for i, want := range []string{"ResourceNotFoundException", "ResourceNotFoundException", ""} {
		if got := codeOf(move(t.Context(), c, name, "AWSCURRENT", 2, 3)); got != want {
			t.Errorf("move %d after the write: %q, want %q", i, got, want)
		}
	}
	s.Heal()
	s.Lag(0, 2*time.Second)
	put(t, c, name, 4, "value 4")
	if got := current(); got != "value 3" {
		t.Errorf("at once: %s", got)
	}
	clock = now.Add(2 * time.Second)
	if got := current(); got != "value 4" {
		t.Errorf("two seconds later: %s", got)
	}
	s.Lag(1, 0)
	s.NewUser("bob")
	k := s.NewKey("bob")
	for i, want := range []string{"InvalidClientTokenId", ""} {
		if _, err := s.stsClient(k.ID, k.Secret, "").GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}); codeOf(err) != want {
			t.Errorf("login %d with a new key: %v, want %q", i, err, want)
		}
		out, err := s.iamClient().ListAccessKeys(t.Context(), &iam.ListAccessKeysInput{UserName: aws.String("bob")})
		if err != nil || len(out.AccessKeyMetadata) != i {
			t.Errorf("list %d: %d keys (%v)", i, len(out.AccessKeyMetadata), err)
		}
	}
}

// TestMain is also a process of its own that reaches the simulator of its parent.
func TestMain(m *testing.M) {
	if name := os.Getenv("AWSTEST_READ"); name != "" {
		os.Exit(readInChild(name))
	}
	os.Exit(m.Run())
}

func readInChild(name string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return 2
	}
	out, err := sm.NewFromConfig(cfg).GetSecretValue(ctx, &sm.GetSecretValueInput{SecretId: &name})
	if err != nil {
		return 3
	}
	_, _ = os.Stdout.WriteString(*out.SecretString)
	return 0
}

func TestEnvironmentWhenAnotherProcessReads(t *testing.T) {
	s := Start(t)
	name := newSecret(t, s.secretsClient(), 1)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(s.Env(), "AWSTEST_READ="+name)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "value 1" {
		t.Errorf("another process read %q (%v)", out, err)
	}
	if calls := s.Calls(); calls[len(calls)-1].Action != "secretsmanager:GetSecretValue" || calls[len(calls)-1].Caller != "arn:aws:iam::123456789012:user/administrator" {
		t.Errorf("the last call is %+v", calls[len(calls)-1])
	}
}

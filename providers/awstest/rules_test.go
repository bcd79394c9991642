package awstest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	sm "github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"
)

func (s *Sim) login(id, secret, token string) aws.CredentialsProvider {
	return credentials.NewStaticCredentialsProvider(id, secret, token)
}

func (s *Sim) secretsClient() *sm.Client {
	return sm.New(sm.Options{Region: s.Region, BaseEndpoint: &s.URL, Retryer: aws.NopRetryer{}, Credentials: s.login(s.AccessKey, s.SecretKey, "")})
}

func (s *Sim) iamClient() *iam.Client {
	return iam.New(iam.Options{Region: s.Region, BaseEndpoint: &s.URL, Retryer: aws.NopRetryer{}, Credentials: s.login(s.AccessKey, s.SecretKey, "")})
}

func (s *Sim) stsClient(id, secret, token string) *sts.Client {
	return sts.New(sts.Options{Region: s.Region, BaseEndpoint: &s.URL, Retryer: aws.NopRetryer{}, Credentials: s.login(id, secret, token)})
}

func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	if err != nil {
		return "no answer"
	}
	return ""
}

// version is the name of the nth version in these tests.
func version(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

type labels map[string][]string

// newSecret makes a secret with version 1 current and the others under the label
// "other", of which the last keeps it.
func newSecret(t *testing.T, c *sm.Client, versions int) string {
	t.Helper()
	name := strings.ReplaceAll(t.Name(), "/", "-")
	if _, err := c.CreateSecret(t.Context(), &sm.CreateSecretInput{Name: &name, SecretString: aws.String("value 1"), ClientRequestToken: aws.String(version(1))}); err != nil {
		t.Fatalf("create: %v", err)
	}
	for n := 2; n <= versions; n++ {
		put(t, c, name, n, fmt.Sprintf("value %d", n), "other")
	}
	return name
}

func tryPut(ctx context.Context, c *sm.Client, name string, n int, value string, stages ...string) error {
	_, err := c.PutSecretValue(ctx, &sm.PutSecretValueInput{SecretId: &name, ClientRequestToken: aws.String(version(n)), SecretString: &value, VersionStages: stages})
	return err
}

func put(t *testing.T, c *sm.Client, name string, n int, value string, stages ...string) {
	t.Helper()
	if err := tryPut(t.Context(), c, name, n, value, stages...); err != nil {
		t.Fatalf("put version %d: %v", n, err)
	}
}

// move moves a label; 0 is not given.
func move(ctx context.Context, c *sm.Client, name, label string, from, to int) error {
	in := &sm.UpdateSecretVersionStageInput{SecretId: &name, VersionStage: &label}
	if from > 0 {
		in.RemoveFromVersionId = aws.String(version(from))
	}
	if to > 0 {
		in.MoveToVersionId = aws.String(version(to))
	}
	_, err := c.UpdateSecretVersionStage(ctx, in)
	return err
}

// TestRulesOfVersions has a row for each rule that is only prose in AWS's model.
func TestRulesOfVersions(t *testing.T) {
	for _, row := range []struct {
		name     string
		versions int // to begin with; version 1 is current, the last has "other"
		do       func(ctx context.Context, c *sm.Client, name string) error
		code     string
		want     labels
	}{
		{"same token and value", 2, func(ctx context.Context, c *sm.Client, n string) error {
			return tryPut(ctx, c, n, 2, "value 2", "other")
		},
			"", labels{version(1): {"AWSCURRENT"}, version(2): {"other"}}},
		{"same token and value, other labels", 2, func(ctx context.Context, c *sm.Client, n string) error { return tryPut(ctx, c, n, 2, "value 2") },
			"", labels{version(1): {"AWSCURRENT"}, version(2): {"other"}}},
		{"same token and other value", 2, func(ctx context.Context, c *sm.Client, n string) error {
			return tryPut(ctx, c, n, 2, "value X", "other")
		},
			"ResourceExistsException", labels{version(1): {"AWSCURRENT"}, version(2): {"other"}}},
		{"same token and other value of the current version", 1, func(ctx context.Context, c *sm.Client, n string) error { return tryPut(ctx, c, n, 1, "value X") },
			"ResourceExistsException", labels{version(1): {"AWSCURRENT"}}},
		{"labels left out", 1, func(ctx context.Context, c *sm.Client, n string) error { return tryPut(ctx, c, n, 2, "value 2") },
			"", labels{version(1): {"AWSPREVIOUS"}, version(2): {"AWSCURRENT"}}},
		{"own label", 1, func(ctx context.Context, c *sm.Client, n string) error {
			return tryPut(ctx, c, n, 2, "value 2", "mine")
		},
			"", labels{version(1): {"AWSCURRENT"}, version(2): {"mine"}}},
		{"own label is on another version", 2, func(ctx context.Context, c *sm.Client, n string) error {
			return tryPut(ctx, c, n, 3, "value 3", "other")
		},
			"", labels{version(1): {"AWSCURRENT"}, version(3): {"other"}}},
		{"move current, both named", 2, func(ctx context.Context, c *sm.Client, n string) error { return move(ctx, c, n, "AWSCURRENT", 1, 2) },
			"", labels{version(1): {"AWSPREVIOUS"}, version(2): {"AWSCURRENT", "other"}}},
		{"move current twice", 3, func(ctx context.Context, c *sm.Client, n string) error {
			return errors.Join(move(ctx, c, n, "AWSCURRENT", 1, 2), move(ctx, c, n, "AWSCURRENT", 2, 3))
		},
			"", labels{version(2): {"AWSPREVIOUS"}, version(3): {"AWSCURRENT", "other"}}},
		{"move current back", 2, func(ctx context.Context, c *sm.Client, n string) error {
			return errors.Join(move(ctx, c, n, "AWSCURRENT", 1, 2), move(ctx, c, n, "AWSCURRENT", 2, 1))
		},
			"", labels{version(1): {"AWSCURRENT"}, version(2): {"AWSPREVIOUS", "other"}}},
		{"move current, from is missing", 2, func(ctx context.Context, c *sm.Client, n string) error { return move(ctx, c, n, "AWSCURRENT", 0, 2) },
			"InvalidParameterException", labels{version(1): {"AWSCURRENT"}, version(2): {"other"}}},
		{"move current, from is wrong", 3, func(ctx context.Context, c *sm.Client, n string) error { return move(ctx, c, n, "AWSCURRENT", 2, 3) },
			"InvalidParameterException", labels{version(1): {"AWSCURRENT"}, version(3): {"other"}}},
		{"move current to where it is, from is wrong", 2, func(ctx context.Context, c *sm.Client, n string) error { return move(ctx, c, n, "AWSCURRENT", 2, 1) },
			"InvalidParameterException", labels{version(1): {"AWSCURRENT"}, version(2): {"other"}}},
		{"move current to a version that is not there", 1, func(ctx context.Context, c *sm.Client, n string) error { return move(ctx, c, n, "AWSCURRENT", 1, 9) },
			"ResourceNotFoundException", labels{version(1): {"AWSCURRENT"}}},
		{"remove current", 1, func(ctx context.Context, c *sm.Client, n string) error { return move(ctx, c, n, "AWSCURRENT", 1, 0) },
			"InvalidParameterException", labels{version(1): {"AWSCURRENT"}}},
		{"remove own label", 2, func(ctx context.Context, c *sm.Client, n string) error { return move(ctx, c, n, "other", 2, 0) },
			"", labels{version(1): {"AWSCURRENT"}}},
		{"remove own label, from is wrong", 2, func(ctx context.Context, c *sm.Client, n string) error { return move(ctx, c, n, "other", 1, 0) },
			"InvalidParameterException", labels{version(1): {"AWSCURRENT"}, version(2): {"other"}}},
		{"update with a new token", 1, func(ctx context.Context, c *sm.Client, n string) error {
			_, err := c.UpdateSecret(ctx, &sm.UpdateSecretInput{SecretId: &n, ClientRequestToken: aws.String(version(2)), SecretString: aws.String("value 2")})
			return err
		}, "", labels{version(1): {"AWSPREVIOUS"}, version(2): {"AWSCURRENT"}}},
		{"update with the token of a version", 1, func(ctx context.Context, c *sm.Client, n string) error {
			_, err := c.UpdateSecret(ctx, &sm.UpdateSecretInput{SecretId: &n, ClientRequestToken: aws.String(version(1)), SecretString: aws.String("value 1")})
			return err
		}, "ResourceExistsException", labels{version(1): {"AWSCURRENT"}}},
		{"65,536 bytes", 1, func(ctx context.Context, c *sm.Client, n string) error {
			return tryPut(ctx, c, n, 2, strings.Repeat("x", 65536), "mine")
		},
			"", labels{version(1): {"AWSCURRENT"}, version(2): {"mine"}}},
		{"65,537 bytes", 1, func(ctx context.Context, c *sm.Client, n string) error {
			return tryPut(ctx, c, n, 2, strings.Repeat("x", 65537), "mine")
		},
			"ValidationException", labels{version(1): {"AWSCURRENT"}}},
		{"no value", 1, func(ctx context.Context, c *sm.Client, n string) error {
			_, err := c.PutSecretValue(ctx, &sm.PutSecretValueInput{SecretId: &n})
			return err
		}, "InvalidParameterException", labels{version(1): {"AWSCURRENT"}}},
		{"a token that is too short", 1, func(ctx context.Context, c *sm.Client, n string) error {
			_, err := c.PutSecretValue(ctx, &sm.PutSecretValueInput{SecretId: &n, ClientRequestToken: aws.String("short"), SecretString: aws.String("x")})
			return err
		}, "ValidationException", labels{version(1): {"AWSCURRENT"}}},
		{"rotate without a function", 1, func(ctx context.Context, c *sm.Client, n string) error { return rotate(ctx, c, n, "") },
			"InvalidRequestException", labels{version(1): {"AWSCURRENT"}}},
		{"rotate", 1, func(ctx context.Context, c *sm.Client, n string) error { return rotate(ctx, c, n, lambda) },
			"", labels{version(1): {"AWSCURRENT"}, version(8): {"AWSPENDING"}}},
		{"rotate while AWSPENDING is elsewhere", 1, func(ctx context.Context, c *sm.Client, n string) error {
			if err := tryPut(ctx, c, n, 2, "value 2", "AWSPENDING"); err != nil {
				return err
			}
			return rotate(ctx, c, n, lambda)
		}, "InvalidRequestException", labels{version(1): {"AWSCURRENT"}, version(2): {"AWSPENDING"}}},
		{"rotate while AWSPENDING is on the current one", 1, func(ctx context.Context, c *sm.Client, n string) error {
			if err := move(ctx, c, n, "AWSPENDING", 0, 1); err != nil {
				return err
			}
			return rotate(ctx, c, n, lambda)
		}, "", labels{version(1): {"AWSCURRENT"}, version(8): {"AWSPENDING"}}},
		{"rotate, then fill in the pending version", 1, func(ctx context.Context, c *sm.Client, n string) error {
			if err := rotate(ctx, c, n, lambda); err != nil {
				return err
			}
			if _, err := c.GetSecretValue(ctx, &sm.GetSecretValueInput{SecretId: &n, VersionStage: aws.String("AWSPENDING")}); codeOf(err) != "ResourceNotFoundException" {
				return fmt.Errorf("the pending version has a value: %w", err)
			}
			return tryPut(ctx, c, n, 8, "value 8", "AWSPENDING")
		}, "", labels{version(1): {"AWSCURRENT"}, version(8): {"AWSPENDING"}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := Start(t)
			c := s.secretsClient()
			name := newSecret(t, c, row.versions)
			if got := codeOf(row.do(t.Context(), c, name)); got != row.code {
				t.Errorf("the answer is %q, want %q", got, row.code)
			}
			out, err := c.DescribeSecret(t.Context(), &sm.DescribeSecretInput{SecretId: &name})
			if err != nil {
				t.Fatalf("describe: %v", err)
			}
			if diff := cmp.Diff(row.want, labels(out.VersionIdsToStages)); diff != "" {
				t.Errorf("labels (-want +got):\n%s", diff)
			}
			// Whatever was refused, the first value is what it was.
			got, err := c.GetSecretValue(t.Context(), &sm.GetSecretValueInput{SecretId: &name, VersionId: aws.String(version(1))})
			if err != nil || *got.SecretString != "value 1" {
				t.Errorf("version 1 is not what it was (%v)", err)
			}
		})
	}
}

const lambda = "arn:aws:lambda:eu-central-1:123456789012:function:rotate"

func rotate(ctx context.Context, c *sm.Client, name, function string) error {
	in := &sm.RotateSecretInput{SecretId: &name, ClientRequestToken: aws.String(version(8))}
	if function != "" {
		in.RotationLambdaARN = &function
	}
	_, err := c.RotateSecret(ctx, in)
	return err
}

func TestFirstVersionWhenSecretIsEmpty(t *testing.T) {
	s := Start(t)
	c := s.secretsClient()
	name := "empty"
	if _, err := c.CreateSecret(t.Context(), &sm.CreateSecretInput{Name: &name}); err != nil {
		t.Fatalf("create: %v", err)
	}
	if _, err := c.GetSecretValue(t.Context(), &sm.GetSecretValueInput{SecretId: &name}); codeOf(err) != "ResourceNotFoundException" {
		t.Errorf("read of an empty secret: %v", err)
	}
	put(t, c, name, 1, "value 1", "mine")
	put(t, c, name, 2, "value 2", "mine")
	want := labels{version(1): {"AWSCURRENT"}, version(2): {"mine"}}
	out, err := c.DescribeSecret(t.Context(), &sm.DescribeSecretInput{SecretId: &name})
	if err != nil || !cmp.Equal(want, labels(out.VersionIdsToStages)) {
		t.Errorf("labels %v (%v), want %v", out.VersionIdsToStages, err, want)
	}
}

func TestVersionsWhenListed(t *testing.T) {
	s := Start(t)
	c := s.secretsClient()
	name := newSecret(t, c, 5) // 2, 3 and 4 lost their label
	list := func(in *sm.ListSecretVersionIdsInput) (ids []string, pages int) {
		in.SecretId = &name
		for {
			out, err := c.ListSecretVersionIds(t.Context(), in)
			if err != nil {
				t.Fatalf("list: %v", err)
			}
			pages++
			for _, v := range out.Versions {
				ids = append(ids, *v.VersionId)
			}
			if in.NextToken = out.NextToken; in.NextToken == nil {
				slices.Sort(ids)
				return ids, pages
			}
		}
	}
	if got, _ := list(&sm.ListSecretVersionIdsInput{}); !slices.Equal(got, []string{version(1), version(5)}) {
		t.Errorf("listed by default: %v, want those with labels", got)
	}
	got, pages := list(&sm.ListSecretVersionIdsInput{IncludeDeprecated: aws.Bool(true), MaxResults: aws.Int32(2)})
	if len(got) != 5 || pages != 3 {
		t.Errorf("%d versions on %d pages, want 5 on 3", len(got), pages)
	}
	for _, n := range []int32{0, 101} {
		if _, err := c.ListSecretVersionIds(t.Context(), &sm.ListSecretVersionIdsInput{SecretId: &name, MaxResults: &n}); codeOf(err) != "ValidationException" {
			t.Errorf("MaxResults %d: %v", n, err)
		}
	}
}

func TestVersionsWhenThereAreTooMany(t *testing.T) {
	s := Start(t)
	now := time.Now()
	clock := now
	s.SetClock(func() time.Time { return clock })
	c := s.secretsClient()
	name := newSecret(t, c, maxVersions)
	if err := tryPut(t.Context(), c, name, maxVersions+1, "one too many", "other"); codeOf(err) != "LimitExceededException" {
		t.Fatalf("version %d within a day: %v", maxVersions+1, err)
	}
	s.mu.Lock()
	for id, v := range s.secrets[name].state.versions {
		v.created = v.created.Add(-25 * time.Hour)
		s.secrets[name].state.versions[id] = v
	}
	s.mu.Unlock()
	put(t, c, name, maxVersions+1, "a day later", "other")
	if got := s.Secret(name); got.Labelled("AWSCURRENT") != version(1) || len(got.Versions) > maxVersions {
		t.Errorf("%d versions, current is %s", len(got.Versions), got.Labelled("AWSCURRENT"))
	}
}

func TestSecretWhenDeleted(t *testing.T) {
	s := Start(t)
	c := s.secretsClient()
	name := newSecret(t, c, 2)
	if _, err := c.DeleteSecret(t.Context(), &sm.DeleteSecretInput{SecretId: &name, RecoveryWindowInDays: aws.Int64(7)}); err != nil {
		t.Fatalf("delete: %v", err)
	}
	before := s.Secret(name)
	for what, err := range map[string]error{
		"put":    tryPut(t.Context(), c, name, 3, "value 3", "other"),
		"move":   move(t.Context(), c, name, "AWSCURRENT", 1, 2),
		"rotate": rotate(t.Context(), c, name, lambda),
		"read":   second(c.GetSecretValue(t.Context(), &sm.GetSecretValueInput{SecretId: &name})),
		"create": second(c.CreateSecret(t.Context(), &sm.CreateSecretInput{Name: &name})),
		"update": second(c.UpdateSecret(t.Context(), &sm.UpdateSecretInput{SecretId: &name, SecretString: aws.String("x")})),
	} {
		if codeOf(err) != "InvalidRequestException" {
			t.Errorf("%s: %v, want InvalidRequestException", what, err)
		}
	}
	if diff := cmp.Diff(before, s.Secret(name)); diff != "" {
		t.Errorf("a deleted secret was changed:\n%s", diff)
	}
	if out, err := c.DescribeSecret(t.Context(), &sm.DescribeSecretInput{SecretId: &name}); err != nil || out.DeletedDate == nil {
		t.Errorf("describe does not say when it was deleted (%v)", err)
	}
	if _, err := c.RestoreSecret(t.Context(), &sm.RestoreSecretInput{SecretId: &name}); err != nil {
		t.Fatalf("restore: %v", err)
	}
	if err := move(t.Context(), c, name, "AWSCURRENT", 1, 2); err != nil {
		t.Errorf("move after restore: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestAccessKeysOfUser(t *testing.T) {
	s := Start(t)
	c := s.iamClient()
	s.NewUser("bob")
	name := aws.String("bob")
	ask := func(k *iamtypes.AccessKey) string {
		_, err := s.stsClient(*k.AccessKeyId, *k.SecretAccessKey, "").GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
		return codeOf(err)
	}
	var keys []*iamtypes.AccessKey
	for range 2 {
		out, err := c.CreateAccessKey(t.Context(), &iam.CreateAccessKeyInput{UserName: name})
		if err != nil {
			t.Fatalf("create: %v", err)
		}
		if got := ask(out.AccessKey); got != "" {
			t.Errorf("a new key is not accepted: %s", got)
		}
		keys = append(keys, out.AccessKey)
	}
	if _, err := c.CreateAccessKey(t.Context(), &iam.CreateAccessKeyInput{UserName: name}); codeOf(err) != "LimitExceeded" {
		t.Errorf("a third key: %v, want LimitExceeded", err)
	}
	used, err := c.GetAccessKeyLastUsed(t.Context(), &iam.GetAccessKeyLastUsedInput{AccessKeyId: keys[0].AccessKeyId})
	if err != nil || used.AccessKeyLastUsed.LastUsedDate == nil || *used.AccessKeyLastUsed.ServiceName != "sts" {
		t.Errorf("last use of a key that was used: %+v (%v)", used, err)
	}
	status := func(k *iamtypes.AccessKey, to iamtypes.StatusType) {
		t.Helper()
		if _, err := c.UpdateAccessKey(t.Context(), &iam.UpdateAccessKeyInput{UserName: name, AccessKeyId: k.AccessKeyId, Status: to}); err != nil {
			t.Fatalf("set to %s: %v", to, err)
		}
	}
	status(keys[0], iamtypes.StatusTypeInactive)
	if got := ask(keys[0]); got != "InvalidClientTokenId" {
		t.Errorf("an inactive key: %q", got)
	}
	if got := ask(keys[1]); got != "" {
		t.Errorf("the other key: %q", got)
	}
	status(keys[0], iamtypes.StatusTypeActive)
	if got := ask(keys[0]); got != "" {
		t.Errorf("a key that is active again: %q", got)
	}
	if _, err := c.DeleteUser(t.Context(), &iam.DeleteUserInput{UserName: name}); codeOf(err) != "DeleteConflict" {
		t.Errorf("delete a user that has keys: %v", err)
	}
	for _, want := range []string{"", "NoSuchEntity"} {
		_, err := c.DeleteAccessKey(t.Context(), &iam.DeleteAccessKeyInput{UserName: name, AccessKeyId: keys[0].AccessKeyId})
		if codeOf(err) != want {
			t.Errorf("delete: %v, want %q", err, want)
		}
	}
	if got := ask(keys[0]); got != "InvalidClientTokenId" {
		t.Errorf("a deleted key: %q", got)
	}
	wrong := *keys[1]
	wrong.SecretAccessKey = aws.String(strings.Repeat("x", 40))
	if got := ask(&wrong); got != "SignatureDoesNotMatch" {
		t.Errorf("a wrong secret: %q", got)
	}
	out, err := c.ListAccessKeys(t.Context(), &iam.ListAccessKeysInput{UserName: name})
	if err != nil || len(out.AccessKeyMetadata) != 1 || *out.AccessKeyMetadata[0].AccessKeyId != *keys[1].AccessKeyId {
		t.Errorf("list: %+v (%v)", out, err)
	}
	// Bob himself may do nothing.
	weak := iam.New(iam.Options{Region: s.Region, BaseEndpoint: &s.URL, Retryer: aws.NopRetryer{}, Credentials: s.login(*keys[1].AccessKeyId, *keys[1].SecretAccessKey, "")})
	if _, err := weak.ListAccessKeys(t.Context(), &iam.ListAccessKeysInput{UserName: name}); codeOf(err) != "AccessDenied" {
		t.Errorf("a user without permissions: %v", err)
	}
}

func TestRoleWhenAssumed(t *testing.T) {
	s := Start(t)
	arn := s.Role("rotator", "ticket-7")
	client := s.stsClient(s.AccessKey, s.SecretKey, "")
	assume := func(id *string) (*sts.AssumeRoleOutput, error) {
		return client.AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: &arn, RoleSessionName: aws.String("night"), ExternalId: id})
	}
	for _, id := range []*string{nil, aws.String("ticket-8")} {
		if _, err := assume(id); codeOf(err) != "AccessDenied" {
			t.Errorf("a wrong external id: %v", err)
		}
	}
	out, err := assume(aws.String("ticket-7"))
	if err != nil {
		t.Fatalf("assume: %v", err)
	}
	k := out.Credentials
	who := func(token string) (string, string) {
		o, err := s.stsClient(*k.AccessKeyId, *k.SecretAccessKey, token).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
		if err != nil {
			return "", codeOf(err)
		}
		return *o.Arn, ""
	}
	if got, code := who(*k.SessionToken); got != "arn:aws:sts::123456789012:assumed-role/rotator/night" {
		t.Errorf("the session is %q %s", got, code)
	}
	if _, code := who("another token"); code != "InvalidClientTokenId" {
		t.Errorf("another session token: %q", code)
	}
	s.ExpireSessions()
	if _, code := who(*k.SessionToken); code != "ExpiredToken" {
		t.Errorf("an expired session: %q", code)
	}
}

func TestModelWhenOperationIsUnknown(t *testing.T) {
	s := Start(t)
	if _, err := s.secretsClient().GetRandomPassword(t.Context(), &sm.GetRandomPasswordInput{}); codeOf(err) != "UnknownOperationException" {
		t.Errorf("secretsmanager: %v", err)
	}
	if _, err := s.iamClient().ListUsers(t.Context(), &iam.ListUsersInput{}); codeOf(err) != "InvalidAction" {
		t.Errorf("iam: %v", err)
	}
	for name, m := range s.services {
		if diff := cmp.Diff(slices.Sorted(maps.Keys(m.Operations)), slices.Sorted(maps.Keys(s.handlers(m)))); diff != "" {
			t.Errorf("%s: operations of the model, and those that are simulated:\n%s", name, diff)
		}
	}
}

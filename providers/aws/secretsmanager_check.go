package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	sm "github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// AWS keeps about 100 versions and removes none that is younger than a day; it asks
// for no more than one in ten minutes (PutSecretValue in AWS's model).
const (
	manyVersions = 80
	perDay       = 24 * 6
	maxPages     = 10
)

// noVersion is a name that no version has: a call with it is allowed or not, and
// changes nothing.
const noVersion = "00000000-0000-0000-0000-000000000000"

// Check is the preflight of a path. Whether writing is allowed is asked by calls that
// can't have an effect: AWS decides about permission before it looks at the request.
func (s *secretStore) Check(ctx context.Context, path string) ([]providers.Finding, error) {
	d, err := s.describeWhole(ctx, path)
	if errors.Is(err, fault.ErrDenied) {
		return []providers.Finding{s.permission(path, "secretsmanager:DescribeSecret", err)}, nil
	}
	if err != nil {
		return nil, err
	}
	quota := providers.Finding{
		Check: "quota", OK: true, Measured: fmt.Sprintf("%d writes per second", writesPerSecond),
		Detail: fmt.Sprintf("AWS allows %d writes per second to an account and region, which is about %d rotations", writesPerSecond, writesPerSecond/SecretsManagerKind().Traits.WritesPerRotation),
	}
	if d == nil {
		f := providers.Finding{Check: "exists", OK: true, Detail: "there is no such secret: it will be created when its first value is published"}
		if !s.mayCreate(path) {
			f = providers.Finding{Check: "exists", Detail: "there is no secret " + path + " in " + s.cfg.Region,
				Remedy: "create it, or name it (not its ARN) in a store with create=true"}
		}
		return []providers.Finding{f, quota}, nil
	}
	found := []providers.Finding{{Check: "exists", OK: true, Detail: "the secret exists"}, s.skew(d.ResultMetadata), quota}
	found = append(found, s.state(path, d)...)
	if d.DeletedDate != nil || d.OwningService != nil {
		return found, nil
	}
	for _, probe := range []func(context.Context, string) (providers.Finding, error){s.probeRead, s.probePut, s.probeMove, s.probeVersions} {
		f, err := probe(ctx, path)
		if err != nil {
			return nil, err
		}
		found = append(found, f)
	}
	return found, nil
}

// state is what DescribeSecret tells of who else is at work.
func (s *secretStore) state(path string, d *sm.DescribeSecretOutput) []providers.Finding {
	var found []providers.Finding
	bad := func(check string, warning bool, detail, remedy string) {
		found = append(found, providers.Finding{Check: check, Warning: warning, Detail: detail, Remedy: remedy})
	}
	if d.DeletedDate != nil {
		bad("scheduled_for_deletion", false, "the secret is scheduled for deletion and can't be written", "aws secretsmanager restore-secret --secret-id "+path)
	}
	if owner := sdk.ToString(d.OwningService); owner != "" {
		bad("managed_secret", false, "the secret is managed by "+owner+", which rotates it", "let "+owner+" rotate it, or use a secret of its own here")
	}
	if sdk.ToBool(d.RotationEnabled) {
		bad("second_rotator", false, "AWS rotates this secret by a Lambda function: two rotators would undo each other's work", "aws secretsmanager cancel-rotate-secret --secret-id "+path)
	}
	if r := sdk.ToString(d.PrimaryRegion); r != "" && r != s.cfg.Region {
		bad("replica", false, "the secret is a replica, which can't be written; its primary is in "+r, "use a store with region="+r)
	}
	st := labelsOf(d)
	if p := st.labelled(labelPending); p != "" && p != st.labelled(labelCurrent) {
		bad("pending_elsewhere", true, "AWSPENDING is on version "+p+", which is not served: a rotation by AWS is under way or was broken off", "if none is under way, remove the label: aws secretsmanager update-secret-version-stage --version-stage AWSPENDING --remove-from-version-id "+p+" --secret-id "+path)
	}
	return found
}

func (s *secretStore) probeRead(ctx context.Context, path string) (providers.Finding, error) {
	_, err := s.get(ctx, path, "")
	return s.verdict(path, "permission_read", "secretsmanager:GetSecretValue", err)
}

// probePut sends no value, which AWS does not take.
func (s *secretStore) probePut(ctx context.Context, path string) (providers.Finding, error) {
	err := s.do(ctx, "try to write to secret "+path, func() error {
		token := noVersion
		_, err := s.client.PutSecretValue(ctx, &sm.PutSecretValueInput{SecretId: &path, ClientRequestToken: &token, VersionStages: []string{Staged}})
		return err
	})
	return s.verdict(path, "permission_write", "secretsmanager:PutSecretValue", err)
}

func (s *secretStore) probeMove(ctx context.Context, path string) (providers.Finding, error) {
	err := s.do(ctx, "try to label secret "+path, func() error {
		label, version := Staged, noVersion
		_, err := s.client.UpdateSecretVersionStage(ctx, &sm.UpdateSecretVersionStageInput{SecretId: &path, VersionStage: &label, RemoveFromVersionId: &version})
		return err
	})
	return s.verdict(path, "permission_label", "secretsmanager:UpdateSecretVersionStage", err)
}

// verdict turns the answer to a probe into a finding, or into an error when it was not
// AWS that judged.
func (s *secretStore) verdict(path, check, action string, err error) (providers.Finding, error) {
	switch {
	case reason(err) == "aws_kms":
		return providers.Finding{Check: "kms", Detail: err.Error(), Remedy: "enable the key, and allow kms:GenerateDataKey and kms:Decrypt of it to this login"}, nil
	case errors.Is(err, fault.ErrDenied):
		p := s.permission(path, action, err)
		p.Check = check
		return p, nil
	case err == nil, errors.Is(err, fault.ErrInvalid), errors.Is(err, fault.ErrNotFound):
		return providers.Finding{Check: check, OK: true, Detail: action + " is allowed"}, nil
	}
	return providers.Finding{}, err
}

func (s *secretStore) permission(path, action string, err error) providers.Finding {
	return providers.Finding{Check: "permission", Detail: action + " is not allowed: " + err.Error(), Remedy: "attach this policy to the login: " + s.policy(path)}
}

// policy is all that the adapter needs for one secret.
func (s *secretStore) policy(path string) string {
	actions := []string{
		"secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue",
		"secretsmanager:UpdateSecretVersionStage", "secretsmanager:ListSecretVersionIds",
	}
	resource := path
	if !isARN.MatchString(path) {
		resource = fmt.Sprintf("arn:%s:secretsmanager:%s:*:secret:%s-??????", partition(s.cfg.Region), s.cfg.Region, path)
		if s.create {
			actions = append(actions, "secretsmanager:CreateSecret")
		}
	}
	return policy(actions, resource)
}

func partition(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}

func policy(actions []string, resource string) string {
	type statement struct {
		Effect   string
		Action   []string
		Resource string
	}
	b, _ := json.Marshal(struct {
		Version   string
		Statement []statement
	}{"2012-10-17", []statement{{"Allow", actions, resource}}})
	return string(b)
}

// probeVersions counts what AWS has not removed yet.
func (s *secretStore) probeVersions(ctx context.Context, path string) (providers.Finding, error) {
	count, young := 0, 0
	var next *string
	for range maxPages {
		var out *sm.ListSecretVersionIdsOutput
		err := s.do(ctx, "list versions of secret "+path, func() (err error) {
			out, err = s.client.ListSecretVersionIds(ctx, &sm.ListSecretVersionIdsInput{SecretId: &path, IncludeDeprecated: sdk.Bool(true), MaxResults: sdk.Int32(100), NextToken: next})
			return err
		})
		if errors.Is(err, fault.ErrDenied) {
			f := s.permission(path, "secretsmanager:ListSecretVersionIds", err)
			f.Check, f.Warning = "versions", true
			return f, nil
		}
		if err != nil {
			return providers.Finding{}, err
		}
		count += len(out.Versions)
		for _, v := range out.Versions {
			if v.CreatedDate != nil && s.now().Sub(*v.CreatedDate) < 24*time.Hour {
				young++
			}
		}
		if next = out.NextToken; next == nil {
			break
		}
	}
	f := providers.Finding{Check: "versions", OK: true, Measured: fmt.Sprintf("%d versions, %d of the last day", count, young), Detail: "there is room for new versions"}
	if young >= manyVersions {
		f.OK, f.Warning = false, count < manyVersions+15
		f.Detail = fmt.Sprintf("the secret has %d versions of the last day; AWS keeps about 100, and removes none that is younger than a day", young)
		f.Remedy = fmt.Sprintf("rotate less often: AWS asks for no more than one write in ten minutes (%d in a day)", perDay)
	}
	return f, nil
}

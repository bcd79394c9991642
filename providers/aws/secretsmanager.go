package aws

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	sm "github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
)

// Staged is the label of a version that Rotunda has staged. The others are AWS's own.
const (
	Staged       = "ROTUNDA_STAGED"
	labelCurrent = "AWSCURRENT"
	labelPending = "AWSPENDING"
)

// writesPerSecond is what AWS allows to PutSecretValue, UpdateSecretVersionStage and
// their like together, per account and region (Secrets Manager quotas).
const writesPerSecond = 50

const (
	secretName = `[A-Za-z0-9/_+=.@-]{1,512}`
	secretARN  = `arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:` + secretName
)

var (
	isARN  = regexp.MustCompile(`^` + secretARN + `$`)
	isUUID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

// SecretsManagerKind describes the store aws-secrets-manager.
func SecretsManagerKind() providers.StoreKind {
	return providers.StoreKind{
		Name: "aws-secrets-manager",
		Doc:  "AWS Secrets Manager: a version per rotation, staged under the label ROTUNDA_STAGED, published by moving AWSCURRENT.",
		Settings: append(settings(),
			providers.Setting{Name: "create", Doc: "true: a secret that does not exist is created when its first value is published", OneOf: []string{"true", "false"}, Default: "true"},
			providers.Setting{Name: "kms_key_id", Doc: "KMS key of secrets that are created; default: aws/secretsmanager", Pattern: `[A-Za-z0-9:/_-]{1,512}`},
		),
		Login:  login(),
		Path:   providers.Setting{Name: "path", Doc: "name or ARN of the secret", Required: true, Pattern: secretName + `|` + secretARN},
		Traits: providers.StoreTraits{Stages: true, WritesPerRotation: 3, Quota: writesPerSecond},
		Open: func(ctx context.Context, c providers.Config) (providers.Store, error) {
			k, err := open(ctx, c)
			if err != nil {
				return nil, err
			}
			client := sm.NewFromConfig(k.cfg)
			if err := k.checkEndpoint(client.Options().BaseEndpoint); err != nil {
				return nil, err
			}
			return &secretStore{conn: k, client: client, create: c.Settings["create"] != "false", kms: c.Settings["kms_key_id"]}, nil
		},
	}
}

type secretStore struct {
	*conn
	client *sm.Client
	create bool
	kms    string
}

func (s *secretStore) Close() error { return nil }

// labels is what DescribeSecret says of a secret. The zero labels: there is none.
type labels struct {
	arn     string
	deleted bool
	stages  map[string][]string // by version; versions without labels are not listed
}

func (s labels) labelled(label string) string {
	for id, all := range s.stages {
		if slices.Contains(all, label) {
			return id
		}
	}
	return ""
}

func labelsOf(d *sm.DescribeSecretOutput) labels {
	return labels{sdk.ToString(d.ARN), d.DeletedDate != nil, d.VersionIdsToStages}
}

// describe reads the labels of a secret. Where there is none it returns none.
func (s *secretStore) describe(ctx context.Context, path string) (labels, error) {
	out, err := s.describeWhole(ctx, path)
	if err != nil || out == nil {
		return labels{}, err
	}
	return labelsOf(out), nil
}

// describeWhole is nil where there is no secret.
func (s *secretStore) describeWhole(ctx context.Context, path string) (out *sm.DescribeSecretOutput, err error) {
	err = s.do(ctx, "describe secret "+path, func() error {
		out, err = s.client.DescribeSecret(ctx, &sm.DescribeSecretInput{SecretId: &path})
		return answered(err, err == nil && out.ARN != nil)
	})
	if errors.Is(err, fault.ErrNotFound) {
		return nil, nil
	}
	return out, err
}

func (s *secretStore) Read(ctx context.Context, path string) (providers.Served, error) {
	var served providers.Served
	out, err := s.get(ctx, path, "")
	switch {
	case errors.Is(err, fault.ErrNotFound):
		return served, nil
	case reason(err) == "aws_access_denied", reason(err) == "aws_kms":
		// Which version is served can be known without reading it.
		d, derr := s.describe(ctx, path)
		if derr != nil {
			return served, err
		}
		served.Version = d.labelled(labelCurrent)
		served.Note = "the value can't be read: secretsmanager:GetSecretValue, or kms:Decrypt of its key, is not allowed to this login"
		served.Rotation = rotationOf(served.Version)
		return served, nil
	case err != nil:
		return served, err
	}
	served.Version = sdk.ToString(out.VersionId)
	served.Rotation = rotationOf(served.Version)
	switch fields, ok := fieldsOf(out); {
	case ok:
		served.Fields = fields
	case out.SecretString == nil:
		served.Note = "the value is binary"
	default:
		served.Note = "the value is no JSON object of strings"
	}
	if d, err := s.describe(ctx, path); err == nil {
		if p := d.labelled(labelPending); p != "" && p != served.Version {
			served.Note = join(served.Note, "AWSPENDING is on another version: a rotation by AWS is under way or was broken off")
		}
		if p := d.labelled(Staged); p != "" && p != served.Version {
			served.Note = join(served.Note, Staged+" is on another version")
		}
	} else if ctx.Err() != nil {
		return providers.Served{}, err
	}
	return served, nil
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// rotationOf is the rotation that made a version, as far as its name can tell: who
// writes with AWS's own tools gets a random UUID for a name, too.
func rotationOf(version string) string {
	if isUUID.MatchString(version) {
		return version
	}
	return ""
}

func (s *secretStore) get(ctx context.Context, path, version string) (out *sm.GetSecretValueOutput, err error) {
	in := &sm.GetSecretValueInput{SecretId: &path}
	if version != "" {
		in.VersionId = &version
	}
	err = s.do(ctx, "read secret "+path, func() error {
		out, err = s.client.GetSecretValue(ctx, in)
		return answered(err, err == nil && out.VersionId != nil)
	})
	return out, err
}

// Stage puts the version under our own label. Where the secret has no version yet it
// keeps nothing, see the package comment.
func (s *secretStore) Stage(ctx context.Context, path string, v providers.Version) error {
	text, err := encode(v)
	if err != nil {
		return err
	}
	d, err := s.describe(ctx, path)
	switch {
	case err != nil:
		return err
	case d.deleted:
		return s.scheduled(path)
	case d.arn == "" && !s.mayCreate(path):
		return s.missing(path)
	case d.labelled(labelCurrent) == "":
		return nil
	}
	return s.put(ctx, path, v, text)
}

func encode(v providers.Version) (string, error) {
	if !isUUID.MatchString(v.Rotation) {
		return "", fault.Invalid("rotation", "rotation_malformed", "the rotation's id is not a UUID in lower case, which is to be the name of the version")
	}
	value, err := v.Fields.Encode()
	if err != nil {
		return "", err
	}
	return value.RevealString(), nil
}

func (s *secretStore) mayCreate(path string) bool { return s.create && !isARN.MatchString(path) }

func (s *secretStore) missing(path string) error {
	return fault.New(fault.ErrNotFound, "secret_missing", "%s: there is no secret %s in %s: create it, or name it (not its ARN) in a store with create=true", s.name, path, s.cfg.Region)
}

func (s *secretStore) scheduled(path string) error {
	return fault.New(fault.ErrTransition, "secret_deleted", "%s: secret %s is scheduled for deletion: restore it (aws secretsmanager restore-secret), or wait until it is gone", s.name, path)
}

// put makes the version under our own label. The same rotation with the same value
// does nothing, with another value it is fault.ErrStale. Labels are always given:
// without them AWS would move AWSCURRENT.
func (s *secretStore) put(ctx context.Context, path string, v providers.Version, text string) error {
	return s.do(ctx, fmt.Sprintf("stage version %s of secret %s", v.Rotation, path), func() error {
		out, err := s.client.PutSecretValue(ctx, &sm.PutSecretValueInput{
			SecretId: &path, ClientRequestToken: &v.Rotation, SecretString: &text, VersionStages: []string{Staged},
		})
		return answered(err, err == nil && sdk.ToString(out.VersionId) == v.Rotation)
	})
}

// Patience with reads that lag behind writes: so many more tries, after waits that
// double. Reads that contradict the caller are believed sooner: AWS has the last word.
const (
	patience  = 6
	disbelief = 3
	firstWait = 40 * time.Millisecond
)

// wait says false when ctx has ended.
func wait(ctx context.Context, try int) bool {
	t := time.NewTimer(firstWait << try)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Publish moves AWSCURRENT from prior to the version. What it reads decides nothing
// but what to try next; what AWS compares and swaps does.
func (s *secretStore) Publish(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
	text, err := encode(v)
	if err != nil {
		return "", err
	}
	staged := false
	for try := 0; ; try++ {
		done, err := s.publish(ctx, path, v, text, prior, &staged)
		switch {
		case done && err == nil:
			return v.Rotation, nil
		case done:
			return "", err
		case errors.Is(err, fault.ErrStale) && try >= disbelief:
			if s.settle(ctx, path, v, prior) {
				return v.Rotation, nil
			}
			return "", err
		case err != nil && !errors.Is(err, fault.ErrStale):
			return "", err
		case try >= patience:
			return "", fault.New(fault.ErrUnavailable, "version_not_seen", "%s: version %s of secret %s was written and is not seen yet: the same is tried again", s.name, v.Rotation, path)
		}
		if !wait(ctx, try) {
			return "", fmt.Errorf("%s: publish version %s of secret %s: %w", s.name, v.Rotation, path, ctx.Err())
		}
	}
}

// settle asks AWS itself, when reads say that the secret has moved and may only lag: if
// the version was staged, the move succeeds just if AWSCURRENT is on prior.
func (s *secretStore) settle(ctx context.Context, path string, v providers.Version, prior string) bool {
	if prior == "" {
		return false
	}
	out, err := s.get(ctx, path, v.Rotation)
	if err != nil {
		return false
	}
	fields, ok := fieldsOf(out)
	return ok && fields.Equal(v.Fields) && s.move(ctx, path, v, prior) == nil
}

func (s *secretStore) move(ctx context.Context, path string, v providers.Version, prior string) error {
	return s.do(ctx, fmt.Sprintf("move AWSCURRENT of secret %s to version %s", path, v.Rotation), func() error {
		label := labelCurrent
		out, err := s.client.UpdateSecretVersionStage(ctx, &sm.UpdateSecretVersionStageInput{
			SecretId: &path, VersionStage: &label, MoveToVersionId: &v.Rotation, RemoveFromVersionId: &prior,
		})
		return answered(err, err == nil && out.ARN != nil)
	})
}

// publish makes one try. Done may come with an error; neither is: ask again.
func (s *secretStore) publish(ctx context.Context, path string, v providers.Version, text, prior string, staged *bool) (done bool, err error) {
	d, err := s.describe(ctx, path)
	if err != nil {
		return false, err
	}
	current := d.labelled(labelCurrent)
	switch {
	case d.deleted:
		return false, s.scheduled(path)
	case current == v.Rotation:
		return true, s.same(ctx, path, v)
	case current != prior:
		return false, s.moved(path, current, prior)
	case d.arn == "" && !s.mayCreate(path):
		return false, s.missing(path)
	case d.arn == "":
		err := s.createSecret(ctx, path, v, text)
		if errors.Is(err, fault.ErrStale) {
			return false, nil // it is there meanwhile: look again
		}
		return err == nil, err
	}
	if !*staged {
		if err := s.ensure(ctx, path, v, text); err != nil {
			return false, err
		}
		*staged = true
	}
	if current == "" {
		// AWS gave AWSCURRENT to the first version, which may be another one's.
		return false, nil
	}
	err = s.move(ctx, path, v, prior)
	if errors.Is(err, fault.ErrNotFound) || errors.Is(err, fault.ErrInvalid) {
		// Our version is not seen yet, or AWSCURRENT is not where we read it.
		return false, nil
	}
	return err == nil, err
}

func (s *secretStore) moved(path, current, prior string) error {
	say := func(version string) string {
		if version == "" {
			return "nothing"
		}
		return "version " + version
	}
	return fault.New(fault.ErrStale, "secret_moved", "%s: secret %s serves %s, not %s as recorded: somebody else wrote it", s.name, path, say(current), say(prior))
}

// same checks that a version that is served already has our value: its name is ours,
// but whoever knows the name could have made it. If we may not read it, it is ours.
func (s *secretStore) same(ctx context.Context, path string, v providers.Version) error {
	out, err := s.get(ctx, path, v.Rotation)
	switch {
	case errors.Is(err, fault.ErrDenied), errors.Is(err, fault.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	if fields, ok := fieldsOf(out); !ok || !fields.Equal(v.Fields) {
		return s.otherValue(path, v)
	}
	return nil
}

func (s *secretStore) otherValue(path string, v providers.Version) error {
	return fault.New(fault.ErrStale, "version_differs", "%s: version %s of secret %s has another value than this rotation's", s.name, v.Rotation, path)
}

// ensure makes the version unless it is there. Reading is not limited as writing is.
func (s *secretStore) ensure(ctx context.Context, path string, v providers.Version, text string) error {
	if out, err := s.get(ctx, path, v.Rotation); err == nil {
		if fields, ok := fieldsOf(out); !ok || !fields.Equal(v.Fields) {
			return s.otherValue(path, v)
		}
		return nil
	} else if ctx.Err() != nil {
		return err
	}
	return s.put(ctx, path, v, text)
}

// createSecret makes the secret with its first version. fault.ErrStale: it exists.
func (s *secretStore) createSecret(ctx context.Context, path string, v providers.Version, text string) error {
	in := &sm.CreateSecretInput{
		Name: &path, ClientRequestToken: &v.Rotation, SecretString: &text,
		Description: sdk.String("Rotated by Rotunda."),
	}
	if s.kms != "" {
		in.KmsKeyId = &s.kms
	}
	return s.do(ctx, "create secret "+path, func() error {
		out, err := s.client.CreateSecret(ctx, in)
		return answered(err, err == nil && sdk.ToString(out.VersionId) == v.Rotation)
	})
}

// Discard takes our label off the version. A version that has no label is removed by
// AWS in its own time; one that is served has AWSCURRENT, the one before AWSPREVIOUS.
func (s *secretStore) Discard(ctx context.Context, path string, v providers.Version) error {
	if !isUUID.MatchString(v.Rotation) {
		return nil // no version has that name
	}
	for try := 0; ; try++ {
		err := s.do(ctx, fmt.Sprintf("take %s off version %s of secret %s", Staged, v.Rotation, path), func() error {
			label := Staged
			out, err := s.client.UpdateSecretVersionStage(ctx, &sm.UpdateSecretVersionStageInput{
				SecretId: &path, VersionStage: &label, RemoveFromVersionId: &v.Rotation,
			})
			return answered(err, err == nil && out.ARN != nil)
		})
		if err == nil || (!errors.Is(err, fault.ErrNotFound) && !errors.Is(err, fault.ErrInvalid) && !errors.Is(err, fault.ErrTransition)) {
			return err
		}
		// The label is not there, or not seen to be, or nothing can be written.
		d, derr := s.describe(ctx, path)
		if derr != nil {
			return derr
		}
		if d.labelled(Staged) != v.Rotation || d.deleted {
			return nil
		}
		if try >= disbelief || !wait(ctx, try) {
			return err
		}
	}
}

// fieldsOf reads the value of an answer.
func fieldsOf(out *sm.GetSecretValueOutput) (providers.Fields, bool) {
	if out.SecretString == nil {
		return nil, false
	}
	f, err := providers.Decode(secret.FromString(*out.SecretString))
	return f, err == nil
}

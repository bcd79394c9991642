package aws

import (
	"context"
	"errors"
	"maps"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// scratchTag marks a user that was made for a drill; its value is the suffix.
const scratchTag = "rotunda-scratch"

// maxUser is how long the name of a user may be.
const maxUser = 64

var _ providers.Scratcher = (*keyTarget)(nil)

func scratchName(c providers.Change, suffix string) (string, error) {
	if suffix == "" || len(suffix) > maxUser/2 {
		return "", fault.Invalid("suffix", "suffix_malformed", "the suffix of a drill has %d characters, it has to have 1 to %d", len(suffix), maxUser/2)
	}
	name := user(c)
	if most := maxUser - len(suffix) - 1; len(name) > most {
		name = name[:most]
	}
	return name + "-" + suffix, nil
}

// Scratch makes a user without any permission, so that its keys open nothing.
func (t *keyTarget) Scratch(ctx context.Context, c providers.Change, suffix string) (map[string]string, error) {
	name, err := scratchName(c, suffix)
	if err != nil {
		return nil, err
	}
	tag := scratchTag
	err = t.do(ctx, "make user "+name, func() error {
		out, err := t.client.CreateUser(ctx, &iam.CreateUserInput{UserName: &name, Tags: []types.Tag{{Key: &tag, Value: &suffix}}})
		return answered(err, err == nil && out.User != nil)
	})
	if reason(err) == "aws_conflict" {
		// An earlier try made it, or it is somebody's.
		_, err = t.scratch(ctx, name, suffix)
	}
	if err != nil {
		return nil, err
	}
	params := maps.Clone(c.Params)
	params["user"] = name
	return params, nil
}

// scratch finds the user of a drill. A user that is not one is never touched.
func (t *keyTarget) scratch(ctx context.Context, name, suffix string) (found bool, err error) {
	u, err := t.user(ctx, name)
	if errors.Is(err, fault.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, tag := range u.Tags {
		if sdk.ToString(tag.Key) == scratchTag && sdk.ToString(tag.Value) == suffix {
			return true, nil
		}
	}
	return false, fault.New(fault.ErrTransition, "not_scratch", "%s: user %s was not made for this drill (it has no tag %s=%s) and is left alone: choose another suffix", t.name, name, scratchTag, suffix)
}

// Unscratch deletes the user with all its keys.
func (t *keyTarget) Unscratch(ctx context.Context, c providers.Change, suffix string) error {
	name, err := scratchName(c, suffix)
	if err != nil {
		return err
	}
	found, err := t.scratch(ctx, name, suffix)
	if err != nil || !found {
		return err
	}
	keys, err := t.list(ctx, name)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := t.end(ctx, name, sdk.ToString(k.AccessKeyId)); err != nil {
			return err
		}
	}
	err = t.do(ctx, "delete user "+name, func() error {
		_, err := t.client.DeleteUser(ctx, &iam.DeleteUserInput{UserName: &name})
		return err
	})
	if errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	return err
}

package aws

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// noKey is the id of no access key: IAM's own begin with AKIA or ASIA.
const noKey = "AKIA0000000000000000"

// Check is the preflight. Ending a key is tried with a key that does not exist.
// iam:CreateAccessKey, iam:TagUser and iam:UntagUser can't be tried without an effect.
func (t *keyTarget) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	name := user(c)
	var who *iam.GetUserOutput
	err := t.do(ctx, "read user "+name, func() (err error) {
		who, err = t.client.GetUser(ctx, &iam.GetUserInput{UserName: &name})
		return answered(err, err == nil && who.User != nil)
	})
	switch {
	case errors.Is(err, fault.ErrNotFound):
		return []providers.Finding{{Check: "account", Detail: "there is no IAM user " + name + " in the account of the login", Remedy: "create the user, or correct the parameter user"}}, nil
	case errors.Is(err, fault.ErrDenied):
		return []providers.Finding{t.permission(fmt.Sprintf("arn:%s:iam::*:user/%s", partition(t.cfg.Region), name), "iam:GetUser", err)}, nil
	case err != nil:
		return nil, err
	}
	arn := sdk.ToString(who.User.Arn)
	found := []providers.Finding{{Check: "account", OK: true, Detail: "the user exists"}, t.skew(who.ResultMetadata)}
	keys, err := t.list(ctx, name)
	switch {
	case errors.Is(err, fault.ErrDenied):
		return append(found, t.permission(arn, "iam:ListAccessKeys", err)), nil
	case err != nil:
		return nil, err
	}
	found = append(found, t.room(c, keys))
	if f, ok := current(c, keys); ok {
		found = append(found, f)
	}
	ends, err := t.probeEnd(ctx, name, arn)
	if err != nil {
		return nil, err
	}
	found = append(found, ends...)
	self, err := t.selfReference(ctx, name)
	if err != nil {
		return nil, err
	}
	return append(found, self), nil
}

// room is about the limit of two keys.
func (t *keyTarget) room(c providers.Change, keys []types.AccessKeyMetadata) providers.Finding {
	f := providers.Finding{Check: "two_keys", OK: true, Detail: "there is room for a second key", Measured: fmt.Sprintf("%d of %d keys", len(keys), maxKeys)}
	if len(keys) < maxKeys {
		return f
	}
	f.OK = false
	f.Detail = "the user has two access keys already, and IAM allows no third"
	var others []string
	for _, k := range keys {
		id := sdk.ToString(k.AccessKeyId)
		if c.Current.ID != id && !slices.ContainsFunc(c.Others, func(h providers.Held) bool { return h.ID == id }) {
			others = append(others, id)
		}
	}
	f.Warning = len(others) == 0 // the grace of the previous one ends by itself
	f.Remedy = "wait until the previous key is revoked"
	if !f.Warning {
		f.Remedy = "find out who uses " + strings.Join(others, " and ") + ", which nobody here recorded, then delete what is not needed (aws iam delete-access-key --user-name " + user(c) + " --access-key-id " + others[0] + ")"
	}
	return f
}

// current is about the key that consumers have by our records.
func current(c providers.Change, keys []types.AccessKeyMetadata) (providers.Finding, bool) {
	if c.Current.ID == "" {
		return providers.Finding{}, false
	}
	f := providers.Finding{Check: "current_key", OK: true, Detail: "the key that consumers have is active"}
	i := slices.IndexFunc(keys, func(k types.AccessKeyMetadata) bool { return sdk.ToString(k.AccessKeyId) == c.Current.ID })
	switch {
	case i < 0:
		f.OK, f.Detail, f.Remedy = false, "the key that consumers have by our records, "+c.Current.ID+", is not there", "rotate at once: consumers can't log in"
	case keys[i].Status != types.StatusTypeActive:
		f.OK, f.Detail, f.Remedy = false, "the key that consumers have by our records, "+c.Current.ID+", is not active", "activate it (aws iam update-access-key --status Active), or rotate at once"
	}
	f.Warning = !f.OK // a rotation mends it
	return f, true
}

func (t *keyTarget) probeEnd(ctx context.Context, name, arn string) ([]providers.Finding, error) {
	id := noKey
	var found []providers.Finding
	for _, p := range []struct {
		check, action string
		call          func() error
	}{
		{"permission_deactivate", "iam:UpdateAccessKey", func() error {
			_, err := t.client.UpdateAccessKey(ctx, &iam.UpdateAccessKeyInput{UserName: &name, AccessKeyId: &id, Status: types.StatusTypeInactive})
			return err
		}},
		{"permission_delete", "iam:DeleteAccessKey", func() error {
			_, err := t.client.DeleteAccessKey(ctx, &iam.DeleteAccessKeyInput{UserName: &name, AccessKeyId: &id})
			return err
		}},
	} {
		err := t.do(ctx, "try "+p.action+" on user "+name, p.call)
		switch {
		case errors.Is(err, fault.ErrDenied):
			f := t.permission(arn, p.action, err)
			f.Check = p.check
			found = append(found, f)
		case err == nil, errors.Is(err, fault.ErrNotFound):
			found = append(found, providers.Finding{Check: p.check, OK: true, Detail: p.action + " is allowed"})
		default:
			return nil, err
		}
	}
	return found, nil
}

// selfReference: rotating the key that Rotunda itself logs in with locks it out, unless
// its login is read from where the new key is published.
func (t *keyTarget) selfReference(ctx context.Context, name string) (providers.Finding, error) {
	client, err := t.sts(t.cfg)
	if err != nil {
		return providers.Finding{}, err
	}
	var out *sts.GetCallerIdentityOutput
	err = t.do(ctx, "ask who the login is", func() (err error) {
		out, err = client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		return answered(err, err == nil && out.Arn != nil)
	})
	if err != nil {
		return providers.Finding{}, err
	}
	f := providers.Finding{Check: "self_reference", OK: true, Detail: "the login is another one than the user"}
	if _, rest, ok := strings.Cut(sdk.ToString(out.Arn), ":user/"); ok && rest[strings.LastIndex(rest, "/")+1:] == name {
		f.OK, f.Warning = false, true
		f.Detail = "Rotunda logs in as the user whose key it rotates: when the old key is revoked, a login that still holds it is refused"
		f.Remedy = "give Rotunda a role or a user of its own, or let its login come from where the new key is published"
	}
	return f, nil
}

func (t *keyTarget) permission(resource, action string, err error) providers.Finding {
	return providers.Finding{Check: "permission", Detail: action + " is not allowed: " + err.Error(),
		Remedy: "attach this policy to the login: " + policy([]string{
			"iam:GetUser", "iam:TagUser", "iam:UntagUser", "iam:ListAccessKeys", "iam:CreateAccessKey", "iam:UpdateAccessKey", "iam:DeleteAccessKey", "iam:GetAccessKeyLastUsed",
		}, resource)}
}

package aws

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

const (
	// maxKeys is how many access keys a user may have (IAM quotas; not adjustable).
	maxKeys = 2

	// markerTag, with the epoch of a lease behind it, is a tag of the user that says who
	// was at work. Each lease has its own, so that an older one can't overwrite a newer.
	markerTag = "rotunda-rotation-"

	// clockSkew is how much older than the rotation a key may be that an earlier try of
	// it made, by IAM's clock.
	clockSkew = time.Minute

	// The fields of the value.
	fieldID     = "access_key_id"
	fieldSecret = "secret_access_key"
)

// IAMKind describes the target aws-iam.
func IAMKind() providers.TargetKind {
	return providers.TargetKind{
		Name:     "aws-iam",
		Doc:      "Access keys of an IAM user: IAM makes the new one beside the old one, of which there may be two.",
		Settings: settings(),
		Login:    login(),
		Params: []providers.Setting{
			{Name: "user", Doc: "name of the IAM user whose access key is rotated", Required: true, Pattern: `[\w+=,.@-]{1,64}`},
			{Name: "marker", Doc: "tag: a tag on the user says which rotation was at work (needs iam:TagUser and iam:UntagUser); none: no tag, and a lease that was lost is not noticed", OneOf: []string{"tag", "none"}, Default: "tag"},
		},
		Traits: providers.Traits{Strategies: []providers.Strategy{providers.Dual}, Issues: true},
		Open: func(ctx context.Context, c providers.Config) (providers.Target, error) {
			k, err := open(ctx, c)
			if err != nil {
				return nil, err
			}
			client := iam.NewFromConfig(k.cfg)
			if err := k.checkEndpoint(client.Options().BaseEndpoint); err != nil {
				return nil, err
			}
			if _, err := k.sts(k.cfg); err != nil {
				return nil, err
			}
			return &keyTarget{conn: k, client: client}, nil
		},
	}
}

type keyTarget struct {
	*conn
	client *iam.Client
}

func (t *keyTarget) Close() error { return nil }

func user(c providers.Change) string { return c.Params["user"] }

// list returns the access keys of a user, oldest first.
func (t *keyTarget) list(ctx context.Context, name string) ([]types.AccessKeyMetadata, error) {
	var out *iam.ListAccessKeysOutput
	err := t.do(ctx, "list the access keys of user "+name, func() (err error) {
		out, err = t.client.ListAccessKeys(ctx, &iam.ListAccessKeysInput{UserName: &name})
		return answered(err, err == nil && out.AccessKeyMetadata != nil)
	})
	if err != nil {
		return nil, err
	}
	if out.IsTruncated {
		return nil, fault.New(fault.ErrTransition, "too_many_keys", "%s: user %s has more access keys than IAM allows: look at it in the IAM console", t.name, name)
	}
	return out.AccessKeyMetadata, nil
}

// Prepare notes the keys that are there.
func (t *keyTarget) Prepare(ctx context.Context, c providers.Change) (providers.Change, error) {
	keys, err := t.list(ctx, user(c))
	if err != nil {
		return c, err
	}
	c.New.Account = user(c)
	c.New.Rotation, c.New.Generation = c.Rotation, c.Generation
	c.Before = make([]string, 0, len(keys))
	for _, k := range keys {
		c.Before = append(c.Before, sdk.ToString(k.AccessKeyId))
	}
	return c, nil
}

// recorded tells whether id is one of ours, or was there before this rotation.
func recorded(c providers.Change, id string) bool {
	return slices.Contains(c.Before, id) || c.Current.ID == id || c.New.ID == id ||
		slices.ContainsFunc(c.Others, func(h providers.Held) bool { return h.ID == id })
}

// Apply deletes what an earlier try of this rotation left, and asks for a new key.
func (t *keyTarget) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	if err := t.mark(ctx, c); err != nil {
		return providers.Held{}, err
	}
	keys, err := t.list(ctx, user(c))
	if err != nil {
		return providers.Held{}, err
	}
	left := keys[:0]
	for _, k := range keys {
		id := sdk.ToString(k.AccessKeyId)
		if id == c.New.ID && c.New.Fields.Text(fieldSecret) != "" {
			return c.New, nil // it was recorded already
		}
		if recorded(c, id) || k.CreateDate == nil || k.CreateDate.Before(c.At.Add(-clockSkew)) {
			left = append(left, k)
			continue
		}
		// Right before, and not only at the beginning: a newer lease may have made it.
		if err := t.checkMarker(ctx, c); err != nil {
			return providers.Held{}, err
		}
		if err := t.end(ctx, user(c), id); err != nil {
			return providers.Held{}, err
		}
	}
	if len(left) >= maxKeys {
		return providers.Held{}, t.full(c, left)
	}
	return t.create(ctx, c)
}

// full says which keys are in the way, and never touches them.
func (t *keyTarget) full(c providers.Change, keys []types.AccessKeyMetadata) error {
	var ours, unknown []string
	for _, k := range keys {
		id := sdk.ToString(k.AccessKeyId)
		if c.Current.ID == id || slices.ContainsFunc(c.Others, func(h providers.Held) bool { return h.ID == id }) {
			ours = append(ours, id)
		} else {
			unknown = append(unknown, id)
		}
	}
	remedy := "wait until the previous one (" + strings.Join(ours, ", ") + ") is revoked, or revoke it now"
	if len(unknown) > 0 {
		remedy = "nobody here recorded " + strings.Join(unknown, ", ") + ": find out who uses it, then delete it (aws iam delete-access-key --user-name " + user(c) + " --access-key-id " + unknown[0] + ")"
	}
	return fault.New(fault.ErrTransition, "two_keys", "%s: user %s has %d access keys already, and IAM allows no third: %s", t.name, user(c), len(keys), remedy)
}

func (t *keyTarget) create(ctx context.Context, c providers.Change) (providers.Held, error) {
	name := user(c)
	var out *iam.CreateAccessKeyOutput
	err := t.do(ctx, "make an access key for user "+name, func() (err error) {
		out, err = t.client.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: &name})
		return answered(err, err == nil && out.AccessKey != nil && out.AccessKey.AccessKeyId != nil && out.AccessKey.SecretAccessKey != nil)
	})
	if reason(err) == "aws_quota" {
		// The list did not show a key that is there: one that was made a moment ago.
		if err := t.checkMarker(ctx, c); err != nil {
			return providers.Held{}, err
		}
		keys, lerr := t.list(ctx, name)
		if lerr != nil {
			return providers.Held{}, lerr
		}
		if len(keys) >= maxKeys && !slices.ContainsFunc(keys, func(k types.AccessKeyMetadata) bool { return !recorded(c, sdk.ToString(k.AccessKeyId)) }) {
			return providers.Held{}, t.full(c, keys)
		}
		return providers.Held{}, fault.New(fault.ErrUnavailable, "keys_not_seen", "%s: user %s has two access keys, one of which is not listed yet: the same is tried again", t.name, name)
	}
	if err != nil {
		return providers.Held{}, err
	}
	id := *out.AccessKey.AccessKeyId
	if err := t.checkMarker(ctx, c); errors.Is(err, fault.ErrStale) {
		// Nobody will record this key: it is ours alone, and known by its id.
		if derr := t.end(context.WithoutCancel(ctx), name, id); derr != nil {
			return providers.Held{}, fault.New(fault.ErrUnavailable, "key_left", "%s: access key %s of user %s was made by a rotation that had lost its lease, and could not be deleted: delete it", t.name, id, name)
		}
		return providers.Held{}, err
	}
	// That the marker could not be read again is no reason to lose the key.
	fields := providers.Fields{}.Set(fieldID, id).Set(fieldSecret, *out.AccessKey.SecretAccessKey)
	for _, static := range slices.Sorted(maps.Keys(c.Static)) {
		if static != fieldID && static != fieldSecret {
			fields = fields.Set(static, c.Static[static])
		}
	}
	return providers.Held{Generation: c.Generation, Rotation: c.Rotation, Account: name, ID: id, Fields: fields}, nil
}

// end deactivates a key and deletes it. What is gone already is nil.
func (t *keyTarget) end(ctx context.Context, name, id string) error {
	err := t.do(ctx, fmt.Sprintf("deactivate access key %s of user %s", id, name), func() error {
		_, err := t.client.UpdateAccessKey(ctx, &iam.UpdateAccessKeyInput{UserName: &name, AccessKeyId: &id, Status: types.StatusTypeInactive})
		return err
	})
	if err == nil {
		err = t.do(ctx, fmt.Sprintf("delete access key %s of user %s", id, name), func() error {
			_, err := t.client.DeleteAccessKey(ctx, &iam.DeleteAccessKeyInput{UserName: &name, AccessKeyId: &id})
			return err
		})
	}
	if errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	return err
}

// mark writes who is at work, unless somebody newer is, and removes older marks. It
// looks again after it has written: of two that are at it, the older sees the newer.
func (t *keyTarget) mark(ctx context.Context, c providers.Change) error {
	if c.Params["marker"] == "none" {
		return nil
	}
	if err := t.checkMarker(ctx, c); err != nil {
		return err
	}
	name, tag, value := user(c), markerTag+strconv.FormatInt(c.Epoch, 10), fmt.Sprintf("%s %d %d", c.Rotation, c.Generation, c.Epoch)
	err := t.do(ctx, "tag user "+name, func() error {
		_, err := t.client.TagUser(ctx, &iam.TagUserInput{UserName: &name, Tags: []types.Tag{{Key: &tag, Value: &value}}})
		return err
	})
	if err != nil {
		return err
	}
	u, err := t.user(ctx, name)
	if err != nil {
		return err
	}
	var old []string
	if stale := t.stale(c, newest(u.Tags)); stale != nil {
		old = []string{tag}
		err = stale
	} else {
		for _, other := range u.Tags {
			if key := sdk.ToString(other.Key); strings.HasPrefix(key, markerTag) && key != tag {
				old = append(old, key)
			}
		}
	}
	if len(old) == 0 {
		return err
	}
	uerr := t.do(ctx, "untag user "+name, func() error {
		_, err := t.client.UntagUser(ctx, &iam.UntagUserInput{UserName: &name, TagKeys: old})
		return err
	})
	if err != nil {
		return err // the next rotation removes a mark that is left
	}
	return uerr
}

// checkMarker is fault.ErrStale when a newer generation, or a newer lease, was at work.
func (t *keyTarget) checkMarker(ctx context.Context, c providers.Change) error {
	if c.Params["marker"] == "none" {
		return nil
	}
	m, err := t.marker(ctx, user(c))
	if err != nil {
		return err
	}
	return t.stale(c, m)
}

func (t *keyTarget) stale(c providers.Change, m providers.Applied) error {
	if m.Known && (m.Epoch > c.Epoch || m.Generation > c.Generation) {
		return fault.New(fault.ErrStale, "newer_rotation", "%s: user %s was rotated by %s (generation %d, lease %d) since: this is generation %d, lease %d", t.name, user(c), m.Rotation, m.Generation, m.Epoch, c.Generation, c.Epoch)
	}
	return nil
}

func (t *keyTarget) marker(ctx context.Context, name string) (providers.Applied, error) {
	u, err := t.user(ctx, name)
	if err != nil {
		return providers.Applied{}, err
	}
	return newest(u.Tags), nil
}

// newest is the mark of the newest lease.
func newest(tags []types.Tag) (m providers.Applied) {
	for _, tag := range tags {
		if !strings.HasPrefix(sdk.ToString(tag.Key), markerTag) {
			continue
		}
		if n := parseMarker(sdk.ToString(tag.Value)); n.Known && (!m.Known || n.Epoch > m.Epoch) {
			m = n
		}
	}
	return m
}

// parseMarker reads "ROTATION GENERATION EPOCH". Anything else is no marker of ours.
func parseMarker(text string) providers.Applied {
	parts := strings.Split(text, " ")
	if len(parts) != 3 || !isUUID.MatchString(parts[0]) {
		return providers.Applied{}
	}
	generation, err1 := strconv.ParseInt(parts[1], 10, 64)
	epoch, err2 := strconv.ParseInt(parts[2], 10, 64)
	if err1 != nil || err2 != nil || generation < 0 || epoch < 0 {
		return providers.Applied{}
	}
	return providers.Applied{Known: true, Rotation: parts[0], Generation: generation, Epoch: epoch}
}

func (t *keyTarget) user(ctx context.Context, name string) (*types.User, error) {
	var out *iam.GetUserOutput
	err := t.do(ctx, "read user "+name, func() (err error) {
		out, err = t.client.GetUser(ctx, &iam.GetUserInput{UserName: &name})
		return answered(err, err == nil && out.User != nil)
	})
	if err != nil {
		return nil, err
	}
	return out.User, nil
}

// Verify signs a request with the key, over a client of its own, and asks whose it is.
func (t *keyTarget) Verify(ctx context.Context, c providers.Change, h providers.Held) error {
	id, secret := h.Fields.Text(fieldID), h.Fields.Text(fieldSecret)
	if id == "" || secret == "" {
		return fault.New(fault.ErrRejected, "no_key", "%s: the value has no %s and %s", t.name, fieldID, fieldSecret)
	}
	cfg := t.cfg.Copy()
	cfg.Credentials = credentials.NewStaticCredentialsProvider(id, secret, "")
	client, err := t.sts(cfg)
	if err != nil {
		return err
	}
	var out *sts.GetCallerIdentityOutput
	call := func() (err error) {
		out, err = client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		return answered(err, err == nil && out.Arn != nil)
	}
	err = call()
	if code(err) == "SignatureDoesNotMatch" {
		// The secret, or our clock: the client corrects it by the first answer.
		err = call()
	}
	switch code(err) {
	case "InvalidClientTokenId", "SignatureDoesNotMatch", "InvalidAccessKeyId":
		if ctx.Err() == nil {
			return fault.New(fault.ErrRejected, "key_not_accepted", "%s: AWS does not accept access key %s of user %s (%s): a new key takes some seconds", t.name, id, h.Account, code(err))
		}
	}
	if err != nil {
		return t.explain(ctx, "log in with access key "+id, err)
	}
	arn := sdk.ToString(out.Arn)
	if _, rest, ok := strings.Cut(arn, ":user/"); !ok || rest[strings.LastIndex(rest, "/")+1:] != user(c) {
		return fault.New(fault.ErrRejected, "other_user", "%s: access key %s belongs to %.200q, not to user %s", t.name, id, arn, user(c))
	}
	return nil
}

// Applied reads the tag.
func (t *keyTarget) Applied(ctx context.Context, c providers.Change, account string) (providers.Applied, error) {
	if c.Params["marker"] == "none" {
		return providers.Applied{}, nil
	}
	m, err := t.marker(ctx, account)
	if errors.Is(err, fault.ErrNotFound) {
		return providers.Applied{}, nil
	}
	return m, err
}

// Usage is what IAM knows of the last use, which it learns some minutes late.
func (t *keyTarget) Usage(ctx context.Context, c providers.Change, h providers.Held) (providers.Evidence, error) {
	if h.ID == "" {
		return providers.Evidence{}, nil
	}
	var out *iam.GetAccessKeyLastUsedOutput
	err := t.do(ctx, "read the last use of access key "+h.ID, func() (err error) {
		out, err = t.client.GetAccessKeyLastUsed(ctx, &iam.GetAccessKeyLastUsedInput{AccessKeyId: &h.ID})
		return err
	})
	if errors.Is(err, fault.ErrDenied) || errors.Is(err, fault.ErrNotFound) {
		// So IAM answers for a key that is gone, too.
		keys, lerr := t.list(ctx, user(c))
		if lerr == nil && !slices.ContainsFunc(keys, func(k types.AccessKeyMetadata) bool { return sdk.ToString(k.AccessKeyId) == h.ID }) {
			return providers.Evidence{Known: true, Source: "iam:ListAccessKeys"}, nil
		}
	}
	if err != nil {
		return providers.Evidence{}, err
	}
	e := providers.Evidence{Known: true, Source: "iam:GetAccessKeyLastUsed"}
	if u := out.AccessKeyLastUsed; u != nil && u.LastUsedDate != nil {
		e.LastUsed = *u.LastUsedDate
	}
	return e, nil
}

// Retire does nothing: an access key has no end that could be set. Taking it out of
// use before its time, as deactivation would, is no retirement.
func (t *keyTarget) Retire(context.Context, providers.Change, providers.Held, time.Time) error {
	return nil
}

// Revoke ends h by its recorded id. IAM has no sessions of a key: what was signed with
// it before is over, and temporary credentials that were derived from it end by
// themselves (aws:TokenIssueTime in a policy ends them sooner).
func (t *keyTarget) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	if h.ID == "" {
		return nil
	}
	for _, keep := range []providers.Held{c.New, c.Current} {
		if keep.ID == h.ID && keep.Rotation != h.Rotation {
			return fault.New(fault.ErrTransition, "key_in_use", "%s: access key %s of user %s is recorded as current, too: it is not revoked", t.name, h.ID, user(c))
		}
	}
	name := h.Account
	if name == "" {
		name = user(c)
	}
	return t.end(ctx, name, h.ID)
}

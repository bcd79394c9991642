package anchors

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Bounds of a listing: its keys, and the bytes of any reply of the server.
const (
	maxKeys  = 100
	maxReply = 512 << 10
)

// bucket keeps checkpoints in an S3 bucket, under
// <prefix>/<origin>/<size>.checkpoint. Listings must be sorted by key, as those
// of general purpose buckets are.
type bucket struct {
	keeper
	client     *s3.Client
	http       *http.Client
	name       string
	folder     string // ends in /
	noLatest   bool
	retainDays int
	now        func() time.Time
	locks      atomic.Bool // the server was seen to lock what it was told to
}

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	regionName = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)
	prefixPath = regexp.MustCompile(`^[A-Za-z0-9_=.-]+(/[A-Za-z0-9_=.-]+)*$`)
	accessKey  = regexp.MustCompile(`^[\x21-\x7e]{1,128}$`)
)

func validS3(c Config) error {
	switch {
	case !bucketName.MatchString(c.Address):
		return fault.Invalid("address", "bucket_malformed", "anchor: %.80q is no name of a bucket", c.Address)
	case !regionName.MatchString(c.Region):
		return fault.Invalid("region", "region_malformed", "anchor: bucket %s: %.40q is no region: it reads like eu-central-1", c.Address, c.Region)
	case c.Prefix != "" && (len(c.Prefix) > 256 || !prefixPath.MatchString(c.Prefix)):
		return fault.Invalid("prefix", "prefix_malformed", "anchor: bucket %s: the prefix %.80q is not made of letters, digits and _=.- with single slashes between", c.Address, c.Prefix)
	case !accessKey.MatchString(c.AccessKey):
		return fault.Invalid("access_key", "access_key_malformed", "anchor: bucket %s needs the id of an access key", c.Address)
	case c.Secret.IsZero():
		return fault.Invalid("secret", "secret_required", "anchor: bucket %s needs the secret of the access key", c.Address)
	case c.RetainDays < 0 || c.RetainDays > MaxRetainDays:
		return fault.Invalid("retain_days", "retain_days_out_of_bounds", "anchor: bucket %s: objects can be locked for 0 to %d days, not %d", c.Address, MaxRetainDays, c.RetainDays)
	case c.RetainDays > 0 && c.Now == nil:
		return fault.Invalid("now", "clock_required", "anchor: bucket %s: a lock of %d days needs a clock", c.Address, c.RetainDays)
	}
	if err := validHeader("secret", c.Secret); err != nil {
		return err
	}
	if c.Endpoint == "" {
		return nil
	}
	u, err := parseURL("endpoint", c.Endpoint)
	if err != nil {
		return err
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return fault.Invalid("endpoint", "endpoint_has_path", "anchor: bucket %s: the endpoint at %s is a host only, without path and query", c.Address, u.Host)
	}
	return nil
}

func openS3(c Config) (Anchor, error) {
	place := "the anchor bucket " + c.Address
	if u, err := url.Parse(c.Endpoint); err == nil && u.Host != "" {
		place += " at " + u.Host
	}
	client := newClient(c.CAs)
	client.Transport = bounded{client.Transport}
	key := c.Secret
	options := s3.Options{
		Region:       c.Region,
		UsePathStyle: c.PathStyle,
		HTTPClient:   client,
		Retryer:      aws.NopRetryer{}, // the Pusher retries
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: c.AccessKey, SecretAccessKey: key.RevealString()}, nil
		}),
	}
	if c.Endpoint != "" {
		options.BaseEndpoint = aws.String(c.Endpoint)
	}
	folder := escape(c.Origin) + "/"
	if c.Prefix != "" {
		folder = c.Prefix + "/" + folder
	}
	return &bucket{
		keeper: newKeeper(c, place), client: s3.New(options), http: client, name: c.Address, folder: folder,
		noLatest: c.NoLatest, retainDays: c.RetainDays, now: c.Now,
	}, nil
}

// bounded cuts replies that have no end.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := b.RoundTripper.RoundTrip(req)
	if err == nil {
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(res.Body, maxReply), res.Body}
	}
	return res, err
}

// CloseIdleConnections makes http.Client's reach the transport.
func (b bounded) CloseIdleConnections() {
	if t, ok := b.RoundTripper.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

// Push asks for what lies at this size and beyond, and writes only when there is
// nothing: so a server that does not know If-None-Match overwrites nothing
// either, except in a race.
func (b *bucket) Push(ctx context.Context, cp trail.Checkpoint, signed string) error {
	if err := b.mine(cp, signed); err != nil {
		return err
	}
	sizes, more, err := b.list(ctx, cp.Size-1)
	if err != nil {
		return err
	}
	exists := false
	for _, size := range sizes {
		exists = exists || size == cp.Size
	}
	if n := len(sizes); n > 0 && sizes[n-1] > cp.Size {
		if err := b.compareAtKey(ctx, sizes[n-1], cp); err != nil {
			return err
		}
	} else if n == 0 && more {
		return b.garbage()
	}
	if !exists {
		if err := b.put(ctx, sizeName(cp.Size), signed, true); err != nil && !taken(err) {
			return b.failed("write "+sizeName(cp.Size), err)
		}
	}
	// Read back what is there now: somebody else's, or ours. Not every server that
	// answers 200 keeps things.
	if err := b.compareAtKey(ctx, cp.Size, cp); err != nil {
		return err
	}
	if err := b.locked(ctx, cp.Size); err != nil {
		return err
	}
	if b.noLatest {
		return nil
	}
	if err := b.put(ctx, latest, signed, false); err != nil {
		return b.failed("write "+latest, err)
	}
	return nil
}

// locked looks once whether the server did lock an object: some take the headers
// of a lock, and forget them.
func (b *bucket) locked(ctx context.Context, size int64) error {
	if b.retainDays == 0 || b.locks.Load() {
		return nil
	}
	name := sizeName(size)
	out, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: aws.String(b.folder + name)})
	if err != nil {
		return b.failed("look at the lock of "+name, err)
	}
	if out.ObjectLockMode != types.ObjectLockModeCompliance || !aws.ToTime(out.ObjectLockRetainUntilDate).After(b.now()) {
		return fault.New(fault.ErrRejected, "anchor_not_locked", "%s took %s and did not lock it: make the bucket with object lock, and allow s3:PutObjectRetention and s3:GetObjectRetention", b.place, name)
	}
	b.locks.Store(true)
	return nil
}

func (b *bucket) compareAtKey(ctx context.Context, size int64, cp trail.Checkpoint) error {
	name := sizeName(size)
	held, err := b.get(ctx, name)
	if err != nil {
		return b.failed("read "+name, err)
	}
	return b.compareAt(name, held, size, cp)
}

func (b *bucket) put(ctx context.Context, name, text string, fresh bool) error {
	// A checksum of our own: servers know this header that don't know trailers, and
	// object lock asks for one.
	sum := sha256.Sum256([]byte(text))
	in := &s3.PutObjectInput{
		Bucket: &b.name, Key: aws.String(b.folder + name),
		Body: strings.NewReader(text), ContentLength: aws.Int64(int64(len(text))),
		ContentType:    aws.String("text/plain; charset=utf-8"),
		ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
	}
	if fresh {
		in.IfNoneMatch = aws.String("*")
		if b.retainDays > 0 {
			in.ObjectLockMode = types.ObjectLockModeCompliance
			in.ObjectLockRetainUntilDate = aws.Time(b.now().UTC().AddDate(0, 0, b.retainDays))
		}
	}
	_, err := b.client.PutObject(ctx, in)
	return err
}

func (b *bucket) get(ctx context.Context, name string) (string, error) {
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: aws.String(b.folder + name)})
	if err != nil {
		return "", err
	}
	defer out.Body.Close()
	text, err := io.ReadAll(io.LimitReader(out.Body, maxBody+1))
	return string(text), err
}

// list returns the sizes above after of which there are checkpoints, ascending,
// at most maxKeys; more says that there are more keys.
func (b *bucket) list(ctx context.Context, after int64) (sizes []int64, more bool, err error) {
	in := &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &b.folder, MaxKeys: aws.Int32(maxKeys)}
	if after >= 0 {
		in.StartAfter = aws.String(b.folder + sizeName(after))
	}
	out, err := b.client.ListObjectsV2(ctx, in)
	if err != nil {
		return nil, false, b.failed("list "+b.folder, err)
	}
	last := after
	for _, o := range out.Contents {
		name, ok := strings.CutPrefix(aws.ToString(o.Key), b.folder)
		if size, isSize := parseSize(name); ok && isSize {
			if size <= last {
				return nil, false, fault.New(fault.ErrRejected, "anchor_unsorted", "%s: its listing is not sorted by key: it must be a general purpose bucket", b.place)
			}
			sizes = append(sizes, size)
			last = size
		}
	}
	return sizes, aws.ToBool(out.IsTruncated), nil
}

// Newest starts from what `latest` says and looks for what is beyond. Without a
// hint that holds, it halves the range of sizes: at most 64 listings.
func (b *bucket) Newest(ctx context.Context) (string, error) {
	low, err := b.hint(ctx)
	if err != nil {
		return "", err
	}
	high := int64(math.MaxInt64)
	for at := low; ; at = low + (high-low)/2 {
		sizes, more, err := b.list(ctx, at)
		if err != nil {
			return "", err
		}
		if len(sizes) == 0 && more {
			return "", b.garbage()
		}
		if len(sizes) == 0 {
			high = at
		} else {
			low = sizes[len(sizes)-1]
		}
		if low >= high || len(sizes) > 0 && !more {
			break
		}
	}
	if low < 0 {
		return "", b.empty()
	}
	name := sizeName(low)
	held, err := b.get(ctx, name)
	if err != nil {
		return "", b.failed("read "+name, err)
	}
	cp, err := b.read(name, held)
	if err == nil {
		err = b.compareAt(name, held, low, cp)
	}
	if err != nil {
		return "", err
	}
	return held, nil
}

// hint returns the size that `latest` names, if there is a checkpoint of that
// size; -1 if not.
func (b *bucket) hint(ctx context.Context) (int64, error) {
	held, err := b.get(ctx, latest)
	if err != nil {
		if missing(err) {
			return -1, nil
		}
		return 0, b.failed("read "+latest, err)
	}
	cp, err := b.read(latest, held)
	if err != nil {
		return -1, nil //nolint:nilerr // latest can be written by all: without it the search is only longer
	}
	if _, err := b.get(ctx, sizeName(cp.Size)); err != nil {
		if missing(err) {
			return -1, nil
		}
		return 0, b.failed("read "+sizeName(cp.Size), err)
	}
	return cp.Size, nil
}

func (b *bucket) Close() error {
	b.http.CloseIdleConnections()
	return nil
}

func (b *bucket) garbage() error {
	return fault.New(fault.ErrRejected, "anchor_garbage", "%s: over %d objects under %s are no checkpoints: see who wrote them", b.place, maxKeys, b.folder)
}

// taken reports that the key of a conditional write exists, or is being written.
func taken(err error) bool {
	e, ok := errors.AsType[smithy.APIError](err)
	return ok && (e.ErrorCode() == "PreconditionFailed" || e.ErrorCode() == "ConditionalRequestConflict")
}

func missing(err error) bool {
	e, ok := errors.AsType[smithy.APIError](err)
	return ok && (e.ErrorCode() == "NoSuchKey" || e.ErrorCode() == "NotFound")
}

// failed says what a server's error means. Its message is left out: it may
// repeat what was sent.
func (b *bucket) failed(what string, err error) error {
	place := fmt.Sprintf("%s: %s", b.place, what)
	api, isAPI := errors.AsType[smithy.APIError](err)
	res, hasRes := errors.AsType[*smithyhttp.ResponseError](err)
	switch {
	case hasRes && res.HTTPStatusCode() >= 300:
		if isAPI {
			place = fmt.Sprintf("%s: the server says %.60q and", place, api.ErrorCode())
		}
		if isAPI && (api.ErrorCode() == "NotImplemented" || api.ErrorCode() == "NoSuchBucket") {
			return fault.New(fault.ErrRejected, "anchor_refused", "%s answered %d: look at the bucket's name, and whether the server knows conditional writes and object lock", place, res.HTTPStatusCode())
		}
		if isAPI && api.ErrorCode() == "SlowDown" {
			return refused(place, http.StatusTooManyRequests)
		}
		return refused(place, res.HTTPStatusCode())
	case hasRes && res.HTTPStatusCode() > 0:
		return fault.New(fault.ErrRejected, "anchor_garbage", "%s: the server's answer %d can't be read: is it an S3 server?", place, res.HTTPStatusCode())
	default:
		return unreached(place, err)
	}
}

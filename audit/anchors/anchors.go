package anchors

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

// The kinds of anchors.
const (
	File    = "file"
	Webhook = "webhook"
	S3      = "s3"
)

// maxBody is the most that is read of a checkpoint or a reply, in bytes.
const maxBody = 64 << 10

// The reasons of alarms, all of kind fault.ErrChanged: somebody holds a history
// that is not this log's.
const (
	ReasonAnchorFork   = "anchor_fork"
	ReasonAnchorAhead  = "anchor_ahead"
	ReasonWitnessFork  = "witness_fork"
	ReasonWitnessAhead = "witness_ahead"
)

// Anchor is a place that keeps checkpoints of one log. Methods are safe for
// concurrent use.
type Anchor interface {
	// Push brings a checkpoint, signed, to the place. It returns nil once the place
	// holds it durably, also when it held it before. It may be repeated at any time.
	//
	// Errors: fault.ErrChanged with reason "anchor_fork" or "anchor_ahead" (see the
	// package comment); fault.ErrDenied (credentials), fault.ErrRejected (refused,
	// or the place holds garbage), fault.ErrLimited, fault.ErrUnavailable (retry).
	Push(ctx context.Context, cp trail.Checkpoint, signed string) error

	// Newest returns the signed checkpoint of the largest size that the place holds.
	// fault.ErrNotFound: it holds none, or can't be read (webhook).
	Newest(ctx context.Context) (signed string, err error)

	// Close releases connections and files. Nothing else may be called afterwards.
	Close() error
}

// Config describes an anchor.
type Config struct {
	Kind   string // File, Webhook or S3
	Origin string // the log's name; required: an anchor keeps one log
	Check  Check  // what tells this log's checkpoints from others; recommended

	// Address is where: an absolute folder that exists (file), an https URL
	// (webhook), or the name of a bucket (s3).
	Address string

	// Secret is sent as bearer token (webhook; may be empty), or is the secret
	// access key (s3).
	Secret secret.Value

	// NoLatest leaves out `latest`: for places where nothing can be replaced.
	NoLatest bool

	// For s3.
	Prefix     string // of all keys: "trail"; may be empty
	Region     string // "eu-central-1"
	Endpoint   string // https URL of an S3-compatible server; empty: AWS
	PathStyle  bool   // bucket in the path, not in the host name
	AccessKey  string // the id of the access key
	RetainDays int    // object lock, mode COMPLIANCE; 0: what the bucket says

	// CAs are the roots that the server's certificate must chain to. Default: the
	// system's. For webhook and s3.
	CAs *x509.CertPool

	// Now is the wall clock; required with RetainDays.
	Now func() time.Time
}

// Check verifies a signed checkpoint as one of this log: usually [trail.Keys.Open].
type Check func(signed string) (trail.Checkpoint, error)

// MaxRetainDays bounds how long an object can be locked: nobody can undo it.
const MaxRetainDays = 100 * 366

// Validate tells what is wrong with a configuration, without touching the place:
// fault.ErrInvalid with field and reason.
func Validate(c Config) error {
	if err := validOrigin(c.Origin); err != nil {
		return err
	}
	switch c.Kind {
	case File:
		if !filepath.IsAbs(c.Address) || filepath.Clean(c.Address) != c.Address {
			return fault.Invalid("address", "folder_not_absolute", "anchor: the folder %q is not an absolute, clean path", c.Address)
		}
		if n := len(escape(c.Origin)); n > 200 {
			return fault.Invalid("origin", "origin_too_long", "anchor: the log's name has %d bytes once it is escaped as a folder's name, and at most 200 fit", n)
		}
	case Webhook:
		if _, err := parseURL("address", c.Address); err != nil {
			return err
		}
		if err := validHeader("secret", c.Secret); err != nil {
			return err
		}
		if c.NoLatest {
			return foreign("no_latest", c.Kind)
		}
	case S3:
		return validS3(c)
	default:
		return fault.Invalid("kind", "kind_unknown", "anchor: there is no kind %.40q: it is file, webhook or s3", c.Kind)
	}
	switch {
	case c.Prefix != "":
		return foreign("prefix", c.Kind)
	case c.Region != "":
		return foreign("region", c.Kind)
	case c.Endpoint != "":
		return foreign("endpoint", c.Kind)
	case c.PathStyle:
		return foreign("path_style", c.Kind)
	case c.AccessKey != "":
		return foreign("access_key", c.Kind)
	case c.RetainDays != 0:
		return foreign("retain_days", c.Kind)
	case c.Kind == File && !c.Secret.IsZero():
		return foreign("secret", c.Kind)
	}
	return nil
}

// foreign refuses a setting that the kind would ignore: somebody believes that
// it protects them.
func foreign(field, kind string) error {
	return fault.Invalid(field, "not_of_this_kind", "anchor: %s means nothing for kind %s: leave it out", field, kind)
}

func validOrigin(origin string) error {
	if origin == "" || len(origin) > 255 || !utf8.ValidString(origin) || strings.ContainsFunc(origin, unicode.IsSpace) || strings.ContainsFunc(origin, unicode.IsControl) {
		return fault.Invalid("origin", "origin_malformed", "anchor: %.80q is no name of a log: it has 1 to 255 bytes and no space", origin)
	}
	return nil
}

// validHeader refuses a secret that can't stand in an HTTP header.
func validHeader(field string, v secret.Value) error {
	if v.Len() > 4096 {
		return fault.Invalid(field, "secret_too_long", "anchor: the secret has %d bytes, and at most 4096 can be sent", v.Len())
	}
	for _, b := range v.Reveal() {
		if b <= ' ' || b > '~' {
			return fault.Invalid(field, "secret_malformed", "anchor: the secret holds a byte that can't be sent in a header: is there a line end at its end?")
		}
	}
	return nil
}

// Open opens an anchor. It may touch the place, but writes nothing to it.
func Open(c Config) (Anchor, error) {
	if err := Validate(c); err != nil {
		return nil, err
	}
	switch c.Kind {
	case File:
		return openFile(c)
	case Webhook:
		return openWebhook(c)
	default:
		return openS3(c)
	}
}

// keeper is what anchors that can be read have in common.
type keeper struct {
	place  string // for messages
	origin string
	check  Check
}

func newKeeper(c Config, place string) keeper {
	k := keeper{place: place, origin: c.Origin, check: c.Check}
	if k.check == nil {
		k.check = parseOnly
	}
	return k
}

// parseOnly reads a signed checkpoint without verifying who signed it.
func parseOnly(signed string) (trail.Checkpoint, error) {
	text, _, ok := strings.Cut(signed, "\n\n")
	if !ok {
		return trail.Checkpoint{}, errors.New("it is no signed note")
	}
	return trail.ParseCheckpoint(text + "\n")
}

// mine refuses what is not ours to push.
func (k keeper) mine(cp trail.Checkpoint, signed string) error {
	switch {
	case cp.Origin != k.origin:
		return fault.Invalid("origin", "origin_differs", "%s keeps checkpoints of %s, and this one is of %.80q", k.place, k.origin, cp.Origin)
	case len(signed) > maxBody:
		return fault.Invalid("signed", "checkpoint_too_long", "%s: the signed checkpoint has %d bytes, and at most %d are read back", k.place, len(signed), maxBody)
	}
	if got, err := parseOnly(signed); err != nil || got != cp {
		return fault.Invalid("signed", "checkpoint_differs", "%s: the signed note is not of the checkpoint at size %d", k.place, cp.Size)
	}
	return nil
}

// read verifies what the place holds under a name.
func (k keeper) read(name, signed string) (trail.Checkpoint, error) {
	if len(signed) > maxBody {
		return trail.Checkpoint{}, fault.New(fault.ErrRejected, "anchor_garbage", "%s: %s has over %d bytes: it is no checkpoint; see who wrote it", k.place, name, maxBody)
	}
	cp, err := k.check(signed)
	if err == nil && cp.Origin != k.origin {
		err = fmt.Errorf("it is of another log, %.80q", cp.Origin)
	}
	if err != nil {
		return cp, fault.New(fault.ErrRejected, "anchor_garbage", "%s: %s is no checkpoint of %s: %w; see who wrote it", k.place, name, k.origin, err)
	}
	return cp, nil
}

// compare says whether the place may hold what it holds beside cp.
func (k keeper) compare(name, held string, cp trail.Checkpoint) error {
	got, err := k.read(name, held)
	switch {
	case err != nil:
		return err
	case got.Size == cp.Size && got.Root != cp.Root:
		return k.fork(fmt.Sprintf("its root there is %v, here %v", got.Root, cp.Root), cp)
	case got.Size > cp.Size:
		return k.ahead(got.Size, cp)
	}
	return nil
}

// compareAt is compare for what lies under the name of its size.
func (k keeper) compareAt(name, held string, size int64, cp trail.Checkpoint) error {
	got, err := k.read(name, held)
	if err == nil && got.Size != size {
		return fault.New(fault.ErrRejected, "anchor_garbage", "%s: %s holds a checkpoint of size %d: it was renamed; see who did", k.place, name, got.Size)
	}
	if err != nil {
		return err
	}
	return k.compare(name, held, cp)
}

func (k keeper) fork(how string, cp trail.Checkpoint) error {
	return fault.New(fault.ErrChanged, ReasonAnchorFork, "%s holds another checkpoint of %s at size %d: %s: this log has two histories; keep both, and find out which is true", k.place, k.origin, cp.Size, how)
}

func (k keeper) ahead(size int64, cp trail.Checkpoint) error {
	return fault.New(fault.ErrChanged, ReasonAnchorAhead, "%s holds a checkpoint of %s at size %d, and the log's newest is of size %d: this log went back: was an old backup restored?", k.place, k.origin, size, cp.Size)
}

const (
	suffix     = ".checkpoint"
	latest     = "latest"
	sizeDigits = 19 // of the largest int64, so that names sort by size
)

func sizeName(size int64) string { return fmt.Sprintf("%0*d%s", sizeDigits, size, suffix) }

// parseSize is the inverse of sizeName.
func parseSize(name string) (int64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	size, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || size < 0 || sizeName(size) != name {
		return 0, false
	}
	return size, true
}

// escape makes one name of a folder of a log's name, in any file system: bytes
// other than letters, digits, '-', '_' and inner dots become %XX.
func escape(origin string) string {
	var b strings.Builder
	for i := range len(origin) {
		switch c := origin[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.' && i > 0 && i < len(origin)-1:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

package redis

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// magic begins a marker: "RTND".
const magic = "52544e44"

// counter is where generations and epochs end, in the six bytes that each has.
const counter = int64(1) << 48

type marker struct {
	Rotation   string // a UUID, lower case
	Generation int64
	Epoch      int64
}

// encode is the marker as an entry of a password list: 64 digits.
func (m marker) encode() (string, error) {
	id, err := hex.DecodeString(strings.ReplaceAll(m.Rotation, "-", ""))
	if err != nil || len(id) != 16 || uuid(id) != m.Rotation || m.Generation < 0 || m.Generation >= counter || m.Epoch < 0 || m.Epoch >= counter {
		return "", fault.Invalid("rotation", "rotation_malformed", "the id of a rotation is a UUID in lower case, its generation and epoch are less than 2^48")
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(m.Generation))[2:]
	b = append(b, binary.BigEndian.AppendUint64(nil, uint64(m.Epoch))[2:]...)
	return magic + hex.EncodeToString(id) + hex.EncodeToString(b), nil
}

// decode reads an entry of a password list; ok is false for the hash of a password.
func decode(entry string) (m marker, ok bool) {
	b, err := hex.DecodeString(entry)
	if err != nil || len(b) != sha256.Size || !strings.HasPrefix(entry, magic) {
		return marker{}, false
	}
	number := func(b []byte) int64 {
		return int64(binary.BigEndian.Uint64(append([]byte{0, 0}, b...)))
	}
	return marker{uuid(b[4:20]), number(b[20:26]), number(b[26:32])}, true
}

func uuid(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// hash is what Redis keeps of a password.
func hash(password string) string {
	sum := sha256.Sum256([]byte(password))
	return hex.EncodeToString(sum[:])
}

// user is an ACL user as a node has it.
type user struct {
	flags   []string
	hashes  []string // of passwords
	markers []string // as they are in the list
	marker  marker   // the newest
	marked  bool
}

func newUser(flags, entries []string) user {
	u := user{flags: flags}
	for _, entry := range entries {
		m, ok := decode(entry)
		if !ok {
			u.hashes = append(u.hashes, entry)
			continue
		}
		u.markers = append(u.markers, entry)
		if !u.marked || m.Generation > u.marker.Generation || m.Generation == u.marker.Generation && m.Epoch > u.marker.Epoch {
			u.marker, u.marked = m, true
		}
	}
	return u
}

// fence refuses a change when a newer lease, a newer generation, or another rotation of
// the same generation has been at work on the user.
func (u user) fence(name string, c providers.Change) error {
	m := u.marker
	switch {
	case !u.marked:
		return nil
	case m.Generation > c.Generation, m.Generation == c.Generation && m.Rotation != c.Rotation:
		return fault.New(fault.ErrStale, "generation_passed", "the user %q has a value of generation %d, rotation %s; this is generation %d, rotation %s: "+
			"if that value came from elsewhere (another credential, a restored database), remove the entry that begins with %s from the user's password hashes and retry",
			name, m.Generation, m.Rotation, c.Generation, c.Rotation, magic)
	case m.Epoch > c.Epoch:
		return fault.New(fault.ErrStale, "epoch_passed", "the user %q was changed under epoch %d, this call is of epoch %d: another process has taken the rotation over", name, m.Epoch, c.Epoch)
	}
	return nil
}

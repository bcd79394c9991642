package trail

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

// algCosignatureV1 is the signature type of cosignature/v1 in vkeys and key ids
// (C2SP tlog-cosignature, "Format").
const algCosignatureV1 = 0x04

// maxNote bounds a signed note with its cosignatures, in bytes.
const maxNote = 64 << 10

// ErrCosignature says that a note holds no valid cosignature of a witness.
var ErrCosignature = errors.New("not cosigned")

// Witness is somebody who follows logs and cosigns the checkpoints that extend
// what it saw before (C2SP tlog-witness). Two histories of one log, each shown
// to other people, need a witness that signs both. The zero Witness verifies
// nothing.
type Witness struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

// ParseWitness reads a witness's vkey: name+hash+base64, where base64 is of 0x04
// and the 32 bytes of an Ed25519 key (C2SP signed-note, "Verifier keys").
func ParseWitness(vkey string) (Witness, error) {
	fail := func(why string) (Witness, error) {
		return Witness{}, fmt.Errorf("read the witness key: %s: it has the form name+hash+base64", why)
	}
	name, rest, ok := strings.Cut(vkey, "+")
	id, b64, ok2 := strings.Cut(rest, "+")
	switch {
	case !ok || !ok2:
		return fail("a part is missing")
	case name == "" || len(name) > 255 || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsSpace):
		return fail("its name is empty, too long, or has a space in it")
	}
	hash, err := strconv.ParseUint(id, 16, 32)
	if err != nil || len(id) != 8 {
		return fail("its hash is not 8 hex digits")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(b64)
	switch {
	case err != nil || strings.ContainsAny(b64, "\r\n"):
		return fail("its key is not in base64")
	case len(raw) > 0 && raw[0] == 0x01:
		return fail("it is the key of a log (type 1), and a witness has type 4")
	case len(raw) != 1+ed25519.PublicKeySize || raw[0] != algCosignatureV1:
		return fail("only Ed25519 keys for cosignature/v1 (type 4) are understood")
	}
	sum := sha256.Sum256([]byte(name + "\n" + string(raw)))
	if want := binary.BigEndian.Uint32(sum[:4]); want != uint32(hash) {
		return fail(fmt.Sprintf("its hash should be %08x: name or key was altered", want))
	}
	return Witness{name: name, hash: uint32(hash), key: raw[1:]}, nil
}

// Name returns the witness's name, as its signature lines have it.
func (w Witness) Name() string { return w.name }

// String returns the vkey.
func (w Witness) String() string {
	raw := append([]byte{algCosignatureV1}, w.key...)
	return fmt.Sprintf("%s+%08x+%s", w.name, w.hash, base64.StdEncoding.EncodeToString(raw))
}

// Verify returns when the witness says that it saw the checkpoint: the time of
// its cosignature on exactly this note's text, in whole seconds UTC. It does not
// verify the log's own signature: see [Keys.Open]. Errors are [ErrCosignature].
//
// Of several cosignatures by one witness only the first counts, and the note is
// refused when that one is wrong, as everywhere in signed notes.
func (w Witness) Verify(signedNote string) (time.Time, error) {
	if len(w.key) != ed25519.PublicKeySize {
		return time.Time{}, fmt.Errorf("%w: no witness was given", ErrCosignature)
	}
	if len(signedNote) > maxNote {
		return time.Time{}, fmt.Errorf("%w: the note has %d bytes, and at most %d are read", ErrCosignature, len(signedNote), maxNote)
	}
	n, err := note.Open([]byte(signedNote), note.VerifierList(cosigner{w}))
	if err != nil {
		if _, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
			return time.Time{}, fmt.Errorf("%w by %s+%08x: its signatures are by %s", ErrCosignature, w.name, w.hash, signers(signedNote))
		}
		return time.Time{}, fmt.Errorf("%w by %s+%08x: %w", ErrCosignature, w.name, w.hash, err)
	}
	if _, err := ParseCheckpoint(n.Text); err != nil {
		return time.Time{}, fmt.Errorf("%w: the note is no checkpoint: %w", ErrCosignature, err)
	}
	raw, err := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
	if err != nil || len(raw) != 4+cosignatureSize {
		return time.Time{}, fmt.Errorf("%w by %s+%08x: the signature has another length", ErrCosignature, w.name, w.hash)
	}
	at, _ := timestamp(raw[4:])
	return time.Unix(at, 0).UTC(), nil
}

// CountWitnesses returns how many of the witnesses cosigned the note, and why
// each of the others does not count (nil when all did). A key counts once, under
// however many names it is given: a cosignature does not commit to the name.
func CountWitnesses(signed string, witnesses []Witness) (n int, missing error) {
	seen := map[string]bool{}
	var errs []error
	for _, w := range witnesses {
		if _, err := w.Verify(signed); err != nil {
			errs = append(errs, err)
			continue
		}
		if seen[string(w.key)] {
			errs = append(errs, fmt.Errorf("%w: the key of witness %s is given twice", ErrCosignature, w.name))
			continue
		}
		seen[string(w.key)] = true
	}
	return len(seen), errors.Join(errs...)
}

const cosignatureSize = 8 + ed25519.SignatureSize

// cosigner makes package note verify cosignatures.
type cosigner struct{ w Witness }

func (c cosigner) Name() string    { return c.w.name }
func (c cosigner) KeyHash() uint32 { return c.w.hash }

func (c cosigner) Verify(text, sig []byte) bool {
	at, ok := timestamp(sig)
	return ok && ed25519.Verify(c.w.key, cosignedMessage(at, text), sig[8:])
}

// timestamp reads the time of a timestamped_signature, in seconds.
func timestamp(sig []byte) (int64, bool) {
	if len(sig) != cosignatureSize {
		return 0, false
	}
	at := binary.BigEndian.Uint64(sig)
	if at > math.MaxInt64 {
		return 0, false
	}
	return int64(at), true
}

// cosignedMessage is what a cosignature/v1 signs (C2SP tlog-cosignature,
// "Ed25519 signed message").
func cosignedMessage(at int64, text []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "cosignature/v1\ntime %d\n", at)
	b.Write(text)
	return b.Bytes()
}

package trail

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint is a tree that the log stands by (C2SP tlog-checkpoint).
type Checkpoint struct {
	Origin string
	Size   int64
	Root   tlog.Hash
}

// Text returns the note text that is signed: origin, size and root, a line each.
func (c Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// ParseCheckpoint reads a checkpoint's text. It verifies no signature: see
// [Keys.Open]. Extension lines, which C2SP allows, are passed over.
func ParseCheckpoint(text string) (Checkpoint, error) {
	var c Checkpoint
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) < 4 || lines[0] == "" || len(lines[0]) > 255 {
		return c, errors.New("a checkpoint has three lines: origin, size and root hash")
	}
	c.Origin = lines[0]
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return c, fmt.Errorf("the checkpoint's size %.20q is no number", lines[1])
	}
	c.Size = size
	if c.Root, err = parseHash(lines[2]); err != nil {
		return c, fmt.Errorf("the checkpoint's root hash can't be read: %w", err)
	}
	return c, nil
}

// Handover is the log's word that its checkpoints are signed by another key from
// a size on. The note is signed by both keys:
//
//	rotunda trail key handover
//	<origin>
//	<vkey of the key that ends>
//	<vkey of the key that follows>
//	<the last size that the old key signs>
type Handover struct {
	Origin string // the name of To; that of From too, or that with a "~" and what follows it cut off
	From   string // vkey (golang.org/x/mod/sumdb/note)
	To     string
	Size   int64
}

const handoverTitle = "rotunda trail key handover"

// Text returns the note text of a handover.
func (h Handover) Text() string {
	return fmt.Sprintf("%s\n%s\n%s\n%s\n%d\n", handoverTitle, h.Origin, h.From, h.To, h.Size)
}

func parseHandover(text string) (Handover, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 6 || lines[0] != handoverTitle || lines[5] != "" {
		return Handover{}, errors.New("it is not a handover of a trail key")
	}
	size, err := strconv.ParseInt(lines[4], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[4] {
		return Handover{}, errors.New("its size is no number")
	}
	return Handover{Origin: lines[1], From: lines[2], To: lines[3], Size: size}, nil
}

// Keys are the keys that a verifier trusts: those that it was given, and those
// that these handed over to.
type Keys struct {
	keys []span
}

// span is a key and the sizes of trees that it may sign.
type span struct {
	vkey     string
	verifier note.Verifier
	from, to int64 // to: inclusive; -1: no end
}

// ParseKeys reads vkeys, one per line; empty lines and lines that begin with #
// are passed over.
func ParseKeys(text string) (*Keys, error) {
	k := &Keys{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		v, err := note.NewVerifier(line)
		if err != nil { // the line may be of another file, and secret
			return nil, fmt.Errorf("read the trail's public key, line %d: %w: it has the form name+hash+base64", i+1, err)
		}
		if k.find(line) == nil { // note refuses a list that has a key twice
			k.keys = append(k.keys, span{vkey: line, verifier: v, to: -1})
		}
	}
	if len(k.keys) == 0 {
		return nil, errors.New("read the trail's public key: there is none: save it with `rotunda audit key` while you trust the server")
	}
	return k, nil
}

// Follow adds the keys of handover notes, in order, as far as a trusted key
// signed them, and ends the keys that handed over, also when both were given.
// Notes between keys that are not trusted add nothing; a note that was followed
// before changes nothing. A key hands over once: who steals an old key can't
// name another successor.
func (k *Keys) Follow(handovers []string) error {
	for i, signed := range handovers {
		bad := func(format string, args ...any) error {
			return fmt.Errorf("handover %d of the trail's keys "+format, append([]any{i + 1}, args...)...)
		}
		text, _, ok := strings.Cut(signed, "\n\n")
		if !ok {
			return bad("can't be read: it has no signatures")
		}
		h, err := parseHandover(text + "\n")
		if err != nil {
			return bad("can't be read: %w", err)
		}
		old := k.find(h.From)
		if old == nil {
			continue
		}
		to, err := note.NewVerifier(h.To)
		if err != nil {
			return bad("names a key that can't be read: %w", err)
		}
		for _, v := range []note.Verifier{old.verifier, to} {
			n, err := note.Open([]byte(signed), note.VerifierList(v))
			if err != nil || n.Text != h.Text() {
				return bad("to %s: the signature of %s does not verify: the key history was altered", to.Name(), v.Name())
			}
		}
		next := k.find(h.To)
		switch {
		case h.Origin != to.Name() || base(h.Origin) != base(old.verifier.Name()):
			return bad("is of %.120q, and its keys are of %q and %q: it is another log's", h.Origin, old.verifier.Name(), to.Name())
		case next != nil && next != old && old.to == h.Size && next.from == h.Size:
			continue // followed before
		case old.to >= 0:
			return bad("hands over a key that was handed over before: the key history forks, or an old key was stolen")
		case next != nil && (next == old || next.to >= 0):
			return bad("goes back to a key that has ended: the key history was altered")
		case h.Size < old.from:
			return bad("ends a key before it began")
		}
		old.to = h.Size
		if next != nil {
			next.from = h.Size
			continue
		}
		k.keys = append(k.keys, span{vkey: h.To, verifier: to, from: h.Size, to: -1})
	}
	return nil
}

// base is an origin without what a restart of the log added: a log that lost its
// end, as after a restored backup, goes on under "<origin>~<random>", so that
// nothing that was signed is signed again with another content.
func base(origin string) string {
	b, _, _ := strings.Cut(origin, "~")
	return b
}

func (k *Keys) find(vkey string) *span {
	for i := range k.keys {
		if k.keys[i].vkey == vkey {
			return &k.keys[i]
		}
	}
	return nil
}

// List returns the vkeys, oldest first.
func (k *Keys) List() []string {
	var out []string
	for _, s := range k.keys {
		out = append(out, s.vkey)
	}
	return out
}

// ErrSignature says that no trusted key signed a checkpoint.
var ErrSignature = errors.New("no key that you trust signed the checkpoint")

// Open verifies a signed checkpoint: a trusted key must have signed it that was
// the log's at that size, and the key's name must be the checkpoint's origin.
func (k *Keys) Open(signed string) (Checkpoint, error) {
	var all []note.Verifier
	for _, s := range k.keys {
		all = append(all, s.verifier)
	}
	n, err := note.Open([]byte(signed), note.VerifierList(all...))
	if err != nil {
		if _, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
			return Checkpoint{}, fmt.Errorf("%w: its signatures are by %s, you trust %s", ErrSignature, signers(signed), strings.Join(k.names(), ", "))
		}
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return c, err
	}
	for _, sig := range n.Sigs {
		for _, s := range k.keys {
			if s.verifier.Name() == sig.Name && s.verifier.KeyHash() == sig.Hash && sig.Name == c.Origin && c.Size >= s.from && (s.to < 0 || c.Size <= s.to) {
				return c, nil
			}
		}
	}
	return c, fmt.Errorf("%w: it is of size %d and origin %q, for which the key that signed it does not stand (a key that was handed over, or of another log)", ErrSignature, c.Size, c.Origin)
}

func (k *Keys) names() []string {
	var out []string
	for _, s := range k.keys {
		out = append(out, fmt.Sprintf("%s+%08x", s.verifier.Name(), s.verifier.KeyHash()))
	}
	return out
}

// signers lists who signed a note, as its signature lines say, unverified.
func signers(signed string) string {
	_, sigs, _ := strings.Cut(signed, "\n\n")
	var out []string
	for _, line := range strings.Split(strings.TrimSpace(sigs), "\n") {
		name, sig, _ := strings.Cut(strings.TrimPrefix(line, "— "), " ")
		if raw, err := base64.StdEncoding.DecodeString(sig); err == nil && len(raw) > 4 {
			name = fmt.Sprintf("%s+%x", name, raw[:4])
		}
		if len(out) < 8 {
			out = append(out, fmt.Sprintf("%.120q", name))
		}
	}
	return strings.Join(out, ", ")
}

package trail

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Proof shows that a leaf stands at an index of the tree of a checkpoint, in the
// form that C2SP specifies: https://c2sp.org/tlog-proof.
type Proof struct {
	Extra      []byte           // of Rotunda's proofs: the event's JSON record. Nothing vouches for it but the leaf hash
	Index      int64            // of the leaf
	Hashes     tlog.RecordProof // from the leaf's sibling up
	Checkpoint string           // the signed note
}

// MaxProof bounds the text of a proof, in bytes.
const MaxProof = 1 << 20

const proofTitle = "c2sp.org/tlog-proof@v1"

// FormatProof returns the proof's text.
func FormatProof(p Proof) (string, error) {
	if p.Index < 0 {
		return "", fmt.Errorf("write a proof: the index %d is negative", p.Index)
	}
	var b strings.Builder
	b.WriteString(proofTitle + "\n")
	if len(p.Extra) > 0 {
		b.WriteString("extra " + base64.StdEncoding.EncodeToString(p.Extra) + "\n")
	}
	fmt.Fprintf(&b, "index %d\n", p.Index)
	for _, h := range p.Hashes {
		b.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
	}
	b.WriteString("\n" + p.Checkpoint)
	if b.Len() > MaxProof {
		return "", fmt.Errorf("write a proof: it has %d bytes, and the limit is %d", b.Len(), MaxProof)
	}
	if _, err := ParseProof(b.String()); err != nil {
		return "", fmt.Errorf("write a proof: %w", err)
	}
	return b.String(), nil
}

// ParseProof reads what FormatProof writes. It verifies nothing.
func ParseProof(text string) (Proof, error) {
	var p Proof
	bad := func(format string, args ...any) (Proof, error) {
		return Proof{}, fmt.Errorf("read a proof: "+format, args...)
	}
	if len(text) > MaxProof {
		return bad("it has %d bytes, and the limit is %d", len(text), MaxProof)
	}
	head, checkpoint, ok := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	if lines[0] != proofTitle {
		return bad("its first line is not %q", proofTitle)
	}
	if !ok || !strings.Contains(checkpoint, "\n\n") || checkpoint[0] == '\n' {
		return bad("it has no signed checkpoint after an empty line")
	}
	p.Checkpoint, lines = checkpoint, lines[1:]
	if len(lines) > 0 {
		if extra, ok := strings.CutPrefix(lines[0], "extra "); ok {
			raw, err := base64.StdEncoding.Strict().DecodeString(extra)
			if err != nil || len(raw) == 0 || base64.StdEncoding.EncodeToString(raw) != extra {
				return bad("its extra line is no base64")
			}
			p.Extra, lines = raw, lines[1:]
		}
	}
	if len(lines) == 0 {
		return bad("it has no index line")
	}
	number, ok := strings.CutPrefix(lines[0], "index ")
	index, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || index < 0 || strconv.FormatInt(index, 10) != number {
		return bad("its index line is not the word index and a number")
	}
	p.Index, lines = index, lines[1:]
	if len(lines) > 63 {
		return bad("it has %d hashes, more than any tree asks for", len(lines))
	}
	for _, line := range lines {
		h, err := parseHash(line)
		if err != nil {
			return bad("%w", err)
		}
		p.Hashes = append(p.Hashes, h)
	}
	return p, nil
}

func parseHash(text string) (h tlog.Hash, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	// The decoder passes over line ends; a hash in base64 has 44 letters.
	if err != nil || len(raw) != tlog.HashSize || len(text) != 44 {
		return h, errors.New("a hash is not 32 bytes in base64")
	}
	copy(h[:], raw)
	return h, nil
}

// Clone returns a copy that follows handovers on its own.
func (k *Keys) Clone() *Keys {
	return &Keys{keys: append([]span(nil), k.keys...)}
}

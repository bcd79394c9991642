package trail

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDocsHaveTheFirstVector(t *testing.T) {
	raw, err := os.ReadFile("../../docs/trail.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok1 := strings.Cut(string(raw), "<!-- begin vector")
	got, _, ok2 := strings.Cut(rest, "<!-- end vector -->")
	if !ok1 || !ok2 {
		t.Fatal("docs/trail.md has no vector")
	}
	_, got, _ = strings.Cut(got, "-->\n")

	// What the package computes, not what the file of vectors says.
	v := vectors(t)[0]
	e := v.event(t)
	leaf, err := e.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	enc, err := leaf.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	line := func(name string, value any) { fmt.Fprintf(&b, "%-12s %v\n", name, value) }
	folded := func(name string, value []byte) {
		s := hex.EncodeToString(value)
		for ; len(s) > 64; name, s = "", s[64:] {
			line(name, s[:64])
		}
		line(name, s)
	}
	b.WriteString("```\n")
	line("id", e.ID)
	line("time", e.Time.UnixMicro())
	line("actor", e.Actor)
	line("action", e.Action)
	line("resource", e.Resource)
	line("partner", e.Partner)
	line("outcome", e.Outcome)
	line("request_id", e.RequestID)
	line("address", e.Address)
	line("detail", e.Detail)
	line("count", e.Count)
	line("salt", hex.EncodeToString(e.Salt))
	name := "commitments"
	for f := range NumFields {
		line(name, fmt.Sprintf("%-10s %x", f, leaf.Commitments[f][:]))
		name = ""
	}
	folded("leaf", enc)
	h := mustHash(t, &e)
	folded("leaf hash", h[:])
	folded("checks", e.MakeChecks())
	b.WriteString("```\n")
	if diff := cmp.Diff(b.String(), got); diff != "" {
		t.Errorf("the vector in docs/trail.md (-want +got):\n%s", diff)
	}
}

// TestDocsOffsetsHold reads leaves by the table of offsets of docs/trail.md.
func TestDocsOffsetsHold(t *testing.T) {
	for _, v := range vectors(t) {
		b := unhex(t, v.Leaf)
		e := v.event(t)
		a := int(binary.BigEndian.Uint16(b[50:]))
		r := int(binary.BigEndian.Uint16(b[52+a:]))
		id := hex.EncodeToString(b[1:17])
		switch {
		case b[0] != 1, len(b) != 246+a+r,
			id != strings.ReplaceAll(e.ID, "-", ""),
			int64(binary.BigEndian.Uint64(b[17:])) != e.Time.UnixMicro(),
			outcomes[b[25]] != e.Outcome,
			int64(binary.BigEndian.Uint64(b[26:])) != e.Count,
			e.Intent != "" && hex.EncodeToString(b[34:50]) != strings.ReplaceAll(e.Intent, "-", ""),
			string(b[52:52+a]) != e.Action, string(b[54+a:54+a+r]) != e.Resource:
			t.Errorf("%s: the offsets in docs/trail.md do not hold", v.Name)
		}
		for f := range NumFields {
			at := 54 + a + r + 32*int(f)
			if hex.EncodeToString(b[at:at+32]) != v.Commitments[f.String()] {
				t.Errorf("%s: the commitment of %v is not at %d", v.Name, f, at)
			}
		}
		// Everything a verifier needs, computed as the page says it.
		for f := range NumFields {
			salt := e.Salt
			if len(salt) == SaltsSize {
				salt = salt[16*int(f):][:16]
			} else {
				sum := sha256.Sum256(append([]byte{3, byte(f)}, e.Salt...))
				salt = sum[:16]
			}
			value := e.Value(f)
			if value == "" || f == Detail && value == "{}" {
				continue
			}
			sum := sha256.Sum256([]byte(string([]byte{2, byte(f)}) + string(salt) + value))
			if hex.EncodeToString(sum[:]) != v.Commitments[f.String()] {
				t.Errorf("%s: the commitment of %v is not what docs/trail.md says", v.Name, f)
			}
		}
	}
}

func TestDocsKeyHashHolds(t *testing.T) {
	parts := strings.SplitN(newKey(t, testOrigin).vkey, "+", 3)
	key, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(key) != 33 || key[0] != 1 {
		t.Fatalf("vkey %v: %v", parts, err)
	}
	sum := sha256.Sum256([]byte(parts[0] + "\n\x01" + string(key[1:])))
	if got := hex.EncodeToString(sum[:4]); got != parts[1] {
		t.Errorf("key hash %s, want %s", parts[1], got)
	}
}

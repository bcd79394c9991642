package trail

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"
)

func TestProofIsReadAsItWasWritten(t *testing.T) {
	signed := checkpoint(t, 8, newKey(t, testOrigin))
	for _, p := range []Proof{
		{Checkpoint: signed},
		{Index: 5, Hashes: tlog.RecordProof{{1}, {2}, {3}}, Checkpoint: signed},
		{Index: 1<<63 - 1, Extra: []byte("an event"), Checkpoint: signed},
	} {
		text, err := FormatProof(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseProof(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, got); diff != "" {
			t.Errorf("proof (-want +got):\n%s", diff)
		}
	}
}

func TestFormatProofRefusesWhatCanNotBeRead(t *testing.T) {
	signed := checkpoint(t, 8, newKey(t, testOrigin))
	for name, p := range map[string]Proof{
		"index":         {Index: -1, Checkpoint: signed},
		"no checkpoint": {},
		"unsigned":      {Checkpoint: "origin\n8\nroot\n"},
		"too large":     {Extra: make([]byte, MaxProof), Checkpoint: signed},
		"hashes":        {Hashes: make(tlog.RecordProof, 64), Checkpoint: signed},
	} {
		if text, err := FormatProof(p); err == nil {
			t.Errorf("%s: %.200q", name, text)
		}
	}
}

func FuzzParseProof(f *testing.F) {
	const signed = "\norigin\n8\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n— origin AAAAAAAA\n"
	hash := "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
	for _, text := range []string{
		"c2sp.org/tlog-proof@v1\nindex 0\n" + signed,
		"c2sp.org/tlog-proof@v1\nextra YWJj\nindex 5\n" + hash + hash + signed,
		"c2sp.org/tlog-proof@v1\nextra \nindex 5\n" + signed,
		"c2sp.org/tlog-proof@v1\nindex 05\n" + signed,
		"c2sp.org/tlog-proof@v1\n" + signed,
		strings.Repeat("\n", 9),
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseProof(text)
		if err != nil {
			return
		}
		again, err := FormatProof(p)
		if err != nil || again != text {
			t.Errorf("%q is written as %q (%v)", text, again, err)
		}
	})
}

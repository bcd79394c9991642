package trail

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// Made by package note of github.com/transparency-dev/formats v0.1.1.
const (
	vectorWitness = "witness.example/w1+f1c8973e+BBazfmX0tysA5SxDNA+xkC0YCyMDLhwuHS/QWlxekq6z"
	vectorLog     = "rotunda.example/trail+302cdc3e+AXwB/IUypxB0wYn5W+knUp+qrRs6qQ+M2lx0LQAhrmXw"
	vectorText    = "rotunda.example/trail\n42\nSBNJTRN+FjG7owHVrKtue7eqdM4RhdRWVl71HXN2d7I=\n"
	vectorLogSig  = "— rotunda.example/trail MCzcPoaBK/ZlAWma+qVe7eXYKnjub5s5+/IbynVucSOFxMPTB02s+AdpI7vQlGW/QkttObsCKIXNfCFdVymq2a8Xegc=\n"
	vectorCosig   = "— witness.example/w1 8ciXPgAAAABrAoaz53Abpi9phmPDtn5TKZP2UerlbIdOCisNeNdf9FrE0WaKxIaV75hwFyug7QHFMBtJoJgUBda53GFe6AP8WxRpCQ==\n"
	vectorTime    = 0x6b0286b3
)

func mustWitness(t testing.TB, vkey string) Witness {
	t.Helper()
	w, err := ParseWitness(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// testWitness makes a witness and what signs as it.
func testWitness(t testing.TB, name, seed string) (Witness, func(text string, at uint64) string) {
	t.Helper()
	s := sha256.Sum256([]byte(seed))
	key := ed25519.NewKeyFromSeed(s[:])
	raw := append([]byte{4}, key.Public().(ed25519.PublicKey)...)
	h := sha256.Sum256([]byte(name + "\n" + string(raw)))
	w := mustWitness(t, fmt.Sprintf("%s+%x+%s", name, h[:4], base64.StdEncoding.EncodeToString(raw)))
	return w, func(text string, at uint64) string {
		sig := binary.BigEndian.AppendUint64(h[:4:4], at)
		sig = append(sig, ed25519.Sign(key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", int64(at), text))...)
		return fmt.Sprintf("— %s %s\n", name, base64.StdEncoding.EncodeToString(sig))
	}
}

func TestWitnessWhenAnotherImplementationCosigned(t *testing.T) {
	w := mustWitness(t, vectorWitness)
	if w.String() != vectorWitness || w.Name() != "witness.example/w1" {
		t.Errorf("it reads %s", w)
	}
	for what, note := range map[string]string{
		"after the log's": vectorText + "\n" + vectorLogSig + vectorCosig,
		"before":          vectorText + "\n" + vectorCosig + vectorLogSig,
		"alone":           vectorText + "\n" + vectorCosig,
		"twice":           vectorText + "\n" + vectorCosig + vectorCosig,
	} {
		at, err := w.Verify(note)
		if err != nil || !at.Equal(time.Unix(vectorTime, 0)) || at.Location() != time.UTC {
			t.Errorf("%s: %v, %v", what, at, err)
		}
	}
	keys, err := ParseKeys(vectorLog)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := keys.Open(vectorText + "\n" + vectorLogSig + vectorCosig); err != nil || c.Size != 42 {
		t.Errorf("the log's own signature: %v, %v", c, err)
	}
}

// Every byte of text, time and signature counts.
func TestWitnessWhenTheNoteWasAltered(t *testing.T) {
	w := mustWitness(t, vectorWitness)
	good := vectorText + "\n" + vectorCosig
	for i := range len(good) {
		for _, bit := range []byte{1, 0x20} {
			b := []byte(good)
			b[i] ^= bit
			if at, err := w.Verify(string(b)); err == nil || !errors.Is(err, ErrCosignature) || !at.IsZero() {
				t.Fatalf("byte %d altered: %v, %v", i, at, err)
			}
		}
	}
	name, b64, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(vectorCosig, "— "), "\n"), " ")
	raw, _ := base64.StdEncoding.DecodeString(b64)
	for n := range len(raw) {
		if _, err := w.Verify(vectorText + "\n— " + name + " " + base64.StdEncoding.EncodeToString(raw[:n]) + "\n"); !errors.Is(err, ErrCosignature) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	for what, note := range map[string]string{
		"nothing":      "",
		"text only":    vectorText,
		"the log only": vectorText + "\n" + vectorLogSig,
		"endless":      vectorText + "\n" + vectorLogSig + vectorCosig + strings.Repeat(vectorLogSig, 1000),
		"another size": strings.Replace(vectorText, "\n42\n", "\n43\n", 1) + "\n" + vectorCosig,
	} {
		if _, err := w.Verify(note); !errors.Is(err, ErrCosignature) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := (Witness{}).Verify(good); !errors.Is(err, ErrCosignature) {
		t.Errorf("the zero witness: %v", err)
	}
}

func TestWitnessWhenItSignsWhatIsNoCheckpoint(t *testing.T) {
	w, sign := testWitness(t, "w.example", "one")
	for _, text := range []string{"hello\n", "a\nb\nc\n", vectorText} {
		_, err := w.Verify(text + "\n" + sign(text, 7))
		if (err == nil) != (text == vectorText) {
			t.Errorf("%q: %v", text, err)
		}
	}
	// Extension lines are signed too; times are below 2^63.
	extended := vectorText + "extension\n"
	if _, err := w.Verify(extended + "\n" + sign(extended, 7)); err != nil {
		t.Error(err)
	}
	if _, err := w.Verify(extended + "\n" + sign(vectorText, 7)); err == nil {
		t.Error("a line that was added after signing passes")
	}
	// A wrong line by the witness's key is not outvoted by a right one.
	if _, err := w.Verify(vectorText + "\n" + sign(extended, 7) + sign(vectorText, 7)); err == nil {
		t.Error("a note whose first cosignature is wrong passes")
	}
	if at, err := w.Verify(vectorText + "\n" + sign(vectorText, 1<<63-1)); err != nil || at.Unix() != 1<<63-1 {
		t.Errorf("%v, %v", at, err)
	}
	if _, err := w.Verify(vectorText + "\n" + sign(vectorText, 1<<63)); err == nil {
		t.Error("a time of 2^63 passes")
	}
}

func TestCountWitnesses(t *testing.T) {
	a, signA := testWitness(t, "a.example", "a")
	b, signB := testWitness(t, "b.example", "b")
	c, _ := testWitness(t, "c.example", "c")
	alias, signAlias := testWitness(t, "alias.example", "a") // a's key under another name
	note := vectorText + "\n" + vectorLogSig + signA(vectorText, 5) + signB(vectorText, 6) + signAlias(vectorText, 7)
	for _, tt := range []struct {
		given []Witness
		want  int
		all   bool
	}{
		{nil, 0, true}, {[]Witness{a}, 1, true}, {[]Witness{a, b}, 2, true}, {[]Witness{a, b, c}, 2, false},
		{[]Witness{a, a}, 1, false}, {[]Witness{a, alias}, 1, false}, {[]Witness{c, {}}, 0, false},
	} {
		n, missing := CountWitnesses(note, tt.given)
		if n != tt.want || (missing == nil) != tt.all || missing != nil && !errors.Is(missing, ErrCosignature) {
			t.Errorf("%v: %d, %v", tt.given, n, missing)
		}
	}
	if _, missing := CountWitnesses(note, []Witness{c}); missing == nil || !strings.Contains(missing.Error(), "c.example") {
		t.Errorf("%v does not name who is missing", missing)
	}
}

func TestParseWitnessWhenTheKeyIsWrong(t *testing.T) {
	name, rest, _ := strings.Cut(vectorWitness, "+")
	hash, b64, _ := strings.Cut(rest, "+")
	for what, vkey := range map[string]string{
		"nothing":      "",
		"two parts":    name + "+" + hash,
		"no name":      "+" + hash + "+" + b64,
		"space":        "wit ness+" + hash + "+" + b64,
		"other name":   "x" + vectorWitness,
		"other hash":   name + "+f1c8973f+" + b64,
		"short hash":   name + "+1c8973e+" + b64,
		"signed hash":  name + "++1c8973e+" + b64,
		"a log's":      vectorLog,
		"line end":     vectorWitness + "\n",
		"not base64":   name + "+" + hash + "+!" + b64[1:],
		"short key":    name + "+" + hash + "+" + b64[:40],
		"long name":    strings.Repeat("n", 256) + "+" + hash + "+" + b64,
		"invalid utf8": "\xff+" + hash + "+" + b64,
	} {
		if w, err := ParseWitness(vkey); err == nil {
			t.Errorf("%s: %q is read as %v", what, vkey, w)
		}
	}
}

func FuzzParseWitness(f *testing.F) {
	f.Add(vectorWitness)
	f.Add(vectorLog)
	f.Add("a+00000000+BA==")
	f.Fuzz(func(t *testing.T, vkey string) {
		w, err := ParseWitness(vkey)
		if err != nil {
			return
		}
		again, err := ParseWitness(w.String())
		if err != nil || !strings.EqualFold(w.String(), vkey) || again.Name() != w.Name() {
			t.Errorf("%q is read as %q, %v", vkey, w, err)
		}
	})
}

// No note but the vector's text passes, however its signature lines look.
func FuzzWitnessVerify(f *testing.F) {
	f.Add(vectorText + "\n" + vectorLogSig + vectorCosig)
	f.Add(vectorText + "\n" + vectorCosig)
	f.Add(vectorText + "x\n\n" + vectorCosig)
	w := mustWitness(f, vectorWitness)
	f.Fuzz(func(t *testing.T, note string) {
		at, err := w.Verify(note)
		if err == nil && (!strings.HasPrefix(note, vectorText+"\n") || at.Unix() != vectorTime) {
			t.Errorf("%q passes, at %v", note, at)
		}
		if err != nil && !errors.Is(err, ErrCosignature) {
			t.Errorf("%v is not ErrCosignature", err)
		}
	})
}

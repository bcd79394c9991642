package postgres

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// The exchange of RFC 7677, section 3: with the verifier's server key its server
// signature comes out, with the stored key its client proof checks.
func TestVerifierWhenPasswordIsOfTheRFC(t *testing.T) {
	const message = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0," +
		"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	decode := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	sign := func(key []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(message))
		return h.Sum(nil)
	}
	v, err := verifierWith("pencil", decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
	if err != nil {
		t.Fatal(err)
	}
	rest, ok := strings.CutPrefix(v, "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$")
	stored, server, two := strings.Cut(rest, ":")
	if !ok || !two {
		t.Fatalf("the verifier has another form: %s", v)
	}
	if got := base64.StdEncoding.EncodeToString(sign(decode(server))); got != "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=" {
		t.Errorf("the server signature is %s", got)
	}
	key := decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
	for i, x := range sign(decode(stored)) {
		key[i] ^= x
	}
	if sum := sha256.Sum256(key); base64.StdEncoding.EncodeToString(sum[:]) != stored {
		t.Error("the client proof does not check with the stored key")
	}
}

func TestVerifierWhenPasswordIsNotASCII(t *testing.T) {
	for _, p := range []string{"", "pässword", "a\x00b", "a\nb", strings.Repeat("x", 513)} {
		if _, err := verifier(p); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("a password of %d bytes: %v, want invalid", len(p), err)
		}
	}
	a, errA := verifier("secret")
	b, errB := verifier("secret")
	if a == b || errA != nil || errB != nil {
		t.Errorf("two verifiers of a password are the same, or failed (%v, %v)", errA, errB)
	}
}

func TestCommentWhenSplit(t *testing.T) {
	m := marker{"0e4c5d5e-0000-4000-8000-000000000001", 7, 19}
	for comment, want := range map[string]struct {
		text string
		m    marker
		ok   bool
	}{
		"":                           {"", marker{}, false},
		"reads orders":               {"reads orders", marker{}, false},
		m.comment(""):                {"", m, true},
		m.comment("reads orders"):    {"reads orders", m, true},
		m.comment("two  "):           {"two  ", m, true},
		m.String() + " added by Ann": {" added by Ann", m, true},
		"x [rotunda rotation=a generation=3 epoch=1] y " + m.String():                         {"x  y", m, true},
		m.String() + " [rotunda rotation=a generation=3 epoch=99]":                            {"", m, true},
		"[rotunda rotation=a generation=99999999999999999999 epoch=1]":                        {"[rotunda rotation=a generation=99999999999999999999 epoch=1]", marker{}, false},
		"[rotunda rotation=a generation=999999999999999999 epoch=1]":                          {"", marker{"a", 999999999999999999, 1}, true},
		"[rotunda rotation=a generation=3 epoch=1] [rotunda rotation=b generation=3 epoch=2]": {"", marker{"b", 3, 2}, true},
	} {
		text, got, ok := splitComment(comment)
		if text != want.text || ok != want.ok || got != want.m {
			t.Errorf("%q: text %q, marker %v %v; want %q, %v %v", comment, text, got, ok, want.text, want.m, want.ok)
		}
	}
}

func FuzzSplitComment(f *testing.F) {
	f.Add("reads orders", "a", int64(1), int64(2))
	f.Add("x [rotunda rotation=a generation=3 epoch=1] ", "b-c", int64(0), int64(1)<<50)
	f.Fuzz(func(t *testing.T, comment, rotation string, generation, epoch int64) {
		text, _, ok := splitComment(comment)
		if _, _, again := splitComment(text); !ok && text != comment || ok && len(text) >= len(comment) && !again {
			t.Fatalf("%q came apart as %q, %v", comment, text, ok)
		}
		m := marker{rotation, generation, epoch}
		if ok || !markerPattern.MatchString(m.String()) || markerPattern.FindString(m.String()) != m.String() {
			return
		}
		got, back, ok := splitComment(m.comment(comment))
		if !ok || got != comment || cmp.Diff(m, back) != "" {
			t.Fatalf("%q with %v came back as %q with %v", comment, m, got, back)
		}
	})
}

func TestKindWhenServerReports(t *testing.T) {
	for _, c := range []struct {
		at   stage
		code string
		want error
	}{
		{atLogin, "28P01", fault.ErrDenied}, {atLogin, "3D000", fault.ErrNotFound}, {atLogin, "53300", fault.ErrUnavailable}, {atLogin, "57P03", fault.ErrUnavailable},
		{atProof, "28P01", fault.ErrRejected}, {atProof, "28000", fault.ErrRejected}, {atProof, "42501", fault.ErrDenied}, {atProof, "53300", fault.ErrUnavailable},
		{atPassword, "22023", fault.ErrRejected}, {atPassword, "42501", fault.ErrDenied}, {atPassword, "42704", fault.ErrNotFound}, {atPassword, "0A000", fault.ErrDenied},
		{atPassword, "XX000", fault.ErrUnavailable}, {atPassword, "25006", fault.ErrUnavailable}, {atPassword, "40001", fault.ErrUnavailable},
		{atWork, "55P03", fault.ErrLimited}, {atWork, "57014", fault.ErrUnavailable}, {atWork, "22023", fault.ErrUnavailable}, {atWork, "", fault.ErrUnavailable},
	} {
		if _, got := kindOf(c.at, c.code); !errors.Is(got, c.want) {
			t.Errorf("%s at %d: %v, want %v", c.code, c.at, got, c.want)
		}
	}
}

func TestScratchNamesWhenLong(t *testing.T) {
	long := strings.Repeat("ü", 31)
	names, err := scratchNames([]string{long, long}, "drill_1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := checkName(name); err != nil || !strings.HasSuffix(name, "_drill_1") {
			t.Errorf("%q: %v", name, err)
		}
	}
	if names[0] == names[1] {
		t.Errorf("two copies have the name %q", names[0])
	}
	for _, suffix := range []string{"", "A", "a b", strings.Repeat("a", 25)} {
		if _, err := scratchNames([]string{"a"}, suffix); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("the suffix %q: %v, want invalid", suffix, err)
		}
	}
}

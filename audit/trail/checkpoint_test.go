package trail

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/google/go-cmp/cmp"
)

const testOrigin = "trail.example.com/rotunda"

// key is a signing key of a test.
type key struct {
	note.Signer
	vkey string
}

func newKey(t testing.TB, name string) key {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return key{s, vkey}
}

func sign(t testing.TB, text string, keys ...key) string {
	t.Helper()
	n := &note.Note{Text: text}
	var signers []note.Signer
	for _, k := range keys {
		signers = append(signers, k)
	}
	b, err := note.Sign(n, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func handover(t testing.TB, from, to key, size int64, signers ...key) string {
	t.Helper()
	if signers == nil {
		signers = []key{from, to}
	}
	return sign(t, Handover{testOrigin, from.vkey, to.vkey, size}.Text(), signers...)
}

func checkpoint(t testing.TB, size int64, keys ...key) string {
	t.Helper()
	return sign(t, Checkpoint{Origin: testOrigin, Size: size, Root: tlog.Hash{byte(size)}}.Text(), keys...)
}

func trusting(t testing.TB, keys ...key) *Keys {
	t.Helper()
	var text string
	for _, k := range keys {
		text += k.vkey + "\n"
	}
	k, err := ParseKeys("# trusted\n\n" + text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestOpenTakesEachKeyForItsTime(t *testing.T) {
	k1, k2, k3 := newKey(t, testOrigin), newKey(t, testOrigin), newKey(t, testOrigin)
	history := []string{handover(t, k1, k2, 100), handover(t, k2, k3, 200)}
	for _, tt := range []struct {
		name  string
		given []key
	}{{"the first", []key{k1}}, {"all three", []key{k1, k2, k3}}, {"the first and the last", []key{k1, k3}}} {
		keys := trusting(t, tt.given...)
		for range 2 { // followed again, it is the same
			if err := keys.Follow(history); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
		}
		if diff := cmp.Diff(3, len(keys.List())); diff != "" {
			t.Errorf("%s: keys (-want +got):\n%s", tt.name, diff)
		}
		for _, c := range []struct {
			by   key
			size int64
			ok   bool
		}{
			{k1, 0, true}, {k1, 99, true}, {k1, 100, true}, {k1, 101, false}, {k1, 100_000, false},
			{k2, 99, false}, {k2, 100, true}, {k2, 200, true}, {k2, 201, false},
			{k3, 199, false}, {k3, 200, true}, {k3, 1 << 40, true},
		} {
			got, err := keys.Open(checkpoint(t, c.size, c.by))
			if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrSignature) || err == nil && got.Size != c.size {
				t.Errorf("%s: a checkpoint of size %d by %s: %v", tt.name, c.size, c.by.vkey, err)
			}
		}
		// One good signature is enough, whoever else signed.
		if _, err := keys.Open(checkpoint(t, 300, k1, newKey(t, "witness.example.com/w"), k3)); err != nil {
			t.Errorf("%s: signed by an old key and the newest: %v", tt.name, err)
		}
	}
	// Who trusts the newest only trusts no older one for it.
	keys := trusting(t, k3)
	if err := keys.Follow(history); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Open(checkpoint(t, 50, k1)); !errors.Is(err, ErrSignature) {
		t.Errorf("an older key: %v", err)
	}
}

func TestFollowRefusesForgedHandovers(t *testing.T) {
	k1, k2, k3, thief := newKey(t, testOrigin), newKey(t, testOrigin), newKey(t, testOrigin), newKey(t, testOrigin)
	elsewhere := newKey(t, "trail.example.com/other")
	good := handover(t, k1, k2, 100)
	for _, tt := range []struct {
		name  string
		given []key
		notes []string
	}{
		{"signed by the old key alone", []key{k1}, []string{handover(t, k1, thief, 100, k1)}},
		{"signed by the new key alone", []key{k1}, []string{handover(t, k1, thief, 100, thief)}},
		{"signed by two strangers", []key{k1}, []string{handover(t, k1, thief, 100, thief, k3)}},
		{"not signed", []key{k1}, []string{Handover{testOrigin, k1.vkey, k2.vkey, 100}.Text() + "\n"}},
		{"no signatures at all", []key{k1}, []string{strings.TrimSuffix(Handover{testOrigin, k1.vkey, k2.vkey, 100}.Text(), "\n")}},
		{"another size than was signed", []key{k1}, []string{strings.Replace(good, "\n100\n", "\n10\n", 1)}},
		{"of another origin", []key{k1}, []string{sign(t, Handover{"trail.example.com/other", k1.vkey, k2.vkey, 100}.Text(), k1, k2)}},
		{"to a key of another origin", []key{k1}, []string{handover(t, k1, elsewhere, 100)}},
		{"by an old key a second time", []key{k1}, []string{good, handover(t, k1, thief, 500)}},
		{"by an old key a second time, earlier", []key{k1}, []string{good, handover(t, k1, thief, 50)}},
		{"by an old key a second time, both given", []key{k1, k2}, []string{good, handover(t, k1, thief, 500)}},
		{"again at another size", []key{k1}, []string{good, handover(t, k1, k2, 500)}},
		{"in a circle", []key{k1}, []string{good, handover(t, k2, k1, 200)}},
		{"in a longer circle", []key{k1}, []string{good, handover(t, k2, k3, 200), handover(t, k3, k1, 300)}},
		{"to itself", []key{k1}, []string{handover(t, k1, k1, 100)}},
		{"backwards in size", []key{k1}, []string{good, handover(t, k2, k3, 99)}},
		{"a checkpoint", []key{k1}, []string{checkpoint(t, 100, k1, k2)}},
		{"nothing", []key{k1}, []string{""}},
		{"negative size", []key{k1}, []string{handover(t, k1, k2, -1)}},
		{"no key", []key{k1}, []string{sign(t, Handover{testOrigin, k1.vkey, "key", 100}.Text(), k1, k2)}},
	} {
		keys := trusting(t, tt.given...)
		err := keys.Follow(tt.notes)
		if err == nil || strings.Contains(err.Error(), "%!") {
			t.Errorf("%s: err %v", tt.name, err)
		}
		// Whatever was followed, the thief signs nothing.
		for _, size := range []int64{50, 100, 1000} {
			if _, err := keys.Open(checkpoint(t, size, thief)); err == nil {
				t.Errorf("%s: the thief's checkpoint of size %d is taken", tt.name, size)
			}
		}
	}
	// Handovers between strangers add nothing.
	keys := trusting(t, k1)
	if err := keys.Follow([]string{handover(t, thief, k3, 1)}); err != nil || len(keys.List()) != 1 {
		t.Errorf("between strangers: %v, keys %v", err, keys.List())
	}
}

func TestOpenRefusesForgedCheckpoints(t *testing.T) {
	k, other := newKey(t, testOrigin), newKey(t, testOrigin)
	good := checkpoint(t, 10, k)
	foreign := sign(t, Checkpoint{Origin: "trail.example.com/other", Size: 10}.Text(), k)
	for name, signed := range map[string]string{
		"another key":     checkpoint(t, 10, other),
		"another origin":  foreign,
		"another size":    strings.Replace(good, "\n10\n", "\n11\n", 1),
		"no signature":    Checkpoint{Origin: testOrigin, Size: 10}.Text() + "\n",
		"no note":         "hello",
		"nothing":         "",
		"cut":             good[:len(good)-5],
		"no checkpoint":   sign(t, "hello\n", k),
		"renamed witness": strings.Replace(checkpoint(t, 10, other), other.Name(), k.Name(), 1),
	} {
		if c, err := trusting(t, k).Open(signed); err == nil {
			t.Errorf("%s: it is taken for %+v", name, c)
		} else if strings.Contains(err.Error(), "%!") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := trusting(t, k).Open(checkpoint(t, 10, other)); !strings.Contains(err.Error(), "you trust") {
		t.Errorf("the error does not say whom it trusts: %v", err)
	}
}

func TestParseKeysRefusesWhatIsNoKey(t *testing.T) {
	for _, text := range []string{"", "# only a comment\n", "key", "a+00000000+AAAA"} {
		if _, err := ParseKeys(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	k := newKey(t, testOrigin)
	keys := trusting(t, k, k)
	if _, err := keys.Open(checkpoint(t, 1, k)); err != nil || len(keys.List()) != 1 {
		t.Errorf("a key that is given twice: %v, %v", keys.List(), err)
	}
}

func TestCloneFollowsOnItsOwn(t *testing.T) {
	k1, k2 := newKey(t, testOrigin), newKey(t, testOrigin)
	keys := trusting(t, k1)
	clone := keys.Clone()
	if err := clone.Follow([]string{handover(t, k1, k2, 100)}); err != nil {
		t.Fatal(err)
	}
	if len(keys.List()) != 1 || len(clone.List()) != 2 {
		t.Errorf("keys %v, clone %v", keys.List(), clone.List())
	}
	if _, err := keys.Open(checkpoint(t, 101, k1)); err != nil {
		t.Errorf("the clone ended the key of the original: %v", err)
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	c := Checkpoint{Origin: testOrigin, Size: 10}
	f.Add(c.Text())
	f.Add(c.Text() + "extension line\n")
	f.Add("a\n01\n" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n")
	f.Add("\n\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCheckpoint(text)
		if err != nil {
			return
		}
		if !strings.HasPrefix(text, c.Text()) {
			t.Errorf("%q was read as %q", text, c.Text())
		}
	})
}

func FuzzParseHandover(f *testing.F) {
	f.Add(Handover{testOrigin, "a+1+b", "c+2+d", 100}.Text())
	f.Add(Handover{}.Text())
	f.Fuzz(func(t *testing.T, text string) {
		h, err := parseHandover(text)
		if err == nil && h.Text() != text {
			t.Errorf("%q was read as %q", text, h.Text())
		}
	})
}

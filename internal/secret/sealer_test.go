package secret

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

var here = Place{"signing_keys", "key-1", "private"}

func newFile(t testing.TB) *FileKEK {
	t.Helper()
	f, err := OpenOrCreateFile(filepath.Join(t.TempDir(), "kek.json"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func newSealer(t testing.TB) *Sealer {
	t.Helper()
	s, err := NewSealer(newFile(t).KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func seal(t testing.TB, s *Sealer, p Place, text string) []byte {
	t.Helper()
	b, err := s.Seal(context.Background(), p, FromString(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSealerWhenValueIsOpened(t *testing.T) {
	s := newSealer(t)
	for _, n := range []int{1, 31, 4096, MaxValue} {
		v := New(bytes.Repeat([]byte{'x'}, n))
		b, err := s.Seal(t.Context(), here, v)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > MaxSealed || bytes.Contains(b, []byte("xxxxxxxxxxxxxxxx")) {
			t.Fatalf("%d bytes sealed into %d", n, len(b))
		}
		if got, err := s.Open(t.Context(), here, b); err != nil || !got.Equal(v) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if id, err := SealedUnder(b); err != nil || id != s.Primary() {
			t.Errorf("sealed under %q, %v", id, err)
		}
	}
	if bytes.Equal(seal(t, s, here, plain), seal(t, s, here, plain)) {
		t.Error("the same value seals to the same bytes")
	}
	for name, c := range map[string]struct {
		p Place
		v Value
	}{
		"empty": {here, Value{}}, "too large": {here, New(make([]byte, MaxValue+1))},
		"no row": {Place{"t", "", "c"}, FromString(plain)},
	} {
		if _, err := s.Seal(t.Context(), c.p, c.v); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// refused checks that nothing opens and that the error says where and holds no secret.
func refused(t *testing.T, s *Sealer, p Place, b []byte, what string) {
	t.Helper()
	v, err := s.Open(context.Background(), p, b)
	if err == nil || !v.IsZero() {
		t.Fatalf("%s: it opened", what)
	}
	if errors.Is(err, ErrCorrupt) == errors.Is(err, fault.ErrUnavailable) {
		t.Fatalf("%s: want one kind of failure: %v", what, err)
	}
	if !strings.Contains(err.Error(), p.String()) || leaks(err.Error()) != "" {
		t.Fatalf("%s: the error names no place or shows the secret", what)
	}
	if _, _, err := s.Rewrap(context.Background(), p, b); err == nil {
		t.Fatalf("%s: it was rewrapped", what)
	}
}

func TestOpenWhenAnyByteIsChanged(t *testing.T) {
	s := newSealer(t)
	good := seal(t, s, here, plain)
	for i := range good {
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			bad := bytes.Clone(good)
			bad[i] ^= flip
			refused(t, s, here, bad, fmt.Sprintf("byte %d ^ %#x", i, flip))
		}
		refused(t, s, here, good[:i], fmt.Sprintf("cut to %d bytes", i))
	}
	refused(t, s, here, append(bytes.Clone(good), 0), "one byte longer")
	refused(t, s, here, make([]byte, MaxSealed+1), "too large")
	if _, err := s.Open(t.Context(), here, good); err != nil {
		t.Fatal(err)
	}
}

func TestOpenWhenValueIsMoved(t *testing.T) {
	s := newSealer(t)
	good := seal(t, s, here, plain)
	for _, p := range []Place{
		{"signing_keys", "key-2", "private"}, {"signing_keys", "key-1", "other"}, {"other", "key-1", "private"},
		{"signing_keysk", "ey-1", "private"}, {"signing_keys", "key-1p", "rivate"}, {"private", "key-1", "signing_keys"},
	} {
		refused(t, s, p, good, p.String())
		if _, err := s.Open(t.Context(), p, good); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", p, err)
		}
	}
	// The parts of two sealed values do not go together either.
	a, _ := decode(good)
	b, _ := decode(seal(t, s, here, plain+"!"))
	refused(t, s, here, envelope{a.kek, b.wrapped, a.ciphertext}.encode(), "the data key of another value")
	c, _ := decode(seal(t, s, Place{"signing_keys", "key-2", "private"}, plain))
	refused(t, s, here, envelope{a.kek, c.wrapped, c.ciphertext}.encode(), "another row's value")
}

func TestOpenWhenKEKIsMissing(t *testing.T) {
	s, other := newSealer(t), newSealer(t)
	good := seal(t, s, here, plain)
	_, err := other.Open(t.Context(), here, good)
	if !errors.Is(err, fault.ErrUnavailable) || !strings.Contains(err.Error(), s.Primary()) {
		t.Errorf("got %v, want an error that names the key needed", err)
	}
}

// deadKEK is a key service that cannot be reached.
type deadKEK struct{ KEK }

func (deadKEK) Wrap(context.Context, []byte, []byte) ([]byte, error) {
	return nil, errors.New("dial: refused")
}
func (deadKEK) Unwrap(context.Context, []byte, []byte) ([]byte, error) {
	return nil, errors.New("dial: refused")
}

func TestSealerWhenKEKIsOutOfReach(t *testing.T) {
	kek := newFile(t).KEKs()[0]
	up, err := NewSealer(kek)
	if err != nil {
		t.Fatal(err)
	}
	good := seal(t, up, here, plain)
	down, err := NewSealer(deadKEK{kek})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := down.Open(t.Context(), here, good); !errors.Is(err, fault.ErrUnavailable) || errors.Is(err, ErrCorrupt) {
		t.Errorf("Open: %v", err)
	}
	if _, err := down.Seal(t.Context(), here, FromString(plain)); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("Seal: %v", err)
	}
}

func TestRewrapWhenKEKIsRotated(t *testing.T) {
	f := newFile(t)
	s, err := NewSealer(f.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	old := seal(t, s, here, plain)
	if same, moved, err := s.Rewrap(t.Context(), here, old); err != nil || moved || !bytes.Equal(same, old) {
		t.Errorf("under the primary: %v, %v", moved, err)
	}
	before := s.Primary()
	if err := f.Rotate(); err != nil {
		t.Fatal(err)
	}
	if err := s.Use(f.KEKs()...); err != nil {
		t.Fatal(err)
	}
	if s.Primary() == before || len(f.KEKs()) != 2 {
		t.Fatalf("primary %s after %s, %d keys", s.Primary(), before, len(f.KEKs()))
	}
	fresh, moved, err := s.Rewrap(t.Context(), here, old)
	if err != nil || !moved {
		t.Fatalf("under the older key: %v, %v", moved, err)
	}
	newest, err := NewSealer(f.KEKs()[0])
	if err != nil {
		t.Fatal(err)
	}
	if v, err := newest.Open(t.Context(), here, fresh); err != nil || v.RevealString() != plain {
		t.Errorf("the new key alone does not open it: %v", err)
	}
	refused(t, newest, here, old, "the older value with the new key alone")
	refused(t, s, Place{"t", "r", "c"}, fresh, "moved after a rewrap")
}

func TestSealerWhenKEKsAreBad(t *testing.T) {
	k := newFile(t).KEKs()[0]
	for name, keks := range map[string][]KEK{"none": {}, "twice": {k, k}, "bad id": {named{k, "a b"}}, "no id": {named{k, ""}}} {
		if _, err := NewSealer(keks...); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type named struct {
	KEK
	id string
}

func (n named) ID() string { return n.id }

func TestSealerWhenUsedAtOnce(t *testing.T) {
	f := newFile(t)
	s, err := NewSealer(f.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := Place{"t", fmt.Sprint(i), "c"}
			for range 50 {
				b, err := s.Seal(t.Context(), p, FromString(plain))
				if err != nil {
					t.Error(err)
					return
				}
				if v, err := s.Open(t.Context(), p, b); err != nil || v.RevealString() != plain {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		if err := f.Rotate(); err != nil {
			t.Error(err)
		}
		if err := s.Use(f.KEKs()...); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

// FuzzOpen checks that bytes from anywhere never panic and never open.
func FuzzOpen(f *testing.F) {
	s := newSealer(f)
	good := seal(f, s, here, plain)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte{1, 1, 'k', 0, 0, 1, 'w'})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := s.Open(t.Context(), here, b)
		if bytes.Equal(b, good) {
			return
		}
		if err == nil || !v.IsZero() {
			t.Fatalf("%x opened", b)
		}
	})
}

func BenchmarkSealer(b *testing.B) {
	s := newSealer(b)
	v := New(make([]byte, 256))
	sealed, err := s.Seal(b.Context(), here, v)
	if err != nil {
		b.Fatal(err)
	}
	block, _ := aes.NewCipher(make([]byte, 32))
	bare, _ := cipher.NewGCM(block)
	nonce := make([]byte, 12)
	plaintext := v.Reveal()
	ciphertext := bare.Seal(nil, nonce, plaintext, nil)
	for name, run := range map[string]func() error{
		"Seal": func() error { _, err := s.Seal(b.Context(), here, v); return err },
		"Open": func() error { _, err := s.Open(b.Context(), here, sealed); return err },
		"bare AES-GCM seal": func() error {
			_, _ = rand.Read(nonce)
			bare.Seal(nil, nonce, plaintext, nil)
			return nil
		},
		"bare AES-GCM open": func() error {
			_, err := bare.Open(nil, make([]byte, 12), ciphertext, nil)
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := run(); err != nil && name != "bare AES-GCM open" {
					b.Fatal(err)
				}
			}
		})
	}
}

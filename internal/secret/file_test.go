package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

func TestFileWhenCreatedAndOpened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek.json")
	if _, err := OpenFile(path); !errors.Is(err, fault.ErrNotFound) {
		t.Fatalf("a missing file: %v", err)
	}
	f, err := OpenOrCreateFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	again, err := OpenFile(path)
	if err != nil || again.KEKs()[0].ID() != f.KEKs()[0].ID() {
		t.Fatalf("opened again: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("%d files are left, want 1", len(left))
	}
	if _, err := OpenOrCreateFile(filepath.Join(t.TempDir(), "none", "kek.json")); err == nil {
		t.Error("created in a directory that does not exist")
	}
}

func TestFileWhenOthersCanReachIt(t *testing.T) {
	f := newFile(t)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666} {
		if err := os.Chmod(f.Path(), mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenOrCreateFile(f.Path()); !errors.Is(err, fault.ErrDenied) || !strings.Contains(err.Error(), "chmod 600 "+f.Path()) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	if err := os.Chmod(f.Path(), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(f.Path()); err != nil {
		t.Errorf("mode 400: %v", err)
	}
}

func TestFileWhenItIsSomethingElse(t *testing.T) {
	f, dir := newFile(t), t.TempDir()
	link, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.Symlink(f.Path(), link), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, pipe, dir} {
		if _, err := OpenOrCreateFile(path); !errors.Is(err, fault.ErrDenied) {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
	}
	if os.Geteuid() == 0 { // only root can give a file away
		if err := os.Chown(f.Path(), 12345, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFile(f.Path()); !errors.Is(err, fault.ErrDenied) || !strings.Contains(err.Error(), "chown") {
			t.Errorf("another user's file: %v", err)
		}
	}
}

func TestFileWhenDamaged(t *testing.T) {
	f := newFile(t)
	good, err := os.ReadFile(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, content []byte) {
		t.Helper()
		if err := os.WriteFile(f.Path(), content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenOrCreateFile(f.Path())
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s: %v", what, err)
		}
		if i := bytes.Index(good, []byte(`"value"`)); strings.Contains(err.Error(), string(good[i+12:i+24])) {
			t.Fatalf("%s: the error shows the key", what)
		}
	}
	for n := range len(good) - 2 { // the last two are "}\n", and the newline may go
		try("cut", good[:n])
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x01
		if good[i] == ' ' || good[i] == '\n' {
			continue // white space between the members is not covered, and need not be
		}
		try("flipped", bad)
	}
	try("large", make([]byte, maxFileSize+1))
	try("two documents", append(bytes.Clone(good), good...))
}

func TestFileWhenCreatedAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek.json")
	ids := make([]string, 16)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			f, err := OpenOrCreateFile(path)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = f.KEKs()[0].ID()
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("several keys were made: %v", ids)
		}
	}
}

func TestFileWhenRotatedAtOnce(t *testing.T) {
	f := newFile(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for range 8 {
		wg.Go(func() {
			g, err := OpenFile(f.Path())
			if err != nil {
				t.Error(err)
				return
			}
			err = g.Rotate()
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				done++
			} else if !errors.Is(err, fault.ErrUnavailable) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	g, err := OpenFile(f.Path())
	if err != nil || len(g.KEKs()) != 1+done || done == 0 {
		t.Errorf("%d rotations left %d keys, want one more: %v", done, len(g.KEKs()), err)
	}
}

// Whatever a key file holds, it is either keys that seal and open, or
// ErrCorrupt with a message that quotes no more of it than its format.
func FuzzParseFile(f *testing.F) {
	handle, err := keyset.NewHandle(aead.XAES256GCM192BitNonceKeyTemplate())
	if err != nil {
		f.Fatal(err)
	}
	good, err := encodeFile(handle)
	if err != nil {
		f.Fatal(err)
	}
	other, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		f.Fatal(err)
	}
	wrong, err := encodeFile(other)
	if err != nil {
		f.Fatal(err)
	}
	var c fileContent
	if err := json.Unmarshal(good, &c); err != nil {
		f.Fatal(err)
	}
	// The checksum stands between the fuzzer and the parser of keysets: with
	// signed, it is made right for whatever the keyset is.
	for _, signed := range []bool{false, true} {
		for _, seed := range [][]byte{
			good, wrong, good[:len(good)/2], bytes.Replace(good, []byte("-1"), []byte("-2"), 1), nil, []byte(`{}`), []byte(`[]`), []byte(`null`), []byte("{\"format\":\"\xff\"}"),
		} {
			f.Add(seed, signed)
		}
		for _, set := range []string{string(c.Keyset), `{}`, `null`, `{"primaryKeyId":1,"key":[]}`, `{"primaryKeyId":1,"key":[{}]}`, `{"primaryKeyId":1,"key":[{"keyData":null,"status":"ENABLED","keyId":1,"outputPrefixType":"RAW"}]}`} {
			f.Add([]byte(set), signed)
		}
	}
	f.Fuzz(func(t *testing.T, content []byte, signed bool) {
		var compact bytes.Buffer
		if signed && json.Compact(&compact, content) == nil {
			b, err := json.Marshal(fileContent{fileFormat, compact.Bytes(), sum(compact.Bytes())})
			if err != nil {
				t.Fatal(err)
			}
			content = b
		}
		handle, keks, err := parseFile(bytes.Clone(content))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || handle != nil || keks != nil {
				t.Errorf("%d keys, error %v", len(keks), err)
			}
			if len(err.Error()) > 400 || !utf8.ValidString(err.Error()) || strings.Contains(err.Error(), "keyData") {
				t.Errorf("the message is %q", err)
			}
			return
		}
		if len(keks) == 0 || len(keks) != handle.Len() {
			t.Fatalf("%d keys of %d", len(keks), handle.Len())
		}
		ad := []byte("here")
		wrapped, err := keks[0].Wrap(t.Context(), []byte("data key"), ad)
		if err != nil {
			t.Fatalf("the first key can't wrap: %v", err)
		}
		if dek, err := keks[0].Unwrap(t.Context(), wrapped, ad); err != nil || string(dek) != "data key" {
			t.Errorf("the first key can't unwrap what it wrapped: %v", err)
		}
		again, err := encodeFile(handle)
		if err != nil {
			t.Fatal(err)
		}
		if _, back, err := parseFile(again); err != nil || len(back) != len(keks) || back[0].ID() != keks[0].ID() {
			t.Errorf("written and read again: %d keys, %v", len(back), err)
		}
	})
}

package secret

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/xaesgcm"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

const (
	fileFormat  = "rotunda-kek-1"
	maxFileSize = 64 << 10
)

// FileKEK is a file of key-encryption keys. The newest, the primary, wraps; all
// of them unwrap. It is safe for concurrent use.
//
// The file is JSON with three members: "format", the text "rotunda-kek-1";
// "keyset", a cleartext Tink JSON keyset of XAES-256-GCM keys, one per generation;
// "sha256", the lower-case hex SHA-256 of the compact form of "keyset". The sum
// tells a damaged file from a wrong one before anything is sealed under a damaged
// key, which the undamaged file could not open later.
type FileKEK struct {
	path string

	mu   sync.Mutex
	keks []KEK // primary first
}

// OpenFile opens an existing key file. It must be a regular file of this process's
// user with no permission for group and others; otherwise the error says what to
// run. A missing file is fault.ErrNotFound.
func OpenFile(path string) (*FileKEK, error) {
	_, keks, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return &FileKEK{path: path, keks: keks}, nil
}

// OpenOrCreateFile is OpenFile, but makes the file with one fresh key, mode 0600,
// when there is none. Of several processes that do so at once, one makes it and
// all use that one. The directory must exist.
func OpenOrCreateFile(path string) (*FileKEK, error) {
	f, err := OpenFile(path)
	if !errors.Is(err, fault.ErrNotFound) {
		return f, err
	}
	if err := createFile(path); err != nil {
		return nil, fmt.Errorf("creating key file %s: %w", path, err)
	}
	return OpenFile(path)
}

// KEKs are the keys in the file as of OpenFile or the last Rotate, the primary
// first: give them to NewSealer or Sealer.Use.
func (f *FileKEK) KEKs() []KEK {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.keks)
}

// Path is the file's path as it was given.
func (f *FileKEK) Path() string { return f.path }

// Rotate adds a fresh key to the file and makes it the primary. Older keys stay,
// because values may be sealed under them. The file is replaced in one step. It
// fails with fault.ErrUnavailable while another process rotates the same file.
//
// A Sealer goes on with the keys it has until Sealer.Use; other processes until
// they open the file again. Those cannot open what is sealed under the new key
// before they do.
func (f *FileKEK) Rotate() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.rotate(); err != nil {
		return fmt.Errorf("rotating key file %s: %w", f.path, err)
	}
	return nil
}

func (f *FileKEK) rotate() error {
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	defer dir.Close() // also ends the lock
	// Two rotations that read the same file would each write one new key, and one
	// of them would be lost together with what was sealed under it.
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fault.New(fault.ErrUnavailable, "kek_busy", "another process is changing keys in this directory: try again: %w", err)
	}
	handle, _, err := readFile(f.path)
	if err != nil {
		return err
	}
	m := keyset.NewManagerFromHandle(handle)
	id, err := m.Add(aead.XAES256GCM192BitNonceKeyTemplate())
	if err != nil {
		return err
	}
	if err := m.SetPrimary(id); err != nil {
		return err
	}
	if handle, err = m.Handle(); err != nil {
		return err
	}
	tmp, err := writeTemp(f.path, handle)
	if err != nil {
		return err
	}
	defer os.Remove(tmp) // fails once renamed
	if err := os.Rename(tmp, f.path); err != nil {
		return err
	}
	if err := dir.Sync(); err != nil {
		return err
	}
	_, f.keks, err = readFile(f.path)
	return err
}

func createFile(path string) error {
	handle, err := keyset.NewHandle(aead.XAES256GCM192BitNonceKeyTemplate())
	if err != nil {
		return err
	}
	tmp, err := writeTemp(path, handle)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	// A link is exclusive like O_EXCL, and nobody sees a file that is half written.
	if err := os.Link(tmp, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// writeTemp writes the keys durably beside path and returns the file's name.
func writeTemp(path string, handle *keyset.Handle) (name string, err error) {
	content, err := encodeFile(handle)
	defer clear(content)
	if err != nil {
		return "", err
	}
	if len(content) > maxFileSize {
		return "", fault.New(fault.ErrInvalid, "kek_file_full", "the file would exceed %d bytes: start a new key file", maxFileSize)
	}
	name = path + ".new-" + rand.Text()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = os.Remove(name)
		}
	}()
	if err := f.Chmod(0o600); err != nil { // an odd umask may have left less
		return "", err
	}
	if _, err := f.Write(content); err != nil {
		return "", err
	}
	return name, f.Sync()
}

type fileContent struct {
	Format string          `json:"format"`
	Keyset json.RawMessage `json:"keyset"`
	SHA256 string          `json:"sha256"`
}

func encodeFile(handle *keyset.Handle) ([]byte, error) {
	var raw, compact bytes.Buffer
	if err := insecurecleartextkeyset.Write(handle, keyset.NewJSONWriter(&raw)); err != nil {
		return nil, err
	}
	if err := json.Compact(&compact, raw.Bytes()); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(fileContent{fileFormat, compact.Bytes(), sum(compact.Bytes())}, "", "  ")
	return append(b, '\n'), err
}

func readFile(path string) (*keyset.Handle, []KEK, error) {
	content, err := readPrivate(path)
	defer clear(content)
	if err != nil {
		return nil, nil, err
	}
	return parseFile(content)
}

// readPrivate reads a small file that only this user can reach.
func readPrivate(path string) ([]byte, error) {
	// O_NONBLOCK: opening a named pipe must not wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.ErrNotFound, "kek_file_missing", "there is no such file: restore it, or create a new one if nothing was ever sealed: %w", err)
	case errors.Is(err, syscall.ELOOP):
		return nil, fault.New(fault.ErrDenied, "kek_file_link", "it is a symbolic link: give the path of the file itself")
	case err != nil:
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.ErrDenied, "kek_file_kind", "it is not a regular file (%s)", info.Mode())
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.ErrDenied, "kek_file_mode", "group or others have access (mode %04o): run: chmod 600 %s", info.Mode().Perm(), path)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return nil, fault.New(fault.ErrDenied, "kek_file_owner", "it belongs to user %d, this process runs as user %d: run: chown %d %s", owner, os.Geteuid(), os.Geteuid(), path)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(content) > maxFileSize {
		err = fmt.Errorf("%w: it has more than %d bytes: this is not a key file", ErrCorrupt, maxFileSize)
	}
	return content, err
}

func parseFile(content []byte) (*keyset.Handle, []KEK, error) {
	damaged := func(what string) error {
		return fmt.Errorf("%w: %s: restore the file from a backup; a new key cannot open what the old one sealed", ErrCorrupt, what)
	}
	var c fileContent
	var compact bytes.Buffer
	// JSON errors may quote the text, so none is passed on.
	if json.Unmarshal(content, &c) != nil || json.Compact(&compact, c.Keyset) != nil {
		return nil, nil, damaged("it is truncated or not a key file")
	}
	if c.Format != fileFormat {
		return nil, nil, damaged(fmt.Sprintf("its format is %.32q, want %q", c.Format, fileFormat))
	}
	if c.SHA256 != sum(compact.Bytes()) {
		return nil, nil, damaged("its keys do not match their checksum")
	}
	handle, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(&compact))
	if err != nil {
		return nil, nil, damaged("its keyset is not valid")
	}
	keks, err := generations(handle)
	if err != nil {
		return nil, nil, damaged("its keyset holds a key that is not for XAES-256-GCM")
	}
	return handle, keks, nil
}

// generations makes one KEK of each key in the keyset, the primary first.
func generations(handle *keyset.Handle) ([]KEK, error) {
	var keks []KEK
	for i := range handle.Len() {
		entry, err := handle.Entry(i)
		if err != nil {
			return nil, err
		}
		if _, ok := entry.Key().(*xaesgcm.Key); !ok {
			return nil, fmt.Errorf("key %d is a %T", entry.KeyID(), entry.Key())
		}
		k, err := newFileKey(entry)
		if err != nil {
			return nil, err
		}
		if entry.IsPrimary() {
			keks = slices.Insert(keks, 0, KEK(k))
		} else {
			keks = append(keks, k)
		}
	}
	return keks, nil
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// fileKey is one generation of a FileKEK.
type fileKey struct {
	id   string
	aead tink.AEAD
}

func newFileKey(entry *keyset.Entry) (*fileKey, error) {
	m := keyset.NewManager()
	id, err := m.AddKey(entry.Key())
	if err != nil {
		return nil, err
	}
	if err := m.SetPrimary(id); err != nil {
		return nil, err
	}
	handle, err := m.Handle()
	if err != nil {
		return nil, err
	}
	a, err := aead.New(handle)
	if err != nil {
		return nil, err
	}
	return &fileKey{id: fmt.Sprintf("file:%08x", entry.KeyID()), aead: a}, nil
}

func (k *fileKey) ID() string { return k.id }

func (k *fileKey) Wrap(_ context.Context, dek, ad []byte) ([]byte, error) {
	return k.aead.Encrypt(dek, ad)
}

func (k *fileKey) Unwrap(_ context.Context, wrapped, ad []byte) ([]byte, error) {
	dek, err := k.aead.Decrypt(wrapped, ad)
	if err != nil {
		return nil, fmt.Errorf("%w: not wrapped by %s for this use", ErrCorrupt, k.id)
	}
	return dek, nil
}

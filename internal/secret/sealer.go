package secret

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Sizes in bytes. MaxSealed is what storage must be able to hold.
const (
	MaxValue  = 1 << 20
	MaxSealed = MaxValue + maxHeader + nonceAndTag

	maxKEKID    = 128
	maxWrapped  = 2048
	maxHeader   = 1 + 1 + maxKEKID + 1 + 2 + maxWrapped
	nonceAndTag = subtle.AESGCMIVSize + subtle.AESGCMTagSize
	dataKeySize = 32

	version = 1
)

// ErrCorrupt says that a sealed value was altered, cut, or moved from the place
// it was sealed for. Retrying cannot help.
var ErrCorrupt = errors.New("sealed value is corrupt")

// KEK is a key-encryption key: a file on this machine, or a service that keeps
// the key to itself. Implementations are safe for concurrent use.
type KEK interface {
	// ID names this key among all that a deployment ever used, and never changes:
	// 1 to 128 printable ASCII bytes without spaces, and no secret.
	ID() string

	// Wrap encrypts a data key and binds it to ad. The result is at most 2048 bytes.
	// An error that may pass with time wraps fault.ErrUnavailable.
	Wrap(ctx context.Context, dek, ad []byte) ([]byte, error)

	// Unwrap reverses Wrap. It returns an error that wraps ErrCorrupt when this key
	// did not wrap these bytes with this ad: final. Any other error means that the
	// answer is not known, and the caller may ask again.
	Unwrap(ctx context.Context, wrapped, ad []byte) ([]byte, error)
}

// Place is where a sealed value is stored. A value opens only in the place it was
// sealed for. All three parts are required; Row is the row's unchanging id.
type Place struct{ Table, Row, Column string }

func (p Place) String() string { return fmt.Sprintf("%s.%s of row %q", p.Table, p.Column, p.Row) }

func (p Place) validate() error {
	if p.Table == "" || p.Row == "" || p.Column == "" {
		return fault.New(fault.ErrInvalid, "place_incomplete", "sealing for %s: table, row and column are all required", p)
	}
	return nil
}

// Sealer seals and opens values. It is safe for concurrent use.
type Sealer struct {
	keks atomic.Pointer[[]KEK]
}

// NewSealer returns a Sealer that seals under the first KEK and opens what any of
// them sealed.
func NewSealer(keks ...KEK) (*Sealer, error) {
	s := new(Sealer)
	if err := s.Use(keks...); err != nil {
		return nil, err
	}
	return s, nil
}

// Use replaces the KEKs, for example after a rotation. Work in progress goes on
// with those it began with.
func (s *Sealer) Use(keks ...KEK) error {
	if len(keks) == 0 {
		return fault.New(fault.ErrInvalid, "kek_required", "sealer: no key-encryption key given: at least one is required")
	}
	for i, k := range keks {
		if !validKEKID(k.ID()) {
			return fault.New(fault.ErrInvalid, "kek_id_invalid", "sealer: key-encryption key id %q: want 1 to %d printable ASCII characters without spaces", k.ID(), maxKEKID)
		}
		if slices.ContainsFunc(keks[:i], func(o KEK) bool { return o.ID() == k.ID() }) {
			return fault.New(fault.ErrInvalid, "kek_repeated", "sealer: key-encryption key %s is given twice", k.ID())
		}
	}
	keks = slices.Clone(keks)
	s.keks.Store(&keks)
	return nil
}

// Primary is the id of the KEK that new values are sealed under.
func (s *Sealer) Primary() string { return (*s.keks.Load())[0].ID() }

// Seal encrypts v for its place. Values are 1 byte to MaxValue long. It fails with
// fault.ErrInvalid for a size out of bounds and an incomplete place, and with
// fault.ErrUnavailable when the KEK is out of reach.
func (s *Sealer) Seal(ctx context.Context, p Place, v Value) ([]byte, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	if v.IsZero() {
		return nil, fault.New(fault.ErrInvalid, "secret_empty", "sealing %s: there is no secret to seal", p)
	}
	if v.Len() > MaxValue {
		return nil, fault.New(fault.ErrInvalid, "secret_too_large", "sealing %s: the secret has %d bytes, at most %d are allowed", p, v.Len(), MaxValue)
	}
	kek := (*s.keks.Load())[0]
	dek := make([]byte, dataKeySize)
	defer clear(dek)
	_, _ = rand.Read(dek) // never fails: it crashes the program instead

	wrapped, err := wrap(ctx, kek, p, dek)
	if err != nil {
		return nil, fmt.Errorf("sealing %s: %w", p, err)
	}
	aead, err := subtle.NewAESGCM(dek)
	if err != nil {
		return nil, fmt.Errorf("sealing %s: %w", p, err)
	}
	ciphertext, err := aead.Encrypt(v.bytes(), associated(p, "value", ""))
	if err != nil {
		return nil, fmt.Errorf("sealing %s: %w", p, err)
	}
	return envelope{kek: kek.ID(), wrapped: wrapped, ciphertext: ciphertext}.encode(), nil
}

// Open decrypts what Seal made for the same place. See the package comment for
// its two kinds of failure.
func (s *Sealer) Open(ctx context.Context, p Place, sealed []byte) (Value, error) {
	e, _, dek, err := s.unwrap(ctx, p, sealed)
	defer clear(dek)
	if err != nil {
		return Value{}, fmt.Errorf("opening %s: %w", p, err)
	}
	v, err := e.open(p, dek)
	if err != nil {
		return Value{}, fmt.Errorf("opening %s: %w", p, err)
	}
	return v, nil
}

// Rewrap moves a sealed value to the primary KEK and reports true. A value that is
// under the primary KEK already comes back as it is, with false. The value must
// open: damage is reported, not carried over. Errors are those of Open and Seal.
func (s *Sealer) Rewrap(ctx context.Context, p Place, sealed []byte) ([]byte, bool, error) {
	e, primary, dek, err := s.unwrap(ctx, p, sealed)
	defer clear(dek)
	if err != nil {
		return nil, false, fmt.Errorf("rewrapping %s: %w", p, err)
	}
	v, err := e.open(p, dek)
	if err != nil {
		return nil, false, fmt.Errorf("rewrapping %s: %w", p, err)
	}
	v.Destroy()
	if e.kek == primary.ID() {
		return sealed, false, nil
	}
	e.kek = primary.ID()
	if e.wrapped, err = wrap(ctx, primary, p, dek); err != nil {
		return nil, false, fmt.Errorf("rewrapping %s: %w", p, err)
	}
	return e.encode(), true, nil
}

// SealedUnder is the id of the KEK that a sealed value needs. Nothing is
// decrypted, so the answer is only as true as the bytes.
func SealedUnder(sealed []byte) (string, error) {
	e, err := decode(sealed)
	return e.kek, err
}

// unwrap reads the envelope and gets its data key. It also returns the primary
// KEK of the same instant.
func (s *Sealer) unwrap(ctx context.Context, p Place, sealed []byte) (envelope, KEK, []byte, error) {
	if err := p.validate(); err != nil {
		return envelope{}, nil, nil, err
	}
	e, err := decode(sealed)
	if err != nil {
		return envelope{}, nil, nil, err
	}
	keks := *s.keks.Load()
	i := slices.IndexFunc(keks, func(k KEK) bool { return k.ID() == e.kek })
	if i < 0 {
		var have []string
		for _, k := range keks {
			have = append(have, k.ID())
		}
		return envelope{}, nil, nil, fault.New(fault.ErrUnavailable, "kek_unknown",
			"it is sealed under key-encryption key %s, which is not loaded (loaded: %s): restore the key file that holds it", e.kek, strings.Join(have, ", "))
	}
	dek, err := keks[i].Unwrap(ctx, e.wrapped, associated(p, "key", e.kek))
	switch {
	case errors.Is(err, ErrCorrupt):
		return envelope{}, nil, nil, fmt.Errorf("%w: its data key does not unwrap for this place: it was altered, or moved here from elsewhere (key-encryption key %s)", ErrCorrupt, e.kek)
	case err != nil:
		return envelope{}, nil, nil, outOfReach(e.kek, err)
	case len(dek) != dataKeySize:
		clear(dek)
		return envelope{}, nil, nil, fmt.Errorf("%w: key-encryption key %s unwrapped a data key of %d bytes, want %d", ErrCorrupt, e.kek, len(dek), dataKeySize)
	}
	return e, keks[0], dek, nil
}

func wrap(ctx context.Context, kek KEK, p Place, dek []byte) ([]byte, error) {
	wrapped, err := kek.Wrap(ctx, dek, associated(p, "key", kek.ID()))
	if err != nil {
		return nil, outOfReach(kek.ID(), err)
	}
	if len(wrapped) == 0 || len(wrapped) > maxWrapped {
		return nil, fmt.Errorf("key-encryption key %s wrapped a data key into %d bytes, want 1 to %d", kek.ID(), len(wrapped), maxWrapped)
	}
	return wrapped, nil
}

func outOfReach(id string, err error) error {
	return fault.New(fault.ErrUnavailable, "kek_unreachable", "key-encryption key %s did not answer: %w", id, err)
}

// associated encodes what a layer is bound to. Each part has its length in front,
// so no two different places have the same encoding.
func associated(p Place, layer, kek string) []byte {
	b := []byte("rotunda sealed value\x00")
	b = append(b, version)
	for _, part := range []string{layer, kek, "", p.Table, p.Row, p.Column} { // "": the data-key id
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return b
}

// envelope is a sealed value in its parts.
type envelope struct {
	kek                 string
	wrapped, ciphertext []byte
}

func (e envelope) open(p Place, dek []byte) (Value, error) {
	aead, err := subtle.NewAESGCM(dek)
	if err != nil {
		return Value{}, err
	}
	b, err := aead.Decrypt(e.ciphertext, associated(p, "value", ""))
	if err != nil {
		return Value{}, fmt.Errorf("%w: its ciphertext does not authenticate: it was altered", ErrCorrupt)
	}
	return hold(b), nil
}

func (e envelope) encode() []byte {
	b := make([]byte, 0, 5+len(e.kek)+len(e.wrapped)+len(e.ciphertext))
	b = append(b, version, byte(len(e.kek)))
	b = append(b, e.kek...)
	b = append(b, 0) // no data-key id: the data key follows
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.wrapped)))
	b = append(b, e.wrapped...)
	return append(b, e.ciphertext...)
}

func decode(b []byte) (envelope, error) {
	corrupt := func(format string, args ...any) (envelope, error) {
		return envelope{}, fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
	}
	if len(b) > MaxSealed {
		return corrupt("it has %d bytes, at most %d are possible", len(b), MaxSealed)
	}
	if len(b) == 0 {
		return corrupt("it is empty")
	}
	if b[0] != version {
		return corrupt("its format version is %d, this release reads %d: a newer release may have written it", b[0], version)
	}
	const cut = "it is cut short"
	kek, rest, ok := field(b[1:], 1)
	if !ok {
		return corrupt(cut)
	}
	if !validKEKID(string(kek)) {
		return corrupt("its key-encryption key id is malformed")
	}
	id, rest, ok := field(rest, 1)
	if !ok {
		return corrupt(cut)
	}
	if len(id) != 0 {
		return corrupt("it names a shared data key, which this release does not know: a newer release may have written it")
	}
	wrapped, rest, ok := field(rest, 2)
	if !ok || len(rest) <= nonceAndTag {
		return corrupt(cut)
	}
	if len(wrapped) == 0 || len(wrapped) > maxWrapped {
		return corrupt("its wrapped data key has %d bytes, want 1 to %d", len(wrapped), maxWrapped)
	}
	return envelope{kek: string(kek), wrapped: wrapped, ciphertext: rest}, nil
}

// field cuts off a length of n bytes and as many bytes as it says.
func field(b []byte, n int) (field, rest []byte, ok bool) {
	if len(b) < n {
		return nil, nil, false
	}
	size := 0
	for _, c := range b[:n] {
		size = size<<8 | int(c)
	}
	b = b[n:]
	if len(b) < size {
		return nil, nil, false
	}
	return b[:size], b[size:], true
}

func validKEKID(id string) bool {
	return len(id) >= 1 && len(id) <= maxKEKID && !strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' })
}

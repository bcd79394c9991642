package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// errOpaque answers every attempt to encode or decode a Value.
var errOpaque = errors.New("secret: a secret value is never encoded or decoded: call Reveal or New where the bytes are meant to cross")

// Value is a secret. It prints as [redacted] everywhere; the bytes come out only
// through Reveal and RevealString. Copies share the bytes. The zero Value holds
// no secret.
//
// Destroy must not run at the same time as other methods; these may run together.
//
// Reflection cannot reach into a closure. It does reach through pointers: fmt
// prints what a *[]byte in an unexported field points to when the verb is %s, and
// go-cmp prints it always.
type Value struct{ box func() *[]byte }

func hold(b []byte) Value { return Value{func() *[]byte { return &b }} }

// New returns a Value that holds a copy of b.
func New(b []byte) Value {
	return hold(append(make([]byte, 0, len(b)), b...))
}

// FromString returns a Value that holds the bytes of s. The string itself stays
// in memory until it is collected; prefer New where the secret is already bytes.
func FromString(s string) Value {
	return hold([]byte(s))
}

func (v Value) bytes() []byte {
	if v.box == nil {
		return nil
	}
	return *v.box()
}

// Reveal returns a copy of the secret bytes, nil when there are none.
func (v Value) Reveal() []byte { return append([]byte(nil), v.bytes()...) }

// RevealString returns the secret bytes as a string.
func (v Value) RevealString() string { return string(v.bytes()) }

// Len is the number of secret bytes.
func (v Value) Len() int { return len(v.bytes()) }

// IsZero tells whether there are no secret bytes: none were given, or they were
// destroyed.
func (v Value) IsZero() bool { return v.Len() == 0 }

// Equal compares in a time that depends on the lengths only.
func (v Value) Equal(w Value) bool { return subtle.ConstantTimeCompare(v.bytes(), w.bytes()) == 1 }

// Destroy overwrites the bytes with zeros, in this Value and all its copies, and
// leaves them without a secret. What Reveal returned earlier is not reached.
func (v Value) Destroy() {
	if v.box == nil {
		return
	}
	b := v.box()
	clear(*b)
	*b = nil
}

// Format writes [redacted] for every verb and flag.
func (Value) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// String returns [redacted].
func (Value) String() string { return redacted }

// GoString returns [redacted].
func (Value) GoString() string { return redacted }

// LogValue returns [redacted].
func (Value) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns [redacted].
func (Value) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns "[redacted]".
func (Value) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// UnmarshalText refuses: secrets come in through fields that are read on purpose.
func (*Value) UnmarshalText([]byte) error { return errOpaque }

// UnmarshalJSON refuses, like UnmarshalText.
func (*Value) UnmarshalJSON([]byte) error { return errOpaque }

// GobEncode refuses: a binary encoding would be taken for the secret.
func (Value) GobEncode() ([]byte, error) { return nil, errOpaque }

// GobDecode refuses, like UnmarshalText.
func (*Value) GobDecode([]byte) error { return errOpaque }

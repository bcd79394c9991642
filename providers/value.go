package providers

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

// Bounds of a value: AWS Secrets Manager takes 65,536 bytes, and so do we.
const (
	MaxValue  = 65536
	MaxFields = 64
)

// Fields is the value of a credential, as consumers read it: {"username", "password"}.
// The names are not secret. Values are text in UTF-8.
type Fields map[string]secret.Value

var fieldName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,127}$`)

// Set is f with one more field.
func (f Fields) Set(name, value string) Fields {
	f = maps.Clone(f)
	if f == nil {
		f = Fields{}
	}
	f[name] = secret.FromString(value)
	return f
}

// Text is the field's text; empty when there is none.
func (f Fields) Text(name string) string {
	v, ok := f[name]
	if !ok {
		return ""
	}
	return v.RevealString()
}

// Equal compares in time that depends on the lengths only.
func (f Fields) Equal(g Fields) bool {
	if len(f) != len(g) {
		return false
	}
	same := 1
	for name, v := range f {
		w, ok := g[name]
		if !ok {
			return false
		}
		same &= subtle.ConstantTimeCompare(v.Reveal(), w.Reveal())
	}
	return same == 1
}

// Encode is the JSON object of the fields, names sorted, values as strings: what is
// sealed, and what a store of plain text holds.
func (f Fields) Encode() (secret.Value, error) {
	if len(f) > MaxFields {
		return secret.Value{}, fault.Invalid("fields", "too_many_fields", "a credential has %d fields, at most %d are allowed", len(f), MaxFields)
	}
	plain := make(map[string]string, len(f))
	for name, v := range f {
		if !fieldName.MatchString(name) {
			return secret.Value{}, fault.Invalid("fields", "field_malformed", "the name of a field is not a letter or underscore, then up to 127 letters, digits, dots, dashes and underscores")
		}
		plain[name] = v.RevealString()
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(plain); err != nil {
		return secret.Value{}, fmt.Errorf("encode the fields of a credential: %w", err)
	}
	text := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	defer clear(b.Bytes())
	if len(text) > MaxValue {
		return secret.Value{}, fault.Invalid("fields", "value_too_long", "the value of a credential has %d bytes, at most %d are allowed", len(text), MaxValue)
	}
	return secret.New(text), nil
}

// Decode reads what Encode wrote. Text that is not a JSON object of strings is
// fault.ErrInvalid; the error quotes nothing of it.
func Decode(v secret.Value) (Fields, error) {
	text := v.Reveal()
	if len(text) > MaxValue {
		return nil, fault.Invalid("fields", "value_too_long", "the value has %d bytes, at most %d are allowed", len(text), MaxValue)
	}
	var plain map[string]string
	if json.Unmarshal(text, &plain) != nil || plain == nil || len(plain) > MaxFields {
		return nil, fault.Invalid("fields", "value_malformed", "the value is not a JSON object of at most %d strings", MaxFields)
	}
	f := make(Fields, len(plain))
	for name, s := range plain {
		f[name] = secret.FromString(s)
	}
	return f, nil
}

// Names are the names of the fields, sorted.
func (f Fields) Names() []string { return slices.Sorted(maps.Keys(f)) }

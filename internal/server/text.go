package server

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// storable reports whether both databases take a text: it is UTF-8 without NUL.
func storable(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// plainText refuses a message with a text that no database takes, in whichever
// field it is. at is where the message itself is; "" at the top.
func plainText(m protoreflect.Message, at string) (err error) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		path := strings.TrimPrefix(at+"."+string(f.Name()), ".")
		switch {
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				if err = plainValue(f.MapKey(), k.Value(), path); err == nil {
					err = plainValue(f.MapValue(), v, path)
				}
				return err == nil
			})
		case f.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = plainValue(f, v.List().Get(i), fmt.Sprintf("%s[%d]", path, i))
			}
		default:
			err = plainValue(f, v, path)
		}
		return err == nil
	})
	return err
}

func plainValue(f protoreflect.FieldDescriptor, v protoreflect.Value, path string) error {
	switch f.Kind() {
	case protoreflect.StringKind:
		if !storable(v.String()) {
			return fault.Invalid(path, "bad_text", "%s is no plain text: it holds a NUL, or bytes that are not UTF-8", path)
		}
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return plainText(v.Message(), path)
	default: // the others hold no text
	}
	return nil
}

package server

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// edges are values of a field at and beyond any bound that rules may have, for every
// kind of field.
func edges(f protoreflect.FieldDescriptor, parent protoreflect.Message) []protoreflect.Value {
	lengths := []int{0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 62, 63, 64, 65, 100, 101, 127, 128, 129, 254, 255, 256, 257, 512, 513, 1023, 1024, 1025, 8191, 8192, 8193, 16383, 16384, 16385, 98303, 98304, 98305}
	var one []protoreflect.Value
	switch f.Kind() {
	case protoreflect.StringKind:
		for _, n := range lengths {
			if n > 20_000 {
				break
			}
			for _, r := range []string{"a", "é", "😀"} { // a bound counts characters
				one = append(one, protoreflect.ValueOfString(strings.Repeat(r, n)))
			}
		}
		for _, s := range []string{"\x00", "a\x00b", "\xff", "a\xed\xa0\x80", " ", "\n", "203.0.113.9"} {
			one = append(one, protoreflect.ValueOfString(s))
		}
	case protoreflect.BytesKind:
		for _, n := range lengths {
			one = append(one, protoreflect.ValueOfBytes(make([]byte, n)))
		}
	case protoreflect.Int64Kind:
		for _, n := range []int64{math.MinInt64, -1, 0, 1, 999_999, 1_000_000, 1_000_001, math.MaxInt64} {
			one = append(one, protoreflect.ValueOfInt64(n))
		}
	case protoreflect.EnumKind:
		for _, n := range []protoreflect.EnumNumber{-1, 0, 1, 2, 3, 4, 99} {
			one = append(one, protoreflect.ValueOfEnum(n))
		}
	case protoreflect.BoolKind:
		one = append(one, protoreflect.ValueOfBool(true), protoreflect.ValueOfBool(false))
	case protoreflect.MessageKind:
		element := func() protoreflect.Message {
			if f.IsList() {
				return parent.NewField(f).List().NewElement().Message()
			}
			return parent.NewField(f).Message()
		}
		one = append(one, protoreflect.ValueOfMessage(element()))
		fields := element().Descriptor().Fields()
		for i := range fields.Len() {
			for _, v := range edges(fields.Get(i), element()) {
				m := element()
				fill(m)
				m.Set(fields.Get(i), v)
				one = append(one, protoreflect.ValueOfMessage(m))
			}
		}
	default:
		panic("no values for a field of kind " + f.Kind().String())
	}
	if !f.IsList() {
		return one
	}
	var lists []protoreflect.Value
	for _, v := range one {
		l := parent.NewField(f).List()
		l.Append(v)
		lists = append(lists, protoreflect.ValueOfList(l))
	}
	for _, n := range []int{0, 2, 63, 64, 65, 99, 100, 101, 255, 256, 257} {
		l := parent.NewField(f).List()
		for range n {
			if f.Kind() == protoreflect.MessageKind {
				e := l.NewElement()
				fill(e.Message())
				l.Append(e)
			} else {
				l.Append(protoreflect.ValueOfString("orders:read"))
			}
		}
		lists = append(lists, protoreflect.ValueOfList(l))
	}
	return lists
}

// fill makes a message valid.
func fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); f.Kind() == protoreflect.StringKind && !f.IsList() {
			m.Set(f, protoreflect.ValueOfString("a"))
		} else if f.IsList() && f.Kind() == protoreflect.MessageKind {
			e := m.NewField(f).List().NewElement()
			fill(e.Message())
			l := m.Mutable(f).List()
			l.Append(e)
		}
	}
}

// Promise: the rules that are written by hand for verification are those of the
// descriptors, at every bound of every field.
func TestPlainVerificationWhenComparedWithDescriptors(t *testing.T) {
	for _, kind := range []proto.Message{&rotundav1.VerifyApiKeyRequest{}, &rotundav1.VerifyApiKeysRequest{}, &rotundav1.VerifyRequestRequest{}} {
		name := kind.ProtoReflect().Descriptor().Name()
		plain, refused := 0, 0
		compare := func(m proto.Message, what string) {
			want := plainText(m.ProtoReflect(), "") == nil && valid(m) == nil
			if got := plainVerification(m); got != want {
				t.Errorf("%s with %s: by hand %v, by the descriptor %v", name, what, got, want)
			}
			if want {
				plain++
			} else {
				refused++
			}
		}
		type change struct {
			f protoreflect.FieldDescriptor
			v protoreflect.Value
		}
		var changes []change
		fields := kind.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			for _, v := range edges(fields.Get(i), kind.ProtoReflect()) {
				changes = append(changes, change{fields.Get(i), v})
			}
		}
		for i, c := range changes {
			m := kind.ProtoReflect().New()
			fill(m)
			m.Set(c.f, c.v)
			compare(m.Interface(), fmt.Sprintf("%s, value %d", c.f.Name(), i))
		}
		random := rand.New(rand.NewPCG(4, uint64(len(changes))))
		for range 1500 {
			m := kind.ProtoReflect().New()
			fill(m)
			what := ""
			for range 2 + random.IntN(3) {
				i := random.IntN(len(changes))
				m.Set(changes[i].f, changes[i].v)
				what += fmt.Sprintf("%s %d ", changes[i].f.Name(), i)
			}
			compare(m.Interface(), what)
		}
		compare(kind.ProtoReflect().New().Interface(), "nothing")
		if plain < 100 || refused < 100 {
			t.Errorf("%s: %d messages kept the rules and %d did not: there is too little to compare", name, plain, refused)
		}
	}
}

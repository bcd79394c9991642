package server

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// strictJSON is the JSON of the API. Unlike Connect's own codec it refuses
// fields that the message does not have: a mistyped "tokenTTL" must not become
// a policy with the default.
type strictJSON struct{ name string }

// Name implements connect.Codec.
func (c strictJSON) Name() string { return c.name }

// Marshal implements connect.Codec.
func (strictJSON) Marshal(msg any) ([]byte, error) {
	m, ok := msg.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no protobuf message", msg)
	}
	return protojson.Marshal(m)
}

// Unmarshal implements connect.Codec. Its errors name the message as the API
// does, and quote no value: one may be a private key.
func (strictJSON) Unmarshal(b []byte, msg any) error {
	m, ok := msg.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no protobuf message", msg)
	}
	if len(b) == 0 {
		return errors.New("the body is empty: send a JSON object")
	}
	if err := protojson.Unmarshal(b, m); err != nil {
		return fmt.Errorf("the body is not the JSON of %s: %s", m.ProtoReflect().Descriptor().FullName(), unquoted(err.Error()))
	}
	return nil
}

// What protojson says, as far as it holds none of the caller's values. The names
// of known fields are the descriptor's, and a name that is not known is the
// caller's, but looks like one.
var (
	whereJSON   = regexp.MustCompile(`^(?:syntax error )?\(line \d{1,9}:\d{1,9}\): `)
	wrongValue  = regexp.MustCompile(`^invalid value for [a-z0-9]{1,16} field ([A-Za-z0-9_]{1,64}): `)
	wrongNative = regexp.MustCompile(`^(?:invalid )?(google\.protobuf\.(?:Duration|Timestamp)) value `)
	wrongName   = regexp.MustCompile(`^(unknown|duplicate) field "([A-Za-z0-9_]{1,64})"$`)
)

// unquoted says where in a body something is wrong, and in which field if that
// is known, and leaves out what is there.
func unquoted(text string) string {
	// protobuf puts a non-breaking space into its errors, so that nobody compares them.
	text = strings.TrimPrefix(strings.ReplaceAll(text, "\u00a0", " "), "proto: ")
	at := whereJSON.FindString(text)
	rest := text[len(at):]
	if at == "" {
		return "it can't be read"
	}
	where := strings.TrimSuffix(at, ": ")
	if m := wrongValue.FindStringSubmatch(rest); m != nil {
		return where + ": field " + m[1] + " has a value of the wrong form"
	}
	if m := wrongNative.FindStringSubmatch(rest); m != nil {
		return where + ": this is no " + m[1] + " that can be read"
	}
	if m := wrongName.FindStringSubmatch(rest); m != nil {
		return where + ": " + m[1] + " field \"" + m[2] + "\""
	}
	if strings.HasPrefix(rest, "unknown field ") {
		return where + ": unknown field"
	}
	return where + ": something else must stand here"
}

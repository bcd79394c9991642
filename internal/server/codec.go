package server

import (
	"errors"
	"fmt"
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

// Unmarshal implements connect.Codec. Its errors name the message as the API does.
func (strictJSON) Unmarshal(b []byte, msg any) error {
	m, ok := msg.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no protobuf message", msg)
	}
	if len(b) == 0 {
		return errors.New("the body is empty: send a JSON object")
	}
	if err := protojson.Unmarshal(b, m); err != nil {
		// protobuf puts a non-breaking space into its errors, so that nobody compares them.
		text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
		return fmt.Errorf("the body is not the JSON of %s: %s", m.ProtoReflect().Descriptor().FullName(), strings.TrimPrefix(text, "proto: "))
	}
	return nil
}

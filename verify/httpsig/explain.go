package httpsig

import (
	"bytes"
	"fmt"
	"strings"
)

// Explanation is what the authenticated signer may know about a signature that
// failed. It never holds a MAC, nor anything else made with the key.
type Explanation struct {
	Base      string // the signature base as the verifier makes it of the message
	Component string // the first component that differs from the signer's base
	Server    string // its line here
	Client    string // its line in the signer's base
	Message   string // what to look at
}

// Explain compares the verifier's signature base with the one that the signer
// says to have signed, which may be empty. It fails when the message has no base,
// with the component that is the cause.
func Explain(s *Signature, m *Message, k *Key, client []byte) (*Explanation, error) {
	base, err := s.Base(nil, m)
	if err != nil {
		return nil, err
	}
	if len(client) > maxBase {
		return nil, refuse(ReasonMalformed, "a signature base has at most %d bytes, not %d", maxBase, len(client))
	}
	e := &Explanation{Base: string(base)}
	switch {
	case s.hasAlg && s.Alg != string(k.alg):
		e.Message = fmt.Sprintf("alg is %s, and the key is for %s: leave alg out", clip(s.Alg), k.alg)
	case len(client) == 0:
		e.Message = fmt.Sprintf("sign exactly the bytes of this base, without a line end after its last line, with %s", k.alg)
	case bytes.Equal(base, client):
		e.Message = fmt.Sprintf("the bases are equal: the key, or the way %s is computed with it, differs", k.alg)
		if k.Verify(base, s.Value) {
			e.Message = "the signature is right"
		}
	case bytes.Equal(base, bytes.TrimRight(client, "\r\n")):
		e.Message = "the base has no line end after its last line"
	case bytes.Equal(base, bytes.ReplaceAll(client, []byte("\r\n"), []byte("\n"))):
		e.Message = "lines of the base end with LF, not with CR LF"
	default:
		e.Component, e.Server, e.Client = FirstDifference(base, client)
		e.Message = "the first line that differs is that of " + e.Component
	}
	return e, nil
}

// FirstDifference finds the first line in which two signature bases differ, and
// the identifier of its component. All three are empty when there is none.
func FirstDifference(server, client []byte) (component, serverLine, clientLine string) {
	for len(server) > 0 || len(client) > 0 {
		var a, b []byte
		a, server, _ = bytes.Cut(server, []byte("\n"))
		b, client, _ = bytes.Cut(client, []byte("\n"))
		if bytes.Equal(a, b) {
			continue
		}
		component = identifier(string(a))
		if len(a) == 0 {
			component = identifier(string(b))
		}
		return component, string(a), string(b)
	}
	return "", "", ""
}

// identifier is the component identifier that a line of a base begins with.
func identifier(line string) string {
	if line == "" || line[0] != '"' {
		return ""
	}
	id, _, _ := strings.Cut(line, ": ")
	name, params, _ := strings.Cut(id[1:], `"`)
	return name + params
}

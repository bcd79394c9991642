package httpsig

import (
	"fmt"
	"strconv"
)

// The reasons of an [Error].
const (
	ReasonMissing    = "missing"    // no signature, or not the one that was asked for
	ReasonMalformed  = "malformed"  // a field or a part of the request that could be read in two ways, or not at all
	ReasonDuplicate  = "duplicate"  // something is there twice that may be there once
	ReasonComponents = "components" // a component is not covered, must not be covered, or is not in the message
	ReasonWindow     = "window"     // created or expires
	ReasonNonce      = "nonce"
	ReasonTag        = "tag"
	ReasonAlgorithm  = "algorithm" // the alg parameter, or a key of a kind that is not accepted
	ReasonSignature  = "signature" // the signature is not that of this message under this key
	ReasonDigest     = "digest"    // Content-Digest is not that of the body
)

// Error says why a message was refused. It is made for whoever signed the
// message: it holds parts of that message and what to change, and never a MAC, a
// key, or a signature the verifier computed.
type Error struct {
	Reason    string // one of the Reason constants
	Component string // the component identifier it is about, as @query-param;name="id"; or empty
	Message   string // what is wrong, and what to do
}

func (e *Error) Error() string {
	if e.Component == "" {
		return "request signature: " + e.Message
	}
	return "request signature: component " + e.Component + ": " + e.Message
}

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func refuseComponent(reason, component, format string, args ...any) error {
	return &Error{Reason: reason, Component: component, Message: fmt.Sprintf(format, args...)}
}

// clip quotes what a stranger sent, at a length that fits a message.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "…"
	}
	return strconv.QuoteToASCII(s)
}

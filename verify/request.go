package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"connectrpc.com/connect"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

const (
	defaultBody = 1 << 20
	sentBody    = 96 << 10 // longer ones are compared with their digest here
	maxLines    = 256
)

// RequestOptions says what a signed request must be like.
type RequestOptions struct {
	// Scheme and Authority are what the client addressed, "https" and
	// "api.example". Set both behind a proxy that ends TLS or changes Host. Empty:
	// of the connection and of the Host field.
	Scheme, Authority string
	// MaxBody is how much of a body is read. 0: 1 MiB. The body is kept in memory
	// and given back to the request.
	MaxBody int64
	// Label chooses one of several signatures. Empty: there must be exactly one.
	Label string

	Scopes      []string   // all of them are needed
	Address     netip.Addr // of the client
	Partner     string     // empty: any
	Environment string     // empty: any
	Cost        int64      // 0: 1
}

// VerifyRequest asks whether a signed request (RFC 9421) is accepted. It reads the
// body and puts it back, and compares it with Content-Digest (RFC 9530) here. Only
// the fields that the signature covers are sent to the server, and the body up to
// 96 KiB. It is asked once: a second time would be a replay.
//
// The error is [ErrUnavailable]; a denial is a [Decision].
func (c *Client) VerifyRequest(r *http.Request, o RequestOptions) (Decision, error) {
	in, d := readRequest(r, &o)
	if in == nil {
		return d, nil
	}
	if d := in.readBody(r, &o); d.Reason != "" {
		return d, nil
	}
	q := &rotundav1.VerifyRequestRequest{
		Profile: rotundav1.SignatureProfile_SIGNATURE_PROFILE_HTTP_MESSAGE_SIGNATURES,
		Method:  in.msg.Method, Scheme: in.msg.Scheme, Authority: in.msg.Authority, Target: in.target,
		Headers: in.covered(), Label: o.Label,
		Scopes: o.Scopes, Address: addressText(o.Address), Partner: o.Partner, Environment: o.Environment,
		Cost: o.Cost, WantHeaders: true,
	}
	switch {
	case len(q.Headers) > maxLines || len(q.Target) > 8192 || len(q.Authority) > 255 || len(q.Method) > 32 || !valid(q):
		return denied(ReasonMalformed, "the request has too many or too long fields"), nil
	case len(in.body) <= sentBody:
		q.Body = in.body
	case !in.digested:
		return denied(ReasonDigest, "the body is too long to be verified without Content-Digest"), nil
	default:
		q.BodyOmitted, q.ContentDigestVerified = true, true
	}
	ctx, cancel := context.WithTimeout(r.Context(), c.timeout)
	defer cancel()
	res, err := c.rpc.VerifyRequest(ctx, connect.NewRequest(q))
	if err != nil {
		return Decision{}, notAnswered("a signed request", err)
	}
	return decision(res.Msg)
}

// valid says that strings can be sent: protobuf refuses what is not UTF-8.
func valid(q *rotundav1.VerifyRequestRequest) bool {
	for _, h := range q.Headers {
		if len(h.GetValue()) > 8192 || strings.ToValidUTF8(h.GetValue(), "") != h.GetValue() {
			return false
		}
	}
	return strings.ToValidUTF8(q.Target+q.Authority+q.Method, "") == q.Target+q.Authority+q.Method
}

// incoming is a signed request as it arrived.
type incoming struct {
	msg       httpsig.Message
	signature *httpsig.Signature
	target    string
	body      []byte
	digested  bool // the body was compared with Content-Digest
}

// readRequest reads all but the body. It returns nil and a denial for what can't be
// a signed request.
func readRequest(r *http.Request, o *RequestOptions) (*incoming, Decision) {
	in := &incoming{target: r.RequestURI}
	if in.target == "" {
		in.target = r.URL.RequestURI() // made here, not received
	}
	if !strings.HasPrefix(in.target, "/") {
		return nil, denied(ReasonMalformed, "the request target is not a path")
	}
	in.msg = httpsig.Message{Method: r.Method, Scheme: o.Scheme, Authority: o.Authority, Header: r.Header}
	in.msg.Path, in.msg.Query, in.msg.HasQuery = strings.Cut(in.target, "?")
	if in.msg.Method == "" {
		in.msg.Method = http.MethodGet
	}
	if in.msg.Authority == "" {
		in.msg.Authority = r.Host
	}
	if in.msg.Scheme == "" {
		in.msg.Scheme = "http"
		if r.TLS != nil {
			in.msg.Scheme = "https"
		}
	}
	var err error
	if in.signature, err = httpsig.Parse(&in.msg, o.Label); err != nil {
		return nil, refused(err)
	}
	return in, Decision{}
}

// readBody reads the body, gives it back to the request, and compares it with
// Content-Digest if there is one. A Decision without reason is no denial.
func (in *incoming) readBody(r *http.Request, o *RequestOptions) Decision {
	most := o.MaxBody
	if most <= 0 {
		most = defaultBody
	}
	if r.ContentLength > most {
		return denied(ReasonTooLarge, fmt.Sprintf("the body has more than %d bytes", most))
	}
	if r.Body != nil && r.Body != http.NoBody {
		body, err := io.ReadAll(io.LimitReader(r.Body, most+1))
		if err != nil {
			d := denied(ReasonMalformed, "the body breaks off")
			d.Status = http.StatusBadRequest
			return d
		}
		if int64(len(body)) > most {
			return denied(ReasonTooLarge, fmt.Sprintf("the body has more than %d bytes", most))
		}
		in.body = body
		r.Body = &readAgain{Reader: bytes.NewReader(body), Closer: r.Body}
	}
	if digests := r.Header["Content-Digest"]; len(digests) > 0 {
		if err := httpsig.CheckDigest(digests, in.body); err != nil {
			return refused(err)
		}
		in.digested = true
	}
	return Decision{}
}

// readAgain is a body that was read.
type readAgain struct {
	io.Reader
	io.Closer
}

// covered are the fields that verification needs, and no others: cookies and
// credentials stay here.
func (in *incoming) covered() []*rotundav1.Header {
	var out []*rotundav1.Header
	seen := map[string]bool{}
	add := func(name string) {
		name = http.CanonicalHeaderKey(name)
		if seen[name] {
			return
		}
		seen[name] = true
		for _, value := range in.msg.Header[name] {
			out = append(out, &rotundav1.Header{Name: name, Value: value})
		}
	}
	add("Signature-Input")
	add("Signature")
	add("Content-Digest")
	for i := range in.signature.Components {
		if name := in.signature.Components[i].Name(); !strings.HasPrefix(name, "@") {
			add(name)
		}
	}
	return out
}

// refused is the denial that an error of httpsig means.
func refused(err error) Decision {
	e, ok := errors.AsType[*httpsig.Error](err)
	if !ok {
		return denied(ReasonMalformed, err.Error())
	}
	reason := ReasonMalformed
	switch e.Reason {
	case httpsig.ReasonMissing:
		reason = ReasonMissing
	case httpsig.ReasonComponents, httpsig.ReasonNonce, httpsig.ReasonTag:
		reason = ReasonComponents
	case httpsig.ReasonWindow:
		reason = ReasonWindow
	case httpsig.ReasonAlgorithm:
		reason = ReasonAlgorithm
	case httpsig.ReasonSignature:
		reason = ReasonSignature
	case httpsig.ReasonDigest:
		reason = ReasonDigest
	}
	return denied(reason, e.Error())
}

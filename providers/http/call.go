package httptarget

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// message is a body. The order of its members is part of the protocol: see doc.go.
type message struct {
	Type       string            `json:"type"`
	Rotation   string            `json:"rotation"`
	Generation int64             `json:"generation"`
	Epoch      int64             `json:"epoch"`
	Strategy   string            `json:"strategy"`
	Account    string            `json:"account"`
	Fields     map[string]string `json:"fields"`
	Emergency  bool              `json:"emergency,omitempty"`
	End        string            `json:"end,omitempty"`
}

func messageOf(step string, c providers.Change, h providers.Held) message {
	m := message{
		Type: "credential." + step, Rotation: h.Rotation, Generation: h.Generation, Epoch: c.Epoch,
		Strategy: string(c.Strategy), Account: h.Account, Fields: make(map[string]string, len(h.Fields)),
	}
	for name, v := range h.Fields {
		m.Fields[name] = v.RevealString()
	}
	return m
}

func (m message) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("encode a %s: %w", m.Type, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// question is the id of a request that is asked anew each time.
func question(rotation, step string) string { return rotation + "_" + step + "_" + rand.Text() }

// call sends a message to the endpoint of a step, and sorts the answer. body is that of
// a 2xx, up to maxAnswer.
func (t *target) call(ctx context.Context, step, id string, m message) (body []byte, err error) {
	text, err := m.encode()
	if err != nil {
		return nil, err
	}
	defer clear(text)
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.base.JoinPath(t.endpoints[step]).String(), bytes.NewReader(text))
	if err != nil {
		return nil, fault.Invalid("settings."+step, "malformed", "%s: the address of %s can't be used: %w", t.name, step, err)
	}
	signed, err := webhook.Sign(id, t.now(), text, t.secret)
	if err != nil {
		return nil, fault.Invalid("login.signing_secret", "unusable", "%s: sign a request of %s: %w", t.name, step, err)
	}
	signed.Set(r.Header)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "Rotunda")
	answer, err := t.client.Do(r)
	if err != nil {
		return nil, t.unanswered(ctx, step, err)
	}
	defer answer.Body.Close()
	// The body of a 101 is the bare connection, which no context ends: it is never read.
	if err := t.sort(step, answer); err != nil {
		return nil, err
	}
	body, err = io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil && step == "usage" {
		return nil, fault.New(fault.ErrUnavailable, "answer_cut", "%s: ask for the usage of %q: the answer broke off", t.name, m.Account)
	}
	return body, nil // of the other steps the status is the answer
}

// unanswered sorts the failure of a request that has no answer. Most of them may have
// arrived. Not so what was refused before the first byte.
func (t *target) unanswered(ctx context.Context, step string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %s: no answer: %w", t.name, step, ctx.Err())
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return fault.New(e.Kind, e.Reason, "%s: %s: %s", t.name, step, e.Message)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fault.New(fault.ErrDenied, "certificate", "%s: %s: the partner's certificate is not valid for this address or not known: set ca_cert if it is the partner's own", t.name, step)
	}
	return fault.New(fault.ErrUnavailable, "no_answer", "%s: %s: no answer: %s", t.name, step, cause(err))
}

// cause is why there is no answer, in words that are ours or the system's. Other errors
// quote what the partner has sent, which may be what we sent to him.
func cause(err error) string {
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return providers.Scrub(e.Error())
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return "the connection or its TLS handshake took too long"
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" {
		return e.Err.Error() // an alert of TLS, in Go's words
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "the connection was closed"
	}
	return "what came was not understood as an answer in HTTP over TLS"
}

func (t *target) sort(step string, answer *http.Response) error {
	refused := func(reason, remedy string) error {
		return fault.New(fault.ErrDenied, reason, "%s: %s was answered %d: %s", t.name, step, answer.StatusCode, remedy)
	}
	switch code := answer.StatusCode; {
	case code >= 200 && code < 300:
		return nil
	case code >= 300 && code < 400:
		return refused("redirect", "redirects are not followed: set the address that is meant")
	case code == http.StatusConflict:
		return fault.New(fault.ErrStale, "stale", "%s: %s was answered 409: a newer rotation was at work on this account", t.name, step)
	case code == http.StatusUnprocessableEntity:
		return fault.New(fault.ErrRejected, "rejected", "%s: %s was answered 422: the partner does not take this value", t.name, step)
	case code == http.StatusTooManyRequests:
		return fault.New(fault.ErrLimited, "throttled", "%s: %s was answered 429%s", t.name, step, retryAfter(answer.Header.Get("Retry-After"), t.now()))
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return refused("signature", "the partner does not take our signature, or this account is not ours: compare the signing secret, and the clocks")
	case code == http.StatusNotFound:
		return refused("missing", "there is no such endpoint or no such account: compare the address and the account")
	case code == http.StatusGone:
		return refused("gone", "the account or the value is gone")
	case code == http.StatusBadRequest, code == http.StatusMethodNotAllowed, code == http.StatusRequestEntityTooLarge, code == http.StatusUnsupportedMediaType:
		return refused("not_understood", "the endpoint does not understand this request: compare its address")
	default:
		return fault.New(fault.ErrUnavailable, "status", "%s: %s was answered %d: whether it was done is not known", t.name, step, code)
	}
}

// retryAfter is the header in words, when it can be read (RFC 9110, section 10.2.3).
func retryAfter(text string, now time.Time) string {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return fmt.Sprintf(": again in %d seconds", n)
	}
	if at, err := http.ParseTime(text); err == nil {
		return fmt.Sprintf(": again in %d seconds", max(0, int64(at.Sub(now).Seconds())))
	}
	return ""
}

// gone says whether an error is the answer 410.
func gone(err error) bool {
	e, ok := errors.AsType[*fault.Error](err)
	return ok && e.Reason == "gone"
}

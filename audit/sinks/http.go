package sinks

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// maxReply bounds what is read of an answer.
const maxReply = 64 << 10

// client speaks HTTP with one receiver. It follows no redirects, which would take
// the trail and the token to wherever the answer says; it uses no proxy.
type client struct {
	parsed
	http *http.Client
}

func newClient(p *parsed) *client {
	dialer := &net.Dialer{Timeout: p.DialTimeout}
	return &client{parsed: *p, http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        p.tls,
			TLSHandshakeTimeout:    p.DialTimeout,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // an answer is bounded as it comes, not as it unpacks
			MaxIdleConns:           2,
			MaxIdleConnsPerHost:    2,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: maxReply,
		},
	}}
}

func (c *client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// at returns the address with another path.
func (c *client) at(path, query string) string {
	u := *c.url
	u.Path, u.RawPath, u.RawQuery = path, "", query
	return u.String()
}

// post sends a body and returns the answer's body when its status is 2xx.
func (c *client) post(ctx context.Context, address string, header http.Header, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return nil, c.unavailable("unreachable", err.Error())
	}
	req.Header = header
	req.Header.Set("User-Agent", "rotunda")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unavailable("unreachable", reasonOf(err))
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		// The status alone does not say that the answer is whole.
		return nil, c.unavailable("unreachable", "reading its answer: "+reasonOf(err))
	}
	return reply, c.check(resp, reply)
}

// reasonOf is an error's text without the address, which net/http puts first.
func reasonOf(err error) string {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return err.Error()
}

// check turns a status into an error: nil for 2xx.
func (c *client) check(resp *http.Response, reply []byte) error {
	said := c.excerpt(reply)
	status := resp.StatusCode
	switch {
	case status >= 200 && status < 300:
		return nil
	case status >= 300 && status < 400:
		return c.unavailable("redirect", fmt.Sprintf("it answers %d, a redirect, and those are not followed: set the address to where the receiver is", status))
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return c.unavailable("denied", fmt.Sprintf("it answers %d: check the sink's secret%s", status, said))
	case status == http.StatusBadRequest || status == http.StatusRequestEntityTooLarge || status == http.StatusUnprocessableEntity:
		return fault.New(fault.ErrRejected, "refused", "%s %s refuses the records with %d%s", c.Kind, c.where(), status, said)
	}
	err := c.unavailable("failing", fmt.Sprintf("it answers %d%s", status, said))
	if after, ok := retryAfter(resp.Header); ok {
		return &Later{After: after, Err: err}
	}
	return err
}

// retryAfter reads RFC 9110, section 10.2.3. A date is taken as the receiver's own
// clock has it.
func retryAfter(h http.Header) (time.Duration, bool) {
	text := h.Get("Retry-After")
	if text == "" {
		return 0, false
	}
	const most = 5 * time.Minute
	if seconds, err := strconv.ParseUint(text, 10, 32); err == nil {
		return min(time.Duration(seconds)*time.Second, most), true
	}
	at, err := http.ParseTime(text)
	now, err2 := http.ParseTime(h.Get("Date"))
	if err != nil || err2 != nil {
		return 0, false
	}
	return max(0, min(at.Sub(now), most)), true
}

// where is what errors say of the address.
func (p *parsed) where() string { return p.url.Scheme + "://" + p.url.Host }

// unavailable is an error that is worth another try.
func (p *parsed) unavailable(reason, text string) error {
	return fault.New(fault.ErrUnavailable, reason, "send to %s %s: %s", p.Kind, p.where(), p.scrub(text))
}

// scrub takes the secret, and the address behind its host, out of a text that came
// from elsewhere.
func (p *parsed) scrub(text string) string {
	s := p.Secret.RevealString()
	forms := []string{s, strings.TrimPrefix(s, "whsec_"), url.QueryEscape(s), url.PathEscape(s), base64.StdEncoding.EncodeToString([]byte(s))}
	if path := p.url.RequestURI(); len(path) > 1 {
		forms = append(forms, path)
	}
	for _, form := range forms {
		if form != "" {
			text = strings.ReplaceAll(text, form, "[redacted]")
		}
	}
	return text
}

// excerpt is what a receiver says of a failure, made fit for an error: `: "No data"`.
func (c *client) excerpt(reply []byte) string {
	text := string(reply)
	var known struct {
		Text    string `json:"text"`    // Splunk
		Message string `json:"message"` // google.rpc.Status, and many others
	}
	if json.Unmarshal(reply, &known) == nil && known.Text+known.Message != "" {
		text = known.Text + known.Message
	}
	// What is cut can no longer be recognised, so secrets go first.
	text = strings.TrimSpace(c.scrub(text))
	if text == "" {
		return ""
	}
	return fmt.Sprintf(": it says %.160q", text)
}

package httpsig

import (
	"encoding/base64"
	"strconv"
	"strings"
)

// Base appends the signature base of the message for this signature (RFC 9421
// section 2.5): one line per component, and last the signature's parameters. It
// fails when a component is not in the message.
func (s *Signature) Base(dst []byte, m *Message) ([]byte, error) {
	start := len(dst)
	var err error
	for i := range s.Components {
		c := &s.Components[i]
		dst = append(append(dst, c.raw...), ':', ' ')
		if dst, err = c.appendValue(dst, m); err != nil {
			return dst[:start], err
		}
		dst = append(dst, '\n')
		if len(dst)-start > maxBase {
			return dst[:start], refuseComponent(ReasonMalformed, c.String(), "what is signed is longer than %d bytes", maxBase)
		}
	}
	dst = append(dst, `"@signature-params": `...)
	return append(dst, s.input...), nil
}

func (c *Component) appendValue(dst []byte, m *Message) ([]byte, error) {
	if c.flags&flagReq != 0 {
		if m.Method != "" || m.Request == nil {
			return dst, refuseComponent(ReasonComponents, c.String(), "only a response can cover a part of its request")
		}
		m = m.Request
	}
	if m.Method == "" && c.kind != field && c.kind != status {
		return dst, refuseComponent(ReasonComponents, c.String(), "a response has no such component: add ;req")
	}
	var err error
	switch c.kind {
	case field:
		return c.appendField(dst, m)
	case status:
		if m.Method != "" || m.Status < 100 || m.Status > 999 {
			return dst, refuseComponent(ReasonComponents, c.String(), "only a response has a status")
		}
		return strconv.AppendInt(dst, int64(m.Status), 10), nil
	case method:
		if m.Method != "GET" && m.Method != "POST" && !all(m.Method, inToken) {
			return dst, refuseComponent(ReasonMalformed, c.String(), "the method %s is not a token", clip(m.Method))
		}
		return append(dst, m.Method...), nil
	case authority:
		return m.appendAuthority(dst)
	case scheme:
		return m.appendScheme(dst, c.name())
	case path:
		return m.appendPath(dst, c.name())
	case query:
		if err := m.checkQuery(c.name()); err != nil {
			return dst, err
		}
		return append(append(dst, '?'), m.Query...), nil
	case queryParam:
		return c.appendQueryParam(dst, m)
	case requestTarget:
	case targetURI:
		if dst, err = m.appendScheme(dst, c.name()); err != nil {
			return dst, err
		}
		if dst, err = m.appendAuthority(append(dst, "://"...)); err != nil {
			return dst, err
		}
	}
	// The target URI from its path on, or the request target in the form that a
	// request to a server has (RFC 9112 section 3.2.1).
	if dst, err = m.appendPath(dst, c.name()); err != nil {
		return dst, err
	}
	if err := m.checkQuery(c.name()); err != nil {
		return dst, err
	}
	if m.HasQuery {
		dst = append(append(dst, '?'), m.Query...)
	}
	return dst, nil
}

// appendField appends the value of a field (RFC 9421 section 2.1).
func (c *Component) appendField(dst []byte, m *Message) ([]byte, error) {
	h := m.Header
	if c.flags&flagTR != 0 {
		h = m.Trailer
	}
	lines := lookup(h, c.name())
	if len(lines) == 0 {
		if c.name() == "host" {
			return dst, refuseComponent(ReasonComponents, c.String(), "the message does not have it here: cover @authority in its place")
		}
		return dst, refuseComponent(ReasonComponents, c.String(), "the message does not have it")
	}
	switch {
	case c.flags&flagBS != 0:
		for i, line := range lines {
			if i > 0 {
				dst = append(dst, ", "...)
			}
			dst = append(dst, ':')
			dst = base64.StdEncoding.AppendEncode(dst, []byte(trim(line)))
			dst = append(dst, ':')
		}
		return dst, nil
	case c.flags&(flagSF|flagKey) == 0:
		return c.appendLines(dst, lines)
	}
	joined, err := c.appendLines(nil, lines)
	if err != nil {
		return dst, err
	}
	if len(joined) > maxField {
		return dst, refuseComponent(ReasonMalformed, c.String(), "a structured field has at most %d bytes: cover it whole, without ;sf and ;key", maxField)
	}
	if c.flags&flagSF != 0 {
		return canonical(dst, c.name(), string(joined), shapeOf(c.name()))
	}
	dst, found, err := dictMember(dst, c.name(), string(joined), c.arg())
	if err == nil && !found {
		err = refuseComponent(ReasonComponents, c.String(), "the field has no such member")
	}
	return dst, err
}

func (c *Component) appendLines(dst []byte, lines []string) ([]byte, error) {
	for i, line := range lines {
		if i > 0 {
			dst = append(dst, ", "...)
		}
		line = trim(line)
		if between(line, ' ') {
			dst = append(dst, line...)
			continue
		}
		from := 0
		for j := 0; j < len(line); j++ {
			b := line[j]
			if b >= ' ' && b < 0x7f || b == '\t' {
				continue
			}
			// The line folding of old times counts as one space (RFC 9112
			// section 5.2). Any other line end could add a line to the base.
			if b == '\r' && j+2 < len(line) && line[j+1] == '\n' && (line[j+2] == ' ' || line[j+2] == '\t') {
				dst = append(append(dst, strings.TrimRight(line[from:j], " \t")...), ' ')
				for j += 2; line[j] == ' ' || line[j] == '\t'; j++ {
				}
				from = j
				j--
				continue
			}
			return dst, refuseComponent(ReasonMalformed, c.String(), "the field holds byte %#02x: use printable ASCII, or cover it with ;bs", b)
		}
		dst = append(dst, line[from:]...)
		if len(dst) > 2*maxBase {
			break // Base says that it is too long
		}
	}
	return dst, nil
}

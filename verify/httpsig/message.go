package httpsig

import (
	"strconv"
	"strings"
)

// Message is the part of an HTTP message that a signature can cover. It is a
// request when Method is set, else a response.
//
// Behind a proxy that ends TLS, Scheme and Authority are what the client used:
// take them from configuration, not from the socket.
type Message struct {
	Method    string
	Scheme    string              // "https"; without it no default port is dropped from the authority
	Authority string              // as received, as in the Host field or :authority
	Path      string              // as sent, still escaped; "" means "/"
	Query     string              // as sent, without "?"
	HasQuery  bool                // whether there was a "?"
	Header    map[string][]string // keys in canonical MIME form, as in http.Header
	Trailer   map[string][]string // for components with ;tr; the same form
	Status    int                 // of a response
	Request   *Message            // what a response answers, for components with ;req
}

// lookup finds the lines of a field by its lower-case name, without the
// allocation that making the canonical name would cost.
func lookup(h map[string][]string, name string) []string {
	if name == "content-digest" { // nearly every signature covers it
		return h["Content-Digest"]
	}
	var buf [maxName]byte
	if len(name) > len(buf) {
		return nil
	}
	upper := true
	for i := 0; i < len(name); i++ {
		c := name[i]
		if upper && 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		buf[i] = c
		upper = c == '-'
	}
	return h[string(buf[:len(name)])]
}

// appendAuthority appends the authority normalised as RFC 9110 section 4.2.3
// says: lower case, without the scheme's default port. A host that two parsers
// could understand differently is refused.
func (m *Message) appendAuthority(dst []byte) ([]byte, error) {
	const longest = 255
	a, start, i := m.Authority, len(dst), 0
	if a != "" && a[0] == '[' {
		for i = 1; i < len(a) && i <= longest && (isHex(a[i]) || a[i] == ':' || a[i] == '.'); i++ {
		}
		if i < len("[::") || i == len(a) || a[i] != ']' {
			return dst, m.refuseAuthority()
		}
		i++
		for _, c := range []byte(a[:i]) {
			dst = append(dst, lower(c))
		}
	} else {
		for ; i < len(a) && a[i] != ':'; i++ {
			if classes[a[i]]&inHost == 0 || i == longest {
				return dst[:start], m.refuseAuthority()
			}
			dst = append(dst, lower(a[i]))
		}
	}
	if i == 0 {
		return dst, m.refuseAuthority()
	}
	if i == len(a) {
		return dst, nil
	}
	port := a[i+1:]
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || a[i] != ':' || n == 0 || port[0] == '0' {
		return dst[:start], m.refuseAuthority()
	}
	if port == "443" && strings.EqualFold(m.Scheme, "https") || port == "80" && strings.EqualFold(m.Scheme, "http") {
		return dst, nil
	}
	return append(append(dst, ':'), port...), nil
}

func (m *Message) refuseAuthority() error {
	return refuseComponent(ReasonMalformed, "@authority", "the authority %s is not host or host:port: send one Host, in ASCII, without a user name", clip(m.Authority))
}

func (m *Message) appendScheme(dst []byte, component string) ([]byte, error) {
	const longest = 16
	s := m.Scheme
	if s == "" || len(s) > longest || !isAlpha(s[0]) {
		return dst, refuseComponent(ReasonMalformed, component, "the scheme %s of the request is not known or not a scheme", clip(s))
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; !isAlpha(c) && !isDigit(c) && c != '+' && c != '-' && c != '.' {
			return dst, refuseComponent(ReasonMalformed, component, "the scheme %s of the request is not a scheme", clip(s))
		}
		dst = append(dst, lower(s[i]))
	}
	return dst, nil
}

// appendPath appends the path as it was sent: nothing is decoded, so two
// spellings of one path are two paths (RFC 9421 section 2.2.6).
func (m *Message) appendPath(dst []byte, component string) ([]byte, error) {
	p := m.Path
	if p == "" {
		return append(dst, '/'), nil
	}
	if p[0] != '/' {
		return dst, refuseComponent(ReasonMalformed, component, "the path %s does not begin with a slash", clip(p))
	}
	if !between(p, ' '+1) || strings.IndexByte(p, '?') >= 0 || strings.IndexByte(p, '#') >= 0 {
		return dst, refuseComponent(ReasonMalformed, component, "the path holds a space, ?, # or what is not printable ASCII: escape it")
	}
	return append(dst, p...), nil
}

func (m *Message) checkQuery(component string) error {
	q := m.Query
	if !m.HasQuery && q != "" {
		return refuseComponent(ReasonMalformed, component, "the message has a query and says that it has none")
	}
	if !between(q, ' '+1) || strings.IndexByte(q, '#') >= 0 {
		return refuseComponent(ReasonMalformed, component, "the query holds a space, # or what is not printable ASCII: escape it")
	}
	return nil
}

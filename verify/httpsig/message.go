package httpsig

import (
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
	a := m.Authority
	host, port, ok := splitAuthority(a)
	if !ok {
		return dst, refuseComponent(ReasonMalformed, "@authority", "the authority %s is not host or host:port: send one Host, in ASCII, without a user name", clip(a))
	}
	for i := 0; i < len(host); i++ {
		dst = append(dst, lower(host[i]))
	}
	if port == "" || port == "443" && strings.EqualFold(m.Scheme, "https") || port == "80" && strings.EqualFold(m.Scheme, "http") {
		return dst, nil
	}
	return append(append(dst, ':'), port...), nil
}

func splitAuthority(a string) (host, port string, ok bool) {
	const longest = 255 + len(":65535")
	if a == "" || len(a) > longest {
		return "", "", false
	}
	host = a
	if a[0] == '[' {
		end := strings.IndexByte(a, ']')
		if end < 0 {
			return "", "", false
		}
		for i := 1; i < end; i++ {
			if c := a[i]; !isHex(c) && c != ':' && c != '.' {
				return "", "", false
			}
		}
		host, port = a[:end+1], a[end+1:]
		if len(host) < len("[::]") {
			return "", "", false
		}
	} else {
		if i := strings.IndexByte(a, ':'); i >= 0 {
			host, port = a[:i], a[i:]
		}
		for i := 0; i < len(host); i++ {
			if c := host[i]; !isAlpha(c) && !isDigit(c) && c != '-' && c != '.' && c != '_' {
				return "", "", false
			}
		}
	}
	if host == "" {
		return "", "", false
	}
	if port == "" {
		return host, "", true
	}
	port = port[1:] // host ends where ':' is, or port[0] is checked here
	if a[len(host)] != ':' || port == "" || len(port) > 5 || port[0] == '0' {
		return "", "", false
	}
	n := 0
	for i := 0; i < len(port); i++ {
		if !isDigit(port[i]) {
			return "", "", false
		}
		n = n*10 + int(port[i]-'0')
	}
	return host, port, n <= 65535
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
	for i := 0; i < len(p); i++ {
		if c := p[i]; c <= ' ' || c >= 0x7f || c == '?' || c == '#' {
			return dst, refuseComponent(ReasonMalformed, component, "the path holds byte %#02x: escape it as %%%02X", c, c)
		}
	}
	return append(dst, p...), nil
}

func (m *Message) checkQuery(component string) error {
	q := m.Query
	if !m.HasQuery && q != "" {
		return refuseComponent(ReasonMalformed, component, "the message has a query and says that it has none")
	}
	for i := 0; i < len(q); i++ {
		if c := q[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return refuseComponent(ReasonMalformed, component, "the query holds byte %#02x: escape it as %%%02X", c, c)
		}
	}
	return nil
}

package httpsig

import (
	"encoding/base64"
	"strings"
)

// scanner reads the pieces of a structured field (RFC 9651). It is strict: what
// it accepts has one reading.
type scanner struct {
	s     string
	i     int
	field string // for messages
}

func (p *scanner) fail(format string, args ...any) error {
	args = append([]any{p.field, p.i + 1}, args...)
	return refuse(ReasonMalformed, "%s at character %d: "+format, args...)
}

// next is the character at hand, or 0 at the end: a 0 in the text ends nothing,
// but it is accepted nowhere either.
func (p *scanner) next() byte {
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

func (p *scanner) space() {
	for p.i < len(p.s) && (p.s[p.i] == ' ' || p.s[p.i] == '\t') {
		p.i++
	}
}

// key reads a dictionary or parameter key.
func (p *scanner) key() (string, error) {
	if c := p.next(); !('a' <= c && c <= 'z') && c != '*' {
		return "", p.fail("a name in lower case belongs here")
	}
	rest := p.s[p.i:]
	n := 1
	for n < len(rest) && classes[rest[n]]&inKey != 0 {
		n++
	}
	if n > maxLabel {
		return "", p.fail("a name is longer than %d characters", maxLabel)
	}
	p.i += n
	return rest[:n], nil
}

// str reads a quoted string.
func (p *scanner) str() (string, error) {
	if p.next() != '"' {
		return "", p.fail("a string in double quotes belongs here")
	}
	p.i++
	rest := p.s[p.i:]
	n := 0
	for n < len(rest) && classes[rest[n]]&inPlain != 0 {
		n++
	}
	p.i += n
	switch p.next() {
	case '"':
		p.i++
		return rest[:n], nil
	case '\\':
		return p.escaped(p.i - n)
	}
	if p.i == len(p.s) {
		return "", p.fail("a string has no closing quote")
	}
	return "", p.fail("a string holds printable ASCII only")
}

// escaped goes on with a string that starts at start, from its first backslash.
func (p *scanner) escaped(start int) (string, error) {
	var b strings.Builder
	b.WriteString(p.s[start:p.i])
	for ; p.i < len(p.s); p.i++ {
		switch c := p.s[p.i]; {
		case c == '"':
			p.i++
			return b.String(), nil
		case c == '\\':
			p.i++
			if c := p.next(); c != '"' && c != '\\' {
				return "", p.fail("a backslash stands before a quote or a backslash only")
			}
			b.WriteByte(p.s[p.i])
		case c < ' ' || c >= 0x7f:
			return "", p.fail("a string holds printable ASCII only")
		default:
			b.WriteByte(c)
		}
	}
	return "", p.fail("a string has no closing quote")
}

// bytes reads a byte sequence and returns what is between its colons, which may
// be anything still.
func (p *scanner) bytes() (string, error) {
	if p.next() != ':' {
		return "", p.fail("base64 between colons belongs here")
	}
	rest := p.s[p.i+1:]
	n := strings.IndexByte(rest, ':')
	if n < 0 {
		return "", p.fail("the closing colon is missing")
	}
	p.i += n + 2
	return rest[:n], nil
}

// appendBase64 decodes base64 in its one canonical form.
func appendBase64(dst []byte, text string) ([]byte, bool) {
	// The decoder skips line ends, and others don't.
	if strings.IndexByte(text, '\n') >= 0 || strings.IndexByte(text, '\r') >= 0 {
		return dst, false
	}
	dst, err := base64.StdEncoding.Strict().AppendDecode(dst, []byte(text))
	return dst, err == nil
}

// time reads "=" and Unix seconds, as the value of a parameter.
func (p *scanner) time(name string, into *int64, seen *bool) error {
	if *seen {
		return refuse(ReasonDuplicate, "the signature parameter %s is there twice", name)
	}
	*seen = true
	if p.next() != '=' {
		return p.fail("the signature parameter %s needs a value", name)
	}
	p.i++
	start, n := p.i, int64(0)
	for p.i < len(p.s) && isDigit(p.s[p.i]) && n <= maxTime {
		n = n*10 + int64(p.s[p.i]-'0')
		p.i++
	}
	digits := p.s[start:p.i]
	if digits == "" || n > maxTime || p.next() == '.' || digits[0] == '0' && len(digits) > 1 {
		return p.fail("%s is a whole number of seconds since 1970, without sign or leading zero", name)
	}
	*into = n
	return nil
}

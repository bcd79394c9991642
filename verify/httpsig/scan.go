package httpsig

import "strings"

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
	n := strings.IndexByte(rest, '"')
	if n < 0 {
		return "", p.fail("a string has no closing quote")
	}
	text := rest[:n]
	if strings.IndexByte(text, '\\') >= 0 {
		return p.escaped(p.i)
	}
	if !between(text, ' ') {
		return "", p.fail("a string holds printable ASCII only")
	}
	p.i += n + 1
	return text, nil
}

// escaped reads a string with backslashes, which starts at start.
func (p *scanner) escaped(start int) (string, error) {
	var b strings.Builder
	for p.i = start; p.i < len(p.s); p.i++ {
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
	rest, n, i := p.s[p.i:], int64(0), 0
	for i < len(rest) && isDigit(rest[i]) && i < maxTimeDigits {
		n = n*10 + int64(rest[i]-'0')
		i++
	}
	p.i += i
	if i == 0 || n > maxTime || rest[0] == '0' && i > 1 || i < len(rest) && (isDigit(rest[i]) || rest[i] == '.') {
		return p.fail("%s is a whole number of seconds since 1970, without sign or leading zero", name)
	}
	*into = n
	return nil
}

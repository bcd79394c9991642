package httpsig

import (
	"strings"
	"unicode/utf8"
)

// appendQueryParam appends the value of one query parameter: decoded as a form
// and encoded anew, so that the spelling of the sender makes no difference (RFC
// 9421 section 2.2.8). A parameter that is there twice can't be covered.
func (c *Component) appendQueryParam(dst []byte, m *Message) ([]byte, error) {
	if err := m.checkQuery(c.String()); err != nil {
		return dst, err
	}
	if len(m.Query) > maxField {
		return dst, refuseComponent(ReasonMalformed, c.String(), "a query has at most %d bytes: cover @query in its place", maxField)
	}
	start, found, arg := len(dst), false, c.arg()
	var name []byte
	for rest := m.Query; rest != ""; {
		pair := rest
		if i := strings.IndexByte(rest, '&'); i >= 0 {
			pair, rest = rest[:i], rest[i+1:]
		} else {
			rest = ""
		}
		if pair == "" {
			continue
		}
		key, value, _ := strings.Cut(pair, "=")
		var ok bool
		if name, ok = appendRecoded(name[:0], key); !ok {
			return dst[:start], refuseComponent(ReasonMalformed, c.String(), "the query holds %s, which is not an escaped form of UTF-8", clip(pair))
		}
		if string(name) != arg {
			continue
		}
		if found {
			return dst[:start], refuseComponent(ReasonDuplicate, c.String(), "the query has it twice: cover @query in its place")
		}
		found = true
		if dst, ok = appendRecoded(dst, value); !ok {
			return dst[:start], refuseComponent(ReasonMalformed, c.String(), "the query holds %s, which is not an escaped form of UTF-8", clip(pair))
		}
	}
	if !found {
		return dst, refuseComponent(ReasonComponents, c.String(), "the query does not have it; the name is given in escaped form")
	}
	return dst, nil
}

// appendRecoded decodes a piece of a form and appends it with everything escaped
// but letters, digits and "*-._". It is not ok when a percent sign begins no
// escape or the bytes are not UTF-8: parsers disagree on what that means.
func appendRecoded(dst []byte, s string) ([]byte, bool) {
	const digits = "0123456789ABCDEF"
	plain := true
	for i := 0; i < len(s); i++ {
		b := s[i]
		switch {
		case b == '+':
			b = ' '
		case b == '%':
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return dst, false
			}
			b = unhex(s[i+1])<<4 | unhex(s[i+2])
			i += 2
		}
		plain = plain && b < 0x80
		if isAlpha(b) || isDigit(b) || b == '*' || b == '-' || b == '.' || b == '_' {
			dst = append(dst, b)
		} else {
			dst = append(dst, '%', digits[b>>4], digits[b&15])
		}
	}
	return dst, plain || validForm(s)
}

func validForm(s string) bool {
	raw := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		b := s[i]
		if b == '%' {
			b = unhex(s[i+1])<<4 | unhex(s[i+2])
			i += 2
		}
		raw = append(raw, b)
	}
	return utf8.Valid(raw)
}

func unhex(c byte) byte {
	if isDigit(c) {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

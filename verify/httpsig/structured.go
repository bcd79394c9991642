package httpsig

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// shape is the top-level type of a structured field.
type shape uint8

const (
	item shape = iota + 1
	list
	dict
)

// shapeOf knows the structured fields that ;sf can serialize. The type of a field
// can't be told from its text (RFC 9421 section 2.1.1), so another field is refused.
func shapeOf(name string) shape {
	switch name {
	case "accept-signature", "cdn-cache-control", "content-digest", "priority",
		"repr-digest", "signature", "signature-input", "want-content-digest", "want-repr-digest":
		return dict
	case "accept-ch", "cache-status", "client-cert-chain", "critical-ch", "proxy-status", "variants":
		return list
	case "client-cert", "capsule-protocol", "idempotency-key", "deprecation":
		return item
	}
	return 0
}

// canonical reads a whole structured field and appends its canonical form.
func canonical(dst []byte, name, text string, as shape) ([]byte, error) {
	p := scanner{s: text, field: name}
	var err error
	switch as {
	case item:
		if dst, err = p.item(dst); err == nil && p.i < len(p.s) {
			err = p.fail("the value ends before this")
		}
	case list:
		first := true
		err = p.members(func() error {
			if !first {
				dst = append(dst, ", "...)
			}
			first = false
			dst, err = p.itemOrList(dst)
			return err
		})
	case dict:
		first := true
		err = p.dictMembers(func(key string) error {
			if !first {
				dst = append(dst, ", "...)
			}
			first = false
			dst = append(dst, key...)
			if p.next() == '=' {
				p.i++
				before := len(dst)
				dst = append(dst, '=')
				if dst, err = p.itemOrList(dst); err == nil && strings.HasPrefix(string(dst[before:]), "=?1") {
					dst = append(dst[:before], dst[before+len("=?1"):]...)
				}
				return err
			}
			dst, err = p.parameters(dst)
			return err
		})
	default:
		err = refuse(ReasonComponents, "the field %s is not known to be structured: cover it without ;sf", clip(name))
	}
	return dst, err
}

// dictMember appends the canonical form of one member's value, parameters included.
func dictMember(dst []byte, name, text, key string) ([]byte, bool, error) {
	p := scanner{s: text, field: name}
	found := false
	start := len(dst)
	err := p.dictMembers(func(k string) (err error) {
		at := len(dst)
		if p.next() == '=' {
			p.i++
			dst, err = p.itemOrList(dst)
		} else {
			dst, err = p.parameters(append(dst, "?1"...))
		}
		if k == key {
			found = true
		} else {
			dst = dst[:at]
		}
		return err
	})
	if err != nil {
		dst = dst[:start]
	}
	return dst, found, err
}

// members walks the members of a list or dictionary; each reads one.
func (p *scanner) members(each func() error) error {
	for p.i < len(p.s) {
		if err := each(); err != nil {
			return err
		}
		p.space()
		if p.i == len(p.s) {
			return nil
		}
		if p.s[p.i] != ',' {
			return p.fail("a comma or the end of the field belongs here")
		}
		p.i++
		p.space()
		if p.i == len(p.s) {
			return p.fail("a member is missing after the comma")
		}
	}
	return nil
}

func (p *scanner) dictMembers(each func(key string) error) error {
	seen := make([]string, 0, 8)
	return p.members(func() error {
		key, err := p.key()
		if err != nil {
			return err
		}
		if seen, err = p.once(seen, key); err != nil {
			return err
		}
		return each(key)
	})
}

// once refuses a second key of the same name, of which others take the first or
// the last.
func (p *scanner) once(seen []string, key string) ([]string, error) {
	const most = 64
	for _, s := range seen {
		if s == key {
			return seen, refuse(ReasonDuplicate, "%s has %s twice", p.field, clip(key))
		}
	}
	if len(seen) == most {
		return seen, p.fail("there are more than %d names", most)
	}
	return append(seen, key), nil
}

func (p *scanner) itemOrList(dst []byte) ([]byte, error) {
	if p.next() != '(' {
		return p.item(dst)
	}
	p.i++
	dst = append(dst, '(')
	for first := true; ; first = false {
		spaced := p.next() == ' '
		for p.next() == ' ' {
			p.i++
		}
		if p.next() == ')' {
			p.i++
			return p.parameters(append(dst, ')'))
		}
		if !first {
			if !spaced {
				return dst, p.fail("a space or a closing bracket belongs here")
			}
			dst = append(dst, ' ')
		}
		var err error
		if dst, err = p.item(dst); err != nil {
			return dst, err
		}
	}
}

func (p *scanner) item(dst []byte) ([]byte, error) {
	dst, err := p.bareItem(dst)
	if err != nil {
		return dst, err
	}
	return p.parameters(dst)
}

func (p *scanner) parameters(dst []byte) ([]byte, error) {
	var seen []string
	for p.next() == ';' {
		p.i++
		for p.next() == ' ' {
			p.i++
		}
		key, err := p.key()
		if err != nil {
			return dst, err
		}
		if seen, err = p.once(seen, key); err != nil {
			return dst, err
		}
		dst = append(append(dst, ';'), key...)
		if p.next() != '=' {
			continue
		}
		p.i++
		at := len(dst)
		if dst, err = p.bareItem(append(dst, '=')); err != nil {
			return dst, err
		}
		if string(dst[at:]) == "=?1" {
			dst = dst[:at]
		}
	}
	return dst, nil
}

func (p *scanner) bareItem(dst []byte) ([]byte, error) {
	switch c := p.next(); {
	case c == '"':
		s, err := p.str()
		return appendString(dst, s), err
	case c == ':':
		return p.byteSequence(dst)
	case c == '?':
		if p.i+1 < len(p.s) && (p.s[p.i+1] == '0' || p.s[p.i+1] == '1') {
			p.i += 2
			return append(dst, p.s[p.i-2:p.i]...), nil
		}
		return dst, p.fail("a boolean is ?0 or ?1")
	case c == '@':
		p.i++
		start := p.i
		dst, err := p.number(append(dst, '@'))
		if err == nil && strings.IndexByte(p.s[start:p.i], '.') >= 0 {
			err = p.fail("a date is a whole number of seconds")
		}
		return dst, err
	case c == '%':
		return p.displayString(dst)
	case c == '-' || isDigit(c):
		return p.number(dst)
	case isAlpha(c) || c == '*':
		start := p.i
		for p.i < len(p.s) && (isToken(p.s[p.i]) || p.s[p.i] == ':' || p.s[p.i] == '/') {
			p.i++
		}
		return append(dst, p.s[start:p.i]...), nil
	}
	return dst, p.fail("a value belongs here")
}

func (p *scanner) byteSequence(dst []byte) ([]byte, error) {
	text, err := p.bytes()
	if err != nil {
		return dst, err
	}
	// Another spelling of the same bytes would have two readings: as it is, and anew.
	if _, ok := appendBase64(nil, text); !ok {
		return dst, p.fail("a byte sequence is base64 with padding")
	}
	return append(append(append(dst, ':'), text...), ':'), nil
}

// number reads an integer of up to 15 digits or a decimal of up to 12 and 3.
func (p *scanner) number(dst []byte) ([]byte, error) {
	negative := p.next() == '-'
	if negative {
		p.i++
	}
	start := p.i
	for isDigit(p.next()) {
		p.i++
	}
	whole, fraction := p.s[start:p.i], ""
	decimal := p.next() == '.'
	if decimal {
		p.i++
		start = p.i
		for isDigit(p.next()) {
			p.i++
		}
		fraction = p.s[start:p.i]
	}
	if whole == "" || len(whole) > 15 || decimal && (len(whole) > 12 || fraction == "" || len(fraction) > 3) {
		return dst, p.fail("a number has up to 15 digits, or 12 before and 1 to 3 after its point")
	}
	whole = strings.TrimLeft(whole[:len(whole)-1], "0") + whole[len(whole)-1:]
	fraction = strings.TrimRight(fraction, "0")
	if negative && (whole != "0" || fraction != "") {
		dst = append(dst, '-')
	}
	dst = append(dst, whole...)
	if decimal {
		if fraction == "" {
			fraction = "0"
		}
		dst = append(append(dst, '.'), fraction...)
	}
	return dst, nil
}

// displayString reads a string of RFC 9651 section 4.2.10.
func (p *scanner) displayString(dst []byte) ([]byte, error) {
	p.i++
	if p.next() != '"' {
		return dst, p.fail(`a display string begins with %%"`)
	}
	p.i++
	var text []byte
	for ; p.i < len(p.s) && p.s[p.i] != '"'; p.i++ {
		c := p.s[p.i]
		if c < ' ' || c >= 0x7f {
			return dst, p.fail("a display string holds printable ASCII only")
		}
		if c == '%' {
			if p.i+2 >= len(p.s) || strings.ToLower(p.s[p.i+1:p.i+3]) != p.s[p.i+1:p.i+3] {
				return dst, p.fail("an escape is a percent sign and two hex digits in lower case")
			}
			n, err := strconv.ParseUint(p.s[p.i+1:p.i+3], 16, 8)
			if err != nil {
				return dst, p.fail("an escape is a percent sign and two hex digits in lower case")
			}
			c = byte(n)
			p.i += 2
		}
		text = append(text, c)
	}
	if p.i == len(p.s) || !utf8.Valid(text) {
		return dst, p.fail("a display string is UTF-8 and ends with a quote")
	}
	p.i++
	dst = append(dst, `%"`...)
	for _, c := range text {
		if c < ' ' || c >= 0x7f || c == '%' || c == '"' {
			const digits = "0123456789abcdef"
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		} else {
			dst = append(dst, c)
		}
	}
	return append(dst, '"'), nil
}

// appendString appends a string as a structured field writes it.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' || s[i] == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, s[i])
	}
	return append(dst, '"')
}

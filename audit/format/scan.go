package format

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

var errJSON = errors.New("it is not JSON in compact form")

// scanValue returns the end of the JSON value (RFC 8259) that begins at s[i]. No
// white space is allowed between its tokens. Its depth is bounded by the bounds
// on a line.
func scanValue(s string, i int) (int, error) {
	if i >= len(s) {
		return i, errJSON
	}
	switch c := s[i]; {
	case c == '"':
		return scanString(s, i)
	case c == '{' || c == '[':
		return scanList(s, i)
	case c == '-' || '0' <= c && c <= '9':
		return scanNumber(s, i)
	}
	for _, word := range [...]string{"true", "false", "null"} {
		if strings.HasPrefix(s[i:], word) {
			return i + len(word), nil
		}
	}
	return i, errJSON
}

func scanList(s string, i int) (int, error) {
	object := s[i] == '{'
	end := s[i] + 2 // '}' or ']'
	if i++; i < len(s) && s[i] == end {
		return i + 1, nil
	}
	for {
		var err error
		if object {
			if i, err = scanString(s, i); err != nil {
				return i, err
			}
			if i >= len(s) || s[i] != ':' {
				return i, errJSON
			}
			i++
		}
		if i, err = scanValue(s, i); err != nil {
			return i, err
		}
		switch {
		case i < len(s) && s[i] == end:
			return i + 1, nil
		case i >= len(s) || s[i] != ',':
			return i, errJSON
		}
		i++
	}
}

func scanString(s string, i int) (int, error) {
	if i >= len(s) || s[i] != '"' {
		return i, errJSON
	}
	for i++; i < len(s); {
		for i < len(s) && plainScan[s[i]] {
			i++
		}
		if i == len(s) {
			break
		}
		switch c := s[i]; {
		case c == '"':
			return i + 1, nil
		case c == '\\':
			if i+1 >= len(s) {
				return i, errJSON
			}
			if s[i+1] == 'u' {
				if i+6 > len(s) || !isHex(s[i+2:i+6]) {
					return i, errJSON
				}
				i += 6
			} else if strings.IndexByte(`"\/bfnrt`, s[i+1]) >= 0 {
				i += 2
			} else {
				return i, errJSON
			}
		case c < 0x20:
			return i, errJSON
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				return i, errJSON
			}
			i += n
		}
	}
	return i, errJSON
}

// plainScan marks the bytes of a string that stand for themselves.
var plainScan = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= 0x20 && c < utf8.RuneSelf && c != '"' && c != '\\'
	}
	return t
}()

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

func scanNumber(s string, i int) (int, error) {
	digits := func() bool {
		start := i
		for i < len(s) && '0' <= s[i] && s[i] <= '9' {
			i++
		}
		return i > start
	}
	if s[i] == '-' {
		i++
	}
	zero := i < len(s) && s[i] == '0'
	start := i
	if !digits() || zero && i > start+1 {
		return i, errJSON
	}
	if i < len(s) && s[i] == '.' {
		if i++; !digits() {
			return i, errJSON
		}
	}
	if i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		if i++; i < len(s) && (s[i] == '+' || s[i] == '-') {
			i++
		}
		if !digits() {
			return i, errJSON
		}
	}
	return i, nil
}

// members calls f for each member of the object s, in order. A member's name is
// passed as it stands between its quotes: no name that Rotunda writes needs an
// escape. at is the offset of its value. Nothing may follow the object.
func members(s string, f func(name, value string, at int) error) error {
	if s == "{}" {
		return nil
	}
	if s == "" || s[0] != '{' {
		return errJSON
	}
	for i := 1; ; {
		colon, err := scanString(s, i)
		if err != nil {
			return err
		}
		if colon >= len(s) || s[colon] != ':' {
			return errJSON
		}
		end, err := scanValue(s, colon+1)
		if err != nil {
			return err
		}
		if err := f(s[i+1:colon-1], s[colon+1:end], colon+1); err != nil {
			return err
		}
		switch {
		case end == len(s)-1 && s[end] == '}':
			return nil
		case end >= len(s) || s[end] != ',':
			return errJSON
		}
		i = end + 1
	}
}

// memberAt names the member of an object at an offset: `member "unmapped.hash"`.
func memberAt(s string, offset int) string {
	name, found := "", false
	for s != "" {
		inside := ""
		start := 0
		last := ""
		_ = members(s, func(n, value string, at int) error {
			// A name belongs to the member that follows it, a comma and a
			// bracket to the one before.
			if last = n; offset < at+len(value) {
				inside, start, found = value, at, true
				return errJSON // ends the walk
			}
			return nil
		})
		if last == "" {
			break
		}
		if name != "" {
			name += "."
		}
		name += last
		if inside == "" || inside[0] != '{' || offset < start {
			break
		}
		s, offset = inside, offset-start
	}
	if !found && name == "" {
		return "the text"
	}
	return fmt.Sprintf("member %.80q", name)
}

// unquote returns the text of a JSON string. It copies only what has escapes.
func unquote(value string) (string, error) {
	if len(value) < 2 || value[0] != '"' {
		return "", fmt.Errorf("%.40q is no JSON string", value)
	}
	body := value[1 : len(value)-1]
	if strings.IndexByte(body, '\\') < 0 {
		return body, nil
	}
	b := make([]byte, 0, len(body))
	for i := 0; i < len(body); i++ {
		c := body[i]
		if c != '\\' {
			b = append(b, c)
			continue
		}
		i++
		switch body[i] {
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'u':
			n, err := strconv.ParseUint(body[i+1:i+5], 16, 16)
			if err != nil {
				return "", errJSON
			}
			// Rotunda escapes no half of a surrogate pair; one becomes U+FFFD
			// here, which is not what was read, and so is noticed.
			b = utf8.AppendRune(b, rune(n))
			i += 4
		default:
			b = append(b, body[i])
		}
	}
	return string(b), nil
}

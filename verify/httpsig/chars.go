package httpsig

// class is a set of characters.
type class uint8

const (
	inToken     class = 1 << iota // RFC 9110 section 5.6.2
	inFieldName                   // a token without upper case
	inKey                         // RFC 9651 section 3.1.2, after the first character
	inHost                        // RFC 3986 section 3.2.2, without escapes and what no DNS name holds
)

// classes is a constant: what each character is.
var classes = func() (t [256]class) {
	add := func(in class, extra string, alnum func(byte) bool) {
		for i := range t {
			if c := byte(i); alnum(c) {
				t[i] |= in
			}
		}
		for _, c := range []byte(extra) {
			t[c] |= in
		}
	}
	lowerOrDigit := func(c byte) bool { return isDigit(c) || 'a' <= c && c <= 'z' }
	alphaOrDigit := func(c byte) bool { return isDigit(c) || isAlpha(c) }
	add(inToken, "!#$%&'*+-.^_`|~", alphaOrDigit)
	add(inFieldName, "!#$%&'*+-.^_`|~", lowerOrDigit)
	add(inKey, "_-.*", lowerOrDigit)
	add(inHost, "_-.", alphaOrDigit)
	return t
}()

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

func isAlpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isHex(c byte) bool   { return isDigit(c) || 'a' <= c|0x20 && c|0x20 <= 'f' }

// isToken says whether c may be in a token.
func isToken(c byte) bool { return classes[c]&inToken != 0 }

// all says whether every character of s is in the class.
func all(s string, in class) bool {
	for i := 0; i < len(s); i++ {
		if classes[s[i]]&in == 0 {
			return false
		}
	}
	return true
}

// between says that every character of s is at least low and below 127, where low
// is above 0. It looks at eight at a time.
func between(s string, low byte) bool {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	if len(s) < 8 {
		for i := 0; i < len(s); i++ {
			if s[i] < low || s[i] >= 0x7f {
				return false
			}
		}
		return true
	}
	for i := 0; ; i += 8 {
		if i > len(s)-8 {
			if i == len(s) {
				return true
			}
			i = len(s) - 8
		}
		x := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		// Of a character below 128, taking low away sets the high bit when it is
		// below low, and adding 1 when it is 127. A borrow or a carry reaches the
		// next character only out of one that is refused.
		if (x|(x-ones*uint64(low))|(x+ones))&high != 0 {
			return false
		}
	}
}

// trim takes white space from both ends, as HTTP does before a field is read.
func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// sextets has the value of each character of base64, and 64 for any other.
var sextets = func() (t [256]byte) {
	for i := range t {
		t[i] = 64
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for i := range len(alphabet) {
		t[alphabet[i]] = byte(i)
	}
	return t
}()

// appendBase64 decodes base64 in its one canonical form: with padding, without
// spare bits, and without the line ends that the standard library's decoder skips.
// It appends nothing when it is not ok.
func appendBase64(dst []byte, s string) ([]byte, bool) {
	if len(s)%4 != 0 {
		return dst, false
	}
	start := len(dst)
	for len(s) > 4 {
		a, b, c, d := sextets[s[0]], sextets[s[1]], sextets[s[2]], sextets[s[3]]
		if a|b|c|d > 63 {
			return dst[:start], false
		}
		dst = append(dst, a<<2|b>>4, b<<4|c>>2, c<<6|d)
		s = s[4:]
	}
	if s == "" {
		return dst, true
	}
	a, b, c, d := sextets[s[0]], sextets[s[1]], sextets[s[2]], sextets[s[3]]
	switch {
	case a|b|c|d < 64:
		return append(dst, a<<2|b>>4, b<<4|c>>2, c<<6|d), true
	case a|b|c < 64 && s[3] == '=' && c&3 == 0:
		return append(dst, a<<2|b>>4, b<<4|c>>2), true
	case a|b < 64 && s[2] == '=' && s[3] == '=' && b&15 == 0:
		return append(dst, a<<2|b>>4), true
	}
	return dst[:start], false
}

package httpsig

// class is a set of characters.
type class uint8

const (
	inToken class = 1 << iota // RFC 9110 section 5.6.2
	inKey                     // RFC 9651 section 3.1.2, after the first character
	inText                    // printable ASCII
	inPlain                   // printable ASCII but a quote and a backslash
	inValue                   // printable ASCII and tab
)

// classes is a constant: what each character is.
var classes = func() (t [256]class) {
	for i := range t {
		c := byte(i)
		alnum := isAlpha(c) || isDigit(c)
		if alnum {
			t[i] |= inToken
		}
		if isDigit(c) || 'a' <= c && c <= 'z' {
			t[i] |= inKey
		}
		if c >= ' ' && c < 0x7f {
			t[i] |= inText | inValue
			if c != '"' && c != '\\' {
				t[i] |= inPlain
			}
		}
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] |= inToken
	}
	for _, c := range []byte("_-.*") {
		t[c] |= inKey
	}
	t['\t'] |= inValue
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

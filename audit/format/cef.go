package format

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"golang.org/x/mod/sumdb/tlog"
)

// cefHead is the header up to the signature id, which is the action.
const cefHead = "CEF:0|Rotunda|Rotunda|1|"

// cefKeys are the extension keys, in the order in which they are written, and
// the field that each one holds. A field that is empty is left out with its
// label.
var cefKeys = []struct {
	key    string
	column column // what it holds; -1: it is derived from another field
	label  string // of the key+"Label" that is written behind it
}{
	{"rt", -1, ""}, // milliseconds, derived from time
	{"rotundaTime", colTime, ""},
	{"externalId", colID, ""},
	{"outcome", colOutcome, ""},
	{"cnt", colCount, ""},
	{"suid", colActor, ""},
	{"src", colAddress, ""},                       // an IPv4 address
	{"c6a2", colAddress, "Source IPv6 Address"},   // an IPv6 address
	{"rotundaAddress", colAddress, ""},            // anything else
	{"reason", colReason, ""},                     // why it was done, or denied
	{"cn1", colIndex, "leafIndex"},                //
	{"cs1", colOrigin, "origin"},                  //
	{"cs2", colPartner, "partner"},                //
	{"cs3", colResource, "resource"},              //
	{"cs4", colRequestID, "requestId"},            //
	{"cs5", colDetail, "detail"},                  //
	{"cs6", colHash, "leafHash"},                  //
	{"rotundaIntent", colIntent, ""},              //
	{"rotundaSalt", colSalt, ""},                  //
	{"rotundaChecks", colChecks, ""},              //
	{"rotundaErasedActor", colErased + 0, ""},     //
	{"rotundaErasedPartner", colErased + 1, ""},   //
	{"rotundaErasedReason", colErased + 2, ""},    //
	{"rotundaErasedRequestId", colErased + 3, ""}, //
	{"rotundaErasedAddress", colErased + 4, ""},   //
	{"rotundaErasedDetail", colErased + 5, ""},    //
}

// AppendCEF appends a record as one line of cef, without its line end. On
// failure b is returned as it was.
func AppendCEF(b []byte, r *trail.Record) ([]byte, error) {
	if err := check(r); err != nil {
		return b, err
	}
	b = append(b, cefHead...)
	b = appendCEFText(b, r.Action, '|')
	b = append(b, '|')
	b = appendCEFText(b, title(r), '|')
	b = append(b, '|')
	b = append(b, levels[levelOf(r)].cef...)
	b = append(b, "|rt="...)
	b = strconv.AppendInt(b, r.Time.UnixMilli(), 10)
	kind := addressKey(r.Address)
	for i := 1; i < len(cefKeys); i++ {
		k := &cefKeys[i]
		if k.column == colAddress && k.key != kind {
			continue
		}
		start := len(b)
		b = append(b, ' ')
		b = append(b, k.key...)
		b = append(b, '=')
		value := len(b)
		b = appendCEFValue(b, r, k.column)
		if len(b) == value {
			b = b[:start]
			continue
		}
		if k.label != "" {
			b = append(b, ' ')
			b = append(b, k.key...)
			b = append(b, "Label="...)
			b = append(b, k.label...)
		}
	}
	return b, nil
}

// addressKey is the key for an address: src and c6a2 hold nothing but addresses.
func addressKey(address string) string {
	a, err := netip.ParseAddr(address)
	switch {
	case err != nil || a.Zone() != "" || a.String() != address:
		return "rotundaAddress"
	case a.Is4():
		return "src"
	}
	return "c6a2"
}

func appendCEFValue(b []byte, r *trail.Record, c column) []byte {
	if s := text(r, c); s != nil {
		return appendCEFText(b, *s, '=')
	}
	if c >= colErased && r.Erased[c-colErased] == (tlog.Hash{}) {
		return b
	}
	if c == colTime {
		return strconv.AppendInt(b, r.Time.UnixMicro(), 10)
	}
	start := len(b)
	b = appendPlain(b, r, c)
	// Base64 ends with up to two equals signs, which want a backslash.
	n := len(b)
	for n > start && b[n-1] == '=' {
		n--
	}
	switch len(b) - n {
	case 1:
		b = append(b[:n], `\=`...)
	case 2:
		b = append(b[:n], `\=\=`...)
	}
	return b
}

// appendCEFText escapes a text for the header (special is |) or for a value of
// the extension (special is =). Besides what CEF asks for, all that may end a
// line or change what a terminal shows is escaped as \uXXXX, which a reader that
// does not know it shows as it is.
func appendCEFText(b []byte, s string, special byte) []byte {
	const hex = "0123456789abcdef"
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < 0x7f && c != '\\' && c != special {
			i++
			continue
		}
		r, n := rune(c), 1
		if c >= utf8.RuneSelf {
			if r, n = utf8.DecodeRuneInString(s[i:]); !cefHidden(r) {
				i += n
				continue
			}
		}
		b = append(b, s[start:i]...)
		switch r {
		case '\\', '|', '=':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		default:
			b = append(b, '\\', 'u', hex[r>>12&0xf], hex[r>>8&0xf], hex[r>>4&0xf], hex[r&0xf])
		}
		i += n
		start = i
	}
	return append(b, s[start:]...)
}

// cefHidden are the characters beyond ASCII that are escaped: C1 controls (with
// NEL), line and paragraph separator, bidirectional controls, byte order mark.
func cefHidden(r rune) bool {
	return r >= 0x80 && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0xfeff
}

func decodeCEF(line string, r *trail.Record) error {
	rest, ok := strings.CutPrefix(line, cefHead)
	if !ok {
		return fmt.Errorf("it does not begin with %s", cefHead)
	}
	for i, field := range [...]string{"signature id", "name", "severity"} {
		end := indexBare(rest, '|')
		if end < 0 {
			return fmt.Errorf("its header ends before the %s", field)
		}
		if i == 0 {
			var err error
			if r.Action, err = cefUnescape(rest[:end]); err != nil {
				return fmt.Errorf("signature id: %w", err)
			}
		}
		rest = rest[end+1:]
	}
	return cefPairs(rest, func(key, value string, _ int) error {
		if key == "rt" || strings.HasSuffix(key, "Label") {
			return nil // derived
		}
		for i := range cefKeys {
			k := &cefKeys[i]
			if k.key != key {
				continue
			}
			s, err := cefUnescape(value)
			if err != nil {
				return fmt.Errorf("key %q: %w", key, err)
			}
			if k.column == colTime {
				var us int64
				if us, err = parseInt(s); err == nil {
					r.Time = unixMicro(us)
				}
			} else {
				err = setPlain(r, k.column, s)
			}
			if err != nil {
				return fmt.Errorf("key %q: %w", key, err)
			}
			return nil
		}
		return fmt.Errorf("key %.40q is none that Rotunda writes", key)
	})
}

// cefPairs calls f for each pair of an extension. at is the offset of the pair.
// A value ends at the last space before the next equals sign that has no
// backslash before it.
func cefPairs(ext string, f func(key, value string, at int) error) error {
	eq := indexBare(ext, '=')
	if eq < 0 {
		return errors.New("it has no extension")
	}
	for at := 0; ; {
		key, start := ext[at:eq], eq+1
		next := indexBare(ext[start:], '=')
		if next < 0 {
			return f(key, ext[start:], at)
		}
		next += start
		space := strings.LastIndexByte(ext[start:next], ' ')
		if space < 0 {
			return fmt.Errorf("key %.40q: an equals sign in its value lacks its backslash", key)
		}
		if err := f(key, ext[start:start+space], at); err != nil {
			return err
		}
		at, eq = start+space+1, next
	}
}

// indexBare returns the offset of the first c that no backslash escapes, or -1.
func indexBare(s string, c byte) int {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case c:
			return i
		case '\\':
			i++
		}
	}
	return -1
}

func cefUnescape(s string) (string, error) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		if i++; i == len(s) {
			return "", errors.New("it ends with half an escape")
		}
		switch s[i] {
		case '\\', '|', '=':
			b = append(b, s[i])
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 'u':
			if i+5 > len(s) || !isHex(s[i+1:i+5]) {
				return "", errors.New(`a \u lacks its four digits`)
			}
			n, err := strconv.ParseUint(s[i+1:i+5], 16, 16)
			if err != nil {
				return "", err
			}
			b = utf8.AppendRune(b, rune(n))
			i += 4
		default:
			return "", fmt.Errorf(`\%c is no escape`, s[i])
		}
	}
	return string(b), nil
}

// keyAt names the part of a line at an offset.
func keyAt(line string, offset int) string {
	i := len(cefHead)
	if offset < i {
		return "the header"
	}
	for _, field := range [...]string{"signature id", "name", "severity"} {
		end := indexBare(line[i:], '|')
		if end < 0 || offset <= i+end {
			return "the header's " + field
		}
		i += end + 1
	}
	name := ""
	_ = cefPairs(line[i:], func(key, _ string, at int) error {
		// The space before a key belongs to the value before it.
		if name == "" || i+at <= offset {
			name = key
		}
		return nil
	})
	return fmt.Sprintf("key %.40q", name)
}

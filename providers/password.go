package providers

import (
	"crypto/rand"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits = "0123456789"

	// marks are safe inside quotes of every shell, URL, YAML and connection string.
	marks = "-_.~"
)

// PasswordParams are the parameters of a credential whose password we choose.
func PasswordParams() []Setting {
	return []Setting{
		{Name: "length", Doc: "characters of the password", Default: "40", Pattern: `1[6-9]|[2-9][0-9]|1[01][0-9]|12[0-8]`},
		{Name: "characters", Doc: "what the password is made of; alphanumeric_marks has at least one of each: lower case, upper case, digit, and mark (" + marks + ")",
			Default: "alphanumeric", OneOf: []string{"alphanumeric", "alphanumeric_marks", "hex"}},
	}
}

// NewPassword makes a password after PasswordParams, of ASCII characters, with at least
// one of each class that it is made of: policies ask for that.
func NewPassword(params map[string]string) (secret.Value, error) {
	length := 40
	if s := params["length"]; s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 16 || n > 128 {
			return secret.Value{}, fault.Invalid("params.length", "setting_malformed", "the length of a password is from 16 to 128 characters")
		}
		length = n
	}
	var classes []string
	switch params["characters"] {
	case "", "alphanumeric":
		classes = []string{lower, upper, digits}
	case "alphanumeric_marks":
		classes = []string{lower, upper, digits, marks}
	case "hex":
		classes = []string{"0123456789abcdef"}
	default:
		return secret.Value{}, fault.Invalid("params.characters", "setting_unknown_value", "the characters of a password are alphanumeric, alphanumeric_marks or hex")
	}
	all := strings.Join(classes, "")
	for {
		text := pick(all, length)
		complete := true
		for _, class := range classes {
			complete = complete && strings.ContainsAny(string(text), class)
		}
		if complete {
			v := secret.New(text)
			clear(text)
			return v, nil
		}
	}
}

// pick chooses n characters of set, each with the same probability.
func pick(set string, n int) []byte {
	out := make([]byte, 0, n)
	limit := 256 - 256%len(set) // above it some characters would come more often
	var b [64]byte
	for len(out) < n {
		_, _ = rand.Read(b[:]) // never fails: crypto/rand
		for _, x := range b {
			if int(x) < limit && len(out) < n {
				out = append(out, set[int(x)%len(set)])
			}
		}
	}
	clear(b[:])
	return out
}

// Scrub is what another system said, made fit for an error: one line of at most 300
// bytes, without the secrets, also as they are written inside quotes and URLs. Only
// secrets of four bytes and more are looked for.
func Scrub(text string, secrets ...string) string {
	const most = 300
	for _, s := range secrets {
		if len(s) < 4 {
			continue
		}
		quoted := strconv.Quote(s)
		for _, form := range []string{s, quoted[1 : len(quoted)-1], strings.ReplaceAll(s, "'", "''"), url.QueryEscape(s), url.PathEscape(s)} {
			text = strings.ReplaceAll(text, form, "[redacted]")
		}
	}
	text = strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "?")
	if len(text) > most {
		cut := most
		for cut > 0 && !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut] + "…"
	}
	return text
}

package format

import (
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"pgregory.net/rapid"
)

// cefSpec reads a line by the words of the CEF standard alone (header fields
// parted by |, \| and \\ in the header, \= \\ \n \r in the extension, a key is
// the word before an equals sign), independent of the reader of this package.
func cefSpec(t failer, line string) (header []string, ext map[string]string) {
	t.Helper()
	field := ""
	rest := line
	for len(header) < 7 {
		i := strings.IndexAny(rest, `|\`)
		if i < 0 {
			t.Fatalf("the header of %q ends early", line)
		}
		field += rest[:i]
		if rest[i] == '\\' {
			if c := rest[i+1]; c == '|' || c == '\\' {
				field += string(c)
			} else {
				field += rest[i : i+2]
			}
			rest = rest[i+2:]
			continue
		}
		header, field, rest = append(header, field), "", rest[i+1:]
	}
	ext = map[string]string{}
	// Hide escaped backslashes and equals signs, then split at the rest.
	rest = strings.NewReplacer(`\\`, "\x01", `\=`, "\x02").Replace(rest)
	parts := strings.Split(rest, "=")
	key := parts[0]
	for i, p := range parts[1:] {
		next := ""
		if i < len(parts)-2 {
			space := strings.LastIndexByte(p, ' ')
			if space < 0 {
				t.Fatalf("no key before an equals sign in %q", line)
			}
			p, next = p[:space], p[space+1:]
		}
		if _, twice := ext[key]; twice || key == "" || strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" {
			t.Fatalf("key %q of %q is written twice, or is no key", key, line)
		}
		ext[key] = strings.NewReplacer(`\n`, "\n", `\r`, "\r", "\x01", `\`, "\x02", "=").Replace(p)
		key = next
	}
	return header, ext
}

// hidden tells of the characters that are written \uXXXX, which the standard
// does not know.
func hidden(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' && r != '\r' || r == 0x7f || cefHidden(r) })
}

func TestCEFWhenReadByTheStandard(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := anyRecord().Draw(t, "record")
		b, err := AppendCEF(nil, &r)
		if err != nil {
			t.Fatalf("AppendCEF: %v", err)
		}
		line := string(b)
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f || cefHidden(r) }) {
			t.Fatalf("%q has a character that may end a line", line)
		}
		header, ext := cefSpec(t, line)
		if header[0] != "CEF:0" || header[1] != "Rotunda" || header[2] != "Rotunda" || header[3] != "1" {
			t.Fatalf("header %q", header)
		}
		if !hidden(r.Action) && !strings.ContainsAny(r.Action, "\r\n") && header[4] != r.Action {
			t.Fatalf("signature id %q, want %q", header[4], r.Action)
		}
		for key, want := range map[string]string{
			"externalId": r.ID, "outcome": r.Outcome, "suid": r.Actor, "reason": r.Reason, "cs1": r.Origin, "cs2": r.Partner, "cs3": r.Resource,
			"cs4": r.RequestID, "cs5": r.Detail, "cs6": string(appendPlain(nil, &r, colHash)), "rotundaIntent": r.Intent,
			"rotundaSalt": string(appendPlain(nil, &r, colSalt)),
		} {
			if !hidden(want) && ext[key] != want {
				t.Fatalf("key %s is %q, want %q, in %s", key, ext[key], want, line)
			}
		}
		for key := range ext {
			if label, ok := strings.CutSuffix(key, "Label"); ok && ext[label] == "" {
				t.Fatalf("%s labels nothing in %s", key, line)
			}
		}
	})
}

func TestCEFAddressWhenOfEachKind(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1":        " src=192.0.2.1 ",
		"2001:db8::1":      " c6a2=2001:db8::1 c6a2Label=Source IPv6 Address ",
		"::ffff:192.0.2.1": " c6a2=::ffff:192.0.2.1 c6a2Label=",
		"2001:DB8::1":      " rotundaAddress=2001:DB8::1 ",
		"fe80::1%eth0":     " rotundaAddress=fe80::1%eth0 ",
		"192.0.2.01":       " rotundaAddress=192.0.2.01 ",
		"a=b":              ` rotundaAddress=a\=b `,
	} {
		r := samples(t)[0]
		r.Address = address
		b, err := AppendCEF(nil, &r)
		if err != nil || !strings.Contains(string(b), want) || strings.Count(string(b), "ddress=") > 1 {
			t.Errorf("%s: no %q in %s, %v", address, want, b, err)
		}
	}
}

func TestCEFSeverityWhenDenied(t *testing.T) {
	for outcome, want := range map[string]string{trail.OK: "|token revoke|4|", trail.Denied: "|token revoke: denied|6|", trail.Started: "|token revoke: started|4|"} {
		r := samples(t)[0]
		r.Action, r.Outcome = "token.revoke", outcome
		if b, err := AppendCEF(nil, &r); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: no %q in %s, %v", outcome, want, b, err)
		}
	}
}

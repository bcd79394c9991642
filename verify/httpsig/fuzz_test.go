package httpsig

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// What Sign makes is accepted, whatever the message, and one change in a part that
// is covered is refused.
func TestEachSignedRequestIsAcceptedAndNoOther(t *testing.T) {
	keys := []*Key{rfcSigner(t, "test-shared-secret"), rfcSigner(t, "test-key-ed25519"), rfcSigner(t, "test-key-ecc-p256")}
	const (
		hostChars  = "abcxyzABC019-."
		pathChars  = "/aZ09-._~!$&'()*+,;=:@%"
		queryChars = pathChars + "?"
		textChars  = " abcXYZ019!\"\\~,;=()"
	)
	draw := func(t *rapid.T, name, chars string, least, most int) string {
		return rapid.StringOfN(rapid.SampledFrom([]rune(chars)), least, most, -1).Draw(t, name)
	}
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.SampledFrom(keys).Draw(t, "key")
		body := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "body")
		m := &Message{
			Method: rapid.SampledFrom([]string{"GET", "POST", "M-SEARCH"}).Draw(t, "method"), Scheme: "https",
			Authority: draw(t, "authority", hostChars, 1, 30), Path: "/" + draw(t, "path", pathChars, 0, 30),
			Header: map[string][]string{"X-Text": {"x" + draw(t, "text", textChars, 0, 30) + "x"}},
		}
		if m.HasQuery = rapid.Bool().Draw(t, "has query"); m.HasQuery {
			m.Query = draw(t, "query", queryChars, 0, 30)
		}
		p := Params{Created: now, KeyID: draw(t, "keyid", textChars, 0, 20), Nonce: draw(t, "nonce", textChars, minNonce, maxNonce),
			Tag: draw(t, "tag", textChars, 0, 10), Alg: rapid.Bool().Draw(t, "alg"), Components: []string{"@method", "@authority", "@path", "@query", "x-text"}}
		if len(body) > 0 {
			m.Header["Content-Digest"] = []string{Digest(body)}
			p.Components = append(p.Components, "content-digest")
		}
		p.Components = rapid.Permutation(p.Components).Draw(t, "components")
		input, signature, err := Sign(m, k, p)
		if err != nil {
			t.Fatal(err)
		}
		m.Header["Signature-Input"], m.Header["Signature"] = []string{input}, []string{signature}
		policy := DefaultPolicy()
		if err := accept(m, k, body, policy); err != nil {
			t.Fatalf("%s: %v", input, err)
		}

		change := func(s string) string {
			if s == "" {
				return "x"
			}
			i := rapid.IntRange(0, len(s)-1).Draw(t, "at")
			c := byte(rapid.IntRange('!', '~').Draw(t, "to"))
			if c == s[i] {
				c ^= 1
			}
			return s[:i] + string(c) + s[i+1:]
		}
		what := rapid.SampledFrom([]string{"method", "authority", "path", "query", "field", "body", "input", "signature"}).Draw(t, "change")
		switch what {
		case "method":
			m.Method = change(m.Method)
		case "authority":
			old := m.Authority
			if m.Authority = change(old); strings.EqualFold(old, m.Authority) {
				return
			}
		case "path":
			m.Path = change(m.Path)
		case "query":
			m.Query, m.HasQuery = change(m.Query), true
		case "field":
			m.Header["X-Text"] = []string{change(m.Header["X-Text"][0])}
		case "body":
			if len(body) > 0 && rapid.Bool().Draw(t, "taken away") {
				body = nil
			} else if len(body) == 0 {
				body = []byte("x")
			} else {
				body = bytes.Clone(body)
				body[rapid.IntRange(0, len(body)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			}
		case "input": // the label is not covered
			m.Header["Signature-Input"] = []string{"sig1=" + change(strings.TrimPrefix(input, "sig1="))}
		case "signature":
			m.Header["Signature"] = []string{"sig1=" + change(strings.TrimPrefix(signature, "sig1="))}
		}
		if err := accept(m, k, body, policy); err == nil {
			t.Fatalf("accepted after a change of the %s: %+v", what, m)
		}
	})
}

// FuzzParse: no input panics, what is accepted is canonical (it is its own
// serialization), and its base depends on nothing but the message.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"b21", "b22", "b23", "b24", "b25", "b26", "b3"} {
		m, _ := readMessage(f, name+".http")
		f.Add(m.Header["Signature-Input"][0], m.Header["Signature"][0], "")
	}
	f.Add(`a=("@method" "x";bs;tr);created=1;nonce="\"\\", b=()`, `a=:AAAA:, b=::`, "a")
	f.Add("a=()\t, \tb=();expires=0", "b=:AA==:", "b")
	f.Add(`a=("x";key="y" "@query-param";name="z";req)`, "a=:AAA=:", "a")
	f.Fuzz(func(t *testing.T, input, signature, label string) {
		m := &Message{Method: "GET", Scheme: "https", Authority: "a.example", Path: "/p", Query: "z=1", HasQuery: true,
			Header: map[string][]string{"Signature-Input": {input}, "Signature": {signature}, "X": {"y=1"}}}
		s, err := Parse(m, label)
		if err != nil {
			if reason(err) == "" || err.Error() == "" || len(err.Error()) > 1000 {
				t.Fatalf("error %q", err)
			}
			return
		}
		if label != "" && s.Label != label {
			t.Fatalf("asked for %q, got %q", label, s.Label)
		}
		if len(s.Components) > maxComponents || len(s.Value) == 0 || len(s.Value) > maxSignature || s.Created < 0 || s.Created > maxTime {
			t.Fatalf("out of bounds: %+v", s)
		}
		if !strings.Contains(input, s.Label+"="+s.input) {
			t.Fatalf("the parameters %q are not those of the field %q", s.input, input)
		}
		if !strings.Contains(signature, s.Label+"=:"+base64.StdEncoding.EncodeToString(s.Value)+":") {
			t.Fatalf("the value is not that of the field %q", signature)
		}
		again, err := canonical(nil, "test", s.Label+"="+s.input, dict)
		if err != nil || string(again) != s.Label+"="+s.input {
			t.Fatalf("%q is not canonical: %q, %v", s.input, again, err)
		}
		p := DefaultPolicy()
		_ = p.Check(s, m, true, now)
		base, err := s.Base(nil, m)
		if err != nil {
			return
		}
		if lines := bytes.Count(base, []byte("\n")); lines != len(s.Components) {
			t.Fatalf("%d components, and a base of %d lines more: %q", len(s.Components), lines, base)
		}
		for i, line := range bytes.Split(base, []byte("\n"))[:len(s.Components)] {
			if id := identifier(string(line)); !strings.ContainsAny(s.Components[i].String(), `:`) && id != s.Components[i].String() {
				t.Fatalf("line %q of component %s", line, s.Components[i])
			}
		}
	})
}

// FuzzCheckDigest: nothing panics, and what is accepted has the right digest in it.
func FuzzCheckDigest(f *testing.F) {
	body := []byte(`{"hello": "world"}`)
	right := Digest(body)
	f.Add(right, "")
	f.Add("md5=:AAAA:, "+right, "")
	f.Add("sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:", right)
	f.Add("sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE:", "sha-512=::")
	f.Fuzz(func(t *testing.T, a, b string) {
		values := []string{a}
		if b != "" {
			values = append(values, b)
		}
		if CheckDigest(values, body) != nil {
			return
		}
		all := a + b
		if !strings.Contains(all, strings.TrimPrefix(right, "sha-256=")) && !strings.Contains(all, ":WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:") {
			t.Fatalf("accepted %q", values)
		}
		if CheckDigest(values, append(bytes.Clone(body), 'x')) == nil {
			t.Fatalf("%q is accepted of two bodies", values)
		}
	})
}

// FuzzStructuredField: nothing panics, and the canonical form is a fixed point.
func FuzzStructuredField(f *testing.F) {
	for _, s := range []string{
		`a=1, b=2;x=1;y=2, c=(a b   c), d`, `a=?1;b=?0, *c=:AA==:`, `"a\"b", tok/en:*;q=0.50, -007, -0.0, @-1, %"%c3%a9%25"`,
		`(1 "2" (3))`, `();a, ( 1 )`, `1.0001`, `a=`, `a;b=?1`, `a;A`, `?2`, `:A:`, `%"%C3"`, `%"%ff"`, `1,`, "a\t,\tb", `00.100`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, as := range []shape{item, list, dict} {
			first, err := canonical(nil, "test", text, as)
			if err != nil {
				continue
			}
			second, err := canonical(nil, "test", string(first), as)
			if err != nil || string(second) != string(first) {
				t.Fatalf("%q becomes %q and then %q, %v", text, first, second, err)
			}
		}
	})
}

// FuzzQueryParam: nothing panics, and a value is what a form decoder makes of it.
func FuzzQueryParam(f *testing.F) {
	f.Add("param=value&foo=bar", "foo")
	f.Add("var=a%20b%0A&bar=with+plus&fa%C3%A7ade%22%3A%20=x", "fa%C3%A7ade%22%3A%20")
	f.Add("a=%ff&b=%", "a")
	f.Fuzz(func(t *testing.T, query, name string) {
		if len(name) > maxArg || !between(name, ' ') || strings.ContainsAny(name, `"\`) {
			return
		}
		m := &Message{Method: "GET", Query: query, HasQuery: true}
		id := fmt.Sprintf(`"@query-param";name="%s"`, name)
		line, err := lines(t, m, id)
		if err != nil {
			return
		}
		value := strings.TrimPrefix(line, id+": ")
		again := &Message{Method: "GET", Query: name + "=" + value, HasQuery: true}
		if second, err := lines(t, again, id); err != nil || second != line {
			t.Fatalf("%q becomes %q and then %q, %v", query, line, second, err)
		}
	})
}

func FuzzBase64(f *testing.F) {
	for _, s := range []string{"", "AA==", "AAA=", "AAAA", "AB==", "A===", "====", "AA=A", "AAAAA", "AA\n==", "A-_A"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := appendBase64(nil, s)
		want, err := base64.StdEncoding.Strict().DecodeString(s)
		if wantOK := err == nil && !strings.ContainsAny(s, "\r\n"); ok != wantOK || ok && !bytes.Equal(got, want) {
			t.Fatalf("%q: %x, %v; want %x, %v", s, got, ok, want, err)
		}
	})
}

// FuzzBetween holds eight characters at a time against one at a time.
func FuzzBetween(f *testing.F) {
	for _, s := range []string{"", "abc", "abcdefgh", "abcdefghi", "abcdefg\x7f", "\x1fbcdefgh ", "abcdefgh\x80", "!!!!!!!!", "        ", "\x00\x01\x20\x21\x7e\x7f\xff\x80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, low := range []byte{' ', '!'} {
			want := true
			for i := range len(s) {
				want = want && s[i] >= low && s[i] < 0x7f
			}
			if got := between(s, low); got != want {
				t.Fatalf("between(%q, %q) = %v", s, low, got)
			}
		}
	})
}

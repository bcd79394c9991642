package httpsig

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// lines is the signature base of some components of a message, without the line
// of the parameters.
func lines(t *testing.T, m *Message, components string) (string, error) {
	t.Helper()
	c := *m
	c.Header = map[string][]string{"Signature-Input": {"sig1=(" + components + ")"}, "Signature": {"sig1=:AAAA:"}}
	s, err := Parse(&c, "")
	if err != nil {
		return "", err
	}
	base, err := s.Base([]byte("kept"), m)
	if err != nil {
		if string(base) != "kept" {
			t.Errorf("%s: a base that failed left %q behind", components, base)
		}
		return "", err
	}
	rest, ok := strings.CutPrefix(string(base), "kept")
	if !ok {
		t.Fatalf("%s: what was in the buffer is gone: %q", components, base)
	}
	rest, ok = strings.CutSuffix(rest, `"@signature-params": (`+components+")")
	if !ok {
		t.Fatalf("%s: the last line is wrong: %q", components, base)
	}
	return strings.TrimSuffix(rest, "\n"), nil
}

// The examples of RFC 9421 sections 2.1 to 2.1.4, and what else their rules say.
func TestBaseOfFields(t *testing.T) {
	m := &Message{
		Method: "GET", Scheme: "https", Authority: "www.example.com", Path: "/",
		Header: map[string][]string{
			"Date":              {"Tue, 20 Apr 2021 02:07:56 GMT"},
			"X-Ows-Header":      {"   Leading and trailing whitespace.   \t"},
			"X-Obs-Fold-Header": {"Obsolete\r\n    line folding.  "},
			"X-Folds":           {"a \r\n \r\n\tb\r\n c"},
			"Cache-Control":     {"max-age=60", "    must-revalidate"},
			"Example-Dict":      {"  a=1,    b=2;x=1;y=2,   c=(a   b   c), d"},
			"X-Empty-Header":    {""},
			"X-Tab":             {"a\tb"},
			"Example-Header":    {"value, with, lots", "of, commas"},
			"Single-Header":     {"value, with, lots, of, commas"},
			"X-Dup":             {"a=1, a=2"},
			"X-Line":            {"a\nb"},
			"X-Cr":              {"a\rb"},
			"X-Fold-End":        {"a\r\n"},
			"X-Nul":             {"a\x00"},
			"X-Latin":           {"caf\xe9"},
			"X-Del":             {"a\x7f"},
			"X-Long":            {strings.Repeat("x", 40) + "\x1f"},
			"Priority":          {"u=1,  i"},
			"Client-Cert-Chain": {":AA==:  ,:AQ==:"},
			"Client-Cert":       {":AA==:"},
			"X-Not-Dict":        {"=1"},
			"X-Large-Dict":      {"a=1;b=\"" + strings.Repeat("x", maxField) + "\""},
			"X-Key-Escape":      {`a="x\"y\\z"`},
		},
		Trailer: map[string][]string{"Expires": {"Wed, 9 Nov 2022 07:28:00 GMT"}},
	}
	for _, v := range []struct{ components, want, reason string }{
		{`"date"`, `"date": Tue, 20 Apr 2021 02:07:56 GMT`, ""},
		{`"x-ows-header"`, `"x-ows-header": Leading and trailing whitespace.`, ""},
		{`"x-obs-fold-header"`, `"x-obs-fold-header": Obsolete line folding.`, ""},
		{`"x-folds"`, `"x-folds": a  b c`, ""},
		{`"cache-control"`, `"cache-control": max-age=60, must-revalidate`, ""},
		{`"example-dict"`, `"example-dict": a=1,    b=2;x=1;y=2,   c=(a   b   c), d`, ""},
		{`"x-empty-header"`, `"x-empty-header": `, ""},
		{`"x-tab"`, "\"x-tab\": a\tb", ""},
		{`"example-header"`, `"example-header": value, with, lots, of, commas`, ""},
		{`"example-header";bs`, `"example-header";bs: :dmFsdWUsIHdpdGgsIGxvdHM=:, :b2YsIGNvbW1hcw==:`, ""},
		{`"single-header";bs`, `"single-header";bs: :dmFsdWUsIHdpdGgsIGxvdHMsIG9mLCBjb21tYXM=:`, ""},
		{`"example-dict";key="a"`, `"example-dict";key="a": 1`, ""},
		{`"example-dict";key="d"`, `"example-dict";key="d": ?1`, ""},
		{`"example-dict";key="b"`, `"example-dict";key="b": 2;x=1;y=2`, ""},
		{`"example-dict";key="c"`, `"example-dict";key="c": (a b c)`, ""},
		{`"x-key-escape";key="a"`, `"x-key-escape";key="a": "x\"y\\z"`, ""},
		{`"priority";sf`, `"priority";sf: u=1, i`, ""},
		{`"client-cert-chain";sf`, `"client-cert-chain";sf: :AA==:, :AQ==:`, ""},
		{`"client-cert";sf`, `"client-cert";sf: :AA==:`, ""},
		{`"expires";tr`, `"expires";tr: Wed, 9 Nov 2022 07:28:00 GMT`, ""},
		{`"x-line";bs`, `"x-line";bs: :YQpi:`, ""},
		{`"x-tab" "x-tab";bs "example-dict";key="a" "example-dict";key="d"`,
			"\"x-tab\": a\tb\n\"x-tab\";bs: :YQli:\n\"example-dict\";key=\"a\": 1\n\"example-dict\";key=\"d\": ?1", ""},
		{`"example-dict";key="a" "example-dict";key="a"`, "", ReasonDuplicate},
		{`"x-large-dict";key="a"`, "", ReasonMalformed},

		{`"expires"`, "", ReasonComponents},
		{`"date";tr`, "", ReasonComponents},
		{`"x-missing"`, "", ReasonComponents},
		{`"host"`, "", ReasonComponents},
		{`"example-dict";sf`, "", ReasonComponents}, // its type is not known
		{`"example-dict";key="e"`, "", ReasonComponents},
		{`"example-dict";key="A"`, "", ReasonComponents},
		{`"x-dup";key="a"`, "", ReasonDuplicate},
		{`"x-not-dict";key="a"`, "", ReasonMalformed},
		{`"x-line"`, "", ReasonMalformed},
		{`"x-cr"`, "", ReasonMalformed},
		{`"x-fold-end"`, "", ReasonMalformed},
		{`"x-nul"`, "", ReasonMalformed},
		{`"x-latin"`, "", ReasonMalformed},
		{`"x-del"`, "", ReasonMalformed},
		{`"x-long"`, "", ReasonMalformed},
		{`"date";sf;bs`, "", ReasonComponents},
		{`"date";bs;key="a"`, "", ReasonComponents},
		{`"date";name="a"`, "", ReasonComponents},
		{`"date";req`, "", ReasonComponents},
		{`"date";key`, "", ReasonMalformed},
		{`""`, "", ReasonMalformed},
		{`"a b"`, "", ReasonMalformed},
		{`"a:b"`, "", ReasonMalformed},
	} {
		got, err := lines(t, m, v.components)
		if v.reason == "" {
			v.reason = "ok"
		}
		if reason(err) != v.reason || got != v.want {
			t.Errorf("%s\n got %q, %v\nwant %q, %s", v.components, got, err, v.want, v.reason)
		}
	}
}

// The examples of RFC 9421 section 2.2, and what else its rules say.
func TestBaseOfDerivedComponents(t *testing.T) {
	get := func(change func(*Message)) *Message {
		m := &Message{Method: "GET", Scheme: "https", Authority: "www.example.com", Path: "/path", Query: "param=value", HasQuery: true}
		change(m)
		return m
	}
	as := func(authority string) *Message { return get(func(m *Message) { m.Authority = authority }) }
	query := func(q string) *Message { return get(func(m *Message) { m.Query = q }) }
	same := get(func(*Message) {})
	bare := get(func(m *Message) { m.Query, m.HasQuery, m.Path = "", false, "" })
	response := &Message{Status: 200, Request: same, Header: map[string][]string{}}
	for _, v := range []struct {
		m                        *Message
		components, want, reason string
	}{
		{same, `"@method"`, `"@method": GET`, ""},
		{same, `"@target-uri"`, `"@target-uri": https://www.example.com/path?param=value`, ""},
		{same, `"@authority"`, `"@authority": www.example.com`, ""},
		{same, `"@scheme"`, `"@scheme": https`, ""},
		{get(func(m *Message) { m.Scheme = "HTTP" }), `"@scheme"`, `"@scheme": http`, ""},
		{same, `"@request-target"`, `"@request-target": /path?param=value`, ""},
		{same, `"@path"`, `"@path": /path`, ""},
		{same, `"@query"`, `"@query": ?param=value`, ""},
		{query("param=value&foo=bar&baz=bat%2Dman"), `"@query"`, `"@query": ?param=value&foo=bar&baz=bat%2Dman`, ""},
		{query("queryString"), `"@query"`, `"@query": ?queryString`, ""},
		{bare, `"@query"`, `"@query": ?`, ""},
		{bare, `"@path"`, `"@path": /`, ""},
		{bare, `"@target-uri"`, `"@target-uri": https://www.example.com/`, ""},
		{query(""), `"@target-uri"`, `"@target-uri": https://www.example.com/path?`, ""},
		{get(func(m *Message) { m.Path = "/a/%2e%2E//b;c" }), `"@path"`, `"@path": /a/%2e%2E//b;c`, ""},
		{response, `"@status"`, `"@status": 200`, ""},
		{response, `"@method";req`, `"@method";req: GET`, ""},
		{response, `"@query-param";name="param";req`, `"@query-param";name="param";req: value`, ""},

		{as("WWW.Example.COM"), `"@authority"`, `"@authority": www.example.com`, ""},
		{as("www.example.com:443"), `"@authority"`, `"@authority": www.example.com`, ""},
		{as("www.example.com:80"), `"@authority"`, `"@authority": www.example.com:80`, ""},
		{as("www.example.com:8443"), `"@authority"`, `"@authority": www.example.com:8443`, ""},
		{get(func(m *Message) { m.Scheme, m.Authority = "http", "a:80" }), `"@authority"`, `"@authority": a`, ""},
		{get(func(m *Message) { m.Scheme, m.Authority = "http", "a:443" }), `"@authority"`, `"@authority": a:443`, ""},
		{get(func(m *Message) { m.Scheme, m.Authority = "", "a:80" }), `"@authority"`, `"@authority": a:80`, ""},
		{as("[2001:DB8::1]:443"), `"@authority"`, `"@authority": [2001:db8::1]`, ""},
		{as("[::1]:8080"), `"@authority"`, `"@authority": [::1]:8080`, ""},
		{as("127.0.0.1:65535"), `"@authority"`, `"@authority": 127.0.0.1:65535`, ""},
		{as(""), `"@authority"`, "", ReasonMalformed},
		{as(":443"), `"@authority"`, "", ReasonMalformed},
		{as("a:"), `"@authority"`, "", ReasonMalformed},
		{as("a:0"), `"@authority"`, "", ReasonMalformed},
		{as("a:0443"), `"@authority"`, "", ReasonMalformed},
		{as("a:+443"), `"@authority"`, "", ReasonMalformed},
		{as("a:65536"), `"@authority"`, "", ReasonMalformed},
		{as("a:b"), `"@authority"`, "", ReasonMalformed},
		{as("a:1:2"), `"@authority"`, "", ReasonMalformed},
		{as("user@a"), `"@authority"`, "", ReasonMalformed},
		{as("a b"), `"@authority"`, "", ReasonMalformed},
		{as("a,b"), `"@authority"`, "", ReasonMalformed},
		{as("a/b"), `"@authority"`, "", ReasonMalformed},
		{as("a%2e"), `"@authority"`, "", ReasonMalformed},
		{as("bücher.example"), `"@authority"`, "", ReasonMalformed},
		{as("a\n\"@path\": /"), `"@authority"`, "", ReasonMalformed},
		{as("[::1"), `"@authority"`, "", ReasonMalformed},
		{as("[]"), `"@authority"`, "", ReasonMalformed},
		{as("[::1]x"), `"@authority"`, "", ReasonMalformed},
		{as("[::1]x443"), `"@authority"`, "", ReasonMalformed},
		{as("[::1%25en0]"), `"@authority"`, "", ReasonMalformed},
		{as(strings.Repeat("a", 256)), `"@authority"`, "", ReasonMalformed},
		{get(func(m *Message) { m.Scheme = "" }), `"@scheme"`, "", ReasonMalformed},
		{get(func(m *Message) { m.Scheme = "ht tp" }), `"@target-uri"`, "", ReasonMalformed},
		{get(func(m *Message) { m.Path = "*" }), `"@path"`, "", ReasonMalformed},
		{get(func(m *Message) { m.Path = "/caf\xe9" }), `"@path"`, "", ReasonMalformed},
		{get(func(m *Message) { m.Path = "/a#b" }), `"@path"`, "", ReasonMalformed},
		{query("a#b"), `"@query"`, "", ReasonMalformed},
		{query("a b"), `"@query"`, "", ReasonMalformed},
		{get(func(m *Message) { m.HasQuery = false }), `"@query"`, "", ReasonMalformed},
		{get(func(m *Message) { m.Method = "" }), `"@method"`, "", ReasonComponents},
		{same, `"@status"`, "", ReasonComponents},
		{response, `"@method"`, "", ReasonComponents},
		{response, `"@status";req`, "", ReasonComponents},
		{get(func(m *Message) { m.Request = same }), `"@method";req`, "", ReasonComponents},
		{same, `"@method";sf`, "", ReasonComponents},
		{same, `"@method";tr`, "", ReasonComponents},
		{same, `"@path";name="a"`, "", ReasonComponents},
		{same, `"@query-param"`, "", ReasonComponents},
		{same, `"@query-param";key="param"`, "", ReasonComponents},
	} {
		got, err := lines(t, v.m, v.components)
		if v.reason == "" {
			v.reason = "ok"
		}
		if reason(err) != v.reason || got != v.want {
			t.Errorf("%s of %+v\n got %q, %v\nwant %q, %s", v.components, v.m, got, err, v.want, v.reason)
		}
	}
}

// The examples of RFC 9421 section 2.2.8, and what else its rules say.
func TestBaseOfQueryParameters(t *testing.T) {
	const (
		simple = "param=value&foo=bar&baz=batman&qux="
		hard   = "var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace&fa%C3%A7ade%22%3A%20=something"
	)
	for _, v := range []struct{ query, name, want, reason string }{
		{simple, "baz", "batman", ""},
		{simple, "qux", "", ""},
		{simple, "param", "value", ""},
		{hard, "var", "this%20is%20a%20big%0Amultiline%20value", ""},
		{hard, "bar", "with%20plus%20whitespace", ""},
		{hard, "fa%C3%A7ade%22%3A%20", "something", ""},
		{"p%61ram=v%2Dx~", "param", "v-x%7E", ""},
		{"a", "a", "", ""},
		{"a=b=c", "a", "b%3Dc", ""},
		{"&&a=1&", "a", "1", ""},
		{"a=1&a=2", "a", "", ReasonDuplicate},
		{"a=1&%61=2", "a", "", ReasonDuplicate},
		{"a=1&A=2", "a", "1", ""},
		{"b=1", "a", "", ReasonComponents},
		{"fa%c3%a7ade=1", "fa%c3%a7ade", "", ReasonComponents}, // the name is written in upper case
		{"a=%", "a", "", ReasonMalformed},
		{"a=%4", "a", "", ReasonMalformed},
		{"a=%zz", "a", "", ReasonMalformed},
		{"a=%z1", "a", "", ReasonMalformed},
		{"a=%1z", "a", "", ReasonMalformed},
		{"a=" + strings.Repeat("x", maxField), "a", "", ReasonMalformed},
		{"a=1&b=%ff", "a", "1", ""}, // a value that is not covered
		{"a=%ff", "a", "", ReasonMalformed},
		{"%ff=1&a=1", "a", "", ReasonMalformed}, // a name that might be the same one
		{"", "a", "", ReasonComponents},
	} {
		m := &Message{Method: "GET", Query: v.query, HasQuery: true}
		id := `"@query-param";name="` + v.name + `"`
		got, err := lines(t, m, id)
		want := id + ": " + v.want
		if v.reason == "" {
			v.reason = "ok"
		} else {
			want = ""
		}
		if reason(err) != v.reason || got != want {
			t.Errorf("?%s, %s: got %q, %v; want %q, %s", v.query, v.name, got, err, want, v.reason)
		}
	}
}

func TestComponentsPrintAsIdentifiers(t *testing.T) {
	m := &Message{Header: map[string][]string{
		"Signature-Input": {`sig1=("@path" "content-type";sf "@query-param";name="a b" "x";key="\"";tr)`}, "Signature": {"sig1=:AAAA:"},
	}}
	s, err := Parse(m, "")
	if err != nil {
		t.Fatal(err)
	}
	var names, ids []string
	for _, c := range s.Components {
		names, ids = append(names, c.Name()), append(ids, c.String())
	}
	if diff := cmp.Diff([]string{"@path", "content-type", "@query-param", "x"}, names); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"@path", "content-type;sf", `@query-param;name="a b"`, `x;key="\"";tr`}, ids); diff != "" {
		t.Error(diff)
	}
	if got := s.Components[3].arg(); got != `"` {
		t.Errorf("the key is %q", got)
	}
	if (Component{}).String() != "" || (Component{}).Name() != "" {
		t.Error("the zero component has a name")
	}
}

func TestFirstDifferenceNamesTheComponent(t *testing.T) {
	const base = "\"@method\": GET\n\"@query-param\";name=\"a\": 1\n\"@signature-params\": ()"
	for _, v := range []struct{ name, client, component, server, line string }{
		{"equal", base, "", "", ""},
		{"method", strings.Replace(base, "GET", "get", 1), "@method", `"@method": GET`, `"@method": get`},
		{"parameter", strings.Replace(base, ": 1", ": 2", 1), `@query-param;name="a"`, `"@query-param";name="a": 1`, `"@query-param";name="a": 2`},
		{"line missing", strings.Replace(base, "\"@query-param\";name=\"a\": 1\n", "", 1), `@query-param;name="a"`, `"@query-param";name="a": 1`, `"@signature-params": ()`},
		{"cut", base[:strings.LastIndex(base, "\n")], "@signature-params", `"@signature-params": ()`, ""},
		{"longer", base + "\n\"x\": y", "x", "", `"x": y`},
		{"nothing", "", "@method", `"@method": GET`, ""},
		{"rubbish", "x", "@method", `"@method": GET`, "x"},
	} {
		component, server, client := FirstDifference([]byte(base), []byte(v.client))
		if component != v.component || server != v.server || client != v.line {
			t.Errorf("%s: %q, %q, %q", v.name, component, server, client)
		}
	}
}

func TestExplainTellsWhatDiffersAndNoMAC(t *testing.T) {
	k := hmacKey(t, sharedSecret(t))
	m, _ := signedRequest(t, k, Params{})
	s, err := Parse(m, "")
	if err != nil {
		t.Fatal(err)
	}
	right, err := s.Base(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	signature := s.Value
	s.Value = make([]byte, len(signature))
	for _, v := range []struct {
		name, client, message, component string
	}{
		{"no base", "", "sign exactly", ""},
		{"equal", string(right), "the bases are equal", ""},
		{"line end at the end", string(right) + "\n", "no line end after", ""},
		{"CR LF", strings.ReplaceAll(string(right), "\n", "\r\n"), "LF, not with CR LF", ""},
		{"another path", strings.Replace(string(right), "/v1/orders", "/orders", 1), "first line that differs", "@path"},
	} {
		e, err := Explain(s, m, k, []byte(v.client))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(e.Message, v.message) || e.Component != v.component || e.Base != string(right) {
			t.Errorf("%s: %+v", v.name, e)
		}
		all := e.Base + e.Server + e.Client + e.Message
		if strings.Contains(all, string(signature)) || strings.Contains(all, base64.StdEncoding.EncodeToString(signature)) {
			t.Errorf("%s: the explanation holds the MAC", v.name)
		}
	}
	s.Value = signature
	if e, err := Explain(s, m, k, right); err != nil || e.Message != "the signature is right" {
		t.Errorf("of a right signature: %+v, %v", e, err)
	}
	if e, err := Explain(s, m, rfcKey(t, "test-key-ed25519"), nil); err != nil || !strings.Contains(e.Message, "with ed25519") {
		t.Errorf("with another kind of key: %+v, %v", e, err)
	}
	if _, err := Explain(s, m, k, make([]byte, maxBase+1)); reason(err) != ReasonMalformed {
		t.Errorf("with a base that is too long: %v", err)
	}
	delete(m.Header, "Content-Digest")
	if _, err := Explain(s, m, k, right); reason(err) != ReasonComponents {
		t.Errorf("without a base: %v", err)
	}
}

// Numbers, strings and flags in the one form that RFC 9651 section 4.1 writes.
// verify/oracles holds far more of this against another implementation.
func TestCanonicalFormOfStructuredFields(t *testing.T) {
	for _, v := range []struct {
		as         shape
		text, want string
	}{
		{dict, "a=?1;b=?1,  c;d=?0", "a;b, c;d=?0"},
		{dict, "a=( 1   2 );x", "a=(1 2);x"},
		{list, "007, -0, 1.50, 2.0, -0.0", "7, 0, 1.5, 2.0, 0.0"},
		{list, `"a\"\\", tok/*, :AA==:, @1, %"%c3%a9 x"`, `"a\"\\", tok/*, :AA==:, @1, %"%c3%a9 x"`},
		{item, "1;  a", "1;a"},
		{list, "", ""},
	} {
		got, err := canonical(nil, "test", v.text, v.as)
		if err != nil || string(got) != v.want {
			t.Errorf("%s: %q, %v; want %q", v.text, got, err, v.want)
		}
	}
	if _, err := canonical(nil, "test", manyNames(64), dict); err != nil {
		t.Errorf("64 names: %v", err)
	}
	for _, v := range []struct {
		as           shape
		text, reason string
	}{
		{dict, "a=1, a=2", ReasonDuplicate}, {item, "1;a;a", ReasonDuplicate}, {list, ":AB==:", ReasonMalformed}, {list, "1,", ReasonMalformed},
		{item, "", ReasonMalformed}, {item, "1, 2", ReasonMalformed}, {list, "((1))", ReasonMalformed}, {list, `%"%FF"`, ReasonMalformed}, {list, "@1.5", ReasonMalformed},
		{list, "1000000000000000", ReasonMalformed}, {list, "1234567890123.1", ReasonMalformed}, {dict, manyNames(65), ReasonMalformed},
	} {
		if got, err := canonical(nil, "test", v.text, v.as); reason(err) != v.reason {
			t.Errorf("%s: %q, %v; want %s", v.text, got, err, v.reason)
		}
	}
}

func manyNames(n int) string {
	var b []string
	for i := range n {
		b = append(b, fmt.Sprintf("n%d", i))
	}
	return strings.Join(b, ", ")
}

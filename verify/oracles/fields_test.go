package oracles

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/dunglas/httpsfv"

	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// canonical has httpsig serialize a structured field anew: the value of a covered
// field with ;sf is that. The three fields are a dictionary, a list and an item.
func canonical(field, text string) (string, error) {
	m := &httpsig.Message{Method: "GET", Header: map[string][]string{
		"Signature-Input": {`s=("` + strings.ToLower(field) + `";sf)`}, "Signature": {"s=:AA==:"}, field: {text},
	}}
	s, err := httpsig.Parse(m, "")
	if err != nil {
		return "", err
	}
	base, err := s.Base(nil, m)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(base), "\n")
	return strings.TrimPrefix(line, `"`+strings.ToLower(field)+`";sf: `), nil
}

var shapes = map[string]func(text string) (string, error){
	"Priority": func(text string) (string, error) {
		v, err := httpsfv.UnmarshalDictionary([]string{text})
		if err != nil {
			return "", err
		}
		return httpsfv.Marshal(v)
	},
	"Client-Cert-Chain": func(text string) (string, error) {
		v, err := httpsfv.UnmarshalList([]string{text})
		if err != nil {
			return "", err
		}
		return httpsfv.Marshal(v)
	},
	"Client-Cert": func(text string) (string, error) {
		v, err := httpsfv.UnmarshalItem([]string{text})
		if err != nil {
			return "", err
		}
		return httpsfv.Marshal(v)
	},
}

var structured = []string{
	``, `a`, `a=1`, `a=1, b=2;x=1;y=2, c=(a b   c), d`, "a=1\t,\tb", `a=?1;b=?0`, `a=?0`, `a;b=?1;c`, `*a=1`, `a.b-c_d*=1`, `A=1`, `1a=1`, `a=`, `a==1`, `a=1,`, `,a`, `a=1 b=2`, `a=1;`, `a;;b`, `a; b`, `a ;b`,
	`1`, `-1`, `0`, `-0`, `007`, `-007`, `+1`, `999999999999999`, `1000000000000000`, `1.5`, `1.50`, `1.500`, `1.`, `.5`, `-1.5`, `-`, `--1`, `1.0000`, `123456789012.123`, `1234567890123.1`, `00.1`, `0.0`, `1.001`, `1e3`,
	`"a"`, `"a\"b\\c"`, `"a\b"`, `"a`, `"`, `"a" `, `""`, "\"a\tb\"", "\"\x7f\"", `"é"`, `a"b"`,
	`tok`, `*tok`, `t/o:k!#$%&'*+-.^_` + "`" + `|~`, `tok(`, `/tok`, `:AA==:`, `:AAA=:`, `:AAAA:`, `::`, `:AA:`, `:A:`, `:AB==:`, `:AA=A:`, `:AA==`, `:AA_-:`, `:A A:`, `?1`, `?0`, `?2`, `?`, `?1a`,
	`@1700000000`, `@-1`, `@0`, `@1.5`, `@`, `@ 1`, `%"a"`, `%"%c3%a9"`, `%"%C3%A9"`, `%"%ff"`, `%"a%"`, `%"%2"`, `%"%20%22%25"`, `%a`, `%"`, `%"é"`, `%"\"`,
	`()`, `(1)`, `(1 2)`, `( 1  2 )`, `(1;a 2;b);c`, `(1,2)`, `(1"a")`, `((1))`, `(`, `(1`, `(1 `, `(a)b`, `1, 2, (3 4);a`, `1 ,2`, `1,,2`, ` 1`, `1;a=2;b="c";d=tok;e=:AA==:;f=?0;g=1.5;h=@1`, `1;a=(1)`, `a=(1);b=(2)`,
	`a=1, a=2`, `1;a;a`, `1;a=1;b;a=2`, `a;x, b;x`,
}

// agree holds both readers against each other. What httpsig accepts, the oracle
// accepts with the same meaning; what only the oracle accepts is refused on purpose:
// a name that is there twice, base64 that is not canonical, and more than fits.
func agree(t *testing.T, text string) {
	t.Helper()
	text = strings.Trim(text, " \t") // HTTP does that before
	for field, oracle := range shapes {
		ours, err := canonical(field, text)
		theirs, oracleErr := oracle(text)
		e, _ := errors.AsType[*httpsig.Error](err)
		switch {
		case err == nil && oracleErr != nil:
			t.Errorf("%s %q: accepted as %q, the oracle says %v", field, text, ours, oracleErr)
		case err == nil && ours != strings.ReplaceAll(theirs, "-0.0", "0.0"): // its minus sign before zero is not in RFC 9651 section 4.1.5
			t.Errorf("%s %q: %q, the oracle says %q", field, text, ours, theirs)
		case err != nil && oracleErr == nil:
			if e == nil || e.Reason != httpsig.ReasonDuplicate && !strings.Contains(e.Message, "base64") && !strings.Contains(e.Message, "more than") && !strings.Contains(e.Message, "longer than") {
				t.Errorf("%s %q: %v, the oracle says %q", field, text, err, theirs)
			}
		}
	}
}

func TestStructuredFieldsAreReadAsTheOracleReadsThem(t *testing.T) {
	accepted := 0
	for _, text := range structured {
		agree(t, text)
		for field := range shapes {
			if _, err := canonical(field, text); err == nil {
				accepted++
			}
		}
	}
	if accepted < len(structured)/2 {
		t.Errorf("only %d of the corpus are accepted: it proves little", accepted)
	}
}

func FuzzStructuredField(f *testing.F) {
	for _, text := range structured {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for i := range len(text) {
			if c := text[i]; c != '\t' && (c < ' ' || c >= 0x7f) {
				return // not a field value that httpsig would read at all
			}
		}
		if len(text) > 1000 {
			return
		}
		agree(t, text)
	})
}

// sameSignature holds Parse against the oracle. What Parse accepts is a dictionary
// of inner lists to the oracle, in the canonical form, with the same values.
func sameSignature(t *testing.T, input, signature string) (accepted bool) {
	t.Helper()
	m := &httpsig.Message{Method: "GET", Header: map[string][]string{"Signature-Input": {input}, "Signature": {signature}}}
	s, err := httpsig.Parse(m, "")
	if err != nil {
		return false
	}
	// The HTTP layer takes white space off first.
	inputs, err := httpsfv.UnmarshalDictionary([]string{strings.Trim(input, " \t")})
	if err != nil {
		t.Fatalf("%q is accepted, the oracle says %v", input, err)
	}
	values, err := httpsfv.UnmarshalDictionary([]string{strings.Trim(signature, " \t")})
	if err != nil {
		t.Fatalf("%q is accepted, the oracle says %v", signature, err)
	}
	if again, err := httpsfv.Marshal(inputs); err != nil || again != strings.Trim(input, " \t") {
		t.Fatalf("%q is accepted, the oracle writes it as %q (%v)", input, again, err)
	}
	member, _ := inputs.Get(s.Label)
	list, ok := member.(httpsfv.InnerList)
	if !ok || len(inputs.Names()) != 1 || len(values.Names()) != 1 || len(list.Items) != len(s.Components) {
		t.Fatalf("%q: read as %+v, the oracle says %+v", input, s, member)
	}
	for i, c := range s.Components {
		if list.Items[i].Value != c.Name() {
			t.Fatalf("%q: component %d is %s, the oracle says %v", input, i, c, list.Items[i].Value)
		}
		if text, err := httpsfv.Marshal(list.Items[i]); err != nil || strings.Replace(text[1:], `"`, "", 1) != c.String() {
			t.Fatalf("%q: component %d is %s, the oracle says %s", input, i, c, text)
		}
	}
	for name, have := range map[string]any{"created": s.Created, "expires": s.Expires, "keyid": s.KeyID, "nonce": s.Nonce, "tag": s.Tag, "alg": s.Alg} {
		if want, ok := list.Params.Get(name); ok && want != have || !ok && have != "" && have != int64(0) {
			t.Fatalf("%q: %s is %v, the oracle says %v", input, name, have, want)
		}
	}
	value, _ := values.Get(s.Label)
	if v, ok := value.(httpsfv.Item); !ok || !slices.Equal(v.Value.([]byte), s.Value) {
		t.Fatalf("%q: read as %x, the oracle says %v", signature, s.Value, value)
	}
	return true
}

var inputs = []string{
	`s=()`, `s=("@method")`, `s=("@method" "@path");created=1700000000;keyid="a";nonce="b";tag="c";alg="d";expires=1`, `s=("x";sf "y";bs;tr "z";key="a\"b";req)`,
	`s=("@query-param";name="a b")`, `s=("a" "b")`, " \ts=()", `s=();keyid="\\\""`, `*s.-_*=()`,
}

func TestSignatureInputIsReadAsTheOracleReadsIt(t *testing.T) {
	for _, input := range inputs {
		label, _, _ := strings.Cut(strings.Trim(input, " \t"), "=")
		if !sameSignature(t, input, label+"=:AAAA:") {
			t.Errorf("%q is refused", input)
		}
	}
}

// Forms that mean the same to the oracle and are another text: who signs the text
// and who writes it anew would sign two different bases.
func TestSignatureInputIsRefusedWhereTwoReadersDiffer(t *testing.T) {
	for _, input := range []string{
		`s=( "@method")`, `s=("@method" )`, `s=("@method"  "@path")`, `s=("x"; sf)`, `s=("x";sf=?1)`, `s=(); created=1`, `s=();created=01`, `s=();created=-0`,
		`s=();created=1;created=1`, `s=("x";sf;sf)`, `s=(), s=()`, `s=("x");keyid="a";keyid="b"`, `s=("@method" "@method")`, `s=("x";bs;tr "x";tr;bs)`,
		`s=();created=1.0`, `s=();created=@1`, `s=();keyid=a`, `s=();keyid=:AA==:`, `s=();created="1"`, `s=();x`, `s=(x)`, `s=("x" 1)`, `s="x"`, `s`, `s;created=1`,
	} {
		if _, err := httpsfv.UnmarshalDictionary([]string{input}); err != nil {
			t.Errorf("%q is not a dictionary to the oracle: %v", input, err)
		}
		m := &httpsig.Message{Method: "GET", Header: map[string][]string{"Signature-Input": {input}, "Signature": {"s=:AAAA:"}}}
		_, err := httpsig.Parse(m, "")
		if e, ok := errors.AsType[*httpsig.Error](err); !ok || e.Reason != httpsig.ReasonMalformed && e.Reason != httpsig.ReasonDuplicate {
			t.Errorf("%q: %v", input, err)
		}
	}
}

func FuzzSignatureInput(f *testing.F) {
	for _, input := range inputs {
		f.Add(input, "s=:AAAA:")
	}
	f.Add("s=()", " s=:AA==:\t")
	f.Fuzz(func(t *testing.T, input, signature string) { sameSignature(t, input, signature) })
}

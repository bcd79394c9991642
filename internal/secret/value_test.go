package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"
)

const plain = "hunter2-correct-horse"

// leaks tells in which form, if any, the secret shows in printed text.
func leaks(text string) string {
	b := []byte(plain)
	for form, shown := range map[string]string{
		"text": plain, "hex": hex.EncodeToString(b), "HEX": strings.ToUpper(hex.EncodeToString(b)),
		"spaced hex": fmt.Sprintf("% x", b), "Go hex": strings.Trim(fmt.Sprintf("%#v", b), "[]byte{}"),
		"decimal": strings.Trim(fmt.Sprint(b), "[]"), "base64": base64.StdEncoding.EncodeToString(b),
		"octal": strings.Trim(fmt.Sprintf("%o", b), "[]"), "binary": strings.Trim(fmt.Sprintf("%b", b), "[]"),
		"runes": strings.Trim(fmt.Sprintf("%q", b[:4]), `"`), "unicode": strings.Trim(fmt.Sprintf("%U", b), "[]"),
	} {
		if strings.Contains(text, shown) {
			return form
		}
	}
	return ""
}

type exported struct {
	Name  string
	Value Value
}

type unexported struct {
	name  string
	value Value
	deep  *unexported
}

type wrapping struct{ error }

func containers() map[string]any {
	v := FromString(plain)
	var iface any = v
	return map[string]any{
		"value": v, "pointer": &v, "interface": &iface, "exported": exported{"n", v}, "exported pointer": &exported{"n", v},
		"unexported": unexported{"n", v, nil}, "unexported pointer": &unexported{"n", v, &unexported{"m", v, nil}},
		"slice": []Value{v, v}, "array": [1]Value{v}, "pointers": []*Value{&v}, "any": []any{v, &v},
		"map": map[string]Value{"k": v}, "nested": map[string][]exported{"k": {{"n", v}}},
		"error": wrapping{fmt.Errorf("with %v and %s", v, &v)},
		"func":  struct{ F func() Value }{func() Value { return v }},
	}
}

func TestValueWhenPrinted(t *testing.T) {
	verbs := []string{"%v", "%+v", "%#v", "%s", "%q", "%#q", "%x", "%X", "% x", "%#x", "%d", "%o", "%b", "%c", "%U", "%e", "%g", "%t", "%p", "%T", "%w", "%20s", "%-5.3v", "%z"}
	for name, c := range containers() {
		for _, verb := range verbs {
			got := fmt.Sprintf(verb, c)
			if form := leaks(got); form != "" {
				t.Errorf("%s of %s shows the secret as %s", verb, name, form)
			}
			if (name == "value" || name == "pointer") && verb != "%p" && verb != "%T" && verb != "%w" && got != redacted {
				t.Errorf("%s of %s: got %q", verb, name, got)
			}
		}
		for printer, got := range map[string]string{
			"Sprint": fmt.Sprint(c), "panic": panicText(c),
			"template": render(t, c),
			"cmp":      cmp.Diff(c, nil, cmp.Exporter(func(reflect.Type) bool { return true })),
		} {
			if form := leaks(got); form != "" {
				t.Errorf("%s of %s shows the secret as %s", printer, name, form)
			}
		}
	}
}

func panicText(c any) (text string) {
	defer func() { text = fmt.Sprint(recover()) }()
	panic(c)
}

func render(t *testing.T, c any) string {
	t.Helper()
	var b bytes.Buffer
	if err := template.Must(template.New("").Parse(`{{.}} {{printf "%s %x" . .}} {{print .}}`)).Execute(&b, c); err != nil {
		return err.Error()
	}
	return b.String()
}

func TestValueWhenCompared(t *testing.T) {
	a, b := unexported{value: FromString(plain)}, unexported{value: FromString(plain + "!")}
	show := cmp.Exporter(func(reflect.Type) bool { return true })
	diff := cmp.Diff(a, b, show)
	if diff == "" || leaks(diff) != "" {
		t.Errorf("a difference is hidden, or shows the secret as %q", leaks(diff))
	}
	if diff := cmp.Diff(a, unexported{value: FromString(plain)}, show); diff != "" {
		t.Errorf("equal secrets differ: %d bytes of diff", len(diff))
	}
	if a.value.Equal(b.value) || a.value.Equal(Value{}) || !(Value{}).Equal(New(nil)) {
		t.Error("Equal is wrong")
	}
}

func TestValueWhenEncoded(t *testing.T) {
	for name, c := range containers() {
		var text, logged bytes.Buffer
		j, _ := json.Marshal(c)
		x, _ := xml.Marshal(c)
		_ = gob.NewEncoder(&text).Encode(c)
		for _, h := range []slog.Handler{slog.NewJSONHandler(&logged, nil), slog.NewTextHandler(&logged, nil)} {
			slog.New(h).With("c", c).WithGroup("g").Info("m", "c", c, slog.Group("h", "c", c))
		}
		for form, got := range map[string]string{"JSON": string(j), "XML": string(x), "gob": text.String(), "slog": logged.String()} {
			if leak := leaks(got); leak != "" {
				t.Errorf("%s of %s shows the secret as %s", form, name, leak)
			}
		}
	}
	v := FromString(plain)
	if got, err := json.Marshal(exported{"n", v}); err != nil || string(got) != `{"Name":"n","Value":"[redacted]"}` {
		t.Errorf("JSON: %s, %v", got, err)
	}
	if err := gob.NewEncoder(new(bytes.Buffer)).Encode(exported{"n", v}); !errors.Is(err, errOpaque) {
		t.Errorf("gob: %v", err)
	}
	var in exported
	if err := json.Unmarshal([]byte(`{"Value":"x"}`), &in); !errors.Is(err, errOpaque) || !in.Value.IsZero() {
		t.Errorf("a secret was read from JSON: %v", err)
	}
	if err := in.Value.UnmarshalText([]byte("x")); !errors.Is(err, errOpaque) {
		t.Errorf("a secret was read from text: %v", err)
	}
	if err := in.Value.GobDecode([]byte("x")); !errors.Is(err, errOpaque) {
		t.Errorf("a secret was read from gob: %v", err)
	}
}

func TestValueWhenCopiedAndDestroyed(t *testing.T) {
	in := []byte(plain)
	v := New(in)
	in[0] = 'X'
	if v.RevealString() != plain {
		t.Error("New shares the bytes it was given")
	}
	out := v.Reveal()
	out[0] = 'X'
	if v.RevealString() != plain || v.Len() != len(plain) || v.IsZero() {
		t.Error("Reveal gives out the bytes themselves")
	}
	held := v.bytes()
	w := v
	w.Destroy()
	if !v.IsZero() || v.Len() != 0 || len(v.Reveal()) != 0 || !bytes.Equal(held, make([]byte, len(held))) {
		t.Error("Destroy left bytes behind")
	}
	v.Destroy()
	Value{}.Destroy()
}

package awstest

import (
	"embed"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

//go:embed testdata/*.json
var models embed.FS

type model struct {
	Metadata struct {
		TargetPrefix string
		XMLNamespace string
		Protocol     string
	}
	Operations map[string]operation
	Shapes     map[string]shape
	Examples   map[string][]struct{ Input, Output map[string]any }

	service string // as in the scope of a signature
}

type operation struct {
	Input, Output *struct{ Shape, ResultWrapper string }
	Errors        []ref
}

type ref struct{ Shape string }

type shape struct {
	Type       string
	Required   []string
	Members    map[string]ref
	Member     ref
	Key, Value ref
	Min, Max   *int
	Pattern    string
	Enum       []string
	Sensitive  bool
	Exception  bool
	Fault      bool
	Error      struct {
		Code           string
		HTTPStatusCode int
	}
}

func readModel(service string) (*model, error) {
	b, err := models.ReadFile("testdata/" + service + ".json")
	if err != nil {
		return nil, err
	}
	m := &model{service: service}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("the model of %s: %w", service, err)
	}
	// The model requires the date, its documentation says that it is left out for a
	// key that was never used.
	if used, ok := m.Shapes["AccessKeyLastUsed"]; ok {
		used.Required = slices.DeleteFunc(used.Required, func(f string) bool { return f == "LastUsedDate" })
		m.Shapes["AccessKeyLastUsed"] = used
	}
	// A name may have 512 characters when it is given (NameType); the model has
	// forgotten that where it is returned.
	if name, ok := m.Shapes["SecretNameType"]; ok {
		name.Max = m.Shapes["NameType"].Max
		m.Shapes["SecretNameType"] = name
	}
	return m, nil
}

// check says what is wrong with v as an instance of the named shape, in the words of
// AWS, or "". Values of sensitive shapes are not quoted; nor is any other.
func (m *model) check(name, path string, v any) string {
	s := m.Shapes[name]
	bad := func(format string, args ...any) string {
		return fmt.Sprintf("1 validation error detected: Value at '%s' failed to satisfy constraint: Member must ", path) + fmt.Sprintf(format, args...)
	}
	size := func(n int, what string) string {
		switch {
		case s.Min != nil && n < *s.Min:
			return bad("have %s greater than or equal to %d", what, *s.Min)
		case s.Max != nil && n > *s.Max:
			return bad("have %s less than or equal to %d", what, *s.Max)
		}
		return ""
	}
	switch s.Type {
	case "structure":
		fields, ok := v.(map[string]any)
		if !ok {
			return bad("be a structure")
		}
		for _, r := range s.Required {
			if _, ok := fields[r]; !ok {
				return fmt.Sprintf("1 validation error detected: Value null at '%s' failed to satisfy constraint: Member must not be null", join(path, r))
			}
		}
		for _, f := range slices.Sorted(maps.Keys(fields)) {
			member, ok := s.Members[f]
			if !ok {
				return fmt.Sprintf("Unknown member '%s'", join(path, f))
			}
			if msg := m.check(member.Shape, join(path, f), fields[f]); msg != "" {
				return msg
			}
		}
	case "list":
		items, ok := v.([]any)
		if !ok {
			return bad("be a list")
		}
		if msg := size(len(items), "length"); msg != "" {
			return msg
		}
		for i, item := range items {
			if msg := m.check(s.Member.Shape, fmt.Sprintf("%s.%d.member", path, i+1), item); msg != "" {
				return msg
			}
		}
	case "map":
		items, ok := v.(map[string]any)
		if !ok {
			return bad("be a map")
		}
		for k, item := range items {
			if msg := m.check(s.Key.Shape, path+".key", k); msg != "" {
				return msg
			}
			if msg := m.check(s.Value.Shape, path+"."+k, item); msg != "" {
				return msg
			}
		}
	case "string":
		text, ok := v.(string)
		if !ok || !utf8.ValidString(text) {
			return bad("be text")
		}
		if len(s.Enum) > 0 && !slices.Contains(s.Enum, text) {
			return bad("satisfy enum value set: %v", s.Enum)
		}
		if msg := size(len(text), "length"); msg != "" {
			return msg
		}
		if s.Pattern != "" && !pattern(s.Pattern).MatchString(text) {
			return bad("satisfy regular expression pattern: %s", s.Pattern)
		}
	case "blob":
		text, ok := v.(string)
		raw, err := base64.StdEncoding.DecodeString(text)
		if !ok || err != nil {
			return bad("be base64")
		}
		return size(len(raw), "length")
	case "integer", "long":
		n, ok := v.(int)
		if !ok {
			return bad("be a number")
		}
		return size(n, "value")
	case "boolean":
		if _, ok := v.(bool); !ok {
			return bad("be true or false")
		}
	case "timestamp":
		if _, ok := v.(time.Time); !ok {
			return bad("be a time")
		}
	default:
		return fmt.Sprintf("the model has no shape %q", name)
	}
	return ""
}

func join(path, member string) string {
	if path == "" {
		return member
	}
	return path + "." + member
}

var unicodeEscape = regexp.MustCompile(`\\u([0-9A-Fa-f]{4,5})`)

// pattern is AWS's pattern, which is for Java and for the whole text. Some of the
// model's classes reach above U+FFFF with five digits, which Go takes in braces only.
func pattern(p string) *regexp.Regexp {
	return regexp.MustCompile(`^(?:` + unicodeEscape.ReplaceAllString(p, `\x{$1}`) + `)$`)
}

// fromJSON turns the numbers of decoded JSON into int and, where the shape says so,
// time.Time.
func (m *model) fromJSON(name string, v any) any {
	s := m.Shapes[name]
	switch v := v.(type) {
	case map[string]any:
		for k, item := range v {
			if s.Type == "map" {
				v[k] = m.fromJSON(s.Value.Shape, item)
			} else {
				v[k] = m.fromJSON(s.Members[k].Shape, item)
			}
		}
		return v
	case []any:
		for i, item := range v {
			v[i] = m.fromJSON(s.Member.Shape, item)
		}
		return v
	case json.Number:
		if s.Type == "timestamp" {
			f, _ := v.Float64()
			return time.UnixMilli(int64(f * 1000)).UTC()
		}
		if n, err := v.Int64(); err == nil {
			return int(n)
		}
	}
	return v
}

// toJSON is the JSON of an answer: times are seconds with a fraction.
func (m *model) toJSON(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, item := range v {
			out[k] = m.toJSON(item)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = m.toJSON(item)
		}
		return out
	case time.Time:
		return json.Number(strconv.FormatFloat(float64(v.UnixMilli())/1000, 'f', -1, 64))
	}
	return v
}

// fromForm reads the instance of a shape from the parameters of the query protocol,
// and takes from form what it has read.
func (m *model) fromForm(name, prefix string, form url.Values) any {
	s := m.Shapes[name]
	under := func(p string) bool {
		for k := range form {
			if k == p || strings.HasPrefix(k, p+".") {
				return true
			}
		}
		return false
	}
	switch s.Type {
	case "structure":
		out := map[string]any{}
		for f, member := range s.Members {
			if p := join(prefix, f); under(p) {
				out[f] = m.fromForm(member.Shape, p, form)
			}
		}
		return out
	case "list":
		out := []any{}
		for i := 1; i <= 1000; i++ {
			p := prefix + ".member." + strconv.Itoa(i)
			if !under(p) {
				break
			}
			out = append(out, m.fromForm(s.Member.Shape, p, form))
		}
		return out
	}
	text := form.Get(prefix)
	form.Del(prefix)
	switch s.Type {
	case "integer", "long":
		if n, err := strconv.Atoi(text); err == nil {
			return n
		}
	case "boolean":
		if b, err := strconv.ParseBool(text); err == nil {
			return b
		}
	}
	return text
}

// toXML writes the instance of a shape as the query protocol answers.
func (m *model) toXML(b *strings.Builder, name string, v any) {
	s := m.Shapes[name]
	switch v := v.(type) {
	case map[string]any:
		for _, f := range slices.Sorted(maps.Keys(v)) {
			b.WriteString("<" + f + ">")
			m.toXML(b, s.Members[f].Shape, v[f])
			b.WriteString("</" + f + ">")
		}
	case []any:
		for _, item := range v {
			b.WriteString("<member>")
			m.toXML(b, s.Member.Shape, item)
			b.WriteString("</member>")
		}
	case time.Time:
		b.WriteString(v.UTC().Format(time.RFC3339))
	default:
		b.WriteString(escape(fmt.Sprint(v)))
	}
}

func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text))
	return b.String()
}

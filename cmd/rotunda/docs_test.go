package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/rotunda-dev/rotunda/providers"
)

const schemaFile = "../../docs/credential.schema.json"

// The tables of kinds and the schema for editors are made from what the adapters declare.
// `make generate` writes them; these tests fail when they differ.
func TestDocsWhenKindsChange(t *testing.T) {
	const page = "../../docs/credentials.md"
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for name, want := range map[string]string{"strategies": strategyTable(), "targets": targetTables(), "stores": storeTables()} {
		begin, end := "<!-- begin "+name, "<!-- end "+name+" -->"
		from, to := strings.Index(text, begin), strings.Index(text, end)
		if from < 0 || to < from {
			t.Fatalf("%s has no block %q", page, name)
		}
		from += strings.Index(text[from:], "-->\n") + len("-->\n")
		if text[from:to] != want && os.Getenv("ROTUNDA_UPDATE_DOCS") == "" {
			t.Errorf("%s: block %q is not what the adapters declare: run `make generate`", page, name)
		}
		text = text[:from] + want + text[to:]
	}
	if os.Getenv("ROTUNDA_UPDATE_DOCS") != "" {
		write(t, page, text, 0o644)
	}
}

func TestDocsWhenSchemaChanges(t *testing.T) {
	want, err := manifestSchema(targetKinds(), allStoreKinds())
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("ROTUNDA_UPDATE_DOCS") != "" {
		write(t, schemaFile, string(want), 0o644)
	}
	have, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Errorf("%s is not what `rotunda schema` prints: run `make generate`", schemaFile)
	}
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func settingsTable(b *strings.Builder, title string, list []providers.Setting) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(b, "\n| %s | default | what it is |\n|---|---|---|\n", title)
	for _, s := range list {
		otherwise := "–"
		switch {
		case s.Required:
			otherwise = "must be given"
		case s.Default != "":
			otherwise = "`" + s.Default + "`"
		}
		about := s.Doc
		if len(s.OneOf) > 0 {
			about += " (`" + strings.Join(s.OneOf, "`, `") + "`)"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", s.Name, cell(otherwise), cell(about))
	}
}

func targetTables() string {
	var b strings.Builder
	for _, k := range targetKinds() {
		fmt.Fprintf(&b, "### `%s`\n\n%s\n", k.Name, k.Doc)
		settingsTable(&b, "setting", k.Settings)
		settingsTable(&b, "login (secret)", k.Login)
		settingsTable(&b, "param of a credential", k.Params)
		b.WriteByte('\n')
	}
	return b.String()
}

func storeTables() string {
	var b strings.Builder
	for _, k := range allStoreKinds() {
		fmt.Fprintf(&b, "### `%s`\n\n%s\n", k.Name, k.Doc)
		fmt.Fprintf(&b, "Writes per rotation: %d", k.Traits.WritesPerRotation)
		if k.Traits.Quota > 0 {
			fmt.Fprintf(&b, "; quota: %g per second for all credentials of one store", k.Traits.Quota)
		}
		b.WriteString(".\n")
		settingsTable(&b, "setting", k.Settings)
		settingsTable(&b, "login (secret)", k.Login)
		settingsTable(&b, "of a credential", []providers.Setting{k.Path})
		b.WriteByte('\n')
	}
	return b.String()
}

func strategyTable() string {
	var b strings.Builder
	b.WriteString("| target | strategies, the default first | who makes the value | drill |\n|---|---|---|---|\n")
	for _, k := range targetKinds() {
		var names []string
		for _, s := range k.Traits.Strategies {
			names = append(names, string(s))
		}
		who := "Rotunda"
		switch {
		case k.Traits.Valueless:
			who = "none comes out"
		case k.Traits.Issues:
			who = "the target"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.Name, strings.Join(names, ", "), who, either(drillable(k), "yes", "–"))
	}
	return b.String()
}

// drillable says whether `drill crash` can make a copy at a target of this kind: its source
// says so, since opening one needs a server.
func drillable(k providers.TargetKind) bool {
	if scratchless[k.Name] || k.Traits.Valueless {
		return !k.Traits.Valueless
	}
	folder := map[string]string{"aws-iam": "aws", "vault-approle": "vault/approle.go", "vault-database": "vault/database.go", "vault-database-root": "vault/databaseroot.go", "vault-transit": "vault/transit.go"}[k.Name]
	path := filepath.Join("../../providers", folder)
	if folder == "" {
		path = filepath.Join("../../providers", k.Name)
	}
	files := []string{path}
	if !strings.HasSuffix(path, ".go") {
		files, _ = filepath.Glob(filepath.Join(path, "*.go"))
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err == nil && bytes.Contains(raw, []byte(") Unscratch(ctx ")) {
			return true
		}
	}
	return false
}

// Every kind and every setting is in the schema, no login is a text, and the examples are what it
// allows.
func TestSchemaWhenExamplesAreChecked(t *testing.T) {
	raw, err := manifestSchema(targetKinds(), allStoreKinds())
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(raw, &schema); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../examples/credentials/*.yaml")
	if err != nil || len(files) < 6 {
		t.Fatalf("there are %d examples: %v", len(files), err)
	}
	kinds := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(text), "# yaml-language-server: $schema=../../docs/credential.schema.json\n") {
			t.Errorf("%s does not name the schema in its first line", file)
		}
		docs, err := parseManifest(file, text)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range docs {
			if d.system != nil {
				kinds[d.system.adapter] = true
			}
		}
		dec := yaml.NewDecoder(bytes.NewReader(text))
		for {
			var doc any
			if dec.Decode(&doc) != nil {
				break
			}
			if why := violates(schema, schema, doc); why != "" {
				t.Errorf("%s: the schema refuses a document of it: %s", file, why)
			}
		}
	}
	for _, k := range []string{"postgres", "mysql", "redis", "aws-iam", "vault-approle", "http", "generated", "vault-kv", "aws-secrets-manager", "builtin"} {
		if !kinds[k] {
			t.Errorf("no example has a %s", k)
		}
	}
	for name, doc := range map[string]map[string]any{
		"an inline secret":    {"kind": "target", "name": "t", "type": "postgres", "settings": map[string]any{"address": "h:5432", "user": "u"}, "login": map[string]any{"password": "hunter22"}},
		"an unknown setting":  {"kind": "store", "name": "s", "type": "builtin", "settings": map[string]any{"address": "x"}},
		"an unknown kind":     {"kind": "secret", "name": "s"},
		"an unknown type":     {"kind": "store", "name": "s", "type": "valt-kv"},
		"a missing setting":   {"kind": "target", "name": "t", "type": "postgres", "settings": map[string]any{"user": "u"}, "login": map[string]any{"password_file": "f"}},
		"a wrong length":      {"kind": "credential", "name": "c", "target": "t", "grace": "soon"},
		"two schedules":       {"kind": "credential", "name": "c", "target": "t", "schedule": map[string]any{"every": "1h", "cron": "* * * * *"}},
		"a key out of place":  {"kind": "credential", "name": "c", "target": "t", "type": "postgres"},
		"a name with capital": {"kind": "credential", "name": "C", "target": "t"},
	} {
		if violates(schema, schema, doc) == "" {
			t.Errorf("the schema allows %s", name)
		}
	}
}

// violates is as much of JSON Schema as our schema uses: why v is not allowed; empty: it is.
func violates(root, schema map[string]any, v any) string {
	if r, ok := schema["$ref"].(string); ok {
		defs, _ := root["$defs"].(map[string]any)
		def, _ := defs[strings.TrimPrefix(r, "#/$defs/")].(map[string]any)
		if def == nil {
			return "no definition " + r
		}
		if why := violates(root, def, v); why != "" {
			return why
		}
	}
	sub := func(x any) map[string]any { m, _ := x.(map[string]any); return m }
	for _, s := range list(schema["allOf"]) {
		if why := violates(root, sub(s), v); why != "" {
			return why
		}
	}
	if cond := sub(schema["if"]); cond != nil && violates(root, cond, v) == "" {
		if why := violates(root, sub(schema["then"]), v); why != "" {
			return why
		}
	}
	for word, exact := range map[string]bool{"anyOf": false, "oneOf": true} {
		if all := list(schema[word]); all != nil {
			n := 0
			for _, s := range all {
				if violates(root, sub(s), v) == "" {
					n++
				}
			}
			if n == 0 || exact && n != 1 {
				return fmt.Sprintf("%v: %d of %s", v, n, word)
			}
		}
	}
	if not := sub(schema["not"]); not != nil && violates(root, not, v) == "" {
		return fmt.Sprintf("%v is what not forbids", v)
	}
	if c, ok := schema["const"]; ok && c != v {
		return fmt.Sprintf("%v is not %v", v, c)
	}
	if all := list(schema["enum"]); all != nil && !slices.Contains(all, v) {
		return fmt.Sprintf("%v is none of %v", v, all)
	}
	if s, ok := v.(string); ok {
		if p, ok := schema["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(s) {
			return fmt.Sprintf("%q does not match %s", s, p)
		}
	}
	if why := wrongType(schema["type"], v); why != "" {
		return why
	}
	if items, ok := v.([]any); ok {
		for _, x := range items {
			if why := violates(root, sub(schema["items"]), x); why != "" {
				return why
			}
		}
	}
	m, ok := v.(map[string]any)
	if !ok {
		return ""
	}
	for _, name := range list(schema["required"]) {
		if _, ok := m[name.(string)]; !ok {
			return fmt.Sprintf("%v is missing", name)
		}
	}
	properties := sub(schema["properties"])
	for name, x := range m {
		p, known := properties[name]
		switch {
		case known:
		case schema["additionalProperties"] == false:
			return name + " is not allowed"
		default:
			p = schema["additionalProperties"]
		}
		if why := violates(root, sub(p), x); why != "" {
			return name + ": " + why
		}
	}
	return ""
}

func list(x any) []any { l, _ := x.([]any); return l }

func wrongType(want, v any) string {
	types := list(want)
	if s, ok := want.(string); ok {
		types = []any{s}
	}
	if len(types) == 0 {
		return ""
	}
	got := ""
	switch v.(type) {
	case string:
		got = "string"
	case bool:
		got = "boolean"
	case int, float64:
		got = "number"
		if slices.Contains(types, any("integer")) {
			return ""
		}
	case map[string]any:
		got = "object"
	case []any:
		got = "array"
	}
	if slices.Contains(types, any(got)) {
		return ""
	}
	return fmt.Sprintf("%v is no %v", v, types)
}

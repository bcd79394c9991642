package format

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

var fieldWords = [numColumns]string{
	"the log's name", "leaf index", "leaf hash, 32 bytes", "the event's UUID", "when", "`keyset.create`", "`keysets/payments`",
	"`ok`, `denied`, `started` or `failed`", "equal attempts that the event stands for", "who: a token's id, `anonymous` or `rotunda`",
	"the partner it is about", "why it was done, or denied", "the request", "where it came from", "what changed, a JSON object",
	"the id of the started event that this one ends", "what opens the commitments, 16 or 96 bytes", "what tells which field was altered, 52 bytes",
}

// blocks are the parts of docs/formats.md that the code writes.
func blocks(t *testing.T) map[string]string {
	t.Helper()
	first := samples(t)[:1]
	lines := func(name string) string {
		return "```\n" + strings.ReplaceAll(string(writeAll(t, name, first)), "\r\n", "\n") + "```\n"
	}
	out := map[string]string{}
	for _, name := range Names[:4] {
		out[name] = lines(name)
	}
	out["parquet"] = "```\n" + parquet.SchemaOf(row{}).String() + "\n```\n"

	var b strings.Builder
	b.WriteString("| field | what | jsonl | csv | cef | ocsf | parquet |\n|---|---|---|---|---|---|---|\n")
	schema := parquet.SchemaOf(row{})
	for c := range colErased + 1 {
		name, what, jsonl := columnNames[c], fieldWords[c], "string"
		csv := name
		switch c {
		case colIndex, colCount:
			jsonl = "number"
		case colDetail:
			jsonl = "object"
		case colErased:
			name, what, jsonl, csv = "erased", "commitments of erased fields, 32 bytes each", "object", "erased_actor …"
		default:
		}
		var cef, ocsf []string
		for _, k := range cefKeys {
			if k.column == c {
				key := "`" + k.key + "`"
				if k.label != "" && strings.HasPrefix(k.key, "c") && k.column != colAddress {
					key += " " + k.label
				}
				cef = append(cef, key)
			}
		}
		if c == colAction {
			cef = []string{"signature id"}
		}
		if c == colErased {
			cef[0] += " …"
		}
		for _, path := range slices.Sorted(maps.Keys(ocsfColumns)) {
			if ocsfColumns[path] == c {
				ocsf = append(ocsf, "`"+path+"`")
			}
		}
		if c == colAddress || len(ocsf) == 0 {
			ocsf = append(ocsf, "`unmapped."+name+"`")
		}
		column, _ := schema.Lookup(columnNames[c])
		kind := column.Node.Type().String()
		fmt.Fprintf(&b, "| %s | %s | %s | `%s` | %s | %s | %s |\n", name, what, jsonl, csv, strings.Join(cef, ", "), strings.Join(ocsf, ", "), kind)
	}
	out["fields"] = b.String()

	b.Reset()
	b.WriteString("| verb | 3004 | 6003 |\n|---|---|---|\n")
	verbs := maps.Clone(entityManagement.activities)
	maps.Copy(verbs, apiActivity.activities)
	cell := func(c *class, verb string) string {
		if a, ok := c.activities[verb]; ok {
			return a.id + " " + a.name
		}
		return "99 Other"
	}
	for _, verb := range slices.Sorted(maps.Keys(verbs)) {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", verb, cell(&entityManagement, verb), cell(&apiActivity, verb))
	}
	out["activities"] = b.String()
	out["entities"] = "`" + strings.Join(slices.Sorted(maps.Keys(entities)), "`, `") + "`.\n"
	return out
}

// TestDocsWhenCompared: the examples and tables of docs/formats.md are what the
// code writes, and the line of each text format can be read.
func TestDocsWhenCompared(t *testing.T) {
	const page = "../../docs/formats.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	want := string(text)
	for name, block := range blocks(t) {
		before, rest, ok := strings.Cut(want, "<!-- begin "+name+": written by `go test ./audit/format -update` -->\n")
		_, after, ok2 := strings.Cut(rest, "<!-- end "+name+" -->\n")
		if !ok || !ok2 {
			t.Fatalf("%s has no block %q", page, name)
		}
		begin := want[len(before) : len(want)-len(rest)]
		want = before + begin + block + "<!-- end " + name + " -->\n" + after
	}
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		text = []byte(want)
	}
	if string(text) != want {
		t.Errorf("%s is not what the code writes: go test ./audit/format -update", page)
	}
	for _, name := range []string{"jsonl", "cef", "ocsf"} {
		_, rest, _ := strings.Cut(string(text), "<!-- begin "+name+":")
		_, rest, _ = strings.Cut(rest, "```\n")
		line, _, _ := strings.Cut(rest, "```")
		got, err := readAll(name, bytes.NewReader([]byte(line)))
		if err != nil {
			t.Errorf("the example of %s: %v", name, err)
		}
		equalRecords(t, got, []trail.Record{samples(t)[0]})
	}
}

// TestPackageCommentWhenCompared: the package comment names every column and
// every key.
func TestPackageCommentWhenCompared(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range cefKeys[:10] {
		if !strings.Contains(string(text), k.key) {
			t.Errorf("the package comment does not tell of the key %s", k.key)
		}
	}
	for _, name := range columnNames[:colErased] {
		if !strings.Contains(string(text), name) {
			t.Errorf("the package comment does not tell of the field %s", name)
		}
	}
}

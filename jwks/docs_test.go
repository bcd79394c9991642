package jwks

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// The tables of the documentation are made from the tables that the code
// obeys. `make generate` writes them; this test fails when they differ.
func TestDocsWhenTablesChange(t *testing.T) {
	agree(t, "../docs/concepts.md", map[string]string{
		"states":   "```mermaid\n" + Diagram() + "```\n",
		"profiles": profileTable(),
	})
}

func profileTable() string {
	var b strings.Builder
	b.WriteString("| profile | consumer | lead | reach, standby | reach, fresh | refusal, fresh | know |\n|---|---|---|---|---|---|---|\n")
	brief := func(d time.Duration) string {
		if d == Forever {
			return "no end"
		}
		return span(d)
	}
	for _, p := range Profiles {
		c := DefaultPolicy().Timing(p)
		know := p.Note
		if p.Algorithms != nil {
			names := make([]string, len(p.Algorithms))
			for i, a := range p.Algorithms {
				names[i] = string(a)
			}
			know = strings.TrimPrefix(know+"; verifies "+strings.Join(names, ", "), "; ")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s |\n", p.Name, p.Title, brief(c.Lead), brief(c.ReachStandby), brief(c.ReachFresh), brief(c.RefusalFresh), know)
	}
	return b.String()
}

// agree compares each marked block of a page with what it should hold, or
// writes it when ROTUNDA_UPDATE_DOCS is set.
func agree(t *testing.T, page string, blocks map[string]string) {
	t.Helper()
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for name, want := range blocks {
		start := strings.Index(text, "<!-- begin "+name)
		if start < 0 {
			t.Fatalf("%s has no block %q", page, name)
		}
		start += strings.Index(text[start:], "-->\n") + len("-->\n")
		end := strings.Index(text, "<!-- end "+name+" -->")
		if end < start {
			t.Fatalf("%s: block %q has no end", page, name)
		}
		if text[start:end] != want {
			if os.Getenv("ROTUNDA_UPDATE_DOCS") == "" {
				t.Errorf("%s: block %q is not what the code says: run `make generate`", page, name)
			}
			text = text[:start] + want + text[end:]
		}
	}
	if os.Getenv("ROTUNDA_UPDATE_DOCS") != "" && text != string(raw) {
		if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

package server

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/apikeys"
)

// The table of methods and roles in docs/api.md is what the policy decides.
// `make generate` writes it; this test fails when it differs.
func TestDocsWhenPolicyChanges(t *testing.T) {
	const page, begin, end = "../../docs/api.md", "<!-- begin methods", "<!-- end methods -->"
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	from := strings.Index(text, begin)
	to := strings.Index(text, end)
	if from < 0 || to < from {
		t.Fatalf("%s has no block of methods", page)
	}
	from += strings.Index(text[from:], "-->\n") + len("-->\n")
	want := methodTable(t)
	if text[from:to] == want {
		return
	}
	if os.Getenv("ROTUNDA_UPDATE_DOCS") == "" {
		t.Fatalf("%s: the block of methods is not what the policy says: run `make generate`", page)
	}
	if err := os.WriteFile(page, []byte(text[:from]+want+text[to:]), 0o644); err != nil {
		t.Fatal(err)
	}
}

func methodTable(t *testing.T) string {
	t.Helper()
	a, err := newAuthorizer()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("| call |")
	for _, r := range apikeys.Roles {
		fmt.Fprintf(&b, " %s |", r)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(apikeys.Roles)) + "\n")
	var procedures []string
	for p := range groups {
		procedures = append(procedures, p)
	}
	slices.Sort(procedures)
	for _, p := range procedures {
		fmt.Fprintf(&b, "| `%s` |", strings.TrimPrefix(p, "/rotunda.v1."))
		for _, r := range apikeys.Roles {
			own := newSubject(&apikeys.Token{ID: "t", Role: r, Partner: "k", Keysets: []string{"k"}, Paths: []string{"k"}})
			foreign := newSubject(&apikeys.Token{ID: "t", Role: r, Partner: "other", Keysets: []string{"other"}, Paths: []string{"other"}})
			mark := ""
			switch {
			case a.allows(foreign, p, "k"):
				mark = "yes"
			case a.allows(own, p, "k") && onPartners(p):
				mark = "its own"
			case a.allows(own, p, "k") && groups[p] == secrets:
				mark = "its paths"
			case a.allows(own, p, "k"):
				mark = "its keysets"
			}
			fmt.Fprintf(&b, " %s |", mark)
		}
		b.WriteString("\n")
	}
	return b.String()
}

package ladder

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// source is the Go code of one module and the tables its migrations leave.
type source struct {
	module string
	fset   *token.FileSet
	files  []file   // ordered by name
	tables []string // ordered
}

type file struct {
	name string // from the module's root: "jwks/key.go"
	pkg  string // the folder: "jwks"
	ast  *ast.File
}

func (s *source) line(f file, pos token.Pos) string {
	return fmt.Sprintf("%s:%d: %s", f.name, s.fset.Position(pos).Line, f.pkg)
}

// imports yields the paths a file imports; those of this module without its name.
func (s *source) imports(f file) (own, other []*ast.ImportSpec, paths map[*ast.ImportSpec]string) {
	paths = map[*ast.ImportSpec]string{}
	for _, spec := range f.ast.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has refused it already
		}
		if rest, ok := strings.CutPrefix(p, s.module+"/"); ok {
			own, paths[spec] = append(own, spec), rest
		} else {
			other, paths[spec] = append(other, spec), p
		}
	}
	return own, other, paths
}

// read parses the module at the root of fsys: every Go file that is not a test and
// not in a module below, and every migration.
func read(fsys fs.FS) (*source, error) {
	src := &source{fset: token.NewFileSet()}
	gomod, err := fs.ReadFile(fsys, "go.mod")
	if err != nil {
		return nil, err
	}
	first, _ := bufio.NewReader(bytes.NewReader(gomod)).ReadString('\n')
	src.module = strings.TrimSpace(strings.TrimPrefix(first, "module "))

	var migrations []byte
	err = fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if entry.IsDir() {
			if name == "." {
				return nil
			}
			if base == "testdata" || base == "node_modules" || base[0] == '.' || base[0] == '_' {
				return fs.SkipDir
			}
			if _, err := fs.Stat(fsys, path.Join(name, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		isMigration := path.Ext(name) == ".sql" && strings.HasPrefix(name, "migrations/")
		isCode := path.Ext(name) == ".go" && !strings.HasSuffix(name, "_test.go")
		if !isMigration && !isCode {
			return nil
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		if isMigration {
			migrations = append(append(migrations, up(text)...), '\n')
			return nil
		}
		parsed, err := parser.ParseFile(src.fset, name, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		src.files = append(src.files, file{name: name, pkg: path.Dir(name), ast: parsed})
		return nil
	})
	src.tables = tablesLeftBy(string(migrations))
	return src, err
}

// within reports whether pkg is prefix or below it.
func within(pkg, prefix string) bool {
	return pkg == prefix || strings.HasPrefix(pkg, prefix+"/")
}

func withinAny(pkg string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return within(pkg, p) })
}

// rule is one rung: which packages of this module pkg, and every folder below it,
// may import beside one another.
type rule struct {
	pkg      string
	may      []string
	anything bool
	pure     bool   // imports no transport
	adapter  string // the one adapter that it stands on
}

// join flattens names and lists of names.
func join(parts ...any) []string {
	var out []string
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			out = append(out, p)
		case []string:
			out = append(out, p...)
		default:
			panic(fmt.Sprintf("join: %T", p))
		}
	}
	return out
}

// transport is what a pure package does not import. Direct imports are enough: each
// package of ours is checked by its own rule, and what a library does inside (Tink
// encodes keysets with protobuf) is its own affair.
var transport = []string{"connectrpc.com", "google.golang.org/protobuf", "google.golang.org/grpc", "net/http", "buf.build"}

func checkImports(src *source, rules []rule) []string {
	var findings []string
	lost := map[string]bool{}
	for _, f := range src.files {
		var r *rule
		for i := range rules {
			if within(f.pkg, rules[i].pkg) && (r == nil || len(rules[i].pkg) > len(r.pkg)) {
				r = &rules[i]
			}
		}
		if r == nil {
			if !lost[f.pkg] {
				findings = append(findings, f.pkg+" has no place in the ladder: give it one in rules "+
					"(internal/ladder/tree_test.go), or put the code where it belongs")
			}
			lost[f.pkg] = true
			continue
		}
		if r.anything {
			continue
		}
		own, other, paths := src.imports(f)
		for _, spec := range own {
			p := paths[spec]
			if home := adapter(p); home != "" {
				if adapter(f.pkg) != home && r.adapter != home {
					findings = append(findings, fmt.Sprintf("%s imports %s: only cmd imports a concrete adapter",
						src.line(f, spec.Pos()), p))
				}
				continue
			}
			if !within(p, r.pkg) && !withinAny(p, r.may) {
				allowed := strings.Join(r.may, ", ")
				if allowed == "" {
					allowed = "nothing of this module"
				} else {
					allowed = "only " + allowed
				}
				findings = append(findings, fmt.Sprintf("%s imports %s: the ladder allows it %s",
					src.line(f, spec.Pos()), p, allowed))
			}
		}
		for _, spec := range other {
			if p := paths[spec]; r.pure && withinAny(p, transport) {
				findings = append(findings, fmt.Sprintf("%s imports %s: transport belongs in internal/server, cmd, verify or an adapter",
					src.line(f, spec.Pos()), p))
			}
		}
	}
	return findings
}

// adapter returns the adapter that pkg belongs to, "providers/vault", or "". The
// shared conformance suites (folders ending in "test") are not adapters.
func adapter(pkg string) string {
	parts := strings.SplitN(pkg, "/", 3)
	if len(parts) < 2 || parts[0] != "providers" || strings.HasSuffix(parts[1], "test") {
		return ""
	}
	return path.Join(parts[:2]...)
}

// forTests reports whether pkg is made for tests: its name, or that of a folder above it,
// ends in "test", like httptest.
func forTests(pkg string) bool {
	return slices.ContainsFunc(strings.Split(pkg, "/"), func(part string) bool { return strings.HasSuffix(part, "test") && part != "test" })
}

func checkTestPackages(src *source) []string {
	var findings []string
	for _, f := range src.files {
		if forTests(f.pkg) {
			continue
		}
		own, _, paths := src.imports(f)
		for _, spec := range own {
			if forTests(paths[spec]) {
				findings = append(findings, fmt.Sprintf("%s imports %s, which is for tests: only tests may",
					src.line(f, spec.Pos()), paths[spec]))
			}
		}
	}
	return findings
}

// checkClock reports time.Now, and Since and Until which call it, whether called or
// handed on as a value.
func checkClock(src *source, readers []string) []string {
	reads := []string{"Now", "Since", "Until"}
	var findings []string
	for _, f := range src.files {
		if withinAny(f.pkg, readers) {
			continue
		}
		local := ""
		for _, spec := range f.ast.Imports {
			if spec.Path.Value == `"time"` {
				local = "time"
				if spec.Name != nil {
					local = spec.Name.Name
				}
			}
		}
		if local == "" {
			continue
		}
		found := func(pos token.Pos, name string) {
			findings = append(findings, fmt.Sprintf("%s reads the clock (time.%s): only %s may; take the time as a parameter, or from tx.Now",
				src.line(f, pos), name, strings.Join(readers, ", ")))
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if ok && x.Name == local && slices.Contains(reads, n.Sel.Name) {
					found(n.Pos(), n.Sel.Name)
				}
				// With a dot import, x.Now is a field or method of something else.
				ast.Inspect(n.X, func(inner ast.Node) bool {
					if id, ok := inner.(*ast.Ident); ok && local == "." && slices.Contains(reads, id.Name) {
						found(id.Pos(), id.Name)
					}
					return true
				})
				return local != "."
			case *ast.Ident:
				if local == "." && slices.Contains(reads, n.Name) {
					found(n.Pos(), n.Name)
				}
			}
			return true
		})
	}
	return findings
}

// checkReveal leaves out internal/secret, which defines Reveal.
func checkReveal(src *source, allowed map[string]string) []string {
	var findings []string
	exists, used := map[string]bool{}, map[string]bool{}
	for _, f := range src.files {
		if within(f.pkg, "internal/secret") {
			continue
		}
		exists[f.pkg] = true
		ast.Inspect(f.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Reveal" && sel.Sel.Name != "RevealString" {
				return true
			}
			used[f.pkg] = true
			if _, ok := allowed[f.pkg]; !ok {
				findings = append(findings, src.line(f, sel.Sel.Pos())+" takes the bytes out of a secret: if it must, "+
					"add it and the reason to revealers (internal/ladder/tree_test.go)")
			}
			return true
		})
	}
	for _, pkg := range slices.Sorted(maps.Keys(allowed)) {
		if exists[pkg] && !used[pkg] {
			findings = append(findings, "revealers allows "+pkg+", which takes no bytes out of any secret: remove it (internal/ladder/tree_test.go)")
		}
	}
	return findings
}

var (
	sqlComment = regexp.MustCompile(`--[^\n]*|(?s:/\*.*?\*/)`)
	tableMove  = regexp.MustCompile(`(?i)\bCREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?"?(\w+)|` +
		`\bDROP\s+TABLE\s+(?:IF\s+EXISTS\s+)?"?(\w+)|` +
		`\bALTER\s+TABLE\s+"?(\w+)"?\s+RENAME\s+TO\s+"?(\w+)`)
)

// up is the part of a migration that goes forward.
func up(migration []byte) []byte {
	if i := bytes.Index(migration, []byte("-- +goose Down")); i >= 0 {
		migration = migration[:i]
	}
	return sqlComment.ReplaceAll(migration, nil)
}

func tablesLeftBy(migrations string) []string {
	left := map[string]bool{}
	for _, m := range tableMove.FindAllStringSubmatch(migrations, -1) {
		switch {
		case m[1] != "":
			left[strings.ToLower(m[1])] = true
		case m[2] != "":
			delete(left, strings.ToLower(m[2]))
		default:
			delete(left, strings.ToLower(m[3]))
			left[strings.ToLower(m[4])] = true
		}
	}
	return slices.Sorted(maps.Keys(left))
}

// checkOwners does not ask that an owner exists: its table may come a commit earlier.
func checkOwners(src *source, owners map[string]string, rules []rule) []string {
	var findings []string
	for _, table := range slices.Sorted(maps.Keys(setOf(src.tables, slices.Collect(maps.Keys(owners))))) {
		owner, owned := owners[table]
		switch {
		case !owned:
			findings = append(findings, "table "+table+" has no owner: say in owners which package it belongs to (internal/ladder/tree_test.go)")
		case !slices.Contains(src.tables, table):
			findings = append(findings, "table "+table+" has an owner but no migration creates it: remove it from owners (internal/ladder/tree_test.go)")
		case !slices.ContainsFunc(rules, func(r rule) bool { return within(owner, r.pkg) }):
			findings = append(findings, "table "+table+" is owned by "+owner+", which has no place in the ladder")
		}
	}
	return findings
}

func setOf(lists ...[]string) map[string]bool {
	set := map[string]bool{}
	for _, l := range lists {
		for _, s := range l {
			set[s] = true
		}
	}
	return set
}

func checkTables(src *source, owners map[string]string) []string {
	var findings []string
	for _, f := range src.files {
		eachString(f.ast, func(pos token.Pos, text string) {
			for _, table := range tablesNamed(text, src.tables) {
				owner, ok := owners[table]
				// The owner's folders are part of it.
				if ok && !within(f.pkg, owner) {
					findings = append(findings, fmt.Sprintf("%s names the table %s in SQL, which is %s's: ask %s through a function, or change owners (internal/ladder/tree_test.go)",
						src.line(f, pos), table, owner, owner))
				}
			}
		})
	}
	return findings
}

// eachString calls visit for every string of the file. Literals joined with + are one
// string; what is not a literal among them reads as a space.
func eachString(root ast.Node, visit func(token.Pos, string)) {
	var text func(ast.Expr) (string, bool)
	text = func(e ast.Expr) (string, bool) {
		switch e := e.(type) {
		case *ast.BasicLit:
			if e.Kind == token.STRING {
				s, err := strconv.Unquote(e.Value)
				return s, err == nil
			}
		case *ast.ParenExpr:
			return text(e.X)
		case *ast.BinaryExpr:
			if e.Op == token.ADD {
				l, lok := text(e.X)
				r, rok := text(e.Y)
				return l + r, lok || rok
			}
		}
		return " ", false
	}
	ast.Inspect(root, func(n ast.Node) bool {
		if _, ok := n.(*ast.ImportSpec); ok {
			return false
		}
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		s, ok := text(e)
		if !ok {
			return true
		}
		visit(e.Pos(), s)
		return false
	})
}

var (
	// What only SQL looks like. Capitals may be a fragment; in lower case it has to
	// be the shape of a statement, since messages say "update" and "from" too.
	sqlCapitals  = regexp.MustCompile(`\b(?:SELECT|FROM|INTO|UPDATE|DELETE|JOIN|TABLE)\b`)
	sqlStatement = regexp.MustCompile(`(?is)^\s*(?:select\b.*\bfrom\b|insert\s+(?:or\s+\w+\s+)?into\b|update\s+\S+\s+set\b|delete\s+from\b|with\b.*\bas\s*\(|truncate\s|lock\s+table\b)`)
	sqlWord      = regexp.MustCompile(`\w+|[(),;]`)
)

// tablesNamed returns which of tables a string names as a table: after a word that
// takes one, or after a comma in a list of them.
func tablesNamed(text string, tables []string) []string {
	if !sqlCapitals.MatchString(text) && !sqlStatement.MatchString(text) {
		return nil
	}
	// A quoted name is a name; what is left of a qualifier is not a table.
	text = regexp.MustCompile(`"?\w+"?\.("?\w)`).ReplaceAllString(text, "$1")
	var found []string
	expect, inList := false, false
	for _, word := range sqlWord.FindAllString(text, -1) {
		switch upper := strings.ToUpper(word); upper {
		case "FROM", "JOIN", "INTO", "UPDATE", "TABLE", "REFERENCES", "TRUNCATE":
			expect, inList = true, upper == "FROM"
		case "ONLY", "IF", "EXISTS", "NOT", "LATERAL":
			// Between such a word and the name.
		case ",":
			expect = inList
		case "SELECT", "WHERE", "ORDER", "GROUP", "LIMIT", "SET", "ON", "USING", "RETURNING", "VALUES", "UNION", "(", ")", ";":
			expect, inList = false, false
		default:
			if expect && slices.Contains(tables, strings.ToLower(word)) && !slices.Contains(found, strings.ToLower(word)) {
				found = append(found, strings.ToLower(word))
			}
			expect = false
		}
	}
	return found
}

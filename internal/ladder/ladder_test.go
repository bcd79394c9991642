// Package ladder holds no code, only tests over the source of all other packages.
// They keep five rules that a compiler can't:
//
//  1. Imports only go down the ladder (rules, in tree_test.go), so a domain package
//     never depends on another, on the transport, or on a concrete adapter.
//  2. Only internal/store and cmd read the clock; elsewhere the time is a parameter.
//  3. A secret's bytes come out only in the packages that must have them.
//  4. Each table has one owner, and only the owner names it in SQL.
//  5. A package made for tests is imported by tests only.
//
// The tests parse the files themselves instead of asking `go list`: files guarded
// by build tags are read too, and go test sees what was read, so that a cached pass
// is never older than the code. Code of tests (_test.go) is free, generated code is
// not. Modules below this one are outside.
//
// The checks take an fs.FS. The tests in ladder_test.go show on small trees that
// each check can fail; tree_test.go runs them on the real one.
package ladder

import (
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// tree makes the source of a module named "m" out of file names and contents. A Go
// file's package clause is added.
func tree(t *testing.T, files map[string]string) fs.FS {
	t.Helper()
	out := fstest.MapFS{"go.mod": {Data: []byte("module m\n")}}
	for name, text := range files {
		if strings.HasSuffix(name, ".go") {
			text = "package p\n" + text
		}
		out[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return out
}

func newSource(t *testing.T, fsys fs.FS) *source {
	t.Helper()
	src, err := read(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("findings:\n got %q\nwant %q", got, want)
	}
}

func TestReadWhenFoldersAreNotOurs(t *testing.T) {
	src := newSource(t, tree(t, map[string]string{
		"a/a.go":                  "",
		"a/a_test.go":             `import "unsafe"`,
		"a/a_windows.go":          `import "os"`,
		"a/testdata/x.go":         "",
		"nested/go.mod":           "module other\n",
		"nested/x.go":             "",
		"nested/deep/x.go":        "",
		".tools/x.go":             "",
		"_old/x.go":               "",
		"web/node_modules/x/x.go": "",
	}))
	var got []string
	for _, f := range src.files {
		got = append(got, f.pkg+" "+f.name)
	}
	expect(t, got, "a a/a.go", "a a/a_windows.go")
}

func TestReadWhenAFileDoesNotParse(t *testing.T) {
	if _, err := read(tree(t, map[string]string{"a/a.go": "func {"})); err == nil {
		t.Error("read: no error for a file that does not parse")
	}
}

func TestImportsWhenTheyGoUp(t *testing.T) {
	for _, test := range []struct {
		name, file, path string
		want             []string
	}{
		{"domain to domain", "jwks/a.go", "m/apikeys",
			[]string{"jwks/a.go:2: jwks imports apikeys: the ladder allows it only audit, internal/store, internal/secret, internal/schedule, internal/fault"}},
		{"domain to audit", "jwks/a.go", "m/audit", nil},
		{"domain to its own folder", "jwks/a.go", "m/jwks/profile", nil},
		{"a folder of the domain to its parent", "jwks/profile/a.go", "m/jwks", nil},
		{"a folder of the domain to another domain", "jwks/profile/a.go", "m/rotation",
			[]string{"jwks/profile/a.go:2: jwks/profile imports rotation: the ladder allows it only audit, internal/store, internal/secret, internal/schedule, internal/fault"}},
		{"audit to a domain", "audit/a.go", "m/jwks",
			[]string{"audit/a.go:2: audit imports jwks: the ladder allows it only audit/trail, audit/format, audit/bundle, internal/store, internal/secret, internal/schedule, internal/fault"}},
		{"store to a domain", "internal/store/a.go", "m/audit",
			[]string{"internal/store/a.go:2: internal/store imports audit: the ladder allows it only internal/fault, migrations"}},
		{"store to migrations", "internal/store/a.go", "m/migrations", nil},
		{"fault to anything", "internal/fault/a.go", "m/internal/secret",
			[]string{"internal/fault/a.go:2: internal/fault imports internal/secret: the ladder allows it nothing of this module"}},
		{"rotation to the contract", "rotation/a.go", "m/providers", nil},
		{"rotation to an adapter", "rotation/a.go", "m/providers/vault",
			[]string{"rotation/a.go:2: rotation imports providers/vault: only cmd imports a concrete adapter"}},
		{"server to an adapter", "internal/server/a.go", "m/providers/vault",
			[]string{"internal/server/a.go:2: internal/server imports providers/vault: only cmd imports a concrete adapter"}},
		{"adapter to adapter", "providers/vault/a.go", "m/providers/postgres",
			[]string{"providers/vault/a.go:2: providers/vault imports providers/postgres: only cmd imports a concrete adapter"}},
		{"adapter to its own folder", "providers/vault/a.go", "m/providers/vault/transit", nil},
		{"adapter to the contract", "providers/vault/a.go", "m/providers", nil},
		{"cmd to an adapter", "cmd/rotunda/a.go", "m/providers/vault", nil},
		{"server to a domain", "internal/server/a.go", "m/jwks", nil},
		{"server to cmd", "internal/server/a.go", "m/cmd/rotunda",
			[]string{"internal/server/a.go:2: internal/server imports cmd/rotunda: the ladder allows it only jwks, apikeys, rotation, audit, providers, verify, proto, internal/console, internal/store, internal/secret, internal/schedule, internal/fault"}},
		{"a name that only begins alike", "jwks/a.go", "m/auditors",
			[]string{"jwks/a.go:2: jwks imports auditors: the ladder allows it only audit, internal/store, internal/secret, internal/schedule, internal/fault"}},
		{"domain to connect", "jwks/a.go", "connectrpc.com/connect",
			[]string{"jwks/a.go:2: jwks imports connectrpc.com/connect: transport belongs in internal/server, cmd, verify or an adapter"}},
		{"domain to protobuf", "audit/a.go", "google.golang.org/protobuf/proto",
			[]string{"audit/a.go:2: audit imports google.golang.org/protobuf/proto: transport belongs in internal/server, cmd, verify or an adapter"}},
		{"domain to generated code", "jwks/a.go", "m/proto/rotunda/v1",
			[]string{"jwks/a.go:2: jwks imports proto/rotunda/v1: the ladder allows it only audit, internal/store, internal/secret, internal/schedule, internal/fault"}},
		{"domain to net/http", "jwks/a.go", "net/http",
			[]string{"jwks/a.go:2: jwks imports net/http: transport belongs in internal/server, cmd, verify or an adapter"}},
		{"store to net/http", "internal/store/a.go", "net/http",
			[]string{"internal/store/a.go:2: internal/store imports net/http: transport belongs in internal/server, cmd, verify or an adapter"}},
		{"domain to net", "jwks/a.go", "net", nil},
		{"server to net/http", "internal/server/a.go", "net/http", nil},
		{"a test", "jwks/a_test.go", "net/http", nil},
		{"a package without a place", "internal/util/a.go", "strings",
			[]string{"internal/util has no place in the ladder: give it one in rules (internal/ladder/tree_test.go), or put the code where it belongs"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			src := newSource(t, tree(t, map[string]string{test.file: "import _ \"" + test.path + "\"\n"}))
			expect(t, checkImports(src, rules), test.want...)
		})
	}
}

func TestImportsWhenThePackageIsForTests(t *testing.T) {
	src := newSource(t, tree(t, map[string]string{
		"internal/store/storetest/a.go": `import _ "m/internal/store"`,
		"jwks/a_test.go":                `import _ "m/internal/store/storetest"`,
		"jwks/jwkstest/a.go":            `import _ "m/internal/store/storetest"`,
		"cmd/rotunda/a.go":              `import _ "m/internal/store/storetest"`,
		"internal/latest/a.go":          ``,
	}))
	expect(t, checkTestPackages(src),
		"cmd/rotunda/a.go:2: cmd/rotunda imports internal/store/storetest, which is for tests: only tests may")
}

func TestClockWhenReadOutsideItsSeam(t *testing.T) {
	src := newSource(t, tree(t, map[string]string{
		"jwks/call.go":        "import \"time\"\nvar d = time.Second\nfunc f() { _ = time.Now() }",
		"jwks/value.go":       "import \"time\"\nvar clock = time.Now",
		"jwks/named.go":       "import clock \"time\"\nfunc g() { _ = clock.Since(clock.Time{}) }",
		"jwks/dot.go":         "import . \"time\"\nfunc h(x X) { _ = Until(x.Now) }",
		"jwks/other.go":       "type now struct{}\nfunc (now) Now() {}\nvar time now\nfunc i() { time.Now() }",
		"jwks/jwks_test.go":   "import \"time\"\nfunc j() { _ = time.Now() }",
		"internal/store/a.go": "import \"time\"\nvar now = time.Now",
		"cmd/rotunda/a.go":    "import \"time\"\nvar now = time.Now",
		"internal/storex/a.go": `import "time"
var now = time.Now`,
	}))
	expect(t, checkClock(src, clockReaders),
		"internal/storex/a.go:3: internal/storex reads the clock (time.Now): only internal/store, cmd, verify may; take the time as a parameter, or from tx.Now",
		"jwks/call.go:4: jwks reads the clock (time.Now): only internal/store, cmd, verify may; take the time as a parameter, or from tx.Now",
		"jwks/dot.go:3: jwks reads the clock (time.Until): only internal/store, cmd, verify may; take the time as a parameter, or from tx.Now",
		"jwks/named.go:3: jwks reads the clock (time.Since): only internal/store, cmd, verify may; take the time as a parameter, or from tx.Now",
		"jwks/value.go:3: jwks reads the clock (time.Now): only internal/store, cmd, verify may; take the time as a parameter, or from tx.Now",
	)
}

func TestRevealWhenThePackageIsNotAllowed(t *testing.T) {
	src := newSource(t, tree(t, map[string]string{
		"internal/secret/a.go": "func f(v V) { v.Reveal() }",
		"jwks/a.go":            "func f(v V) { v.RevealString() }",
		"audit/a.go":           "func f(v V) {\n\tg(v.inner.Reveal())\n}",
		"audit/value.go":       "func f(v V) { g(v.Reveal) }",
		"audit/a_test.go":      "func f(v V) { v.Reveal() }",
		"audit/other.go":       "func f(v V) { v.Revealed() }",
	}))
	expect(t, checkReveal(src, map[string]string{"jwks": "signs"}),
		"audit/a.go:3: audit takes the bytes out of a secret: if it must, add it and the reason to revealers (internal/ladder/tree_test.go)",
		"audit/value.go:2: audit takes the bytes out of a secret: if it must, add it and the reason to revealers (internal/ladder/tree_test.go)",
	)
}

func TestRevealWhenAnAllowanceIsNotUsed(t *testing.T) {
	src := newSource(t, tree(t, map[string]string{"jwks/a.go": "func f() {}"}))
	expect(t, checkReveal(src, map[string]string{"jwks": "signs", "apikeys": "not written yet"}),
		"revealers allows jwks, which takes no bytes out of any secret: remove it (internal/ladder/tree_test.go)")
}

const twoTables = `
CREATE TABLE IF NOT EXISTS events (id TEXT PRIMARY KEY);
create table keysets (
  id TEXT, -- CREATE TABLE old_name
  event TEXT REFERENCES events (id)
);
/* CREATE TABLE gone (id TEXT); */
`

func TestTablesWhenOwnersAreMissing(t *testing.T) {
	src := newSource(t, tree(t, map[string]string{
		"migrations/00001_first.sql":  twoTables,
		"migrations/00002_second.sql": `CREATE TABLE "leases" (id TEXT);`,
		"audit/a.go":                  "",
	}))
	expect(t, checkOwners(src, map[string]string{"events": "audit", "keysets": "jwk", "tokens": "audit"}, rules),
		"table keysets is owned by jwk, which has no place in the ladder",
		"table leases has no owner: say in owners which package it belongs to (internal/ladder/tree_test.go)",
		"table tokens has an owner but no migration creates it: remove it from owners (internal/ladder/tree_test.go)",
	)
}

func TestTablesWhenRenamedOrDropped(t *testing.T) {
	src := newSource(t, tree(t, map[string]string{
		"migrations/00001_first.sql": "CREATE TABLE a (id TEXT);\nCREATE TABLE b (id TEXT);",
		"migrations/00002_next.sql":  "-- +goose Up\nALTER TABLE a RENAME TO c;\nDROP TABLE IF EXISTS b;\n-- +goose Down\nDROP TABLE c;",
	}))
	if got, want := src.tables, []string{"c"}; !slices.Equal(got, want) {
		t.Errorf("tables: got %q, want %q", got, want)
	}
}

func TestTablesWhenNamedByAnotherPackage(t *testing.T) {
	for _, test := range []struct {
		name, code string
		want       bool
	}{
		{"select", "const q = `SELECT id FROM keysets WHERE id = $1`", true},
		{"lower case", "const q = `select id from keysets`", true},
		{"quoted", "const q = `SELECT id FROM \"keysets\"`", true},
		{"with a schema", "const q = `SELECT id FROM main.keysets`", true},
		{"join", "const q = `SELECT 1 FROM events e JOIN keysets k ON k.id = e.id`", true},
		{"comma join", "const q = `SELECT 1 FROM events e, keysets k`", true},
		{"update", "const q = `UPDATE keysets SET a = 1`", true},
		{"insert", "const q = `INSERT INTO keysets VALUES (1)`", true},
		{"upsert", "const q = `INSERT OR IGNORE INTO keysets VALUES (1)`", true},
		{"delete", "const q = `DELETE FROM keysets`", true},
		{"truncate", "const q = `TRUNCATE TABLE keysets`", true},
		{"sub-select", "const q = `SELECT 1 FROM events WHERE id IN (SELECT id FROM keysets)`", true},
		{"over two lines", "const q = `SELECT 1\n\t\tFROM\n\t\tkeysets`", true},
		{"joined literals", "const q = \"SELECT 1 FROM \" + \"keysets\"", true},
		{"joined with a variable", "var q = \"SELECT 1 FROM keysets WHERE \" + where", true},
		{"a fragment", "const q = \" FROM keysets WHERE id = $1\"", true},
		{"its own table", "const q = `SELECT id FROM events`", false},
		{"a column of that name", "const q = `SELECT keysets FROM events`", false},
		{"a longer name", "const q = `SELECT 1 FROM keysets_seen`", false},
		{"prose", "const q = \"read from keysets and update keysets: try again\"", false},
		{"prose that begins like SQL", "const q = \"update keysets: the policy is unsafe\"", false},
		{"an identifier", "const keysets = 1", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			src := newSource(t, tree(t, map[string]string{
				"migrations/1.sql": twoTables,
				"audit/a.go":       test.code,
				"audit/a_test.go":  "const test = `SELECT id FROM keysets`",
				"jwks/a.go":        "const q = `SELECT id FROM keysets`",
			}))
			got := checkTables(src, map[string]string{"events": "audit", "keysets": "jwks"})
			if !test.want {
				expect(t, got)
				return
			}
			expect(t, got, "audit/a.go:2: audit names the table keysets in SQL, which is jwks's: ask "+
				"jwks through a function, or change owners (internal/ladder/tree_test.go)")
		})
	}
}

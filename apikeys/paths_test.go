package apikeys

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/migrations"
)

func TestTokenWhenReaderIsLimitedToPaths(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		want := []string{"orders/*", "shared/db"}
		made, value := b.create(t, Create{Role: Reader, Paths: want})
		token := mustVerify(t, b.replica(t, db), value, here)
		list, _, err := b.List(t.Context(), "", 10)
		if err != nil {
			t.Fatal(err)
		}
		for where, got := range map[string]*Token{"made": made, "verified": token, "listed": list[0]} {
			if d := cmp.Diff(want, got.Paths); d != "" {
				t.Errorf("%s: paths (-want +got):\n%s", where, d)
			}
		}
		for path, may := range map[string]bool{
			"orders/db": true, "orders/eu/db": true, "shared/db": true,
			"orders": false, "orders/": false, "orders/*": false, "orders2/db": false, "shared/db2": false, "shared/db/x": false, "shared/*": false, "shared": false,
			"": false, "/orders/db": false, "orders//db": false, "orders/../shared/secret": false, "orders/./db": false, "*": false, "ORDERS/db": false, "orders/\x00": false,
		} {
			if token.MayRead(path) != may {
				t.Errorf("it may read %q: %v, want %v", path, !may, may)
			}
		}
		events, _, err := audit.List(t.Context(), db, audit.Query{Resource: "tokens/" + made.ID, Limit: 10})
		if err != nil || len(events) != 1 {
			t.Fatalf("%d events, %v", len(events), err)
		}
		if d := cmp.Diff([]any{"orders/*", "shared/db"}, events[0].Detail["paths"]); d != "" {
			t.Errorf("the event's paths (-want +got):\n%s", d)
		}

		// An admin's token with paths written into its row is no reader's.
		if admin := (&Token{Role: Admin, Paths: []string{"orders/*"}}); admin.MayRead("orders/db") {
			t.Error("paths make no reader")
		}
		for _, set := range []string{`paths = '["orders/*","shared/db","other/*"]'`, `paths = '[]'`, `role = 'admin'`, `paths = '["orders/*"]'`} {
			own, value := b.create(t, Create{Role: Reader, Paths: want})
			exec(t, db, `UPDATE access_tokens SET `+set+` WHERE id = $1`, own.ID)
			wantDenied(t, b.replica(t, db), value, here, "tampered")
		}
		gateway, value := b.create(t, Create{Role: Gateway})
		exec(t, db, `UPDATE access_tokens SET paths = '["orders/*"]' WHERE id = $1`, gateway.ID)
		wantDenied(t, b.replica(t, db), value, here, "tampered")
	})
}

func TestCreateWhenPathsAreRefused(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		for _, c := range []struct {
			role   Role
			paths  []string
			reason string
		}{
			{Reader, nil, "paths_and_role"},
			{Admin, []string{"a"}, "paths_and_role"},
			{Gateway, []string{"a"}, "paths_and_role"},
			{Reader, []string{"a", "a"}, "path_twice"},
			{Reader, []string{""}, "bad_path"},
			{Reader, []string{"*"}, "bad_path"},
			{Reader, []string{"/*"}, "bad_path"},
			{Reader, []string{"/a"}, "bad_path"},
			{Reader, []string{"a/"}, "bad_path"},
			{Reader, []string{"a//b"}, "bad_path"},
			{Reader, []string{"a/../b"}, "bad_path"},
			{Reader, []string{"./a"}, "bad_path"},
			{Reader, []string{"a/*/b"}, "bad_path"},
			{Reader, []string{"a/b*"}, "bad_path"},
			{Reader, []string{"a/**"}, "bad_path"},
			{Reader, []string{"a b"}, "bad_path"},
			{Reader, []string{"a@b"}, "bad_path"},
			{Reader, []string{"zürich"}, "bad_path"},
			{Reader, []string{"a\\b"}, "bad_path"},
			{Reader, []string{strings.Repeat("a", maxPath+1)}, "bad_path"},
			{Reader, slices.Repeat([]string{"a"}, maxPaths+1), "too_many"},
		} {
			_, v, err := b.Create(t.Context(), Create{Name: "x", Role: c.role, Paths: c.paths})
			wantFault(t, err, fault.ErrInvalid, c.reason)
			if f, _ := errors.AsType[*fault.Error](err); f.Field != "paths" || !v.IsZero() {
				t.Errorf("%s %q: field %q; a value came with it: %v", c.role, c.paths, f.Field, !v.IsZero())
			}
		}
		// As long as it may be, and a byte more.
		many := make([]string, maxPaths)
		for i := range many {
			many[i] = fmt.Sprintf("%02d", i) + strings.Repeat("/b", (maxPathsText/maxPaths-4)/2) + "/*"
		}
		b.create(t, Create{Role: Reader, Paths: many})
		many[0] += "x"
		many[0] = strings.Replace(many[0], "/*x", "x/*", 1)
		_, _, err := b.Create(t.Context(), Create{Name: "x", Role: Reader, Paths: many})
		wantFault(t, err, fault.ErrInvalid, "too_many")
	})
}

// vector is a token with something in each field that is sealed.
func vector() *Token {
	return &Token{
		ID: "aB3dE6gH9jK2mN5p", Name: "edge-1", Role: Signer, Partner: "acme", Keysets: []string{"payments", "zürich"},
		CIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}, Stored: StateRevoked, Reason: "lost",
		CreatedAt: epoch, ExpiresAt: epoch.Add(time.Hour), RevokedAt: epoch.Add(time.Minute), hash: []byte("0123456789abcdef"),
	}
}

// Rows that were sealed before tokens had paths stay genuine. The seal was made by the
// code of that time.
func TestSealWhenRowIsFromBeforePaths(t *testing.T) {
	const old = "a9bc87021bb2e22e548cc7c96b290f27ae8acbf51c3d8bdc2b9bc4a869b268a7"
	token, key := vector(), []byte("a key of thirty-two bytes, fixed")
	if got := hex.EncodeToString(token.seal(key)); got != old {
		t.Errorf("the seal is %s, want %s", got, old)
	}
	seals := map[string]bool{old: true}
	for _, paths := range [][]string{{"a"}, {"a", "b"}, {"ab"}, {"b", "a"}} {
		token.Paths = paths
		s := hex.EncodeToString(token.seal(key))
		if seals[s] {
			t.Errorf("the seal with paths %q is that of others", paths)
		}
		seals[s] = true
	}
}

// The migration that adds paths makes the table anew; no token is lost or changed by it.
func TestTokensWhenTableIsMigratedToPaths(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		_, admin := b.create(t, Create{Role: Admin, CIDRs: []string{"192.0.2.0/24"}, ExpiresIn: time.Hour})
		revoked, gone := b.create(t, Create{Role: Signer, Keysets: []string{"payments"}})
		if _, err := b.Revoke(t.Context(), revoked.ID, "lost"); err != nil {
			t.Fatal(err)
		}
		set, err := migrations.FS(db.Dialect())
		if err != nil {
			t.Fatal(err)
		}
		text := func(name, from, to string) string {
			raw, err := fs.ReadFile(set, name)
			if err != nil {
				t.Fatal(err)
			}
			_, rest, found := strings.Cut(string(raw), from)
			part, _, ended := strings.Cut(rest, to)
			if !found || !ended {
				t.Fatalf("%s has no %q … %q", name, from, to)
			}
			return from + part + to
		}
		const old = `id, name, role, partner, keysets, cidrs, hash, seal, pepper_gen, state, reason, created_at, expires_at, revoked_at, last_used_at`
		run(t, db, `ALTER TABLE access_tokens RENAME TO held_tokens`, text("0005_access.sql", "CREATE TABLE access_tokens", ");"),
			`INSERT INTO access_tokens (`+old+`) SELECT `+old+` FROM held_tokens`, `DROP TABLE held_tokens`)
		for _, s := range strings.SplitAfter(text("0009_rotation.sql", "ALTER TABLE access_tokens RENAME", "DROP TABLE access_tokens_0005;"), ";\n") {
			run(t, db, s)
		}
		later := b.replica(t, db)
		mustVerify(t, later, admin, here)
		wantDenied(t, later, gone, here, "revoked")
		b.create(t, Create{Role: Reader, Paths: []string{"a/*"}})
		if n := number(t, db, `SELECT COUNT(*) FROM access_tokens`); n != 3 {
			t.Errorf("there are %d tokens, want 3", n)
		}
	})
}

func FuzzPatterns(f *testing.F) {
	for _, s := range []string{"", "a", "a/b", "a/b/c", "/", "a/*", "*", "a//b", "..", "a/../b", strings.Repeat("a/", 255) + "a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		got := Patterns(path)
		if len(got) == 0 {
			return
		}
		if got[0] != path || len(got) != 1+strings.Count(path, "/") {
			t.Fatalf("%q has the patterns %q", path, got)
		}
		// Each is one that a token may have.
		for _, p := range got {
			if err := checkPaths(Reader, []string{p}); err != nil {
				t.Errorf("%q has the pattern %q, which no token may have: %v", path, p, err)
			}
			if folder, is := strings.CutSuffix(p, "*"); is && !strings.HasPrefix(path, folder) {
				t.Errorf("%q is not in %q", path, p)
			}
		}
	})
}

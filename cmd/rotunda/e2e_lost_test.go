package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What was lost is not made anew behind the operator's back, and what can be
// made anew is: a key file, a database, an admin token, the folder's mode.
func testLost(t *testing.T, bin program) {
	dir := filepath.Join(t.TempDir(), "data")
	first := bin.serve(t, dataDir(dir), nil)
	old, err := os.ReadFile(dataDir(dir).adminToken())
	if err != nil {
		t.Fatal(err)
	}
	if code := first.stop(t); code != exitDone {
		t.Fatalf("stop: %d", code)
	}
	refused := func(what string, words ...string) {
		t.Helper()
		r := bin.run(t, nil, "serve", "--listen", "127.0.0.1:0", "--data-dir", dir)
		if r.code != exitRefused {
			t.Errorf("%s: exit %d %s", what, r.code, r.stderr)
		}
		wantWords(t, r.stderr, words...)
	}
	aside := func(name string) (back func()) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.Rename(path, path+".aside"); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.Rename(path+".aside", path); err != nil {
				t.Fatal(err)
			}
		}
	}

	back := aside("kek.json")
	refused("no key file", "kek.json is missing", "backup")
	back()
	back = aside("rotunda.db")
	refused("no database", "rotunda.db is empty or missing", "admin.token")
	back()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	refused("a folder that others can write", "can be written by others", "chmod 700")
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}

	// A lost admin token can be made anew by whoever has database and key file.
	if err := os.Remove(dataDir(dir).adminToken()); err != nil {
		t.Fatal(err)
	}
	s := bin.serve(t, dataDir(dir), nil, "--new-admin-token")
	defer s.stop(t)
	fresh, err := os.ReadFile(dataDir(dir).adminToken())
	if err != nil || string(fresh) == string(old) {
		t.Fatalf("no new admin token: %v", err)
	}
	if r := bin.run(t, s.env(), "audit", "list", "--action", "token.create", "-o", "json"); r.code != exitDone || !strings.Contains(r.stdout, "recovery") {
		t.Errorf("the new token is not in the trail: %d %s %s", r.code, r.stdout, r.stderr)
	}
}

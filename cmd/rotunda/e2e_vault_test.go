package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/providers/bedtest"
)

// Promise: signing keys whose home is Vault sign, rotate and are published like any other,
// and no private half of theirs is with Rotunda; while Vault is sealed documents are served.
func testSigningVault(t *testing.T, bin program) {
	v := bedtest.NewVault(t)
	mount := v.Mount(t, "transit", nil)
	token := v.NewToken(t, fmt.Sprintf(`path "%[1]s/keys/*" { capabilities = ["create", "read", "update"] }
path "%[1]s/sign/*" { capabilities = ["create", "read", "update"] }`, mount), time.Hour)
	folder := t.TempDir()
	write(t, filepath.Join(folder, "vault.txt"), token, 0o600)
	manifest := filepath.Join(folder, "transit.yaml")
	document := fmt.Sprintf("kind: target\nname: transit\ntype: vault-transit\nsettings: {address: %q, mount: %s}\nlogin: {token_file: vault.txt}\n", v.Address, mount)
	write(t, manifest, document, 0o600)

	s := bin.serve(t, dataDir(t.TempDir()), nil, "--signing-vault", manifest)
	do := func(want int, args ...string) string {
		t.Helper()
		r := bin.run(t, s.env(), args...)
		if r.code != want {
			t.Fatalf("%v: exit %d, want %d\n%s%s", args, r.code, want, r.stdout, r.stderr)
		}
		return r.stdout + r.stderr
	}
	do(exitDone, "keyset", "create", "orders", "--home", "transit", "--issuer", "https://auth.example.com", "--token-ttl", "10m", "--profile", "none")
	if said := do(exitRefused, "keyset", "create", "other", "--home", "elsewhere", "--issuer", "https://auth.example.com", "--token-ttl", "10m"); !strings.Contains(said, `"transit"`) {
		t.Errorf("a home that is none: %s", said)
	}
	sign := func() string {
		t.Helper()
		return strings.TrimSpace(do(exitDone, "sign", "orders", "--claims", `{"sub":"x"}`))
	}
	first := sign()
	do(exitDone, "keyset", "rotate", "orders", "--override-lead", "--reason", "test")
	second := sign()
	_, keys := s.get(t, "/keysets/orders/jwks.json")
	for _, signed := range []string{first, second} {
		if err := verifies(keys, signed); err != nil {
			t.Errorf("a token signed in Vault: %v", err)
		}
	}
	if first[:strings.IndexByte(first, '.')] == second[:strings.IndexByte(second, '.')] {
		t.Error("the rotation changed nothing")
	}
	v.Seal(t)
	if said := do(exitRefused, "sign", "orders", "--claims", `{"sub":"x"}`); strings.Contains(said, token) {
		t.Error("the token of the login is shown")
	}
	if _, sealed := s.get(t, "/keysets/orders/jwks.json"); sealed != keys {
		t.Error("the document changed while Vault was sealed")
	}
	v.Unseal(t)
	if err := verifies(keys, sign()); err != nil {
		t.Errorf("after Vault was sealed: %v", err)
	}
	if code := s.stop(t); code != exitDone {
		t.Errorf("the server ended with %d", code)
	}
	if strings.Contains(s.stderr.String(), token) {
		t.Error("the token of the login is in the log")
	}

	for name, text := range map[string]string{
		"another type":  strings.Replace(document, "vault-transit", "vault-approle", 1),
		"two documents": document + "---\n" + strings.Replace(document, "name: transit", "name: second", 1),
		"a taken name":  strings.Replace(document, "name: transit", "name: local", 1),
		"no address":    strings.Replace(document, fmt.Sprintf("address: %q, ", v.Address), "", 1),
	} {
		write(t, manifest, text, 0o600)
		if r := bin.run(t, nil, "serve", "--listen", "127.0.0.1:0", "--data-dir", t.TempDir(), "--signing-vault", manifest); r.code != exitRefused || !strings.Contains(r.stderr, "--signing-vault") {
			t.Errorf("%s: exit %d: %s", name, r.code, r.stderr)
		}
	}
}

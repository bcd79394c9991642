package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// ordersFile describes what the test server has: ordersSpec, ordersPG, vaultProd, hook.
const ordersFile = `# yaml-language-server: $schema=../../docs/credential.schema.json
kind: credential
name: orders-db
target: orders-pg
params: {users: "orders_a,orders_b"}
fields:
  host: db.example.com
  port: 5432
stores:
  - {store: vault-prod, path: orders/db}
schedule: {cron: "0 3 * * 1", zone: Europe/Berlin, jitter: 1h}
windows: ["Mon 02:00-05:00"]
grace: 1d
quiet: 2h
labels: {tier: 1}
notify: [orders]
---
kind: store
name: vault-prod
type: vault-kv
settings: {address: "https://vault.example.com:8200"}
login: {token_file: token.txt}
---
# a comment alone is no document
---
kind: target
name: orders-pg
type: postgres
settings: {address: "db.example.com:5432"}
login_credential: pg-admin
---
kind: endpoint
name: orders
url: https://orders.example.com/hooks/rotunda
partner: acme
secret: hooks
`

func TestParseManifestWhenGood(t *testing.T) {
	docs, err := parseManifest("dir/orders.yaml", []byte(ordersFile))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range docs {
		got = append(got, d.kind+" "+d.name+" "+d.at)
	}
	want := []string{"store vault-prod orders.yaml:18", "target orders-pg orders.yaml:26", "endpoint orders orders.yaml:32", "credential orders-db orders.yaml:2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	spec := ordersSpec()
	spec.Strategy, spec.Missed = "", ""
	delete(spec.Params, "length")
	if diff := cmp.Diff(spec, docs[3].credential, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	login := []loginEntry{{name: "token", from: "file", value: filepath.Join("dir", "token.txt"), at: "orders.yaml:22"}}
	if diff := cmp.Diff(login, docs[0].system.login, cmp.AllowUnexported(loginEntry{})); diff != "" {
		t.Error(diff)
	}
	docs, err = parseManifest("f", []byte("{kind: credential, name: a, target: t, probe: never, schedule: {every: 30d}, adopt: true}"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&v1.CredentialSpec{Target: "t", Probe: durationpb.New(-1), Schedule: &v1.Schedule{Every: dur(30 * day)}, Adopt: true}, docs[0].credential, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestParseManifestWhenBad(t *testing.T) {
	const c = "kind: credential\nname: a\ntarget: t\n"
	for text, want := range map[string]string{
		"":                                   "there is nothing in it",
		"# only a comment\n":                 "there is nothing in it",
		"- a\n":                              "m.yaml:1: a document is a mapping",
		"name: a\n":                          "m.yaml:1: kind is missing",
		"kind: secret\nname: a\n":            `kind "secret" is none of`,
		"kind: credential\nname: a\n":        "target is missing",
		"kind: store\nname: a\n":             "type is missing",
		c + "windwos: []\n":                  `m.yaml:4: "windwos" is not known in a document of kind credential`,
		c + "winodws: []\n":                  `(did you mean "windows"?)`,
		c + "target: u\n":                    `m.yaml:4: "target" is there twice`,
		c + "grace: soon\n":                  `m.yaml:4: "soon" is not a length of time`,
		c + "grace: -1h\n":                   `"-1h" is not a length of time`,
		c + "grace: [1h]\n":                  "m.yaml:4: a text is wanted here",
		c + "adopt: maybe\n":                 "m.yaml:4: this is true or false",
		c + "adopt: \"true\"\n":              "m.yaml:4: this is true or false",
		c + "windows: x\n":                   "m.yaml:4: this is a list",
		c + "schedule: {zone: UTC}\n":        "either every or cron",
		c + "schedule: {every: 1h, cron: x}": "either every or cron",
		c + "schedule: {evry: 1h}\n":         `did you mean "every"?`,
		c + "stores: [{store: s}]\n":         "m.yaml:4: path is missing in a store of a credential",
		c + "stores: [{store: S, path: p}]":  `"S" is not a name`,
		c + "params: {a: {b: c}}\n":          "m.yaml:4: a text is wanted here",
		c + "params: {a: null}\n":            "a text is wanted here",
		c + "params: &x {a: b}\n":            "anchors, aliases and merged mappings are not read",
		c + "params: {<<: {a: b}}\n":         "anchors, aliases and merged mappings are not read",
		c + "notify: [&x a, *x]\n":           "anchors and aliases are not read",
		"kind: store\nname: a\ntype: t\nlogin: {p_file: x, p_env: y}":           "p is there twice",
		"kind: store\nname: a\ntype: t\nlogin: {p: [x]}":                        "p is a text",
		"kind: store\nname: a\ntype: t\nlogin: {p: \"-\"}\nlogin_credential: c": "a login and a login_credential",
		c + "---\n" + c: "m.yaml:5: credential a is there twice: before at m.yaml:1",
		"a: b: c":       "m.yaml: ",
		"kind: credential\nname: " + strings.Repeat("a", 64) + "\ntarget: t": "is not a name",
		strings.Repeat("---\n{kind: credential, name: a}\n", 1):              "target is missing",
		"[" + strings.Repeat("[", 10000):                                     "m.yaml",
	} {
		docs, err := parseManifest("dir/m.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80q: %v with %v, want %q", text, docs, err, want)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add(ordersFile)
	f.Add("kind: store\nname: a\ntype: t\nlogin: {password: hunter22}")
	f.Add("{kind: credential, name: a, target: t, params: {a: 1e3, b: 0x1F, c: 2026-01-01}}")
	f.Fuzz(func(t *testing.T, text string) {
		docs, err := parseManifest("m.yaml", []byte(text))
		if err != nil {
			return
		}
		for i, d := range docs {
			if !manifestName.MatchString(d.name) || d.at == "" {
				t.Fatalf("document %d has the name %q at %q", i, d.name, d.at)
			}
			if n := (d.system != nil); n == (d.kind == "credential" || d.kind == "endpoint") {
				t.Fatalf("a %s has no content of its own", d.kind)
			}
		}
	})
}

// applying runs create or update -f with a file, against a server that has what reply says.
func applying(t *testing.T, s *service, text string, args ...string) result {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "orders.yaml")
	write(t, file, text, 0o644)
	write(t, filepath.Join(dir, "token.txt"), "hvs.secret-of-the-test\n", 0o600)
	r := execute(t, s, nil, append(args, "-f", file)...)
	if strings.Contains(r.stdout+r.stderr, "hvs.secret") {
		t.Errorf("a login was printed:\n%s%s", r.stdout, r.stderr)
	}
	return r
}

// sent counts what was sent by its kind, reads left out.
func sent(s *service) (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.calls {
		name := string(m.ProtoReflect().Descriptor().Name())
		if !strings.HasPrefix(name, "Get") && !strings.HasPrefix(name, "List") {
			out = append(out, name)
		}
	}
	return out
}

// nothing is a server that has nothing yet.
func nothing(_ context.Context, req proto.Message) (proto.Message, error) {
	switch req.(type) {
	case *v1.GetStoreRequest, *v1.GetTargetRequest, *v1.GetCredentialRequest:
		return nil, connect.NewError(connect.CodeNotFound, errors.New("there is none"))
	case *v1.ListEndpointsRequest:
		return &v1.ListEndpointsResponse{}, nil
	}
	return nil, nil
}

func TestCreateWhenNothingIsThere(t *testing.T) {
	s := newService(t)
	s.reply = nothing
	r := applying(t, s, ordersFile, "credential", "create")
	if r.code != exitDone {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	want := []string{"CreateStoreRequest", "CreateTargetRequest", "CreateEndpointRequest", "CreateCredentialRequest"}
	if diff := cmp.Diff(want, sent(s)); diff != "" {
		t.Error(diff)
	}
	for _, m := range s.calls {
		if c, ok := m.(*v1.CreateStoreRequest); ok && c.GetLogin()["token"] != "hvs.secret-of-the-test" {
			t.Error("the login of the store is not that of the file")
		}
	}
	wantWords(t, r.stdout, "store vault-prod: created", "credential orders-db: created")
}

func TestCreateWhenAllIsThere(t *testing.T) {
	s := newService(t)
	r := applying(t, s, ordersFile, "credential", "create")
	if r.code != exitDone || len(sent(s)) > 0 || strings.Count(r.stdout, ": unchanged") != 4 {
		t.Errorf("exit %d after %v\n%s%s", r.code, sent(s), r.stdout, r.stderr)
	}
	// Nor does update change what is the same.
	r = applying(t, s, ordersFile, "credential", "update")
	if r.code != exitDone || len(sent(s)) > 0 {
		t.Errorf("exit %d after %v\n%s%s", r.code, sent(s), r.stdout, r.stderr)
	}
	r = applying(t, s, ordersFile, "credential", "update", "--logins")
	if diff := cmp.Diff([]string{"UpdateStoreRequest"}, sent(s)); r.code != exitDone || diff != "" {
		t.Error(r.code, diff)
	}
}

func TestCreateWhenWhatIsThereDiffers(t *testing.T) {
	s := newService(t)
	other := strings.NewReplacer("grace: 1d", "grace: 2d", "port: 5432", "port: 5433", "vault.example.com", "vault2.example.com", "hooks/rotunda", "hooks/other").Replace(ordersFile)
	r := applying(t, s, other, "credential", "create")
	if r.code != exitRefused || len(sent(s)) > 0 {
		t.Errorf("exit %d after %v, want 1 and no change", r.code, sent(s))
	}
	golden(t, "credential-create-differs", r.stdout+"--- stderr\n"+r.stderr)
	r = applying(t, s, other, "credential", "update")
	if diff := cmp.Diff([]string{"UpdateStoreRequest", "UpdateEndpointRequest", "UpdateCredentialRequest"}, sent(s)); r.code != exitDone || diff != "" {
		t.Errorf("exit %d %s\n%s", r.code, diff, r.stderr)
	}
	last, _ := s.last(t)
	if u := last.(*v1.UpdateCredentialRequest); u.GetVersion() != 21 || u.GetSpec().GetGrace().AsDuration() != 48*time.Hour {
		t.Errorf("sent %v", u)
	}
}

func TestCreateWhenALoginIsWrong(t *testing.T) {
	store := "kind: store\nname: v\ntype: vault-kv\nsettings: {address: https://v.example}\nlogin: "
	open := filepath.Join(t.TempDir(), "open.txt")
	write(t, open, "hvs.secret\n", 0o644)
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		store + "{token: hvs.secret-inline}":  "token_file",
		store + "{token_env: NOT_SET}":        "the variable NOT_SET is not set",
		store + "{token_file: missing.txt}":   "no such file",
		store + "{token_file: " + open + "}":  "chmod 600",
		store + "{token: \"\"}":               "token_file",
		"kind: store\nname: v\ntype: valt-kv": `did you mean "vault-kv"?`,
	} {
		s := newService(t)
		s.reply = nothing
		r := applying(t, s, text, "store", "create")
		if r.code != exitRefused || !strings.Contains(r.stderr, want) || len(sent(s)) > 0 {
			t.Errorf("%q: exit %d after %v, want 1 and %q\n%s", text, r.code, sent(s), want, r.stderr)
		}
	}
	s := newService(t)
	s.reply = nothing
	r := applying(t, s, store+"{token: hvs.secret-inline}", "store", "create", "--allow-inline-secrets")
	if last, _ := s.last(t); r.code != exitDone || last.(*v1.CreateStoreRequest).GetLogin()["token"] != "hvs.secret-inline" {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
}

func TestCreateWhenASettingIsAFile(t *testing.T) {
	s := newService(t)
	s.reply = nothing
	r := applying(t, s, "kind: store\nname: v\ntype: vault-kv\nsettings: {address: https://v.example, ca_cert_file: token.txt}", "credential", "create")
	if last, _ := s.last(t); r.code != exitDone || !strings.HasPrefix(last.(*v1.CreateStoreRequest).GetSettings()["ca_cert"], "hvs.") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	r = applying(t, s, "kind: store\nname: v\ntype: vault-kv\nsettings: {address: https://v.example, ca_cert_file: token.txt, ca_cert: x}", "credential", "create")
	if r.code != exitRefused || !strings.Contains(r.stderr, "give one of them") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
}

func TestCreateWhenAnotherCommandsFileIsGiven(t *testing.T) {
	s := newService(t)
	r := applying(t, s, ordersFile, "store", "create")
	if r.code != exitRefused || !strings.Contains(r.stderr, "takes all kinds") || s.count() != 0 {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
}

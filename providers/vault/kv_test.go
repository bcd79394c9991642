package vault_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/vault"
)

const (
	rotationA = "0190f3a4-0000-7000-8000-00000000000a"
	rotationB = "0190f3a4-0000-7000-8000-00000000000b"
)

func version(rotation, password string) providers.Version {
	return providers.Version{Credential: "orders", Rotation: rotation, Generation: 7, Fields: providers.Fields{}.Set("username", "orders").Set("password", password)}
}

func publish(t testing.TB, s providers.Store, path string, v providers.Version, prior, want string) {
	t.Helper()
	got, err := s.Publish(t.Context(), path, v, prior)
	if err != nil || got != want {
		t.Fatalf("publish over %q: %q, %v; want %q", prior, got, err, want)
	}
}

func TestKVPublishWhenReplyWasLost(t *testing.T) {
	v := bedtest.Vault(t)
	mount := newKV(t, v)
	proxy := bedtest.NewLossy(t, v.Address)
	s := openStore(t, config(t, v, vault.KVKind().Settings, v.Token, "mount", mount, "address", proxy.Address))
	prior := ""
	for _, lost := range []string{"/data/", "/metadata/"} {
		proxy.Lose(func(r *http.Request) bool { return r.Method != http.MethodGet && strings.Contains(r.URL.Path, lost) })
		new := version(rotationA, "password-after-"+lost)
		new.Rotation = rotationA[:35] + lost[1:2]
		_, err := s.Publish(t.Context(), "orders", new, prior)
		if err == nil || providers.OutcomeOf(err) != providers.Unknown {
			t.Fatalf("publish whose answer was lost: %v", err)
		}
		want := map[string]string{"": "1", "1": "2"}[prior]
		publish(t, s, "orders", new, prior, want)
		got, err := s.Read(t.Context(), "orders")
		if err != nil || got.Version != want || got.Rotation != new.Rotation || !got.Fields.Equal(new.Fields) {
			t.Fatalf("after the repetition: version %q of rotation %q, %v", got.Version, got.Rotation, err)
		}
		prior = want
	}
	if proxy.Lost() != 2 {
		t.Errorf("%d answers were lost, want 2", proxy.Lost())
	}
}

func TestKVPublishWhenMarkIsMissing(t *testing.T) {
	v := bedtest.Vault(t)
	mount := newKV(t, v)
	may := `path "` + mount + `/data/*" { capabilities = ["create", "update", "read"] }`
	s := openStore(t, config(t, v, vault.KVKind().Settings, v.NewToken(t, may, time.Hour), "mount", mount))
	publish(t, s, "orders", version(rotationA, "one"), "", "1") // may not mark: no reason to fail
	served, err := s.Read(t.Context(), "orders")
	if err != nil || served.Rotation != "" {
		t.Fatalf("rotation %q, %v", served.Rotation, err)
	}
	// With the permission a repetition repairs it, and keeps what others noted.
	v.Write(t, mount+"/metadata/orders", map[string]any{"custom_metadata": map[string]string{"owner": "team-orders"}})
	s = openStore(t, config(t, v, vault.KVKind().Settings, v.NewToken(t, kvPolicy(mount), time.Hour), "mount", mount))
	publish(t, s, "orders", version(rotationA, "one"), "", "1")
	custom := v.Read(t, mount+"/metadata/orders")["custom_metadata"].(map[string]any)
	want := map[string]any{"owner": "team-orders", "rotunda_rotation": rotationA, "rotunda_generation": "7", "rotunda_version": "1"}
	for name, text := range want {
		if custom[name] != text {
			t.Errorf("custom metadata %s is %v, want %v", name, custom[name], text)
		}
	}
	// Somebody else writes the same again: their version is not ours.
	v.Write(t, mount+"/data/orders", map[string]any{"data": map[string]string{"username": "orders", "password": "one"}})
	if served, err = s.Read(t.Context(), "orders"); err != nil || served.Version != "2" || served.Rotation != "" {
		t.Errorf("version %q of rotation %q, %v; want 2 of nobody we know", served.Version, served.Rotation, err)
	}
	_, err = s.Publish(t.Context(), "orders", version(rotationB, "two"), "1")
	wantKind(t, "publish over a version that is no longer read", err, fault.ErrStale)
}

func TestKVPublishWhenCurrentIsDeleted(t *testing.T) {
	v := bedtest.Vault(t)
	for name, required := range map[string]bool{"Plain": false, "CasRequired": true} {
		t.Run(name, func(t *testing.T) {
			mount := newKV(t, v)
			v.Write(t, mount+"/config", map[string]any{"cas_required": required})
			s := openStore(t, config(t, v, vault.KVKind().Settings, v.Token, "mount", mount))
			for path, end := range map[string]func(path string){
				"soft":      func(path string) { v.Delete(t, mount+"/data/"+path) },
				"destroyed": func(path string) { v.Write(t, mount+"/destroy/"+path, map[string]any{"versions": []int{1}}) },
			} {
				publish(t, s, path, version(rotationA, "one"), "", "1")
				end(path)
				got, err := s.Read(t.Context(), path)
				if err != nil || got.Version != "" || got.Fields != nil || got.Note == "" {
					t.Errorf("%s: read version %q, note %q, %v", path, got.Version, got.Note, err)
				}
				_, err = s.Publish(t.Context(), path, version(rotationB, "two"), "1")
				wantKind(t, path+": publish over a version that is deleted since", err, fault.ErrStale)
				publish(t, s, path, version(rotationB, "two"), "", "2")
				publish(t, s, path, version(rotationB, "two"), "", "2")
				if f := consumer(t, v, mount, path); f.Text("password") != "two" {
					t.Errorf("%s: consumers read fields %q", path, f.Names())
				}
			}
		})
	}
}

func TestKVReadWhenValueIsNoStrings(t *testing.T) {
	v := bedtest.Vault(t)
	mount := newKV(t, v)
	s := openStore(t, config(t, v, vault.KVKind().Settings, v.Token, "mount", mount))
	v.Write(t, mount+"/data/orders", map[string]any{"data": map[string]any{"port": 5432, "password": "p"}})
	got, err := s.Read(t.Context(), "orders")
	if err != nil || got.Version != "1" || got.Fields != nil || got.Note == "" {
		t.Errorf("version %q, fields %q, note %q, %v", got.Version, got.Fields.Names(), got.Note, err)
	}
	publish(t, s, "orders", version(rotationA, "one"), "1", "2")
}

func findings(t testing.TB, found []providers.Finding, err error) map[string]providers.Finding {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	worst := map[string]providers.Finding{}
	for _, f := range found {
		if have, ok := worst[f.Check]; !ok || have.OK || (have.Warning && !f.OK && !f.Warning) {
			worst[f.Check] = f
		}
	}
	return worst
}

func TestKVCheck(t *testing.T) {
	v := bedtest.Vault(t)
	kv := newKV(t, v)
	one := v.Mount(t, "kv", map[string]string{"version": "1"})
	transitMount := v.Mount(t, "transit", nil)
	v.Write(t, kv+"/metadata/single", map[string]any{"max_versions": 1})
	v.Write(t, kv+"/metadata/brief", map[string]any{"delete_version_after": "24h"})
	for name, c := range map[string]struct {
		mount, path, check string
		ok, warning        bool
	}{
		"good":            {kv, "apps/orders", "permission", true, false},
		"version 1":       {one, "orders", "mount", false, false},
		"no KV":           {transitMount, "orders", "mount", false, false},
		"no mount":        {"nothing", "orders", "mount", false, false},
		"one version":     {kv, "single", "versions", false, true},
		"deleted by time": {kv, "brief", "versions", false, true},
		"climbing":        {kv, "apps/../other", "path", false, false},
		"leading slash":   {kv, "/orders", "path", false, false},
		"empty segment":   {kv, "apps//orders", "path", false, false},
		"query":           {kv, "orders?version=1", "path", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, config(t, v, vault.KVKind().Settings, v.Token, "mount", c.mount))
			found, err := s.Check(t.Context(), c.path)
			f, ok := findings(t, found, err)[c.check]
			if !ok || f.OK != c.ok || f.Warning != c.warning || (!f.OK && f.Remedy == "") {
				t.Errorf("%+v, want ok %v warning %v", f, c.ok, c.warning)
			}
		})
	}
}

// What the preflight prints is what is missing: a policy made of nothing but its
// remedies is enough for a whole rotation.
func TestCheckWhenPolicyIsMadeOfItsRemedies(t *testing.T) {
	v := bedtest.Vault(t)
	d := newDatabase(t)
	kvMount, transitMount, roleMount := newKV(t, v), v.Mount(t, "transit", nil), v.Auth(t, "approle", "")
	v.Write(t, transitMount+"/keys/k", map[string]any{"type": "ecdsa-p256"})
	role, static := newAppRole(t, v, roleMount), d.role(t)
	type subject struct {
		check func(token string) ([]providers.Finding, error)
		use   func(t *testing.T, token string)
	}
	kind := vault.KVKind()
	store := func(token string) providers.Store {
		return openStore(t, config(t, v, kind.Settings, token, "mount", kvMount))
	}
	subjects := map[string]subject{"vault-kv": {
		func(token string) ([]providers.Finding, error) { return store(token).Check(t.Context(), "apps/orders") },
		func(t *testing.T, token string) {
			publish(t, store(token), "apps/orders", version(rotationA, "one"), "", "1")
			publish(t, store(token), "apps/orders", version(rotationB, "two"), "1", "2")
			if got, err := store(token).Read(t.Context(), "apps/orders"); err != nil || got.Rotation != rotationB {
				t.Errorf("read: rotation %q, %v", got.Rotation, err)
			}
		},
	}}
	for _, c := range []struct {
		kind   providers.TargetKind
		mount  string
		params map[string]string
	}{
		{vault.AppRoleKind(), roleMount, map[string]string{"role": role}},
		{vault.TransitKind(), transitMount, map[string]string{"key": "k", "trim": "true"}},
		{vault.DatabaseKind(), d.mount, map[string]string{"role": static}},
		{vault.DatabaseRootKind(), d.mount, map[string]string{"connection": d.name}},
	} {
		open := func(token string) providers.Target {
			return openTarget(t, c.kind, config(t, v, c.kind.Settings, token, "mount", c.mount))
		}
		subjects[c.kind.Name] = subject{
			func(token string) ([]providers.Finding, error) {
				return open(token).Check(t.Context(), providers.Change{Params: c.params})
			},
			func(t *testing.T, token string) {
				target := open(token)
				first := rotate(t, target, change(c.params, rotationA, 1))
				again := change(c.params, rotationB, 2)
				again.Current, again.Emergency = first, true
				second := rotate(t, target, again)
				again.New = second
				if err := target.Revoke(t.Context(), again, first); err != nil {
					t.Errorf("revoke: %v", err)
				}
			},
		}
	}
	for name, s := range subjects {
		t.Run(name, func(t *testing.T) {
			policy := `path "nothing" { capabilities = ["deny"] }` + "\n"
			for round := range 4 { // what it may not look at, it can't check yet
				missing := ""
				token := v.NewToken(t, policy, time.Hour)
				found, err := s.check(token)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range found {
					if (f.Check == "permission" || f.Check == "mount" || f.Check == "self_reference") && !f.OK {
						_, hcl, ok := strings.Cut(f.Remedy, ":\n")
						if !ok {
							t.Fatalf("%s: %s: the remedy is no policy: %q", f.Check, f.Detail, f.Remedy)
						}
						missing += hcl + "\n"
					}
				}
				if round > 0 && missing == "" {
					for _, f := range found {
						if !f.OK && !f.Warning {
							t.Errorf("%s: %s", f.Check, f.Detail)
						}
					}
					s.use(t, token)
					return
				}
				policy += missing
			}
			t.Errorf("after four rounds something is still missing; the policy is\n%s", policy)
		})
	}
}

func FuzzKVPath(f *testing.F) {
	for _, p := range []string{"a", "apps/orders/db", "../a", "a/./b", "/a", "a/", "a//b", "a?b", "a%2f..", "ä", "a/..b", strings.Repeat("x", 65)} {
		f.Add(p)
	}
	pattern := vault.KVKind().Path
	f.Fuzz(func(t *testing.T, path string) {
		if _, err := providers.Complete("path", []providers.Setting{pattern}, map[string]string{"path": path}); err != nil {
			return
		}
		u, err := http.NewRequest(http.MethodGet, "http://127.0.0.1/v1/secret/data/"+path, nil)
		if err != nil || u.URL.Path != "/v1/secret/data/"+path || u.URL.RawQuery != "" || u.URL.Fragment != "" {
			t.Fatalf("%q is allowed, and no path of a URL as it is", path)
		}
		for part := range strings.SplitSeq(path, "/") {
			if part == "" || part[0] == '.' {
				t.Fatalf("%q is allowed", path)
			}
		}
	})
}

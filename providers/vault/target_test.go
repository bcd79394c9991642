package vault_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/vault"
)

func change(params map[string]string, rotation string, generation int64) providers.Change {
	return providers.Change{
		Credential: "orders", Rotation: rotation, Generation: generation, Epoch: generation, Params: params, At: time.Now(),
		New: providers.Held{Generation: generation, Rotation: rotation},
	}
}

func prepare(t testing.TB, target providers.Target, c providers.Change) providers.Change {
	t.Helper()
	c, err := target.Prepare(t.Context(), c)
	if err != nil {
		t.Fatalf("prepare: %v", err)
	}
	return c
}

func apply(t testing.TB, target providers.Target, c providers.Change) providers.Held {
	t.Helper()
	h, err := target.Apply(t.Context(), c)
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	return h
}

// rotate is Prepare, Apply and Verify.
func rotate(t testing.TB, target providers.Target, c providers.Change) providers.Held {
	t.Helper()
	c = prepare(t, target, c)
	h := apply(t, target, c)
	if err := target.Verify(t.Context(), c, h); err != nil {
		t.Fatalf("verify: %v", err)
	}
	return h
}

func ends(with string) func(*http.Request) bool {
	return func(r *http.Request) bool { return strings.Contains(r.URL.Path, with) && r.Method != http.MethodGet }
}

// Promise: of each kind, an effect whose reply was lost is found again by the same call,
// and happens once.
func TestApplyWhenReplyWasLost(t *testing.T) {
	v := bedtest.Vault(t)
	d := newDatabase(t)
	proxy := bedtest.NewLossy(t, v.Address)
	roleMount, transitMount := v.Auth(t, "approle", ""), v.Mount(t, "transit", nil)
	role, static := newAppRole(t, v, roleMount), d.role(t)
	v.Write(t, transitMount+"/keys/k", map[string]any{"type": "aes256-gcm96"})
	open := func(k providers.TargetKind, mount string) providers.Target {
		return openTarget(t, k, config(t, v, k.Settings, v.Token, "mount", mount, "address", proxy.Address))
	}
	lose := func(t *testing.T, target providers.Target, c providers.Change, path string) providers.Held {
		t.Helper()
		before := proxy.Lost()
		proxy.Lose(ends(path))
		if _, err := target.Apply(t.Context(), c); err != nil && providers.OutcomeOf(err) != providers.Unknown {
			t.Fatalf("apply whose reply was lost: %s: %v", providers.OutcomeOf(err), err)
		}
		if proxy.Lost() != before+1 {
			t.Fatal("no reply was lost")
		}
		h := apply(t, target, c)
		if err := target.Verify(t.Context(), c, h); err != nil {
			t.Fatalf("verify: %v", err)
		}
		return h
	}
	t.Run("AppRole", func(t *testing.T) {
		target := open(vault.AppRoleKind(), roleMount)
		c := prepare(t, target, change(map[string]string{"role": role}, rotationA, 1))
		h := lose(t, target, c, "/custom-secret-id")
		if got := accessors(t, v, roleMount, role); len(got) != 1 || got[0] != h.ID {
			t.Errorf("the role has the secret ids %q, ours is %q", got, h.ID)
		}
		got, err := target.Applied(t.Context(), c, role)
		if err != nil || !got.Known || got.Rotation != rotationA || got.Generation != 1 || got.Epoch != 1 {
			t.Errorf("applied: %+v, %v", got, err)
		}
	})
	t.Run("Transit", func(t *testing.T) {
		target := open(vault.TransitKind(), transitMount)
		h := lose(t, target, prepare(t, target, change(map[string]string{"key": "k"}, rotationA, 1)), "/rotate")
		if n := v.Read(t, transitMount+"/keys/k")["latest_version"]; h.ID != "2" || n != 2.0 {
			t.Errorf("version %s of %v, want 2 of 2", h.ID, n)
		}
	})
	t.Run("Database", func(t *testing.T) {
		target := open(vault.DatabaseKind(), d.mount)
		c := prepare(t, target, change(map[string]string{"role": static}, rotationA, 1))
		h := lose(t, target, c, "/rotate-role/")
		if n := asked(t, v, d.mount+"/rotate-role/"+static); n != 1 {
			t.Errorf("Vault rotated %d times, want once", n)
		}
		if !d.accepts(t, h.Fields.Text("username"), h.Fields.Text("password")) {
			t.Error("the database does not accept what was adopted")
		}
	})
	t.Run("DatabaseRoot", func(t *testing.T) {
		target := open(vault.DatabaseRootKind(), d.mount)
		lose(t, target, prepare(t, target, change(map[string]string{"connection": d.name}, rotationA, 1)), "/rotate-root/")
		if d.accepts(t, d.user, "first") {
			t.Error("the first password is still accepted")
		}
	})
}

// Vault locks a role out after five failed logins. Proofs of values that have ended must
// not do that to consumers.
func TestAppRoleVerifyDoesNotLockOut(t *testing.T) {
	v := bedtest.Vault(t)
	mount := v.Auth(t, "approle", "")
	params := map[string]string{"role": newAppRole(t, v, mount)}
	k := vault.AppRoleKind()
	target := openTarget(t, k, config(t, v, k.Settings, v.Token, "mount", mount))
	old := rotate(t, target, change(params, rotationA, 1))
	c := prepare(t, target, change(params, rotationB, 2))
	c.New = apply(t, target, c)
	if err := target.Revoke(t.Context(), c, old); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		wantKind(t, "verify a revoked secret id", target.Verify(t.Context(), c, old), fault.ErrRejected)
	}
	if _, err := loginAs(v, mount, c.New.Fields); err != nil {
		t.Errorf("a consumer's login: %v", err)
	}
}

// The dead man's switch is Vault's own: nobody has to call Revoke. Vault looks for ended
// secret ids once a minute, and here when it is told to.
func TestAppRoleWhenSecretIDEndsByItself(t *testing.T) {
	v := bedtest.Vault(t)
	mount := v.Auth(t, "approle", "")
	params := map[string]string{"role": newAppRole(t, v, mount), "secret_id_ttl": "1s"}
	k := vault.AppRoleKind()
	target := openTarget(t, k, config(t, v, k.Settings, v.Token, "mount", mount))
	h := rotate(t, target, change(params, rotationA, 1))
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		v.Write(t, "auth/"+mount+"/tidy/secret-id", nil)
		if err := target.Verify(t.Context(), change(params, rotationA, 1), h); err != nil {
			wantKind(t, "a secret id after its time", err, fault.ErrRejected)
			return
		}
		if time.Now().After(end) {
			t.Fatal("the secret id does not end")
		}
	}
}

func TestAppRoleCheck(t *testing.T) {
	v := bedtest.Vault(t)
	mount := v.Auth(t, "approle", "")
	k := vault.AppRoleKind()
	c := config(t, v, k.Settings, v.Token, "mount", mount)
	for name, test := range map[string]struct {
		role    map[string]any
		params  map[string]string
		check   string
		warning bool
	}{
		"limited uses":          {map[string]any{"secret_id_num_uses": 5}, nil, "uses", false},
		"no secret id":          {map[string]any{"bind_secret_id": false, "token_bound_cidrs": "127.0.0.1/32"}, nil, "role", false},
		"longer than the role":  {map[string]any{"secret_id_ttl": "1h"}, map[string]string{"secret_id_ttl": "2h"}, "secret_id_ttl", false},
		"no end":                {nil, nil, "secret_id_ttl", true},
		"bound to other places": {map[string]any{"secret_id_bound_cidrs": "10.0.0.0/8"}, nil, "addresses", true},
	} {
		t.Run(name, func(t *testing.T) {
			params := map[string]string{"role": newAppRole(t, v, mount)}
			maps.Copy(params, test.params)
			if test.role != nil {
				v.Write(t, "auth/"+mount+"/role/"+params["role"], test.role)
			}
			found, err := openTarget(t, k, c).Check(t.Context(), change(params, rotationA, 1))
			f, ok := findings(t, found, err)[test.check]
			if !ok || f.OK || f.Warning != test.warning || f.Remedy == "" {
				t.Errorf("%+v, want a finding, warning %v", f, test.warning)
			}
		})
	}
	// Rotunda's own login is by a secret id of the role that it rotates.
	role := newAppRole(t, v, mount)
	v.Write(t, "auth/"+mount+"/role/"+role, map[string]any{"token_policies": v.NewPolicy(t, appRolePolicy(mount)) + ",default"})
	own := config(t, v, k.Settings, "", "mount", mount, "auth", "approle", "auth_mount", mount)
	own.Login = providers.Fields{}.
		Set("role_id", v.Read(t, "auth/"+mount+"/role/"+role+"/role-id")["role_id"].(string)).
		Set("secret_id", v.Write(t, "auth/"+mount+"/role/"+role+"/secret-id", nil)["secret_id"].(string))
	found, err := openTarget(t, k, own).Check(t.Context(), change(map[string]string{"role": role}, rotationA, 1))
	if f := findings(t, found, err)["self_reference"]; !f.Warning {
		t.Errorf("rotating the role of its own login: %+v", found)
	}
}

func TestScratch(t *testing.T) {
	v := bedtest.Vault(t)
	roleMount, transitMount := v.Auth(t, "approle", ""), v.Mount(t, "transit", nil)
	v.Write(t, transitMount+"/keys/k", map[string]any{"type": "ed25519"})
	for _, c := range []struct {
		kind   providers.TargetKind
		mount  string
		params map[string]string
		at     string
	}{
		{vault.AppRoleKind(), roleMount, map[string]string{"role": newAppRole(t, v, roleMount), "secret_id_ttl": "1h"}, "auth/" + roleMount + "/role/"},
		{vault.TransitKind(), transitMount, map[string]string{"key": "k"}, transitMount + "/keys/"},
	} {
		t.Run(c.kind.Name, func(t *testing.T) {
			target := openTarget(t, c.kind, config(t, v, c.kind.Settings, v.Token, "mount", c.mount))
			s := target.(providers.Scratcher)
			origin := change(c.params, rotationA, 1)
			params, err := s.Scratch(t.Context(), origin, "-drill")
			if err != nil {
				t.Fatal(err)
			}
			if h := rotate(t, target, change(params, rotationB, 1)); !strings.HasSuffix(h.Account, "-drill") {
				t.Errorf("the copy's account is %q", h.Account)
			}
			for range 2 {
				if err := s.Unscratch(t.Context(), origin, "-drill"); err != nil {
					t.Fatal(err)
				}
			}
			for suffix, want := range map[string]int{"": 0, "-drill": http.StatusNotFound} {
				err := v.Ask(http.MethodGet, c.at+c.params["role"]+c.params["key"]+suffix, nil, nil)
				if status(err) != want {
					t.Errorf("after the drill %q answers %d, want %d", suffix, status(err), want)
				}
			}
			if err := s.Unscratch(t.Context(), origin, ""); err == nil {
				t.Error("Unscratch without a suffix would delete the original")
			}
		})
	}
}

func TestTransitWhenVersionsEnd(t *testing.T) {
	v := bedtest.Vault(t)
	mount := v.Mount(t, "transit", nil)
	k := vault.TransitKind()
	target := openTarget(t, k, config(t, v, k.Settings, v.Token, "mount", mount))
	for name, params := range map[string]map[string]string{
		"raise": {"key": "raise", "trim": "false"}, "trim": {"key": "trim", "trim": "true"}, "minimum": {"key": "minimum"},
	} {
		t.Run(name, func(t *testing.T) {
			at := mount + "/keys/" + name
			v.Write(t, at, map[string]any{"type": "aes256-gcm96"})
			if name == "minimum" {
				v.Write(t, at+"/config", map[string]any{"min_encryption_version": 1})
			}
			first := rotate(t, target, change(params, rotationA, 1))
			c := prepare(t, target, change(params, rotationB, 2))
			c.Current = first
			text := v.Write(t, mount+"/encrypt/"+name, map[string]any{"plaintext": "cm90dW5kYQ=="})
			c.New = apply(t, target, c)
			if err := target.Revoke(t.Context(), c, c.New); err != nil {
				t.Errorf("take the newest back: %v", err)
			}
			v.Write(t, mount+"/decrypt/"+name, map[string]any{"ciphertext": text["ciphertext"]})
			if err := target.Revoke(t.Context(), c, first); err != nil {
				t.Fatal(err)
			}
			if err := v.Ask(http.MethodPut, mount+"/decrypt/"+name, map[string]any{"ciphertext": text["ciphertext"]}, nil); status(err) != http.StatusBadRequest {
				t.Errorf("what the revoked version encrypted is still decrypted: %v", err)
			}
			wantKind(t, "verify the revoked version", target.Verify(t.Context(), c, first), fault.ErrRejected)
			if err := target.Verify(t.Context(), c, c.New); err != nil {
				t.Errorf("verify the new version: %v", err)
			}
			got := v.Read(t, at)
			want := map[string]any{"min_decryption_version": 3.0, "min_encryption_version": 0.0, "min_available_version": 0.0}
			switch name {
			case "trim":
				want["min_encryption_version"], want["min_available_version"] = 3.0, 3.0
			case "minimum":
				want["min_encryption_version"] = 3.0
			}
			for field, n := range want {
				if got[field] != n {
					t.Errorf("%s is %v, want %v", field, got[field], n)
				}
			}
		})
	}
}

// What Vault says and what the database accepts can differ; only a login tells.
func TestDatabaseVerifyWhenSomebodyElseChangedThePassword(t *testing.T) {
	d := newDatabase(t)
	k := vault.DatabaseKind()
	word := openTarget(t, k, config(t, d.v, k.Settings, d.v.Token, "mount", d.mount))
	target := openTarget(t, k, config(t, d.v, k.Settings, d.v.Token, "mount", d.mount, "verify_url", d.verifyURL()))
	role := d.role(t)
	params := map[string]string{"role": role}
	h := rotate(t, target, change(params, rotationA, 1))
	d.pg.Exec(t, fmt.Sprintf(`ALTER ROLE %s PASSWORD 'somebody else'`, role))
	wantKind(t, "a login with a password that was changed behind Vault", target.Verify(t.Context(), change(params, rotationA, 1), h), fault.ErrRejected)
	if err := word.Verify(t.Context(), change(params, rotationA, 1), h); err != nil {
		t.Errorf("Vault's word: %v (documented: it can't know)", err)
	}
	// A new rotation mends it.
	rotate(t, target, change(params, rotationB, 2))
}

func TestDatabaseWhenVaultRotatedByItself(t *testing.T) {
	d := newDatabase(t)
	k := vault.DatabaseKind()
	target := openTarget(t, k, config(t, d.v, k.Settings, d.v.Token, "mount", d.mount, "verify_url", d.verifyURL()))
	role := d.role(t)
	c := prepare(t, target, change(map[string]string{"role": role}, rotationA, 1))
	d.v.Write(t, d.mount+"/rotate-role/"+role, nil)
	h := apply(t, target, c)
	if n := asked(t, d.v, d.mount+"/rotate-role/"+role); n != 1 {
		t.Errorf("%d rotations, want the one that was not ours", n)
	}
	if err := target.Verify(t.Context(), c, h); err != nil {
		t.Error(err)
	}
}

// A credential's params are an operator's to choose, and he must not learn passwords: where a
// password is sent is the target's to say.
func TestDatabaseWhenCredentialSaysWhereToLogIn(t *testing.T) {
	for _, kind := range []providers.TargetKind{vault.DatabaseKind(), vault.DatabaseRootKind(), vault.AppRoleKind(), vault.TransitKind()} {
		for _, p := range kind.Params {
			if strings.Contains(p.Name, "url") || strings.Contains(p.Name, "address") || strings.Contains(p.Name, "host") || strings.Contains(p.Doc, "://") {
				t.Errorf("the param %s of %s is an address", p.Name, kind.Name)
			}
		}
	}
	asked := make(chan struct{}, 1)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		if conn, err := listener.Accept(); err == nil {
			asked <- struct{}{}
			_ = conn.Close()
		}
	}()
	d := newDatabase(t)
	k := vault.DatabaseKind()
	target := openTarget(t, k, config(t, d.v, k.Settings, d.v.Token, "mount", d.mount))
	params := map[string]string{"role": d.role(t), "verify_url": "postgres://" + listener.Addr().String() + "/x?sslmode=disable"}
	rotate(t, target, change(params, rotationA, 1))
	select {
	case <-asked:
		t.Error("the host that a param names was asked to take the password")
	default:
	}
}

func TestDatabaseCheck(t *testing.T) {
	d := newDatabase(t)
	k := vault.DatabaseKind()
	target := openTarget(t, k, config(t, d.v, k.Settings, d.v.Token, "mount", d.mount))
	role := d.role(t)
	for address, wrong := range map[string]bool{
		d.verifyURL():                                        false,
		"postgres://db.example.com/orders":                   true, // sslmode=prefer: without TLS when there is none
		"postgres://db.example.com/orders?sslmode=require":   true, // encrypted for whoever answers
		"postgres://user:secret@127.0.0.1/x?sslmode=disable": true,
		"postgres://db.example.com/x?sslmode=verify-full":    false,
	} {
		opened, err := k.Open(t.Context(), config(t, d.v, k.Settings, d.v.Token, "mount", d.mount, "verify_url", address))
		if err != nil {
			if !wrong || !errors.Is(err, fault.ErrInvalid) || strings.Contains(err.Error(), "secret@") {
				t.Errorf("verify_url %s: %v", address, err)
			}
			continue
		}
		t.Cleanup(func() { _ = opened.Close() })
		found, err := opened.Check(t.Context(), change(map[string]string{"role": role}, rotationA, 1))
		if f, told := findings(t, found, err)["proof"]; wrong || told {
			t.Errorf("verify_url %s: %+v, want it refused %v", address, f, wrong)
		}
	}
	// Vault's own user as a static role: rotating it breaks Vault's login.
	d.v.Write(t, d.mount+"/static-roles/own", map[string]any{"db_name": d.name, "username": d.user, "rotation_period": "720h"})
	found, err := target.Check(t.Context(), change(map[string]string{"role": "own"}, rotationA, 1))
	if f, ok := findings(t, found, err)["self_reference"]; !ok || f.OK || f.Warning {
		t.Errorf("a static role of Vault's own user: %+v", f)
	}
}

// Promise: no value that passes through these adapters is in Vault's audit log, which
// has metadata and paths in plain text.
func TestAuditLogHoldsNoSecret(t *testing.T) {
	v := bedtest.Vault(t)
	roleMount, kvMount := v.Auth(t, "approle", ""), newKV(t, v)
	k := vault.AppRoleKind()
	target := openTarget(t, k, config(t, v, k.Settings, v.NewToken(t, appRolePolicy(roleMount), time.Hour), "mount", roleMount))
	c := change(map[string]string{"role": newAppRole(t, v, roleMount)}, rotationA, 1)
	c.Static = map[string]string{"note": "a-static-note-of-the-value"}
	h := rotate(t, target, c)
	c.Emergency = true
	if err := target.Revoke(t.Context(), c, h); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, config(t, v, vault.KVKind().Settings, v.NewToken(t, kvPolicy(kvMount), time.Hour), "mount", kvMount))
	publish(t, s, "orders", providers.Version{Rotation: rotationB, Generation: 1, Fields: h.Fields}, "", "1")
	log := v.AuditLog(t)
	for name := range h.Fields {
		if name != "role_id" && bytes.Contains(log, []byte(h.Fields.Text(name))) {
			t.Errorf("the field %s is in Vault's audit log", name)
		}
	}
	if !bytes.Contains(log, []byte(h.ID)) && !bytes.Contains(log, []byte(roleMount)) {
		t.Error("the audit log has nothing of all this: the test looks at the wrong one")
	}
}

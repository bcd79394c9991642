package vault_test

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
	"github.com/rotunda-dev/rotunda/providers/vault"
)

// config is that of a client of v with a token. More settings follow in pairs.
func config(t testing.TB, v *bedtest.VaultServer, declared []providers.Setting, token string, pairs ...string) providers.Config {
	t.Helper()
	given := map[string]string{"address": v.Address}
	if v.CA != "" {
		given["ca_cert"] = v.CA
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		given[pairs[i]] = pairs[i+1]
	}
	settings, err := providers.Complete("settings", declared, given)
	if err != nil {
		t.Fatal(err)
	}
	c := providers.Config{Name: "vault-test", Settings: settings, Now: time.Now}
	if token != "" {
		c.Login = providers.Fields{}.Set("token", token)
	}
	return c
}

// status is Vault's answer to a call of the bed itself; 0: none, or success.
func status(err error) int {
	if e, ok := errors.AsType[*bedtest.VaultError](err); ok {
		return e.Status
	}
	return 0
}

func openTarget(t testing.TB, k providers.TargetKind, c providers.Config) providers.Target {
	t.Helper()
	target, err := k.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func openStore(t testing.TB, c providers.Config) providers.Store {
	t.Helper()
	s, err := vault.KVKind().Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newKV(t testing.TB, v *bedtest.VaultServer) string {
	t.Helper()
	return v.Mount(t, "kv", map[string]string{"version": "2"})
}

// consumer reads a path of KV as a consumer does, with Vault's answer as it is.
func consumer(t testing.TB, v *bedtest.VaultServer, mount, path string) providers.Fields {
	t.Helper()
	var out struct {
		Data struct {
			Data map[string]string `json:"data"`
		} `json:"data"`
	}
	err := v.Ask(http.MethodGet, mount+"/data/"+path, nil, &out)
	if status(err) == http.StatusNotFound {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	f := providers.Fields{}
	for name, text := range out.Data.Data {
		f[name] = secret.FromString(text)
	}
	return f
}

// kvPolicy is what the documentation tells people to give, and no more.
func kvPolicy(mount string) string {
	return fmt.Sprintf(`path "%[1]s/data/*" { capabilities = ["create", "update", "read"] }
path "%[1]s/metadata/*" { capabilities = ["read", "patch"] }`, mount)
}

func TestKVConformance(t *testing.T) {
	v := bedtest.Vault(t)
	for name, required := range map[string]bool{"Plain": false, "CasRequired": true} {
		t.Run(name, func(t *testing.T) {
			mount := newKV(t, v)
			v.Write(t, mount+"/config", map[string]any{"cas_required": required})
			token := v.NewToken(t, kvPolicy(mount), time.Hour)
			kind := vault.KVKind()
			segment := "@:=-_.Zz9" + strings.Repeat("x", 55)
			providerstest.Store(t, providerstest.StoreBed{
				Kind: kind,
				Open: func(t testing.TB) providers.Store {
					return openStore(t, config(t, v, kind.Settings, token, "mount", mount))
				},
				Path: func(testing.TB) string { return "apps/" + bedtest.Fresh("p") },
				Longest: func(testing.TB) string {
					return strings.Join(slices.Repeat([]string{segment}, 7), "/") + "/" + bedtest.Fresh("p") + strings.Repeat("y", 50)
				},
				Read: func(t testing.TB, path string) providers.Fields { return consumer(t, v, mount, path) },
				Write: func(t testing.TB, path string, f providers.Fields) {
					plain := map[string]string{}
					for name := range f {
						plain[name] = f.Text(name)
					}
					var at struct {
						Data struct {
							Metadata struct {
								Version int64 `json:"version"`
							} `json:"metadata"`
						} `json:"data"`
					}
					if err := v.Ask(http.MethodGet, mount+"/data/"+path, nil, &at); err != nil {
						t.Fatal(err)
					}
					v.Write(t, mount+"/data/"+path, map[string]any{"data": plain, "options": map[string]any{"cas": at.Data.Metadata.Version}})
				},
			})
		})
	}
}

// role makes an AppRole and returns its mount and name.
func newAppRole(t testing.TB, v *bedtest.VaultServer, mount string) string {
	t.Helper()
	name := bedtest.Fresh("role")
	v.Write(t, "auth/"+mount+"/role/"+name, map[string]any{"bind_secret_id": true, "token_ttl": "10m", "token_policies": "default"})
	return name
}

func appRolePolicy(mount string) string {
	return fmt.Sprintf(`path "auth/%[1]s/role/*" { capabilities = ["create", "update", "read", "delete"] }
path "auth/token/accessors" { capabilities = ["list", "sudo"] }
path "auth/token/lookup-accessor" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }`, mount)
}

// loginAs logs in with a secret id, without the adapter.
func loginAs(v *bedtest.VaultServer, mount string, f providers.Fields) (token string, err error) {
	var out struct {
		Auth struct {
			ClientToken string `json:"client_token"`
		} `json:"auth"`
	}
	err = v.AskWith("", http.MethodPut, "auth/"+mount+"/login", map[string]string{"role_id": f.Text("role_id"), "secret_id": f.Text("secret_id")}, &out)
	return out.Auth.ClientToken, err
}

func TestAppRoleConformance(t *testing.T) {
	v := bedtest.NewVault(t)
	mount := v.Auth(t, "approle", "")
	// A suite logs in with ended values on purpose; consumers don't.
	v.Write(t, "sys/auth/"+mount+"/tune", map[string]any{"user_lockout_config": map[string]any{"lockout_disable": true}})
	token := v.NewToken(t, appRolePolicy(mount), time.Hour)
	kind := vault.AppRoleKind()
	providerstest.Target(t, providerstest.TargetBed{
		Kind: kind,
		Open: func(t testing.TB) providers.Target {
			return openTarget(t, kind, config(t, v, kind.Settings, token, "mount", mount))
		},
		Change: func(t testing.TB, _ providers.Strategy) providers.Change {
			return providers.Change{Credential: "orders", Params: map[string]string{"role": newAppRole(t, v, mount), "secret_id_ttl": "24h"}}
		},
		Missing: func(testing.TB, providers.Strategy) providers.Change {
			return providers.Change{Credential: "orders", Params: map[string]string{"role": "nobody"}}
		},
		Accepts: func(t testing.TB, h providers.Held) bool {
			token, err := loginAs(v, mount, h.Fields)
			if err == nil {
				err = v.AskWith(token, http.MethodPut, "auth/token/revoke-self", nil, nil)
			}
			if err != nil && status(err) != http.StatusBadRequest {
				t.Fatal(err)
			}
			return err == nil
		},
		Keys: func(t testing.TB, c providers.Change) []string { return accessors(t, v, mount, c.Params["role"]) },
		Snapshot: func(t testing.TB, c providers.Change) string {
			return fmt.Sprint(v.Read(t, "auth/"+mount+"/role/"+c.Params["role"]), accessors(t, v, mount, c.Params["role"]))
		},
		Session: func(t testing.TB, h providers.Held) func() bool {
			token, err := loginAs(v, mount, h.Fields)
			if err != nil {
				t.Fatal(err)
			}
			return func() bool { return v.AskWith(token, http.MethodGet, "auth/token/lookup-self", nil, nil) == nil }
		},
		Public: []string{"role_id"},
	})
}

func accessors(t testing.TB, v *bedtest.VaultServer, mount, role string) []string {
	t.Helper()
	var out struct {
		Data struct {
			Keys []string `json:"keys"`
		} `json:"data"`
	}
	err := v.Ask("LIST", "auth/"+mount+"/role/"+role+"/secret-id", nil, &out)
	if err != nil && status(err) != http.StatusNotFound {
		t.Fatal(err)
	}
	slices.Sort(out.Data.Keys)
	return out.Data.Keys
}

func transitPolicy(mount string) string {
	return fmt.Sprintf(`path "%[1]s/*" { capabilities = ["create", "update", "read", "delete"] }`, mount)
}

func TestTransitConformance(t *testing.T) {
	v := bedtest.Vault(t)
	for _, keyType := range []string{"ecdsa-p256", "aes256-gcm96", "hmac"} {
		t.Run(keyType, func(t *testing.T) {
			mount := v.Mount(t, "transit", nil)
			token := v.NewToken(t, transitPolicy(mount), time.Hour)
			kind := vault.TransitKind()
			providerstest.Target(t, providerstest.TargetBed{
				Kind: kind,
				Open: func(t testing.TB) providers.Target {
					return openTarget(t, kind, config(t, v, kind.Settings, token, "mount", mount))
				},
				Change: func(t testing.TB, _ providers.Strategy) providers.Change {
					key := bedtest.Fresh("key")
					in := map[string]any{"type": keyType}
					if keyType == "hmac" {
						in["key_size"] = 32
					}
					v.Write(t, mount+"/keys/"+key, in)
					return providers.Change{Credential: "orders", Params: map[string]string{"key": key}}
				},
				Missing: func(testing.TB, providers.Strategy) providers.Change {
					return providers.Change{Credential: "orders", Params: map[string]string{"key": "nothing"}}
				},
				Accepts: func(t testing.TB, h providers.Held) bool {
					k := v.Read(t, mount+"/keys/"+h.Account)
					n, err := strconv.ParseFloat(h.ID, 64)
					return err == nil && n >= k["min_decryption_version"].(float64) && n <= k["latest_version"].(float64)
				},
				Snapshot: func(t testing.TB, c providers.Change) string {
					return fmt.Sprint(v.Read(t, mount+"/keys/"+c.Params["key"]))
				},
			})
		})
	}
}

// database is a PostgreSQL that a Vault manages by its plugin.
type database struct {
	v     *bedtest.VaultServer
	pg    *bedtest.Postgres
	mount string
	name  string // of the connection
	user  string // Vault's own
}

func newDatabase(t testing.TB) database {
	t.Helper()
	d := database{v: bedtest.Vault(t), pg: bedtest.PostgreSQL(t), name: "main", user: bedtest.Fresh("vaultroot")}
	d.mount = d.v.Mount(t, "database", nil)
	d.pg.Exec(t, fmt.Sprintf(`CREATE ROLE %s LOGIN SUPERUSER PASSWORD 'first'`, d.user))
	d.connect(t, d.name)
	return d
}

func (d database) connect(t testing.TB, name string) {
	t.Helper()
	d.v.Write(t, d.mount+"/config/"+name, map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": d.user, "password": "first",
		"connection_url": fmt.Sprintf("postgres://{{username}}:{{password}}@%s/postgres?sslmode=disable", net.JoinHostPort("127.0.0.1", strconv.Itoa(d.pg.Port))),
	})
}

// role makes a user and its static role.
func (d database) role(t testing.TB) string {
	t.Helper()
	user := bedtest.Fresh("app")
	d.pg.Exec(t, fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD 'none'`, user))
	d.v.Write(t, d.mount+"/static-roles/"+user, map[string]any{"db_name": d.name, "username": user, "rotation_period": "720h"})
	return user
}

func (d database) policy() string {
	return fmt.Sprintf(`path "%[1]s/static-roles/*" { capabilities = ["read"] }
path "%[1]s/static-creds/*" { capabilities = ["read"] }
path "%[1]s/rotate-role/*" { capabilities = ["update"] }
path "%[1]s/rotate-root/*" { capabilities = ["update"] }
path "%[1]s/reset/*" { capabilities = ["update"] }
path "%[1]s/config/*" { capabilities = ["read"] }`, d.mount)
}

func (d database) verifyURL() string {
	u, _ := url.Parse(d.pg.URL())
	u.User = nil
	return u.String()
}

func (d database) accepts(t testing.TB, user, password string) bool {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.pg.URLOf(user, password, "postgres"))
	if err == nil {
		return conn.Close(t.Context()) == nil
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "28P01" {
		t.Fatal(err)
	}
	return false
}

func TestDatabaseConformance(t *testing.T) {
	d := newDatabase(t)
	token := d.v.NewToken(t, d.policy(), time.Hour)
	kind := vault.DatabaseKind()
	for name, address := range map[string]string{"VaultsWord": "", "Login": d.verifyURL()} {
		t.Run(name, func(t *testing.T) {
			providerstest.Target(t, providerstest.TargetBed{
				Kind: kind,
				Open: func(t testing.TB) providers.Target {
					return openTarget(t, kind, config(t, d.v, kind.Settings, token, "mount", d.mount, "verify_url", address))
				},
				Change: func(t testing.TB, _ providers.Strategy) providers.Change {
					return providers.Change{Credential: "orders", Params: map[string]string{"role": d.role(t)}}
				},
				Missing: func(testing.TB, providers.Strategy) providers.Change {
					return providers.Change{Credential: "orders", Params: map[string]string{"role": "nobody"}}
				},
				Accepts: func(t testing.TB, h providers.Held) bool {
					return d.accepts(t, h.Fields.Text("username"), h.Fields.Text("password"))
				},
				Snapshot: func(t testing.TB, c providers.Change) string {
					m := maps.Clone(d.v.Read(t, d.mount+"/static-roles/"+c.Params["role"]))
					return fmt.Sprint(m)
				},
			})
		})
	}
}

func TestDatabaseRootConformance(t *testing.T) {
	d := newDatabase(t)
	token := d.v.NewToken(t, d.policy(), time.Hour)
	kind := vault.DatabaseRootKind()
	providerstest.Target(t, providerstest.TargetBed{
		Kind: kind,
		Open: func(t testing.TB) providers.Target {
			return openTarget(t, kind, config(t, d.v, kind.Settings, token, "mount", d.mount))
		},
		Change: func(t testing.TB, _ providers.Strategy) providers.Change {
			fresh := d
			fresh.user, fresh.name = bedtest.Fresh("vaultroot"), bedtest.Fresh("connection")
			fresh.pg.Exec(t, fmt.Sprintf(`CREATE ROLE %s LOGIN SUPERUSER PASSWORD 'first'`, fresh.user))
			fresh.connect(t, fresh.name)
			return providers.Change{Credential: "orders", Params: map[string]string{"connection": fresh.name}}
		},
		Missing: func(testing.TB, providers.Strategy) providers.Change {
			return providers.Change{Credential: "orders", Params: map[string]string{"connection": "nothing"}}
		},
	})
}

package realtest

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sm "github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	smtypes "github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/jackc/pgx/v5"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/awstest"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/builtin"
	"github.com/rotunda-dev/rotunda/rotation/crashtest"
)

var crashFull = flag.Bool("crash.full", false, "kill during recovery, too, whatever the store; in short, only with the built-in one")

func TestMain(m *testing.M) {
	if orders := os.Getenv(fullEnv); orders != "" {
		fmt.Fprintln(os.Stderr, fullChild(orders))
		os.Exit(3)
	}
	crashtest.Main(m, kinds)
}

func kinds(_ context.Context, o crashtest.Opening) ([]providers.TargetKind, []providers.StoreKind, error) {
	return targetKinds(), storeKinds(o.DB, o.Sealer), nil
}

// place is a store of a crash bed: its kind, and how its consumers read.
type place struct {
	system crashtest.System
	path   func(name string) string
	serves func(t testing.TB, o crashtest.Opening, path string) providers.Fields
	staged func(t testing.TB, path string) providers.Fields
}

// subject is a target of a crash bed, with accounts of its own.
type subject struct {
	system  crashtest.System
	params  map[string]string
	accepts func(t testing.TB, f providers.Fields) bool
	keys    func(t testing.TB) []string
	kept    func(t testing.TB) providers.Fields
}

// Promise: at every instant, kill -9 included, either the value in the store or a sealed
// value in our database is accepted by the target. Each kind of target, with each of its
// strategies, with each kind of store, on real servers (AWS: the simulator).
func TestCrashTable(t *testing.T) {
	var table crashtest.Table
	for _, kind := range crashSubjects {
		for _, at := range crashPlaces {
			if kind.valueless && at.name != "builtin" {
				continue // nothing goes into a store
			}
			name := fmt.Sprintf("%s %s, %s", kind.name, kind.strategy, at.name)
			if kind.valueless {
				name = kind.name
			}
			t.Run(name, func(t *testing.T) {
				s := kind.make(t)
				bed := crashtest.Bed{
					Name: name, Kinds: kinds, Target: s.system, Strategy: kind.strategy, Params: s.params, Accepts: s.accepts, Keys: s.keys, Kept: s.kept,
					Quick: !*crashFull && at.name != "builtin",
				}
				if !kind.valueless {
					p := at.make(t)
					path := p.path(fresh("crash"))
					bed.Store, bed.Serves, bed.Staged = p.system, p.serves, p.staged
					bed.Paths = []string{path}
				}
				if bed.Accepts == nil { // nobody else has to accept it
					bed.Accepts = func(testing.TB, providers.Fields) bool { return true }
					bed.Nobody = true
				}
				table = append(table, crashtest.Run(t, bed)...)
			})
		}
	}
	if path := os.Getenv("ROTUNDA_CRASH_TABLE"); path != "" && !t.Failed() {
		if err := os.WriteFile(path, []byte(table.Summary()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("\n%s", table.Summary())
}

var crashPlaces = []struct {
	name string
	make func(t testing.TB) place
}{
	{"builtin", builtinPlace},
	{"vault-kv", func(t testing.TB) place {
		v := bedtest.Vault(t)
		mount := v.Mount(t, "kv", map[string]string{"version": "2"})
		read := func(t testing.TB, _ crashtest.Opening, path string) providers.Fields {
			value, err := kvReader(v, mount, path)(t.Context())
			if e, ok := errors.AsType[*bedtest.VaultError](err); ok && e.Status == 404 {
				return nil
			}
			if err != nil {
				t.Fatal(err)
			}
			return fieldsOf(value)
		}
		return place{system: crashtest.System{Kind: "vault-kv", Settings: map[string]string{"address": v.Address, "mount": mount}, Login: providers.Fields{}.Set("token", v.Token)},
			path: func(name string) string { return "crash/" + name }, serves: read}
	}},
	{"aws-secrets-manager", func(t testing.TB) place {
		sim := awstest.Start(t)
		client := sm.New(sm.Options{Region: sim.Region, BaseEndpoint: aws.String(sim.URL), Credentials: credentials.NewStaticCredentialsProvider(sim.AccessKey, sim.SecretKey, "")})
		read := func(stage string) func(t testing.TB, path string) providers.Fields {
			return func(t testing.TB, path string) providers.Fields {
				out, err := client.GetSecretValue(t.Context(), &sm.GetSecretValueInput{SecretId: aws.String(path), VersionStage: aws.String(stage)})
				var none *smtypes.ResourceNotFoundException
				if errors.As(err, &none) {
					return nil
				}
				if err != nil {
					t.Fatal(err)
				}
				f, err := providers.Decode(secret.FromString(*out.SecretString))
				if err != nil {
					t.Fatal(err)
				}
				return f
			}
		}
		return place{system: crashtest.System{Kind: "aws-secrets-manager", Settings: simSettings(sim), Login: simLogin(sim)},
			path: func(name string) string { return "crash/" + name }, serves: func(t testing.TB, _ crashtest.Opening, path string) providers.Fields {
				return read("AWSCURRENT")(t, path)
			}, staged: read("ROTUNDA_STAGED")}
	}},
}

func simSettings(s *awstest.Sim) map[string]string {
	return map[string]string{"region": s.Region, "endpoint": s.URL}
}

func simLogin(s *awstest.Sim) providers.Fields {
	return providers.Fields{}.Set("access_key_id", s.AccessKey).Set("secret_access_key", s.SecretKey)
}

func fieldsOf(plain map[string]string) providers.Fields {
	f := providers.Fields{}
	for name, text := range plain {
		f[name] = secret.FromString(text)
	}
	return f
}

var crashSubjects = []struct {
	name      string
	strategy  providers.Strategy
	valueless bool
	make      func(t testing.TB) subject
}{
	{"postgres", providers.Alternate, false, func(t testing.TB) subject { return postgresSubject(t, "users") }},
	{"postgres", providers.Replace, false, func(t testing.TB) subject { return postgresSubject(t, "user") }},
	{"mysql", providers.Alternate, false, func(t testing.TB) subject { return mariadbSubject(t, "users") }},
	{"mysql", providers.Replace, false, func(t testing.TB) subject { return mariadbSubject(t, "user") }},
	{"redis", providers.Dual, false, redisSubject},
	{"redis", providers.Replace, false, redisSubject},
	{"aws-iam", providers.Dual, false, iamSubject},
	{"vault-approle", providers.Dual, false, appRoleSubject},
	{"vault-database", providers.Replace, false, staticRoleSubject},
	{"vault-transit", providers.Dual, true, transitSubject},
	{"generated", providers.Replace, false, func(testing.TB) subject { return subject{system: crashtest.System{Kind: "generated"}} }},
}

func postgresSubject(t testing.TB, param string) subject {
	p := bedtest.PostgreSQL(t)
	a, b := bedtest.Fresh("a"), bedtest.Fresh("b")
	p.Exec(t, "CREATE ROLE "+a+" LOGIN", "CREATE ROLE "+b+" LOGIN")
	params := map[string]string{"users": a + "," + b}
	if param == "user" {
		params = map[string]string{"user": a}
	}
	return subject{
		system: crashtest.System{Kind: "postgres", Settings: map[string]string{"address": fmt.Sprintf("127.0.0.1:%d", p.Port), "user": p.User, "sslmode": "disable"}, Login: providers.Fields{}.Set("password", p.Password)},
		params: params,
		accepts: func(t testing.TB, f providers.Fields) bool {
			return postgresAccepts(t, p, f)
		},
	}
}

func postgresAccepts(t testing.TB, p *bedtest.Postgres, f providers.Fields) bool {
	conn, err := pgx.Connect(t.Context(), p.URLOf(f.Text("username"), f.Text("password"), "postgres"))
	if err == nil {
		_ = conn.Close(t.Context())
		return true
	}
	if state := sqlState(err); strings.HasPrefix(state, "28") {
		return false
	}
	t.Fatal(err)
	return false
}

func mariadbSubject(t testing.TB, param string) subject {
	m := bedtest.MariaDB(t)
	a, b := bedtest.Fresh("a"), bedtest.Fresh("b")
	m.Exec(t, "CREATE USER "+a+"@'%' ACCOUNT LOCK", "CREATE USER "+b+"@'%' ACCOUNT LOCK", "ALTER USER "+a+"@'%' ACCOUNT UNLOCK", "ALTER USER "+b+"@'%' ACCOUNT UNLOCK")
	params := map[string]string{"users": a + "," + b}
	if param == "user" {
		params = map[string]string{"user": a}
	}
	return subject{
		system:  crashtest.System{Kind: "mysql", Settings: map[string]string{"address": m.Address(), "user": m.User, "tls": "off"}, Login: providers.Fields{}.Set("password", m.Password)},
		params:  params,
		accepts: func(t testing.TB, f providers.Fields) bool { return mariadbAccepts(t, m, f) },
	}
}

func mariadbAccepts(t testing.TB, m *bedtest.MariaDBServer, f providers.Fields) bool {
	err := ping(m.Open(t, f.Text("username"), f.Text("password")))
	if err == nil {
		return true
	}
	if strings.Contains(err.Error(), "1045") || strings.Contains(err.Error(), "4151") { // access denied; account locked
		return false
	}
	t.Fatal(err)
	return false
}

func ping(db *sql.DB) error {
	defer db.Close()
	return db.Ping()
}

func redisSubject(t testing.TB) subject {
	r := bedtest.Redis(t)
	user := bedtest.Fresh("u")
	if err := r.Client(t).Do(t.Context(), "ACL", "SETUSER", user, "on", "+ping", "+@connection").Err(); err != nil {
		t.Fatal(err)
	}
	return subject{
		system:  crashtest.System{Kind: "redis", Settings: map[string]string{"addresses": r.Address(), "user": r.User, "tls": "off"}, Login: providers.Fields{}.Set("password", r.Password)},
		params:  map[string]string{"user": user},
		accepts: func(t testing.TB, f providers.Fields) bool { return redisAccepts(t, r, f) },
	}
}

func redisAccepts(t testing.TB, r *bedtest.RedisServer, f providers.Fields) bool {
	c := r.ClientOf(t, f.Text("username"), f.Text("password"))
	err := c.Ping(t.Context()).Err()
	if err == nil {
		return true
	}
	if strings.HasPrefix(err.Error(), "WRONGPASS") {
		return false
	}
	t.Fatal(err)
	return false
}

func iamSubject(t testing.TB) subject {
	sim := awstest.Start(t)
	user := bedtest.Fresh("u")
	sim.NewUser(user)
	return subject{
		system:  crashtest.System{Kind: "aws-iam", Settings: simSettings(sim), Login: simLogin(sim)},
		params:  map[string]string{"user": user},
		accepts: func(t testing.TB, f providers.Fields) bool { return iamAccepts(t, sim, f) },
		keys: func(testing.TB) (ids []string) {
			for _, k := range sim.Keys(user) {
				ids = append(ids, k.ID)
			}
			return ids
		},
	}
}

func iamAccepts(t testing.TB, sim *awstest.Sim, f providers.Fields) bool {
	client := sts.New(sts.Options{Region: sim.Region, BaseEndpoint: aws.String(sim.URL), Credentials: credentials.NewStaticCredentialsProvider(f.Text("access_key_id"), f.Text("secret_access_key"), "")})
	_, err := client.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err == nil {
		return true
	}
	if strings.Contains(err.Error(), "InvalidClientTokenId") {
		return false
	}
	t.Fatal(err)
	return false
}

func appRoleSubject(t testing.TB) subject {
	v := bedtest.Vault(t)
	mount, role := v.Auth(t, "approle", ""), bedtest.Fresh("r")
	v.Write(t, "auth/"+mount+"/role/"+role, map[string]any{"token_policies": "default", "token_type": "batch"})
	return subject{
		system:  crashtest.System{Kind: "vault-approle", Settings: map[string]string{"address": v.Address, "mount": mount}, Login: providers.Fields{}.Set("token", v.Token)},
		params:  map[string]string{"role": role},
		accepts: func(t testing.TB, f providers.Fields) bool { return appRoleAccepts(t, v, mount, f) },
		keys: func(t testing.TB) (ids []string) {
			var out struct {
				Data struct{ Keys []string }
			}
			err := v.Ask("LIST", "auth/"+mount+"/role/"+role+"/secret-id", nil, &out)
			if e, ok := errors.AsType[*bedtest.VaultError](err); err != nil && (!ok || e.Status != 404) {
				t.Fatal(err)
			}
			return out.Data.Keys
		},
	}
}

func appRoleAccepts(t testing.TB, v *bedtest.VaultServer, mount string, f providers.Fields) bool {
	err := v.AskWith("", "POST", "auth/"+mount+"/login", map[string]any{"role_id": f.Text("role_id"), "secret_id": f.Text("secret_id")}, nil)
	if e, ok := errors.AsType[*bedtest.VaultError](err); ok && e.Status == 400 {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

func staticRoleSubject(t testing.TB) subject {
	v, p := bedtest.Vault(t), bedtest.PostgreSQL(t)
	mount, role, user := v.Mount(t, "database", nil), bedtest.Fresh("r"), bedtest.Fresh("v")
	p.Exec(t, "CREATE ROLE "+user+" LOGIN")
	v.Write(t, mount+"/config/db", map[string]any{
		"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": p.User, "password": p.Password,
		"connection_url": fmt.Sprintf("postgresql://{{username}}:{{password}}@127.0.0.1:%d/postgres?sslmode=disable", p.Port),
	})
	v.Write(t, mount+"/static-roles/"+role, map[string]any{"db_name": "db", "username": user, "rotation_period": "8760h"})
	return subject{
		system:  crashtest.System{Kind: "vault-database", Settings: map[string]string{"address": v.Address, "mount": mount}, Login: providers.Fields{}.Set("token", v.Token)},
		params:  map[string]string{"role": role},
		accepts: func(t testing.TB, f providers.Fields) bool { return postgresAccepts(t, p, f) },
		kept: func(t testing.TB) providers.Fields {
			data := v.Read(t, mount+"/static-creds/"+role)
			return fieldsOf(map[string]string{"username": fmt.Sprint(data["username"]), "password": fmt.Sprint(data["password"])})
		},
	}
}

func transitSubject(t testing.TB) subject {
	v := bedtest.Vault(t)
	mount, key := v.Mount(t, "transit", nil), bedtest.Fresh("k")
	v.Write(t, mount+"/keys/"+key, map[string]any{"type": "ecdsa-p256"})
	return subject{
		system: crashtest.System{Kind: "vault-transit", Settings: map[string]string{"address": v.Address, "mount": mount}, Login: providers.Fields{}.Set("token", v.Token)},
		params: map[string]string{"key": key},
		keys: func(t testing.TB) (ids []string) {
			data := v.Read(t, mount+"/keys/"+key)
			latest, oldest := number(t, data["latest_version"]), number(t, data["min_decryption_version"])
			for n := max(oldest, 2); n <= latest; n++ { // the first was there before
				ids = append(ids, strconv.FormatInt(n, 10))
			}
			return ids
		},
	}
}

func number(t testing.TB, v any) int64 {
	n, err := strconv.ParseInt(fmt.Sprint(v), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// builtinPlace reads as the API does.
func builtinPlace(testing.TB) place {
	return place{system: crashtest.System{Kind: "builtin"}, path: func(name string) string { return "crash/" + name },
		serves: func(t testing.TB, o crashtest.Opening, path string) providers.Fields {
			served, err := builtin.New(builtin.Config{DB: o.DB, Sealer: o.Sealer}).Read(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			return served.Fields
		},
	}
}

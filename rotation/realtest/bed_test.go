package realtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/aws"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/builtin"
	"github.com/rotunda-dev/rotunda/providers/generated"
	httptarget "github.com/rotunda-dev/rotunda/providers/http"
	"github.com/rotunda-dev/rotunda/providers/mysql"
	"github.com/rotunda-dev/rotunda/providers/postgres"
	"github.com/rotunda-dev/rotunda/providers/redis"
	"github.com/rotunda-dev/rotunda/providers/vault"
	"github.com/rotunda-dev/rotunda/rotation"
)

// desk is rotation on one database, with every kind of system.
type desk struct {
	db          *store.DB
	sealer      *secret.Sealer
	systems     *rotation.Systems
	rotations   *rotation.Rotations
	credentials *rotation.Credentials
}

func targetKinds() []providers.TargetKind {
	return []providers.TargetKind{postgres.Kind(), mysql.Kind(), redis.Kind(), aws.IAMKind(), generated.Kind(), httptarget.Kind(), vault.AppRoleKind(), vault.DatabaseKind(), vault.DatabaseRootKind(), vault.TransitKind()}
}

func storeKinds(db *store.DB, sealer *secret.Sealer) []providers.StoreKind {
	return []providers.StoreKind{vault.KVKind(), aws.SecretsManagerKind(), builtin.New(builtin.Config{DB: db, Sealer: sealer}).Kind()}
}

func newDesk(t testing.TB, db *store.DB, change func(*rotation.RotationsConfig)) *desk {
	t.Helper()
	return newDeskAt(t, db, filepath.Join(t.TempDir(), "kek.json"), change)
}

func newDeskAt(t testing.TB, db *store.DB, keys string, change func(*rotation.RotationsConfig)) *desk {
	t.Helper()
	kek, err := secret.OpenOrCreateFile(keys)
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{db: db}
	if d.sealer, err = secret.NewSealer(kek.KEKs()...); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if d.systems, err = rotation.NewSystems(ctx, rotation.SystemsConfig{DB: db, Sealer: d.sealer, Targets: targetKinds(), Stores: storeKinds(db, d.sealer)}); err != nil {
		t.Fatal(err)
	}
	cfg := rotation.RotationsConfig{DB: db, Sealer: d.sealer, Systems: d.systems, Holder: "realtest"}
	if change != nil {
		change(&cfg)
	}
	if d.rotations, err = rotation.NewRotations(cfg); err != nil {
		t.Fatal(err)
	}
	if d.credentials, err = rotation.NewCredentials(rotation.CredentialsConfig{DB: db, Systems: d.systems, Rotations: d.rotations}); err != nil {
		t.Fatal(err)
	}
	return d
}

// work has the desk's workers at work until the end of the test.
func (d *desk) work(t testing.TB) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.rotations.Run(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("the workers ended: %v", err)
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
}

func (d *desk) system(t testing.TB, sort rotation.Sort, kind string, settings map[string]string, login providers.Fields) string {
	t.Helper()
	name := fresh(kind)
	if _, err := d.systems.Create(t.Context(), sort, name, rotation.SystemSpec{Kind: kind, Settings: settings, Login: login}, store.Once{}); err != nil {
		t.Fatal(err)
	}
	return name
}

// credential makes a credential and rotates it once, so that it has a value.
func (d *desk) credential(t testing.TB, spec rotation.Spec) string {
	t.Helper()
	name := fresh("c")
	if _, err := d.credentials.Create(t.Context(), name, spec, store.Once{}); err != nil {
		t.Fatal(err)
	}
	return name
}

// rotate rotates a credential and waits until consumers read the new value, or for its
// end when done is true.
func (d *desk) rotate(t testing.TB, name string, done bool) rotation.Rotation {
	t.Helper()
	r, err := d.rotations.Start(t.Context(), rotation.StartRequest{Credential: name})
	if err != nil {
		t.Fatal(err)
	}
	return d.wait(t, r.ID, done)
}

func (d *desk) wait(t testing.TB, id string, done bool) rotation.Rotation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var last rotation.Rotation
	enough := errors.New("enough")
	err := d.rotations.Watch(ctx, id, func(r rotation.Rotation) error {
		last = r
		if r.Step == rotation.StepFailed || !done && r.Step == rotation.StepGrace {
			return enough
		}
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		t.Fatalf("rotation %s is at %s: %v: %s", id, last.Step, err, last.Error)
	}
	if last.Step == rotation.StepFailed {
		t.Fatalf("rotation %s failed at %s: %s", id, last.FailedStep, last.Error)
	}
	return last
}

func fresh(prefix string) string { return prefix + "-" + strings.ToLower(rand.Text()[:10]) }

func postgresTarget(t testing.TB, d *desk) (name string, p *bedtest.Postgres) {
	p = bedtest.PostgreSQL(t)
	return d.system(t, rotation.TargetSort, "postgres", map[string]string{"address": fmt.Sprintf("127.0.0.1:%d", p.Port), "user": p.User, "sslmode": "disable"},
		providers.Fields{}.Set("password", p.Password)), p
}

func vaultStore(t testing.TB, d *desk) (name, mount string, v *bedtest.VaultServer) {
	v = bedtest.Vault(t)
	mount = v.Mount(t, "kv", map[string]string{"version": "2"})
	return d.system(t, rotation.StoreSort, "vault-kv", map[string]string{"address": v.Address, "mount": mount},
		providers.Fields{}.Set("token", v.Token)), mount, v
}

package realtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/rotation"
)

// fault is something that happens before an effect, and is over before its next try.
type fault struct {
	name  string
	begin func(t testing.TB, w *wire)
	end   func(t testing.TB, w *wire)
}

// wire is the network and the servers of one credential.
type wire struct {
	target, store *toxiproxy.Proxy
	postgres      *bedtest.Postgres
	vault         *bedtest.VaultServer
}

func proxied(t testing.TB, upstream string) *toxiproxy.Proxy {
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "bed", "127.0.0.1:0", upstream)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

// toxic lets both ways of the wire go wrong. Toxiproxy: timeout drops what is sent, reset_peer
// resets the connection.
func toxic(kind, stream string) fault {
	both := func(t testing.TB, w *wire, f func(*toxiproxy.Proxy) error) {
		for _, p := range []*toxiproxy.Proxy{w.target, w.store} {
			if err := f(p); err != nil {
				t.Error(err)
			}
		}
	}
	return fault{
		name: kind + " " + stream,
		begin: func(t testing.TB, w *wire) {
			both(t, w, func(p *toxiproxy.Proxy) error {
				_, err := p.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"name": "bad", "type": %q, "stream": %q, "attributes": {"timeout": 0}}`, kind, stream)))
				return err
			})
		},
		end: func(t testing.TB, w *wire) {
			both(t, w, func(p *toxiproxy.Proxy) error { return p.Toxics.RemoveToxic(context.Background(), "bad") })
		},
	}
}

var effects = []string{"E0", "E2", "E3", "E4", "E6", "E7"}

// Promise: whatever effect the network eats, on its way there or on its way back, the next
// try of the same code ends the rotation, and nothing is lost.
func TestRotationWhenTheNetworkFails(t *testing.T) {
	var all sync.WaitGroup
	defer all.Wait()
	p, v := bedtest.PostgreSQL(t), bedtest.Vault(t)
	for _, f := range []fault{toxic("timeout", "upstream"), toxic("timeout", "downstream"), toxic("reset_peer", "downstream")} {
		for _, effect := range effects {
			all.Go(func() { interrupted(t, f, effect, p, v) })
		}
	}
}

// Promise: a server that stops and comes back, or a Vault that is sealed, is a pause.
func TestRotationWhenServersStop(t *testing.T) {
	p, v := bedtest.NewPostgreSQL(t), bedtest.NewVault(t)
	killed := fault{"PostgreSQL killed", func(t testing.TB, w *wire) { w.postgres.Stop(t) }, func(t testing.TB, w *wire) { w.postgres.Start(t) }}
	sealed := fault{"Vault sealed", func(t testing.TB, w *wire) { w.vault.Seal(t) }, func(t testing.TB, w *wire) { w.vault.Unseal(t) }}
	for _, effect := range []string{"E2", "E3", "E6", "E7"} {
		interrupted(t, killed, effect, p, v)
	}
	for _, effect := range []string{"E0", "E4"} {
		interrupted(t, sealed, effect, p, v)
	}
}

// interrupted has a fault happen before an effect of a rotation, and end when the effect
// is tried again, or after a while where it was none for this effect.
func interrupted(t *testing.T, f fault, effect string, p *bedtest.Postgres, v *bedtest.VaultServer) {
	name := f.name + " at " + effect
	w := &wire{postgres: p, vault: v, target: proxied(t, fmt.Sprintf("127.0.0.1:%d", p.Port)), store: proxied(t, strings.TrimPrefix(v.Address, "http://"))}
	var mu sync.Mutex
	armed, bad := false, false
	d := newDesk(t, storetest.Open(t, storetest.SQLiteURL(t)), func(c *rotation.RotationsConfig) {
		c.EffectTimeout = time.Second
		c.At = func(_ context.Context, point rotation.Point) {
			mu.Lock()
			defer mu.Unlock()
			if !armed || point.Effect != effect || point.After {
				return
			}
			if !bad {
				f.begin(t, w)
			} else {
				f.end(t, w)
				armed = false
			}
			bad = !bad
		}
	})
	d.work(t)
	mount := v.Mount(t, "kv", map[string]string{"version": "2"})
	target := d.system(t, rotation.TargetSort, "postgres", map[string]string{"address": w.target.Listen, "user": p.User, "sslmode": "disable"}, providers.Fields{}.Set("password", p.Password))
	kv := d.system(t, rotation.StoreSort, "vault-kv", map[string]string{"address": "http://" + w.store.Listen, "mount": mount}, providers.Fields{}.Set("token", v.Token))
	a, b := bedtest.Fresh("a"), bedtest.Fresh("b")
	p.Exec(t, "CREATE ROLE "+a+" LOGIN", "CREATE ROLE "+b+" LOGIN")
	c := d.credential(t, rotation.Spec{Target: target, Params: map[string]string{"users": a + "," + b}, Stores: []rotation.Placement{{Store: kv, Path: "x"}}, Grace: 300 * time.Millisecond, Probe: -1})
	read := kvReader(v, mount, "x")
	d.rotate(t, c, true)
	before, err := read(t.Context())
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	mu.Lock()
	armed = true
	mu.Unlock()
	r, err := d.rotations.Start(t.Context(), rotation.StartRequest{Credential: c})
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	d.wait(t, r.ID, true)
	mu.Lock()
	if armed {
		t.Errorf("%s: the effect was not tried twice", name)
	}
	if bad {
		f.end(t, w)
	}
	mu.Unlock()
	after, err := read(t.Context())
	switch {
	case err != nil:
		t.Errorf("%s: %v", name, err)
	case after["password"] == before["password"]:
		t.Errorf("%s: consumers read the old value", name)
	case !postgresAccepts(t, p, fieldsOf(after)):
		t.Errorf("%s: the new value is not accepted", name)
	case postgresAccepts(t, p, fieldsOf(before)):
		t.Errorf("%s: the old value is accepted", name)
	}
	noneOpen(t, d.db, name)
}

// noneOpen checks that each start in the trail has its end.
func noneOpen(t *testing.T, db *store.DB, name string) {
	t.Helper()
	open, err := audit.OpenIntents(t.Context(), db, db.Now().Add(time.Hour), 0)
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
	for _, e := range open {
		t.Errorf("%s: %s began and has no end", name, e.Action)
	}
}

// Promise: a login that ends in the middle of a rotation stops it with a word on what to do,
// and with a new login the same rotation goes on.
func TestRotationWhenTheLoginEnds(t *testing.T) {
	var v *bedtest.VaultServer
	var token string
	d := newDesk(t, storetest.Open(t, storetest.SQLiteURL(t)), func(c *rotation.RotationsConfig) {
		c.At = func(_ context.Context, p rotation.Point) {
			if p.String() == "E4 before" && token != "" {
				v.Write(t, "auth/token/revoke", map[string]any{"token": token})
				token = ""
			}
		}
	})
	v = bedtest.Vault(t)
	mount := v.Mount(t, "kv", map[string]string{"version": "2"})
	policy := `path "` + mount + `/*" { capabilities = ["create", "read", "update", "patch", "list"] }`
	settings := map[string]string{"address": v.Address, "mount": mount}
	kv := d.system(t, rotation.StoreSort, "vault-kv", settings, providers.Fields{}.Set("token", v.NewToken(t, policy, time.Hour)))
	target, p := postgresTarget(t, d)
	a, b := bedtest.Fresh("a"), bedtest.Fresh("b")
	p.Exec(t, "CREATE ROLE "+a+" LOGIN", "CREATE ROLE "+b+" LOGIN")
	c := d.credential(t, rotation.Spec{Target: target, Params: map[string]string{"users": a + "," + b}, Stores: []rotation.Placement{{Store: kv, Path: "x"}}, Probe: -1})
	d.work(t)
	d.rotate(t, c, true)

	system, err := d.systems.Get(t.Context(), rotation.StoreSort, kv)
	if err != nil {
		t.Fatal(err)
	}
	short := v.NewToken(t, policy, time.Hour)
	if _, err := d.systems.Update(t.Context(), rotation.StoreSort, kv, system.Version, rotation.SystemSpec{Settings: settings, Login: providers.Fields{}.Set("token", short)}); err != nil {
		t.Fatal(err)
	}
	token = short
	r, err := d.rotations.Start(t.Context(), rotation.StartRequest{Credential: c})
	if err != nil {
		t.Fatal(err)
	}
	stopped := errors.New("stopped")
	var last rotation.Rotation
	err = d.rotations.Watch(t.Context(), r.ID, func(r rotation.Rotation) error {
		if last = r; r.Step == rotation.StepFailed {
			return stopped
		}
		return nil
	})
	if !errors.Is(err, stopped) {
		t.Fatalf("the rotation ended %q, %v", last.Outcome, err)
	}
	if last.FailedStep != rotation.StepPublish || !strings.Contains(last.Error, "retry") || strings.Contains(last.Error, short) {
		t.Errorf("it failed at %s: %s", last.FailedStep, last.Error)
	}
	if system, err = d.systems.Get(t.Context(), rotation.StoreSort, kv); err != nil {
		t.Fatal(err)
	}
	if _, err := d.systems.Update(t.Context(), rotation.StoreSort, kv, system.Version, rotation.SystemSpec{Settings: settings, Login: providers.Fields{}.Set("token", v.NewToken(t, policy, time.Hour))}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.rotations.Retry(t.Context(), r.ID, "a new token"); err != nil {
		t.Fatal(err)
	}
	d.wait(t, r.ID, true)
	value, err := kvReader(v, mount, "x")(t.Context())
	if err != nil || !postgresAccepts(t, p, fieldsOf(value)) {
		t.Errorf("the value is not accepted: %v", err)
	}
	noneOpen(t, d.db, "login ended")
}

// fullEnv holds the orders of a child whose disk is full: database, key file, credential, effect.
const fullEnv = "ROTUNDA_REALTEST_FULL"

// Promise: a disk that is full stops a rotation where it is, and nothing is lost: also
// when it is full between an effect and the record of it.
func TestRotationWhenTheDiskIsFull(t *testing.T) {
	p, v := bedtest.PostgreSQL(t), bedtest.Vault(t)
	for _, at := range []string{"E0 before", "E2 before", "E2 after", "E4 before", "E4 after", "E7 before", "E7 after"} {
		t.Run(at, func(t *testing.T) {
			url := storetest.SQLiteURL(t)
			keys := t.TempDir() + "/kek.json"
			mount := v.Mount(t, "kv", map[string]string{"version": "2"})
			a, b := bedtest.Fresh("a"), bedtest.Fresh("b")
			p.Exec(t, "CREATE ROLE "+a+" LOGIN", "CREATE ROLE "+b+" LOGIN")
			var c string
			with := func(f func(d *desk)) {
				db, err := store.Open(t.Context(), url)
				if err != nil {
					t.Fatal(err)
				}
				f(newDeskAt(t, db, keys, nil))
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
			}
			with(func(d *desk) {
				target := d.system(t, rotation.TargetSort, "postgres", map[string]string{"address": net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Port)), "user": p.User, "sslmode": "disable"}, providers.Fields{}.Set("password", p.Password))
				kv := d.system(t, rotation.StoreSort, "vault-kv", map[string]string{"address": v.Address, "mount": mount}, providers.Fields{}.Set("token", v.Token))
				c = d.credential(t, rotation.Spec{Target: target, Params: map[string]string{"users": a + "," + b}, Stores: []rotation.Placement{{Store: kv, Path: "x"}}, Probe: -1})
				if err := d.settle(t.Context(), c, true); err != nil {
					t.Fatal(err)
				}
			})
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), fullEnv+"="+strings.Join([]string{url, keys, c, at}, "\n"))
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "the disk was full") {
				t.Fatalf("the child ended with %v: %s", err, out)
			}
			value, err := kvReader(v, mount, "x")(t.Context())
			if err != nil || !postgresAccepts(t, p, fieldsOf(value)) {
				t.Errorf("what consumers read is not accepted: %v", err)
			}
			with(func(d *desk) {
				if err := d.settle(t.Context(), c, false); err != nil {
					t.Fatal(err)
				}
				noneOpen(t, d.db, at)
				values, err := d.rotations.Values(t.Context(), c)
				if err != nil || len(values) != 1 {
					t.Fatalf("%d values are sealed, %v", len(values), err)
				}
				value, err := kvReader(v, mount, "x")(t.Context())
				if err != nil || !fieldsOf(value).Equal(values[0].Fields) || !postgresAccepts(t, p, fieldsOf(value)) {
					t.Errorf("after the recovery consumers do not read the current value, or it is not accepted: %v", err)
				}
			})
		})
	}
}

// settle rotates a credential, when begin is true, and passes until no run is under way.
func (d *desk) settle(ctx context.Context, credential string, begin bool) error {
	if begin {
		if _, err := d.rotations.Start(ctx, rotation.StartRequest{Credential: credential}); err != nil {
			return err
		}
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		open, _, err := d.rotations.List(ctx, rotation.RotationQuery{Credential: credential, Unended: true})
		if err != nil || len(open) == 0 {
			return err
		}
		next, err := d.rotations.Pass(ctx, d.db.Now())
		if err != nil {
			return err
		}
		time.Sleep(min(max(0, time.Until(next)), 100*time.Millisecond))
	}
	return fmt.Errorf("a run of %s does not end", credential)
}

// fullChild rotates with a disk that is full from a point on.
func fullChild(text string) error {
	parts := strings.Split(text, "\n")
	url, keys, credential, at := parts[0], parts[1], parts[2], parts[3]
	signal.Ignore(syscall.SIGXFSZ)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	db, err := store.Open(ctx, url)
	if err != nil {
		return err
	}
	kek, err := secret.OpenOrCreateFile(keys)
	if err != nil {
		return err
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		return err
	}
	systems, err := rotation.NewSystems(ctx, rotation.SystemsConfig{DB: db, Sealer: sealer, Targets: targetKinds(), Stores: storeKinds(db, sealer)})
	if err != nil {
		return err
	}
	full := false
	runs, err := rotation.NewRotations(rotation.RotationsConfig{DB: db, Sealer: sealer, Systems: systems, Holder: "realtest", At: func(_ context.Context, p rotation.Point) {
		if p.String() == at && !full {
			full = true
			// No file grows any more, and none is large enough already.
			if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 0, Max: 0}); err != nil {
				panic(err)
			}
		}
	}})
	if err != nil {
		return err
	}
	d := &desk{db: db, rotations: runs}
	err = d.settle(ctx, credential, true)
	if err == nil {
		return fmt.Errorf("the rotation ended: the disk was not full (reached: %t)", full)
	}
	return fmt.Errorf("the disk was full: %w", err)
}

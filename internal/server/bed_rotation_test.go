package server

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/generated"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
	"github.com/rotunda-dev/rotunda/rotation"
	"github.com/rotunda-dev/rotunda/rotation/sender"
)

// outside is what a bed rotates: a system in memory that accepts and serves, and what
// goes wrong with it.
type outside struct {
	memory *providerstest.Memory
	plan   *providerstest.Plan
}

// refusedLogin is a login that the system in memory does not take.
const refusedLogin = "wrong-login-of-nobody"

// rotating completes a configuration with what rotates. Nothing is rotated but by the
// passes that a test calls.
func (b *bed) rotating(t testing.TB, cfg *Config, log *slog.Logger) {
	t.Helper()
	b.memory, b.plan = providerstest.NewMemory(providerstest.MemoryConfig{Now: b.clock.Now}), &providerstest.Plan{}
	target, shelf := b.memory.System().TargetKind(), b.memory.System().StoreKind()
	target.Settings = []providers.Setting{{Name: "address", Doc: "where it is", Pattern: `[a-z.]{1,64}`}}
	target.Login = []providers.Setting{{Name: "password", Doc: "of its administrator"}, {Name: "pin", Doc: "a second one", Pattern: `[0-9]{4}`}, {Name: "mode", Doc: "a third one", OneOf: []string{"a", "b"}}}
	shelf.Settings, shelf.Login = target.Settings, target.Login
	openTarget, openStore := target.Open, shelf.Open
	login := func(c providers.Config) error {
		if c.Login.Text("password") == refusedLogin {
			return fault.New(fault.ErrDenied, "login_refused", "%s at %q: the login is not accepted: give another one", c.Name, c.Settings["address"])
		}
		return nil
	}
	target.Open = func(ctx context.Context, c providers.Config) (providers.Target, error) {
		if err := login(c); err != nil {
			return nil, err
		}
		inner, err := openTarget(ctx, c)
		return providerstest.BrokenTarget(inner, b.plan), err
	}
	shelf.Open = func(ctx context.Context, c providers.Config) (providers.Store, error) {
		if err := login(c); err != nil {
			return nil, err
		}
		inner, err := openStore(ctx, c)
		return providerstest.BrokenStore(inner, b.plan), err
	}
	var shelves providers.StoreKind
	shelves, cfg.Secrets = b.shelves(t)
	var err error
	cfg.Systems, err = rotation.NewSystems(t.Context(), rotation.SystemsConfig{
		DB: b.db, Sealer: b.sealer, Targets: []providers.TargetKind{target, generated.Kind()}, Stores: []providers.StoreKind{shelf, shelves}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cfg.Systems.Close(); err != nil {
			t.Errorf("close the systems: %v", err)
		}
	})
	cfg.Rotations, err = rotation.NewRotations(rotation.RotationsConfig{
		DB: b.db, Sealer: b.sealer, Systems: cfg.Systems, Log: log, Observe: func(o rotation.EffectOutcome) { b.ObserveEffect(o) },
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Credentials, err = rotation.NewCredentials(rotation.CredentialsConfig{DB: b.db, Systems: cfg.Systems, Rotations: cfg.Rotations, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Incidents, err = rotation.NewIncidents(rotation.IncidentsConfig{DB: b.db, Credentials: cfg.Credentials, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	posts, err := sender.New(sender.Config{AllowPrivate: true, Now: b.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(posts.Close)
	cfg.Endpoints, err = rotation.NewEndpoints(rotation.EndpointsConfig{DB: b.db, Systems: cfg.Systems, Secrets: cfg.Keys, Sender: posts, Log: log})
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bed) stores(token string) v1connect.StoreServiceClient {
	return v1connect.NewStoreServiceClient(as(token, home), b.http.URL)
}

func (b *bed) targets(token string) v1connect.TargetServiceClient {
	return v1connect.NewTargetServiceClient(as(token, home), b.http.URL)
}

func (b *bed) credentials(token string) v1connect.CredentialServiceClient {
	return v1connect.NewCredentialServiceClient(as(token, home), b.http.URL)
}

func (b *bed) runs(token string) v1connect.RotationServiceClient {
	return v1connect.NewRotationServiceClient(as(token, home), b.http.URL)
}

func (b *bed) hooks(token string) v1connect.EndpointServiceClient {
	return v1connect.NewEndpointServiceClient(as(token, home), b.http.URL)
}

// reader makes a token that reads at paths of the built-in store.
func (b *bed) reader(t testing.TB, paths ...string) string {
	t.Helper()
	return b.token(t, apikeys.Create{Role: apikeys.Reader, Paths: paths})
}

// system makes a store and a target of the system in memory, both called "mem".
func (b *bed) system(t testing.TB) {
	t.Helper()
	for _, sort := range []rotation.Sort{rotation.TargetSort, rotation.StoreSort} {
		if _, err := b.Systems.Create(t.Context(), sort, "mem", rotation.SystemSpec{Kind: "memory", Settings: map[string]string{"address": "db.test"}}, store.Once{}); err != nil {
			t.Fatal(err)
		}
	}
}

// credential makes a credential of the system in memory, with its account.
func (b *bed) credential(t testing.TB, name string, change ...func(*rotation.Spec)) {
	t.Helper()
	b.memory.Account(name)
	spec := rotation.Spec{
		Target: "mem", Strategy: providers.Dual, Params: map[string]string{"account": name}, Stores: []rotation.Placement{{Store: "mem", Path: "kv/" + name}}, Grace: time.Hour,
	}
	for _, f := range change {
		f(&spec)
	}
	if _, err := b.Credentials.Create(t.Context(), name, spec, store.Once{}); err != nil {
		t.Fatal(err)
	}
}

// start begins a rotation and returns its id.
func (b *bed) start(t testing.TB, credential string) string {
	t.Helper()
	r, err := b.Rotations.Start(t.Context(), rotation.StartRequest{Credential: credential, Reason: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return r.ID
}

// bring passes, with the clock set to what is due next, until a rotation is at a step.
func (b *bed) bring(t testing.TB, id string, to rotation.Step) {
	t.Helper()
	var last *rotation.Rotation
	for range 300 {
		r, err := b.Rotations.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if last = r; r.Step == to {
			return
		}
		next, err := b.Rotations.Pass(t.Context(), b.clock.Now())
		if err != nil {
			t.Fatalf("pass: %v", err)
		}
		if next.After(b.clock.Now()) {
			b.clock.Set(next)
		}
	}
	t.Fatalf("rotation %s is at %s (%s: %s), want %s", id, last.Step, last.ErrorReason, last.Error, to)
}

// failing makes a credential whose rotation has failed, and returns the rotation's id.
// The target would take the value by now.
func (b *bed) failing(t testing.TB, name string) string {
	t.Helper()
	b.credential(t, name)
	b.bring(t, b.start(t, name), rotation.StepDone)
	id := b.start(t, name)
	b.memory.Policy(name, 2000)
	b.bring(t, id, rotation.StepFailed)
	b.memory.Policy(name, 0)
	return id
}

// kept puts a value into the built-in store, at a path.
func (b *bed) kept(t testing.TB, credential, path string) {
	t.Helper()
	if _, err := b.Systems.Get(t.Context(), rotation.StoreSort, "own"); err != nil {
		for sort, spec := range map[rotation.Sort]rotation.SystemSpec{rotation.StoreSort: {Kind: "builtin"}, rotation.TargetSort: {Kind: "generated"}} {
			if _, err := b.Systems.Create(t.Context(), sort, "own", spec, store.Once{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err := b.Credentials.Create(t.Context(), credential, rotation.Spec{Target: "own", Stores: []rotation.Placement{{Store: "own", Path: path}}}, store.Once{})
	if err != nil {
		t.Fatal(fmt.Errorf("credential %s: %w", credential, err))
	}
	b.bring(t, b.start(t, credential), rotation.StepDone)
}

package crashtest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/rotation"
)

// Kinds gives the kinds of systems that a bed is made of, in whatever process.
type Kinds func(ctx context.Context, o Opening) ([]providers.TargetKind, []providers.StoreKind, error)

// Opening is what a process has when it asks for the kinds.
type Opening struct {
	Env    map[string]string // of the bed
	DB     *store.DB
	Sealer *secret.Sealer
}

// childEnv holds the orders of a child.
const childEnv = "ROTUNDA_CRASHTEST_CHILD"

// orders say what a child does. It holds no secret but what the URL of a test database has.
type orders struct {
	Database   string
	Keys       string // the file of the key-encryption key
	Credential string
	Env        map[string]string
	Holder     string // empty: that of all children

	Recover bool // only go on with what is there; otherwise do that, and then rotate
	Kill    kill
}

// Main is TestMain of a package whose tests call Run.
//
//	func TestMain(m *testing.M) { crashtest.Main(m, kinds) }
func Main(m *testing.M, kinds Kinds) {
	text := os.Getenv(childEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var o orders
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		err = child(context.Background(), o, kinds)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	os.Exit(0)
}

// limit bounds a child; it takes far less.
const limit = time.Minute

func child(ctx context.Context, o orders, kinds Kinds) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	passed, counting := 0, o.Recover
	var last rotation.Point
	d, err := open(ctx, o, kinds, func(_ context.Context, p rotation.Point) {
		if !counting {
			return
		}
		if !p.After && p == last {
			return // it was tried again, or waited for a quota
		}
		last = p
		// Unbuffered, so that it is with the parent before the kill.
		_, _ = fmt.Println(p)
		if p.String() != o.Kill.Point {
			return
		}
		if passed++; passed == o.Kill.Nth {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // not one instruction more
		}
	})
	if err != nil {
		return err
	}
	if err := d.settle(ctx, o.Credential); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if !o.Recover {
		counting = true
		if _, err := d.rotations.Start(ctx, rotation.StartRequest{Credential: o.Credential, Reason: "crash drill"}); err != nil {
			return err
		}
		if err := d.settle(ctx, o.Credential); err != nil {
			return err
		}
	}
	return errors.Join(d.systems.Close(), d.db.Close())
}

// desk is rotation as one process has it.
type desk struct {
	db          *store.DB
	ahead       time.Duration // of the machine's clock
	sealer      *secret.Sealer
	systems     *rotation.Systems
	rotations   *rotation.Rotations
	credentials *rotation.Credentials
}

func open(ctx context.Context, o orders, kinds Kinds, at func(context.Context, rotation.Point)) (*desk, error) {
	db, err := store.Open(ctx, o.Database)
	if err != nil {
		return nil, err
	}
	kek, err := secret.OpenOrCreateFile(o.Keys)
	if err != nil {
		return nil, err
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		return nil, err
	}
	targets, stores, err := kinds(ctx, Opening{Env: o.Env, DB: db, Sealer: sealer})
	if err != nil {
		return nil, fmt.Errorf("the kinds of the bed: %w", err)
	}
	d := &desk{db: db, sealer: sealer}
	now := db.Now
	db.Now = func() time.Time { return now().Add(d.ahead) }
	if d.systems, err = rotation.NewSystems(ctx, rotation.SystemsConfig{DB: db, Sealer: sealer, Targets: targets, Stores: stores}); err != nil {
		return nil, err
	}
	// One name for all children, so that no time is lost with the lease of a dead one; that
	// another one takes over is a test of its own.
	d.rotations, err = rotation.NewRotations(rotation.RotationsConfig{
		DB: db, Sealer: sealer, Systems: d.systems, Holder: cmp.Or(o.Holder, "crashtest"), At: at, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return nil, err
	}
	d.credentials, err = rotation.NewCredentials(rotation.CredentialsConfig{DB: db, Systems: d.systems, Rotations: d.rotations})
	return d, err
}

// settle passes until no run of a credential is under way. It does not wait for what is due
// later, but sets its clock forward; by so little that targets can't tell.
func (d *desk) settle(ctx context.Context, credential string) error {
	for {
		list, _, err := d.rotations.List(ctx, rotation.RotationQuery{Credential: credential, Unended: true})
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		for _, r := range list {
			if r.Step == rotation.StepFailed {
				return fmt.Errorf("rotation %s failed at %s: %s: %s", r.ID, r.FailedStep, r.ErrorReason, r.Error)
			}
		}
		next, err := d.rotations.Pass(ctx, d.db.Now())
		if err != nil {
			return err
		}
		if wait := next.Sub(d.db.Now()); wait > 0 {
			if d.ahead += wait; d.ahead > limit {
				return fmt.Errorf("a run of %s does not end: it is at %s (%s)", credential, list[0].Step, list[0].Error)
			}
		}
	}
}

func keyFile(t testing.TB) string { return filepath.Join(t.TempDir(), "kek.json") }

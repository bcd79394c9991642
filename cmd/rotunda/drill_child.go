package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/rotation"
)

// childLimit bounds a process of a drill; it takes far less.
const childLimit = 2 * time.Minute

// newDrillChild is a process of a drill: it rotates the copy, tells each point that it passes,
// and kills itself at one.
func newDrillChild(c *cli) *cobra.Command {
	var o childOrders
	var dir string
	cmd := &cobra.Command{
		Use: "child", Hidden: true, Short: "A process of a drill", Args: arguments(), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `A process of a drill: it rotates the copy, says each point that it passes, and kills itself at one.
drill crash starts it.`,
		Example: "  rotunda drill child --dir DIR --kill 3",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), childLimit)
			defer cancel()
			return c.drillChild(ctx, &drill{c: c, dir: dir, name: "drill"}, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "folder of the drill")
	f.StringVar(&o.point, "point", "", "count only this point (default: all)")
	f.IntVar(&o.kill, "kill", 0, "die at the n-th; 0: never")
	f.BoolVar(&o.again, "recover", false, "only go on with what is there")
	return cmd
}

// childOrders are what a process of a drill does.
type childOrders struct {
	point string // empty: all points count
	kill  int
	again bool // only recover
}

func (c *cli) drillChild(ctx context.Context, d *drill, o childOrders) error {
	points, counting := 0, o.again
	at := func(_ context.Context, p rotation.Point) {
		if !counting {
			return
		}
		// Unbuffered, so that it is with the parent before the kill.
		_, _ = fmt.Fprintln(c.stdout, p)
		if o.point == "" || o.point == p.String() {
			points++
		} else {
			return
		}
		if points == o.kill {
			self, err := os.FindProcess(os.Getpid())
			if err == nil {
				_ = self.Kill()
			}
			select {} // not one instruction more
		}
	}
	return d.deskAt(ctx, at, func(ctx context.Context, k *desk) error {
		if err := k.settle(ctx, d.name); err != nil {
			return fmt.Errorf("recover: %w", err)
		}
		if o.again {
			return nil
		}
		counting = true
		if _, err := k.rotations.Start(ctx, rotation.StartRequest{Credential: d.name, Reason: "crash drill"}); err != nil {
			return err
		}
		return k.settle(ctx, d.name)
	})
}

// desk is rotation as one process has it.
type desk struct {
	db          *store.DB
	builtin     providers.StoreKind
	systems     *rotation.Systems
	rotations   *rotation.Rotations
	credentials *rotation.Credentials
}

// desk opens the scratch database for as long as f runs: no other process has it then.
func (d *drill) desk(ctx context.Context, f func(context.Context, *desk) error) error {
	return d.deskAt(ctx, nil, f)
}

func (d *drill) deskAt(ctx context.Context, at func(context.Context, rotation.Point), f func(context.Context, *desk) error) (err error) {
	db, err := store.Open(ctx, d.scratchDB())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.Migrate(ctx); err != nil {
		return err
	}
	kek, err := secret.OpenOrCreateFile(d.scratchKEK())
	if err != nil {
		return err
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		return err
	}
	k, err := openDesk(ctx, db, sealer, at, slog.New(slog.NewTextHandler(d.c.stderr, &slog.HandlerOptions{Level: slog.LevelError})), func(kind providers.TargetKind) providers.TargetKind { return kind }, func(kind providers.StoreKind) providers.StoreKind { return kind })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.systems.Close()) }()
	return f(ctx, k)
}

// openDesk opens rotation on a database, with each kind as the two functions make it.
func openDesk(ctx context.Context, db *store.DB, sealer *secret.Sealer, at func(context.Context, rotation.Point), log *slog.Logger,
	target func(providers.TargetKind) providers.TargetKind, place func(providers.StoreKind) providers.StoreKind,
) (*desk, error) {
	builtin, _ := openBuiltin(db, sealer)
	k := &desk{db: db, builtin: builtin}
	var err error
	cfg := rotation.SystemsConfig{DB: db, Sealer: sealer, Log: log, Stores: []providers.StoreKind{place(builtin)}}
	for _, kind := range targetKinds() {
		cfg.Targets = append(cfg.Targets, target(kind))
	}
	for _, kind := range storeKinds() {
		cfg.Stores = append(cfg.Stores, place(kind))
	}
	if k.systems, err = rotation.NewSystems(ctx, cfg); err != nil {
		return nil, err
	}
	// One name for all processes of a drill, so that no time is lost with the lease of a dead one.
	k.rotations, err = rotation.NewRotations(rotation.RotationsConfig{DB: db, Sealer: sealer, Systems: k.systems, Holder: "drill", At: at, Log: log})
	if err != nil {
		return nil, err
	}
	k.credentials, err = rotation.NewCredentials(rotation.CredentialsConfig{DB: db, Systems: k.systems, Rotations: k.rotations, Log: log})
	return k, err
}

// settle passes until no rotation of a credential is under way.
func (k *desk) settle(ctx context.Context, credential string) error {
	for {
		list, _, err := k.rotations.List(ctx, rotation.RotationQuery{Credential: credential, Unended: true})
		if err != nil || len(list) == 0 {
			return err
		}
		for _, r := range list {
			if r.Step == rotation.StepFailed {
				return fmt.Errorf("the rotation failed at %s: %s: %s", r.FailedStep, r.ErrorReason, r.Error)
			}
		}
		next, err := k.rotations.Pass(ctx, k.db.Now())
		if err != nil {
			return err
		}
		if wait := next.Sub(k.db.Now()); wait > 0 {
			select {
			case <-ctx.Done():
				return fmt.Errorf("the rotation does not end: it is at %s (%s): %w", list[0].Step, list[0].Error, ctx.Err())
			case <-time.After(wait):
			}
		}
	}
}

// drillModel is the credential of which a drill makes a copy.
type drillModel struct {
	name       string
	spec       rotation.Spec
	targetKind providers.TargetKind
	target     providers.Config
	stores     map[string]storeModel
}

type storeModel struct {
	kind   providers.StoreKind
	config providers.Config
}

// drillModel reads a credential with the logins of its target and stores from the server's
// database. A database of SQLite belongs to the server, so a copy of it is read, as it is at
// this moment.
func (c *cli) drillModel(ctx context.Context, flags *drillFlags, dir, name string) (m *drillModel, err error) {
	log := slog.New(slog.NewTextHandler(c.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	data := dataDir(firstOf(flags.dataDir, c.env("ROTUNDA_DATA_DIR"), string(defaultDataDir)))
	address, err := c.databaseURL(serveConfig{databaseURL: flags.databaseURL}, data, log)
	if err != nil {
		return nil, err
	}
	if path, ok := strings.CutPrefix(address, "sqlite:"); ok {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("the server's database: %w: give --data-dir or --database-url as to serve", err)
		}
		snapshot := filepath.Join(dir, "snapshot.db")
		if err := copySQLite(ctx, path, snapshot); err != nil {
			return nil, fmt.Errorf("copy the server's database: %w", err)
		}
		address = "sqlite:" + snapshot
		defer func() {
			for _, end := range []string{"", "-wal", "-shm", ".lock"} {
				if gone := os.Remove(snapshot + end); gone != nil && !missing(gone) {
					err = errors.Join(err, gone)
				}
			}
		}()
	}
	kek, err := secret.OpenFile(firstOf(flags.kekFile, data.kek()))
	if err != nil {
		return nil, fmt.Errorf("the server's key file: %w", err)
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		return nil, err
	}
	db, err := store.Open(ctx, address)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	m = &drillModel{name: name, stores: map[string]storeModel{}}
	return m, m.read(ctx, db, sealer, log)
}

// read opens the credential's target and stores, and keeps what they were opened with: that is
// how their logins are had without a way around the rules of package rotation.
func (m *drillModel) read(ctx context.Context, db *store.DB, sealer *secret.Sealer, log *slog.Logger) (err error) {
	asking := ""
	k, err := openDesk(ctx, db, sealer, nil, log, func(kind providers.TargetKind) providers.TargetKind {
		open := kind.Open
		kind.Open = func(ctx context.Context, cfg providers.Config) (providers.Target, error) {
			m.target = cfg
			return open(ctx, cfg)
		}
		return kind
	}, func(kind providers.StoreKind) providers.StoreKind {
		open := kind.Open
		kind.Open = func(ctx context.Context, cfg providers.Config) (providers.Store, error) {
			m.stores[asking] = storeModel{kind: m.stores[asking].kind, config: cfg}
			return open(ctx, cfg)
		}
		return kind
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.systems.Close()) }()
	cred, err := k.credentials.Get(ctx, m.name)
	if err != nil {
		return err
	}
	m.spec = cred.Spec
	target, err := k.systems.Get(ctx, rotation.TargetSort, m.spec.Target)
	if err != nil {
		return err
	}
	for _, kind := range targetKinds() {
		if kind.Name == target.Kind {
			m.targetKind = kind
		}
	}
	if m.targetKind.Open == nil {
		return fmt.Errorf("target %s is of type %s, which this program does not know", m.spec.Target, target.Kind)
	}
	if err := m.test(ctx, k, rotation.TargetSort, m.spec.Target); err != nil {
		return err
	}
	if m.spec.Params, err = providers.Complete("params", m.targetKind.Params, m.spec.Params); err != nil {
		return err
	}
	for _, p := range m.spec.Stores {
		asking = p.Store
		s, err := k.systems.Get(ctx, rotation.StoreSort, p.Store)
		if err != nil {
			return err
		}
		for _, kind := range append(storeKinds(), k.builtin) {
			if kind.Name == s.Kind {
				m.stores[p.Store] = storeModel{kind: kind}
			}
		}
		if err := m.test(ctx, k, rotation.StoreSort, p.Store); err != nil {
			return err
		}
	}
	return nil
}

func (m *drillModel) test(ctx context.Context, k *desk, sort rotation.Sort, name string) error {
	found, err := k.systems.Test(ctx, sort, name, "")
	if err != nil {
		return err
	}
	for _, f := range found {
		if !f.OK && !f.Warning {
			return fmt.Errorf("%s %s: %s: %s", sort, name, f.Detail, f.Remedy)
		}
	}
	return nil
}

// copySQLite copies a database of SQLite that another process has open.
func copySQLite(ctx context.Context, from, to string) (err error) {
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: from}).EscapedPath(), RawQuery: "mode=ro&_pragma=busy_timeout(5000)"}).String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, to); err != nil {
		return err
	}
	return os.Chmod(to, 0o600)
}

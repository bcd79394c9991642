package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/rotation"
)

// Bounds of a drill.
const (
	drillLimit   = 30 * time.Minute
	cleanupLimit = 2 * time.Minute
	drillGrace   = 200 * time.Millisecond

	// A folder that is older is of a drill that was killed.
	drillLeft   = 2 * time.Hour
	drillFolder = "rotunda-drill-"
)

func newDrill(c *cli) *cobra.Command {
	cmd := newGroup("drill", "Prove on a throw-away copy that no crash loses a credential", newDrillCrash(c), newDrillChild(c))
	return cmd
}

// drillFlags say where the server's database is.
type drillFlags struct {
	dataDir, databaseURL, kekFile string
	quick                         bool
}

func newDrillCrash(c *cli) *cobra.Command {
	var d drillFlags
	cmd := &cobra.Command{
		Use:   "crash NAME [--data-dir DIR | --database-url URL] [flags]",
		Short: "Kill rotations of a copy at every effect, and check that nothing is lost",
		Long: `Make a throw-away copy of a credential, with accounts of its own at the real target and paths of
its own in the real stores, and rotate it again and again in processes that kill themselves
(SIGKILL) before and after each effect, and again while they recover. After each kill: is what
consumers read accepted by the target, or at least a value that is sealed in the database? After
each recovery: is there one value, is it read and accepted, is the old one refused, has each
start in the trail one end? The table is printed, and all that was made is removed. Exits with 1
if anything was lost.

The logins of target and stores are needed, and a server gives them to nobody. So this runs on the
server's machine, with its database and its key file, which are only read; the server may run on.
What is rotated is in a database of its own, in a temporary folder.`,
		Example: `  rotunda drill crash orders-db
  ROTUNDA_DATABASE_URL='postgres://rotunda@db/rotunda?sslmode=verify-full' rotunda drill crash orders-db --kek-file /etc/rotunda/kek.json`,
		Args:                  arguments("NAME"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.drillCrash(cmd.Context(), args[0], &d)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	c.output = choice{allowed: []string{"table", "json", "yaml"}, value: "table"}
	f.VarP(&c.output, "output", "o", "form of the result")
	f.StringVar(&d.dataDir, "data-dir", "", "the server's data directory (ROTUNDA_DATA_DIR) (default ./"+string(defaultDataDir)+")")
	f.StringVar(&d.databaseURL, "database-url", "", "the server's database, if it is not in the data directory (ROTUNDA_DATABASE_URL)")
	f.StringVar(&d.kekFile, "kek-file", "", "the server's key file (default: kek.json in the data directory)")
	f.BoolVar(&d.quick, "quick", false, "leave out the kills during recovery")
	c.complete(cmd, "output", c.output.allowed...)
	_ = cmd.MarkFlagDirname("data-dir")
	return cmd
}

// drillRow is one line of the table.
type drillRow struct {
	Point    string `json:"point"`           // where the process was killed
	Again    string `json:"again,omitempty"` // where those were that recovered
	Serving  string `json:"serving"`         // what consumers had after the last kill
	Recovery string `json:"recovery"`
}

// drill is one in progress.
type drill struct {
	c      *cli
	dir    string // holds the scratch database and its key file
	quick  bool
	suffix string

	name   string // of the copy
	kind   string // of the target
	change providers.Change
	target providers.Target
	stores map[string]providers.Store // by path
	paths  []rotation.Placement

	before   map[string]providers.Fields // what consumers of a path read when the last rotation began
	old      providers.Held              // the value of then
	rows     []drillRow
	problems []string
}

func (c *cli) drillCrash(ctx context.Context, name string, flags *drillFlags) (err error) {
	ctx, cancel := context.WithTimeout(ctx, drillLimit)
	defer cancel()
	c.sweepDrills()
	dir, err := os.MkdirTemp("", drillFolder) // mode 0700
	if err != nil {
		return fmt.Errorf("make a folder for the drill: %w", err)
	}
	// The logins are in there, sealed under a key that is there too.
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	model, err := c.drillModel(ctx, flags, dir, name)
	if err != nil {
		return err
	}
	d := &drill{c: c, dir: dir, quick: flags.quick, suffix: "drill_" + strings.ToLower(rand.Text()[:8]), stores: map[string]providers.Store{}}
	cleanup, err := d.prepare(ctx, model)
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
		defer cancel()
		err = errors.Join(err, cleanup(last))
	}()
	if err != nil {
		return err
	}
	if err := d.run(ctx); err != nil {
		return err
	}
	if err := d.print(); err != nil {
		return err
	}
	if len(d.problems) > 0 {
		return fmt.Errorf("the promise does not hold for %s:\n%s", name, strings.Join(d.problems, "\n"))
	}
	return nil
}

// sweepDrills removes what drills left that were killed themselves: there are logins in it.
func (c *cli) sweepDrills() {
	found, err := filepath.Glob(filepath.Join(os.TempDir(), drillFolder+"*"))
	if err != nil {
		return // the folder for temporary files has a name that is a malformed pattern
	}
	for _, dir := range found {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || c.now().Sub(info.ModTime()) < drillLeft {
			continue
		}
		if uid, known := ownerOf(info); known && uid != os.Geteuid() {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			c.complain("a drill that was killed left logins in %s, which can't be removed: remove it: %v", dir, err)
			continue
		}
		c.complain("a drill that was killed left logins in %s, which is removed: look for accounts and paths with drill in their names at its target and stores, too", dir)
	}
}

// prepare makes the copy. The returned function removes it, whatever came of it.
func (d *drill) prepare(ctx context.Context, m *drillModel) (cleanup func(context.Context) error, err error) {
	var undo []func(context.Context) error
	cleanup = func(ctx context.Context) error {
		var errs []error
		for _, f := range slices.Backward(undo) {
			errs = append(errs, f(ctx))
		}
		return errors.Join(errs...)
	}
	kind := m.targetKind
	if kind.Traits.Valueless {
		return cleanup, fmt.Errorf("no value comes out of a target of type %s, so there is none that a crash could lose", kind.Name)
	}
	d.target, err = kind.Open(ctx, m.target)
	if err != nil {
		return cleanup, fmt.Errorf("open target %s: %w", m.spec.Target, err)
	}
	undo = append(undo, func(context.Context) error { return d.target.Close() })
	d.name, d.kind = "drill", kind.Name
	d.change = providers.Change{Credential: d.name, Strategy: m.spec.Strategy, Params: m.spec.Params, Static: m.spec.Fields, At: d.c.now()}
	if d.change.Strategy == "" {
		d.change.Strategy = kind.Traits.Strategies[0]
	}
	params := m.spec.Params
	if !scratchless[kind.Name] {
		scratcher, ok := d.target.(providers.Scratcher)
		if !ok {
			return cleanup, fmt.Errorf("a target of type %s can't make a throw-away account, so there is no drill for %s: its crash table is in docs/credentials.md", kind.Name, m.name)
		}
		original := d.change
		undo = append(undo, func(ctx context.Context) error {
			if err := scratcher.Unscratch(ctx, original, d.suffix); err != nil {
				return fmt.Errorf("remove the throw-away account (%s) from target %s: %w", d.suffix, m.spec.Target, err)
			}
			return nil
		})
		if params, err = scratcher.Scratch(ctx, original, d.suffix); err != nil {
			return cleanup, fmt.Errorf("make a throw-away account at target %s: %w", m.spec.Target, err)
		}
	}
	d.change.Params = params

	spec := rotation.Spec{Target: m.spec.Target, Strategy: d.change.Strategy, Params: params, Fields: m.spec.Fields, Probe: -1}
	if d.change.Strategy != providers.Replace {
		spec.Grace = drillGrace
	}
	for _, p := range m.spec.Stores {
		scratch := rotation.Placement{Store: p.Store, Path: p.Path + "-" + strings.ReplaceAll(d.suffix, "_", "-")}
		spec.Stores = append(spec.Stores, scratch)
		if m.stores[p.Store].kind.Name == builtinKind {
			continue // in the scratch database, which goes as a whole
		}
		st, err := m.stores[p.Store].kind.Open(ctx, m.stores[p.Store].config)
		if err != nil {
			return cleanup, fmt.Errorf("open store %s: %w", p.Store, err)
		}
		d.stores[p.Store] = st
		undo = append(undo, func(ctx context.Context) error { return errors.Join(d.erase(ctx, st, scratch), st.Close()) })
	}
	d.paths = spec.Stores
	return cleanup, d.desk(ctx, func(ctx context.Context, k *desk) error {
		target := rotation.SystemSpec{Kind: kind.Name, Settings: m.target.Settings, Login: m.target.Login}
		if _, err := k.systems.Create(ctx, rotation.TargetSort, m.spec.Target, target, store.Once{}); err != nil {
			return err
		}
		for name, s := range m.stores {
			if _, err := k.systems.Create(ctx, rotation.StoreSort, name, rotation.SystemSpec{Kind: s.kind.Name, Settings: s.config.Settings, Login: s.config.Login}, store.Once{}); err != nil {
				return err
			}
		}
		_, err := k.credentials.Create(ctx, d.name, spec, store.Once{})
		return err
	})
}

// scratchless are the kinds of targets whose copy needs nothing at the target.
var scratchless = map[string]bool{"generated": true}

// erase removes a path of the drill.
func (d *drill) erase(ctx context.Context, st providers.Store, p rotation.Placement) error {
	e, ok := st.(providers.Eraser)
	if !ok {
		d.c.complain("store %s can't remove %s by itself: delete it there; what it holds is accepted by nobody", p.Store, p.Path)
		return nil
	}
	if err := e.Erase(ctx, p.Path); err != nil {
		return fmt.Errorf("remove %s from store %s: %w", p.Path, p.Store, err)
	}
	return nil
}

func (d *drill) scratchDB() string  { return "sqlite:" + filepath.Join(d.dir, "scratch.db") }
func (d *drill) scratchKEK() string { return filepath.Join(d.dir, "scratch.kek") }

func (d *drill) print() error {
	if d.c.output.value != "table" {
		raw, err := json.Marshal(map[string]any{"kills": d.rows, "lost": d.problems})
		if err != nil {
			return err
		}
		return d.c.printJSON(raw, false)
	}
	p := d.c.newPage()
	rows := make([][]string, len(d.rows))
	kills := 0
	for i, r := range d.rows {
		rows[i] = []string{r.Point, firstOf(r.Again, "–"), r.Serving, r.Recovery}
		kills++
		if r.Again != "" {
			kills += strings.Count(r.Again, ", then ") + 1
		}
	}
	p.table([]string{"KILLED", "KILLED AGAIN, RECOVERING", "CONSUMERS READ", "THE NEXT PASS"}, rows)
	p.line("")
	if len(d.problems) == 0 {
		p.line("%d kills: no credential was lost, and all that was made for this is removed", kills)
	}
	return p.flush()
}

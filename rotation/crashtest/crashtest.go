package crashtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/rotation"
)

// System is a store or a target, as it is configured.
type System struct {
	Kind     string
	Settings map[string]string
	Login    providers.Fields
}

// Bed is a credential on real systems. Nil hooks say that the kind has no such thing.
type Bed struct {
	Name  string
	Kinds Kinds
	Env   map[string]string // for Kinds

	// Database gives the URL of a migrated database. Default: a new SQLite file.
	Database func(t testing.TB) string

	Target   System
	Store    System
	Paths    []string // in the store; none where no value comes out, and then Keys is needed
	Strategy providers.Strategy
	Params   map[string]string
	Fields   map[string]string // static ones

	// Grace of the credential. Default: two seconds; with replace none. Children don't wait: they
	// set their clock forward.
	Grace time.Duration

	// Accepts logs in with the value, as a consumer does it, by the target's own client.
	Accepts func(t testing.TB, f providers.Fields) bool

	// Serves is what consumers of a path read, by the store's own client; nil: nothing. The
	// opening is for a store that is in Rotunda's own database.
	Serves func(t testing.TB, o Opening, path string) providers.Fields

	// Keys are the ids of all values that the target holds, where they have ids.
	Keys func(t testing.TB) []string

	// Staged is the staged copy that the store holds for a path; nil: none.
	Staged func(t testing.TB, path string) providers.Fields

	// Kept is the value that the target itself gives out again: of one that makes the value
	// and knows only one, it is where the value is until it is sealed.
	Kept func(t testing.TB) providers.Fields

	// Nobody: there is no target that could refuse the old value.
	Nobody bool

	// Quick leaves out the kills during recovery.
	Quick bool
}

// Row is one line of a table.
type Row struct {
	Bed   string
	Point string // where the first process was killed
	Again string // where those were that recovered; empty: none was

	Serving  string // after the (last) kill: "accepted", or "sealed value accepted"
	Recovery string // "rotated"
}

// Table is the outcome of all kills of the beds.
type Table []Row

// Markdown is the table for the docs: one line per point, one column per bed.
func (t Table) Markdown() string {
	var beds, points []string
	cells := map[[2]string]string{}
	for _, r := range t {
		if !slices.Contains(beds, r.Bed) {
			beds = append(beds, r.Bed)
		}
		if r.Again != "" {
			r.Point += ", then " + r.Again
		}
		if !slices.Contains(points, r.Point) {
			points = append(points, r.Point)
		}
		cells[[2]string{r.Bed, r.Point}] = r.Serving + "; " + r.Recovery
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| killed | %s |\n|%s\n", strings.Join(beds, " | "), strings.Repeat("---|", len(beds)+1))
	for _, p := range points {
		fmt.Fprintf(&b, "| %s |", p)
		for _, bed := range beds {
			cell := cells[[2]string{bed, p}]
			if cell == "" {
				cell = "–"
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Summary is the outcome by bed: how often it was killed, and what was found.
func (t Table) Summary() string {
	type sum struct{ kills, accepted, sealed, kept, none, lost int }
	var beds []string
	sums := map[string]*sum{}
	for _, r := range t {
		s := sums[r.Bed]
		if s == nil {
			beds = append(beds, r.Bed)
			s = &sum{}
			sums[r.Bed] = s
		}
		s.kills++
		if r.Again != "" {
			s.kills += strings.Count(r.Again, ", then ") + 1
		}
		switch r.Serving {
		case "accepted":
			s.accepted++
		case "sealed value accepted":
			s.sealed++
		case "kept by the target":
			s.kept++
		case "no value":
			s.none++
		default:
			s.lost++
		}
	}
	var b strings.Builder
	b.WriteString("| target, strategy, store | kills | the store's value was accepted | a sealed value was | the target keeps it | no value comes out | lost |\n|---|---|---|---|---|---|---|\n")
	for _, name := range beds {
		s := sums[name]
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d |\n", name, s.kills, s.accepted, s.sealed, s.kept, s.none, s.lost)
	}
	return b.String()
}

// bench is a bed in use.
type bench struct {
	Bed
	t      testing.TB
	orders orders
	before []providers.Fields // what consumers read when the last rotation began
	desk   *desk              // nil, but within with
}

// Run kills processes at each point of the bed's protocol. It fails the test where something
// was lost, and returns what it saw.
func Run(t *testing.T, bed Bed) Table {
	t.Helper()
	b := &bench{Bed: bed, t: t}
	b.prepare()
	var points []kill
	for range 2 { // the first one has no old value
		points = fixed(b.child(false, kill{}).points)
		b.recovered("no point")
	}
	if len(points) == 0 {
		t.Fatal("no point was passed")
	}
	var table Table
	row := func(point, again, serving string) {
		table = append(table, Row{Bed: bed.Name, Point: point, Again: again, Serving: serving, Recovery: "rotated"})
	}
	for i, at := range points {
		b.note()
		if l := b.child(false, at); l.at == "" {
			t.Fatalf("%s: the process passed %q, and was not killed at %s", bed.Name, l.points, at)
		}
		serving := b.crashed(at.String())
		b.child(true, kill{})
		b.recovered(at.String())
		row(at.String(), "", serving)
		if bed.Quick {
			continue
		}
		b.note()
		b.child(false, at)
		where := []string{}
		for _, again := range []kill{at, points[min(i+2, len(points)-1)]} {
			again.Nth = 1
			if b.child(true, again).at == "" {
				break // it was done before
			}
			where = append(where, again.String())
			serving = b.crashed(at.String() + ", then " + strings.Join(where, ", then "))
		}
		b.child(true, kill{})
		b.recovered(at.String() + ", then " + strings.Join(where, ", then "))
		row(at.String(), strings.Join(where, ", then "), serving)
	}
	t.Logf("%s: %d points\n%s", bed.Name, len(points), table.Markdown())
	return table
}

func (b *bench) prepare() {
	t := b.t
	t.Helper()
	if b.Database == nil {
		b.Database = storetest.SQLiteURL
	}
	if b.Grace == 0 && b.Strategy != providers.Replace {
		b.Grace = 2 * time.Second
	}
	b.orders = orders{Database: b.Database(t), Keys: keyFile(t), Credential: "drill", Env: b.Env}
	b.with(func(ctx context.Context, d *desk) error {
		for sort, s := range map[rotation.Sort]System{rotation.TargetSort: b.Target, rotation.StoreSort: b.Store} {
			if s.Kind == "" {
				continue
			}
			if _, err := d.systems.Create(ctx, sort, "bed", rotation.SystemSpec{Kind: s.Kind, Settings: s.Settings, Login: s.Login}, store.Once{}); err != nil {
				return err
			}
		}
		spec := rotation.Spec{Target: "bed", Strategy: b.Strategy, Params: b.Params, Fields: b.Fields, Grace: b.Grace, Probe: -1}
		for _, path := range b.Paths {
			spec.Stores = append(spec.Stores, rotation.Placement{Store: "bed", Path: path})
		}
		_, err := d.credentials.Create(ctx, b.orders.Credential, spec, store.Once{})
		return err
	})
}

// with opens the database in this process: no child lives.
func (b *bench) with(f func(ctx context.Context, d *desk) error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), limit)
	defer cancel()
	d, err := open(ctx, b.orders, b.Kinds, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	b.desk = d
	err = f(ctx, d)
	b.desk = nil
	if err := errors.Join(err, d.systems.Close(), d.db.Close()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) serves(path string) (f providers.Fields) {
	b.t.Helper()
	if b.desk != nil {
		return b.Serves(b.t, Opening{Env: b.Env, DB: b.desk.db, Sealer: b.desk.sealer}, path)
	}
	b.with(func(context.Context, *desk) error {
		f = b.serves(path) //nolint:contextcheck // the test has the context
		return nil
	})
	return f
}

// kill is a point, and which time that it is passed; no point: never.
type kill struct {
	Point string
	Nth   int
}

func (k kill) String() string {
	if k.Nth > 1 {
		return fmt.Sprintf("%s (%d)", k.Point, k.Nth)
	}
	return k.Point
}

// fixed are the points that every such rotation passes. How often it looks for use of the
// old value (E6) depends on how long the rest took.
func fixed(points []string) (list []kill) {
	seen := map[string]int{}
	for _, p := range points {
		seen[p]++
		if seen[p] == 1 || !strings.HasPrefix(p, "E6") {
			list = append(list, kill{p, seen[p]})
		}
	}
	return list
}

// life is what became of a child.
type life struct {
	points []string
	at     string // where it was killed; empty: it came to its end
}

func (b *bench) child(again bool, at kill) life {
	t := b.t
	t.Helper()
	o := b.orders
	o.Recover, o.Kill = again, at
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit+10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	l := life{points: strings.Split(strings.TrimSpace(string(out)), "\n")}
	if len(out) == 0 {
		l.points = nil
	}
	exit, dead := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return l
	case dead && exit.Sys().(syscall.WaitStatus).Signaled() && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL && len(l.points) > 0 && l.points[len(l.points)-1] == at.Point:
		l.at = at.Point
		return l
	}
	t.Fatalf("%s: a child (recover %t, kill at %q) ended with %v after %q: %s", b.Name, again, at, err, l.points, stderr.String())
	return l
}

// note remembers what consumers read.
func (b *bench) note() {
	b.before = nil
	for _, path := range b.Paths {
		b.before = append(b.before, b.serves(path))
	}
}

// crashed is the invariant after a kill.
func (b *bench) crashed(where string) (serving string) {
	t := b.t
	t.Helper()
	if len(b.Paths) == 0 {
		return "no value"
	}
	var sealed []providers.Held
	b.with(func(ctx context.Context, d *desk) (err error) {
		sealed, err = d.rotations.Values(ctx, b.orders.Credential)
		return err
	})
	ours := false
	for _, h := range sealed {
		ours = ours || h.Fields != nil && b.Accepts(t, h.Fields)
	}
	kept := b.Kept != nil && b.Accepts(t, b.Kept(t))
	serving = "accepted"
	for _, path := range b.Paths {
		f := b.serves(path)
		switch {
		case f != nil && b.Accepts(t, f):
		case ours && b.Strategy == providers.Replace:
			serving = "sealed value accepted"
		case kept:
			serving = "kept by the target"
		default:
			t.Errorf("%s: killed at %s: consumers of %s read a value that the target does not accept (one that is sealed is: %t)", b.Name, where, path, ours)
			serving = "LOST"
		}
	}
	if !ours && !kept {
		t.Errorf("%s: killed at %s: no sealed value is accepted", b.Name, where)
	}
	return serving
}

// recovered is what must hold after the pass that follows.
func (b *bench) recovered(where string) {
	t := b.t
	t.Helper()
	fail := func(format string, args ...any) {
		t.Errorf("%s: killed at %s, and recovered: %s", b.Name, where, fmt.Sprintf(format, args...))
	}
	b.with(func(ctx context.Context, d *desk) error {
		values, err := d.rotations.Values(ctx, b.orders.Credential)
		if err != nil {
			return err
		}
		if len(values) != 1 {
			fail("%d values are on record, want 1", len(values))
			return nil
		}
		for i, path := range b.Paths {
			f := b.serves(path) //nolint:contextcheck // the test has the context
			switch {
			case !f.Equal(values[0].Fields):
				fail("consumers of %s do not read the current value", path)
			case !b.Accepts(t, f):
				fail("the value at %s is not accepted", path)
			}
			if b.before != nil && b.before[i] != nil {
				if f.Equal(b.before[i]) {
					fail("consumers of %s read the old value", path)
				}
				if !b.Nobody && b.Accepts(t, b.before[i]) {
					fail("the old value is accepted")
				}
			}
			if b.Staged != nil && b.Staged(t, path) != nil {
				fail("a staged copy is left at %s", path)
			}
		}
		if b.Keys != nil {
			for _, id := range b.Keys(t) {
				if id != values[0].ID {
					fail("the target holds %q, which is not in the records", id)
				}
			}
		}
		return b.trail(ctx, d, fail)
	})
}

// trail checks that each start has one end.
func (b *bench) trail(ctx context.Context, d *desk, fail func(string, ...any)) error {
	open, err := audit.OpenIntents(ctx, d.db, d.db.Now().Add(time.Hour), 0)
	if err != nil {
		return err
	}
	for _, e := range open {
		fail("%s began and has no end", e.Action)
	}
	ends := map[string]int{}
	runs := 0
	for q := (audit.Query{Resource: "credentials/" + b.orders.Credential + "/", Limit: 1000}); ; {
		list, next, err := audit.List(ctx, d.db, q)
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.Intent != "" {
				ends[e.Intent]++
			}
			if e.Action == "rotation.run" && e.Outcome == audit.Started {
				runs++
			}
		}
		if next == "" {
			break
		}
		q.Page = next
	}
	for intent, n := range ends {
		if n != 1 {
			fail("the start %s has %d ends", intent, n)
		}
	}
	list, _, err := d.rotations.List(ctx, rotation.RotationQuery{Credential: b.orders.Credential, Limit: 1000})
	if err != nil {
		return err
	}
	if len(list) != runs {
		fail("%d runs, and %d starts in the trail", len(list), runs)
	}
	for _, r := range list {
		if r.Outcome != rotation.Rotated {
			fail("run %s ended with %q", r.ID, r.Outcome)
		}
	}
	return nil
}

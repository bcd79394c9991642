package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/rotation"
)

// settleLimit is how long a target may take to accept a value, or to refuse one.
const settleLimit = 30 * time.Second

// run kills processes at each point of the protocol.
func (d *drill) run(ctx context.Context) error {
	var points []string
	for range 2 { // the first rotation has no old value
		l, err := d.child(ctx, childOrders{})
		if err != nil {
			return err
		}
		points = l.points
		if err := d.recovered(ctx, "no point"); err != nil {
			return err
		}
	}
	if len(points) == 0 {
		return errors.New("the rotation of the copy had no effect at all")
	}
	bar := d.c.newStepBar()
	defer bar.clear()
	seen := map[string]int{}
	for i, point := range points {
		bar.write(i, len(points), "killing", point)
		name := point
		if seen[point]++; seen[point] > 1 { // a credential with two stores passes E4 twice
			name = fmt.Sprintf("%s (%d)", point, seen[point])
		}
		o := childOrders{point: point, kill: seen[point]}
		if err := d.kill(ctx, o, name); err != nil {
			return err
		}
		if d.quick {
			continue
		}
		if err := d.killTwice(ctx, o, name); err != nil {
			return err
		}
	}
	return nil
}

// kill kills one process, and lets the next one recover.
func (d *drill) kill(ctx context.Context, o childOrders, name string) error {
	if err := d.note(ctx); err != nil {
		return err
	}
	l, err := d.child(ctx, o)
	if err != nil {
		return err
	}
	if l.at == "" {
		// How often a target is asked depends on time: this time it was less.
		return d.recovered(ctx, name)
	}
	serving, err := d.crashed(ctx, name)
	if err != nil {
		return err
	}
	if _, err := d.child(ctx, childOrders{again: true}); err != nil {
		return err
	}
	return d.ended(ctx, name, "", serving)
}

// killTwice also kills those that recover, before and after an effect of theirs.
func (d *drill) killTwice(ctx context.Context, o childOrders, name string) error {
	if err := d.note(ctx); err != nil {
		return err
	}
	if _, err := d.child(ctx, o); err != nil {
		return err
	}
	serving, where := "", []string{}
	for _, m := range []int{1, 3} {
		l, err := d.child(ctx, childOrders{kill: m, again: true})
		if err != nil {
			return err
		}
		if l.at == "" {
			break // it was done before
		}
		where = append(where, l.at)
		if serving, err = d.crashed(ctx, name+", then "+strings.Join(where, ", then ")); err != nil {
			return err
		}
	}
	if _, err := d.child(ctx, childOrders{again: true}); err != nil {
		return err
	}
	if len(where) == 0 {
		return nil
	}
	return d.ended(ctx, name, strings.Join(where, ", then "), serving)
}

// ended checks what the recovery left, and adds a row to the table.
func (d *drill) ended(ctx context.Context, name, again, serving string) error {
	problems := len(d.problems)
	where := name
	if again != "" {
		where += ", then " + again
	}
	if err := d.recovered(ctx, where); err != nil {
		return err
	}
	recovery := "rotated"
	if len(d.problems) > problems {
		recovery = "FAILED"
	}
	d.rows = append(d.rows, drillRow{Point: name, Again: again, Serving: serving, Recovery: recovery})
	return nil
}

func (d *drill) problem(where, format string, args ...any) {
	d.problems = append(d.problems, "  killed at "+where+": "+fmt.Sprintf(format, args...))
}

// life is what became of a child.
type life struct {
	points []string
	at     string // where it was killed; empty: it came to its end
}

// child runs a process that rotates the copy, or recovers it, and kills itself where o says.
func (d *drill) child(ctx context.Context, o childOrders) (life, error) {
	self, err := os.Executable()
	if err != nil {
		return life{}, fmt.Errorf("find this program: %w", err)
	}
	args := []string{"drill", "child", "--dir", d.dir, "--kill", fmt.Sprint(o.kill), "--point", o.point}
	if o.again {
		args = append(args, "--recover")
	}
	cmd := exec.CommandContext(ctx, self, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	l := life{points: strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })}
	if err == nil {
		return l, nil
	}
	exit, dead := errors.AsType[*exec.ExitError](err)
	if dead && o.kill > 0 && len(l.points) > 0 && wasKilled(exit.ProcessState) {
		l.at = l.points[len(l.points)-1]
		return l, nil
	}
	return l, fmt.Errorf("a process of the drill (recover %t, kill at %q %d) ended with %w after %q: %s", o.again, o.point, o.kill, err, l.points, strings.TrimSpace(stderr.String()))
}

// serves is what consumers of a path read.
func (d *drill) serves(ctx context.Context, k *desk, p rotation.Placement) (providers.Fields, error) {
	st := d.stores[p.Store]
	if st == nil { // the built-in store of the scratch database
		var err error
		if st, err = k.builtin.Open(ctx, providers.Config{Name: p.Store}); err != nil {
			return nil, err
		}
		defer st.Close() //nolint:errcheck // it holds nothing of its own
	}
	got, err := st.Read(ctx, p.Path)
	if err != nil {
		return nil, fmt.Errorf("read %s from store %s: %w", p.Path, p.Store, err)
	}
	return got.Fields, nil
}

// note remembers what consumers read.
func (d *drill) note(ctx context.Context) error {
	return d.desk(ctx, func(ctx context.Context, k *desk) error {
		values, err := k.rotations.Values(ctx, d.name)
		if err != nil {
			return err
		}
		if len(values) > 0 {
			d.old = values[0]
		}
		d.before = map[string]providers.Fields{}
		for _, p := range d.paths {
			f, err := d.serves(ctx, k, p)
			if err != nil {
				return err
			}
			d.before[p.Store+" "+p.Path] = f
		}
		return nil
	})
}

// accepts logs in with a value. want is what is expected: a target that spreads changes slowly
// gets its time.
func (d *drill) accepts(ctx context.Context, h providers.Held, want bool) (bool, error) {
	began := d.c.now()
	for {
		err := d.target.Verify(ctx, d.change, h)
		accepted := err == nil
		if err != nil && !errors.Is(err, fault.ErrRejected) {
			return false, fmt.Errorf("log in to the target with a value of the copy: %w", err)
		}
		if accepted == want || d.c.now().Sub(began) > settleLimit {
			return accepted, nil
		}
		select {
		case <-ctx.Done():
			return accepted, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// crashed is the invariant after a kill: what consumers read is accepted, or, with replace, at
// least a value that is sealed in the database.
func (d *drill) crashed(ctx context.Context, where string) (serving string, err error) {
	err = d.desk(ctx, func(ctx context.Context, k *desk) error {
		values, err := k.rotations.Values(ctx, d.name)
		if err != nil {
			return err
		}
		ours := false
		taken := make([]bool, len(values))
		for i, h := range values {
			if h.Fields == nil {
				continue
			}
			// The value that is on its way may be refused: asked once.
			err := d.target.Verify(ctx, d.change, h)
			if err != nil && !errors.Is(err, fault.ErrRejected) {
				return fmt.Errorf("log in to the target with a value of the copy: %w", err)
			}
			taken[i] = err == nil
			ours = ours || taken[i]
		}
		if !ours {
			d.problem(where, "no sealed value is accepted by the target")
		}
		serving = "an accepted value"
		for _, p := range d.paths {
			f, err := d.serves(ctx, k, p)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(values, func(h providers.Held) bool { return h.Fields.Equal(f) })
			switch {
			case f != nil && i >= 0 && taken[i]:
			case ours && d.change.Strategy == providers.Replace:
				serving = "the old value; the sealed new one is accepted"
			default:
				d.problem(where, "consumers of %s read a value that the target does not accept", p.Path)
				serving = "LOST"
			}
		}
		return nil
	})
	return serving, err
}

// recovered is what must hold after the pass that follows.
func (d *drill) recovered(ctx context.Context, where string) error {
	return d.desk(ctx, func(ctx context.Context, k *desk) error {
		values, err := k.rotations.Values(ctx, d.name)
		if err != nil {
			return err
		}
		if len(values) != 1 {
			d.problem(where, "%d values are sealed after the recovery, and not one", len(values))
			return nil
		}
		if ok, err := d.accepts(ctx, values[0], true); err != nil || !ok {
			if err != nil {
				return err
			}
			d.problem(where, "the current value is not accepted after the recovery")
		}
		// A target that nobody must be told of accepts whatever is a value of ours.
		if d.old.Fields != nil && !scratchless[d.kind] {
			ok, err := d.accepts(ctx, d.old, false)
			if err != nil {
				return err
			}
			if ok {
				d.problem(where, "the old value is still accepted after the recovery")
			}
		}
		for _, p := range d.paths {
			f, err := d.serves(ctx, k, p)
			if err != nil {
				return err
			}
			if !f.Equal(values[0].Fields) {
				d.problem(where, "consumers of %s do not read the current value after the recovery", p.Path)
			}
			if old := d.before[p.Store+" "+p.Path]; old != nil && old.Equal(f) {
				d.problem(where, "consumers of %s read the old value after the recovery", p.Path)
			}
		}
		return d.trail(ctx, k, where)
	})
}

// trail checks that each start has one end.
func (d *drill) trail(ctx context.Context, k *desk, where string) error {
	open, err := audit.OpenIntents(ctx, k.db, k.db.Now().Add(time.Hour), 0)
	if err != nil {
		return err
	}
	for _, e := range open {
		d.problem(where, "%s began and has no end in the trail", e.Action)
	}
	ends := map[string]int{}
	for q := (audit.Query{Resource: "credentials/" + d.name + "/", Limit: 1000}); ; {
		list, next, err := audit.List(ctx, k.db, q)
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.Intent != "" {
				ends[e.Intent]++
			}
		}
		if next == "" {
			break
		}
		q.Page = next
	}
	for intent, n := range ends {
		if n != 1 {
			d.problem(where, "the start %s has %d ends in the trail", intent, n)
		}
	}
	return nil
}

package crashtest

import (
	"context"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/rotation"
)

// TakeOver kills a process that holds the lease of a run, right after the target has taken
// the new value, has another one work as the program does, with the program's own lease, and
// returns how long it took from the kill until consumers read the new value.
func TakeOver(t *testing.T, bed Bed) (took time.Duration) {
	t.Helper()
	b := &bench{Bed: bed, t: t}
	b.prepare()
	b.orders.Holder = "the one that dies"
	if at := b.child(false, kill{Point: "E2 after", Nth: 1}).at; at == "" {
		t.Fatal("the process was not killed")
	}
	b.orders.Holder = "another one"
	b.with(func(ctx context.Context, d *desk) error {
		list, _, err := d.rotations.List(ctx, rotation.RotationQuery{Unended: true})
		if err != nil || len(list) != 1 {
			t.Fatalf("%d runs are under way: %v", len(list), err)
		}
		if list[0].Holder != "the one that dies" {
			t.Fatalf("the run is with %q", list[0].Holder)
		}
		killed := d.db.Tick()
		working, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- d.rotations.Run(working) }()
		err = d.rotations.Watch(ctx, list[0].ID, func(r rotation.Rotation) error {
			if r.Step == rotation.StepFailed {
				t.Errorf("it failed: %s", r.Error)
				return context.Canceled
			}
			return nil
		})
		took = d.db.Tick() - killed
		stop()
		if stopped := <-ended; stopped != nil {
			t.Errorf("the workers ended: %v", stopped)
		}
		var values []providers.Held
		if err == nil {
			values, err = d.rotations.Values(ctx, b.orders.Credential)
		}
		if len(values) != 1 || !b.Accepts(t, values[0].Fields) {
			t.Errorf("%d values are sealed, or the one that is is not accepted", len(values))
		}
		return err
	})
	return took
}

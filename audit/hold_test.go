package audit

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func TestHoldWhenAddedAndReleased(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		tr := newTrail(t, db)
		want := []Hold{{Name: "a", Reason: "one", CreatedAt: epoch}, {Name: "b.2", Reason: "two", Partner: "acme", Resource: "keysets/", CreatedAt: epoch}}
		for _, h := range []Hold{want[1], want[0]} {
			if err := tr.AddHold(t.Context(), h); err != nil {
				t.Fatal(err)
			}
		}
		holds, err := tr.Holds(t.Context())
		if diff := cmp.Diff(want, holds); err != nil || diff != "" {
			t.Errorf("holds (-want +got), %v:\n%s", err, diff)
		}
		if err := tr.AddHold(t.Context(), want[0]); !errors.Is(err, fault.ErrExists) {
			t.Errorf("added twice: %v", err)
		}
		for name, h := range map[string]Hold{
			"no name": {Reason: "r"}, "a space": {Name: "a b", Reason: "r"}, "long": {Name: strings.Repeat("a", 101), Reason: "r"},
			"no reason": {Name: "c"}, "a NUL": {Name: "c", Reason: "r", Partner: "a\x00"}, "a long resource": {Name: "c", Reason: "r", Resource: strings.Repeat("a", 1025)},
		} {
			if err := tr.AddHold(t.Context(), h); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := tr.ReleaseHold(t.Context(), "a", ""); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("released without a reason: %v", err)
		}
		if err := tr.ReleaseHold(t.Context(), "a", "over"); err != nil {
			t.Fatal(err)
		}
		if err := tr.ReleaseHold(t.Context(), "a", "over"); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("released twice: %v", err)
		}
		sequence(t, tr)
		var got []string
		for _, e := range list(t, db, Query{Action: "hold."}) {
			got = append(got, e.Action+" "+e.Resource+" "+e.Reason)
		}
		if diff := cmp.Diff([]string{"hold.release holds/a over", "hold.create holds/a one", "hold.create holds/b.2 two"}, got); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

// A hold covers what a search for its partner and resource finds.
func TestHoldCoversWhatSearchFinds(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		tr := newTrail(t, db)
		for _, partner := range []string{"", "acme", "acme/", "Acme"} {
			for _, resource := range []string{"", "keysets", "keysets/", "keysets/pay", "keysets/pay/é", "keysets/payé", "Keysets/pay", "keysets/pa_", "keysets/pa%/x"} {
				record(t, db, Event{Action: "x", Partner: partner, Resource: resource})
			}
		}
		sequence(t, tr)
		for _, partner := range []string{"", "acme", "nobody"} {
			for _, resource := range []string{"", "keysets", "keysets/", "keysets/pay", "keysets/pay/", "keysets/pa%/", "keysets/pa_", "/"} {
				if err := tr.AddHold(t.Context(), Hold{Name: "h", Reason: "r", Partner: partner, Resource: resource}); err != nil {
					t.Fatal(err)
				}
				sequence(t, tr)
				want := map[string]bool{}
				for _, e := range list(t, db, Query{Partner: partner, Resource: resource}) {
					want[e.ID] = true
				}
				got := map[string]bool{}
				err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					events, err := query(ctx, tx, `SELECT leaf_index, erased, `+eventColumns+` FROM events WHERE `+isHeld, nil)
					for _, e := range events {
						got[e.ID] = true
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("partner %q, resource %q (-search +hold):\n%s", partner, resource, diff)
				}
				if err := tr.ReleaseHold(t.Context(), "h", "next"); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// A hold that is added while events are pruned waits for that transaction.
func TestHoldWhenPruneIsUnderWay(t *testing.T) {
	db := storetest.Open(t, storetest.Postgres(t))
	b := newPruneBed(t, db)
	b.add(t, "a", 5)
	b.clock.Advance(48 * time.Hour)
	added := make(chan error, 1)
	err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		if _, err := prune(ctx, tx, b.clock.Now()); err != nil {
			return err
		}
		go func() { added <- b.AddHold(t.Context(), Hold{Name: "h", Reason: "r"}) }()
		for waits := false; !waits; {
			select {
			case err := <-added:
				t.Errorf("the hold was added while events were pruned: %v", err)
				added <- err
				return nil
			default:
			}
			err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database()))`).Scan(&waits)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, <-added); err != nil {
		t.Fatal(err)
	}
}

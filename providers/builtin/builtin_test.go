package builtin

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

func newSealer(t testing.TB) *secret.Sealer {
	t.Helper()
	kek, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	return sealer
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		sealer := newSealer(t)
		consumer := New(Config{DB: db, Sealer: sealer})
		var fresh atomic.Int64
		read := func(t testing.TB, path string, w Which) providers.Fields {
			v, err := consumer.Get(context.WithoutCancel(t.Context()), path, w)
			if errors.Is(err, fault.ErrNotFound) {
				return nil
			}
			if err != nil {
				t.Fatal(err)
			}
			return v.Fields
		}
		providerstest.Store(t, providerstest.StoreBed{
			Kind: consumer.Kind(),
			// Each handle is a process of its own.
			Open: func(t testing.TB) providers.Store { return New(Config{DB: db, Sealer: sealer}) },
			Path: func(testing.TB) string { return fmt.Sprintf("apps/orders-%d/db", fresh.Add(1)) },
			Read: func(t testing.TB, path string) providers.Fields { return read(t, path, Which{}) },
			Staged: func(t testing.TB, path string) providers.Fields {
				return read(t, path, Which{Label: InStage})
			},
			Longest: func(testing.TB) string {
				part := "aZ09_.-" + strings.Repeat("x", 57)
				return strings.Repeat(part+"/", 7) + fmt.Sprintf("%064d", fresh.Add(1))
			},
		})
	})
}

func version(n int64, password string) providers.Version {
	return providers.Version{
		Credential: "orders-db", Rotation: fmt.Sprintf("6f1d2c7e-0000-4000-8000-%012d", n), Generation: n,
		Fields: providers.Fields{}.Set("password", password),
	}
}

const path = "apps/orders/db"

func publish(t testing.TB, s *Store, n int64) string {
	t.Helper()
	prior := ""
	if n > 1 {
		prior = name(n - 1)
	}
	got, err := s.Publish(t.Context(), path, version(n, fmt.Sprintf("geheim-%d", n)), prior)
	if err != nil {
		t.Fatal(err)
	}
	if got != name(n) {
		t.Fatalf("published as %s, want %d", got, n)
	}
	return got
}

func eventsOf(t testing.TB, db *store.DB) []audit.Event {
	t.Helper()
	events, _, err := audit.List(t.Context(), db, audit.Query{})
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func actions(events []audit.Event) (out []string) {
	for _, e := range events {
		out = append(out, fmt.Sprintf("%s %s %v x%d", e.Action, e.Resource, e.Detail["version"], max(e.Count, 1)))
	}
	return out
}

// TestLabels: what a version is for, and how it is found.
func TestLabels(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		s := New(Config{DB: db, Sealer: newSealer(t)})
		publish(t, s, 1)
		publish(t, s, 2)
		if err := s.Stage(t.Context(), path, version(3, "geheim-3")); err != nil {
			t.Fatal(err)
		}
		for w, want := range map[Which]int64{
			{}: 2, {Label: Current}: 2, {Label: Previous}: 1, {Label: InStage}: 3, {Number: 1}: 1, {Number: 3}: 3, {Label: Previous, Number: 2}: 2,
		} {
			v, err := s.Get(t.Context(), path, w)
			if err != nil || v.Number != want || v.Fields.Text("password") != fmt.Sprintf("geheim-%d", want) || v.Generation != want {
				t.Errorf("%+v: version %d, %v, want %d", w, v.Number, err, want)
			}
		}
		for _, w := range []Which{{Number: 4}, {Number: -1}} {
			if _, err := s.Get(t.Context(), path, w); !errors.Is(err, fault.ErrNotFound) {
				t.Errorf("%+v: %v, want not found", w, err)
			}
		}
		if _, err := s.Get(t.Context(), path, Which{Label: "next"}); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("unknown label: %v", err)
		}
		if _, err := s.Get(t.Context(), "apps/none", Which{}); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("nothing there: %v", err)
		}
		for _, bad := range []string{"", "/a", "a/", "a//b", "a b", "a#1", strings.Repeat("x", 65), strings.Repeat("a/", 8) + "a"} {
			if _, err := s.Get(t.Context(), bad, Which{}); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("path %q: %v, want invalid", bad, err)
			}
			if _, err := s.Publish(t.Context(), bad, version(1, "x"), ""); !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("publish at path %q: %v, want invalid", bad, err)
			}
		}
	})
}

// TestVersionsAreKept: the last ten, and their rows; older values are not in the database.
func TestVersionsAreKept(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		s := New(Config{DB: db, Sealer: newSealer(t)})
		for n := range int64(25) {
			publish(t, s, n+1)
		}
		list, err := s.Versions(t.Context(), path)
		if err != nil || len(list) != keep || list[0].Number != 16 || list[9].Number != 25 || list[9].Label != Current || list[8].Label != Previous {
			t.Errorf("%d versions, %v: %+v", len(list), err, list)
		}
		var rows, least int64
		err = db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			return tx.QueryRow(ctx, `SELECT COUNT(*), MIN(number) FROM builtin_versions`).Scan(&rows, &least)
		})
		if err != nil || rows != keep || least != 16 {
			t.Errorf("%d rows from number %d on, %v", rows, least, err)
		}
		if _, err := s.Get(t.Context(), path, Which{Number: 15}); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("version 15: %v, want not found", err)
		}
	})
}

// TestTrimWhenLabelled: a version with a label is kept, however old it is.
func TestTrimWhenLabelled(t *testing.T) {
	h := head{Current: 3, Previous: 12, Staged: 1}
	for n := range int64(14) {
		h.Versions = append(h.Versions, entry{Number: n + 1})
	}
	gone := h.trim()
	if diff := cmp.Diff([]int64{2, 4, 5, 6}, gone); diff != "" || len(h.Versions) != keep {
		t.Errorf("gone are %v, %d are kept", gone, len(h.Versions))
	}
}

// TestRowsWhenTamperedWith: what somebody with the database, but without the key, can do.
func TestRowsWhenTamperedWith(t *testing.T) {
	swap := `UPDATE builtin_versions SET sealed = (SELECT sealed FROM builtin_versions WHERE path = $1 AND number = 1) WHERE path = $1 AND number = 2`
	for what, statement := range map[string]string{
		"an earlier value as the current one": swap,
		"the value of another path":           `UPDATE builtin_versions SET sealed = (SELECT sealed FROM builtin_versions WHERE path = 'other' AND number = 1) WHERE path = $1 AND number = 2`,
		"the head of another path":            `UPDATE builtin_paths SET head = (SELECT head FROM builtin_paths WHERE path = 'other'), revision = 1 WHERE path = $1`,
		"another revision":                    `UPDATE builtin_paths SET revision = revision + 1 WHERE path = $1`,
		"an empty head":                       `UPDATE builtin_paths SET head = '' WHERE path = $1`,
		"the current version deleted":         `DELETE FROM builtin_versions WHERE path = $1 AND number = 2`,
		"a value that was cut":                `UPDATE builtin_versions SET sealed = substr(sealed, 1, 40) WHERE path = $1 AND number = 2`,
	} {
		t.Run(what, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, db *store.DB) {
				s := New(Config{DB: db, Sealer: newSealer(t)})
				publish(t, s, 1)
				publish(t, s, 2)
				if _, err := s.Publish(t.Context(), "other", version(9, "geheim-9"), ""); err != nil {
					t.Fatal(err)
				}
				err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					_, err := tx.Exec(ctx, statement, path)
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				_, err = s.Get(t.Context(), path, Which{})
				wantTampered(t, "get", err)
				_, err = s.Read(t.Context(), path)
				wantTampered(t, "read", err)
				found, err := s.Check(t.Context(), path)
				if err != nil || len(found) != 1 || found[0].OK || found[0].Warning {
					t.Errorf("Check found %+v, %v", found, err)
				}
			})
		})
	}
}

// TestRowsWhenNumbersBeganAgain: a path whose rows were deleted begins with version 1, and
// the version 1 of before, which was kept aside, does not open in its place.
func TestRowsWhenNumbersBeganAgain(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		s := New(Config{DB: db, Sealer: newSealer(t)})
		publish(t, s, 1)
		var kept []byte
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			if err := tx.QueryRow(ctx, `SELECT sealed FROM builtin_versions WHERE path = $1`, path).Scan(&kept); err != nil {
				return err
			}
			_, errVersions := tx.Exec(ctx, `DELETE FROM builtin_versions WHERE path = $1`, path)
			_, errPath := tx.Exec(ctx, `DELETE FROM builtin_paths WHERE path = $1`, path)
			return errors.Join(errVersions, errPath)
		})
		if err != nil {
			t.Fatal(err)
		}
		if v, err := s.Publish(t.Context(), path, version(2, "geheim-2"), ""); err != nil || v != "1" {
			t.Fatalf("version %q, %v: the case proves nothing", v, err)
		}
		err = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE builtin_versions SET sealed = $1 WHERE path = $2 AND number = 1`, kept, path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Read(t.Context(), path)
		wantTampered(t, "read", err)
	})
}

func wantTampered(t *testing.T, what string, err error) {
	t.Helper()
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || e.Reason != "tampered" || providers.OutcomeOf(err) != providers.Refused {
		t.Errorf("%s: %v, want refused, tampered", what, err)
	}
}

// TestChangesAreEvents: one for each change, none for a repetition, in its transaction.
func TestChangesAreEvents(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		s := New(Config{DB: db, Sealer: newSealer(t)})
		ctx := t.Context()
		for range 2 {
			for _, err := range []error{
				s.Stage(ctx, path, version(1, "a")), s.Discard(ctx, path, version(2, "x")), s.Discard(ctx, path, version(1, "a")),
				s.Stage(ctx, path, version(2, "b")), s.Stage(ctx, path, version(2, "b")),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if _, err := s.Publish(ctx, path, version(2, "b"), ""); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Discard(ctx, path, version(2, "b")); err != nil {
				t.Fatal(err)
			}
		}
		want := []string{
			"secret.discarded secrets/apps/orders/db 1 x1", "secret.discarded secrets/apps/orders/db 3 x1",
			"secret.published secrets/apps/orders/db 2 x1",
			"secret.staged secrets/apps/orders/db 1 x1", "secret.staged secrets/apps/orders/db 2 x1", "secret.staged secrets/apps/orders/db 3 x1",
		}
		if diff := cmp.Diff(want, slices.Sorted(slices.Values(actions(eventsOf(t, db))))); diff != "" {
			t.Error(diff)
		}
	})
}

func as(t testing.TB, actor string) context.Context {
	return audit.WithActor(t.Context(), audit.Actor{ID: actor, Address: "192.0.2.1", RequestID: "r1"})
}

// TestReadsAreEvents: who read which version, at once for the first of a minute, with
// exact counts for the others.
func TestReadsAreEvents(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := storetest.NewClock(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
		db.Now = clock.Now
		s := New(Config{DB: db, Sealer: newSealer(t)})
		publish(t, s, 1)
		publish(t, s, 2)
		get := func(actor string, w Which) {
			t.Helper()
			if _, err := s.Get(as(t, actor), path, w); err != nil {
				t.Fatal(err)
			}
		}
		wantReads := func(want ...string) {
			t.Helper()
			var got []string
			for _, e := range eventsOf(t, db) {
				if e.Action == Published {
					continue
				}
				if e.Action != Read || e.Address != "192.0.2.1" || e.Outcome != audit.OK {
					t.Errorf("event %+v", e)
				}
				got = append(got, fmt.Sprintf("%s %v x%d", e.Actor, e.Detail["version"], max(e.Count, 1)))
			}
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		}
		for range 5 {
			get("app-1", Which{})
		}
		get("app-1", Which{Number: 1})
		get("app-2", Which{Label: Current})
		wantReads("app-1 1 x1", "app-1 2 x1", "app-2 2 x1")
		pass := func() {
			t.Helper()
			if _, err := s.Pass(t.Context(), db.Now()); err != nil {
				t.Fatal(err)
			}
		}
		pass()
		wantReads("app-1 1 x1", "app-1 2 x1", "app-2 2 x1")
		clock.Advance(window)
		pass()
		pass()
		wantReads("app-1 1 x1", "app-1 2 x1", "app-1 2 x4", "app-2 2 x1")
		get("app-1", Which{})
		get("app-1", Which{})
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantReads("app-1 1 x1", "app-1 2 x1", "app-1 2 x1", "app-1 2 x1", "app-1 2 x4", "app-2 2 x1")
		if _, err := s.Read(t.Context(), path); err != nil || len(eventsOf(t, db)) != 2+6 {
			t.Errorf("what rotation reads is an event (%v)", err)
		}
	})
}

// TestReadWhenTrailIsAway: no value without its event.
func TestReadWhenTrailIsAway(t *testing.T) {
	db := storetest.SQLite(t)
	s := New(Config{DB: db, Sealer: newSealer(t)})
	publish(t, s, 1)
	forbid := func(statement string) {
		t.Helper()
		if err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error { _, err := tx.Exec(ctx, statement); return err }); err != nil {
			t.Fatal(err)
		}
	}
	forbid(`CREATE TRIGGER away BEFORE INSERT ON event_queue BEGIN SELECT RAISE(ABORT, 'away'); END`)
	forbid(`CREATE TRIGGER away2 BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'away'); END`)
	for range 2 {
		if v, err := s.Get(as(t, "app"), path, Which{}); err == nil || v.Fields != nil {
			t.Errorf("a value was given out without an event (%v)", err)
		}
	}
	if _, err := s.Publish(t.Context(), path, version(2, "x"), "1"); err == nil {
		t.Error("a value was published without an event")
	}
	forbid(`DROP TRIGGER away`)
	forbid(`DROP TRIGGER away2`)
	if v, err := s.Get(as(t, "app"), path, Which{}); err != nil || v.Number != 1 {
		t.Errorf("version %d, %v", v.Number, err)
	}
}

// TestWatch: a consumer hears of the next version, from whichever process it comes.
func TestWatch(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		sealer := newSealer(t)
		s, other := New(Config{DB: db, Sealer: sealer}), New(Config{DB: db, Sealer: sealer})
		s.floor = time.Hour // a version that is not announced is not heard of
		got := make(chan Version)
		bounded, end := context.WithTimeout(as(t, "app"), time.Minute)
		defer end()
		watch := func(after int64) {
			v, err := s.Watch(bounded, path, after)
			if err != nil {
				t.Error(err)
			}
			got <- v
		}
		go watch(0)
		publish(t, other, 1)
		if v := <-got; v.Number != 1 || v.Fields.Text("password") != "geheim-1" {
			t.Errorf("heard of version %d", v.Number)
		}
		go watch(1)
		if err := other.Stage(t.Context(), path, version(2, "geheim-2")); err != nil {
			t.Fatal(err)
		}
		publish(t, other, 2)
		if v := <-got; v.Number != 2 {
			t.Errorf("heard of version %d", v.Number)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Watch(ctx, path, 2); !errors.Is(err, context.Canceled) {
			t.Errorf("a watch whose context ended: %v", err)
		}
	})
}

func FuzzPath(f *testing.F) {
	f.Add("apps/orders/db", int64(1), "apps/orders/db", int64(11))
	f.Fuzz(func(t *testing.T, a string, n int64, b string, m int64) {
		if checkPath(a) != nil || checkPath(b) != nil || (a == b && n == m) {
			return
		}
		if valuePlace(a, entry{Number: n}) == valuePlace(b, entry{Number: m}) {
			t.Errorf("%q %d and %q %d are sealed for one place", a, n, b, m)
		}
	})
}

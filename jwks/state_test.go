package jwks

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

var update = flag.Bool("update", false, "write the golden files")

// fakeKey is what a key of a state needs in its row.
func fakeKey(set *Keyset, kid string, st State) Key {
	k := Key{KeysetID: set.ID, Kid: kid, State: st, Algorithm: ES256, Public: []byte(`{"kid":"` + kid + `"}`), Home: LocalHome, Private: []byte{1},
		Origin: Generated, CreatedAt: epoch, Since: epoch, ServedSince: epoch, DemotedAt: epoch, MaxTokenLife: time.Minute}
	if st == Retired || st == Revoked {
		k.Home, k.Private, k.WithdrawnAt = noHome, nil, epoch
	}
	return k
}

// Every move is tried on the real table; the ones allowed are written out here
// and not read from the code.
func TestMoveWhenEveryPairIsTried(t *testing.T) {
	allowed := map[[2]State]bool{
		{unborn, Pending}: true, {unborn, Active}: true, {unborn, Retiring}: true,
		{Pending, Active}: true, {Pending, Revoked}: true,
		{Active, Retiring}: true, {Active, Revoked}: true,
		{Retiring, Retired}: true, {Retiring, Revoked}: true,
	}
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		// The keyset's own keys make room for the one under test.
		mustExec(t, db, `DELETE FROM signing_keys`)
		b.clock.Advance(24 * time.Hour) // every lead and every token is over
		abort := errors.New("abort")
		for _, from := range append([]State{unborn}, States...) {
			for _, to := range append([]State{unborn, "lost"}, States...) {
				t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
					err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
						c, err := b.begin(ctx, tx, "payments")
						if err != nil {
							return err
						}
						k := fakeKey(c.set, "K", from)
						if from != unborn {
							// Put there as the state it claims to have.
							k.State = from
							if err := c.put(ctx, k, unborn); err != nil {
								return fmt.Errorf("set up: %w", err)
							}
						}
						if err := c.move(ctx, k, to); err != nil {
							return err
						}
						var state State
						var private, events int64
						if err := tx.QueryRow(ctx, `SELECT state, CASE WHEN private IS NULL THEN 0 ELSE 1 END FROM signing_keys WHERE kid = 'K'`).Scan(&state, &private); err != nil {
							return err
						}
						if state != to || private == 1 != to.Published() {
							t.Errorf("the row says %s, private halves %d", state, private)
						}
						if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM event_queue WHERE action = $1 AND resource = 'keysets/payments/keys/K'`, "signing_key."+string(to)).Scan(&events); err != nil {
							return err
						}
						if events != 1 {
							t.Errorf("%d events of the move", events)
						}
						return abort
					})
					if allowed[[2]State{from, to}] {
						if !errors.Is(err, abort) {
							t.Errorf("refused: %v", err)
						}
						return
					}
					wantFault(t, err, fault.ErrTransition, "bad_transition", "")
				})
			}
		}
	})
}

// A move is made only on the state that was seen.
func TestMoveWhenRowHasMovedOn(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		before := dump(t, db)
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			c, err := b.begin(ctx, tx, "payments")
			if err != nil {
				return err
			}
			k := *c.set.Active()
			if _, err := tx.Exec(ctx, `UPDATE signing_keys SET state = 'retiring' WHERE kid = $1`, k.Kid); err != nil {
				return err
			}
			return c.move(ctx, k, Retiring)
		})
		if !errors.Is(err, fault.ErrChanged) {
			t.Errorf("got %v, want ErrChanged", err)
		}
		if after := dump(t, db); after != before {
			t.Error("the refused move left something behind")
		}
	})
}

func TestDatabaseWhenInvariantIsBrokenBySQL(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		const insert = `INSERT INTO signing_keys (` + keyColumns + `) VALUES ($1, 'x', $2, 'ES256', '{}', $3, $4, $5, '', 0, 0, 0, 0, 0, 0, 0, $6)`
		for _, state := range []State{Active, Pending} {
			err := exec(t, db, insert, set.ID, string(state), LocalHome, []byte{1}, Generated, []byte{})
			if !store.IsUnique(err) {
				t.Errorf("a second %s key: got %v, want a violation of the unique index", state, err)
			}
		}
		if err := exec(t, db, insert, set.ID, "retiring", LocalHome, []byte{1}, Generated, []byte{}); err != nil {
			t.Errorf("a retiring key is refused: %v", err)
		}
		for _, tc := range []struct {
			name  string
			query string
		}{
			{"withdrawn with its private half", `UPDATE signing_keys SET state = 'retired', home = 'none' WHERE kid = 'x'`},
			{"revoked with its private half", `UPDATE signing_keys SET state = 'revoked', home = 'none' WHERE kid = 'x'`},
			{"withdrawn with its home", `UPDATE signing_keys SET state = 'retired', private = NULL WHERE kid = 'x'`},
			{"unknown state", `UPDATE signing_keys SET state = 'lost' WHERE kid = 'x'`},
			{"unknown origin", `UPDATE signing_keys SET origin = 'found' WHERE kid = 'x'`},
			{"two rows of publication", `INSERT INTO publication (id, served_at) VALUES (2, 0)`},
			{"two keysets of one name", `INSERT INTO keysets (` + keysetColumns + `) SELECT 'other', name, issuer, algorithm, policy, policy_version, version, created_at, next_at, 0, 0, members, seal FROM keysets`},
			{"a key of no keyset", `UPDATE signing_keys SET keyset_id = 'nobody' WHERE kid = 'x'`},
		} {
			if err := exec(t, db, tc.query); err == nil {
				t.Errorf("%s: the database lets it through", tc.name)
			}
		}
		if err := exec(t, db, `UPDATE signing_keys SET state = 'retired', home = 'none', private = NULL WHERE kid = 'x'`); err != nil {
			t.Errorf("a withdrawn key without a private half is refused: %v", err)
		}
	})
}

func TestDiagram(t *testing.T) {
	path := filepath.Join("testdata", "states.mmd")
	got := Diagram()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the diagram has changed; run with -update if that is meant:\n%s", got)
	}
	for from, list := range moves {
		for _, to := range list {
			if labels[[2]State{from, to}] == "" {
				t.Errorf("the move from %q to %q has no label", from, to)
			}
		}
	}
	for pair := range labels {
		if !slices.Contains(moves[pair[0]], pair[1]) {
			t.Errorf("a label for %q to %q, which is no move", pair[0], pair[1])
		}
	}
}

// move refuses by itself what Due would never propose.
func TestMoveWhenItIsTooEarly(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		mustExec(t, db, `DELETE FROM signing_keys`)
		for _, tc := range []struct {
			name     string
			from, to State
			after    time.Duration
			override bool
			reason   string
		}{
			{"lead a microsecond short", Pending, Active, quickLead - us, false, "lead_not_over"},
			{"lead over", Pending, Active, quickLead, false, ""},
			{"lead overridden", Pending, Active, 0, true, ""},
			{"tokens alive for a microsecond", Retiring, Retired, quickRetire - us, false, "tokens_alive"},
			{"tokens alive, overridden", Retiring, Retired, quickRetire - us, true, "tokens_alive"},
			{"tokens expired", Retiring, Retired, quickRetire, false, ""},
			{"revoked while tokens are alive", Retiring, Revoked, 0, false, ""},
		} {
			b.clock.Set(epoch.Add(tc.after))
			abort := errors.New("abort")
			err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				c, err := b.begin(ctx, tx, "payments")
				if err != nil {
					return err
				}
				c.override = tc.override
				k := fakeKey(c.set, "K", tc.from)
				k.MaxTokenLife = 10 * time.Minute
				if err := c.put(ctx, k, unborn); err != nil {
					return err
				}
				if err := c.move(ctx, k, tc.to); err != nil {
					return err
				}
				return abort
			})
			if tc.reason == "" {
				if !errors.Is(err, abort) {
					t.Errorf("%s: refused: %v", tc.name, err)
				}
				continue
			}
			wantFault(t, err, fault.ErrTransition, tc.reason, "")
		}
	})
}

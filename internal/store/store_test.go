package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// newTable makes a table of every column type that the package promises to
// work in both databases.
func newTable(t *testing.T, db *store.DB) {
	t.Helper()
	update(t, db, func(ctx context.Context, tx *store.Tx) error {
		for _, query := range []string{
			`CREATE TABLE things (id BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, blob BYTEA, flag BOOLEAN, at BIGINT)`,
			`CREATE UNIQUE INDEX things_one_active ON things (name) WHERE state = 'active'`,
		} {
			if _, err := tx.Exec(ctx, query); err != nil {
				return err
			}
		}
		return nil
	})
}

const insertThing = `INSERT INTO things (id, name, state) VALUES ($1, $2, $3)`

func update(t *testing.T, db *store.DB, fn func(context.Context, *store.Tx) error) {
	t.Helper()
	if err := db.Update(t.Context(), fn); err != nil {
		t.Fatalf("Update: %v", err)
	}
}

func insert(id int64, name, state string) func(context.Context, *store.Tx) error {
	return func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, insertThing, id, name, state)
		return err
	}
}

// ids returns the ids of all things, in order.
func ids(t *testing.T, db *store.DB) []int64 {
	t.Helper()
	var got []int64
	err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		got = nil
		rows, err := tx.Query(ctx, `SELECT id FROM things ORDER BY id`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id int64
			if err := rows.Scan(&id); err != nil {
				return err
			}
			got = append(got, id)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatalf("View: %v", err)
	}
	return got
}

func wantIDs(t *testing.T, db *store.DB, want ...int64) {
	t.Helper()
	if got := ids(t, db); !slices.Equal(got, want) {
		t.Errorf("things are %v, want %v", got, want)
	}
}

func TestUpdateWhenFunctionEnds(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newTable(t, db)
		update(t, db, insert(1, "a", "active"))

		boom := errors.New("boom")
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			if err := insert(2, "b", "active")(ctx, tx); err != nil {
				return err
			}
			return fmt.Errorf("stop: %w", boom)
		})
		if !errors.Is(err, boom) {
			t.Errorf("Update returned %v, want the function's error", err)
		}

		func() {
			defer func() {
				if r, _ := recover().(error); !errors.Is(r, boom) {
					t.Errorf("recovered %v, want the function's panic", r)
				}
			}()
			_ = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				if err := insert(3, "c", "active")(ctx, tx); err != nil {
					t.Error(err)
				}
				panic(boom)
			})
		}()
		wantIDs(t, db, 1)

		// The panic gave back its connection and its locks.
		update(t, db, insert(4, "d", "active"))
		wantIDs(t, db, 1, 4)
	})
}

func TestUpdateWhenContextEnds(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newTable(t, db)
		ctx, cancel := context.WithCancel(t.Context())
		err := db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
			if err := insert(1, "a", "active")(ctx, tx); err != nil {
				return err
			}
			cancel()
			return nil
		})
		if !errors.Is(err, context.Canceled) || errors.Is(err, fault.ErrUnavailable) {
			t.Errorf("cancelled before the commit: %v, want context.Canceled alone", err)
		}
		if err := db.Update(ctx, insert(2, "b", "active")); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled before the begin: %v, want context.Canceled", err)
		}
		wantIDs(t, db)
	})
}

func TestUpdateWhenFailedStatementIsDropped(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newTable(t, db)
		update(t, db, insert(1, "a", "active"))
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			if err := insert(2, "b", "active")(ctx, tx); err != nil {
				return err
			}
			if err := insert(1, "again", "active")(ctx, tx); !errors.Is(err, fault.ErrExists) {
				t.Errorf("duplicate: %v, want fault.ErrExists", err)
			}
			if err := insert(3, "c", "active")(ctx, tx); err == nil {
				t.Error("a statement after a failed one succeeded")
			}
			if _, err := tx.Query(ctx, `SELECT 1`); err == nil { //nolint:rowserrcheck,sqlclosecheck // there are no rows
				t.Error("a query after a failed statement succeeded")
			}
			var id int64
			if err := tx.QueryRow(ctx, `INSERT INTO things (id, name, state) VALUES (9, 'x', 'y') RETURNING id`).Scan(&id); err == nil {
				t.Error("a row query after a failed statement succeeded")
			}
			return nil
		})
		if !errors.Is(err, fault.ErrExists) {
			t.Errorf("Update returned %v, want the dropped fault.ErrExists", err)
		}
		wantIDs(t, db, 1)
	})
}

func TestUniqueWhenViolated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newTable(t, db)
		update(t, db, insert(1, "a", "active"))
		key := []string{"things_pkey", "things.id"}
		active := []string{"things_one_active", "things.name"}

		err := db.Update(t.Context(), insert(1, "b", "active"))
		if !errors.Is(err, fault.ErrExists) || !store.IsUnique(err) || !store.IsUnique(err, key...) || store.IsUnique(err, active...) {
			t.Errorf("same primary key: %v", err)
		}
		err = db.Update(t.Context(), insert(2, "a", "active"))
		if !errors.Is(err, fault.ErrExists) || !store.IsUnique(err, active...) || store.IsUnique(err, key...) {
			t.Errorf("second active row: %v", err)
		}
		// The error of a Scan gets its kind from Update.
		err = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			var id int64
			return tx.QueryRow(ctx, insertThing+` RETURNING id`, 1, "b", "active").Scan(&id)
		})
		if !errors.Is(err, fault.ErrExists) {
			t.Errorf("INSERT … RETURNING: %v, want fault.ErrExists", err)
		}
		update(t, db, insert(3, "a", "retired")) // outside of the partial index

		err = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO things (id, name, state) VALUES (5, NULL, 'x')`)
			return err
		})
		if _, ok := errors.AsType[*fault.Error](err); err == nil || ok || store.IsUnique(err) {
			t.Errorf("NOT NULL violation: %v, want an error of no kind", err)
		}
	})
}

func TestSwapWhenOtherThanOneRowIsHit(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newTable(t, db)
		for i := range int64(3) {
			update(t, db, insert(i, fmt.Sprint("n", i), "pending"))
		}
		swap := func(query string, args ...any) error {
			return db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error { return tx.Swap(ctx, query, args...) })
		}
		const one = `UPDATE things SET state = $1 WHERE id = $2 AND state = $3`
		if err := swap(one, "active", 1, "pending"); err != nil {
			t.Errorf("from the right state: %v", err)
		}
		if err := swap(one, "active", 1, "pending"); !errors.Is(err, fault.ErrChanged) {
			t.Errorf("from a state that is over: %v, want fault.ErrChanged", err)
		}
		if err := swap(`DELETE FROM things WHERE state = $1`, "pending"); !errors.Is(err, fault.ErrChanged) {
			t.Errorf("two rows: %v, want fault.ErrChanged", err)
		}
		wantIDs(t, db, 0, 1, 2)
		if err := swap(`DELETE FROM things WHERE state = $1`, "active"); err != nil {
			t.Errorf("delete one: %v", err)
		}
		wantIDs(t, db, 0, 2)
	})
}

// Promise: of any number of concurrent compare-and-swaps from one state,
// exactly one wins.
func TestSwapWhenRaced(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newTable(t, db)
		for id := range int64(5) {
			update(t, db, insert(id, fmt.Sprint("n", id), "pending"))
			var won, lost atomic.Int64
			var read, all sync.WaitGroup
			const racers = 8
			read.Add(racers)
			for range racers {
				all.Go(func() {
					err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
						var state string
						return tx.QueryRow(ctx, `SELECT state FROM things WHERE id = $1`, id).Scan(&state)
					})
					read.Done()
					read.Wait() // everybody has seen "pending"
					if err == nil {
						err = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
							return tx.Swap(ctx, `UPDATE things SET state = 'active' WHERE id = $1 AND state = 'pending'`, id)
						})
					}
					switch {
					case err == nil:
						won.Add(1)
					case errors.Is(err, fault.ErrChanged):
						lost.Add(1)
					default:
						t.Errorf("swap: %v", err)
					}
				})
			}
			all.Wait()
			if won.Load() != 1 || lost.Load() != racers-1 {
				t.Errorf("thing %d: %d winners and %d losers, want 1 and %d", id, won.Load(), lost.Load(), racers-1)
			}
		}
	})
}

func TestAfterCommitWhenTransactionEnds(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newTable(t, db)
		var got []string
		note := func(s string) func() { return func() { got = append(got, s) } }
		update(t, db, func(ctx context.Context, tx *store.Tx) error {
			tx.AfterCommit(note("first"))
			tx.AfterCommit(func() {
				// Outside of the transaction: another may begin, also from
				// the context of the first, and it sees the commit.
				if err := db.Update(ctx, insert(2, "b", "active")); err != nil {
					t.Errorf("Update in AfterCommit: %v", err)
				}
				wantIDs(t, db, 1, 2)
			})
			tx.AfterCommit(note("last"))
			if len(got) != 0 {
				t.Errorf("ran before the commit: %v", got)
			}
			return insert(1, "a", "active")(ctx, tx)
		})
		_ = db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			tx.AfterCommit(note("rolled back"))
			return errors.New("no")
		})
		if diff := cmp.Diff([]string{"first", "last"}, got); diff != "" {
			t.Errorf("AfterCommit (-want +got):\n%s", diff)
		}
	})
}

func TestTransactionWhenNested(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		nothing := func(context.Context, *store.Tx) error { return nil }
		for name, outer := range map[string]func(context.Context, func(context.Context, *store.Tx) error) error{"Update": db.Update, "View": db.View} {
			for inner, call := range map[string]func(context.Context, func(context.Context, *store.Tx) error) error{"Update": db.Update, "View": db.View} {
				err := outer(t.Context(), func(ctx context.Context, tx *store.Tx) error { return call(ctx, nothing) })
				if err == nil || !strings.Contains(err.Error(), "inside another") {
					t.Errorf("%s inside %s: %v, want a refusal", inner, name, err)
				}
			}
		}
		// Another database is not nested.
		other := storetest.SQLite(t)
		err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error { return other.Update(ctx, nothing) })
		if err != nil {
			t.Errorf("another database: %v", err)
		}
	})
}

func TestViewWhenWrittenTo(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newTable(t, db)
		if err := db.View(t.Context(), insert(1, "a", "active")); err == nil {
			t.Error("Exec in a View succeeded")
		}
		err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			var id int64
			return tx.QueryRow(ctx, insertThing+` RETURNING id`, 1, "a", "active").Scan(&id)
		})
		if err == nil {
			t.Error("INSERT … RETURNING in a View succeeded")
		}
		wantIDs(t, db)
	})
}

// Promise: a View sees one state, and neither waits for a writer nor makes it
// wait.
func TestViewWhenWriterIsBusy(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newTable(t, db)
		update(t, db, insert(1, "a", "active"))
		count := func(ctx context.Context, tx *store.Tx) (n int) {
			if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM things`).Scan(&n); err != nil {
				t.Error(err)
			}
			return n
		}
		written, finish := make(chan struct{}), make(chan struct{})
		var writer sync.WaitGroup
		writer.Go(func() {
			err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				err := insert(2, "b", "active")(ctx, tx)
				close(written)
				<-finish
				return err
			})
			if err != nil {
				t.Errorf("writer: %v", err)
			}
		})
		<-written
		// The writer holds its lock until it is told to finish, which happens
		// only after these views: one that waited for it would never return.
		err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			if n := count(ctx, tx); n != 1 {
				t.Errorf("beside a writer a View sees %d rows, want 1", n)
			}
			close(finish)
			writer.Wait()
			if n := count(ctx, tx); n != 1 {
				t.Errorf("after the commit the same View sees %d rows, want 1", n)
			}
			return nil
		})
		if err != nil {
			t.Errorf("View: %v", err)
		}
		wantIDs(t, db, 1, 2)
	})
}

func TestNowWhenTransactionLasts(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		at := time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.FixedZone("", 3600))
		clock := storetest.NewClock(at)
		db.Now = clock.Now
		want := time.Date(2026, 3, 1, 11, 0, 0, 123456000, time.UTC)
		update(t, db, func(ctx context.Context, tx *store.Tx) error {
			clock.Advance(time.Hour)
			if tx.Now != want {
				t.Errorf("tx.Now is %v, want %v", tx.Now, want)
			}
			return nil
		})
		update(t, db, func(ctx context.Context, tx *store.Tx) error {
			if got := tx.Now.Sub(want); got != time.Hour {
				t.Errorf("the next transaction is %v later, want 1h", got)
			}
			return nil
		})
	})
}

func TestTimeWhenConverted(t *testing.T) {
	for _, at := range []time.Time{{}, time.UnixMicro(1).UTC(), time.UnixMicro(-1).UTC(), time.Date(2299, 1, 1, 0, 0, 0, 1000, time.UTC)} {
		if got := store.Time(store.Micros(at)); got != at {
			t.Errorf("%v came back as %v", at, got)
		}
	}
	if got := store.Micros(time.Time{}); got != 0 {
		t.Errorf("Micros of the zero time is %d, want 0", got)
	}
}

func TestTypesWhenStored(t *testing.T) {
	type row struct {
		ID    int64
		Name  string
		State string
		Blob  []byte
		Flag  bool
		At    int64
	}
	type state string
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newTable(t, db)
		want := []row{
			{ID: 1 << 62, Name: "naïve ☃ 'quoted' \"q\"", State: "active", Blob: []byte{0, 1, 0xff}, Flag: true, At: -5},
			{ID: -1, Name: "", State: "12", Blob: []byte("123"), Flag: false, At: 0},
		}
		var got []row
		update(t, db, func(ctx context.Context, tx *store.Tx) error {
			for _, r := range want {
				_, err := tx.Exec(ctx, `INSERT INTO things (id, name, state, blob, flag, at) VALUES ($1, $2, $3, $4, $5, $6)`,
					r.ID, r.Name, state(r.State), r.Blob, r.Flag, r.At)
				if err != nil {
					return err
				}
			}
			rows, err := tx.Query(ctx, `SELECT id, name, state, blob, flag, at FROM things WHERE flag = $1 OR NOT flag ORDER BY id DESC LIMIT $2`, true, 10)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var r row
				if err := rows.Scan(&r.ID, &r.Name, &r.State, &r.Blob, &r.Flag, &r.At); err != nil {
					return err
				}
				got = append(got, r)
			}
			return rows.Err()
		})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("rows (-stored +read):\n%s", diff)
		}
		err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			return tx.QueryRow(ctx, `SELECT id FROM things WHERE id = $1`, 77).Scan(new(int64))
		})
		if !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("no row: %v, want sql.ErrNoRows", err)
		}
		// A string in double quotes is a name in both.
		err = db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			return tx.QueryRow(ctx, `SELECT "nonsense" FROM things`).Scan(new(string))
		})
		if err == nil || errors.Is(err, sql.ErrNoRows) {
			t.Errorf(`SELECT "nonsense": %v, want an unknown column`, err)
		}
	})
}

func TestDatabaseWhenClosed(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		if err := db.Ping(t.Context()); err != nil {
			t.Errorf("Ping: %v", err)
		}
		if err := db.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := db.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if err := db.Ping(t.Context()); !errors.Is(err, fault.ErrUnavailable) {
			t.Errorf("Ping after Close: %v, want fault.ErrUnavailable", err)
		}
	})
}

package store_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// edit changes a database URL.
func edit(t *testing.T, raw string, change func(u *url.URL)) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	change(u)
	return u.String()
}

func TestPostgresWhenOpenFails(t *testing.T) {
	good := storetest.Postgres(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(u *url.URL)
		kind   error
		reason string
	}{
		{func(u *url.URL) {}, fault.ErrRejected, "database_denied"},
		{func(u *url.URL) { u.Host = nobody }, fault.ErrUnavailable, "database_unavailable"},
		{func(u *url.URL) { u.RawQuery = "sslmode=require" }, fault.ErrUnavailable, "database_unavailable"},
	} {
		bad := edit(t, good, func(u *url.URL) {
			u.User = url.UserPassword(u.User.Username(), "wr0ng-s3cret")
			c.change(u)
		})
		_, err := store.Open(t.Context(), bad)
		wantFault(t, err, c.kind, c.reason, "check")
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error holds the password: %v", err)
		}
	}
	_, err = store.Open(t.Context(), edit(t, good, func(u *url.URL) { u.Path = "/none" }))
	wantFault(t, err, fault.ErrRejected, "database_missing", "create it")
	if password, _ := mustUser(t, good).Password(); strings.Contains(err.Error(), password) {
		t.Error("the error holds the password")
	}
}

func mustUser(t *testing.T, raw string) *url.Userinfo {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u.User
}

func TestPostgresWhenOpened(t *testing.T) {
	db := storetest.Open(t, storetest.Postgres(t))
	for isolation, begin := range map[string]func(context.Context, func(context.Context, *store.Tx) error) error{"read committed": db.Update, "repeatable read": db.View} {
		err := begin(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			for name, want := range map[string]string{
				"application_name": "rotunda", "statement_timeout": "30s", "lock_timeout": "10s",
				"idle_in_transaction_session_timeout": "1min", "transaction_isolation": isolation,
			} {
				var got string
				if err := tx.QueryRow(ctx, `SHOW `+name).Scan(&got); err != nil {
					return err
				}
				if got != want {
					t.Errorf("%s is %s, want %s", name, got, want)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestPostgresWhenTimeLimitsAreHit(t *testing.T) {
	raw := storetest.Postgres(t)
	db := storetest.Open(t, raw)
	newTable(t, db)
	update(t, db, insert(1, "a", "active"))
	impatient := storetest.Open(t, edit(t, raw, func(u *url.URL) {
		q := u.Query()
		q.Set("lock_timeout", "50")
		q.Set("statement_timeout", "500")
		u.RawQuery = q.Encode()
	}))
	const query = `UPDATE things SET name = name WHERE id = 1`
	update(t, db, func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Swap(ctx, query); err != nil {
			return err
		}
		err := impatient.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error { return tx.Swap(ctx, query) })
		wantFault(t, err, fault.ErrUnavailable, "database_locked", "retry")
		return nil
	})
	err := impatient.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT pg_sleep(60)`).Scan(new(string))
	})
	wantFault(t, err, fault.ErrUnavailable, "database_slow", "too long")
}

// Promise: a deadlock between two transactions is not seen by their callers.
func TestUpdateWhenDeadlocked(t *testing.T) {
	db := storetest.Open(t, storetest.Postgres(t))
	newTable(t, db)
	for id := range int64(2) {
		update(t, db, insert(id, string(rune('a'+id)), "active"))
	}
	const query = `UPDATE things SET at = COALESCE(at, 0) + 1 WHERE id = $1`
	var both, all sync.WaitGroup
	var attempts, committed atomic.Int64
	both.Add(2)
	for _, order := range [][2]int64{{0, 1}, {1, 0}} {
		all.Go(func() {
			first := true
			err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				attempts.Add(1)
				tx.AfterCommit(func() { committed.Add(1) })
				if err := tx.Swap(ctx, query, order[0]); err != nil {
					return err
				}
				if first {
					first = false
					both.Done()
					both.Wait()
				}
				return tx.Swap(ctx, query, order[1])
			})
			if err != nil {
				t.Errorf("Update: %v", err)
			}
		})
	}
	all.Wait()
	if attempts.Load() != 3 || committed.Load() != 2 {
		t.Errorf("%d attempts and %d AfterCommit, want 3 and 2", attempts.Load(), committed.Load())
	}
	err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		var sum int64
		err := tx.QueryRow(ctx, `SELECT SUM(at)::BIGINT FROM things`).Scan(&sum)
		if sum != 4 {
			t.Errorf("the sum is %d, want 4", sum)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestUpdateWhenContentionLasts(t *testing.T) {
	db := storetest.Open(t, storetest.Postgres(t))
	newTable(t, db)
	attempts := 0
	err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		attempts++
		if err := insert(1, "a", "active")(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$`)
		return err
	})
	wantFault(t, err, fault.ErrUnavailable, "database_contended", "retry")
	if attempts != 4 {
		t.Errorf("%d attempts, want 4", attempts)
	}
	wantIDs(t, db)
}

func TestUpdateWhenCommitIsRefused(t *testing.T) {
	db := storetest.Open(t, storetest.Postgres(t))
	newTable(t, db)
	update(t, db, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `ALTER TABLE things ADD CONSTRAINT late UNIQUE (state) DEFERRABLE INITIALLY DEFERRED`)
		return err
	})
	update(t, db, insert(1, "a", "active"))
	err := db.Update(t.Context(), insert(2, "b", "active"))
	if !errors.Is(err, fault.ErrExists) || !store.IsUnique(err, "late") || errors.Is(err, store.ErrOutcomeUnknown) {
		t.Errorf("got %v, want fault.ErrExists for late", err)
	}
	wantIDs(t, db, 1)
}

// Promise: a COMMIT whose answer is lost is never taken for done nor for
// undone.
func TestUpdateWhenCommitAnswerIsLost(t *testing.T) {
	for name, c := range map[string]struct {
		deliver bool // the COMMIT reaches the server
		want    []int64
	}{"question": {false, nil}, "answer": {true, []int64{1}}} {
		t.Run("lost "+name, func(t *testing.T) {
			raw := storetest.Postgres(t)
			direct := storetest.Open(t, raw)
			newTable(t, direct)
			cut := newCutter(t, mustHost(t, raw), c.deliver)
			db := storetest.Open(t, edit(t, raw, func(u *url.URL) { u.Host = cut.address }))
			cut.armed.Store(true)
			err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				tx.AfterCommit(func() { t.Error("AfterCommit ran") })
				return insert(1, "a", "active")(ctx, tx)
			})
			cut.armed.Store(false)
			if !errors.Is(err, store.ErrOutcomeUnknown) {
				t.Errorf("got %v, want store.ErrOutcomeUnknown", err)
			}
			wantFault(t, err, fault.ErrUnavailable, "outcome_unknown", "read again")
			wantIDs(t, direct, c.want...)
			wantIDs(t, db, c.want...) // and goes on
		})
	}
}

func mustHost(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// cutter is a TCP proxy that, when armed, cuts a connection at the COMMIT:
// before it, or behind it but before its answer.
type cutter struct {
	address string
	armed   atomic.Bool
}

func newCutter(t *testing.T, target string, deliver bool) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{address: l.Addr().String()}
	var all sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	serve := func(client net.Conn) {
		defer client.Close()
		server, err := net.Dial("tcp", target)
		if err != nil {
			t.Errorf("proxy: %v", err)
			return
		}
		defer server.Close()
		var dropping atomic.Bool
		all.Go(func() {
			b := make([]byte, 64<<10)
			for {
				n, err := server.Read(b)
				if dropping.Load() || err != nil {
					client.Close()
					return
				}
				if _, err := client.Write(b[:n]); err != nil {
					return
				}
			}
		})
		b := make([]byte, 64<<10)
		for {
			n, err := client.Read(b)
			if err != nil {
				return
			}
			if c.armed.Load() && bytes.Contains(b[:n], []byte("commit\x00")) {
				if !deliver {
					return
				}
				dropping.Store(true)
			}
			if _, err := server.Write(b[:n]); err != nil {
				return
			}
		}
	}
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { serve(client) })
		}
	})
	return c
}

// Promise: PostgreSQL may stop and start under an open database. Calls fail
// with fault.ErrUnavailable in between, work again after it without any
// restart of ours, and nothing acknowledged is lost.
func TestDatabaseWhenServerRestarts(t *testing.T) {
	server := storetest.NewServer(t)
	raw := server.Database(t)
	db := storetest.Open(t, raw)
	newTable(t, db)
	update(t, db, insert(1, "a", "active"))
	// A pool full of connections that the restart kills.
	const pooled = 12
	fill := func() {
		var here, all sync.WaitGroup
		here.Add(pooled)
		for range pooled {
			all.Go(func() {
				err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					here.Done()
					here.Wait()
					return nil
				})
				if err != nil {
					t.Errorf("View: %v", err)
				}
			})
		}
		all.Wait()
	}
	fill()
	server.Stop(t)
	password, _ := mustUser(t, raw).Password()
	for name, err := range map[string]error{
		"Update": db.Update(t.Context(), insert(2, "b", "active")),
		"View":   db.View(t.Context(), func(context.Context, *store.Tx) error { return nil }),
		"Ping":   db.Ping(t.Context()),
	} {
		wantFault(t, err, fault.ErrUnavailable, "database_unavailable", "")
		if err != nil && strings.Contains(err.Error(), password) {
			t.Errorf("%s: the error holds the password", name)
		}
	}
	server.Start(t)
	wantIDs(t, db, 1)
	update(t, db, insert(3, "c", "active"))

	// Nobody called while it was down: every pooled connection is dead, and
	// none of them may cost a caller an error.
	fill()
	server.Stop(t)
	server.Start(t)
	update(t, db, insert(4, "d", "active"))
	wantIDs(t, db, 1, 3, 4)

	// It stops inside a transaction.
	err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		if err := insert(5, "e", "active")(ctx, tx); err != nil {
			return err
		}
		server.Stop(t)
		return insert(6, "f", "active")(ctx, tx)
	})
	wantFault(t, err, fault.ErrUnavailable, "database_unavailable", "")
	server.Start(t)
	wantIDs(t, db, 1, 3, 4)
}

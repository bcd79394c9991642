package apikeys

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func TestVerifyWhenGood(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme", PartnerSpec{})
		for _, role := range Roles {
			req := Create{Name: "of " + string(role), Role: role, CIDRs: []string{"192.0.2.0/24"}, ExpiresIn: time.Hour}
			if role == Signer || role == Gateway {
				req.Keysets = []string{"payments", "zürich"}
			}
			if role == Manager {
				req.Partner = "acme"
			}
			if role == Reader {
				req.Paths = []string{"orders/*", "shared/db"}
			}
			made, value := b.create(t, req)
			if env := strings.Split(value, "_")[1]; env != string(role) {
				t.Errorf("the key of a token of role %s says %s", role, env)
			}
			for range 2 { // from the row, then from memory
				got := mustVerify(t, b.Tokens, value, here)
				if diff := cmp.Diff(made, got, cmpopts.IgnoreUnexported(Token{}), cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
					t.Errorf("what was made and what is verified differ (-made +verified):\n%s", diff)
				}
			}
		}
	})
}

func TestVerifyWhenDenied(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		_, admin := b.create(t, Create{Role: Admin})
		revoked, revokedValue := b.create(t, Create{Role: Admin})
		if _, err := b.Revoke(t.Context(), revoked.ID, "superseded"); err != nil {
			t.Fatal(err)
		}
		_, expired := b.create(t, Create{Role: Admin, ExpiresIn: time.Minute})
		_, remote := b.create(t, Create{Role: Gateway, CIDRs: []string{"198.51.100.0/24"}})
		stranger, _ := newKeyString("admin")
		b.pass(time.Minute)

		k, ok := parseKeyString(admin)
		if !ok {
			t.Fatal("the admin's key does not parse")
		}
		written := func(env, id, secret string) string {
			body := "rk_" + env + "_" + id + "_" + secret
			return body + checksum(body)
		}
		for _, c := range []struct{ what, value, reason string }{
			{"nothing", "", "malformed"},
			{"a typo", admin[:len(admin)-1] + "*", "malformed"},
			{"an id that was never made", written("admin", stranger.id, stranger.secret), "unknown"},
			{"another secret", written("admin", k.id, stranger.secret), "unknown"},
			{"another role in the key", written("operator", k.id, k.secret), "unknown"},
			{"a revoked token", revokedValue, "revoked"},
			{"an expired token", expired, "expired"},
			{"a foreign address", remote, "address"},
		} {
			t.Run(c.what, func(t *testing.T) {
				for range 2 {
					wantDenied(t, b.Tokens, c.value, here, c.reason)
				}
			})
		}
		mustVerify(t, b.Tokens, admin, here)
	})
}

func TestVerifyWhenExpiryIsAMicrosecondAway(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		made, value := b.create(t, Create{Role: Operator, ExpiresIn: time.Minute + 999*time.Nanosecond})
		if want := epoch.Add(time.Minute); !made.ExpiresAt.Equal(want) {
			t.Fatalf("expires at %s, want %s: less than a microsecond is dropped", made.ExpiresAt, want)
		}
		b.clock.Set(made.ExpiresAt.Add(-time.Microsecond))
		mustVerify(t, b.Tokens, value, here)
		if err := b.Usable(t.Context(), made.ID); err != nil {
			t.Errorf("a microsecond before its end it is not usable: %v", err)
		}
		b.clock.Set(made.ExpiresAt)
		wantDenied(t, b.Tokens, value, here, "expired") // remembered as active, and denied all the same
		wantFault(t, b.Usable(t.Context(), made.ID), fault.ErrDenied, "expired")
	})
}

func TestVerifyWhenAddressIsLimited(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		_, value := b.create(t, Create{Role: Gateway, CIDRs: []string{
			"203.0.113.77/28", "198.51.100.9", "2001:db8:1::/48", "2001:db8:2::9", "::ffff:192.0.2.200",
		}})
		for addr, accepted := range map[string]bool{
			"203.0.113.64":        true,
			"203.0.113.79":        true,
			"203.0.113.63":        false,
			"203.0.113.80":        false,
			"::ffff:203.0.113.70": true, // IPv4 as a dual-stack listener shows it
			"::ffff:203.0.113.80": false,
			"198.51.100.9":        true,
			"198.51.100.10":       false,
			"2001:db8:1:ff::1":    true,
			"2001:db8:2::9":       true,
			"2001:db8:2::a":       false,
			"192.0.2.200":         true,
			"192.0.2.201":         false,
			"::203.0.113.70":      false, // IPv4-compatible IPv6 is IPv6
		} {
			from := netip.MustParseAddr(addr)
			if accepted {
				mustVerify(t, b.Tokens, value, from)
			} else {
				wantDenied(t, b.Tokens, value, from, "address")
			}
		}
		wantDenied(t, b.Tokens, value, netip.Addr{}, "address")
	})
}

// Revoked means revoked: at once here, within FreshFor elsewhere.
func TestRevokeWhenTwoReplicas(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, Create{Role: Admin})
		token, value := b.create(t, Create{Role: Admin})
		other := b.replica(t, db)
		mustVerify(t, b.Tokens, value, here)
		mustVerify(t, other, value, here)

		if _, err := b.Revoke(t.Context(), token.ID, "key_compromise"); err != nil {
			t.Fatal(err)
		}
		wantDenied(t, b.Tokens, value, here, "revoked")
		wantFault(t, b.Usable(t.Context(), token.ID), fault.ErrDenied, "revoked")

		b.pass(FreshFor - time.Nanosecond)
		mustVerify(t, other, value, here) // what the bound allows, and no more
		b.pass(time.Nanosecond)
		wantDenied(t, other, value, here, "revoked")
		wantFault(t, other.Usable(t.Context(), token.ID), fault.ErrDenied, "revoked")
	})
}

// A look-up that reads the row before a revocation commits, and ends after it
// has returned, must not leave the token in memory. PostgreSQL lets the test
// hold the look-up exactly there: its snapshot is taken, its row is not out yet.
func TestRevokeWhenLookupIsUnderWay(t *testing.T) {
	db := storetest.Open(t, storetest.Postgres(t))
	b := newBed(t, db)
	b.create(t, Create{Role: Admin})
	token, value := b.create(t, Create{Role: Admin})
	for _, ddl := range []string{
		`CREATE FUNCTION gate() RETURNS BOOLEAN LANGUAGE plpgsql AS $$ BEGIN
			IF current_setting('transaction_read_only') = 'on' THEN
				PERFORM pg_advisory_lock_shared(42);
				PERFORM pg_advisory_unlock_shared(42);
			END IF;
			RETURN TRUE;
		END $$`,
		`ALTER TABLE access_tokens RENAME TO held_tokens`,
		`CREATE VIEW access_tokens AS SELECT * FROM held_tokens WHERE gate()`,
	} {
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, ddl)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	open, closed, gatekeeper := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		gatekeeper <- db.Update(context.WithoutCancel(t.Context()), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(42)`)
			close(closed)
			<-open
			return err
		})
	}()
	<-closed
	found := make(chan error, 1)
	go func() {
		_, err := b.Verify(context.WithoutCancel(t.Context()), value, here)
		found <- err
	}()
	eventually(t, "the look-up to stand at the gate", func() bool {
		return number(t, db, `SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`) == 1
	})
	_, err := b.Revoke(t.Context(), token.ID, "key_compromise")
	close(open)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-gatekeeper; err != nil {
		t.Fatal(err)
	}
	if err := <-found; err != nil {
		t.Fatalf("the look-up did not see the row as it was before the revocation, so this test shows nothing: %v", err)
	}
	wantDenied(t, b.Tokens, value, here, "revoked")
}

func TestVerifyWhenDatabaseIsGone(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		remembered, value := b.create(t, Create{Role: Gateway, ExpiresIn: FreshFor + 2*time.Second})
		_, lasting := b.create(t, Create{Role: Gateway})
		_, forgotten := b.create(t, Create{Role: Gateway})
		mustVerify(t, b.Tokens, value, here)
		mustVerify(t, b.Tokens, lasting, here)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}

		_, err := b.Verify(t.Context(), forgotten, here)
		wantFault(t, err, fault.ErrUnavailable, "database_closed")
		b.pass(FreshFor)
		mustVerify(t, b.Tokens, value, here)
		b.pass(2 * time.Second)
		wantDenied(t, b.Tokens, value, here, "expired") // grace is not life
		b.pass(GraceFor - FreshFor - 2*time.Second - time.Nanosecond)
		mustVerify(t, b.Tokens, lasting, here)
		b.pass(time.Nanosecond)
		_, err = b.Verify(t.Context(), lasting, here)
		wantFault(t, err, fault.ErrUnavailable, "database_closed")
		wantFault(t, b.Usable(t.Context(), remembered.ID), fault.ErrUnavailable, "database_closed")
	})
}

// A database that takes connections and never answers is worse than one that
// is gone: it must not use the grace up.
func TestVerifyWhenDatabaseHangs(t *testing.T) {
	url := storetest.Postgres(t)
	db, locker := storetest.Open(t, url), storetest.Open(t, url)
	b := newBed(t, db)
	_, value := b.create(t, Create{Role: Gateway})
	mustVerify(t, b.Tokens, value, here)
	err := locker.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE access_tokens IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		b.pass(FreshFor)
		patient, cancel := context.WithTimeout(t.Context(), 8*graceWait) // less than the database may take
		defer cancel()
		if _, err := b.Verify(patient, value, here); err != nil {
			t.Errorf("the grace was used up by waiting: %v", err)
		}
		// Without a remembered token the caller's own patience is the bound.
		b.pass(GraceFor)
		hasty, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer stop()
		if _, err := b.Verify(hasty, value, here); err == nil {
			t.Error("accepted after the grace")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	mustVerify(t, b.Tokens, value, here)
}

func TestLastUseIsWrittenSeldom(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		token, value := b.create(t, Create{Role: Gateway})
		lastUsed := func() time.Duration {
			us := number(t, db, `SELECT last_used_at FROM access_tokens WHERE id = $1`, token.ID)
			if us == 0 {
				return -1
			}
			return store.Time(us).Sub(epoch)
		}
		pass := func() {
			t.Helper()
			if _, err := b.Pass(t.Context(), b.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		var got []time.Duration
		for range 65 {
			mustVerify(t, b.Tokens, value, here)
			pass()
			if d := lastUsed(); len(got) == 0 || got[len(got)-1] != d {
				got = append(got, d)
			}
			b.pass(time.Second)
		}
		if diff := cmp.Diff([]time.Duration{0, usedEvery, 2 * usedEvery}, got); diff != "" {
			t.Errorf("the instants that were written (-want +got):\n%s", diff)
		}
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := lastUsed(); got != 64*time.Second {
			t.Errorf("after the last flush: %s, want 64s", got)
		}

		// Another replica saw it earlier, and writes later.
		exec(t, db, `UPDATE access_tokens SET last_used_at = $1 WHERE id = $2`, store.Micros(epoch.Add(time.Hour)), token.ID)
		mustVerify(t, b.Tokens, value, here)
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := lastUsed(); got != time.Hour {
			t.Errorf("the last use went back to %s, want 1h", got)
		}

		// What can't be written is kept, and a token that is denied was not used.
		_, other := b.create(t, Create{Role: Gateway, CIDRs: []string{"198.51.100.1"}})
		wantDenied(t, b.Tokens, other, here, "address")
		b.pass(2 * time.Hour)
		mustVerify(t, b.Tokens, value, here)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Flush(gone); err == nil {
			t.Fatal("flushed with a context that has ended")
		}
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := lastUsed(), 2*time.Hour+65*time.Second; got != want {
			t.Errorf("a use that could not be written at first was lost: %s, want %s", got, want)
		}
		if n := number(t, db, `SELECT COUNT(*) FROM access_tokens WHERE last_used_at > 0`); n != 1 {
			t.Errorf("%d tokens count as used, want 1", n)
		}
	})
}

func TestCacheIsBounded(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		_, value := b.create(t, Create{Role: Gateway})
		for i := range maxCached {
			b.cache[fmt.Sprint(i)] = &cached{}
		}
		mustVerify(t, b.Tokens, value, here)
		if n := len(b.cache); n > maxCached {
			t.Errorf("%d tokens are remembered, at most %d are allowed", n, maxCached)
		}
		// Ids of nobody are not remembered at all.
		n := len(b.cache)
		for range 20 {
			_, v := newKeyString("admin")
			wantDenied(t, b.Tokens, v.RevealString(), here, "unknown")
		}
		if len(b.cache) != n || len(b.used) != 1 {
			t.Errorf("%d tokens are remembered and %d uses, want %d and 1", len(b.cache), len(b.used), n)
		}
	})
}

// Remembers knows a token by its value, while it is good, and asks nobody.
func TestRemembersWhenTokenWasVerified(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		token, value := b.create(t, Create{Role: Operator, ExpiresIn: time.Hour})
		revoked, gone := b.create(t, Create{Role: Operator})
		fresh := b.replica(t, db)
		if fresh.Remembers(value) {
			t.Error("a token is remembered that was never shown")
		}
		mustVerify(t, fresh, value, here)
		mustVerify(t, fresh, gone, here)
		// A guess with the id of a token that is known.
		body := value[:strings.LastIndex(value, "_")+1] + strings.Repeat("A", secretLength)
		guess := body + checksum(body)
		wantDenied(t, fresh, guess, here, "unknown")
		role := strings.Replace(value[:len(value)-sumLength], "operator", "admin", 1)
		for name, v := range map[string]string{"guess": guess, "another role": role + checksum(role), "nothing": "", "nonsense": "rk_bad"} {
			if fresh.Remembers(v) {
				t.Errorf("%s is remembered", name)
			}
		}
		if _, err := fresh.Revoke(t.Context(), revoked.ID, "test"); err != nil {
			t.Fatal(err)
		}
		if fresh.Remembers(gone) {
			t.Error("a revoked token is remembered")
		}
		wantDenied(t, fresh, gone, here, "revoked") // which reads its row again
		if fresh.Remembers(gone) {
			t.Error("a revoked token is remembered when it was shown again")
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if !fresh.Remembers(value) {
			t.Errorf("token %s is forgotten without the database", token.ID)
		}
		b.pass(time.Hour)
		if fresh.Remembers(value) {
			t.Error("an expired token is remembered")
		}
	})
}

package rotation

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
)

func instant(t testing.TB, text string) time.Time {
	t.Helper()
	if text == "" {
		return time.Time{}
	}
	at, err := time.Parse("2006-01-02T15:04Z07:00", text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// scheduled is a credential that was made on Monday 1 June 2026, 00:00 UTC.
func scheduled(t testing.TB, s schedule.Schedule, missed Missed, windows ...string) *Credential {
	t.Helper()
	c := &Credential{Name: "a", Spec: Spec{Schedule: s, Missed: missed}, State: CredentialActive}
	for _, text := range windows {
		w, err := schedule.ParseWindow(text)
		if err != nil {
			t.Fatal(err)
		}
		c.Windows = append(c.Windows, w)
	}
	c.reschedule(instant(t, "2026-06-01T00:00Z"))
	return c
}

func TestDecideWhenLookedAt(t *testing.T) {
	daily := schedule.Schedule{Cron: "0 3 * * *"}
	hourly := schedule.Schedule{Every: time.Hour}
	berlin := schedule.Schedule{Cron: "30 2 * * *", Zone: "Europe/Berlin"}
	const night = "22:00-04:00"
	for _, c := range []struct {
		name    string
		c       *Credential
		next    string // before it is looked at
		edit    func(*Credential)
		now     string
		start   bool
		missed  string
		then    string // NextAt
		thenDue string // DueAt
	}{
		{"too early", scheduled(t, daily, MissedLate), "2026-06-01T03:00Z", nil, "2026-06-01T02:59Z", false, "", "2026-06-01T03:00Z", "2026-06-01T03:00Z"},
		{"on time", scheduled(t, daily, MissedLate), "2026-06-01T03:00Z", nil, "2026-06-01T03:00Z", true, "", "2026-06-02T03:00Z", "2026-06-02T03:00Z"},
		{"late, before the next", scheduled(t, daily, MissedSkip), "2026-06-01T03:00Z", nil, "2026-06-02T02:59Z", true, "", "2026-06-02T03:00Z", "2026-06-02T03:00Z"},
		{"down for three days, late", scheduled(t, daily, MissedLate), "2026-06-01T03:00Z", nil, "2026-06-04T12:00Z", true, "2026-06-01T03:00Z", "2026-06-05T03:00Z", "2026-06-05T03:00Z"},
		{"down for three days, skip", scheduled(t, daily, MissedSkip), "2026-06-01T03:00Z", nil, "2026-06-04T12:00Z", true, "2026-06-01T03:00Z", "2026-06-05T03:00Z", "2026-06-05T03:00Z"},
		{"down for three days, alarm", scheduled(t, daily, MissedAlarm), "2026-06-01T03:00Z", nil, "2026-06-04T12:00Z", false, "2026-06-01T03:00Z", "", "2026-06-01T03:00Z"},
		{"a period", scheduled(t, hourly, MissedLate), "2026-06-01T01:00Z", nil, "2026-06-01T01:00Z", true, "", "2026-06-01T02:00Z", "2026-06-01T02:00Z"},
		{"a period, late", scheduled(t, hourly, MissedLate), "2026-06-01T01:00Z", nil, "2026-06-01T01:10Z", true, "", "2026-06-01T02:00Z", "2026-06-01T02:00Z"},
		{"a period, down", scheduled(t, hourly, MissedLate), "2026-06-01T01:00Z", nil, "2026-06-01T07:10Z", true, "2026-06-01T01:00Z", "2026-06-01T08:10Z", "2026-06-01T08:10Z"},

		{"a window open", scheduled(t, daily, MissedLate, night), "2026-06-01T03:00Z", nil, "2026-06-01T03:59Z", true, "", "2026-06-02T03:00Z", "2026-06-02T03:00Z"},
		{"a window over, late", scheduled(t, daily, MissedLate, night), "2026-06-01T03:00Z", nil, "2026-06-01T04:00Z", false, "2026-06-01T03:00Z", "2026-06-01T22:00Z", "2026-06-01T03:00Z"},
		{"a window over, skip", scheduled(t, daily, MissedSkip, night), "2026-06-01T03:00Z", nil, "2026-06-01T04:00Z", false, "2026-06-01T03:00Z", "2026-06-02T03:00Z", "2026-06-02T03:00Z"},
		{"a window over, alarm", scheduled(t, daily, MissedAlarm, night), "2026-06-01T03:00Z", nil, "2026-06-01T04:00Z", false, "2026-06-01T03:00Z", "", "2026-06-01T03:00Z"},
		{"a later window, late", scheduled(t, daily, MissedLate, night), "2026-06-01T03:00Z", nil, "2026-06-01T23:00Z", true, "2026-06-01T03:00Z", "2026-06-02T03:00Z", "2026-06-02T03:00Z"},
		{"a later window, skip, before its firing", scheduled(t, daily, MissedSkip, night), "2026-06-01T03:00Z", nil, "2026-06-01T23:00Z", false, "2026-06-01T03:00Z", "2026-06-02T03:00Z", "2026-06-02T03:00Z"},
		{"a later window, skip, after its firing", scheduled(t, daily, MissedSkip, night), "2026-06-01T03:00Z", nil, "2026-06-03T03:30Z", true, "2026-06-01T03:00Z", "2026-06-04T03:00Z", "2026-06-04T03:00Z"},
		{"told of already", scheduled(t, daily, MissedLate, night), "2026-06-01T03:00Z", func(c *Credential) { c.NextAt = instant(t, "2026-06-01T22:00Z") }, "2026-06-02T12:00Z", false, "", "2026-06-02T22:00Z", "2026-06-01T03:00Z"},
		{"told of, and now", scheduled(t, daily, MissedLate, night), "2026-06-01T03:00Z", func(c *Credential) { c.NextAt = instant(t, "2026-06-01T22:00Z") }, "2026-06-01T22:00Z", true, "", "2026-06-02T03:00Z", "2026-06-02T03:00Z"},
		{"years later, skip", scheduled(t, daily, MissedSkip, "Sat 02:00-04:00"), "2026-06-06T02:00Z", nil, "2029-06-05T12:00Z", false, "2026-06-01T03:00Z", "2029-06-09T02:00Z", "2029-06-03T03:00Z"},
		{"a firing outside of windows waits", scheduled(t, daily, MissedLate, "Wed 20:00-21:00"), "2026-06-03T20:00Z", nil, "2026-06-03T20:00Z", true, "", "2026-06-10T20:00Z", "2026-06-04T03:00Z"},
		{"across midnight in a zone", scheduled(t, berlin, MissedLate, "23:00-03:00"), "2026-06-01T00:30Z", nil, "2026-06-01T00:59Z", true, "", "2026-06-02T00:30Z", "2026-06-02T00:30Z"},
		{"always open", scheduled(t, daily, MissedAlarm, "00:00-24:00"), "2026-06-01T03:00Z", nil, "2026-06-02T02:00Z", true, "", "2026-06-02T03:00Z", "2026-06-02T03:00Z"},

		{"paused", scheduled(t, daily, MissedLate), "2026-06-01T03:00Z", func(c *Credential) { c.State = CredentialPaused; c.reschedule(instant(t, "2026-06-01T00:00Z")) }, "2026-06-02T03:00Z", false, "", "", ""},
		{"waits for a person", scheduled(t, daily, MissedAlarm), "2026-06-01T03:00Z", func(c *Credential) { c.NextAt = time.Time{} }, "2026-07-02T03:00Z", false, "", "", "2026-06-01T03:00Z"},
		{"rotated since by hand", scheduled(t, daily, MissedLate), "2026-06-01T03:00Z", func(c *Credential) { c.RotatedAt = instant(t, "2026-06-01T03:10Z") }, "2026-06-01T03:30Z", false, "", "2026-06-02T03:00Z", "2026-06-02T03:00Z"},
		{"rotated before", scheduled(t, daily, MissedLate), "2026-06-01T03:00Z", func(c *Credential) { c.RotatedAt = instant(t, "2026-06-01T02:50Z") }, "2026-06-01T03:30Z", true, "", "2026-06-02T03:00Z", "2026-06-02T03:00Z"},
		{"rotated in the future", scheduled(t, daily, MissedLate), "2026-06-01T03:00Z", func(c *Credential) { c.RotatedAt = instant(t, "2036-06-01T02:50Z") }, "2026-06-01T03:30Z", true, "", "2026-06-02T03:00Z", "2026-06-02T03:00Z"},
	} {
		if !c.c.NextAt.Equal(instant(t, c.next)) {
			t.Errorf("%s: it is first looked at at %v, want %s", c.name, c.c.NextAt, c.next)
		}
		if c.edit != nil {
			c.edit(c.c)
		}
		start, missed, next, due := decide(c.c, instant(t, c.now))
		if start != c.start || !next.Equal(instant(t, c.then)) || !due.Equal(instant(t, c.thenDue)) {
			t.Errorf("%s: start %v, next %v, due %v; want %v, %s, %s", c.name, start, next, due, c.start, c.then, c.thenDue)
		}
		if (missed != nil) != (c.missed != "") || missed != nil && !missed.Equal(instant(t, c.missed)) {
			t.Errorf("%s: missed %v, want %q", c.name, missed, c.missed)
		}
	}
}

func TestRescheduleWhenTheClockIsSetBack(t *testing.T) {
	c := scheduled(t, schedule.Schedule{Cron: "0 3 * * *"}, MissedLate)
	c.RotatedAt = instant(t, "2026-06-01T03:00Z")
	c.reschedule(instant(t, "2026-06-01T01:00Z")) // the clock shows two hours less, and somebody updates it
	if !c.NextAt.Equal(instant(t, "2026-06-02T03:00Z")) {
		t.Errorf("it is rotated again at %v", c.NextAt)
	}
	c.RotatedAt = instant(t, "2036-06-01T03:00Z") // that was a clock gone mad
	c.reschedule(instant(t, "2026-06-01T01:00Z"))
	if !c.NextAt.Equal(instant(t, "2026-06-01T03:00Z")) {
		t.Errorf("it is rotated at %v", c.NextAt)
	}
}

// Promise: no firing is rotated twice, whatever restarts, and none is passed over silently.
func TestDuePassWhenProcessesComeAndGo(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		for i := range 3 {
			r.credential(fmt.Sprint("c", i), providers.Dual, func(s *Spec) { s.Schedule = schedule.Schedule{Cron: "0 3 * * *"}; s.Grace = 0 })
		}
		other := func() *Credentials {
			systems, runs := r.replica(nil)
			cs, err := NewCredentials(CredentialsConfig{DB: db, Systems: systems, Rotations: runs})
			if err != nil {
				t.Fatal(err)
			}
			return cs
		}
		pass := func(cs *Credentials) time.Time {
			t.Helper()
			next, err := cs.DuePass(t.Context(), r.clock.Now())
			if err != nil {
				t.Fatal(err)
			}
			return next
		}
		runs := func() int { return r.count(`SELECT COUNT(*) FROM rotations`) }
		due := rigEpoch.Add(3 * time.Hour)
		if next := pass(r.creds); runs() != 0 || !next.Equal(due) {
			t.Fatalf("%d runs before the time; next look at %v", runs(), next)
		}
		r.clock.Set(due)
		done := make(chan error, 4)
		for _, cs := range []*Credentials{r.creds, other(), other(), other()} {
			go func() {
				_, err := cs.DuePass(context.WithoutCancel(t.Context()), due)
				done <- err
			}()
		}
		for range 4 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if runs() != 3 {
			t.Fatalf("%d runs of 3 firings", runs())
		}
		for i := range 3 {
			r.settle(r.ids(fmt.Sprint("c", i))[0], StepDone)
		}
		r.clock.Set(due.Add(-time.Hour)) // the clock is set back
		pass(other())
		r.clock.Set(due.Add(time.Minute))
		if next := pass(other()); runs() != 3 || !next.Equal(due.AddDate(0, 0, 1)) {
			t.Errorf("%d runs after a restart and a clock set back; next look at %v", runs(), next)
		}
		// Nobody runs for three days.
		r.clock.Set(due.AddDate(0, 0, 3).Add(time.Hour))
		pass(other())
		pass(other())
		if runs() != 6 {
			t.Errorf("%d runs after an outage", runs())
		}
		if got := strings.Join(r.heard("credentials/c0"), " "); !strings.Contains(got, "credential.missed late") || strings.Count(got, "missed") != 1 {
			t.Errorf("the trail has %s", got)
		}
		if n := r.count(`SELECT COUNT(*) FROM credentials WHERE next_at <= $1`, store.Micros(r.clock.Now())); n != 0 {
			t.Errorf("%d are still due", n)
		}
	})
}

func TestDuePassWhenARunIsInTheWay(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		r.credential("a", providers.Dual, func(s *Spec) { s.Schedule = schedule.Schedule{Cron: "0 3 * * *"}; s.Grace = 0 })
		run := r.start("a", nil) // and nobody works on it
		due := rigEpoch.Add(3 * time.Hour)
		for _, after := range []time.Duration{0, time.Minute, 2 * time.Minute, 3 * time.Hour} {
			r.clock.Set(due.Add(after))
			if _, err := r.creds.DuePass(t.Context(), r.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		c, err := r.creds.Get(t.Context(), "a")
		if err != nil || !c.DueAt.Equal(due) || !c.NextAt.After(r.clock.Now()) || c.NextAt.After(r.clock.Now().Add(maxWait)) || len(r.ids("a")) != 1 {
			t.Errorf("due at %v, looked at at %v, %d runs, %v", c.DueAt, c.NextAt, len(r.ids("a")), err)
		}
		want := []string{"credential.create", "credential.wait is_rotating"}
		if diff := cmp.Diff(want, r.heard("credentials/a")); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
		// Once it has ended the firing has had its rotation.
		r.settle(run.ID, StepDone)
		if c, err = r.creds.Get(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		r.clock.Set(c.NextAt)
		if _, err := r.creds.DuePass(t.Context(), r.clock.Now()); err != nil {
			t.Fatal(err)
		}
		if c, err = r.creds.Get(t.Context(), "a"); err != nil || len(r.ids("a")) != 1 || !c.NextAt.Equal(due.AddDate(0, 0, 1)) {
			t.Errorf("%d runs, next at %v, %v", len(r.ids("a")), c.NextAt, err)
		}
	})
}

func TestDuePassWhenAlarmed(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	r.credential("a", providers.Dual, func(s *Spec) {
		s.Schedule, s.Missed, s.Grace = schedule.Schedule{Cron: "0 3 * * *"}, MissedAlarm, 0
	})
	r.clock.Set(rigEpoch.AddDate(0, 0, 5))
	for range 3 {
		if next, err := r.creds.DuePass(t.Context(), r.clock.Now()); err != nil || !next.IsZero() {
			t.Fatalf("next look at %v, %v", next, err)
		}
		r.clock.Advance(48 * time.Hour)
	}
	if diff := cmp.Diff([]string{"credential.create", "credential.missed alarm"}, r.heard("credentials/a")); diff != "" || len(r.ids("a")) != 0 {
		t.Errorf("%d runs; the trail (-want +got):\n%s", len(r.ids("a")), diff)
	}
	// A person rotates it, and the schedule goes on.
	r.rotate("a")
	c, err := r.creds.Get(t.Context(), "a")
	if err != nil || !c.NextAt.After(r.clock.Now()) || c.NextAt.After(r.clock.Now().Add(24*time.Hour)) {
		t.Errorf("next at %v, now is %v, %v", c.NextAt, r.clock.Now(), err)
	}
}

func TestDuePassWhenTamperedWith(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		for _, name := range []string{"a", "b"} {
			r.credential(name, providers.Dual, func(s *Spec) { s.Schedule = schedule.Schedule{Cron: "0 3 * * *"}; s.Grace = 0 })
		}
		r.exec(`UPDATE credentials SET spec = REPLACE(spec, 'kv/a', 'kv/c') WHERE name = 'a'`)
		r.clock.Set(rigEpoch.Add(3 * time.Hour))
		for range 3 {
			if _, err := r.creds.DuePass(t.Context(), r.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		if len(r.ids("a")) != 0 || len(r.ids("b")) != 1 {
			t.Errorf("%d runs of the one that was tampered with, %d of the other", len(r.ids("a")), len(r.ids("b")))
		}
		if diff := cmp.Diff([]string{"credential.create", "credential.tampered tampered"}, r.heard("credentials/a")); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
		if c, err := r.creds.Get(t.Context(), "a"); err != nil || !c.Tampered() {
			t.Errorf("it is taken for genuine: %v", err)
		}
	})
}

var manyCredentials = flag.Int("rotation.credentials", 20_000, "credentials in the database of the due scan")

// many fills the database with rows that are due at some time of the next 90 days.
func many(t testing.TB, db *store.DB, n int) {
	t.Helper()
	const step = 50_000 // a transaction of more takes too long for the database
	for from := 1; from <= n; from += step {
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, fmt.Sprintf(`INSERT INTO credentials (`+credentialColumns+`)
				WITH RECURSIVE n(i) AS (SELECT %d UNION ALL SELECT i + 1 FROM n WHERE i < %d)
				SELECT 'many-' || i, 'mem', '{"target":"mem","strategy":"dual","missed":"late","grace":0,"quiet":0,"probe":3600000000}', 'active', '', 0, 0, %d + CAST(i AS BIGINT) * 7000000, %d + CAST(i AS BIGINT) * 7000000, 0, '', '', 0, 0, 0, 0, 0, 1, $1 FROM n`,
				from, min(from+step-1, n), rigEpoch.UnixMicro(), rigEpoch.UnixMicro()), []byte{0})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The look for what is due reads an index and nothing else.
func TestDueScanWhenThereAreMany(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		many(t, db, 5000)
		explain, wants := `EXPLAIN QUERY PLAN `, "USING INDEX credentials_next_at"
		if db.Dialect() == "postgres" {
			r.exec(`ANALYZE credentials`)
			explain, wants = `EXPLAIN `, "credentials_next_at"
		}
		for _, query := range []string{
			`SELECT name FROM credentials WHERE next_at > 0 AND next_at <= 1767571207000000 ORDER BY next_at LIMIT 500`,
			`SELECT COALESCE(MIN(next_at), 0) FROM credentials WHERE next_at > 0`,
		} {
			var plan []string
			err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				rows, err := tx.Query(ctx, explain+query)
				if err != nil {
					return err
				}
				defer rows.Close()
				columns, err := rows.Columns()
				if err != nil {
					return err
				}
				for rows.Next() {
					into := make([]any, len(columns))
					var line string
					for i := range into {
						into[i] = new(any)
					}
					into[len(into)-1] = &line
					if err := rows.Scan(into...); err != nil {
						return err
					}
					plan = append(plan, line)
				}
				return rows.Err()
			})
			text := strings.Join(plan, "\n")
			if err != nil || !strings.Contains(strings.ReplaceAll(text, "COVERING ", ""), wants) || strings.Contains(text, "Seq Scan") || strings.Contains(text, "TEMP B-TREE") {
				t.Errorf("%s\n%s\n%v", query, text, err)
			}
		}
	})
}

func BenchmarkDueScan(b *testing.B) {
	for name, open := range map[string]func() *store.DB{
		"sqlite":   func() *store.DB { return storetest.SQLite(b) },
		"postgres": func() *store.DB { return storetest.Open(b, storetest.Postgres(b)) },
	} {
		b.Run(name, func(b *testing.B) {
			db := open()
			r := newRig(b, db, rigConfig{})
			many(b, db, *manyCredentials)
			if db.Dialect() == "postgres" {
				r.exec(`ANALYZE credentials`)
			}
			for _, due := range []int{0, 500} {
				now := rigEpoch.Add(time.Duration(due) * 7 * time.Second)
				b.Run(fmt.Sprintf("due=%d", due), func(b *testing.B) {
					for b.Loop() {
						names, err := r.creds.dueNames(b.Context(), now)
						if err != nil || len(names) != due {
							b.Fatal(len(names), err)
						}
					}
				})
			}
		})
	}
}

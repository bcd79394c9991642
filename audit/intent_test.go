package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func begin(t testing.TB, db *store.DB, e Event) (intent string) {
	t.Helper()
	err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) (err error) {
		intent, err = Begin(ctx, tx, e)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return intent
}

func end(ctx context.Context, db *store.DB, intent string, e Event) error {
	return db.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return End(ctx, tx, intent, e) })
}

func openIDs(t testing.TB, db *store.DB, before time.Time, limit int) []string {
	t.Helper()
	events, err := OpenIntents(t.Context(), db, before, limit)
	if err != nil {
		t.Fatal(err)
	}
	ids := []string{}
	for _, e := range events {
		if e.Outcome != Started {
			t.Errorf("%s is listed as open and has the outcome %s", e.ID, e.Outcome)
		}
		ids = append(ids, e.ID)
	}
	return ids
}

// An intent is open from its start to its one end, whether its events wait for
// their leaf index or have it.
func TestIntentWhenEnded(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := newClock(db)
		tr := newTrail(t, db)
		var ids []string
		for i := range 6 {
			ids = append(ids, begin(t, db, Event{Action: "store.write", Resource: fmt.Sprintf("credentials/c%d", i), Outcome: OK}))
			clock.Advance(time.Second)
			if i == 2 {
				sequence(t, tr)
			}
		}
		all := clock.Now()
		if got := openIDs(t, db, all, 0); strings.Join(got, " ") != strings.Join(ids, " ") {
			t.Fatalf("open: %v, want %v, oldest first", got, ids)
		}
		if got := openIDs(t, db, epoch.Add(5*time.Second), 4); strings.Join(got, " ") != strings.Join(ids[:4], " ") {
			t.Errorf("the oldest four: %v", got)
		}
		if got := openIDs(t, db, epoch.Add(3*time.Second), 0); len(got) != 3 {
			t.Errorf("those begun before the third second: %v", got)
		}
		for i, outcome := range []string{OK, Denied, Failed, "", Failed, OK} {
			if err := end(t.Context(), db, ids[i], Event{Action: "store.write", Outcome: outcome}); err != nil {
				t.Fatal(err)
			}
			if i == 3 {
				sequence(t, tr)
			}
			if err := end(t.Context(), db, ids[i], Event{Action: "store.write"}); !errors.Is(err, fault.ErrTransition) {
				t.Errorf("a second end: %v", err)
			}
		}
		if got := openIDs(t, db, all, 0); len(got) != 0 {
			t.Errorf("still open: %v", got)
		}
		ends := map[string]int{}
		for _, e := range list(t, db, Query{Action: "store.write"}) {
			if e.Outcome != Started {
				ends[e.Intent]++
			}
		}
		for _, id := range ids {
			if ends[id] != 1 {
				t.Errorf("intent %s has %d ends", id, ends[id])
			}
		}
	})
}

func TestIntentWhenRefused(t *testing.T) {
	db := storetest.SQLite(t)
	newClock(db)
	record(t, db, Event{Action: "x"})
	plain := list(t, db, Query{})[0].ID
	id := begin(t, db, Event{Action: "x"})
	for name, c := range map[string]struct {
		intent string
		event  Event
		want   error
	}{
		"unknown":           {"0198aaaa-0000-7000-8000-000000000000", Event{Action: "x"}, fault.ErrNotFound},
		"no id":             {"", Event{Action: "x"}, fault.ErrNotFound},
		"no intent":         {plain, Event{Action: "x"}, fault.ErrNotFound},
		"started again":     {id, Event{Action: "x", Outcome: Started}, fault.ErrInvalid},
		"of another one":    {id, Event{Action: "x", Intent: plain}, fault.ErrInvalid},
		"no such outcome":   {id, Event{Action: "x", Outcome: "done"}, fault.ErrInvalid},
		"a NUL in its name": {"\x00", Event{Action: "x"}, fault.ErrNotFound},
	} {
		if err := end(t.Context(), db, c.intent, c.event); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if got := openIDs(t, db, epoch.Add(time.Hour), 0); len(got) != 1 {
		t.Errorf("open after refusals: %v", got)
	}
	err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := Begin(ctx, tx, Event{Action: "x", Intent: id})
		return err
	})
	if !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("an intent in an intent: %v", err)
	}
	for _, limit := range []int{-1, 1001} {
		if _, err := OpenIntents(t.Context(), db, epoch, limit); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	// An event that is missing is not passed over.
	if err := exec(t, db, `INSERT INTO open_intents (id, started_at) VALUES ('gone', 1)`); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenIntents(t.Context(), db, epoch.Add(time.Hour), 0); err == nil || !strings.Contains(err.Error(), "altered") {
		t.Errorf("an open intent without its event: %v", err)
	}
}

// Of two replicas that end an intent at the same time, one does, while events are
// sequenced under their hands.
func TestIntentWhenTwoReplicasEndIt(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		tr := newTrail(t, db)
		const intents = 20
		for i := range intents {
			id := begin(t, db, Event{Action: "x"})
			if i%2 == 0 {
				sequence(t, tr)
			}
			var all sync.WaitGroup
			errs := make([]error, 4)
			for j := range errs {
				all.Go(func() { errs[j] = end(t.Context(), db, id, Event{Action: "x"}) })
			}
			sequence(t, tr)
			all.Wait()
			ended := 0
			for _, err := range errs {
				switch {
				case err == nil:
					ended++
				case !errors.Is(err, fault.ErrTransition):
					t.Error(err)
				}
			}
			if ended != 1 {
				t.Fatalf("intent %d was ended %d times", i, ended)
			}
		}
		sequence(t, tr)
		if n := len(verify(t, tr)); n != 1+2*intents {
			t.Errorf("%d events, want %d", n, 1+2*intents)
		}
	})
}

const intentURL = "AUDIT_TEST_INTENT_URL"

// A start is listed after the process that made it was killed before its end.
func TestIntentWhenProcessIsKilled(t *testing.T) {
	if url := os.Getenv(intentURL); url != "" {
		beginAndHang(t, url)
		return
	}
	for name, url := range map[string]func(testing.TB) string{"sqlite": storetest.SQLiteURL, "postgres": storetest.Postgres} {
		t.Run(name, func(t *testing.T) {
			u := url(t)
			child := ownTest(t, "^TestIntentWhenProcessIsKilled$", intentURL+"="+u)
			out, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			id := ""
			for lines := bufio.NewScanner(out); id == "" && lines.Scan(); {
				id, _ = strings.CutPrefix(lines.Text(), "begun ")
				if id == lines.Text() {
					id = ""
				}
			}
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = child.Wait() // it was killed
			db := storetest.Open(t, u)
			if got := openIDs(t, db, time.Now().Add(time.Minute), 0); id == "" || len(got) != 1 || got[0] != id {
				t.Errorf("open: %v, want %q", got, id)
			}
			if err := end(t.Context(), db, id, Event{Action: "store.write", Outcome: Failed, Reason: "found open after a crash"}); err != nil {
				t.Error(err)
			}
		})
	}
}

func ownTest(t testing.TB, test string, env ...string) *osexec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := osexec.CommandContext(t.Context(), self, "-test.run="+test, "-test.v")
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

func beginAndHang(t *testing.T, url string) {
	id := begin(t, storetest.Open(t, url), Event{Action: "store.write"})
	fmt.Printf("\nbegun %s\n", id)
	select {}
}

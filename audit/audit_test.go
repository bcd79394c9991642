package audit

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

var epoch = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

func newClock(db *store.DB) *storetest.Clock {
	clock := storetest.NewClock(epoch)
	db.Now = clock.Now
	return clock
}

func record(t testing.TB, db *store.DB, events ...Event) {
	t.Helper()
	err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		for _, e := range events {
			if err := Record(ctx, tx, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// list reads all pages of a query.
func list(t testing.TB, db *store.DB, q Query) []Event {
	t.Helper()
	var all []Event
	for {
		events, next, err := List(t.Context(), db, q)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, events...)
		if q.Page = next; next == "" {
			return all
		}
	}
}

func exec(t testing.TB, db *store.DB, query string, args ...any) error {
	t.Helper()
	return db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
}

func TestRecordReadsBack(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		full := Event{Actor: "token/ada", Action: "keyset.create", Resource: "keysets/payments", Partner: "acme", Outcome: OK, Reason: "drill", RequestID: "r1", Address: "192.0.2.7",
			Detail: map[string]any{"n": 1.0, "nested": map[string]any{"a": []any{"b", nil}}, "text": "é\u2028<&>"}, Count: 3}
		record(t, db, full)
		got := list(t, db, Query{})
		if len(got) != 1 || len(got[0].ID) != 36 {
			t.Fatalf("events %+v", got)
		}
		full.ID, full.Time, full.Index = got[0].ID, epoch, -1
		if diff := cmp.Diff(full, got[0]); diff != "" {
			t.Errorf("event (-want +got):\n%s", diff)
		}
		// What is left out comes from the context, or is a plain default.
		ctx := WithActor(t.Context(), Actor{ID: "token/bob", Partner: "globex", Address: "::1", RequestID: "r2"})
		err := db.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return Record(ctx, tx, Event{Action: "x"}) })
		if err != nil {
			t.Fatal(err)
		}
		record(t, db, Event{Action: "y"})
		want := Event{Index: -1, Time: epoch, Actor: "token/bob", Action: "x", Partner: "globex", Outcome: OK, RequestID: "r2", Address: "::1", Detail: map[string]any{}, Count: 1}
		if got = list(t, db, Query{Action: "x"}); len(got) == 1 {
			want.ID = got[0].ID
		}
		if diff := cmp.Diff([]Event{want}, got); diff != "" {
			t.Errorf("event (-want +got):\n%s", diff)
		}
		if got = list(t, db, Query{Action: "y"}); len(got) != 1 || got[0].Actor != Rotunda || got[0].Address != "" {
			t.Errorf("by nobody: %+v", got)
		}
	})
}

func TestRecordWhenRefused(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		for name, e := range map[string]Event{
			"no action":         {Resource: "x"},
			"unknown outcome":   {Action: "x", Outcome: "maybe"},
			"too much detail":   {Action: "x", Detail: map[string]any{"a": strings.Repeat("x", 17<<10)}},
			"detail of no JSON": {Action: "x", Detail: map[string]any{"a": func() {}}},
		} {
			err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error { return Record(ctx, tx, e) })
			if err == nil {
				t.Errorf("%s: it is recorded", name)
			}
		}
		// An event shares the fate of its transaction.
		stop := errors.New("stop")
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			if err := Record(ctx, tx, Event{Action: "x"}); err != nil {
				return err
			}
			return stop
		})
		if !errors.Is(err, stop) {
			t.Error(err)
		}
		if got := list(t, db, Query{}); len(got) != 0 {
			t.Errorf("events %+v", got)
		}
	})
}

// What callers send fits the column of either database.
func TestRecordClipsText(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		for i, text := range []string{
			"a\x00b", "\xff\xfe", strings.Repeat("x", 5000), strings.Repeat("ä", 2000), "x" + strings.Repeat("ä", 2000), strings.Repeat("\x00", 1024),
			strings.Repeat("\xffx", 600), "s" + strings.Repeat("\xed\xa0\x80", 400), "€\u2028\n\t",
		} {
			action := fmt.Sprintf("case.%d", i)
			record(t, db, Event{Actor: text, Action: action, Resource: text, Partner: text, Reason: text, RequestID: text, Address: text, Detail: map[string]any{text: text}})
			got := list(t, db, Query{Action: action})
			if len(got) != 1 {
				t.Fatalf("%d events of %.20q", len(got), text)
			}
			for _, field := range []string{got[0].Actor, got[0].Resource, got[0].Partner, got[0].Reason, got[0].RequestID, got[0].Address} {
				if len(field) > maxText || !utf8.ValidString(field) || strings.Contains(field, "\x00") {
					t.Errorf("%.20q became %d bytes %.40q", text, len(field), field)
				}
				if utf8.ValidString(text) && !strings.Contains(text, "\x00") && !strings.HasPrefix(text, field) {
					t.Errorf("%.20q became %.40q", text, field)
				}
			}
			// It is found again by what was sent.
			if found := list(t, db, Query{Actor: text, Resource: text, Partner: text, RequestID: text, Address: text}); len(found) != 1 {
				t.Errorf("%d events are found by %.20q", len(found), text)
			}
		}
	})
}

func TestListFilters(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := newClock(db)
		for i, e := range []Event{
			{Action: "keyset.create", Resource: "keysets/a", Actor: "ada", RequestID: "r1", Address: "192.0.2.1"},
			{Action: "keyset.create_more", Resource: "keysets/a/keys/1", Actor: "bob"},
			{Action: "keysets.x", Resource: "keysets/ab", Actor: "ada", Partner: "acme"},
			{Action: "keyset", Resource: "keysets/a/", Outcome: Denied},
			{Action: "keyset/odd", Resource: "keysets/a0", Actor: "%"},
			{Action: "keyset.é", Resource: "keysets/A/keys/2", Actor: "Ada"},
			{Action: "Keyset.create", Resource: "keysets/a/keys/2"},
		} {
			record(t, db, e)
			clock.Advance(time.Duration(i+1) * time.Microsecond) // at 0, 1, 3, 6, 10, 15, 21
		}
		at := func(us int) time.Time { return epoch.Add(time.Duration(us) * time.Microsecond) }
		for _, tc := range []struct {
			name string
			q    Query
			want []string // newest first
		}{
			{"all", Query{}, []string{"Keyset.create", "keyset.é", "keyset/odd", "keyset", "keysets.x", "keyset.create_more", "keyset.create"}},
			{"action", Query{Action: "keyset.create"}, []string{"keyset.create"}},
			{"actions of a kind", Query{Action: "keyset."}, []string{"keyset.é", "keyset.create_more", "keyset.create"}},
			{"wildcard", Query{Action: "keyset%"}, nil},
			{"resource", Query{Resource: "keysets/a"}, []string{"keyset.create"}},
			{"what is below a resource", Query{Resource: "keysets/a/"}, []string{"Keyset.create", "keyset", "keyset.create_more"}},
			{"all of a collection", Query{Resource: "keysets/"}, []string{"Keyset.create", "keyset.é", "keyset/odd", "keyset", "keysets.x", "keyset.create_more", "keyset.create"}},
			{"actor", Query{Actor: "ada"}, []string{"keysets.x", "keyset.create"}},
			{"the actor of the schedule", Query{Actor: Rotunda}, []string{"Keyset.create", "keyset"}},
			{"partner", Query{Partner: "acme"}, []string{"keysets.x"}},
			{"denied", Query{Outcome: Denied}, []string{"keyset"}},
			{"request", Query{RequestID: "r1"}, []string{"keyset.create"}},
			{"address", Query{Address: "192.0.2.1"}, []string{"keyset.create"}},
			{"both", Query{Actor: "ada", Action: "keyset."}, []string{"keyset.create"}},
			{"neither", Query{Actor: "bob", Action: "keysets."}, nil},
			{"since", Query{Since: at(10)}, []string{"Keyset.create", "keyset.é", "keyset/odd"}},
			{"until", Query{Until: at(3)}, []string{"keyset.create_more", "keyset.create"}},
			{"between", Query{Since: at(1), Until: at(6)}, []string{"keysets.x", "keyset.create_more"}},
			{"empty span", Query{Since: at(6), Until: at(6)}, nil},
			{"quote", Query{Actor: `'; DROP TABLE events; --`}, nil},
			{"NUL", Query{Actor: "a\x00"}, nil},
			{"not UTF-8", Query{Resource: "\xff/", Action: "\xff."}, nil},
		} {
			for _, limit := range []int{0, 1, 2, 1000} {
				tc.q.Limit = limit
				var got []string
				for _, e := range list(t, db, tc.q) {
					got = append(got, e.Action)
				}
				if !slices.Equal(got, tc.want) {
					t.Errorf("%s, limit %d: %q, want %q", tc.name, limit, got, tc.want)
				}
			}
		}
	})
}

func TestListWhenRefused(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		encode := base64.RawURLEncoding.EncodeToString
		for name, q := range map[string]Query{
			"negative limit": {Limit: -1}, "limit over 1000": {Limit: 1001},
			"page of no base64": {Page: "!"}, "short page": {Page: encode([]byte("x"))},
			"page of no text": {Page: encode([]byte(strings.Repeat("\xff", 36)))}, "page with NUL": {Page: encode(make([]byte, 36))},
		} {
			_, _, err := List(t.Context(), db, q)
			if !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// Pages neither repeat nor lose an event that was there, while new ones come.
func TestListPagesWhileTrailGrows(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		clock := newClock(db)
		var want []string
		add := func(name string) {
			record(t, db, Event{Action: "x", Resource: name})
			clock.Advance(time.Microsecond)
		}
		for i := range 25 {
			name := fmt.Sprintf("old-%d", i)
			want = append([]string{name}, want...)
			add(name)
		}
		var got []string
		q := Query{Limit: 10}
		for pages := 1; ; pages++ {
			events, next, err := List(t.Context(), db, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events {
				got = append(got, e.Resource)
			}
			add("new")
			if q.Page = next; next == "" {
				if pages != 3 {
					t.Errorf("%d pages", pages)
				}
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages give %v", got)
		}
		// A page that is just full has no other after it.
		if _, next, err := List(t.Context(), db, Query{Resource: "new", Limit: 3}); err != nil || next != "" {
			t.Errorf("next %q, %v", next, err)
		}
	})
}

// Promise: the database itself refuses to change or lose an event, before and
// after it got its leaf index.
func TestTrailIsAppendOnly(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		newClock(db)
		tr := newTrail(t, db)
		record(t, db, Event{Action: "x", Resource: "one"}, Event{Action: "x", Resource: "two"})
		sequence(t, tr)
		record(t, db, Event{Action: "x", Resource: "three"}, Event{Action: "x", Resource: "four"})
		before := list(t, db, Query{})
		if len(before) != 5 || before[0].Index != -1 || before[2].Index != 2 {
			t.Fatalf("the trail is %+v", before)
		}
		var attempts []string
		for _, table := range []struct{ name, key string }{{"events", "leaf_index"}, {"event_queue", "seq"}} {
			columns := eventColumns + `, salt, checks`
			extra := map[string]string{"events": ", 0, leaf_index", "event_queue": ", leaf_hash, seq"}[table.name]
			names := map[string]string{"events": ", erased, leaf_index", "event_queue": ", leaf_hash, seq"}[table.name]
			overriding := ""
			if db.Dialect() == "postgres" && table.name == "event_queue" {
				overriding = " OVERRIDING SYSTEM VALUE"
			}
			again := table.name + ` (` + columns + names + `)` + overriding + ` SELECT ` + strings.Replace(columns, "actor", "'mallory'", 1) + extra + ` FROM ` + table.name
			attempts = append(attempts,
				`UPDATE `+table.name+` SET actor = 'mallory'`,
				`UPDATE `+table.name+` SET actor = 'mallory' WHERE resource IN ('one', 'three')`,
				`DELETE FROM `+table.name,
				`DELETE FROM `+table.name+` WHERE resource IN ('one', 'three')`,
				`INSERT INTO `+again,
				`INSERT INTO `+again+` WHERE 1 = 1 ON CONFLICT (`+table.key+`) DO UPDATE SET actor = 'mallory'`,
			)
			if db.Dialect() == "sqlite" {
				attempts = append(attempts, `INSERT OR REPLACE INTO `+again, `REPLACE INTO `+again, `UPDATE OR REPLACE `+table.name+` SET id = 'x'`)
			} else {
				attempts = append(attempts, `TRUNCATE `+table.name, `TRUNCATE `+table.name+` CASCADE`,
					`DO $$ BEGIN SET LOCAL session_replication_role = replica; DELETE FROM `+table.name+`; END $$`)
			}
		}
		attempts = append(attempts,
			`UPDATE events SET erased = 1, action = 'mallory'`,
			`UPDATE events SET erased = 1, partner = 'mallory', actor = ''`,
			`UPDATE events SET erased = 64, actor = 'mallory'`,
			`UPDATE events SET salt = checks`,
		)
		for _, query := range attempts {
			if err := exec(t, db, query); err == nil {
				t.Errorf("the database lets %q through", query)
			}
		}
		if diff := cmp.Diff(before, list(t, db, Query{})); diff != "" {
			t.Errorf("the trail changed:\n%s", diff)
		}
		// Erasing is let through, once.
		if err := exec(t, db, `UPDATE events SET erased = 1, actor = 'commitment' WHERE leaf_index = 1`); err != nil {
			t.Errorf("an erasure is refused: %v", err)
		}
		for _, query := range []string{`UPDATE events SET erased = 3, actor = 'another' WHERE leaf_index = 1`, `UPDATE events SET erased = 0, actor = 'rotunda' WHERE leaf_index = 1`} {
			if err := exec(t, db, query); err == nil {
				t.Errorf("the database lets %q through", query)
			}
		}
	})
}

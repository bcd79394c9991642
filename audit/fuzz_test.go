package audit

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// A page token that nobody gave out is refused as a caller's mistake, or reads
// some page; it never becomes a failure of the database. Nor do filters, which
// hold what a caller wrote.
func FuzzListPage(f *testing.F) {
	dbs := map[string]*store.DB{
		"sqlite":   storetest.SQLite(f),
		"postgres": storetest.Open(f, storetest.Postgres(f)),
	}
	f.Add("", "")
	f.Add("!", "token.")
	for _, db := range dbs {
		newClock(db)
		record(f, db, Event{Action: "token.create"}, Event{Action: "token.create"}, Event{Action: "token.revoke"})
		_, next, err := List(f.Context(), db, Query{Limit: 1})
		if err != nil || next == "" {
			f.Fatalf("no second page: %v", err)
		}
		f.Add(next, "token.")
	}
	for _, inside := range []string{strings.Repeat("0", 36), strings.Repeat("-", 36), strings.Repeat("f", 37), strings.Repeat("\x00", 36), strings.Repeat("é", 18), "'"} {
		f.Add(inside, inside)
	}
	f.Fuzz(func(t *testing.T, s, filter string) {
		for _, page := range []string{s, base64.RawURLEncoding.EncodeToString([]byte(s))} {
			for name, db := range dbs {
				events, next, err := List(t.Context(), db, Query{Limit: 2, Page: page, Action: filter})
				switch {
				case err != nil && (!errors.Is(err, fault.ErrInvalid) || events != nil || next != ""):
					t.Errorf("%s: page %q, action %q: %d events, next page %q, error %v", name, page, filter, len(events), next, err)
				case err == nil && (len(events) > 2 || next != "" && len(events) != 2):
					t.Errorf("%s: page %q, action %q: %d events, next page %q", name, page, filter, len(events), next)
				}
			}
		}
	})
}

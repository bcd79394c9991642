// Package audit keeps the trail: one event for every change and for every
// denied attempt.
//
// # Model
//
// [Record] writes an event in the transaction of the change that it tells of,
// so the trail can never disagree with the tables: either both are there or
// neither is. An event says who (actor, address, request id), what (action),
// on what (resource, partner), when, with which outcome and why. The database
// refuses to update, replace, delete or truncate events, by trigger. That stops
// every statement of this program, a mistake in it included, and every other
// user who may write there. It does not stop who may change the schema: the
// table's owner, which the application's user is unless another one made the
// tables, or whoever can write to SQLite's file. Whom the trail shall outlive
// must not hold those rights, or it must be copied to where they end.
//
// # Denied attempts
//
// An attempt that was refused has no transaction of its own to share, so
// [Denials] opens one. The first of its kind is written at once; equal ones
// within a minute are counted and written as one event with their Count. An
// actor at an address (in IPv6, at its /64) has a share of kinds; what he tries
// beyond it is counted as "various" under his name and address, and takes no
// place from others. Beyond a bound on all kinds the address is given up, and
// far beyond it the actor. So a flood of denied attempts is counted to the last
// in the trail, and fills neither the memory nor the database.
//
// # Failure
//
// When an event can't be written, the change does not happen. A denied attempt
// that can't be written is denied all the same, kept, and written later, as
// long as the process lives.
package audit

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// The outcomes of an attempt.
const (
	OK     = "ok"
	Denied = "denied"
)

// Event is one entry of the trail. Nothing in it may be secret.
type Event struct {
	ID        string // set by Record
	Time      time.Time
	Actor     string // a token's id, "anonymous", or "rotunda" for the scheduler
	Action    string // "keyset.create"
	Resource  string // "keysets/payments"
	Partner   string
	Outcome   string
	Reason    string
	RequestID string
	Address   string
	Detail    map[string]any // what changed, as JSON
	Count     int64          // equal attempts that this event stands for
}

// Actor is who makes a request. The zero Actor is Rotunda itself.
type Actor struct {
	ID        string
	Role      string
	Partner   string
	Address   string
	RequestID string
}

// Rotunda is the actor of everything that happens by schedule.
const Rotunda = "rotunda"

type actorKey struct{}

// WithActor returns a context whose events are put down to a.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorOf returns the actor of a context.
func ActorOf(ctx context.Context) Actor {
	a, ok := ctx.Value(actorKey{}).(Actor)
	if !ok || a.ID == "" {
		a.ID = Rotunda
	}
	return a
}

// maxText bounds each text field of an event, in bytes.
const maxText = 1024

// Record writes an event in the caller's transaction. The actor, his address,
// partner and request id come from ctx unless the event names others.
func Record(ctx context.Context, tx *store.Tx, e Event) error {
	a := ActorOf(ctx)
	fill(&e.Actor, a.ID)
	fill(&e.Partner, a.Partner)
	fill(&e.RequestID, a.RequestID)
	fill(&e.Address, a.Address)
	fill(&e.Outcome, OK)
	detail := []byte("{}")
	if len(e.Detail) > 0 {
		var err error
		if detail, err = json.Marshal(e.Detail); err != nil {
			return fmt.Errorf("record %s: encode its detail: %w", e.Action, err)
		}
	}
	if e.Action == "" || len(detail) > 16*maxText {
		return fmt.Errorf("record %q on %s: it has no action, or too much detail", e.Action, clip(e.Resource))
	}
	_, err := tx.Exec(ctx, `INSERT INTO events (id, occurred_at, actor, action, resource, partner, outcome, reason, request_id, address, detail, count)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		tx.ID(), store.Micros(tx.Now), clip(e.Actor), clip(e.Action), clip(e.Resource), clip(e.Partner), e.Outcome, clip(e.Reason),
		clip(e.RequestID), clip(e.Address), string(detail), max(1, e.Count))
	if err != nil {
		return fmt.Errorf("record %s on %s: %w", e.Action, e.Resource, err)
	}
	return nil
}

func fill(s *string, with string) {
	if *s == "" {
		*s = with
	}
}

// clip makes a text fit for a column of either database: bounded, valid UTF-8, no NUL.
func clip(s string) string {
	return cut(strings.ReplaceAll(strings.ToValidUTF8(cut(s), "\uFFFD"), "\x00", "\uFFFD"))
}

// cut shortens a text to maxText, between two characters.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > maxText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// Query selects events. Empty fields select everything.
type Query struct {
	Since, Until time.Time // half open: Since ≤ t < Until
	Actor        string
	Action       string // whole, or a prefix that ends with "."
	Resource     string // whole, or a prefix that ends with "/"
	Partner      string
	Outcome      string
	RequestID    string
	Address      string
	Limit        int    // 1 to 1000; 0 is 100
	Page         string // from the page before
}

// List returns events, newest first, and the Page of the next call, which is
// empty on the last page. Pages stay stable while the trail grows.
func List(ctx context.Context, db *store.DB, q Query) (events []Event, next string, err error) {
	limit := q.Limit
	if limit == 0 {
		limit = 100
	}
	if limit < 1 || limit > 1000 {
		return nil, "", fault.Invalid("page_size", "page_size_range", "list events: page_size %d is outside 1 to 1000", limit)
	}
	var where []string
	var args []any
	add := func(cond string, arg ...any) {
		for i := range arg {
			cond = strings.Replace(cond, "?", fmt.Sprintf("$%d", len(args)+1+i), 1)
		}
		where, args = append(where, cond), append(args, arg...)
	}
	if q.Page != "" {
		after, err := base64.RawURLEncoding.DecodeString(q.Page)
		if err != nil || len(after) != 36 || strings.Trim(string(after), "0123456789abcdef-") != "" {
			return nil, "", fault.Invalid("page_token", "bad_page_token", "list events: the page token is not one that Rotunda gave: start from the first page")
		}
		add("id < ?", string(after))
	}
	if !q.Since.IsZero() {
		add("occurred_at >= ?", store.Micros(q.Since))
	}
	if !q.Until.IsZero() {
		add("occurred_at < ?", store.Micros(q.Until))
	}
	for _, f := range []struct{ column, value, sep string }{
		{"actor", q.Actor, ""}, {"action", q.Action, "."}, {"resource", q.Resource, "/"}, {"partner", q.Partner, ""},
		{"outcome", q.Outcome, ""}, {"request_id", q.RequestID, ""}, {"address", q.Address, ""},
	} {
		f.value = clip(f.value) // as it was recorded
		switch {
		case f.value == "":
		case f.sep != "" && strings.HasSuffix(f.value, f.sep):
			// The prefix's range: the byte after the separator ends it.
			add(f.column+" >= ? AND "+f.column+" < ?", f.value, f.value[:len(f.value)-1]+string(f.sep[0]+1))
		default:
			add(f.column+" = ?", f.value)
		}
	}
	query := `SELECT id, occurred_at, actor, action, resource, partner, outcome, reason, request_id, address, detail, count FROM events`
	if len(where) > 0 {
		query += " WHERE " + strings.Join(where, " AND ")
	}
	query += fmt.Sprintf(" ORDER BY id DESC LIMIT %d", limit+1)
	err = db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		events = nil
		rows, err := tx.Query(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var e Event
			var at int64
			var detail string
			if err := rows.Scan(&e.ID, &at, &e.Actor, &e.Action, &e.Resource, &e.Partner, &e.Outcome, &e.Reason, &e.RequestID, &e.Address, &detail, &e.Count); err != nil {
				return err
			}
			e.Time = store.Time(at)
			if err := json.Unmarshal([]byte(detail), &e.Detail); err != nil {
				return fmt.Errorf("read the detail of event %s: %w", e.ID, err)
			}
			events = append(events, e)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list events: %w", err)
	}
	if len(events) > limit {
		events = events[:limit]
		next = base64.RawURLEncoding.EncodeToString([]byte(events[limit-1].ID))
	}
	return events, next, nil
}

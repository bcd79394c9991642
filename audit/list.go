package audit

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

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

// where is a condition on events with its arguments.
type where struct {
	conditions []string
	args       []any
}

// add adds a condition whose question marks stand for args.
func (w *where) add(condition string, args ...any) {
	for i := range args {
		condition = strings.Replace(condition, "?", "$"+strconv.Itoa(len(w.args)+1+i), 1)
	}
	w.conditions, w.args = append(w.conditions, condition), append(w.args, args...)
}

func (w *where) String() string {
	if len(w.conditions) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conditions, " AND ")
}

// erasable gives the bit of a column in events.erased.
var erasable = map[string]int64{"actor": 1 << trail.Actor, "partner": 1 << trail.Partner, "request_id": 1 << trail.RequestID, "address": 1 << trail.Address}

// match adds the conditions of a query. Erased values match nothing.
func (w *where) match(q Query, sequenced bool) {
	if !q.Since.IsZero() {
		w.add("occurred_at >= ?", store.Micros(q.Since))
	}
	if !q.Until.IsZero() {
		w.add("occurred_at < ?", store.Micros(q.Until))
	}
	for _, f := range []struct{ column, value, sep string }{
		{"actor", q.Actor, ""}, {"action", q.Action, "."}, {"resource", q.Resource, "/"}, {"partner", q.Partner, ""},
		{"outcome", q.Outcome, ""}, {"request_id", q.RequestID, ""}, {"address", q.Address, ""},
	} {
		f.value = clip(f.value) // as it was recorded
		switch {
		case f.value == "":
			continue
		case f.sep != "" && strings.HasSuffix(f.value, f.sep):
			// The prefix's range: the byte after the separator ends it.
			w.add(f.column+" >= ? AND "+f.column+" < ?", f.value, f.value[:len(f.value)-1]+string(f.sep[0]+1))
		default:
			w.add(f.column+" = ?", f.value)
		}
		if bit := erasable[f.column]; bit != 0 && sequenced {
			w.add("erased & ? = 0", bit)
		}
	}
}

// page is where a list goes on. While queued, it is among the events that had no
// leaf index below from when the list began, newest id first; then it is among
// the leaves below from.
type page struct {
	queued bool
	from   int64
	before string
}

func (p page) String() string {
	text := "i" + strconv.FormatInt(p.from, 10)
	if p.queued {
		text = "q" + strconv.FormatInt(p.from, 10) + ":" + p.before
	}
	return base64.RawURLEncoding.EncodeToString([]byte(text))
}

func parsePage(token string) (page, error) {
	bad := fault.Invalid("page_token", "bad_page_token", "list events: the page token is not one that Rotunda gave: start from the first page")
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) < 2 || len(raw) > 64 {
		return page{}, bad
	}
	p := page{queued: raw[0] == 'q'}
	number, before, found := strings.Cut(string(raw[1:]), ":")
	if found != p.queued || !p.queued && raw[0] != 'i' {
		return page{}, bad
	}
	if p.queued {
		if p.before = before; len(before) != 36 || strings.Trim(before, "0123456789abcdef-") != "" {
			return page{}, bad
		}
	}
	if p.from, err = strconv.ParseInt(number, 10, 64); err != nil || p.from < 0 || p.String() != token {
		return page{}, bad
	}
	return p, nil
}

// List returns events, newest first, and the Page of the next call, which is
// empty on the last page. Events that wait for their leaf index come first. Pages
// stay stable while the trail grows.
func List(ctx context.Context, db *store.DB, q Query) (events []Event, next string, err error) {
	limit := q.Limit
	if limit == 0 {
		limit = 100
	}
	if limit < 1 || limit > 1000 {
		return nil, "", fault.Invalid("page_size", "page_size_range", "list events: page_size %d is outside 1 to 1000", limit)
	}
	p := page{queued: true, from: -1}
	if q.Page != "" {
		if p, err = parsePage(q.Page); err != nil {
			return nil, "", err
		}
	}
	err = db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		events, next, err = listPage(ctx, tx, q, p, limit)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list events: %w", err)
	}
	return events, next, nil
}

func listPage(ctx context.Context, tx *store.Tx, q Query, p page, limit int) (events []Event, next string, err error) {
	if p.from < 0 {
		if err := tx.QueryRow(ctx, `SELECT size FROM trail WHERE id = 1`).Scan(&p.from); err != nil {
			return nil, "", err
		}
	}
	if p.queued {
		if events, err = waiting(ctx, tx, q, p, limit+1); err != nil {
			return nil, "", err
		}
		if len(events) > limit {
			events = events[:limit]
			p.before = events[limit-1].ID
			return events, p.String(), nil
		}
		if len(events) == limit {
			// Whether there is a next page, the leaves tell.
			more, err := leaves(ctx, tx, q, p.from, 1)
			if err != nil || len(more) == 0 {
				return events, "", err
			}
			return events, page{from: p.from}.String(), nil
		}
	}
	rest := limit - len(events)
	more, err := leaves(ctx, tx, q, p.from, rest+1)
	if err != nil {
		return nil, "", err
	}
	if len(more) > rest {
		more = more[:rest]
		next = page{from: more[rest-1].Index}.String()
	}
	return append(events, more...), next, nil
}

const eventColumns = `id, occurred_at, actor, action, resource, partner, outcome, reason, request_id, address, detail, count, intent`

// waiting returns events, newest first, that have no leaf index below p.from.
func waiting(ctx context.Context, tx *store.Tx, q Query, p page, limit int) ([]Event, error) {
	var all []Event
	for _, table := range []struct {
		name, index, erased string
	}{{"event_queue", "-1", "0"}, {"events", "leaf_index", "erased"}} {
		var w where
		sequenced := table.name == "events"
		if sequenced {
			w.add("leaf_index >= ?", p.from)
		}
		if p.before != "" {
			w.add("id < ?", p.before)
		}
		w.match(q, sequenced)
		list, err := query(ctx, tx, `SELECT `+table.index+`, `+table.erased+`, `+eventColumns+` FROM `+table.name+w.String()+
			fmt.Sprintf(" ORDER BY id DESC LIMIT %d", limit), w.args)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	slices.SortFunc(all, func(a, b Event) int { return strings.Compare(b.ID, a.ID) })
	return all[:min(len(all), limit)], nil
}

// leaves returns sequenced events below an index, newest first.
func leaves(ctx context.Context, tx *store.Tx, q Query, below int64, limit int) ([]Event, error) {
	var w where
	w.add("leaf_index < ?", below)
	w.match(q, true)
	return query(ctx, tx, `SELECT leaf_index, erased, `+eventColumns+` FROM events`+w.String()+fmt.Sprintf(" ORDER BY leaf_index DESC LIMIT %d", limit), w.args)
}

func query(ctx context.Context, tx *store.Tx, text string, args []any) ([]Event, error) {
	rows, err := tx.Query(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var events []Event
	for rows.Next() {
		var e Event
		var at, erased int64
		var detail string
		if err := rows.Scan(&e.Index, &erased, &e.ID, &at, &e.Actor, &e.Action, &e.Resource, &e.Partner, &e.Outcome, &e.Reason, &e.RequestID, &e.Address, &detail, &e.Count, &e.Intent); err != nil {
			return nil, err
		}
		e.Time = store.Time(at)
		values := [trail.NumFields]*string{&e.Actor, &e.Partner, &e.Reason, &e.RequestID, &e.Address, &detail}
		for f := range trail.NumFields {
			if erased&(1<<f) != 0 {
				*values[f] = ""
				e.Erased = append(e.Erased, f.String())
			}
		}
		if detail != "" {
			if err := json.Unmarshal([]byte(detail), &e.Detail); err != nil {
				return nil, fmt.Errorf("read the detail of event %s: %w", e.ID, err)
			}
		}
		events = append(events, e)
	}
	return events, rows.Err()
}

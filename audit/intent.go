package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// maxIntents bounds what OpenIntents returns.
const maxIntents = 1000

// Begin records that an effect outside of the database is about to be tried, and
// returns the id of that event. Commit tx before the effect: then a crash at any
// point leaves a start without an end, which [OpenIntents] lists. The event's
// outcome is Started, whatever it says.
func Begin(ctx context.Context, tx *store.Tx, e Event) (intent string, err error) {
	if e.Intent != "" {
		return "", fault.Invalid("intent", "intent_nested", "begin %s: an intent can't end another one", clip(e.Action))
	}
	e.Outcome = Started
	id, err := insert(ctx, tx, e)
	if err != nil {
		return "", err
	}
	if _, err := tx.Exec(ctx, `INSERT INTO open_intents (id, started_at) VALUES ($1, $2)`, id, store.Micros(tx.Now)); err != nil {
		return "", fmt.Errorf("begin %s: %w", clip(e.Action), err)
	}
	return id, nil
}

// End records how the effect of an intent came out: OK (also when the event says
// nothing), Denied or Failed. An intent ends once, also when two processes try at
// the same time: the second gets fault.ErrTransition, and its transaction must
// not commit. An intent that never began, or was pruned after its end, is
// fault.ErrNotFound.
func End(ctx context.Context, tx *store.Tx, intent string, e Event) error {
	fill(&e.Outcome, OK)
	if e.Outcome != OK && e.Outcome != Denied && e.Outcome != Failed {
		return fault.Invalid("outcome", "outcome_unknown", "end the intent %s: the outcome %q is none of %s, %s and %s", clip(intent), clip(e.Outcome), OK, Denied, Failed)
	}
	if e.Intent != "" && e.Intent != intent {
		return fault.Invalid("intent", "intent_differs", "end the intent %s: the event names another one, %s", clip(intent), clip(e.Intent))
	}
	// The row is what two processes contend for.
	res, err := tx.Exec(ctx, `DELETE FROM open_intents WHERE id = $1`, clip(intent))
	if err != nil {
		return fmt.Errorf("end the intent %s: %w", clip(intent), err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return fmt.Errorf("end the intent %s: %w", clip(intent), err)
	}
	if n == 0 {
		var known bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM events WHERE id = $1 AND outcome = 'started')
			OR EXISTS (SELECT 1 FROM event_queue WHERE id = $2 AND outcome = 'started')`, clip(intent), clip(intent)).Scan(&known)
		if err != nil {
			return fmt.Errorf("end the intent %s: %w", clip(intent), err)
		}
		if !known {
			return fault.New(fault.ErrNotFound, "intent_not_found", "end the intent %s: there is none with this id", clip(intent)).On("intent")
		}
		return fault.New(fault.ErrTransition, "intent_ended", "end the intent %s: it has ended already: its outcome is in the trail (rotunda audit list)", clip(intent)).On("intent")
	}
	e.Intent = intent
	return Record(ctx, tx, e)
}

// OpenIntents returns up to limit (1 to 1000; 0: 100) starts older than before
// that have no end, oldest first. What their effects did is not known: the
// process died, or is still at it.
func OpenIntents(ctx context.Context, db *store.DB, before time.Time, limit int) ([]Event, error) {
	if limit == 0 {
		limit = 100
	}
	if limit < 1 || limit > maxIntents {
		return nil, fault.Invalid("page_size", "page_size_range", "list open intents: the limit %d is outside 1 to %d", limit, maxIntents)
	}
	var events []Event
	err := db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		ids, err := openIntents(ctx, tx, before, limit)
		if err != nil || len(ids) == 0 {
			return err
		}
		in := ` WHERE id IN (SELECT id FROM open_intents WHERE started_at < $1 ORDER BY started_at, id LIMIT ` + fmt.Sprint(limit) + `)`
		events, err = query(ctx, tx, `SELECT leaf_index, erased, `+eventColumns+` FROM events`+in, []any{store.Micros(before)})
		if err != nil {
			return err
		}
		if len(events) < len(ids) {
			waiting, err := query(ctx, tx, `SELECT -1, 0, `+eventColumns+` FROM event_queue`+in, []any{store.Micros(before)})
			if err != nil {
				return err
			}
			events = append(events, waiting...)
		}
		if len(events) != len(ids) {
			return fmt.Errorf("of %d open intents %d have no event: the trail was altered: export it and verify it", len(ids), len(ids)-len(events))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list open intents: %w", err)
	}
	slices.SortFunc(events, func(a, b Event) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.ID, b.ID))
	})
	return events, nil
}

func openIntents(ctx context.Context, tx *store.Tx, before time.Time, limit int) (ids []string, err error) {
	rows, err := tx.Query(ctx, `SELECT id FROM open_intents WHERE started_at < $1 ORDER BY started_at, id LIMIT `+fmt.Sprint(limit), store.Micros(before))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

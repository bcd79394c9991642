package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// maxHolds bounds what every event is compared with when events are pruned.
const maxHolds = 1000

// Hold is a legal hold. What it covers is neither pruned nor erased: the events
// that a search for its partner and resource finds. Without both it covers
// everything.
type Hold struct {
	Name      string // up to 100 lower-case letters, digits and - . _
	Reason    string // required
	Partner   string // "": any
	Resource  string // "": any; whole, or a prefix that ends with "/"
	CreatedAt time.Time
}

// covers is the condition that some hold covers a row of events. An event whose
// partner was erased (bit 1) may be anybody's, so every hold of a partner covers it.
const covers = `(h.partner = '' OR h.partner = events.partner OR (events.erased & 2) <> 0)
	AND (h.resource = '' OR h.resource = events.resource
		OR (substr(h.resource, length(h.resource), 1) = '/' AND substr(events.resource, 1, length(h.resource)) = h.resource))`

const (
	isHeld = `EXISTS (SELECT 1 FROM holds h WHERE ` + covers + `)`
	isOpen = `EXISTS (SELECT 1 FROM open_intents o WHERE o.id = events.id)`
)

// lockRetention makes pruning, erasing and changes of holds and retention wait
// for one another: a hold that was added covers everything that is still there.
func lockRetention(ctx context.Context, tx *store.Tx) error {
	return tx.Swap(ctx, `UPDATE retention SET keep = keep WHERE id = 1`)
}

// AddHold adds a legal hold. Once it returns, nothing that the hold covers is
// pruned or erased any more; what was pruned before is gone.
func (t *Trail) AddHold(ctx context.Context, h Hold) error {
	if len(h.Name) == 0 || len(h.Name) > 100 || strings.Trim(h.Name, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
		return fault.Invalid("name", "name_malformed", "add a legal hold: the name %q is not 1 to 100 lower-case letters, digits and - . _", clip(h.Name))
	}
	if h.Reason == "" {
		return fault.Invalid("reason", "reason_required", "add the legal hold %q: say why: an auditor will ask", h.Name)
	}
	for field, text := range map[string]string{"reason": h.Reason, "partner": h.Partner, "resource": h.Resource} {
		if clip(text) != text {
			return fault.Invalid(field, "text_malformed", "add the legal hold %q: the %s is not UTF-8 of at most %d bytes", h.Name, field, maxText)
		}
	}
	err := t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := lockRetention(ctx, tx); err != nil {
			return err
		}
		var n, same int64
		err := tx.QueryRow(ctx, `SELECT COUNT(*), COALESCE(SUM(CASE WHEN name = $1 THEN 1 ELSE 0 END), 0) FROM holds`, h.Name).Scan(&n, &same)
		switch {
		case err != nil:
			return err
		case same > 0:
			return fault.New(fault.ErrExists, "hold_exists", "there is a hold of this name: release it first, or choose another name").On("name")
		case n >= maxHolds:
			return fault.New(fault.ErrLimited, "too_many_holds", "there are %d holds, which is the limit: release one, or add a wider one", n)
		}
		_, err = tx.Exec(ctx, `INSERT INTO holds (name, reason, partner, resource, created_at) VALUES ($1, $2, $3, $4, $5)`, h.Name, h.Reason, h.Partner, h.Resource, store.Micros(tx.Now))
		if err != nil {
			return err
		}
		return Record(ctx, tx, Event{Action: "hold.create", Resource: "holds/" + h.Name, Reason: h.Reason, Detail: map[string]any{"partner": h.Partner, "resource": h.Resource}})
	})
	if err != nil {
		return fmt.Errorf("add the legal hold %q: %w", h.Name, err)
	}
	return nil
}

// ReleaseHold ends a legal hold. What only it covered is pruned by a later pass.
func (t *Trail) ReleaseHold(ctx context.Context, name, reason string) error {
	if reason == "" {
		return fault.Invalid("reason", "reason_required", "release the legal hold %q: say why: an auditor will ask", clip(name))
	}
	err := t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := lockRetention(ctx, tx); err != nil {
			return err
		}
		var h Hold
		err := tx.QueryRow(ctx, `DELETE FROM holds WHERE name = $1 RETURNING partner, resource`, clip(name)).Scan(&h.Partner, &h.Resource)
		if errors.Is(err, sql.ErrNoRows) {
			return fault.New(fault.ErrNotFound, "hold_not_found", "there is no such hold: see `rotunda audit status`").On("name")
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE retention SET swept = 0, next_at = 0 WHERE id = 1`); err != nil {
			return err
		}
		return Record(ctx, tx, Event{Action: "hold.release", Resource: "holds/" + name, Reason: reason, Detail: map[string]any{"partner": h.Partner, "resource": h.Resource}})
	})
	if err != nil {
		return fmt.Errorf("release the legal hold %q: %w", clip(name), err)
	}
	return nil
}

// Holds returns the legal holds, by name.
func (t *Trail) Holds(ctx context.Context) (holds []Hold, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		holds = nil
		rows, err := tx.Query(ctx, `SELECT name, reason, partner, resource, created_at FROM holds ORDER BY name`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var h Hold
			var at int64
			if err := rows.Scan(&h.Name, &h.Reason, &h.Partner, &h.Resource, &at); err != nil {
				return err
			}
			h.CreatedAt = store.Time(at)
			holds = append(holds, h)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list legal holds: %w", err)
	}
	return holds, nil
}

package rotation

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// TopicDeliveries wakes listeners in this process when a webhook was queued.
const TopicDeliveries = "deliveries"

// maxBody bounds the body of a webhook, in bytes.
const maxBody = 16 << 10

// DeliveryState is what became of a delivery.
type DeliveryState string

// The states of a delivery.
const (
	Waiting   DeliveryState = "waiting"
	Delivered DeliveryState = "delivered"
	Dead      DeliveryState = "dead" // given up; Redeliver tries again
)

// Delivery is one webhook on its way to one endpoint.
type Delivery struct {
	ID          string // the webhook-id, the same with every try
	Endpoint    string
	Type        string // "credential.rotated"
	Body        string // JSON; holds no secret
	State       DeliveryState
	Attempts    int64 // tries since it was queued, or redelivered
	NextAt      time.Time
	CreatedAt   time.Time
	DeliveredAt time.Time
	LastStatus  int64 // of the answer to the last try; 0: there was none
	LastError   string

	tampered bool
}

// message is the body of a webhook.
type message struct {
	Type      string         `json:"type"`
	Timestamp string         `json:"timestamp"`
	Data      map[string]any `json:"data"`
}

// enqueue queues a webhook for all active endpoints that a credential notifies. It is sent after
// the transaction has committed, at least once, in no promised order.
//
// data has "credential", "target", "generation" (that consumers read), "stores" (a list of
// "store", "path" and "version"), and what detail has. Nothing in it may be secret. More than 16 KiB
// is left away but for the names, and "shortened" says so.
func (s *Systems) enqueue(ctx context.Context, tx *store.Tx, c *Credential, typ string, detail map[string]any) error {
	if len(c.Notify) == 0 {
		return nil
	}
	placed, err := s.readPlacements(ctx, tx, c)
	if err != nil {
		return err
	}
	data := map[string]any{"credential": c.Name, "target": c.Target, "generation": c.Current}
	stores := []map[string]string{}
	for _, p := range placed {
		stores = append(stores, map[string]string{"store": p.Store, "path": p.Path, "version": p.Version})
	}
	data["stores"] = stores
	for name, v := range detail {
		data[name] = v
	}
	for _, endpoint := range c.Notify {
		var active bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM endpoints WHERE name = $1 AND state = 'active')`, endpoint).Scan(&active)
		if err != nil {
			return err
		}
		if !active {
			continue
		}
		if _, err := s.queue(ctx, tx, endpoint, typ, data, tx.Now); err != nil {
			return err
		}
	}
	return nil
}

// queue writes a webhook of which the first try is at next.
func (s *Systems) queue(ctx context.Context, tx *store.Tx, endpoint, typ string, data map[string]any, next time.Time) (*Delivery, error) {
	body, err := json.Marshal(message{Type: typ, Timestamp: tx.Now.Format(time.RFC3339Nano), Data: data})
	if err != nil {
		return nil, fmt.Errorf("encode a webhook %s: %w", typ, err)
	}
	if len(body) > maxBody {
		// What it tells of must not fail because it can't be told in full.
		short := map[string]any{"shortened": true}
		for _, name := range []string{"credential", "target", "generation", "rotation", "grace_ends_at"} {
			if v, ok := data[name]; ok {
				short[name] = v
			}
		}
		if body, err = json.Marshal(message{Type: typ, Timestamp: tx.Now.Format(time.RFC3339Nano), Data: short}); err != nil {
			return nil, fmt.Errorf("encode a webhook %s: %w", typ, err)
		}
	}
	d := &Delivery{ID: tx.ID(), Endpoint: endpoint, Type: typ, Body: string(body), State: Waiting, NextAt: next, CreatedAt: tx.Now}
	_, err = tx.Exec(ctx, `INSERT INTO deliveries (`+deliveryColumns+`) VALUES ($1, $2, $3, $4, $5, 0, $6, $7, 0, 0, '', $8)`,
		d.ID, d.Endpoint, d.Type, d.Body, d.State, store.Micros(d.NextAt), store.Micros(d.CreatedAt), sealRow(s.key, "deliveries", d.parts()...))
	if err != nil {
		return nil, fmt.Errorf("queue a webhook %s: %w", typ, err)
	}
	tx.Wake(TopicDeliveries)
	return d, nil
}

const deliveryColumns = `id, endpoint, type, body, state, attempts, next_at, created_at, delivered_at, last_status, last_error, seal`

// parts are what is sent. Who may write to the database can delay and drop webhooks, and not have
// us sign what he likes.
func (d *Delivery) parts() []any { return []any{d.ID, d.Endpoint, d.Type, d.Body, d.CreatedAt} }

func (es *Endpoints) scanDelivery(row interface{ Scan(...any) error }) (*Delivery, error) {
	var d Delivery
	var next, created, delivered int64
	var seal []byte
	err := row.Scan(&d.ID, &d.Endpoint, &d.Type, &d.Body, &d.State, &d.Attempts, &next, &created, &delivered, &d.LastStatus, &d.LastError, &seal)
	if err != nil {
		return nil, err
	}
	d.NextAt, d.CreatedAt, d.DeliveredAt = store.Time(next), store.Time(created), store.Time(delivered)
	d.tampered = !genuineRow(es.systems.key, seal, "deliveries", d.parts()...)
	return &d, nil
}

func (es *Endpoints) queryDeliveries(ctx context.Context, tx *store.Tx, where string, args ...any) (list []*Delivery, err error) {
	rows, err := tx.Query(ctx, `SELECT `+deliveryColumns+` FROM deliveries `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		d, err := es.scanDelivery(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, rows.Err()
}

// ListDeliveries selects deliveries. Empty fields select all.
type ListDeliveries struct {
	Endpoint string
	State    DeliveryState
	Page     string
	Limit    int // 1 to 1,000
}

// where is the SQL condition of a selection. Those that were given up are few among many: the
// condition is that of their index, in its words.
func (q ListDeliveries) where(before string) (where string, args []any) {
	where, args = `WHERE id < $1`, []any{before}
	add := func(column string, value any) {
		args = append(args, value)
		where += fmt.Sprintf(` AND %s = $%d`, column, len(args))
	}
	if q.Endpoint != "" {
		add("endpoint", q.Endpoint)
	}
	switch q.State {
	case "":
	case Dead:
		where += ` AND state = 'dead'`
	default:
		add("state", q.State)
	}
	return where, args
}

// Deliveries returns deliveries, the newest first, and the page to continue at.
func (es *Endpoints) Deliveries(ctx context.Context, q ListDeliveries) (list []*Delivery, next string, err error) {
	if err := checkLimit(q.Limit); err != nil {
		return nil, "", fmt.Errorf("list deliveries: %w", err)
	}
	if q.Page != "" && !uuid.MatchString(q.Page) {
		return nil, "", fault.Invalid("page_token", "bad_page_token", "list deliveries: the page token is not one that Rotunda gave: start from the first page")
	}
	before := q.Page
	if before == "" {
		before = "g" // after all ids
	}
	err = es.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		where, args := q.where(before)
		list, err = es.queryDeliveries(ctx, tx, where+fmt.Sprintf(` ORDER BY id DESC LIMIT %d`, q.Limit+1), args...)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list deliveries: %w", err)
	}
	if len(list) > q.Limit {
		list = list[:q.Limit]
		next = list[q.Limit-1].ID
	}
	return list, next, nil
}

// Redeliver sends a delivery once more, under the same id, whatever became of it.
func (es *Endpoints) Redeliver(ctx context.Context, id string) (d *Delivery, err error) {
	err = es.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		d, err = es.readDelivery(ctx, tx, id)
		if err != nil {
			return err
		}
		e, err := es.lockEndpoint(ctx, tx, d.Endpoint)
		if err != nil {
			return err
		}
		if e.State != EndpointActive {
			return fault.New(fault.ErrTransition, "endpoint_disabled", "endpoint %q is %s since %s: enable it first", e.Name, e.State, e.Since.Format(time.RFC3339))
		}
		d.State, d.Attempts, d.NextAt, d.DeliveredAt = Waiting, 0, tx.Now, time.Time{}
		if _, err := tx.Exec(ctx, `UPDATE deliveries SET state = $1, attempts = 0, next_at = $2, delivered_at = 0 WHERE id = $3`, d.State, store.Micros(d.NextAt), id); err != nil {
			return err
		}
		tx.Wake(TopicDeliveries)
		return e.record(ctx, tx, "redeliver", "", map[string]any{"delivery": id, "type": d.Type})
	})
	if err != nil {
		return nil, fmt.Errorf("redeliver %q: %w", clip(id), err)
	}
	es.wakeUp(d.Endpoint)
	return d, nil
}

// wakeUp ends the rest of an endpoint.
func (es *Endpoints) wakeUp(name string) {
	es.mu.Lock()
	defer es.mu.Unlock()
	delete(es.resting, name)
}

func (es *Endpoints) readDelivery(ctx context.Context, tx *store.Tx, id string) (*Delivery, error) {
	d, err := es.scanDelivery(tx.QueryRow(ctx, `SELECT `+deliveryColumns+` FROM deliveries WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.ErrNotFound, "delivery_not_found", "there is no delivery %q: those that ended are forgotten after 30 days", clip(id)).On("id")
	}
	if err == nil && d.tampered {
		return nil, errTampered("delivery", id)
	}
	return d, err
}

// Test sends a webhook of type "endpoint.test" now, once, and returns what became of it.
func (es *Endpoints) Test(ctx context.Context, name string) (d *Delivery, err error) {
	err = es.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		e, err := es.lockEndpoint(ctx, tx, name)
		if err != nil {
			return err
		}
		if e.State != EndpointActive {
			return fault.New(fault.ErrTransition, "endpoint_disabled", "it is %s since %s: enable it first", e.State, e.Since.Format(time.RFC3339))
		}
		// The pass leaves it to us.
		if d, err = es.systems.queue(ctx, tx, name, "endpoint.test", map[string]any{"endpoint": name}, tx.Now.Add(sendLease)); err != nil {
			return err
		}
		d.Attempts = maxTries // it is not tried again
		if _, err := tx.Exec(ctx, `UPDATE deliveries SET attempts = $1 WHERE id = $2`, d.Attempts, d.ID); err != nil {
			return err
		}
		return e.record(ctx, tx, "test", "", map[string]any{"delivery": d.ID})
	})
	if err != nil {
		return nil, fmt.Errorf("test endpoint %q: %w", clip(name), err)
	}
	if _, err := es.send(ctx, d); err != nil {
		return nil, fmt.Errorf("test endpoint %q: %w", name, err)
	}
	err = es.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		d, err = es.readDelivery(ctx, tx, d.ID)
		return err
	})
	return d, err
}

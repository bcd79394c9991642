package rotation

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

const (
	// A webhook is tried after 5 s, 10 s, 20 s … and then every 6 hours: the last of these
	// tries is about three days after the first.
	firstRetry = 5 * time.Second
	lastRetry  = 6 * time.Hour
	maxTries   = 23

	maxRetryAfter = 24 * time.Hour
	sendTimeout   = 15 * time.Second
	sendLease     = time.Minute // a try whose process died is made again after this
	sendBatch     = 16          // of one endpoint in one turn
	sendParallel  = 32          // endpoints at once
	sendPatience  = 2 * time.Second
	maxRest       = time.Minute

	keepDeliveries = 30 * 24 * time.Hour
	pruneEvery     = time.Hour
	pruneRows      = 1000
	maxSendError   = 300
)

// rest is how long an endpoint that did not answer is left alone.
type rest struct {
	until    time.Time
	failures int
}

// DeliverPass sends what is due, and forgets what ended more than 30 days ago. Each endpoint has a
// turn of its own, and one that does not answer holds up nobody else: the pass does not wait for it.
func (es *Endpoints) DeliverPass(ctx context.Context, now time.Time) (time.Time, error) {
	if err := es.prune(ctx, now); err != nil {
		return time.Time{}, fmt.Errorf("forget old deliveries: %w", err)
	}
	names, err := es.dueEndpoints(ctx, now)
	if err != nil {
		return time.Time{}, fmt.Errorf("look for webhooks that are due: %w", err)
	}
	var turns sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	more := false
	for _, name := range names {
		es.mu.Lock()
		if es.busy[name] || now.Before(es.resting[name].until) {
			es.mu.Unlock()
			continue
		}
		if len(es.busy) >= sendParallel {
			es.mu.Unlock()
			more = true
			break
		}
		es.busy[name] = true
		es.sending.Add(1)
		es.mu.Unlock()
		turns.Go(func() {
			defer func() {
				es.mu.Lock()
				delete(es.busy, name)
				es.mu.Unlock()
				es.sending.Done()
			}()
			again, err := es.turnOf(context.WithoutCancel(ctx), name, now)
			mu.Lock()
			defer mu.Unlock()
			more = more || again
			if err != nil {
				errs = append(errs, fmt.Errorf("endpoint %q: %w", name, err))
			}
		})
	}
	done := make(chan struct{})
	go func() { turns.Wait(); close(done) }()
	patience := time.NewTimer(sendPatience)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	}
	mu.Lock()
	defer mu.Unlock()
	if len(errs) > 0 {
		return time.Time{}, joined("endpoints", errs)
	}
	if more {
		return now, nil
	}
	return es.nextDue(ctx, now)
}

// Close waits until what is being sent has been.
func (es *Endpoints) Close() { es.sending.Wait() }

// nextDue is when the next webhook is due, and not before now: what rests is looked at in a while.
func (es *Endpoints) nextDue(ctx context.Context, now time.Time) (time.Time, error) {
	var us int64
	err := es.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(MIN(next_at), 0) FROM deliveries WHERE next_at > 0`).Scan(&us)
	})
	next := store.Time(us)
	if !next.IsZero() && !next.After(now) {
		next = now.Add(time.Second)
	}
	return next, err
}

// dueEndpoints are the endpoints that something is due for. It reads one row for each that
// something waits for.
func (es *Endpoints) dueEndpoints(ctx context.Context, now time.Time) (names []string, err error) {
	err = es.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		names = nil
		var first int64
		if err := tx.QueryRow(ctx, `SELECT COALESCE(MIN(next_at), 0) FROM deliveries WHERE next_at > 0`).Scan(&first); err != nil || first == 0 || first > store.Micros(now) {
			return err
		}
		for after := ""; ; {
			var name string
			var next int64
			err := tx.QueryRow(ctx, `SELECT endpoint, next_at FROM deliveries WHERE next_at > 0 AND endpoint > $1 ORDER BY endpoint, next_at LIMIT 1`, after).Scan(&name, &next)
			if errors.Is(err, sql.ErrNoRows) {
				return nil
			}
			if err != nil {
				return err
			}
			if next <= store.Micros(now) {
				names = append(names, name)
			}
			after = name
		}
	})
	// So that no endpoint is always the last to get a turn.
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] }) //nolint:gosec // no secret
	return names, err
}

// turnOf sends what is due for one endpoint, in the order in which it became due, until one can't
// be delivered. more says that something was left.
func (es *Endpoints) turnOf(ctx context.Context, name string, now time.Time) (more bool, err error) {
	var due []*Delivery
	err = es.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		due, err = es.queryDeliveries(ctx, tx, `WHERE endpoint = $1 AND next_at > 0 AND next_at <= $2 ORDER BY next_at, id LIMIT $3`, name, store.Micros(now), sendBatch)
		return err
	})
	if err != nil {
		return false, err
	}
	for _, d := range due {
		claimed, err := es.claimDelivery(ctx, d)
		if err != nil {
			return false, err
		}
		if !claimed {
			continue
		}
		answered, err := es.send(ctx, d)
		if err != nil {
			return false, err
		}
		if !answered {
			return false, nil
		}
	}
	return len(due) == sendBatch, nil
}

// claimDelivery takes a delivery for one try, away from other processes. A try whose process dies
// is made again after the lease.
func (es *Endpoints) claimDelivery(ctx context.Context, d *Delivery) (bool, error) {
	err := es.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.Swap(ctx, `UPDATE deliveries SET attempts = attempts + 1, next_at = $1 WHERE id = $2 AND next_at = $3`,
			store.Micros(tx.Now.Add(sendLease)), d.ID, store.Micros(d.NextAt))
	})
	if errors.Is(err, fault.ErrChanged) {
		return false, nil
	}
	d.Attempts++
	return err == nil, err
}

// send makes one try of a claimed delivery, and records it. answered says whether the endpoint is
// worth trying the next one.
func (es *Endpoints) send(ctx context.Context, d *Delivery) (answered bool, err error) {
	answer, sendErr := es.try(ctx, d)
	d.LastStatus, d.LastError = int64(answer.Status), ""
	switch {
	case sendErr != nil:
		d.LastError = sendErr.Error()
	case answer.Status < 200 || answer.Status > 299:
		d.LastError = fmt.Sprintf("it answered %d", answer.Status)
	}
	if len(d.LastError) > maxSendError {
		d.LastError = d.LastError[:maxSendError] + "…"
	}
	d.LastError = validText(d.LastError)
	delivered := d.LastError == ""
	gone := answer.Status == 410
	wait := retryDelay(d.Attempts)
	if answer.RetryAfter > 0 {
		wait = max(wait, min(answer.RetryAfter, maxRetryAfter))
	}
	err = es.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		state, next, at := Waiting, tx.Now.Add(wait), time.Time{}
		switch {
		case delivered:
			state, next, at = Delivered, time.Time{}, tx.Now
		case gone || d.Attempts >= maxTries || errors.Is(sendErr, fault.ErrDenied):
			state, next = Dead, time.Time{}
		}
		_, err := tx.Exec(ctx, `UPDATE deliveries SET state = $1, next_at = $2, delivered_at = $3, last_status = $4, last_error = $5 WHERE id = $6 AND state = 'waiting'`,
			state, store.Micros(next), store.Micros(at), d.LastStatus, d.LastError, d.ID)
		return err
	})
	if err != nil {
		return false, err
	}
	if gone {
		_, err := es.Disable(ctx, d.Endpoint, "it answered 410 Gone")
		if errors.Is(err, fault.ErrTransition) {
			err = nil // somebody has
		}
		return false, err
	}
	es.settleRest(d.Endpoint, sendErr == nil && answer.Status < 500 && answer.Status != 429, answer.RetryAfter)
	return delivered || sendErr == nil && answer.Status < 500 && answer.Status != 429, nil
}

// settleRest notes whether an endpoint answered, and lets one that does not rest for a while.
func (es *Endpoints) settleRest(name string, answered bool, after time.Duration) {
	es.mu.Lock()
	defer es.mu.Unlock()
	if answered {
		delete(es.resting, name)
		return
	}
	r := es.resting[name]
	r.failures++
	pause := min(time.Second<<min(r.failures, 6), maxRest)
	r.until = es.db.Now().Add(max(pause, min(after, maxRetryAfter)))
	es.resting[name] = r
}

func (es *Endpoints) try(ctx context.Context, d *Delivery) (Answer, error) {
	if d.tampered {
		return Answer{}, errTampered("delivery", d.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	var e *Endpoint
	err := es.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		e, err = es.readEndpoint(ctx, tx, d.Endpoint)
		return err
	})
	if err != nil {
		return Answer{}, err
	}
	secrets, err := es.secrets.SigningSecrets(ctx, e.Partner, e.Secret)
	if err != nil {
		return Answer{}, err
	}
	headers, err := webhook.Sign(d.ID, es.db.Now(), []byte(d.Body), secrets...)
	if err != nil {
		return Answer{}, err
	}
	o := Outgoing{URL: e.URL, Header: map[string][]string{"Content-Type": {"application/json"}, "User-Agent": {"Rotunda"}}, Body: []byte(d.Body)}
	headers.Set(o.Header)
	return es.sender.Send(ctx, o)
}

// retryDelay is the time to the next try after so many, with up to a quarter more.
func retryDelay(attempts int64) time.Duration {
	wait := lastRetry
	if attempts < 13 {
		wait = min(firstRetry<<max(attempts-1, 0), lastRetry)
	}
	return wait + rand.N(wait/4) //nolint:gosec // jitter is no secret
}

// prune forgets a batch of what ended long ago, once in a while.
func (es *Endpoints) prune(ctx context.Context, now time.Time) error {
	es.mu.Lock()
	due := now.Sub(es.prunedAt) >= pruneEvery || now.Before(es.prunedAt)
	es.mu.Unlock()
	if !due {
		return nil
	}
	var n int64
	err := es.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		// Ids sort by the time at which they were made.
		res, err := tx.Exec(ctx, `DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries WHERE id < $1 AND next_at = 0 ORDER BY id LIMIT $2)`,
			idBefore(now.Add(-keepDeliveries)), pruneRows)
		if err != nil {
			return err
		}
		n, err = res.RowsAffected()
		return err
	})
	if err == nil && n < pruneRows {
		es.mu.Lock()
		es.prunedAt = now
		es.mu.Unlock()
	}
	return err
}

// idBefore sorts after all ids that were made before t, to the millisecond.
func idBefore(t time.Time) string {
	h := fmt.Sprintf("%012x", max(t.UnixMilli(), 0))
	return h[:8] + "-" + h[8:12]
}

func validText(s string) string {
	if i := slices.IndexFunc([]rune(s), func(r rune) bool { return r == 0xFFFD || r < ' ' }); i < 0 {
		return s
	}
	out := []rune(s)
	for i, r := range out {
		if r == 0xFFFD || r < ' ' {
			out[i] = '.'
		}
	}
	return string(out)
}

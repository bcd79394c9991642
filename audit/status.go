package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// maxWaiting bounds the count of events that wait: beyond it the count says no more.
const maxWaiting = 100_000

// Status is how the trail is doing, as the database has it.
type Status struct {
	Origin       string
	Size         int64     // leaves
	Waiting      int64     // events without a leaf index, at most 100,001 of them are counted
	WaitingSince time.Time // of the oldest of them; zero: none waits
	Stopped      string    // why nothing is recorded any more, or ""
	Checkpoint   string    // the newest, signed, with cosignatures; "" before the first event
	CheckpointAt time.Time
	Pruned       int64         // events below it were pruned, but for those that are kept
	Retention    time.Duration // 0: for ever
	Key          string        // the vkey that signs
}

// Status returns how the trail is doing, of one state of the database.
func (t *Trail) Status(ctx context.Context) (s Status, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		s = Status{}
		h, err := readHead(ctx, tx)
		if err != nil {
			return err
		}
		s.Origin, s.Size, s.Stopped, s.Pruned = h.origin, h.size, h.stopped, h.pruned
		var since int64
		err = tx.QueryRow(ctx, fmt.Sprintf(`SELECT COUNT(*), COALESCE(MIN(occurred_at), 0) FROM (SELECT occurred_at FROM event_queue ORDER BY seq LIMIT %d) AS waiting`, maxWaiting+1)).Scan(&s.Waiting, &since)
		if err != nil {
			return fmt.Errorf("count the events that wait: %w", err)
		}
		s.WaitingSince = store.Time(since)
		r, err := readRetention(ctx, tx)
		if err != nil {
			return err
		}
		s.Retention = r.keep
		if err := tx.QueryRow(ctx, `SELECT vkey FROM trail_keys WHERE id = $1`, h.keyID).Scan(&s.Key); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("read the trail's key: %w", err)
		}
		var size int64
		err = tx.QueryRow(ctx, `SELECT size FROM checkpoints ORDER BY size DESC LIMIT 1`).Scan(&size)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the newest checkpoint: %w", err)
		}
		_, s.Checkpoint, s.CheckpointAt, err = signedAt(ctx, tx, size)
		return err
	})
	if err != nil {
		return Status{}, fmt.Errorf("read the trail's status: %w", err)
	}
	return s, nil
}

// CheckpointAt returns the signed checkpoint of a size (0: the newest), with the
// cosignatures of witnesses, and when it was signed, or fault.ErrNotFound: not
// every size has one.
func (t *Trail) CheckpointAt(ctx context.Context, size int64) (c trail.Checkpoint, signed string, at time.Time, err error) {
	if size == 0 {
		size = -1
	}
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, signed, at, err = signedAt(ctx, tx, size)
		return err
	})
	return c, signed, at, err
}

func signedAt(ctx context.Context, tx *store.Tx, size int64) (c trail.Checkpoint, signed string, at time.Time, err error) {
	if c, signed, err = checkpointAt(ctx, tx, size); err != nil {
		return c, "", at, err
	}
	var us int64
	if err := tx.QueryRow(ctx, `SELECT signed_at FROM checkpoints WHERE size = $1`, c.Size).Scan(&us); err != nil {
		return c, "", at, fmt.Errorf("read when a checkpoint was signed: %w", err)
	}
	return c, signed, store.Time(us), nil
}

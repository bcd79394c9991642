package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Lease is the right to do one named thing, until ExpiresAt.
type Lease struct {
	Name      string
	Holder    string // one process: choose a new random name at every start
	Epoch     int64  // 1, 2, 3, …: grows whenever the lease is taken anew
	ExpiresAt time.Time
}

// Acquire takes the lease when it is free or expired, with the next epoch; a
// holder that still has it gets it extended, with the same epoch. When another
// one holds it the error wraps [ErrHeld].
func (db *DB) Acquire(ctx context.Context, name, holder string, ttl time.Duration) (Lease, error) {
	if name == "" || holder == "" || ttl < time.Millisecond {
		return Lease{}, fmt.Errorf("store: acquire lease %q for %q: name and holder must be set, and ttl %v at least 1ms", name, holder, ttl)
	}
	l := Lease{Name: name, Holder: holder}
	err := db.Update(ctx, func(ctx context.Context, tx *Tx) error {
		l.ExpiresAt = tx.Now.Add(ttl).Truncate(time.Microsecond)
		err := tx.QueryRow(ctx, `INSERT INTO leases (name, holder, epoch, expires_at) VALUES ($1, $2, 1, $3)
			ON CONFLICT (name) DO UPDATE SET
				epoch = leases.epoch + CASE WHEN leases.holder = excluded.holder AND leases.expires_at > $4 THEN 0 ELSE 1 END,
				holder = excluded.holder,
				expires_at = excluded.expires_at
			WHERE leases.holder = excluded.holder OR leases.holder = '' OR leases.expires_at <= $4
			RETURNING epoch`,
			name, holder, Micros(l.ExpiresAt), Micros(tx.Now)).Scan(&l.Epoch)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("acquire lease %q: %w", name, ErrHeld)
		}
		return err
	})
	if err != nil {
		return Lease{}, err
	}
	return l, nil
}

// Renew extends a lease that is still held. fault.ErrChanged says that it is
// lost: expired, released or taken over. Stop what it protects.
func (db *DB) Renew(ctx context.Context, l Lease, ttl time.Duration) (Lease, error) {
	err := db.Update(ctx, func(ctx context.Context, tx *Tx) error {
		l.ExpiresAt = tx.Now.Add(ttl).Truncate(time.Microsecond)
		return lost(l, tx.Swap(ctx, `UPDATE leases SET expires_at = $1
			WHERE name = $2 AND holder = $3 AND epoch = $4 AND expires_at > $5`,
			Micros(l.ExpiresAt), l.Name, l.Holder, l.Epoch, Micros(tx.Now)))
	})
	if err != nil {
		return Lease{}, err
	}
	return l, nil
}

// Release frees a lease, so that the next holder need not wait for its expiry.
// Releasing one that is lost does nothing.
func (db *DB) Release(ctx context.Context, l Lease) error {
	return db.Update(ctx, func(ctx context.Context, tx *Tx) error {
		_, err := tx.Exec(ctx, `UPDATE leases SET holder = '', expires_at = 0
			WHERE name = $1 AND holder = $2 AND epoch = $3`, l.Name, l.Holder, l.Epoch)
		return err
	})
}

// Fence fails with fault.ErrChanged unless l is still held. It locks the
// lease's row until the end of the transaction, so nobody can take it over
// between this check and the COMMIT.
func (tx *Tx) Fence(ctx context.Context, l Lease) error {
	return lost(l, tx.Swap(ctx, `UPDATE leases SET epoch = epoch
		WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > $4`,
		l.Name, l.Holder, l.Epoch, Micros(tx.Now)))
}

func lost(l Lease, err error) error {
	if errors.Is(err, fault.ErrChanged) {
		return fault.New(fault.ErrChanged, "lease_lost", "lease %q, epoch %d: it is no longer held by %q", l.Name, l.Epoch, l.Holder)
	}
	return err
}

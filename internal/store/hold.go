package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Hold runs f while this process has the lease, again and again until ctx ends:
// it waits for the lease, begins f, renews the lease beside it, and ends f's
// context when the lease is lost or can't be renewed before it expires. f shall
// return soon after its context has ended. Between two runs there is a pause of
// at least a fifth of ttl. What f returns, and why the lease could not be had
// (unless another process has it), is told to failed.
func (db *DB) Hold(ctx context.Context, name, holder string, ttl time.Duration, f func(context.Context, Lease) error, failed func(error)) {
	for ctx.Err() == nil {
		lease, err := db.Acquire(ctx, name, holder, ttl)
		if err == nil {
			err = db.held(ctx, lease, ttl, f)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, ErrHeld) {
			failed(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(ttl / 5):
		}
	}
}

// held runs f once, and gives the lease back.
func (db *DB) held(ctx context.Context, lease Lease, ttl time.Duration, f func(context.Context, Lease) error) error {
	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	done := make(chan error, 1)
	go func() { done <- f(work, lease) }()
	tick := time.NewTicker(ttl / 4)
	defer tick.Stop()
	for renewed := db.Tick(); ; {
		select {
		case err := <-done:
			release, cancel := context.WithTimeout(context.WithoutCancel(ctx), ttl)
			defer cancel()
			if lost := context.Cause(work); lost != nil && ctx.Err() == nil {
				return lost
			}
			return errors.Join(err, db.Release(release, lease))
		case <-tick.C:
		}
		if work.Err() != nil {
			continue // f is on its way out
		}
		limited, cancel := context.WithTimeout(ctx, ttl/4)
		_, err := db.Renew(limited, lease, ttl)
		cancel()
		switch {
		case err == nil:
			renewed = db.Tick()
		case errors.Is(err, fault.ErrChanged):
			stop(fmt.Errorf("the lease %q is lost: %w", lease.Name, err))
		case db.Tick()-renewed > ttl/2:
			// Half of it is left for f to end in.
			stop(fmt.Errorf("the lease %q can't be renewed: %w", lease.Name, err))
		}
	}
}

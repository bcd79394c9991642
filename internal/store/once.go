package store

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

const (
	maxKey     = 255  // bytes of an idempotency key
	pruneBatch = 1000 // rows per transaction
)

// Once names a request that must take effect at most once.
type Once struct {
	Scope       string // who asks for what: "operator:ada/keyset.create"
	Key         string // chosen by the caller, up to 255 bytes of UTF-8
	Fingerprint string // hash of the request: the same key must mean the same request
}

// Once spends an idempotency key. The first time it returns "" and records
// resource, the id of what this transaction makes; later it returns the
// resource recorded then, and the caller makes nothing. Two transactions that
// spend one key at the same time are serialised by the database.
//
// An empty Key asks for nothing and gets "". A key spent on a request with
// another fingerprint is fault.ErrInvalid with the reason
// "idempotency_key_reused". Rows live until [DB.Prune].
func (tx *Tx) Once(ctx context.Context, o Once, resource string) (prior string, err error) {
	if o.Key == "" {
		return "", nil
	}
	if len(o.Key) > maxKey || !utf8.ValidString(o.Key) || strings.ContainsRune(o.Key, 0) {
		return "", fault.Invalid("idempotency_key", "idempotency_key_invalid",
			"idempotency key: it must be at most %d bytes of UTF-8 without NUL: use a UUID", maxKey)
	}
	if resource == "" {
		return "", fmt.Errorf("store: Once in scope %q: the resource is empty", o.Scope)
	}
	res, err := tx.Exec(ctx, `INSERT INTO idempotency (scope, key, fingerprint, resource, created_at)
		VALUES ($1, $2, $3, $4, $5) ON CONFLICT (scope, key) DO NOTHING`,
		o.Scope, o.Key, o.Fingerprint, resource, Micros(tx.Now))
	if err != nil {
		return "", fmt.Errorf("spend idempotency key: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 1 {
		return "", err
	}
	var fingerprint string
	// A row that Prune took in between gives sql.ErrNoRows; so old a key may
	// fail once.
	err = tx.QueryRow(ctx, `SELECT fingerprint, resource FROM idempotency WHERE scope = $1 AND key = $2`,
		o.Scope, o.Key).Scan(&fingerprint, &prior)
	if err != nil {
		return "", fmt.Errorf("read idempotency key: %w", err)
	}
	if fingerprint != o.Fingerprint {
		return "", fault.Invalid("idempotency_key", "idempotency_key_reused",
			"idempotency key: it was used before for a different request: choose a new key")
	}
	return prior, nil
}

// Prune forgets the idempotency keys that were spent before olderThan, and
// returns how many. It works in small transactions, so it blocks nobody for
// long; interrupted, it is continued by the next call.
func (db *DB) Prune(ctx context.Context, olderThan time.Time) (int64, error) {
	var total int64
	for {
		var n int64
		err := db.Update(ctx, func(ctx context.Context, tx *Tx) error {
			res, err := tx.Exec(ctx, `DELETE FROM idempotency WHERE (scope, key) IN
				(SELECT scope, key FROM idempotency WHERE created_at < $1 ORDER BY created_at LIMIT $2)`,
				Micros(olderThan), pruneBatch)
			if err != nil {
				return err
			}
			n, err = res.RowsAffected()
			return err
		})
		if err != nil {
			return total, fmt.Errorf("prune idempotency keys: %w", err)
		}
		total += n
		if n < pruneBatch {
			return total, nil
		}
	}
}

package apikeys

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	nonceBatch = 256             // that one transaction spends
	nonceQueue = 5000            // that wait for one
	nonceLimit = 5 * time.Second // for one transaction
	pruneBatch = 1000
	prunes     = 10 // batches of one pass
)

// Nonces remembers nonces, for all replicas.
type Nonces interface {
	// Spend remembers a nonce of a key until an instant. fresh is false when it was
	// spent before. It returns nil only when every replica would see it.
	Spend(ctx context.Context, keyID, nonce string, until time.Time) (fresh bool, err error)
}

// DBNonces is the [Nonces] of a database. Those who spend at the same time share a
// transaction, so that a slow disk is waited for once. It answers after the commit:
// a nonce that was answered to be fresh stays spent over any crash. When it is not
// certain that a nonce is spent the answer is fault.ErrUnavailable, though it may
// be; the signer then needs another one.
type DBNonces struct {
	db *store.DB

	mu      sync.Mutex
	queue   []*spend
	leading bool // somebody writes what is in the queue
}

// spend is one nonce on its way.
type spend struct {
	keyID, nonce string
	until        int64
	fresh        bool
	err          error
	done         chan struct{}
}

// NewNonces returns the nonces of a database.
func NewNonces(db *store.DB) *DBNonces { return &DBNonces{db: db} }

// Spend implements [Nonces].
func (n *DBNonces) Spend(ctx context.Context, keyID, nonce string, until time.Time) (bool, error) {
	s := &spend{keyID: keyID, nonce: nonce, until: store.Micros(until), done: make(chan struct{})}
	n.mu.Lock()
	if len(n.queue) >= nonceQueue {
		n.mu.Unlock()
		return false, fault.New(fault.ErrUnavailable, "too_many_nonces", "spend a nonce: %d are waiting for the database already", nonceQueue)
	}
	n.queue = append(n.queue, s)
	lead := !n.leading
	n.leading = true
	n.mu.Unlock()
	if lead {
		go n.lead(context.WithoutCancel(ctx))
	}
	select {
	case <-s.done:
		return s.fresh, s.err
	case <-ctx.Done():
		return false, unavailable("spend a nonce", ctx.Err())
	}
}

// lead writes what is in the queue until there is nothing.
func (n *DBNonces) lead(ctx context.Context) {
	for {
		n.mu.Lock()
		batch := n.queue[:min(len(n.queue), nonceBatch)]
		n.queue = n.queue[len(batch):]
		if len(batch) == 0 {
			n.queue, n.leading = nil, false
			n.mu.Unlock()
			return
		}
		n.mu.Unlock()
		n.write(ctx, batch)
	}
}

// write spends a batch in one transaction.
func (n *DBNonces) write(ctx context.Context, batch []*spend) {
	// In one order, or two replicas could wait for each other.
	slices.SortStableFunc(batch, cmpSpend)
	ctx, cancel := context.WithTimeout(ctx, nonceLimit)
	defer cancel()
	err := n.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		// One statement of a few sizes, which the database knows: what is missing
		// is filled up with what is there already.
		size := 1
		for size < len(batch) {
			size *= 2
		}
		args := make([]any, 0, 3*size)
		for i := range size {
			s := batch[min(i, len(batch)-1)]
			args = append(args, s.keyID, s.nonce, s.until)
		}
		rows, err := tx.Query(ctx, spendSQL(size), args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		fresh := map[[2]string]bool{}
		for rows.Next() {
			var id [2]string
			if err := rows.Scan(&id[0], &id[1]); err != nil {
				return err
			}
			fresh[id] = true
		}
		for _, s := range batch {
			id := [2]string{s.keyID, s.nonce}
			s.fresh = fresh[id]
			delete(fresh, id) // the first of two that are the same has it
		}
		return rows.Err()
	})
	for _, s := range batch {
		if err != nil {
			s.fresh, s.err = false, unavailable("spend a nonce", err)
		}
		close(s.done)
	}
}

// spendSQL inserts n nonces and returns those that were not there.
func spendSQL(n int) string {
	var b strings.Builder
	b.WriteString(`INSERT INTO nonces (key_id, nonce, expires_at) VALUES `)
	for i := range n {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "($%d, $%d, $%d)", 3*i+1, 3*i+2, 3*i+3)
	}
	b.WriteString(` ON CONFLICT (key_id, nonce) DO NOTHING RETURNING key_id, nonce`)
	return b.String()
}

func cmpSpend(a, b *spend) int {
	switch {
	case a.keyID < b.keyID || a.keyID == b.keyID && a.nonce < b.nonce:
		return -1
	case a.keyID == b.keyID && a.nonce == b.nonce:
		return 0
	}
	return 1
}

// prune forgets nonces that are too old to be replayed.
func (n *DBNonces) prune(ctx context.Context, now time.Time) error {
	for range prunes {
		var old bool
		err := n.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
			return tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM nonces WHERE expires_at < $1)`, store.Micros(now)).Scan(&old)
		})
		if err != nil {
			return fmt.Errorf("look for old nonces: %w", err)
		}
		if !old {
			return nil
		}
		err = n.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM nonces WHERE (key_id, nonce) IN (SELECT key_id, nonce FROM nonces WHERE expires_at < $1 ORDER BY expires_at LIMIT $2)`, store.Micros(now), pruneBatch)
			return err
		})
		if err != nil {
			return fmt.Errorf("forget old nonces: %w", err)
		}
	}
	return nil
}

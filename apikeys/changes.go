package apikeys

import (
	"context"
	"sync"

	"github.com/rotunda-dev/rotunda/internal/store"
)

// TopicKeys is announced by every change that takes something away from a key or a
// partner, so that other replicas look at once. What only adds is found when it is
// first used.
const TopicKeys = "keys"

// changes tells the caches of this process what was changed by it.
type changes struct {
	mu    sync.Mutex
	heard []func(partner, id string)
}

// listen has f called after each commit that changed a key, or with id "" a partner.
// It is called before anything is changed.
func (c *changes) listen(f func(partner, id string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = append(c.heard, f)
}

// tell has the caches of this process drop what a transaction changes, once it has
// committed, and those of other replicas look into the trail.
func (c *changes) tell(ctx context.Context, tx *store.Tx, partner, id string) error {
	tx.AfterCommit(func() {
		c.mu.Lock()
		heard := c.heard
		c.mu.Unlock()
		for _, f := range heard {
			f(partner, id)
		}
	})
	return tx.Announce(ctx, TopicKeys)
}

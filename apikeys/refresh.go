package apikeys

import (
	"context"
	"math"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	refreshEvery = time.Second
	refreshLimit = 5 * time.Second // for one Refresh
	firstLimit   = time.Minute     // for one that may have to read all imported keys
)

// Refresh hears of all changes since it was last called.
func (v *Verifier) Refresh(ctx context.Context) error {
	return v.refresh(ctx, func() bool { return true })
}

// catchUp is Refresh, unless there is nothing new in this process. It waits for a
// bounded time, because a caller may have all the time in the world.
func (v *Verifier) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, refreshLimit)
	defer cancel()
	return v.refresh(ctx, v.behind)
}

// behind reports whether this process has heard of something that may have changed by
// what imported keys are found, and has not read that yet.
func (v *Verifier) behind() bool {
	return v.foreign.stale() || !v.foreign.madeOf(v.peppers.live())
}

func (v *Verifier) refresh(ctx context.Context, needed func() bool) error {
	select {
	case v.turn <- struct{}{}:
		defer func() { <-v.turn }()
	case <-ctx.Done():
		return unavailable("hear what was changed of partners' keys", ctx.Err())
	}
	if !needed() {
		return nil
	}
	// Whatever is committed from here on is heard next time.
	tick := v.cfg.DB.Tick()
	made := v.foreign.made.Load()
	from := v.next
	if !v.ready.Load() {
		from = math.MaxInt64 // nothing is in memory: the head of the trail is all it takes
	}
	gen, _ := v.peppers.current()
	live := v.peppers.live()
	var changed []string
	var all bool
	var next, newest int64
	var found imported
	err := v.cfg.DB.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		if changed, next, all, err = audit.Changes(ctx, tx, from, "partners/"); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT MAX(gen) FROM peppers`).Scan(&newest); err != nil {
			return err
		}
		found, err = v.foreign.read(ctx, tx, changed, all || !v.foreign.madeOf(live))
		return err
	})
	if err != nil {
		return unavailable("hear what was changed of partners' keys", err)
	}
	if newest > gen {
		// Others may have hashed imported keys under it, which are not found without.
		// When it can't be read the pass of the peppers says why; what was revoked must
		// be heard all the same.
		_ = v.peppers.reload(ctx)
		gen, _ = v.peppers.current()
	}
	if gen != v.known {
		v.foreign.clear()
		v.known = gen
	}
	// New imported keys first: what is dropped then may be found by them.
	v.foreign.add(found, live)
	v.foreign.seen.Store(made)
	if all {
		v.owners.dropAll()
		v.cache.dropAll()
	}
	for _, name := range changed {
		v.dropNamed(name)
	}
	v.next = next
	v.newest.Store(uint32(gen))
	v.heard.Store(int64(tick))
	v.ready.Store(true)
	return nil
}

// dropNamed drops what an event was about: "acme", "acme/api_keys/ID" or
// "acme/request_secrets/ID".
func (v *Verifier) dropNamed(name string) {
	partner, rest, below := strings.Cut(name, "/")
	if !below {
		if o := v.owners.find(partner); o != nil {
			o.drop()
		}
		return
	}
	if kind, id, ok := strings.Cut(rest, "/"); ok && (kind == string(APIKey)+"s" || kind == string(RequestSecret)+"s") && !strings.Contains(id, "/") {
		v.dropKey(partner, id)
		return
	}
	// Nothing that we know of a partner's is called like this, so it may be anything.
	v.owners.dropAll()
	v.cache.dropAll()
}

// Follow calls Refresh whenever a change is announced, and once a second, until ctx ends.
func (v *Verifier) Follow(ctx context.Context) {
	keys, stopKeys := v.cfg.DB.Listen(TopicKeys)
	defer stopKeys()
	trail, stopTrail := v.cfg.DB.Listen(audit.TopicSequenced)
	defer stopTrail()
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	failing := false
	for {
		limit := refreshLimit
		if failing || !v.ready.Load() {
			limit = firstLimit
		}
		limited, cancel := context.WithTimeout(ctx, limit)
		err := v.Refresh(limited)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			v.cfg.Log.Error("changes of partners' keys are not heard; keys in memory are accepted for a while, then none", "while", v.cfg.StaleFor, "error", err)
		} else if err == nil && failing {
			v.cfg.Log.Info("changes of partners' keys are heard again")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-keys:
		case <-trail:
		case <-tick.C:
		}
	}
}

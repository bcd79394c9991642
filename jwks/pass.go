package jwks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	passBatch  = 200              // keysets that one pass moves
	servedGap  = 10 * time.Second // how often served_at is written
	minGap     = 2 * servedGap    // shorter gaps can't be told from a slow pass
	pruneEvery = time.Hour

	// A wall clock that jumps against the monotonic one is wrong before the jump
	// or after it. Scheduled moves wait until whoever keeps the clock has had time
	// to set it right: a move that is late does no harm, one that is early does.
	clockTolerance = 5 * time.Second
	clockSettles   = 2 * time.Minute
)

// Pass brings every keyset up to now: it notes that documents are served,
// makes the moves that are due, and refreshes this process's documents. One
// keyset's failure does not stop the others. Recovery after a crash is the
// next pass.
func (ks *Keysets) Pass(ctx context.Context, now time.Time) (next time.Time, err error) {
	var errs []error
	held := ks.clockJumped(ctx, now)
	if now.Sub(ks.servedAt) >= servedGap || now.Before(ks.servedAt) {
		if err := ks.served(ctx); err != nil {
			return time.Time{}, err // whether a lead is over can't be known: nothing moves
		}
		ks.servedAt = now
	}
	var due []string
	if !held {
		if due, err = ks.due(ctx, now); err != nil {
			return time.Time{}, err
		}
	}
	for _, name := range due {
		_, err := ks.advance(ctx, name, asked{})
		if err != nil && !errors.Is(err, fault.ErrChanged) { // changed: another replica was faster
			errs = append(errs, fmt.Errorf("advance keyset %q: %w", name, err))
		}
	}
	if len(due) == passBatch {
		next = now
	} else if next, err = ks.nextAt(ctx); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, ks.Refresh(ctx))
	if now.Sub(ks.flushedAt) >= usageEvery || now.Before(ks.flushedAt) {
		errs = append(errs, ks.flushUsage(ctx, now))
		ks.flushedAt = now
	}
	if now.Sub(ks.prunedAt) >= pruneEvery || now.Before(ks.prunedAt) {
		errs = append(errs, ks.pruneUsage(ctx, now))
		ks.prunedAt = now
	}
	return next, errors.Join(errs...)
}

// clockJumped reports whether scheduled moves are held because the wall clock
// jumped a short while ago.
func (ks *Keysets) clockJumped(ctx context.Context, now time.Time) bool {
	tick := ks.db.Tick()
	if !ks.passAt.IsZero() {
		if step := now.Sub(ks.passAt) - (tick - ks.passTick); step.Abs() > clockTolerance {
			ks.heldUntil = tick + clockSettles
			ks.log.LogAttrs(ctx, slog.LevelWarn, "the wall clock jumped: scheduled moves of signing keys wait", slog.Duration("by", step), slog.Duration("for", clockSettles))
		}
	}
	ks.passAt, ks.passTick = now, tick
	return tick < ks.heldUntil
}

// Flush writes what this process only has in memory, at its end.
func (ks *Keysets) Flush(ctx context.Context) error { return ks.flushUsage(ctx, ks.db.Now()) }

// PreparePass makes spare keys for the algorithms in use, so that neither a
// rotation nor an emergency waits for a search for primes.
func (ks *Keysets) PreparePass(ctx context.Context, _ time.Time) (time.Time, error) {
	algs := map[string][]Algorithm{} // by home
	ks.Published(func(s *Keyset) bool {
		name := cmp.Or(s.Policy.Home, LocalHome)
		if !slices.Contains(algs[name], s.Algorithm) {
			algs[name] = append(algs[name], s.Algorithm)
		}
		return true
	})
	var errs []error
	for name, algs := range algs {
		if home, ok := ks.homes[name]; ok {
			_, err := home.Prepare(ctx, algs)
			errs = append(errs, err)
		}
	}
	return time.Time{}, errors.Join(errs...)
}

func (ks *Keysets) due(ctx context.Context, now time.Time) (names []string, err error) {
	err = ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		names = nil
		rows, err := tx.Query(ctx, `SELECT name FROM keysets WHERE next_at <= $1 ORDER BY next_at LIMIT $2`, store.Micros(now), passBatch)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			names = append(names, name)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("find due keysets: %w", err)
	}
	return names, nil
}

func (ks *Keysets) nextAt(ctx context.Context) (time.Time, error) {
	var at int64
	err := ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(MIN(next_at), 0) FROM keysets`).Scan(&at)
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("find the next due keyset: %w", err)
	}
	return store.Time(at), nil
}

// served notes that documents are being served. A lead counts only time in
// which consumers could fetch: when nothing was served for longer than a
// policy's FetchFailure, the lead of its standby starts again.
func (ks *Keysets) served(ctx context.Context) error {
	err := ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		var last int64
		// The row is locked before it is read: of replicas that come back together
		// only the first sees the gap.
		if err := tx.QueryRow(ctx, `UPDATE publication SET served_at = served_at WHERE id = 1 RETURNING served_at`).Scan(&last); err != nil {
			return err
		}
		gap := tx.Now.Sub(store.Time(last))
		if last != 0 && gap > minGap {
			if err := ks.restartLeads(ctx, tx, gap); err != nil {
				return err
			}
		}
		// A replica whose clock is behind must not make the next gap look long to
		// one whose clock is ahead. More than an hour (the largest Skew) is a clock
		// that was set back.
		if ahead := store.Time(last).Sub(tx.Now); ahead > 0 && ahead <= time.Hour {
			return nil
		}
		_, err := tx.Exec(ctx, `UPDATE publication SET served_at = $1 WHERE id = 1`, store.Micros(tx.Now))
		return err
	})
	if err != nil {
		return fmt.Errorf("note that documents are served: %w", err)
	}
	return nil
}

func (ks *Keysets) restartLeads(ctx context.Context, tx *store.Tx, gap time.Duration) error {
	sets, err := ks.querySets(ctx, tx, `SELECT `+keysetColumns+` FROM keysets ORDER BY id`)
	if err != nil {
		return err
	}
	concerns := func(s *Keyset) bool {
		k := s.Standby()
		return !s.Foreign && k != nil && gap > s.Policy.FetchFailure && k.ServedSince.Before(tx.Now)
	}
	for _, s := range sets {
		if !concerns(s) {
			continue
		}
		// Taken before it is read again: a change that another replica makes at
		// this moment is waited for, and is no reason to stop.
		if _, err := tx.Exec(ctx, `UPDATE keysets SET version = version WHERE id = $1`, s.ID); err != nil {
			return fmt.Errorf("restart the lead of keyset %q: %w", s.Name, err)
		}
		c, err := ks.begin(ctx, tx, s.Name)
		if err != nil {
			return err
		}
		if !concerns(c.set) {
			continue
		}
		k := *c.set.Standby()
		restarted := k
		restarted.ServedSince = tx.Now
		if err := c.put(ctx, restarted, Pending); err != nil {
			return err
		}
		err = audit.Record(ctx, tx, audit.Event{Action: "signing_key.lead_restarted", Resource: s.resource(k.Kid), Reason: "not_served",
			Detail: map[string]any{"kid": k.Kid, "gap": gap.String(), "served_since": stamp(k.ServedSince)}})
		if err != nil {
			return err
		}
		if err := c.end(ctx); err != nil {
			return err
		}
	}
	return nil
}

// asked is what a person wants of an advance, beyond what is due.
type asked struct {
	rotate   bool
	override bool
	reason   string
}

// advance makes the moves of one keyset that are due, in one transaction, and
// makes a standby where there is none. It is the only path of a rotation,
// scheduled or asked for.
func (ks *Keysets) advance(ctx context.Context, name string, ask asked) (*Keyset, error) {
	standby, err := ks.spare(ctx, name, ask)
	if err != nil {
		// The moves that need no new key are made all the same.
		ks.log.LogAttrs(ctx, slog.LevelWarn, "no new standby could be made", slog.String("keyset", name), slog.Any("error", err))
	}
	var set *Keyset
	var withdrawn []Key
	moved := false
	err = ks.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		moved, withdrawn = false, nil
		c, err := ks.begin(ctx, tx, name)
		if err != nil {
			return err
		}
		set, c.override, c.reason = c.set, ask.override, ask.reason
		due := set.Due(tx.Now, ask.rotate)
		if n := len(set.Keys); ask.rotate && n >= maxPublished {
			return fault.New(fault.ErrTransition, "too_many_keys", "the keyset publishes %d keys, and can't publish more than %d: wait until one is withdrawn (see `rotunda keyset show %s`)", n, maxPublished, name)
		}
		if ask.rotate && !slices.ContainsFunc(due, func(m Move) bool { return m.To == Active }) {
			if due, err = c.insist(due, ask); err != nil {
				return err
			}
		}
		for _, m := range due {
			k := *set.key(m.Kid)
			if err := c.move(ctx, k, m.To); err != nil {
				return err
			}
			if m.To == Retired {
				withdrawn = append(withdrawn, k)
			}
			moved = true
		}
		if set.Standby() == nil && standby != nil {
			if err := c.move(ctx, c.born(*standby, Generated), Pending); err != nil {
				return err
			}
			moved = true
		}
		if ask.rotate {
			detail := map[string]any{"override": ask.override}
			if a := set.Active(); a != nil {
				detail["active"] = a.Kid
			}
			if err := audit.Record(ctx, tx, audit.Event{Action: "keyset.rotate", Resource: set.resource(""), Reason: ask.reason, Detail: detail}); err != nil {
				return err
			}
		}
		if moved {
			if slices.ContainsFunc(due, func(m Move) bool { return m.To == Active }) {
				if err := c.endFallback(ctx); err != nil {
					return err
				}
			}
			return c.end(ctx)
		}
		set.NextAt = set.nextAt(tx.Now)
		return tx.Swap(ctx, `UPDATE keysets SET next_at = $1 WHERE id = $2`, store.Micros(set.NextAt), set.ID)
	})
	if err != nil {
		return nil, err
	}
	if moved {
		ks.refreshAfterChange(ctx)
	}
	for _, k := range withdrawn {
		if err := ks.destroy(ctx, k, set); err != nil {
			ks.log.LogAttrs(ctx, slog.LevelError, "a withdrawn key's private half may still exist: destroy it at its home", slog.Any("error", err))
		}
	}
	return set.forDisplay(), nil
}

// destroy makes the private half of a withdrawn key unusable at its home. set is
// the keyset as it is after the withdrawal.
func (ks *Keysets) destroy(ctx context.Context, k Key, set *Keyset) error {
	if k.Home == noHome {
		return nil // it was never here
	}
	h, ok := ks.homes[k.Home]
	if !ok {
		return fault.New(fault.ErrUnavailable, "signer_unreachable", "key %s is withdrawn, but its private half is at home %q, which is not configured here: destroy it there", k.Kid, k.Home)
	}
	var signing []Key
	for _, o := range set.Keys {
		if o.State != Retiring && o.Home == k.Home {
			signing = append(signing, o)
		}
	}
	if err := h.Destroy(ctx, k, signing); err != nil {
		return fmt.Errorf("key %s is withdrawn, but its home %q did not destroy its private half: %w", k.Kid, k.Home, err)
	}
	return nil
}

// insist turns a rotation that is asked for but not due into moves, or into
// the reason why it is refused.
func (c *change) insist(due []Move, ask asked) ([]Move, error) {
	a, p := c.set.Active(), c.set.Standby()
	if p == nil {
		return nil, fault.New(fault.ErrTransition, "no_standby", "there is no standby yet, one is being made: try again in a few seconds")
	}
	if !ask.override {
		return nil, c.tooYoung(*p)
	}
	moves := []Move{{p.Kid, Active}}
	if a != nil {
		moves = append([]Move{{a.Kid, Retiring}}, moves...)
	}
	return append(moves, due...), nil
}

// spare makes the key that an advance will need, before its transaction, but
// only if that takes no time; else the next pass publishes it.
func (ks *Keysets) spare(ctx context.Context, name string, ask asked) (*Made, error) {
	set, err := ks.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	due := set.Due(ks.db.Now(), ask.rotate)
	promotes := ask.override || slices.ContainsFunc(due, func(m Move) bool { return m.To == Active })
	if set.Standby() != nil && !promotes {
		return nil, nil
	}
	if !ks.ready(set) {
		return nil, nil
	}
	return ks.make(ctx, set)
}

// Rotate describes a rotation that a person asks for.
type Rotate struct {
	Name     string
	Override bool   // promote the standby although its lead is not over
	Reason   string // required with Override
}

// Rotate promotes the standby now, on the same path as the schedule. While the
// standby's lead is not over it is refused with fault.ErrTransition, reason
// "lead_not_over", and the instant from which it is possible.
func (ks *Keysets) Rotate(ctx context.Context, req Rotate) (*Keyset, error) {
	if req.Override && req.Reason == "" {
		return nil, fault.Invalid("reason", "reason_required", "rotate keyset %q: to override the lead makes some consumers refuse good tokens: give a reason", clip(req.Name))
	}
	// A request may come before the first pass after a time without service,
	// which does not count towards the lead.
	if err := ks.served(ctx); err != nil {
		return nil, fmt.Errorf("rotate keyset %q: %w", clip(req.Name), err)
	}
	set, err := ks.advance(ctx, req.Name, asked{rotate: true, override: req.Override, reason: req.Reason})
	if err != nil {
		return nil, fmt.Errorf("rotate keyset %q: %w", clip(req.Name), err)
	}
	return set, nil
}

package rotation

import (
	"context"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

const (
	defaultParallel = 4 // runs of one target at once, where its kind says nothing
	deadWorkers     = time.Hour

	// No wait but a grace is as long as this: what is due later was put off by a clock that
	// was ahead. How often that is looked for.
	longestWait = 24 * time.Hour
	lookAhead   = time.Minute
)

// beat says that this process lives, until its lease is over.
func (rs *Rotations) beat(ctx context.Context) error {
	return rs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO rotation_workers (holder, expires_at) VALUES ($1, $2) ON CONFLICT (holder) DO UPDATE SET expires_at = excluded.expires_at`,
			rs.holder, store.Micros(tx.Now.Add(rs.lease)))
		return err
	})
}

// leave gives back what this process has, so that nobody waits for its lease.
func (rs *Rotations) leave(ctx context.Context) error {
	return rs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE rotations SET holder = '', version = version + 1 WHERE holder = $1`, rs.holder); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM rotation_workers WHERE holder = $1 OR expires_at < $2`, rs.holder, store.Micros(tx.Now.Add(-deadWorkers))); err != nil {
			return err
		}
		return tx.Announce(ctx, topicRotations)
	})
}

func isLive(ctx context.Context, tx *store.Tx, holder string) (live bool, err error) {
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM rotation_workers WHERE holder = $1 AND expires_at > $2)`, holder, store.Micros(tx.Now)).Scan(&live)
	return live, err
}

// learn remembers how many runs of a target may be under way at once.
func (rs *Rotations) learn(target string, t providers.Traits) {
	n := t.Parallel
	if n <= 0 {
		n = defaultParallel
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.limits[target] = n
}

func (rs *Rotations) limit(target string) int {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if n, ok := rs.limits[target]; ok {
		return n
	}
	return defaultParallel
}

// aheadDue says whether it is time to look for runs that a clock which was ahead put off.
func (rs *Rotations) aheadDue() bool {
	now := rs.db.Tick()
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.looked && now >= rs.lookedAt && now-rs.lookedAt < lookAhead {
		return false
	}
	rs.looked, rs.lookedAt = true, now
	return true
}

// catchUp makes runs due that a clock which was ahead has put off for longer than anything
// waits, and takes leases away that nobody can have: who lives renews his at once. How long a
// grace lasts is then reckoned anew: see observedUse.
func catchUp(ctx context.Context, tx *store.Tx) error {
	late := store.Micros(tx.Now.Add(longestWait))
	if _, err := tx.Exec(ctx, `DELETE FROM rotation_workers WHERE expires_at > $1`, late); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `UPDATE rotations SET next_at = $1, version = version + 1
		WHERE ended_at = 0 AND next_at > $2 AND (step <> 'grace' OR next_at - grace > $3)
		AND (holder = '' OR NOT EXISTS (SELECT 1 FROM rotation_workers w WHERE w.holder = rotations.holder))`, store.Micros(tx.Now), late, late)
	return err
}

// candidate is a run that is due and that nobody is at.
type candidate struct {
	id, target, holder string
	epoch              int64
}

// claim takes up to want runs that are due, at most plain of them no emergencies, those of the
// highest priority first: runs that nobody has, and those of processes that live no more. Each gets a
// new epoch, by which whoever had it is fenced out. At most as many of one target are taken
// as may be under way there; two processes that claim at the same instant may exceed that
// by what the second one takes.
func (rs *Rotations) claim(ctx context.Context, want, plain int) (jobs []*job, err error) {
	if want <= 0 {
		return nil, nil
	}
	active, ahead := rs.activeIDs(), rs.aheadDue()
	var rows []*row
	err = rs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		rows = nil
		live, err := isLive(ctx, tx, rs.holder)
		if err != nil {
			return err
		}
		if !live {
			return fault.New(fault.ErrUnavailable, "lease_lost", "the lease of this process is over: its heartbeat did not reach the database in time")
		}
		if ahead {
			if err := catchUp(ctx, tx); err != nil {
				return err
			}
		}
		busy, err := heldByTarget(ctx, tx)
		if err != nil {
			return err
		}
		var full []string
		for target, n := range busy {
			if n >= rs.limit(target) {
				full = append(full, target)
			}
		}
		most := want
		for p := priorityEmergency; p >= priorityScheduled; p-- {
			if p == priorityManual {
				most = min(want, len(rows)+plain)
			}
			// Again when a target got full: what is due there must not hide the rest.
			for again := true; again && len(rows) < most; {
				again = false
				list, err := rs.due(ctx, tx, p, full, most-len(rows)+len(active))
				if err != nil {
					return err
				}
				for _, c := range list {
					if len(rows) == most {
						break
					}
					if active[c.id] {
						continue
					}
					if busy[c.target] >= rs.limit(c.target) {
						if !contains(full, c.target) {
							full, again = append(full, c.target), true
						}
						continue
					}
					r, err := rs.take(ctx, tx, c)
					if err != nil {
						return err
					}
					if r != nil {
						rows = append(rows, r)
						busy[c.target]++
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("claim rotations: %w", err)
	}
	for _, r := range rows {
		j, err := rs.job(ctx, r)
		if err != nil {
			rs.unreadable(ctx, r, err)
			continue
		}
		jobs = append(jobs, j)
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, j := range jobs {
		rs.active[j.ID] = true
	}
	return jobs, nil
}

func contains(list []string, s string) bool {
	for _, t := range list {
		if t == s {
			return true
		}
	}
	return false
}

func (rs *Rotations) activeIDs() map[string]bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	ids := make(map[string]bool, len(rs.active))
	for id := range rs.active {
		ids[id] = true
	}
	return ids
}

func (rs *Rotations) release(j *job) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.active, j.ID)
}

// heldByTarget counts the runs that processes which live have, by target.
func heldByTarget(ctx context.Context, tx *store.Tx) (map[string]int, error) {
	rows, err := tx.Query(ctx, `SELECT target, COUNT(*) FROM rotations WHERE holder <> '' AND holder IN (SELECT holder FROM rotation_workers WHERE expires_at > $1) GROUP BY target`, store.Micros(tx.Now))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	held := map[string]int{}
	for rows.Next() {
		var target string
		var n int
		if err := rows.Scan(&target, &n); err != nil {
			return nil, err
		}
		held[target] = n
	}
	return held, rows.Err()
}

// due reads runs of one priority that can be claimed. One that was never claimed waits for
// the one of its credential that was, also when a clock that was set back makes its id the
// smaller one.
func (rs *Rotations) due(ctx context.Context, tx *store.Tx, priority int, full []string, limit int) (list []candidate, err error) {
	args := []any{priority, store.Micros(tx.Now), rs.holder, store.Micros(tx.Now)}
	not := ""
	for _, target := range full {
		args = append(args, target)
		not += fmt.Sprintf(` AND r.target <> $%d`, len(args))
	}
	args = append(args, limit)
	rows, err := tx.Query(ctx, `SELECT r.id, r.target, r.holder, r.epoch FROM rotations r
		WHERE r.ended_at = 0 AND r.next_at > 0 AND r.priority = $1 AND r.next_at <= $2
		AND (r.holder = '' OR r.holder = $3 OR NOT EXISTS (SELECT 1 FROM rotation_workers w WHERE w.holder = r.holder AND w.expires_at > $4))
		AND (r.epoch > 0 OR NOT EXISTS (SELECT 1 FROM rotations o WHERE o.credential = r.credential AND o.ended_at = 0 AND o.id <> r.id AND (o.epoch > 0 OR o.id < r.id)))`+not+
		fmt.Sprintf(` ORDER BY r.next_at, r.id LIMIT $%d`, len(args)), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var c candidate
		if err := rows.Scan(&c.id, &c.target, &c.holder, &c.epoch); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, rows.Err()
}

// take claims one run; nil when somebody else was faster.
func (rs *Rotations) take(ctx context.Context, tx *store.Tx, c candidate) (*row, error) {
	res, err := tx.Exec(ctx, `UPDATE rotations SET holder = $1, epoch = epoch + 1, version = version + 1 WHERE id = $2 AND holder = $3 AND epoch = $4 AND ended_at = 0 AND next_at > 0 AND next_at <= $5`,
		rs.holder, c.id, c.holder, c.epoch, store.Micros(tx.Now))
	if err != nil {
		return nil, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return nil, err
	}
	return readRow(ctx, tx, c.id)
}

// unreadable puts off a run whose work does not open. When that is for good, a person has to
// see to it.
func (rs *Rotations) unreadable(ctx context.Context, r *row, why error) {
	err := rs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.Swap(ctx, `UPDATE rotations SET holder = '', next_at = $1, attempt = attempt + 1, error = $2, error_reason = 'work_unreadable', version = version + 1 WHERE id = $3 AND holder = $4 AND epoch = $5`,
			store.Micros(tx.Now.Add(maxBackoff)), "what the run has to know does not open: "+clipText(why.Error()), r.ID, r.Holder, r.Epoch)
	})
	rs.log.ErrorContext(ctx, "the work of a rotation does not open", "rotation", r.ID, "error", why, "put_off", err == nil)
}

func clipText(s string) string {
	if len(s) > maxError {
		return s[:maxError]
	}
	return s
}

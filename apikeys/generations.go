package apikeys

import (
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// pepperSettles is for how long a replica may go on with the generation before the
// newest: many times pepperEvery.
const pepperSettles = 10 * time.Minute

// Pepper is a generation, and what still needs it.
type Pepper struct {
	Gen       int64
	CreatedAt time.Time
	RetiredAt time.Time // zero: it lives
	Keys      int64     // usable API keys
	Tokens    int64     // usable access tokens
}

func (p *Pepper) resource() string { return fmt.Sprintf("peppers/%d", p.Gen) }

// Usable are those that would be accepted now, or after a resume.
const (
	usableKeys   = ` FROM partner_keys WHERE pepper_gen = $1 AND state IN ('active', 'retiring', 'suspended') AND (expires_at = 0 OR expires_at > $2) AND (grace_ends_at = 0 OR grace_ends_at > $2)`
	usableTokens = ` FROM access_tokens WHERE pepper_gen = $1 AND state = 'active' AND (expires_at = 0 OR expires_at > $2)`
)

// count fills in what needs a generation.
func (p *Pepper) count(ctx context.Context, tx *store.Tx) error {
	return tx.QueryRow(ctx, `SELECT (SELECT COUNT(*)`+usableKeys+`), (SELECT COUNT(*)`+usableTokens+`)`, p.Gen, store.Micros(tx.Now)).Scan(&p.Keys, &p.Tokens)
}

// List returns the generations, newest first.
func (p *Peppers) List(ctx context.Context) (list []Pepper, err error) {
	err = p.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		if list, err = generations(ctx, tx); err != nil {
			return err
		}
		for i := range list {
			if err := list[i].count(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the peppers: %w", err)
	}
	return list, nil
}

func generations(ctx context.Context, tx *store.Tx) (list []Pepper, err error) {
	rows, err := tx.Query(ctx, `SELECT gen, created_at, retired_at FROM peppers WHERE gen > $1 ORDER BY gen DESC`, rootGen)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var g Pepper
		var created, retired int64
		if err := rows.Scan(&g.Gen, &created, &retired); err != nil {
			return nil, err
		}
		g.CreatedAt, g.RetiredAt = store.Time(created), store.Time(retired)
		list = append(list, g)
	}
	return list, rows.Err()
}

// Rotate makes a new generation. Keys and tokens move to it when they are next used.
func (p *Peppers) Rotate(ctx context.Context, reason string) (made Pepper, err error) {
	if err := checkReason("reason", reason); err != nil {
		return Pepper{}, fmt.Errorf("rotate the pepper: %w", err)
	}
	err = p.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := takeTurns(ctx, tx); err != nil {
			return err
		}
		list, err := generations(ctx, tx)
		if err != nil {
			return err
		}
		made = Pepper{Gen: list[0].Gen + 1, CreatedAt: tx.Now}
		if err := p.insert(ctx, tx, made.Gen, ""); err != nil {
			return err
		}
		// Other replicas find no imported key that moves to it before they know it.
		if err := tx.Announce(ctx, TopicKeys); err != nil {
			return err
		}
		return audit.Record(ctx, tx, audit.Event{Action: "pepper.rotate", Resource: made.resource(), Reason: reason})
	})
	if err != nil {
		return Pepper{}, fmt.Errorf("rotate the pepper: %w", err)
	}
	p.refresh(ctx)
	return made, nil
}

// Retire destroys a generation. It is refused while a usable key or token needs it,
// or while a replica may still hash under it.
func (p *Peppers) Retire(ctx context.Context, gen int64, reason string) (done Pepper, err error) {
	if err := checkReason("reason", reason); err != nil {
		return Pepper{}, fmt.Errorf("retire pepper generation %d: %w", gen, err)
	}
	err = p.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := takeTurns(ctx, tx); err != nil {
			return err
		}
		list, err := generations(ctx, tx)
		if err != nil {
			return err
		}
		i := 0
		for i < len(list) && list[i].Gen != gen {
			i++
		}
		if i == len(list) {
			return fault.New(fault.ErrNotFound, "pepper_not_found", "there is no such generation: see `rotunda pepper list`").On("generation")
		}
		g := list[i]
		if !g.RetiredAt.IsZero() {
			return fault.New(fault.ErrTransition, "already_retired", "it was retired at %s", g.RetiredAt.Format(time.RFC3339))
		}
		if i == 0 {
			return fault.New(fault.ErrTransition, "pepper_newest", "it is the newest: rotate first, and let keys and tokens move")
		}
		if ready := list[i-1].CreatedAt.Add(pepperSettles); tx.Now.Before(ready) {
			return fault.New(fault.ErrTransition, "pepper_too_new", "its successor, generation %d, is younger than %s, and a replica may still hash under the old one: try again at %s",
				list[i-1].Gen, pepperSettles, ready.Format(time.RFC3339))
		}
		if err := g.count(ctx, tx); err != nil {
			return err
		}
		if g.Keys > 0 || g.Tokens > 0 {
			return fault.New(fault.ErrTransition, "pepper_in_use", "%d usable API keys and %d access tokens were not used since the pepper was rotated, and would end with it: see `rotunda pepper stragglers %d`, then roll or revoke them", g.Keys, g.Tokens, gen)
		}
		if err := tx.Swap(ctx, `UPDATE peppers SET sealed = NULL, retired_at = $1 WHERE gen = $2 AND retired_at = 0`, store.Micros(tx.Now), gen); err != nil {
			return err
		}
		g.RetiredAt = tx.Now
		done = g
		return audit.Record(ctx, tx, audit.Event{Action: "pepper.retire", Resource: g.resource(), Reason: reason})
	})
	if err != nil {
		return Pepper{}, fmt.Errorf("retire pepper generation %d: %w", gen, err)
	}
	p.refresh(ctx)
	return done, nil
}

// check fails when a generation was retired meanwhile: nothing may be hashed under
// it any more.
func (p *Peppers) check(ctx context.Context, tx *store.Tx, gen int64) error {
	var retired int64
	err := tx.QueryRow(ctx, `SELECT retired_at FROM peppers WHERE gen = $1`, gen).Scan(&retired)
	if err == nil && retired != 0 || errors.Is(err, sql.ErrNoRows) {
		return fault.New(fault.ErrUnavailable, "pepper_retired", "pepper generation %d was retired, and this process has not heard of a newer one: see its log for why it can't read the peppers", gen)
	}
	return err
}

// refresh has this process see a change of its own at once. The change is made: when
// it can't be read now, the next Pass reads it, and reports why it could not.
func (p *Peppers) refresh(ctx context.Context) {
	if p.reload(ctx) != nil {
		p.mu.Lock()
		p.lookAt = 0
		p.mu.Unlock()
	}
}

// reload reads all generations, one reader at a time.
func (p *Peppers) reload(ctx context.Context) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	return p.load(ctx)
}

// Straggler is a usable key or token of an old generation.
type Straggler struct {
	Kind, ID, Partner, Name string // Kind: "api_key" or "token"
	LastUsedAt, ExpiresAt   time.Time
}

// Stragglers returns the usable keys and tokens of a generation: first keys, then
// tokens, each by id.
func (p *Peppers) Stragglers(ctx context.Context, gen int64, page string, limit int) (list []Straggler, next string, err error) {
	kind, id := string(APIKey), ""
	if page != "" {
		raw, bad := base64.RawURLEncoding.DecodeString(page)
		var ok bool
		if kind, id, ok = strings.Cut(string(raw), " "); bad != nil || !ok || kind != string(APIKey) && kind != stragglerToken || !isBase62(id) {
			return nil, "", fault.Invalid("page_token", "bad_page_token", "list stragglers: the page token is not one that Rotunda gave: start from the first page")
		}
	}
	err = p.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		list = nil
		if kind == string(APIKey) {
			err := stragglers(ctx, tx, &list, string(APIKey), `SELECT id, partner, name, last_used_at, expires_at`+usableKeys+` AND id > $3 ORDER BY id LIMIT $4`, gen, id, limit+1)
			if err != nil {
				return err
			}
			id = ""
		}
		if len(list) > limit {
			return nil
		}
		return stragglers(ctx, tx, &list, stragglerToken, `SELECT id, partner, name, last_used_at, expires_at`+usableTokens+` AND id > $3 ORDER BY id LIMIT $4`, gen, id, limit+1-len(list))
	})
	if err != nil {
		return nil, "", fmt.Errorf("list stragglers: %w", err)
	}
	if len(list) > limit {
		list = list[:limit]
		last := list[limit-1]
		next = base64.RawURLEncoding.EncodeToString([]byte(last.Kind + " " + last.ID))
	}
	return list, next, nil
}

const stragglerToken = "token"

func stragglers(ctx context.Context, tx *store.Tx, list *[]Straggler, kind, query string, gen int64, after string, limit int) error {
	rows, err := tx.Query(ctx, query, gen, store.Micros(tx.Now), after, limit)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		s := Straggler{Kind: kind}
		var used, expires int64
		if err := rows.Scan(&s.ID, &s.Partner, &s.Name, &used, &expires); err != nil {
			return err
		}
		s.LastUsedAt, s.ExpiresAt = store.Time(used), store.Time(expires)
		*list = append(*list, s)
	}
	return rows.Err()
}

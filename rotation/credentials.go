package rotation

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// CredentialsConfig is what Credentials needs.
type CredentialsConfig struct {
	DB        *store.DB
	Systems   *Systems
	Rotations *Rotations

	// Log receives what no caller can be told. Default: nowhere.
	Log *slog.Logger
}

// Credentials keeps credentials, starts what is due, and looks for drift. Its methods may be called
// from many goroutines.
type Credentials struct {
	db      *store.DB
	systems *Systems
	runs    *Rotations
	log     *slog.Logger
}

// NewCredentials returns the credentials of a database.
func NewCredentials(c CredentialsConfig) (*Credentials, error) {
	if c.DB == nil || c.Systems == nil || c.Rotations == nil {
		return nil, fault.Invalid("db", "config_incomplete", "credentials: DB, Systems and Rotations are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Credentials{db: c.DB, systems: c.Systems, runs: c.Rotations, log: c.Log}, nil
}

// Create makes a credential, active at once. Its first rotation is at the first firing of its
// schedule, or when somebody asks for it.
func (cs *Credentials) Create(ctx context.Context, name string, spec Spec, once store.Once) (c *Credential, err error) {
	fail := func(err error) (*Credential, error) {
		return nil, fmt.Errorf("create credential %q: %w", clip(name), err)
	}
	if err := checkName("credential", name); err != nil {
		return fail(err)
	}
	err = cs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		prior, err := tx.Once(ctx, once, name)
		if err != nil {
			return err
		}
		if prior != "" {
			c, err = cs.systems.readCredential(ctx, tx, prior)
			return err
		}
		checked, err := cs.systems.checkSpec(ctx, tx, name, spec)
		if err != nil {
			return err
		}
		made := &Credential{Name: name, Spec: checked, State: CredentialActive, CreatedAt: tx.Now, Since: tx.Now, Version: 1}
		made.reschedule(tx.Now)
		if err := cs.systems.insertCredential(ctx, tx, made); err != nil {
			return err
		}
		if err := cs.systems.setPlacements(ctx, tx, made, nil); err != nil {
			return err
		}
		if err := cs.systems.setLabels(ctx, tx, made, nil); err != nil {
			return err
		}
		c = made
		return recordCredential(ctx, tx, made, "create", "", made.detail())
	})
	if err != nil {
		return fail(err)
	}
	return c, nil
}

// Get returns a credential, or fault.ErrNotFound. One whose row was tampered with is returned, and
// says so.
func (cs *Credentials) Get(ctx context.Context, name string) (c *Credential, err error) {
	err = cs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, err = cs.systems.seeCredential(ctx, tx, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read credential %q: %w", clip(name), err)
	}
	return c, nil
}

// Placements returns what we last put where, in the order of publication.
func (cs *Credentials) Placements(ctx context.Context, name string) (list []Placed, err error) {
	err = cs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, err := cs.systems.readCredential(ctx, tx, name)
		if err != nil {
			return err
		}
		list, err = cs.systems.readPlacements(ctx, tx, c)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the stores of credential %q: %w", clip(name), err)
	}
	return list, nil
}

// AnyDrift selects credentials with drift of whatever kind.
const AnyDrift Drift = "any"

// ListCredentials selects credentials. Empty fields select all.
type ListCredentials struct {
	Target string
	Store  string
	Labels map[string]string // all of them, at most 8
	State  CredentialState
	Drift  Drift // or AnyDrift
	Page   string
	Limit  int // 1 to 1,000
}

// where is the SQL condition of a selection over credentials c, and its arguments.
func (q ListCredentials) where() (string, []any) {
	conditions, args := []string{`c.name > $1`}, []any{q.Page}
	add := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(args)), 1)
		}
		conditions = append(conditions, condition)
	}
	if q.Target != "" {
		add(`c.target = ?`, q.Target)
	}
	if q.Store != "" {
		add(`EXISTS (SELECT 1 FROM credential_stores s WHERE s.credential = c.name AND s.store = ?)`, q.Store)
	}
	for _, label := range slices.Sorted(maps.Keys(q.Labels)) {
		add(`EXISTS (SELECT 1 FROM credential_labels l WHERE l.credential = c.name AND l.label = ? AND l.value = ?)`, label, q.Labels[label])
	}
	if q.State != "" {
		add(`c.state = ?`, q.State)
	}
	switch q.Drift {
	case NoDrift:
	case AnyDrift:
		conditions = append(conditions, `c.drift <> ''`)
	default:
		add(`c.drift = ?`, q.Drift)
	}
	return strings.Join(conditions, " AND "), args
}

// List returns credentials by name, and the page to continue at.
func (cs *Credentials) List(ctx context.Context, q ListCredentials) (list []*Credential, next string, err error) {
	if err := checkPage(q.Page, q.Limit); err != nil {
		return nil, "", fmt.Errorf("list credentials: %w", err)
	}
	if len(q.Labels) > 8 {
		return nil, "", fault.Invalid("labels", "too_many", "list credentials: %d labels are given, at most 8 are allowed", len(q.Labels))
	}
	err = cs.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		list, err = cs.systems.listCredentials(ctx, tx, q, q.Limit+1)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list credentials: %w", err)
	}
	if len(list) > q.Limit {
		list = list[:q.Limit]
		next = list[q.Limit-1].Name
	}
	return list, next, nil
}

func (s *Systems) listCredentials(ctx context.Context, tx *store.Tx, q ListCredentials, limit int) (list []*Credential, err error) {
	where, args := q.where()
	rows, err := tx.Query(ctx, `SELECT `+credentialColumns+` FROM credentials c WHERE `+where+fmt.Sprintf(` ORDER BY c.name LIMIT %d`, limit), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		c, err := s.scanCredential(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, rows.Err()
}

// Update replaces what may change of a credential, if it still has the version. The target stays
// once there is a value; strategy, params and stores stay while a run is under way.
func (cs *Credentials) Update(ctx context.Context, name string, version int64, spec Spec) (*Credential, error) {
	return cs.change(ctx, name, "update", "", func(ctx context.Context, tx *store.Tx, c *Credential) error {
		if c.Version != version {
			return changedSince(c.Version, version)
		}
		checked, err := cs.systems.checkSpec(ctx, tx, name, spec)
		if err != nil {
			return err
		}
		if err := checkChange(ctx, tx, c, checked); err != nil {
			return err
		}
		old := c.Spec
		c.Spec = checked
		if err := cs.systems.setPlacements(ctx, tx, c, old.Stores); err != nil {
			return err
		}
		if err := cs.systems.setLabels(ctx, tx, c, old.Labels); err != nil {
			return err
		}
		if c.Schedule != old.Schedule || !slices.Equal(c.Windows, old.Windows) {
			c.reschedule(tx.Now)
		}
		if c.Probe != old.Probe || !slices.Equal(c.Stores, old.Stores) {
			c.plan(tx.Now)
		}
		return nil
	})
}

// checkChange refuses what must stay.
func checkChange(ctx context.Context, tx *store.Tx, c *Credential, to Spec) error {
	if to.Target != c.Target && c.Generation > 0 {
		return fault.New(fault.ErrTransition, "target_stays", "its values are accepted by target %s, not by %s: make a new credential, and delete this one once consumers have moved", c.Target, to.Target).On("target")
	}
	field := ""
	switch {
	case to.Target != c.Target:
		field = "target"
	case to.Strategy != c.Strategy:
		field = "strategy"
	case !maps.Equal(to.Params, c.Params):
		field = "params"
	case !slices.Equal(to.Stores, c.Stores):
		field = "stores"
	default:
		return nil
	}
	run, err := openRun(ctx, tx, c.Name)
	if err != nil || run == "" {
		return err
	}
	return fault.New(fault.ErrTransition, "is_rotating", "rotation %s is under way, and %s stays until it has ended: wait for it, or abandon it", run, field).On(field)
}

// openRun is the id of a run of a credential that has not ended; empty: there is none.
func openRun(ctx context.Context, tx *store.Tx, name string) (id string, err error) {
	err = tx.QueryRow(ctx, `SELECT id FROM rotations WHERE credential = $1 AND ended_at = 0 ORDER BY id LIMIT 1`, name).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return id, err
}

// Pause stops the schedule of a credential until Resume. What is under way goes on.
func (cs *Credentials) Pause(ctx context.Context, name, reason string) (*Credential, error) {
	return cs.turn(ctx, name, "pause", CredentialPaused, reason)
}

// Resume undoes Pause. Firings that came meanwhile are not made up.
func (cs *Credentials) Resume(ctx context.Context, name, reason string) (*Credential, error) {
	return cs.turn(ctx, name, "resume", CredentialActive, reason)
}

func (cs *Credentials) turn(ctx context.Context, name, action string, to CredentialState, reason string) (*Credential, error) {
	if err := checkReason(reason); err != nil {
		return nil, fmt.Errorf("%s credential %q: %w", action, clip(name), err)
	}
	return cs.change(ctx, name, action, reason, func(_ context.Context, tx *store.Tx, c *Credential) error {
		if c.State == to {
			return fault.New(fault.ErrTransition, "already_"+string(to), "it is %s since %s", to, c.Since.Format(time.RFC3339))
		}
		c.State, c.Reason, c.Since = to, reason, tx.Now
		c.reschedule(tx.Now)
		return nil
	})
}

// change locks a credential, has it edited, and writes it with its event.
func (cs *Credentials) change(ctx context.Context, name, action, reason string, edit func(ctx context.Context, tx *store.Tx, c *Credential) error) (c *Credential, err error) {
	err = cs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		got, err := cs.systems.lockCredential(ctx, tx, name)
		if err != nil {
			return err
		}
		before := *got
		if err := edit(ctx, tx, got); err != nil {
			return err
		}
		if action == "update" && reflect.DeepEqual(before, *got) {
			c = got // as it was
			return nil
		}
		if err := cs.systems.writeCredential(ctx, tx, got); err != nil {
			return err
		}
		c = got
		detail := map[string]any{"version": got.Version}
		if action == "update" {
			detail = got.detail()
		}
		if !got.NextAt.IsZero() {
			detail["next_at"] = got.NextAt.Format(time.RFC3339Nano)
		}
		return recordCredential(ctx, tx, got, action, reason, detail)
	})
	if err != nil {
		return nil, fmt.Errorf("%s credential %q: %w", action, clip(name), err)
	}
	return c, nil
}

// Delete forgets a credential and destroys its values with us. Stores and targets stay as they are:
// what a target accepts it goes on accepting. A credential with a run that has not ended, and one
// by which Rotunda logs in somewhere, is refused.
func (cs *Credentials) Delete(ctx context.Context, name, reason string) error {
	if err := checkReason(reason); err != nil {
		return fmt.Errorf("delete credential %q: %w", clip(name), err)
	}
	err := cs.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		c, err := cs.systems.lockCredential(ctx, tx, name)
		if err != nil {
			return err
		}
		run, err := openRun(ctx, tx, name)
		if err != nil {
			return err
		}
		if run != "" {
			return fault.New(fault.ErrTransition, "is_rotating", "rotation %s has not ended: wait for it, or abandon it", run)
		}
		var sort, system string
		err = tx.QueryRow(ctx, `SELECT sort, name FROM systems WHERE login_credential = $1 ORDER BY sort, name LIMIT 1`, name).Scan(&sort, &system)
		if err == nil {
			return fault.New(fault.ErrTransition, "is_login", "it is the login of %s %s: give that another login first", sort, system)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		for _, query := range []string{
			`DELETE FROM credential_labels WHERE credential = $1`,
			`DELETE FROM credential_stores WHERE credential = $1`,
			`DELETE FROM credential_versions WHERE credential = $1`,
			`DELETE FROM rotations WHERE credential = $1`,
		} {
			if _, err := tx.Exec(ctx, query, name); err != nil {
				return err
			}
		}
		if err := tx.Swap(ctx, `DELETE FROM credentials WHERE name = $1 AND version = $2`, name, c.Version); err != nil {
			return err
		}
		detail := c.detail()
		detail["generation"] = c.Generation
		return recordCredential(ctx, tx, c, "delete", reason, detail)
	})
	if err != nil {
		return fmt.Errorf("delete credential %q: %w", clip(name), err)
	}
	return nil
}

// detail is what an event says of a credential. Labels are left out: they are not for the trail,
// which can't forget.
func (c *Credential) detail() map[string]any {
	d := map[string]any{"target": c.Target, "strategy": string(c.Strategy), "version": c.Version}
	if len(c.Stores) > 0 {
		stores := make([]string, len(c.Stores))
		for i, p := range c.Stores {
			stores[i] = fmt.Sprintf("%s:%.200s", p.Store, p.Path) // an event has room for 16 KiB
		}
		d["stores"] = stores
	}
	if !c.Schedule.IsZero() {
		d["schedule"], d["missed"] = c.Schedule.String(), string(c.Missed)
	}
	if len(c.Windows) > 0 {
		windows := make([]string, len(c.Windows))
		for i, w := range c.Windows {
			windows[i] = w.String()
		}
		d["windows"] = windows
	}
	if c.Grace > 0 {
		d["grace"] = c.Grace.String()
	}
	if c.Quiet > 0 {
		d["quiet"] = c.Quiet.String()
	}
	if c.Adopt {
		d["adopt"] = true
	}
	return d
}

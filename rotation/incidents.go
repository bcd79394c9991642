package rotation

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// TopicIncidents wakes listeners in all processes when an emergency was begun.
const TopicIncidents = "incidents"

const (
	maxSelected = 1000 // credentials that a selector names

	// Runs of one incident that are at work at once. More would only wait, and could not be
	// kept from beginning by Stop.
	maxAtWork = 1000

	incidentBatch = 25 // credentials per transaction
	incidentTurn  = 20 // transactions per pass and incident

	// A cursor that is after every name: all were looked at.
	afterAll = "~"
)

// Selector says which credentials an emergency takes in: exactly one of its fields is set.
type Selector struct {
	Credentials []string          `json:"credentials,omitempty"` // at most 1,000 names
	Store       string            `json:"store,omitempty"`       // those that have a place in it
	Target      string            `json:"target,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"` // those that have all of them; at most 8
	All         bool              `json:"all,omitempty"`
}

func (s Selector) checked() (Selector, error) {
	n := 0
	for _, set := range []bool{len(s.Credentials) > 0, s.Store != "", s.Target != "", len(s.Labels) > 0, s.All} {
		if set {
			n++
		}
	}
	switch {
	case n != 1:
		return s, fault.Invalid("selector", "selector_ambiguous", "%d of credentials, store, target, labels and all are given: give exactly one", n)
	case len(s.Credentials) > maxSelected:
		return s, fault.Invalid("selector.credentials", "too_many", "%d credentials are named, at most %d are allowed: select by store, target or label", len(s.Credentials), maxSelected)
	case len(s.Labels) > 8:
		return s, fault.Invalid("selector.labels", "too_many", "%d labels are given, at most 8 are allowed", len(s.Labels))
	}
	for _, name := range append([]string{s.Store, s.Target}, s.Credentials...) {
		if name != "" && !nameShape.MatchString(name) {
			return s, fault.Invalid("selector", "bad_name", "%q is no name", clip(name))
		}
	}
	s.Credentials = slices.Clone(s.Credentials)
	slices.Sort(s.Credentials)
	s.Credentials = slices.Compact(s.Credentials)
	s.Labels = maps.Clone(s.Labels)
	return s, nil
}

// IncidentState is what becomes of an incident.
type IncidentState string

// The states of an incident.
const (
	IncidentOpen    IncidentState = "open"    // runs are begun, or have not all ended
	IncidentStopped IncidentState = "stopped" // no more runs are begun; those that were go on
	IncidentClosed  IncidentState = "closed"  // every run has ended
)

// Incident is an emergency rotation of many credentials.
type Incident struct {
	ID        string // UUIDv7
	Selector  Selector
	PlanHash  string
	Grace     time.Duration
	Actor     string
	Reason    string
	State     IncidentState
	Total     int64  // credentials that were selected when it was made
	Begun     int64  // runs that were begun
	Skipped   int64  // credentials that were passed over, each with an event
	After     string // the last credential that was looked at
	CreatedAt time.Time
	EndedAt   time.Time // when the last run ended

	// Set by Get: its runs by step, and those that have ended by outcome.
	Steps    map[Step]int64
	Outcomes map[RotationOutcome]int64

	tampered bool
}

// Resource is the incident's name in the trail.
func (i *Incident) Resource() string { return "incidents/" + i.ID }

// Tampered reports whether the row is not as Rotunda wrote it. Such an incident begins no more runs.
func (i *Incident) Tampered() bool { return i.tampered }

// IncidentsConfig is what Incidents needs.
type IncidentsConfig struct {
	DB          *store.DB
	Credentials *Credentials

	// Log receives what no caller can be told. Default: nowhere.
	Log *slog.Logger
}

// Incidents keeps emergency rotations. Its methods may be called from many goroutines.
type Incidents struct {
	db    *store.DB
	creds *Credentials
	key   rowKey
	log   *slog.Logger
}

// NewIncidents returns the incidents of a database.
func NewIncidents(c IncidentsConfig) (*Incidents, error) {
	if c.DB == nil || c.Credentials == nil {
		return nil, fault.Invalid("db", "config_incomplete", "incidents: DB and Credentials are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Incidents{db: c.DB, creds: c.Credentials, key: c.Credentials.systems.key, log: c.Log}, nil
}

// EmergencyRequest begins an emergency.
type EmergencyRequest struct {
	Selector Selector
	PlanHash string        // of EmergencyPlan; when set, the plan must still be the same
	Reason   string        // required, at most 200 bytes
	Grace    time.Duration // for all of them, at most 90 days
	Once     store.Once
}

// StartEmergency records an incident; [Incidents.Pass] begins its runs, ahead of all others and
// outside of windows. A plan that is no longer the same is fault.ErrChanged.
func (in *Incidents) StartEmergency(ctx context.Context, r EmergencyRequest) (i *Incident, err error) {
	if r.Reason == "" {
		return nil, fault.Invalid("reason", "reason_required", "start an emergency: it needs a reason, for the trail")
	}
	if err := checkReason(r.Reason); err != nil {
		return nil, fmt.Errorf("start an emergency: %w", err)
	}
	plan, err := in.PlanEmergency(ctx, r.Selector, r.Grace, "", 1)
	if err != nil {
		return nil, err
	}
	if r.PlanHash != "" && r.PlanHash != plan.Hash {
		return nil, fault.New(fault.ErrChanged, "plan_changed", "start an emergency: the plan is no longer that of the hash: %d credentials are selected now: look at the plan again", plan.Count).On("plan_hash")
	}
	if plan.Count == 0 {
		return nil, fault.New(fault.ErrNotFound, "nothing_selected", "start an emergency: no credential is selected").On("selector")
	}
	err = in.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		id := tx.ID()
		prior, err := tx.Once(ctx, r.Once, id)
		if err != nil {
			return err
		}
		if prior != "" {
			i, err = in.seeIncident(ctx, tx, prior)
			return err
		}
		made := &Incident{ID: id, Selector: plan.Selector, PlanHash: plan.Hash, Grace: plan.Grace, Actor: audit.ActorOf(ctx).ID, Reason: r.Reason, State: IncidentOpen, Total: plan.Count, CreatedAt: tx.Now}
		selector, err := json.Marshal(made.Selector)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO incidents (`+incidentColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
			made.ID, string(selector), made.PlanHash, made.Grace.Microseconds(), made.Actor, made.Reason, made.State, made.Total, made.Begun, made.Skipped, made.After,
			store.Micros(made.CreatedAt), store.Micros(made.EndedAt), sealRow(in.key, "incidents", made.parts(string(selector))...))
		if err != nil {
			return err
		}
		i = made
		detail := map[string]any{"total": made.Total, "grace": made.Grace.String(), "plan_hash": made.PlanHash}
		if len(selector) < 8<<10 {
			detail["selector"] = json.RawMessage(selector)
		}
		if err := audit.Record(ctx, tx, audit.Event{Action: "incident.start", Resource: made.Resource(), Reason: r.Reason, Detail: detail}); err != nil {
			return err
		}
		return tx.Announce(ctx, TopicIncidents)
	})
	if err != nil {
		return nil, fmt.Errorf("start an emergency: %w", err)
	}
	return i, nil
}

const incidentColumns = `id, selector, plan_hash, grace, actor, reason, state, total, begun, skipped, after, created_at, ended_at, seal`

func (i *Incident) parts(selector string) []any {
	return []any{i.ID, selector, i.PlanHash, i.Grace, i.Actor, i.Reason, string(i.State), i.Total, i.Begun, i.Skipped, i.After, i.CreatedAt, i.EndedAt}
}

func (in *Incidents) scanIncident(row interface{ Scan(...any) error }) (*Incident, error) {
	var i Incident
	var selector string
	var grace, created, ended int64
	var seal []byte
	err := row.Scan(&i.ID, &selector, &i.PlanHash, &grace, &i.Actor, &i.Reason, &i.State, &i.Total, &i.Begun, &i.Skipped, &i.After, &created, &ended, &seal)
	if err != nil {
		return nil, err
	}
	i.Grace, i.CreatedAt, i.EndedAt = time.Duration(grace)*time.Microsecond, store.Time(created), store.Time(ended)
	good := json.Unmarshal([]byte(selector), &i.Selector) == nil
	i.tampered = !good || !genuineRow(in.key, seal, "incidents", i.parts(selector)...)
	return &i, nil
}

func (in *Incidents) seeIncident(ctx context.Context, tx *store.Tx, id string) (*Incident, error) {
	i, err := in.scanIncident(tx.QueryRow(ctx, `SELECT `+incidentColumns+` FROM incidents WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.ErrNotFound, "incident_not_found", "there is no incident %q", clip(id)).On("id")
	}
	return i, err
}

func (in *Incidents) lockIncident(ctx context.Context, tx *store.Tx, id string) (*Incident, error) {
	if _, err := tx.Exec(ctx, `UPDATE incidents SET begun = begun WHERE id = $1`, id); err != nil {
		return nil, err
	}
	i, err := in.seeIncident(ctx, tx, id)
	if err == nil && i.tampered {
		return nil, errTampered("incident", id)
	}
	return i, err
}

func (in *Incidents) writeIncident(ctx context.Context, tx *store.Tx, i *Incident) error {
	selector, err := json.Marshal(i.Selector)
	if err != nil {
		return err
	}
	return tx.Swap(ctx, `UPDATE incidents SET state = $1, begun = $2, skipped = $3, after = $4, ended_at = $5, seal = $6 WHERE id = $7`,
		i.State, i.Begun, i.Skipped, i.After, store.Micros(i.EndedAt), sealRow(in.key, "incidents", i.parts(string(selector))...), i.ID)
}

// Get returns an incident with its progress, or fault.ErrNotFound.
func (in *Incidents) Get(ctx context.Context, id string) (i *Incident, err error) {
	err = in.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		if i, err = in.seeIncident(ctx, tx, id); err != nil {
			return err
		}
		i.Steps, i.Outcomes = map[Step]int64{}, map[RotationOutcome]int64{}
		rows, err := tx.Query(ctx, `SELECT step, outcome, COUNT(*) FROM rotations WHERE incident <> '' AND incident = $1 GROUP BY step, outcome`, id)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var step Step
			var outcome RotationOutcome
			var n int64
			if err := rows.Scan(&step, &outcome, &n); err != nil {
				return err
			}
			i.Steps[step] += n
			if outcome != "" {
				i.Outcomes[outcome] += n
			}
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read incident %q: %w", clip(id), err)
	}
	return i, nil
}

// List returns up to limit incidents, the newest first, without progress, and the page to continue at.
func (in *Incidents) List(ctx context.Context, page string, limit int) (list []*Incident, next string, err error) {
	if err := checkLimit(limit); err != nil {
		return nil, "", fmt.Errorf("list incidents: %w", err)
	}
	if page != "" && !uuid.MatchString(page) {
		return nil, "", fault.Invalid("page_token", "bad_page_token", "list incidents: the page token is not one that Rotunda gave: start from the first page")
	}
	if page == "" {
		page = "g" // after all ids
	}
	err = in.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		list = nil
		rows, err := tx.Query(ctx, `SELECT `+incidentColumns+` FROM incidents WHERE id < $1 ORDER BY id DESC LIMIT $2`, page, limit+1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			i, err := in.scanIncident(rows)
			if err != nil {
				return err
			}
			list = append(list, i)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list incidents: %w", err)
	}
	if len(list) > limit {
		list = list[:limit]
		next = list[limit-1].ID
	}
	return list, next, nil
}

// Stop begins no more runs. Those that were begun go on.
func (in *Incidents) Stop(ctx context.Context, id, reason string) (i *Incident, err error) {
	if err := checkReason(reason); err != nil {
		return nil, fmt.Errorf("stop incident %q: %w", clip(id), err)
	}
	err = in.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if i, err = in.lockIncident(ctx, tx, id); err != nil {
			return err
		}
		if i.State != IncidentOpen {
			return fault.New(fault.ErrTransition, "already_"+string(i.State), "it is %s", i.State)
		}
		i.State = IncidentStopped
		if err := in.writeIncident(ctx, tx, i); err != nil {
			return err
		}
		return i.record(ctx, tx, "stop", reason)
	})
	if err != nil {
		return nil, fmt.Errorf("stop incident %q: %w", clip(id), err)
	}
	return i, nil
}

func (i *Incident) record(ctx context.Context, tx *store.Tx, action, reason string) error {
	return audit.Record(ctx, tx, audit.Event{Action: "incident." + action, Resource: i.Resource(), Reason: reason,
		Detail: map[string]any{"total": i.Total, "begun": i.Begun, "skipped": i.Skipped}})
}

// Pass begins the runs of open incidents, oldest first, and closes those whose runs have all ended.
// What it has begun and how far it came is one transaction, so a crash is a pause.
func (in *Incidents) Pass(ctx context.Context, now time.Time) (time.Time, error) {
	var ids []string
	err := in.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		ids = nil
		rows, err := tx.Query(ctx, `SELECT id FROM incidents WHERE ended_at = 0 ORDER BY id LIMIT 100`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return rows.Err()
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("look for open incidents: %w", err)
	}
	var errs []error
	again := false
	for _, id := range ids {
		more, err := in.turn(ctx, id)
		if ctx.Err() != nil {
			return time.Time{}, ctx.Err()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("incident %s: %w", id, err))
		}
		again = again || more
	}
	switch {
	case len(errs) > 0:
		return time.Time{}, joined("incidents", errs)
	case again:
		return now, nil
	case len(ids) > 0:
		return now.Add(time.Second), nil
	}
	return time.Time{}, nil
}

// turn does one incident's share of a pass. more says that there is more to do at once.
func (in *Incidents) turn(ctx context.Context, id string) (more bool, err error) {
	for range incidentTurn {
		more = false
		err := in.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
			i, err := in.lockIncident(ctx, tx, id)
			if err != nil || !i.EndedAt.IsZero() {
				return err
			}
			more, err = in.advance(ctx, tx, i)
			return err
		})
		if err != nil || !more {
			return false, err
		}
	}
	return more, nil
}

// advance begins a batch of runs of a locked incident, or closes it.
func (in *Incidents) advance(ctx context.Context, tx *store.Tx, i *Incident) (more bool, err error) {
	var open, atWork int64
	err = tx.QueryRow(ctx, `SELECT COUNT(*), COALESCE(SUM(CASE WHEN step IN ('grace', 'failed') THEN 0 ELSE 1 END), 0) FROM rotations WHERE incident <> '' AND incident = $1 AND ended_at = 0`, i.ID).Scan(&open, &atWork)
	if err != nil {
		return false, err
	}
	if i.State == IncidentStopped || i.After == afterAll {
		if open > 0 {
			return false, nil
		}
		if i.State == IncidentOpen {
			i.State = IncidentClosed
		}
		i.EndedAt = tx.Now
		if err := in.writeIncident(ctx, tx, i); err != nil {
			return false, err
		}
		return false, i.record(ctx, tx, "close", "")
	}
	room := maxAtWork - atWork
	if room <= 0 {
		return false, nil
	}
	batch, err := in.selected(ctx, tx, i.Selector, i.After, int(min(room, incidentBatch)))
	if err != nil {
		return false, err
	}
	for _, s := range batch {
		if err := in.begin(ctx, tx, i, s); err != nil {
			return false, err
		}
		i.After = s.Name
	}
	if len(batch) == 0 {
		i.After = afterAll
	}
	return true, in.writeIncident(ctx, tx, i)
}

// begin starts the emergency run of one credential, or passes it over with an event.
func (in *Incidents) begin(ctx context.Context, tx *store.Tx, i *Incident, s *selectedCredential) error {
	reason, _ := s.skip()
	if reason == "" {
		c, err := in.creds.systems.lockCredential(ctx, tx, s.Name)
		if err == nil {
			grace := i.Grace
			_, err = in.creds.runs.start(audit.WithActor(ctx, audit.Actor{ID: i.Actor}), tx, c, startSpec{Cause: Emergency, Incident: i.ID, Reason: i.Reason, Grace: &grace, Overwrite: true})
		}
		f, known := errors.AsType[*fault.Error](err)
		switch {
		case err == nil:
			i.Begun++
			return nil
		case known && (errors.Is(err, fault.ErrTransition) || errors.Is(err, fault.ErrDenied) || errors.Is(err, fault.ErrNotFound)):
			reason = f.Reason
		default:
			return err
		}
	}
	i.Skipped++
	return audit.Record(ctx, tx, audit.Event{Action: "incident.skip", Resource: "credentials/" + s.Name, Outcome: audit.Failed, Reason: reason, Detail: map[string]any{"incident": i.ID}})
}

package rotation

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// maxEndpoints bounds the endpoints of a deployment.
const maxEndpoints = 1000

// SigningSecrets opens the request secrets that webhooks are signed with.
type SigningSecrets interface {
	// SigningSecrets returns the active and the retiring versions of a partner's request
	// secret, the newest first; when there is none it is an error.
	SigningSecrets(ctx context.Context, partner, name string) ([]webhook.Secret, error)
}

// Outgoing is one webhook on the wire.
type Outgoing struct {
	URL    string
	Header map[string][]string // signed; with Content-Type and User-Agent
	Body   []byte
}

// Answer is what a receiver said.
type Answer struct {
	Status     int
	RetryAfter time.Duration // 0: it did not say
}

// Sender sends webhooks by HTTP POST. It follows no redirect, keeps to the addresses that may be
// reached, reads a bounded part of the answer, and ends soon after ctx. Package rotation/sender
// has the real one.
type Sender interface {
	// Check refuses a URL that Send would never reach: fault.ErrInvalid.
	Check(u *url.URL) error

	Send(ctx context.Context, o Outgoing) (Answer, error)
}

// EndpointState is whether webhooks are sent to an endpoint.
type EndpointState string

// The states of an endpoint.
const (
	EndpointActive   EndpointState = "active"
	EndpointDisabled EndpointState = "disabled" // nothing is queued for it, and nothing sent
)

// EndpointSpec is what may change of an endpoint.
type EndpointSpec struct {
	URL     string // https, without user name and fragment, at most 1,024 bytes
	Partner string // whose request secret signs
	Secret  string // name of that request secret
}

// Endpoint is where consumers are told of new versions.
type Endpoint struct {
	Name string // 1 to 63 lower-case letters, digits and hyphens
	EndpointSpec
	State     EndpointState
	Reason    string // of its state
	CreatedAt time.Time
	Since     time.Time
	Version   int64

	tampered bool
}

// Resource is the endpoint's name in the trail.
func (e *Endpoint) Resource() string { return "endpoints/" + e.Name }

// Tampered reports whether the row is not as Rotunda wrote it. Nothing is sent to such an endpoint.
func (e *Endpoint) Tampered() bool { return e.tampered }

// EndpointsConfig is what Endpoints needs.
type EndpointsConfig struct {
	DB      *store.DB
	Systems *Systems
	Secrets SigningSecrets
	Sender  Sender

	// Log receives what no caller can be told. Default: nowhere.
	Log *slog.Logger
}

// Endpoints keeps webhook endpoints and delivers to them. Its methods may be called from many
// goroutines.
type Endpoints struct {
	db      *store.DB
	systems *Systems
	secrets SigningSecrets
	sender  Sender
	log     *slog.Logger

	mu       sync.Mutex
	busy     map[string]bool // endpoints that are being sent to
	resting  map[string]rest // endpoints that did not answer
	prunedAt time.Time
	sending  sync.WaitGroup
}

// NewEndpoints returns the endpoints of a database.
func NewEndpoints(c EndpointsConfig) (*Endpoints, error) {
	if c.DB == nil || c.Systems == nil || c.Secrets == nil || c.Sender == nil {
		return nil, fault.Invalid("db", "config_incomplete", "endpoints: DB, Systems, Secrets and Sender are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Endpoints{db: c.DB, systems: c.Systems, secrets: c.Secrets, sender: c.Sender, log: c.Log, busy: map[string]bool{}, resting: map[string]rest{}}, nil
}

// checked checks a spec, also that there is a secret to sign with.
func (es *Endpoints) checked(ctx context.Context, s EndpointSpec) error {
	if len(s.URL) > 1024 || !utf8.ValidString(s.URL) {
		return fault.Invalid("url", "bad_url", "the URL is longer than 1024 bytes, or no UTF-8")
	}
	u, err := url.Parse(s.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.Opaque != "":
		return fault.Invalid("url", "bad_url", "the URL is not https://HOST[:PORT][/PATH]")
	case u.User != nil:
		return fault.Invalid("url", "bad_url", "the URL holds a user name: webhooks are signed instead")
	case u.Fragment != "":
		return fault.Invalid("url", "bad_url", "the URL has a fragment (#), which is never sent")
	}
	if err := es.sender.Check(u); err != nil {
		return err
	}
	if s.Partner == "" || s.Secret == "" {
		return fault.Invalid("secret", "secret_required", "webhooks are signed with a request secret of a partner: name both")
	}
	_, err = es.secrets.SigningSecrets(ctx, s.Partner, s.Secret)
	if errors.Is(err, fault.ErrNotFound) || errors.Is(err, fault.ErrTransition) {
		return fault.Invalid("secret", "secret_unusable", "%w", err)
	}
	return err
}

// Create makes an endpoint, active at once.
func (es *Endpoints) Create(ctx context.Context, name string, spec EndpointSpec, once store.Once) (e *Endpoint, err error) {
	if err := checkName("endpoint", name); err != nil {
		return nil, fmt.Errorf("create endpoint %q: %w", clip(name), err)
	}
	if err := es.checked(ctx, spec); err != nil {
		return nil, fmt.Errorf("create endpoint %q: %w", name, err)
	}
	err = es.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		prior, err := tx.Once(ctx, once, name)
		if err != nil {
			return err
		}
		if prior != "" {
			e, err = es.readEndpoint(ctx, tx, prior)
			return err
		}
		var n int
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM endpoints`).Scan(&n); err != nil {
			return err
		}
		if n >= maxEndpoints {
			return fault.New(fault.ErrLimited, "too_many", "there are %d endpoints already, which is the most: remove one", n)
		}
		made := &Endpoint{Name: name, EndpointSpec: spec, State: EndpointActive, CreatedAt: tx.Now, Since: tx.Now, Version: 1}
		_, err = tx.Exec(ctx, `INSERT INTO endpoints (`+endpointColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
			made.Name, made.URL, made.Partner, made.Secret, made.State, made.Reason, store.Micros(made.CreatedAt), store.Micros(made.Since), made.Version,
			sealRow(es.systems.key, "endpoints", made.parts()...))
		if store.IsUnique(err, "endpoints_pkey", "endpoints.name") {
			return fault.New(fault.ErrExists, "endpoint_exists", "there is an endpoint of this name").On("name")
		}
		if err != nil {
			return err
		}
		e = made
		return made.record(ctx, tx, "create", "", made.detail())
	})
	if err != nil {
		return nil, fmt.Errorf("create endpoint %q: %w", name, err)
	}
	return e, nil
}

// Get returns an endpoint, or fault.ErrNotFound.
func (es *Endpoints) Get(ctx context.Context, name string) (e *Endpoint, err error) {
	err = es.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		e, err = es.seeEndpoint(ctx, tx, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read endpoint %q: %w", clip(name), err)
	}
	return e, nil
}

// List returns up to limit endpoints by name, and the page to continue at.
func (es *Endpoints) List(ctx context.Context, page string, limit int) (list []*Endpoint, next string, err error) {
	if err := checkPage(page, limit); err != nil {
		return nil, "", fmt.Errorf("list endpoints: %w", err)
	}
	err = es.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		list = nil
		rows, err := tx.Query(ctx, `SELECT `+endpointColumns+` FROM endpoints WHERE name > $1 ORDER BY name LIMIT $2`, page, limit+1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			e, err := es.scanEndpoint(rows)
			if err != nil {
				return err
			}
			list = append(list, e)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list endpoints: %w", err)
	}
	if len(list) > limit {
		list = list[:limit]
		next = list[limit-1].Name
	}
	return list, next, nil
}

// Update replaces what may change of an endpoint, if it still has the version. What waits for it is
// sent to the new URL, signed with the new secret.
func (es *Endpoints) Update(ctx context.Context, name string, version int64, spec EndpointSpec) (*Endpoint, error) {
	if err := es.checked(ctx, spec); err != nil {
		return nil, fmt.Errorf("update endpoint %q: %w", clip(name), err)
	}
	return es.change(ctx, name, "update", "", func(_ context.Context, _ *store.Tx, e *Endpoint) error {
		if e.Version != version {
			return changedSince(e.Version, version)
		}
		e.EndpointSpec = spec
		return nil
	})
}

// Disable stops sending until Enable. What waits becomes dead, and can be redelivered.
func (es *Endpoints) Disable(ctx context.Context, name, reason string) (*Endpoint, error) {
	return es.turn(ctx, name, "disable", EndpointDisabled, reason)
}

// Enable undoes Disable. What came meanwhile was never queued.
func (es *Endpoints) Enable(ctx context.Context, name, reason string) (*Endpoint, error) {
	return es.turn(ctx, name, "enable", EndpointActive, reason)
}

func (es *Endpoints) turn(ctx context.Context, name, action string, to EndpointState, reason string) (*Endpoint, error) {
	if err := checkReason(reason); err != nil {
		return nil, fmt.Errorf("%s endpoint %q: %w", action, clip(name), err)
	}
	return es.change(ctx, name, action, reason, func(ctx context.Context, tx *store.Tx, e *Endpoint) error {
		if e.State == to {
			return fault.New(fault.ErrTransition, "already_"+string(to), "it is %s since %s", to, e.Since.Format(time.RFC3339))
		}
		e.State, e.Reason, e.Since = to, reason, tx.Now
		if to == EndpointActive {
			return nil
		}
		_, err := tx.Exec(ctx, `UPDATE deliveries SET state = 'dead', next_at = 0, last_error = 'the endpoint was disabled' WHERE endpoint = $1 AND next_at > 0`, name)
		return err
	})
}

func (es *Endpoints) change(ctx context.Context, name, action, reason string, edit func(context.Context, *store.Tx, *Endpoint) error) (e *Endpoint, err error) {
	err = es.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		got, err := es.lockEndpoint(ctx, tx, name)
		if err != nil {
			return err
		}
		if err := edit(ctx, tx, got); err != nil {
			return err
		}
		seen := got.Version
		got.Version++
		err = tx.Swap(ctx, `UPDATE endpoints SET url = $1, partner = $2, secret = $3, state = $4, reason = $5, since = $6, version = $7, seal = $8 WHERE name = $9 AND version = $10`,
			got.URL, got.Partner, got.Secret, got.State, got.Reason, store.Micros(got.Since), got.Version, sealRow(es.systems.key, "endpoints", got.parts()...), got.Name, seen)
		if err != nil {
			return err
		}
		e = got
		var detail map[string]any
		if action == "update" {
			detail = got.detail()
		}
		return got.record(ctx, tx, action, reason, detail)
	})
	if err != nil {
		return nil, fmt.Errorf("%s endpoint %q: %w", action, clip(name), err)
	}
	return e, nil
}

// Delete removes an endpoint with its deliveries. One that a credential notifies is refused.
func (es *Endpoints) Delete(ctx context.Context, name string) error {
	err := es.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		e, err := es.lockEndpoint(ctx, tx, name)
		if err != nil {
			return err
		}
		user, err := es.userOf(ctx, tx, name)
		if err != nil {
			return err
		}
		if user != "" {
			return fault.New(fault.ErrTransition, "is_used", "credential %q notifies it: change that first, or disable the endpoint", user)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM deliveries WHERE endpoint = $1`, name); err != nil {
			return err
		}
		if err := tx.Swap(ctx, `DELETE FROM endpoints WHERE name = $1 AND version = $2`, name, e.Version); err != nil {
			return err
		}
		return e.record(ctx, tx, "delete", "", nil)
	})
	if err != nil {
		return fmt.Errorf("delete endpoint %q: %w", clip(name), err)
	}
	return nil
}

// userOf is a credential that notifies an endpoint; empty: none does. It reads all credentials.
func (es *Endpoints) userOf(ctx context.Context, tx *store.Tx, name string) (string, error) {
	rows, err := tx.Query(ctx, `SELECT name, spec FROM credentials WHERE spec LIKE '%"notify":[%"' || $1 || '"%' ORDER BY name`, name)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	for rows.Next() {
		var user, text string
		if err := rows.Scan(&user, &text); err != nil {
			return "", err
		}
		var spec Spec
		if err := json.Unmarshal([]byte(text), &spec); err != nil || slices.Contains(spec.Notify, name) {
			return user, nil // one that can't be read may notify it
		}
	}
	return "", rows.Err()
}

const endpointColumns = `name, url, partner, secret, state, reason, created_at, since, version, seal`

func (e *Endpoint) parts() []any {
	return []any{e.Name, e.URL, e.Partner, e.Secret, string(e.State), e.Reason, e.CreatedAt, e.Since, e.Version}
}

func (es *Endpoints) scanEndpoint(row interface{ Scan(...any) error }) (*Endpoint, error) {
	var e Endpoint
	var created, since int64
	var seal []byte
	if err := row.Scan(&e.Name, &e.URL, &e.Partner, &e.Secret, &e.State, &e.Reason, &created, &since, &e.Version, &seal); err != nil {
		return nil, err
	}
	e.CreatedAt, e.Since = store.Time(created), store.Time(since)
	e.tampered = !genuineRow(es.systems.key, seal, "endpoints", e.parts()...)
	return &e, nil
}

func (es *Endpoints) seeEndpoint(ctx context.Context, tx *store.Tx, name string) (*Endpoint, error) {
	e, err := es.scanEndpoint(tx.QueryRow(ctx, `SELECT `+endpointColumns+` FROM endpoints WHERE name = $1`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.ErrNotFound, "endpoint_not_found", "there is no endpoint %q: see `rotunda endpoint list`", clip(name)).On("endpoint")
	}
	return e, err
}

// readEndpoint reads an endpoint, whose row must be genuine.
func (es *Endpoints) readEndpoint(ctx context.Context, tx *store.Tx, name string) (*Endpoint, error) {
	e, err := es.seeEndpoint(ctx, tx, name)
	if err != nil {
		return nil, err
	}
	if e.tampered {
		return nil, errTampered("endpoint", e.Name)
	}
	return e, nil
}

func (es *Endpoints) lockEndpoint(ctx context.Context, tx *store.Tx, name string) (*Endpoint, error) {
	if _, err := tx.Exec(ctx, `UPDATE endpoints SET version = version WHERE name = $1`, name); err != nil {
		return nil, err
	}
	return es.readEndpoint(ctx, tx, name)
}

func (e *Endpoint) detail() map[string]any {
	return map[string]any{"url": e.URL, "partner": e.Partner, "secret": e.Secret, "version": e.Version}
}

func (e *Endpoint) record(ctx context.Context, tx *store.Tx, action, reason string, detail map[string]any) error {
	return audit.Record(ctx, tx, audit.Event{Action: "endpoint." + action, Resource: e.Resource(), Reason: reason, Detail: detail})
}

// Package audit keeps the trail: one event for every change and for every
// denied attempt.
//
// # Model
//
// [Record] writes an event in the transaction of the change that it tells of,
// so the trail can never disagree with the tables: either both are there or
// neither is. An event says who (actor, address, request id), what (action),
// on what (resource, partner), when, with which outcome and why. The database
// refuses to update, replace, delete or truncate events, by trigger. That stops
// every statement of this program, a mistake in it included, and every other
// user who may write there. It does not stop who may change the schema: the
// table's owner, which the application's user is unless another one made the
// tables, or whoever can write to SQLite's file. Whom the trail shall outlive
// must not hold those rights, or it must be copied to where they end.
//
// # Denied attempts
//
// An attempt that was refused has no transaction of its own to share, so
// [Denials] opens one. The first of its kind is written at once; equal ones
// within a minute are counted and written as one event with their Count. An
// actor at an address (in IPv6, at its /64) has a share of kinds; what he tries
// beyond it is counted as "various" under his name and address, and takes no
// place from others. Beyond a bound on all kinds the address is given up, and
// far beyond it the actor. So a flood of denied attempts is counted to the last
// in the trail, and fills neither the memory nor the database.
//
// # Failure
//
// When an event can't be written, the change does not happen. A denied attempt
// that can't be written is denied all the same, kept, and written later, as
// long as the process lives.
package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// The outcomes of an attempt.
const (
	OK      = trail.OK
	Denied  = trail.Denied
	Started = trail.Started
	Failed  = trail.Failed
)

// Event is one entry of the trail. Nothing in it may be secret.
type Event struct {
	ID        string // set by Record
	Index     int64  // the leaf index; -1 while it waits for one. Set by List
	Time      time.Time
	Actor     string // a token's id, "anonymous", or "rotunda" for the scheduler
	Action    string // "keyset.create"
	Resource  string // "keysets/payments"
	Partner   string
	Outcome   string
	Reason    string
	RequestID string
	Address   string
	Detail    map[string]any // what changed, as JSON
	Count     int64          // equal attempts that this event stands for
	Intent    string         // the id of the Started event that this one ends
	Erased    []string       // names of fields whose values were erased. Set by List
}

// Actor is who makes a request. The zero Actor is Rotunda itself.
type Actor struct {
	ID        string
	Role      string
	Partner   string
	Address   string
	RequestID string
}

// Rotunda is the actor of everything that happens by schedule.
const Rotunda = "rotunda"

type actorKey struct{}

// WithActor returns a context whose events are put down to a.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorOf returns the actor of a context.
func ActorOf(ctx context.Context) Actor {
	a, ok := ctx.Value(actorKey{}).(Actor)
	if !ok || a.ID == "" {
		a.ID = Rotunda
	}
	return a
}

// maxText bounds each text field of an event, in bytes.
const maxText = trail.MaxText

// Record writes an event in the caller's transaction. The actor, his address,
// partner and request id come from ctx unless the event names others. Once the
// trail is stopped it fails with fault.ErrUnavailable.
func Record(ctx context.Context, tx *store.Tx, e Event) error {
	_, err := insert(ctx, tx, e)
	return err
}

// insert writes an event and returns its id.
func insert(ctx context.Context, tx *store.Tx, e Event) (string, error) {
	a := ActorOf(ctx)
	fill(&e.Actor, a.ID)
	fill(&e.Partner, a.Partner)
	fill(&e.RequestID, a.RequestID)
	fill(&e.Address, a.Address)
	fill(&e.Outcome, OK)
	detail := []byte("{}")
	if len(e.Detail) > 0 {
		var err error
		if detail, err = json.Marshal(e.Detail); err != nil {
			return "", fmt.Errorf("record %s: encode its detail: %w", e.Action, err)
		}
	}
	if e.Action == "" || len(detail) > trail.MaxDetail {
		return "", fmt.Errorf("record %q on %s: it has no action, or too much detail", e.Action, clip(e.Resource))
	}
	w := trail.Event{
		ID: tx.ID(), Time: tx.Now, Actor: clip(e.Actor), Action: clip(e.Action), Resource: clip(e.Resource), Partner: clip(e.Partner), Outcome: e.Outcome,
		Reason: clip(e.Reason), RequestID: clip(e.RequestID), Address: clip(e.Address), Detail: string(detail), Count: max(1, e.Count), Intent: e.Intent,
		Salt: trail.NewSeed(),
	}
	hash, checks, err := w.Commit()
	if err != nil {
		return "", fmt.Errorf("record %s on %s: %w", w.Action, w.Resource, err)
	}
	var stopped string
	err = tx.QueryRow(ctx, `INSERT INTO event_queue (id, occurred_at, actor, action, resource, partner, outcome, reason, request_id, address, detail, count, intent, salt, checks, leaf_hash)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) RETURNING (SELECT stopped FROM trail WHERE id = 1)`,
		w.ID, store.Micros(w.Time), w.Actor, w.Action, w.Resource, w.Partner, w.Outcome, w.Reason, w.RequestID, w.Address, w.Detail, w.Count, w.Intent,
		w.Salt, checks, hash[:]).Scan(&stopped)
	if err != nil {
		return "", fmt.Errorf("record %s on %s: %w", w.Action, w.Resource, err)
	}
	if stopped != "" {
		return "", fault.New(fault.ErrUnavailable, "trail_stopped",
			"record %s: the trail is stopped, and nothing changes without it (documents are served, and tokens verified, as before): %s: see `rotunda audit status`", w.Action, stopped)
	}
	tx.Wake(topicQueued)
	return w.ID, nil
}

func fill(s *string, with string) {
	if *s == "" {
		*s = with
	}
}

// clip makes a text fit for a column of either database: bounded, valid UTF-8, no NUL.
func clip(s string) string {
	return cut(strings.ReplaceAll(strings.ToValidUTF8(cut(s), "\uFFFD"), "\x00", "\uFFFD"))
}

// cut shortens a text to maxText, between two characters.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > maxText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

package audit

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// eraseBatch is how many events one transaction erases.
const eraseBatch = 1000

// Erase asks for fields of events to be erased: those events that all selectors
// find, of which there must be one at least beside the times.
type Erase struct {
	Fields []trail.Field

	ID        string // of one event
	Actor     string
	Partner   string
	RequestID string
	Address   string

	Since, Until time.Time // half open; zero: no bound

	Reason string // required; must not hold what is erased
	DryRun bool   // count only
}

// Erased is what Erase did.
type Erased struct {
	Events  int64 // whose fields were erased, or would be
	Waiting int64 // found, but without a leaf index yet: erase again in a second
	// Receipt proves which request an event trail.erase is of: the event's detail
	// has selector = SHA-256(receipt ‖ selectors), in hexadecimal, where the
	// selectors are those of Selectors. Nobody else can find that out by trying
	// values. "" when nothing was erased.
	Receipt string
}

// Selectors returns what an Erase selects events by, as its receipt has it: a
// line "name=value" for each selector that is set, in the order of the struct.
func (e Erase) Selectors() string {
	var b strings.Builder
	for _, s := range e.selectors() {
		if s.value != "" {
			b.WriteString(s.name + "=" + s.value + "\n")
		}
	}
	return b.String()
}

type selector struct{ name, value string }

func (e Erase) selectors() []selector {
	return []selector{{"id", e.ID}, {"actor", e.Actor}, {"partner", e.Partner}, {"request_id", e.RequestID}, {"address", e.Address}}
}

// Erase destroys the values of fields, and the salts by which they could be found
// again by trying. The commitments stay, so leaves, tree and proofs do too. It
// can't be undone. It works in transactions of 1,000 events, each of which also
// records trail.erase (not the values, nor the selectors); after a crash, or an
// error, call it again: it goes on with what is left.
//
// Only the named fields are erased: a name in a reason or a detail is there until
// that field is erased, too. Resources and actions can't be erased. Events that a
// legal hold covers are not: the call is refused with fault.ErrTransition, as it
// is for who would erase his own name, which the record of the erasure has to
// hold. Of what was done to the trail itself, as to its retention, holds and sinks,
// actor and detail stay: else one token could wipe out what another did to it.
//
// What is left elsewhere: copies in sinks, exports and backups. On SQLite, freed
// space is overwritten (secure_delete), but the old pages are in the -wal file
// until it is overwritten by later changes, or removed when the server stops; and
// a disk may keep what a file no longer has. On PostgreSQL the old rows are dead,
// and in the files until VACUUM has run and their space was used again, and in
// the archived WAL.
func (t *Trail) Erase(ctx context.Context, e Erase) (done Erased, err error) {
	if err := e.check(ActorOf(ctx)); err != nil {
		return done, err
	}
	if !e.DryRun {
		for range 20 { // so that what was recorded just now is found
			n, err := t.Sequence(ctx)
			if errors.Is(err, fault.ErrChanged) {
				continue // the lease went over to another process
			}
			if err != nil && !errors.Is(err, store.ErrHeld) {
				return done, wrapErase(err)
			}
			if err != nil || n < batchSize {
				break
			}
		}
	}
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		var w, waiting where
		e.match(&w, true)
		e.match(&waiting, false)
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM event_queue`+waiting.String(), waiting.args...).Scan(&done.Waiting); err != nil {
			return err
		}
		if e.DryRun {
			if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM events`+w.String(), w.args...).Scan(&done.Events); err != nil {
				return err
			}
		}
		return refuseHeld(ctx, tx, w)
	})
	if err != nil || e.DryRun {
		return done, wrapErase(err)
	}
	receipt := hex.EncodeToString(trail.NewSeed())
	for from := int64(0); ; {
		var n, next int64
		err := t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
			n, next, err = e.batch(ctx, tx, from, receipt)
			return err
		})
		if err != nil {
			return done, wrapErase(err)
		}
		if n > 0 {
			done.Events, done.Receipt = done.Events+n, receipt
		}
		if from = next; next < 0 {
			return done, nil
		}
	}
}

func wrapErase(err error) error {
	if err != nil {
		return fmt.Errorf("erase fields of events: %w", err)
	}
	return nil
}

func (e *Erase) check(by Actor) error {
	if len(e.Fields) == 0 {
		return fault.Invalid("fields", "fields_required", "erase fields of events: no field is named")
	}
	for _, f := range e.Fields {
		if f >= trail.NumFields {
			return fault.Invalid("fields", "field_unknown", "erase fields of events: %v is no field that can be erased", f)
		}
	}
	if e.Reason == "" {
		return fault.Invalid("reason", "reason_required", "erase fields of events: say why: an auditor will ask")
	}
	if e.Selectors() == "" {
		return fault.Invalid("id", "selector_required", "erase fields of events: name an event, an actor, a partner, a request id or an address: nothing else selects events")
	}
	for _, s := range e.selectors() {
		if err := e.reasonTells(s.value); err != nil {
			return err
		}
	}
	if e.Actor == by.ID && slices.Contains(e.Fields, trail.Actor) {
		return errOwnName
	}
	return nil
}

var errOwnName = fault.New(fault.ErrTransition, "own_name", "you would erase your own name, and the record of the erasure would hold it: have somebody else do it")

// reasonTells refuses a reason that holds a value which shall be erased.
func (e *Erase) reasonTells(value string) error {
	if len(value) > 2 && strings.Contains(e.Reason, value) {
		return fault.Invalid("reason", "reason_tells", "erase fields of events: the reason holds a value that is to be erased, and would keep it")
	}
	return nil
}

// trailActions are what the actions of events begin with that are about the trail.
var trailActions = []string{"trail.", "trail_key.", "retention.", "hold.", "sink.", "anchor.", "witness."}

// stays reports whether a field of the events about the trail can't be erased.
func stays(f trail.Field) bool { return f == trail.Actor || f == trail.Detail }

// ofTrail is the condition, after others, that an event is not about the trail.
func ofTrail() string {
	var b strings.Builder
	for _, prefix := range trailActions {
		fmt.Fprintf(&b, " AND substr(action, 1, %d) <> '%s'", len(prefix), prefix)
	}
	return b.String()
}

// match adds the conditions of the selectors and, for sequenced events, that
// something is left to erase: what was erased is never found again.
func (e *Erase) match(w *where, sequenced bool) {
	w.match(Query{Since: e.Since, Until: e.Until, Actor: e.Actor, Partner: e.Partner, RequestID: e.RequestID, Address: e.Address}, sequenced)
	if e.ID != "" {
		w.add("id = ?", clip(e.ID))
	}
	if !sequenced {
		return
	}
	var left []string
	for _, f := range e.Fields {
		empty := "''"
		if f == trail.Detail {
			empty = "'{}'"
		}
		if stays(f) {
			empty += ofTrail()
		}
		left = append(left, "(erased & "+strconv.Itoa(1<<f)+") = 0 AND "+f.String()+" <> "+empty)
	}
	w.add("(" + strings.Join(left, " OR ") + ")")
}

// refuseHeld fails when a hold covers an event of w.
func refuseHeld(ctx context.Context, tx *store.Tx, w where) error {
	w.conditions = append(slices.Clone(w.conditions), isHeld)
	var index int64
	var hold string
	rows, err := tx.Query(ctx, `SELECT leaf_index, (SELECT MIN(h.name) FROM holds h WHERE `+covers+`) FROM events`+w.String()+` LIMIT 1`, w.args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	if !rows.Next() {
		return rows.Err()
	}
	if err := rows.Scan(&index, &hold); err != nil {
		return err
	}
	return fault.New(fault.ErrTransition, "held", "event %d is under the legal hold %q: release it first, or select other events", index, hold)
}

// batch erases the next events from a leaf on. next is where to go on, or -1.
func (e *Erase) batch(ctx context.Context, tx *store.Tx, from int64, receipt string) (n, next int64, err error) {
	if err := lockRetention(ctx, tx); err != nil {
		return 0, 0, err
	}
	var w where
	w.add("leaf_index >= ?", from)
	e.match(&w, true)
	records, err := readRecords(ctx, tx, "", w, eraseBatch)
	if err != nil || len(records) == 0 {
		return 0, -1, err
	}
	last := records[len(records)-1].Index
	w.add("leaf_index <= ?", last)
	if err := refuseHeld(ctx, tx, w); err != nil { // a hold that came meanwhile
		return 0, 0, err
	}
	gone := map[string]bool{} // names, addresses and the like
	for i := range records {
		if err := e.erase(ctx, tx, &records[i], gone); err != nil {
			return 0, 0, fmt.Errorf("event %d: %w", records[i].Index, err)
		}
	}
	ctx, err = e.without(ctx, gone)
	if err != nil {
		return 0, 0, err
	}
	if next = last + 1; len(records) < eraseBatch {
		next = -1
	}
	return int64(len(records)), next, Record(ctx, tx, e.event(records, receipt))
}

// erase erases fields of one event, and notes their values.
func (e *Erase) erase(ctx context.Context, tx *store.Tx, r *trail.Record, gone map[string]bool) error {
	var was, mask int64
	fields := make([]trail.Field, 0, len(e.Fields))
	for f := range trail.NumFields {
		if r.IsErased(f) {
			was |= 1 << f
		}
	}
	for _, f := range e.Fields {
		if stays(f) && slices.ContainsFunc(trailActions, func(prefix string) bool { return strings.HasPrefix(r.Action, prefix) }) {
			continue
		}
		if f != trail.Detail && f != trail.Reason && r.Value(f) != "" {
			gone[r.Value(f)] = true
		}
		fields = append(fields, f)
	}
	hash, err := r.Event.Hash()
	if err != nil {
		return err
	}
	if err := r.Erase(fields...); err != nil {
		return err
	}
	// What can't be undone is checked first.
	if after, err := r.Event.Hash(); err != nil || after != hash {
		return errors.Join(err, errors.New("erasing would change its leaf"))
	}
	var values [trail.NumFields]string
	for f := range trail.NumFields {
		values[f] = r.Value(f)
		if r.Erased[f] != (tlog.Hash{}) {
			mask |= 1 << f
			values[f] = base64.StdEncoding.EncodeToString(r.Erased[f][:])
		}
	}
	return tx.Swap(ctx, `UPDATE events SET actor = $1, partner = $2, reason = $3, request_id = $4, address = $5, detail = $6, salt = $7, erased = $8 WHERE leaf_index = $9 AND erased = $10`,
		values[trail.Actor], values[trail.Partner], values[trail.Reason], values[trail.RequestID], values[trail.Address], values[trail.Detail], r.Salt, mask, r.Index, was)
}

// without returns a context whose actor does not bring back what is gone.
func (e *Erase) without(ctx context.Context, gone map[string]bool) (context.Context, error) {
	a := ActorOf(ctx)
	if gone[a.ID] {
		return nil, errOwnName
	}
	for value := range gone {
		if err := e.reasonTells(value); err != nil {
			return nil, err
		}
	}
	for _, value := range []*string{&a.Partner, &a.Address, &a.RequestID} {
		if gone[*value] {
			*value = ""
		}
	}
	return WithActor(ctx, a), nil
}

func (e *Erase) event(records []trail.Record, receipt string) Event {
	var fields, by []string
	for _, f := range e.Fields {
		fields = append(fields, f.String())
	}
	for _, s := range e.selectors() {
		if s.value != "" {
			by = append(by, s.name)
		}
	}
	sum := sha256.Sum256([]byte(receipt + e.Selectors()))
	detail := map[string]any{
		"fields": fields, "count": len(records), "begin": records[0].Index, "end": records[len(records)-1].Index + 1,
		"selected_by": by, "selector": hex.EncodeToString(sum[:]),
	}
	if !e.Since.IsZero() {
		detail["since"] = stamp(e.Since)
	}
	if !e.Until.IsZero() {
		detail["until"] = stamp(e.Until)
	}
	return Event{Action: "trail.erase", Resource: "trail", Reason: e.Reason, Detail: detail}
}
